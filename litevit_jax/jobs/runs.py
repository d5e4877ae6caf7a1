"""Lists the runs below a folder: recipe, step, state and last results.

    litevit runs
    litevit runs DIR

DIR is `runs` if it is not given. A run is running while its process holds the lock of
its directory, finished when it has made all of its updates and evaluations, and
stopped otherwise: the same command goes on.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from litevit_jax import exits, paths
from litevit_jax.jobs import ledger, summary
from litevit_jax.report import run_record
from litevit_jax.train import best, lock
from litevit_jax.train import workdir as workdirs

# What a run's directory holds beside other runs.
_INSIDE = ("analysis", "checkpoints", "evals", "pictures", "report", "tensorboard")
_INSIDE += ("wandb",)
_LEDGERS = ("layers.json", "sweep.json")  # of jobs of several runs
_TAIL = 2**16  # bytes at the end of metrics.jsonl, where the last step is
_SIGN_S = 12.0  # in which the owner of a lock on another host counts up
RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"


class Listed(NamedTuple):
    """A line of the list.

    Attributes:
      name: of the directory, relative to the folder that is listed.
      recipe: of the run.
      step: done of all, or parts of a job of several runs; '-' if it has none.
      state: RUNNING, STOPPED or FINISHED.
      results: the main number of each evaluation.
    """

    name: str
    recipe: str
    step: str
    state: str
    results: str


def main(argv: Sequence[str]) -> int:
    """Prints the list; returns the exit code."""
    parser = argparse.ArgumentParser("litevit runs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dir", nargs="?", default="runs", help="default: runs")
    folder = parser.parse_args(argv).dir
    try:
        root = paths.path(folder)
        if not root.is_dir():
            raise FileNotFoundError(
                f"{folder} is no folder; give the one that holds the runs: "
                "litevit runs DIR"
            )
        rows = list_runs(root)
    except (OSError, ValueError) as error:
        return exits.report(error, begun=False)
    if not rows:
        print(f"no run below {folder} (a run's directory has a config.json)")
        return exits.OK
    head = ["run", "recipe", "step", "state", "last results"]
    print(summary.columns([head, *map(list, rows)]))
    return exits.OK


def list_runs(root: Any) -> list[Listed]:
    """Lists the runs below a folder, in the order of their names."""
    directories = sorted(_runs(root), key=str)
    owners = {each: _owner(each) for each in directories}
    if any(owner is not None and not owner["here"] for owner in owners.values()):
        time.sleep(_SIGN_S)  # no clock of another host is read: does it count up?
    return [_listed(root, each, _runs_now(each, owners[each])) for each in directories]


def _runs(folder: Any) -> Iterator[Any]:
    """Yields the directories of runs in `folder` and below; `folder` may be one."""
    is_run = _is_run(folder)
    if is_run:
        yield folder
    for entry in folder.iterdir():
        inside = is_run and entry.name in _INSIDE
        if not inside and not entry.name.startswith(".") and entry.is_dir():
            yield from _runs(entry)


def _is_run(folder: Any) -> bool:
    """Whether a folder has a config of a run; one of another program has no `name`."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):  # damaged: it is named in the list
        return True
    return not isinstance(config, dict) or not config or "name" in config


def _owner(directory: Any) -> dict[str, Any] | None:
    """Reads who has the lock of a directory, if its owner may be alive.

    The entry `here` says whether the kernel of this host knows that it is.
    """
    path = directory / lock.NAME
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(owner, dict):
        return None
    is_here = owner.get("host") == socket.gethostname()
    if is_here and not _is_alive(owner.get("pid")):
        return None
    held = _is_held(path) if paths.is_local(path) else None
    if is_here and held is False:
        return None  # another process has its number now
    return {**owner, "here": held is True}


def _is_alive(pid: Any) -> bool:
    """Whether this host has a process of that number; asked before the lock is tried,
    so that a run that begins at this moment finds it free."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError):
        return False
    return True


def _is_held(path: pathlib.Path) -> bool | None:
    """Whether a process holds the kernel's lock; None where there are no locks."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EAGAIN, errno.EACCES) else None
    finally:
        os.close(file)
    return False


def _runs_now(directory: Any, owner: dict[str, Any] | None) -> bool:
    if owner is None or owner["here"]:
        return owner is not None
    now = _owner(directory)
    return now is not None and now.get("count") != owner.get("count")


def _listed(root: Any, directory: Any, running: bool) -> Listed:
    name = os.path.relpath(str(directory), str(root))
    try:
        config: Any = workdirs.read_config(directory)
        results = run_record.results(directory, [])
        step, complete = _progress(directory, config, results)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        state = RUNNING if running else STOPPED
        return Listed(name, "-", "-", state, str(error).partition(";")[0])
    state = RUNNING if running else FINISHED if complete else STOPPED
    last = ", ".join(f"{title} {_number(x)}" for title, x in results.items())
    last += _best(best.recorded(results))
    return Listed(name, str(config.get("name", "-")), step, state, last)


def _best(record: dict[str, Any] | None) -> str:
    if record is None or record["step"] is None:
        return ""
    return f"; best {record['by']} {record['value']:.4g} at step {record['step']:,}"


def _number(result: dict[str, Any]) -> str:
    metric = result["metric"]
    value = result["last"].get(metric)
    return f"{metric} {value:.4g}" if isinstance(value, int | float) else metric


def _progress(
    directory: Any, config: dict[str, Any], results: dict[str, Any]
) -> tuple[str, bool]:
    """Returns (steps or parts done of all, as text; whether that is all)."""
    for file in _LEDGERS:
        if (directory / file).is_file():
            content = paths.read_json(directory / file, "")
            done, planned = len(content["points"]), content.get(ledger.PLANNED)
            text = f"{done:,} of {planned:,} parts" if planned else f"{done:,} parts"
            ended = "metric" not in content or "test" in content  # of a transfer
            return text, planned is not None and done >= planned and ended
    total = (config.get("derived") or {}).get("total_steps")
    total = best.ended_at(config, results) or total
    evaluated = set(config.get("evals") or {}) <= set(results)
    if total is None:
        return "-", evaluated
    step = _last_step(directory)
    at_end = all(x["last"].get("step") == total for x in results.values())
    return f"{step:,} of {total:,}", step >= total and evaluated and at_end


def _last_step(directory: Any) -> int:
    """Returns the last update that is logged or saved; 0 if there is none."""
    steps = [0]
    if (directory / "metrics.jsonl").is_file():
        text = _tail(directory / "metrics.jsonl")
        steps += [int(step) for step in re.findall(r'"step": (\d+)[,}]', text)[-1:]]
    if (directory / "checkpoints").is_dir():
        names = (entry.name for entry in (directory / "checkpoints").iterdir())
        steps += [int(name) for name in names if name.isdigit()]
    return max(steps)


def _tail(path: Any) -> str:
    if not paths.is_local(path):
        return path.read_text()
    with path.open("rb") as file:
        file.seek(max(os.stat(path).st_size - _TAIL, 0))
        return file.read().decode(errors="replace")
