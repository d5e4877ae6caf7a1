"""The run directory: ownership, contents, and whether a config may resume in it.

config.json        the resolved config        environment.jsonl  a line per start
metrics.jsonl      a line per logged step     parameters.txt     every array
tensorboard/       the same as events         pictures/          grids of images
writers.json       names of the run at services that show it (`writers`)
checkpoints/STEP/  resumable states           evals/NAME/result.json
report/            a page of all of it        analysis/          of the encoder, for it
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from litevit_jax import choices, distributed, paths
from litevit_jax.train import lock

Config = dict[str, Any]  # as JSON gives it back
_IMAGES = ("derived.train_fingerprint", "derived.train_examples")

# Changes that leave the numbers of a run alone (mesh and slices: up to float rounding).
FREE_TO_CHANGE = (
    "attention",
    "checkpoint.*",
    "compilation_cache",
    "data.cache",  # where images are cropped is compared instead
    "data.cache_gib",
    "data.dir",  # the data's fingerprint is compared instead
    "data.max_bad_fraction",
    "data.required",
    "data.threads",
    "data.workers",
    "derived.classes",  # the fingerprint has the labels; older runs recorded no names
    "derived.image_size",  # `data.image_size` is compared instead
    "derived.steps_per_epoch",  # what follows from it is compared instead
    "evals.*",
    "log.*",
    "mesh.*",
    "microbatch",
    "nonfinite.*",
    "remat",
    "steps_per_call",
    "stop*",
    "teacher",  # its fingerprint is compared instead
    "watchdog*",
)

# Fields that runs did not record at first, and what those runs meant.
_OPEN = dict.fromkeys(("channels", "image_size", "mean", "std"))
_NOT_RECORDED = {
    "data.joint": {
        "annotations": [],
        "crop_draws": 1,
        "long_side": 2048,
        "mask_size": 112,
        "max_objects": 100,
        "most_of_one_class": 0.75,
        "ratio": [0.5, 2.0],
        "short_side": 512,
    },
    "data.joint.crop_draws": 1,
    "data.joint.mask_size": 112,
    "data.joint.max_objects": 100,
    "data.options": {},
    "data.sampling": "images",
    "data.unlisted": "refuse",
    "auto_batch": {
        **dict.fromkeys(("lr_batch", "recipe_batch", "recipe_lr")),
        **{"at_most": 4096, "steps_at_least": 0},
    },
    "derived.cropped_on": "host",
    "fallback": {**_OPEN, "encoder": {}},
    "fallback.encoder": {},
    "init_donor_load": [],
    "init_required": False,
    "lr.decay": "cosine",
    "objective.loss": "softmax",
    "stop": {"patience": None},
}

# Of a checkpoint, for names, shapes and half-filled blocks of the disk.
_BESIDE_STATE = 400_000

_NO_CONFIG = (
    "put a copy of it back (each checkpoints/STEP/meta/metadata holds the config under "
    "'config'), or start anew in another --workdir"
)

# How the environment variables begin that change what JAX and its compilers do.
_VARIABLES = ("CUDA_", "JAX_", "LIBTPU_", "LITEVIT_", "NCCL_", "TPU_", "XLA_")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def plain(value: object) -> Any:
    """Converts a config value to what JSON gives back: dicts and lists."""
    return json.loads(json.dumps(value, default=list))


def differences(
    old: object, new: object, prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """Lists (dotted key, old value, new value) wherever two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            name = f"{prefix}.{key}" if prefix else key
            rows += differences(old.get(key), new.get(key), name)
        return rows
    return [] if old == new else [(prefix, old, new)]


def open_run(
    workdir: pathlib.Path, config: dict[str, Any], *, free: tuple[str, ...] = ()
) -> bool:
    """Reserves `workdir` for a run until `close_run`; True if it resumes there.

    Of several processes the first one does it, and all return the same.

    Args:
      workdir: of the run.
      config: as it will be saved.
      free: patterns of keys that may differ from the saved config's, besides
        FREE_TO_CHANGE.

    Raises:
      ValueError: it holds another run, or files that are not a run's; another process
        works in it; or not all processes see it.
      OSError: it cannot be written.
    """
    if distributed.process_count() > 1:
        from litevit_jax.train import shared_workdir

        shared_workdir.check(workdir)
    return distributed.run_on_primary(lambda: _open(workdir, plain(config), free))


def _open(workdir: pathlib.Path, config: Config, free: tuple[str, ...]) -> bool:
    check_writable(workdir)
    taken = lock.take(workdir)
    try:
        return _begin_or_resume(workdir, config, free)
    except BaseException:
        if taken:
            lock.release(workdir)
        raise


def _begin_or_resume(
    workdir: pathlib.Path, config: Config, free: tuple[str, ...]
) -> bool:
    path = workdir / "config.json"
    if not path.exists():
        entries = workdir.iterdir() if workdir.exists() else ()
        strangers = [p.name for p in entries if not p.name.startswith(".")]
        if strangers:
            raise ValueError(
                f"--workdir={workdir} is not empty and not a run of this program "
                f"(no config.json; it holds {', '.join(sorted(strangers)[:5])}); give "
                "a new directory"
            )
        if epochs := _longer_epochs(config):
            raise ValueError(
                f"--workdir={workdir} has no run that extend_to={epochs} "
                "could make longer; give that of a run, or set --config.epochs= alone"
            )
        write_json(path, config)
        return False
    old = read_config(workdir)
    assert old is not None  # its file exists
    _check_removed(path, old)
    changed = differences(old, config)
    refused = [
        (key, *values)
        for key, *values in changed
        if not _may_change(key, (*free, *_longer(old, config)))
        and not (values[0] is None and values[1] == _NOT_RECORDED.get(key))
    ]
    if refused:
        run, back, shown = "with another config", "", []
        keys = [key for key, *_ in refused]
        if _IMAGES[0] in keys and not any(key.startswith("data.") for key in keys):
            run, back = "of other training images", "those images and "
            shown = [c for c in refused if c[0] in _IMAGES]
        # Other derived values follow from these.
        shown += [c for c in refused if not c[0].startswith("derived.")]
        shown = shown or refused
        rows = "\n".join(f"  {k}: {_short(a)} -> {_short(b)}" for k, a, b in shown)
        raise ValueError(
            f"--workdir={workdir} holds a run {run}; these keys differ (saved -> now):"
            f"\n{rows}\nresume it with {back}the saved values, or start a new run with "
            f"another --workdir{'' if back else _how_to_extend(refused)}"
        )
    if changed:
        write_json(path, config)
    return True


def _longer_epochs(new: Config) -> int | None:
    """Returns `extend_to`; not every job has it."""
    return new.get("extend_to")


def _longer(old: Config, new: Config) -> tuple[str, ...]:
    """Returns the keys that may differ because the run is extended."""
    totals = [(x.get("derived") or {}).get("total_steps") or 0 for x in (old, new)]
    if not _longer_epochs(new) or totals[1] <= totals[0]:
        return ()
    return ("extend_to", "derived.planned_steps", "derived.total_steps")


def _how_to_extend(refused: Sequence[tuple[str, Any, Any]]) -> str:
    """Says how to train longer if that is what differs."""
    longer = any(
        k in ("epochs", "steps") and (b or 0) > (a or 0) for k, a, b in refused
    )
    way = "; to train this one longer, give the saved values and --config.extend_to="
    return f"{way}EPOCHS" if longer else ""


def close_run(workdir: pathlib.Path) -> None:
    """Lets another process go on in `workdir`."""
    lock.release(workdir)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_removed(path: pathlib.Path, config: dict[str, Any]) -> None:
    """Raises ValueError if a saved config uses a field that no longer exists."""
    for name, field in choices.REMOVED.items():
        value = config.get(name, field.off)
        if field.matters and value != field.off:
            raise ValueError(
                f"{path} has {name}={value}, and {name} is gone: {field.instead}. To "
                f"resume the run, write {json.dumps({name: field.off})[1:-1]} there; "
                "its checkpoints stay as they are"
            )


def _may_change(key: str, free: tuple[str, ...]) -> bool:
    return key in choices.REMOVED or any(
        fnmatch.fnmatchcase(key, pattern) for pattern in (*FREE_TO_CHANGE, *free)
    )


def check_writable(workdir: pathlib.Path) -> None:
    """Raises OSError unless files can be written to `workdir`, which is made."""
    local = paths.is_local(workdir)
    # A store's library may raise anything for what is forbidden or not there.
    kinds: type[Exception] = OSError if local else Exception
    try:
        paths.make_folder(workdir)
        probe = workdir / f".probe-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except kinds as error:
        way = "a directory with write permission and free space"
        if not local:
            way = "a bucket that exists and that you may write to and delete from"
        why = getattr(error, "strerror", None) or error
        if isinstance(error, FileExistsError):
            why = "it is a file"
        raise OSError(
            f"--workdir={workdir} cannot be written: {why}; give {way}"
        ) from error


def check_space(workdir: pathlib.Path, state_bytes: int, keep: int) -> None:
    """Raises OSError if the checkpoints that will be kept do not fit on the disk.

    Nothing is written; `workdir` need not exist. Those it holds already count.
    """
    if not paths.is_local(workdir):  # a bucket has no end
        return
    folders = (workdir, *workdir.absolute().parents)
    # `isdir` is False for a name that is too long.
    folder = next(p for p in folders if os.path.isdir(p))
    free = shutil.disk_usage(folder).free
    saved = 0
    if folder == workdir:
        saved = sum(1 for _ in workdir.glob("checkpoints/[0-9]*"))
    one = state_bytes + _BESIDE_STATE
    need = one * max(keep + 1 - saved, 1)
    if free < need:
        raise OSError(
            f"--workdir={workdir}: {_size(free)} free, but {keep} checkpoints of "
            f"{_size(one)} and one being written need {_size(need)}; free some space, "
            "choose another --workdir, or lower --config.checkpoint.keep"
        )


def _size(count: float) -> str:
    """Formats bytes with three digits and a unit: '312 kB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes `value` so that a reader sees the old file or the new one, whole."""
    paths.replace_text(path, json.dumps(value, indent=1, default=list) + "\n")


def environment(devices: list[str]) -> dict[str, Any]:
    """Describes this start of the run: versions, devices, command, variables."""
    root = pathlib.Path(__file__).parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    variables = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit.strip(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "devices": devices,
        "command": sys.argv,
        "variables": variables,
    }


def read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads config.json, with today's names of its fields; None without the file."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    return choices.upgrade(paths.read_json(path, _NO_CONFIG))
