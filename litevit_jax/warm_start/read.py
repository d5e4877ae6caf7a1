"""Reads parameters and config of a run, of a step in it, or of a file of weights."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from litevit_jax import checkpoint, choices, distributed, paths, trees, weights
from litevit_jax.data import local_copy
from litevit_jax.models import vit
from litevit_jax.train import workdir as workdirs
from litevit_jax.warm_start import Checkpoint as Checkpoint
from litevit_jax.weights import names


def read_params(path: str, *, average: bool = False) -> Checkpoint:
    """Reads parameters and config of a run (its newest step) or of a step inside it.

    With `average`, the trained parameters are those that the optimizer averaged.

    Raises:
      FileNotFoundError: no run, or no such step, there.
      CorruptCheckpoint: the files are damaged.
      ValueError: an average is asked for, and the run kept none.
    """
    run, step = _locate(path)
    if not (run / "checkpoints").is_dir():
        what = f"no run directory there (expected {run / 'checkpoints'})"
        raise FileNotFoundError(
            f"{path}: {what if run.exists() or not run.suffix else 'no such file'}; "
            "give the --workdir of a run that has begun, or a file of weights"
        )
    with ocp.CheckpointManager(run / "checkpoints") as manager:
        steps = sorted(manager.all_steps())
        step = max(steps, default=None) if step is None else step
        if step is None or step not in steps:
            raise FileNotFoundError(
                f"{path}: step {step} is not saved; {run} has steps {steps or 'none'}"
            )
        try:
            wanted = {"meta": ocp.args.JsonRestore()}
            meta = checkpoint.read_items(manager, step, wanted)["meta"]
            params = _read_part(manager, step, meta, "params")
            model_state = _read_part(manager, step, meta, "model_state")
            if average:
                params |= _average(_read_part(manager, step, meta, "opt_state"), path)
        except checkpoint.CorruptCheckpoint as error:
            others = ", ".join(f"{run}/checkpoints/{s}" for s in steps if s != step)
            raise checkpoint.CorruptCheckpoint(
                f"{path}: step {step} is damaged ({error}); others: {others or 'none'}"
            ) from error
    return Checkpoint(params, choices.upgrade(meta["config"]), step, run, model_state)


def _locate(path: str) -> tuple[pathlib.Path, int | None]:
    """Splits a path into a run directory and a step, None for the newest."""
    directory = paths.absolute(paths.path(path))
    if directory.name == "checkpoints" and not (directory / "checkpoints").exists():
        return directory.parent, None
    if directory.name.isdigit() and not (directory / "checkpoints").exists():
        run = directory.parent
        run = run.parent if run.name == "checkpoints" else run
        return run, int(directory.name)
    return directory, None


def _read_part(manager: ocp.CheckpointManager, step: int, meta: Any, part: str) -> Any:
    """Reads one part of a saved state: 'encoder/norm/scale' -> array."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaf = jax.ShapeDtypeStruct
    wanted = {
        name.removeprefix(f"{part}."): leaf(tuple(shape), dtype, sharding=device)
        for name, (shape, dtype) in meta["arrays"].items()
        if name.startswith(f"{part}.")
    }
    if not wanted:
        return {}
    items = {part: ocp.args.StandardRestore(wanted)}
    flat = checkpoint.read_items(manager, step, items)
    checkpoint.check_bits(flat, meta)
    return {trees.from_dotted(k): np.asarray(v) for k, v in flat[part].items()}


def _average(opt_state: dict[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    """Returns the averaged parameters that an optimizer's state holds."""
    prefix = "ema/"
    averaged = {
        name.removeprefix(prefix): x
        for name, x in opt_state.items()
        if name.startswith(prefix)
    }
    if not averaged:
        raise ValueError(
            f"{path}: the run kept no average of its parameters (optimizer.ema_decay "
            "was None); leave init_ema, or average=True in Python, out"
        )
    return averaged


def read(
    path: str,
    *,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    average: bool = False,
) -> Checkpoint:
    """Reads parameters and config of a run, of a step in it, or of a file of weights.

    The config of a file has `objective.encoder` (with the `grid` of patches),
    `objective.pool` and `objective.loss`, see `weights.Weights`; `classes`, the names
    of its head's classes, and `normalize`, both possibly empty; and `windows` and
    `detector` of a detector. What is assumed about the file is printed.

    Args:
      path: of a run directory, a step inside it, or a file.
      num_heads: of the file's encoder, if the file does not record it.
      grid: rows and columns of its patches, if the image is not square.
      average: take the run's averaged parameters instead of the last ones.

    Raises:
      FileNotFoundError: `path` does not exist.
      ValueError: the file cannot be read, or does not record its number of heads; or
        the run kept no average.
    """
    if not paths.path(path).is_file():
        if average:
            return read_params(path, average=True)
        return read_params(path)
    if average:
        raise ValueError(
            f"{path}: a file of weights holds one set of parameters and no average; "
            "leave --config.init_ema out"
        )
    file = str(local_copy.local_file(path))
    model = weights.read(file, num_heads=num_heads, grid=grid)
    for note in model.notes if distributed.is_primary() else ():
        print(f"{path}: {note}", flush=True)
    encoder = {**model.encoder, "grid": model.grid}
    head = {"pool": model.pool, "loss": model.loss}
    config: dict[str, Any] = {"objective": {"encoder": encoder, **head}}
    config |= {"classes": model.classes, "normalize": model.normalize}
    config |= {key: model.metadata.get(key) for key in ("range", "crop")}
    config |= {"windows": model.windows, "detector": model.detector}
    return Checkpoint(model.params, config, 0, pathlib.Path(path))


def read_flag(
    flag: str, path: str, block: Any, average: bool = False, grid: str | None = None
) -> Checkpoint:
    """Reads the checkpoint that a flag of the command line names.

    Args:
      flag: 'init', 'init_donor' or 'teacher'.
      path: its value.
      block: the encoder in the config, which may give the number of heads.
      average: as in `read`.
      grid: 'ROWSxCOLUMNS' of patches, or None.

    Raises:
      FileNotFoundError, ValueError: as `read`, with the flag that helps.
    """
    sides = names.grid_of_flag("init_grid", grid)
    try:
        heads = block.get("num_heads")
        return read(path, num_heads=heads, grid=sides, average=average)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config.{flag}={error}") from None
    except checkpoint.CorruptCheckpoint:
        raise
    except ValueError as error:
        hint = ""
        if "num_heads" in str(error) and not block.get("num_heads"):
            hint = f"; here: --config.{block_of(flag)}.num_heads=A"
        elif "give grid" in str(error):
            convert = (
                "convert the file first, with configs/convert.py and --config.grid"
            )
            hint = "--config.init_grid" if flag == "init" else convert
            hint = f"; here: {hint}=ROWSxCOLUMNS"
        raise ValueError(f"--config.{flag}={error}{hint}") from None


def block_of(flag: str) -> str:
    """Returns the config block of the encoder that a flag of the command line reads."""
    return "objective.encoder" if flag == "init" else "objective.teacher"


def encoder_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the encoder's block in the config of a run or of a file of weights."""
    block = config["objective"]["encoder"]
    if "data" in config:
        return block
    return {name: block[name] for name in vit.FIELDS if name in block}


def run_config(path: str) -> dict[str, Any]:
    """Reads the config of the run that `like` names."""
    config = workdirs.read_config(paths.path(path))
    if config is None:
        raise FileNotFoundError(
            f"--config.like={path}: no run directory there (no config.json)"
        )
    return config
