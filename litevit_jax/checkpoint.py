"""Save and resume a TrainState; read the parameters of another run.

On disk, under `<workdir>/checkpoints/<step>/`: one item for each part of the state
(`params`, `opt_state`, ...), a flat dict 'encoder.norm.scale' -> array, and `meta`
(JSON): the resolved config; shape, dtype and fingerprint of every array, by which
damage is noticed. Writing is asynchronous and atomic: a complete step has its name.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

PARTS = ("step", "params", "model_state", "teacher", "opt_state")


class CorruptCheckpoint(ValueError):
    """A checkpoint whose files cannot be read, or whose bits are not those saved."""


class Checkpoint(NamedTuple):
    """Parameters of a run at a step, read without its training state."""

    params: dict[str, np.ndarray]  # 'encoder/norm/scale' -> array
    config: dict[str, Any]
    step: int
    directory: pathlib.Path
    model_state: dict[str, np.ndarray] = {}  # noqa: RUF012  running statistics


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path; a bare array gets the name 'value'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(keys, simple=True, separator=".") or "value": leaf
        for keys, leaf in leaves
    }


def _fingerprint(x: jax.Array) -> jax.Array:
    """uint32 sum of hashes, one of each word of the array together with its place.

    Integer arithmetic modulo 2^32: the same on any mesh and in any order.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    mixed = words.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B9))
    # The finalizer of MurmurHash3, so that changes of two words cannot cancel.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


@jax.jit
def _inspect(flat: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    def finite(x: jax.Array) -> Any:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.all(jnp.isfinite(x)) if floating else jnp.bool_(True)

    prints = {name: _fingerprint(x) for name, x in flat.items()}
    return prints, {name: finite(x) for name, x in flat.items()}


def _describe(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{part}.{name}": [list(x.shape), str(x.dtype)]
        for part, flat in parts.items()
        for name, x in flat.items()
    }


def _inspect_parts(parts: dict[str, dict[str, Any]]) -> tuple[Any, list[str]]:
    flat = {f"{p}.{name}": x for p, part in parts.items() for name, x in part.items()}
    prints, finite = jax.device_get(_inspect(flat))
    bad = [name for name, ok in finite.items() if not ok]
    return {name: int(value) for name, value in prints.items()}, bad


def fingerprint(state: Any) -> str:
    """16 hex digits of what predicts: parameters and model state, on any mesh.

    Equal for equal bits, in training as in a saved step that was read.
    """
    parts = {name: flatten(getattr(state, name)) for name in ("params", "model_state")}
    prints, _ = _inspect_parts(parts)
    lines = "".join(f"{name} {value};" for name, value in sorted(prints.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def place(state: Any, given: dict[str, Any], abstract: Any) -> Any:
    """`state` with the parts `given`, host arrays, put where `abstract` has them."""
    shardings = {
        name: jax.tree.map(lambda x: x.sharding, getattr(abstract, name))
        for name in given
    }
    return state.replace(**jax.device_put(given, shardings))


class Checkpoints:
    """The checkpoints of one run: `workdir`/checkpoints, the last `keep` of them.

    `fixed`: parts of the state (as host arrays) that never change, like a frozen
    teacher. They are not saved, and put back into what is restored.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int,
        fixed: dict[str, Any] | None = None,
    ) -> None:
        self._fixed = fixed or {}
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Steps that are saved completely, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any, *, config: dict[str, Any], **meta: Any) -> None:
        """Starts writing `state` under its step; waits for the previous write.

        Raises:
          FloatingPointError: the state is not finite; nothing is written.
          RuntimeError: this or the previous write failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        parts = self._parts(state)
        prints, bad = _inspect_parts(parts)
        if bad:
            raise FloatingPointError(
                f"step {step}: the state is not finite in {', '.join(bad[:5])} "
                f"({len(bad)} arrays) and was not saved; the last good checkpoint "
                f"is step {self._manager.latest_step()}"
            )
        meta = {
            **meta,
            "step": step,
            "config": config,
            "arrays": _describe(parts),
            "fingerprints": prints,
        }
        items = {name: ocp.args.StandardSave(flat) for name, flat in parts.items()}
        try:
            self.wait()
            self._set_aside_leftover(step)
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            saved = self._manager.save(step, args=args, force=True)
        except OSError as error:
            raise RuntimeError(self._not_written(f"step {step}", error)) from error
        if not saved:
            raise RuntimeError(
                f"step {step} was not saved to {self.directory}: newer steps "
                f"{self.steps()[-3:]} are there already"
            )

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, meta) of the newest readable step, or None if there is none.

        A step that cannot be read or whose bits differ is logged, moved to
        `<workdir>/corrupt/` and the one before it is tried.

        Raises:
          ValueError: the saved arrays are not those of `abstract` (names listed).
          CorruptCheckpoint: there are checkpoints, none of them readable.
        """
        tried = []
        for step in reversed(self.steps()):
            try:
                return self._restore_step(step, abstract)
            except CorruptCheckpoint as error:
                tried.append(step)
                place = self._set_aside(step)
                logging.warning(
                    "checkpoint of step %d is damaged (%s); moved to %s, trying the "
                    "one before it", step, error, place
                )  # fmt: skip
        if tried:
            raise CorruptCheckpoint(
                f"{self.directory}: no checkpoint can be read (steps {tried} are "
                "damaged and now in corrupt/ beside it); start again in a new "
                "--workdir"
            )
        return None

    def _restore_step(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        parts = self._parts(abstract)
        meta = _read(self._manager, step, {"meta": ocp.args.JsonRestore()})["meta"]
        _check_arrays(meta["arrays"], _describe(parts), self.directory / str(step))
        items = {name: ocp.args.StandardRestore(flat) for name, flat in parts.items()}
        flat = _read(self._manager, step, items)
        _check_bits(flat, meta)
        state = {
            name: jax.tree.unflatten(
                jax.tree.structure(getattr(abstract, name)),
                [flat[name][key] for key in parts.get(name, {})],
            )
            for name in PARTS
            if name not in self._fixed
        }
        return place(abstract.replace(**state), self._fixed, abstract), meta

    def _parts(self, state: Any) -> dict[str, dict[str, Any]]:
        names = [name for name in PARTS if name not in self._fixed]
        parts = {name: flatten(getattr(state, name)) for name in names}
        return {name: flat for name, flat in parts.items() if flat}

    def _set_aside(self, step: int) -> pathlib.Path:
        place = self.directory.parent / "corrupt"
        place.mkdir(exist_ok=True)
        number = sum(1 for _ in place.glob(f"{step}-*"))
        target = place / f"{step}-{number}"
        (self.directory / str(step)).rename(target)
        self._manager.reload()
        return target

    def _set_aside_leftover(self, step: int) -> None:
        """Moves away a directory of that step which no finished save wrote."""
        if (self.directory / str(step)).exists():
            logging.warning("moved an incomplete step %d to corrupt/", step)
            self._set_aside(step)

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          RuntimeError: it failed; the message says why and what is saved.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            # A full disk shows as almost any exception of the storage layers below.
            raise RuntimeError(self._not_written("the last step", error)) from error

    def _not_written(self, what: str, error: Exception) -> str:
        why = str(error).strip().splitlines() or [type(error).__name__]
        return (
            f"{what} could not be saved to {self.directory}: {why[0][:300]}; complete "
            f"are steps {self.steps() or 'none'}. Make room or mend the disk, then run "
            "the same command again to go on from there"
        )

    def close(self) -> None:
        """Waits for the last save and releases the directory."""
        self._manager.close()


def _read(manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:
        # Damage shows as almost any exception of the storage layers below.
        raise CorruptCheckpoint(str(error).splitlines()[0][:200]) from error


def _check_bits(flat: Any, meta: dict[str, Any]) -> None:
    prints, _ = _inspect_parts(dict(flat.items()))
    wrong = [k for k, v in prints.items() if meta["fingerprints"].get(k) != v]
    if wrong:
        raise CorruptCheckpoint(f"bits differ from those saved in {wrong[0]}")


def _check_arrays(saved: dict, wanted: dict, place: pathlib.Path) -> None:
    problems = []
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            problems.append(f"{name}: not in the checkpoint")
        elif name not in wanted:
            problems.append(f"{name}: only in the checkpoint")
        elif list(saved[name]) != wanted[name]:
            problems.append(f"{name}: saved {saved[name]}, expected {wanted[name]}")
    _refuse(f"{place} does not fit this model and optimizer", problems)


def _refuse(what: str, problems: list[str]) -> None:
    if problems:
        rows = "".join(f"\n  {row}" for row in problems[:10])
        raise ValueError(f"{what} ({len(problems)} differences):{rows}")


def _locate(path: str) -> tuple[pathlib.Path, int | None]:
    place = pathlib.Path(path).absolute()
    if place.name.isdigit() and not (place / "checkpoints").exists():
        run = place.parent
        return (run.parent if run.name == "checkpoints" else run), int(place.name)
    return place, None


def read_params(path: str, *, average: bool = False) -> Checkpoint:
    """Parameters and config of a run directory (newest step) or a step inside it.

    With `average`, the trained ones are those that the optimizer averaged.

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
            meta = _read(manager, step, {"meta": ocp.args.JsonRestore()})["meta"]
            params = _read_part(manager, step, meta, "params")
            model_state = _read_part(manager, step, meta, "model_state")
            if average:
                params |= _average(_read_part(manager, step, meta, "opt_state"), path)
        except CorruptCheckpoint as error:
            others = ", ".join(f"{run}/checkpoints/{s}" for s in steps if s != step)
            raise CorruptCheckpoint(
                f"{path}: step {step} is damaged ({error}); others: {others or 'none'}"
            ) from error
    return Checkpoint(params, meta["config"], step, run, model_state)


def _read_part(manager: ocp.CheckpointManager, step: int, meta: Any, part: str) -> Any:
    """'encoder/norm/scale' -> array, of one part of a saved state."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaf = jax.ShapeDtypeStruct
    wanted = {
        name.removeprefix(f"{part}."): leaf(tuple(shape), dtype, sharding=device)
        for name, (shape, dtype) in meta["arrays"].items()
        if name.startswith(f"{part}.")
    }
    if not wanted:
        return {}
    flat = _read(manager, step, {part: ocp.args.StandardRestore(wanted)})
    _check_bits(flat, meta)
    return {k.replace(".", "/"): np.asarray(v) for k, v in flat[part].items()}


def _average(opt_state: dict[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    found = {k[4:]: x for k, x in opt_state.items() if k.startswith("ema/")}
    if not found:
        raise ValueError(
            f"{path}: the run kept no average of its parameters; leave the flag out"
        )
    return found


def fill(
    params: Any, found: dict[str, np.ndarray], *, load: Sequence[str], skip: Sequence
) -> Any:
    """`params` with every leaf whose path matches `load` replaced by `found`'s.

    Strict both ways. `skip`: patterns of entries of `found` that may stay unused.

    Raises:
      ValueError: a leaf is missing or of another shape, or an entry stays unused.
    """
    used, problems = set(), []

    def one(keys: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not any(re.fullmatch(p, name) for p in load):
            return leaf
        used.add(name)
        if name not in found:
            problems.append(f"{name} {list(leaf.shape)}: not in the checkpoint")
        elif found[name].shape != leaf.shape:
            problems.append(
                f"{name}: checkpoint has {list(found[name].shape)}, this model "
                f"{list(leaf.shape)}"
            )
        else:
            return found[name].astype(leaf.dtype)
        return leaf

    filled = jax.tree_util.tree_map_with_path(one, params)
    for name in sorted(found.keys() - used):
        if not any(re.fullmatch(p, name) for p in skip):
            problems.append(f"{name} {list(found[name].shape)}: in the checkpoint only")
    _refuse("the checkpoint does not fit this model", problems)
    return filled
