"""A part of the accelerator's benchmark: its rows, its time, its table."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Part -> its share of the time; what one leaves over goes to those behind it.
PARTS = {
    "identity": 0.4,
    "numerics": 2.0,
    "steps": 2.4,
    "peers": 1.6,
    "attention": 1.0,
    "inputs": 0.6,
    "small": 1.0,
    "profile": 0.6,
    "learning": 1.2,
}
# A model that main.py trains within seconds, where a part is in its small form.
SMALL_MODEL = (
    "--config.objective.encoder.width=24",
    "--config.objective.encoder.depth=1",
    "--config.objective.encoder.num_heads=2",
    "--config.objective.decoder.width=16",
    "--config.objective.decoder.num_heads=2",
    "--config.log.health=False",
    "--config.log.report_images=0",  # draws the run, and analyses nothing
    "--config.log.writers=('jsonl',)",
)
# Exit code of a part's process whose next rows need a process that holds no device.
AGAIN = 75
WITHOUT_TORCH = "without PyTorch"  # figure of a row that has our side alone
CURVES = "learning-loss.png"
SMALL_FORM = "small form"  # the `device` of figures that measure nothing
ROOT = pathlib.Path(__file__).resolve().parents[2]
_AT_LEAST_S = 0.25  # of a repetition that is timed
_REPETITIONS = 7


class OutOfTime(Exception):
    """The part's time is over; the row was not measured."""


class Part:
    """The rows of one part, written to a file as they are measured.

    Attributes:
      name: of the part.
      out: folder of the results.
      small: tiny sizes, for CPUs and tests.
      torch_python, data: of the command line.
      rows: name -> figures of what has been measured.
    """

    def __init__(self, name: str, out: pathlib.Path, until: float, small: str) -> None:
        self.name, self.out, self._until = name, out, until
        self._small = small
        self._missing = False
        self.torch_python = ""
        self.data: str | None = None
        self._state = load(out, name)
        self.rows: dict[str, dict[str, Any]] = self._state["rows"]

    @property
    def small(self) -> bool:
        """Whether sizes are tiny; 'auto' asks JAX what it runs on."""
        if self._small == "auto":
            import jax

            self._small = "yes" if jax.default_backend() == "cpu" else "no"
        return self._small == "yes"

    @property
    def left(self) -> float:
        """Seconds until the part's time is over."""
        return self._until - time.time()

    def about(self, device: str) -> None:
        """Notes which device the figures are of, as 'platform: kind'."""
        self._state["device"] = device

    @property
    def platform(self) -> str:
        """JAX's name of the device's platform; asks JAX only if it is not known."""
        known = self._state.get("device", "").partition(":")[0]
        if known in ("", SMALL_FORM):
            import jax

            return jax.default_backend()
        return known

    def other(self, name: str) -> dict[str, dict[str, Any]]:
        """The rows of another part, as far as they are measured."""
        return load(self.out, name)["rows"]

    def missing(self, names: Iterable[str]) -> list[str]:
        """The `names` that have no row yet."""
        return [name for name in names if name not in self.rows]

    def row(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measures and writes row `name`, unless it exists or the time is over.

        What `measure` raises becomes the row's 'error', and the part goes on.
        """
        if name in self.rows:
            return
        if self.left <= 0:
            self._missing = True
            return
        start = time.time()
        self._state["at"] = name
        self.save()
        try:
            figures = measure()
        except OutOfTime:
            self._missing = True
            return
        except Exception as error:
            traceback.print_exception(error, limit=-2, chain=False)
            figures = {"error": f"{type(error).__name__}: {error}"[:300]}
        self.rows[name] = figures | {"took_s": round(time.time() - start, 2)}
        del self._state["at"]
        self.save()

    def skip(self) -> None:
        """Notes that a row could not be measured in time."""
        self._missing = True

    def finish(self) -> None:
        """Marks the part as complete if no row is missing."""
        self._state["complete"] = not self._missing
        self._state.pop("at", None)
        self.save()

    def save(self) -> None:
        """Writes the rows; a reader never sees half of them."""
        store(self.out, self.name, self._state)

    def run_main(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs main.py with `arguments`, as `run`."""
        return self.run("main.py", *arguments)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a program with its arguments; returns its exit code and output.

        On an accelerator this process must not have started JAX: a TPU belongs to one
        process, and of a GPU JAX takes most of the memory.

        Raises:
          OutOfTime: the part's time is over; the program is killed.
        """
        arguments = [sys.executable, *command]
        with process(arguments, cwd=ROOT, stdout=subprocess.PIPE) as child:
            try:
                output, _ = child.communicate(timeout=max(self.left, 1))
            except subprocess.TimeoutExpired:
                raise OutOfTime from None
        return subprocess.CompletedProcess(arguments, child.returncode, output)


def load(out: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads the file of part `name`; a part without a file has no rows."""
    path = out / f"{name}.json"
    if not path.exists():
        return {"complete": False, "rows": {}}
    return json.loads(path.read_text())


def store(out: pathlib.Path, name: str, state: dict[str, Any]) -> None:
    """Writes the file of part `name`; a reader never sees half of it."""
    part = out / f"{name}.part"
    part.write_text(json.dumps(state, indent=1) + "\n")
    part.replace(out / f"{name}.json")


def blame(out: pathlib.Path, name: str, code: int) -> bool:
    """Notes that a part's process ended while it measured a row.

    The row becomes an error, so that the next process goes on behind it. Returns False
    if it measured none.
    """
    state = load(out, name)
    if "at" not in state:
        return False
    error = f"the process ended with exit code {code}: see above"
    state["rows"][state.pop("at")] = {"error": error, "took_s": 0.0}
    store(out, name, state)
    return True


def reopen(out: pathlib.Path, name: str, figure: str) -> None:
    """Drops the rows of part `name` that have `figure`: they are measured anew."""
    state = load(out, name)
    kept = {key: row for key, row in state["rows"].items() if figure not in row}
    if len(kept) < len(state["rows"]):
        store(out, name, state | {"rows": kept, "complete": False})


def timed(
    call: Callable[[], Any],
    *,
    repetitions: int = _REPETITIONS,
    at_least_s: float = _AT_LEAST_S,
) -> dict[str, float]:
    """Seconds of one `call` until its arrays are ready: median, min, max.

    A repetition makes as many calls as take `at_least_s`, and waits for the last.
    """
    import jax

    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(round(at_least_s / max(time.perf_counter() - start, 1e-6)), 1)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / calls)
    seconds.sort()
    return {"median": seconds[len(seconds) // 2], "min": seconds[0], "max": seconds[-1]}


def in_parallel(jobs: dict[str, Callable[[], Any]], threads: int = 6) -> dict[str, Any]:
    """Results of all `jobs`; for a job that failed, its exception.

    Meant for compiling: nothing is timed while it runs.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        results = {}
        for name, future in futures.items():
            error = future.exception()
            results[name] = future.result() if error is None else error
    return results


def rate(count: float, seconds: dict[str, float]) -> dict[str, float]:
    """Rate of `count` per second, with its spread."""
    return {
        "median": count / seconds["median"],
        "min": count / seconds["max"],
        "max": count / seconds["min"],
    }


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A child that is ended with the block; it stays in the part's process group."""
    child = subprocess.Popen(command, text=True, **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def end_group(child: subprocess.Popen[Any]) -> None:
    """Kills a child that leads a process group, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def why_no_torch(python: str) -> str:
    """Why `python` cannot run PyTorch's side: its last line; '' if it can."""
    command = [python, "-c", "import numpy, torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"{done.returncode=}"])[-1]
    return ""


def write_tables(out: pathlib.Path) -> str:
    """Writes results.md and results.json of all parts; returns the Markdown."""
    parts = {name: load(out, name) for name in PARTS}
    parts = {name: part for name, part in parts.items() if part["rows"]}
    text = "\n\n".join(
        "\n".join([_title(name, part), "", *table(part["rows"])])
        for name, part in parts.items()
    )
    if (out / CURVES).exists():
        text += f"\n\n![Loss of the part learning]({CURVES})"
    (out / "results.md").write_text(text + "\n")
    (out / "results.json").write_text(json.dumps(parts, indent=1) + "\n")
    return text


def _title(name: str, part: dict[str, Any]) -> str:
    notes = [part["device"]] if "device" in part else []
    notes += [] if part["complete"] else ["not complete"]
    return f"## {name}" + (f" ({', '.join(notes)})" if notes else "")


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Rows in Markdown: a column for each figure that any of them has."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns.remove("took_s")
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, row in rows.items():
        lines.append([name, *(cell(row.get(key, "")) for key in columns)])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def cell(value: Any) -> str:
    """A figure as text; of a spread 'median (min..max)'."""
    if isinstance(value, dict) and {"median", "min", "max"} <= set(value):
        return "{} ({}..{})".format(
            *map(short, (value[k] for k in ("median", "min", "max")))
        )
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items())
    return short(value).replace("|", "/").replace("\n", " ")


def short(value: Any) -> str:
    """A number with four digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
