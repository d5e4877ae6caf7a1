"""Reads what a run's directory holds; gaps are named and never filled."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any, TypeGuard

from litevit_jax.train import best
from litevit_jax.train import workdir as workdirs

# Of evaluations' results: what says when and how, not how well.
STAMPS = ("step", "n", "params", "time", "seconds", "percent_of_run")
_NAMES = ("nan", "inf", "-inf")  # how metrics.jsonl writes what JSON cannot
_LARGEST = 1e100  # no run computes more: float32 ends at 3e38
_LAST_STEP = 2**53
# What reading a file of JSON raises, and looking into what is of another form.
_DAMAGED = (OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
_OF_ANALYSIS = {
    **dict.fromkeys(("attention", "cka", "features", "features_of", "models"), dict),
    **dict.fromkeys(("maps", "notes", "patches", "picture_notes"), list),
    "reconstructions": list,
}

# Evaluators that draw, by the names of their files, and what a picture shows.
PICTURES = {
    "confusion": "the most confused pairs of classes: images of the one that the model "
    "calls the other",
    "detections": "objects of the data, and detections with a score of 0.5 or more; a "
    "colour for each class",
    "reconstruction": "original, masked, reconstructed; visible patches are the "
    "original's",
    "segmentation": "image, label map, prediction; a colour for each class, white "
    "where pixels have no label",
}
_PNG_END = b"IEND\xaeB`\x82"  # the last bytes of a whole PNG


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run's directory.

    Attributes:
      name: that it is shown by.
      directory: where it is.
      config: as saved.
      steps: metric -> {step: number}, of metrics.jsonl; NaN where it was not finite.
      events: rows of metrics.jsonl with an 'event'.
      results: title of an evaluation -> its result.json.
      starts: rows of environment.jsonl, one for each start.
      pictures: of evaluators, by the kind in their names and by step.
      analysis: of its analysis.json, or {}.
      notes: what is missing or damaged.
    """

    name: str
    directory: pathlib.Path
    config: dict[str, Any]
    steps: dict[str, dict[int, float]]
    events: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    starts: list[dict[str, Any]]
    pictures: list[pathlib.Path]
    analysis: dict[str, Any]
    notes: list[str]

    @property
    def last_step(self) -> int:
        """The last logged update; 0 if there is none."""
        return max((max(v) for v in self.steps.values() if v), default=0)

    def block(self, name: str) -> dict[str, Any]:
        """Returns a block of the config; {} if it has none."""
        block = self.config.get(name)
        return block if isinstance(block, dict) else {}

    @property
    def total_steps(self) -> int | None:
        """The updates that the config asks for; None if it trains nothing."""
        steps = self.block("derived").get("total_steps")
        return steps if _is_step(steps) else None


def read(name: str, directory: pathlib.Path) -> Run:
    """Reads a run, finished or not.

    Raises:
      FileNotFoundError: there is no run directory.
      ValueError: its config.json is damaged.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory}: no run directory there (no config.json); a report is of a "
            "run's --workdir"
        )
    notes: list[str] = []
    config: Any = workdirs.read_config(directory)
    rows = _rows(directory / "metrics.jsonl", notes)
    steps, events = _by_metric(rows, notes)
    run = Run(
        name=name,
        directory=directory,
        config=config,
        steps=steps,
        events=events,
        results=results(directory, notes),
        starts=_rows(directory / "environment.jsonl", []),
        pictures=_pictures(directory, notes),
        analysis=_analysis(directory, notes),
        notes=notes,
    )
    notes += _state(run) + _best(run) + _gaps(run)
    return run


def _rows(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    """Reads a .jsonl file; lines that a kill cut are counted and left out."""
    if not path.exists():
        notes.append(f"{path.name} is not there.")
        return []
    rows, cut = [], 0
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
        return []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            cut += 1
    if cut:
        notes.append(f"{path.name}: {cut} lines could not be read and are left out.")
    return rows


def _by_metric(
    rows: list[dict[str, Any]], notes: list[str]
) -> tuple[dict[str, dict[int, float]], list[dict[str, Any]]]:
    """Returns metric -> {step: number}, the last of a repeated step; and events."""
    steps: dict[str, dict[int, float]] = {}
    events, broken, again, odd, large = [], 0, 0, 0, 0
    for row in rows:
        step = row.get("step")
        if not _is_step(step):
            odd += 1
            continue
        if "event" in row:
            events.append(row)
            continue
        again += step in steps.get("loss", {}) and "loss" in row
        for key, value in row.items():
            if key in ("step", "time"):
                continue
            number = _number(value)
            if number is not None and _is_too_large(number):
                large += 1
            elif number is not None:
                broken += not math.isfinite(number)
                # Half a letter, which JSON can hold, is spelled out: nothing draws it.
                name = key.encode("utf-8", "backslashreplace").decode()
                steps.setdefault(name, {})[step] = number
    if broken:
        notes.append(f"metrics.jsonl: {broken} numbers are not finite: gaps in curves.")
    if odd:
        notes.append(
            f"metrics.jsonl: {odd} lines without a step from 0 on are left out."
        )
    if large:
        notes.append(
            f"metrics.jsonl: {large} numbers beyond {_LARGEST:g} are left out."
        )
    if again:
        notes.append(
            f"{again} logged steps were done again after a stop: the last count."
        )
    ordered = {key: dict(sorted(of.items())) for key, of in steps.items()}
    return ordered, events


def _is_step(value: Any) -> TypeGuard[int]:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and 0 <= value <= _LAST_STEP
    )


def _is_too_large(number: float) -> bool:
    """Whether a number is finite and beyond what a run computes and a page draws."""
    return _LARGEST < abs(number) < math.inf


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return float(value) if value in _NAMES else None
    return value


def results(directory: pathlib.Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Reads title -> result.json of a run; what cannot be read is noted."""
    content = {}
    for path in sorted((directory / "evals").glob("*/result.json")):
        try:
            content[path.parent.name] = _result(json.loads(path.read_text()))
        except _DAMAGED:
            notes.append(f"evals/{path.parent.name}/result.json cannot be read.")
    return content


def _result(content: Any) -> dict[str, Any]:
    """Checks what a page shows of a result.

    Raises:
      ValueError, KeyError, TypeError: it has another form.
    """
    last, best = _result_row(content["last"]), content.get("best")
    result = {**content, "last": last}
    result["metric"] = str(content.get("metric") or _metric(last))  # older: none
    result["history"] = [_result_row(row) for row in content.get("history", [])]
    if best is not None:
        result["best"] = _result_row(best)
        if not isinstance(result["best"][result["metric"]], int | float):
            raise ValueError("the best row has no number")
    return result


def _result_row(row: dict[str, Any]) -> dict[str, Any]:
    if not _is_step(row.get("step", 0)):
        raise ValueError("no step")
    numbers = (_number(value) for value in row.values())
    if any(number is not None and _is_too_large(number) for number in numbers):
        raise ValueError("a number that no run computes")
    return dict(row)


def _metric(last: dict[str, Any]) -> str:
    names = [k for k, v in last.items() if isinstance(v, int | float)]
    names = [k for k in names if k not in STAMPS]
    return "top1" if "top1" in names else next(iter(names), "n")


def _pictures(directory: pathlib.Path, notes: list[str]) -> list[pathlib.Path]:
    """Lists the pictures of `PICTURES`, without those that a kill or a disk cut."""
    whole = []
    files = (directory / "pictures").glob("*_*.png")
    for path in sorted(p for p in files if p.stem.rpartition("_")[0] in PICTURES):
        try:
            int(path.stem.rpartition("_")[2])
            damaged = path.read_bytes()[-len(_PNG_END) :] != _PNG_END
        except (OSError, ValueError):
            damaged = True
        if damaged:
            notes.append(f"pictures/{path.name} is damaged and left out.")
        else:
            whole.append(path)
    return whole


def _analysis(directory: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    path = directory / "analysis" / "analysis.json"
    path = path if path.exists() else directory / "analysis.json"
    if not path.exists():
        return {}
    try:
        content = {**json.loads(path.read_text()), "directory": str(path.parent)}
        for name, kind in _OF_ANALYSIS.items():
            if not isinstance(content.get(name, kind()), kind):
                raise TypeError(name)
        return content
    except _DAMAGED:
        notes.append(f"{path.name} cannot be read.")
        return {}


def _state(run: Run) -> list[str]:
    """Notes how far the run came, unless it is complete."""
    if run.total_steps is None:
        return []
    if not run.last_step:
        return ["No update was logged yet: there are no curves."]
    if best.ended_at(run.config, run.results) is not None:
        return []
    if run.last_step < run.total_steps:
        return [
            f"Unfinished: {run.last_step:,} of {run.total_steps:,} updates are logged. "
            "The same command goes on; numbers are those so far."
        ]
    return []


def _best(run: Run) -> list[str]:
    """Notes which step was best, and whether the run ended early for it."""
    text = best.sentence(run.results, run.directory)
    step = best.ended_at(run.config, run.results)
    end = f"The run ended early at update {step:,}." if step is not None else ""
    return [x for x in (end, f"The {text}." if text else "") if x]


def _gaps(run: Run) -> list[str]:
    """Notes where updates are missing: intervals longer than both of those beside.

    An interval that is longer from some update on is a setting, and no gap.
    """
    steps = list(run.steps.get("loss", {}))
    lengths = [b - a for a, b in itertools.pairwise(steps)]
    gaps = []
    for i in range(1, len(lengths) - 1):
        if lengths[i] > 1.5 * max(lengths[i - 1], lengths[i + 1]):
            gaps.append(f"{steps[i]:,} and {steps[i + 1]:,}")
    if not gaps:
        return []
    more = f" and {len(gaps) - 3} times more" * (len(gaps) > 3)
    return [
        f"metrics.jsonl: nothing is logged between {', '.join(gaps[:3])}{more}; "
        "curves go straight across."
    ]


def series(numbers: dict[int, float], most: int = 1200) -> tuple[list[int], list[Any]]:
    """Returns (steps, numbers) of a metric, all or `most` that keep its extremes.

    Long curves are cut into intervals of which the smallest and the largest number
    stay, so every point is one that was logged. What is not finite is None.
    """
    pairs = [(s, v if math.isfinite(v) else None) for s, v in numbers.items()]
    if len(pairs) > most:
        pairs = _thinned(pairs, most)
    return [s for s, _ in pairs], [v for _, v in pairs]


def _thinned(pairs: list[tuple[int, Any]], most: int) -> list[tuple[int, Any]]:
    kept = [pairs[0]]
    size = -(-2 * len(pairs) // (most - 2))
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        known = [pair for pair in part if pair[1] is not None]
        if not known:
            kept.append(part[0])
            continue
        ends = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])}
        kept += sorted(ends)
    kept.append(pairs[-1])
    return sorted(dict(kept).items())
