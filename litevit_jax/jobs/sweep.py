"""The job 'sweep': runs a recipe once for each point of a grid of its fields.

Each point is an ordinary run, so a stopped one resumes. sweep.json holds the finished
points, which are known by their fields; several processes may work on one sweep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import commandline, paths, registry, terminal
from litevit_jax.evaluators import stored
from litevit_jax.jobs import evaluate, ledger, summary, train
from litevit_jax.train import resolve

_SEED = "seed"  # the field over which results are averaged
_LONGEST = 40  # letters of a point's name, as reports take them
_MOST_COMPARED = 12  # runs in one report
_AXES = ("grid", "shard")  # may change in the same directory
_DIGEST = 9  # letters at the end of a name that stand for all fields of a point
_EXAMPLE = '--config.grid="lr.base=1e-4,3e-4; seed=0,1,2"'


@dataclasses.dataclass(frozen=True)
class Point:
    """One combination of the grid's values.

    Attributes:
      name: of its directory.
      fields: 'lr.base' -> '3e-4', as text, in the order of the grid.
      config: of its run.
    """

    name: str
    fields: dict[str, str]
    config: ConfigDict


def points(recipe: str | None, grid: str | None, shard: str | None) -> list[Point]:
    """Returns the points that this process may run; the last axis varies fastest.

    Args:
      recipe: as behind `--config=`.
      grid: 'lr.base=1e-4,3e-4; seed=0,1', fields and their values.
      shard: 'i/n': every n-th point from the i-th on; None: all.

    Raises:
      ValueError: no recipe, no grid, a field or value that the recipe does not take,
        or a shard that is none.
    """
    if not recipe:
        raise ValueError(
            "config.recipe is missing; a sweep runs one, as "
            "--config.recipe=mae_tiny:digits"
        )
    axes = _axes(grid)
    several = [field for field, values in axes.items() if len(values) > 1]
    listed = []
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values, strict=True))
        own = commandline.config_of(recipe, fields)
        if own.job not in ("train", "evaluate"):
            raise ValueError(
                f"--config.recipe={recipe}: its job is {own.job!r}; a sweep runs "
                "recipes that train or evaluate"
            )
        listed.append(Point(_name(fields, several), fields, own))
    return _shard(listed, shard)


def main(config: ConfigDict, workdir: str, command: str) -> summary.Ending:
    """Runs the points that are missing; prints the table and draws the report.

    Raises:
      ValueError, OSError: a mistake in the config or data, before any compile.
      Exception: whatever ended a point's run; the sweep goes on from there.
    """
    say = terminal.ConsoleLine().say
    sweep = Sweep(paths.path(workdir), config.to_dict())
    signal = sweep.run()
    say(sweep.table())
    if signal is not None:
        return summary.Ending(config, signal=signal)
    if config.log.report and config.shard is None:
        sweep.draw(command)
    every = len(sweep.finished()) == len(sweep.points)
    which = "all points" if every else "the finished points"
    say(f"done: {which} are in {os.path.join(workdir, 'sweep.json')}")
    return summary.Ending(config)


class Sweep:
    """The points of a sweep, and what is finished of them in `sweep.json`.

    Attributes:
      points: those of this process.
      parts: the finished ones of all.
    """

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any]) -> None:
        """Checks all points, and that `workdir` holds no other sweep.

        Raises:
          ValueError, OSError: a mistake in the config or data, another sweep, or points
            that were finished with other images.
        """
        self._workdir, self._shard = workdir, config["shard"]
        asked = points(config["recipe"], config["grid"], self._shard)
        images = self._check(asked)
        ledger.check_config(workdir, config, free=_AXES)
        self.parts = ledger.Parts(workdir / "sweep.json", recipe=config["recipe"])
        self.points = self._named(asked)
        self._images = dict(zip((p.name for p in self.points), images, strict=True))
        for point in self.finished():
            name = point.name
            if self.parts.rows[name].get("images") != self._images[name]:
                raise ValueError(
                    f"--workdir={workdir}: point {name} was run with other images than "
                    "are there now, and numbers of both cannot be compared; bring the "
                    "former ones back, or start a sweep in another --workdir"
                )

    def run(self) -> int | None:
        """Runs what is not finished; returns the signal that stopped it, or None.

        Raises:
          FloatingPointError: all points diverged.
          Exception: whatever else ended a point's run; the sweep goes on from there.
        """
        wait = self._shard is None
        signal = self.parts.finish(
            self.points, "point", self._run, wait=wait, row=self._row
        )
        reasons = self._reasons()
        if signal is None and len(reasons) == len(self.points):
            raise FloatingPointError(
                f"all {len(reasons)} points failed, the first one with: "
                f"{next(iter(reasons.values()))}"
            )
        return signal

    def finished(self) -> list[Point]:
        """Returns the points that have results."""
        return [point for point in self.points if self.parts.has_results(point)]

    def directory(self, point: Point) -> pathlib.Path:
        """Returns the directory of a point's run."""
        return self._workdir / "points" / point.name

    def table(self) -> str:
        """Formats the results of all points: mean and range over seeds."""
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        shown = self._shown()
        for point in self.finished():
            key = tuple(point.fields[field] for field in shown)
            row = self.parts.rows[point.name]
            groups.setdefault(key, []).append(row["results"])
        columns = sorted({(t, r["metric"]) for g in groups.values() for x in g
                          for t, r in x.items()})  # fmt: skip
        rows = [[*shown, "runs", *(f"{title} {metric}" for title, metric in columns)]]
        for key, results in groups.items():
            cells = [_spread(results, *column) for column in columns]
            rows.append([*key, str(len(results)), *cells])
        reasons = self._reasons()
        missing = len(self.points) - len(self.finished()) - len(reasons)
        notes = [f"point {name} failed: {why}" for name, why in reasons.items()]
        if missing:
            notes.append(f"{missing} of {len(self.points)} points are not finished")
        return "\n".join([summary.columns(rows), *notes])

    def draw(self, command: str) -> None:
        """Draws the runs side by side, unless there are too many for one page."""
        finished = self.finished()
        if not 1 < len(finished) <= _MOST_COMPARED:
            return
        short = [point.name[:-_DIGEST] for point in finished]
        if len(set(short)) < len(short):
            short = [point.name for point in finished]
        pairs = zip(short, map(self.directory, finished), strict=True)
        runs = ",".join(f"{name}={directory}" for name, directory in pairs)

        def draw() -> object:
            from litevit_jax.jobs import analyse  # late: it reads much

            return analyse.draw(runs, str(self._workdir), recipe="compare")

        again = f"{command} --config=analysis:compare --config.models={runs}"
        summary.draw_at_end(draw, f"{again} --workdir={self._workdir}")

    def _check(self, asked: Sequence[Point]) -> list[str]:
        """Prepares all points, of those that differ in the seed alone only one.

        Returns:
          What tells whether the images of a point, to learn from and to evaluate, are
          still the same.
        """
        known: dict[tuple[tuple[str, str], ...], str] = {}
        images = []
        for number, point in enumerate(asked, start=1):
            key = tuple((k, v) for k, v in point.fields.items() if k != _SEED)
            try:
                registry.check_fields(point.config)
                if key not in known:
                    known[key] = _images_of(point, self._workdir / "points")
            except (ValueError, KeyError) as error:
                fields = "; ".join(f"{k}={v}" for k, v in point.fields.items())
                text = error.args[0] if error.args else error
                which = f"point {number} of {len(asked)}"
                raise ValueError(f"{which} ({fields}): {text}") from error
            images.append(known[key])
        return images

    def _named(self, asked: Sequence[Point]) -> list[Point]:
        """Gives points the names they have from an earlier grid, by their digests."""
        older = [*self.parts.rows]
        with contextlib.suppress(OSError):  # there are no directories yet
            older += [path.name for path in (self._workdir / "points").iterdir()]
        known = {name[-_DIGEST:]: name for name in reversed(older)}
        return [
            dataclasses.replace(p, name=known.get(p.name[-_DIGEST:], p.name))
            for p in asked
        ]

    def _row(self, point: Point) -> dict[str, Any]:
        return {"fields": point.fields, "images": self._images[point.name]}

    def _reasons(self) -> dict[str, str]:
        """Returns why points failed, by name."""
        rows = {p.name: self.parts.rows.get(p.name, {}) for p in self.points}
        return {n: r[ledger.FAILED] for n, r in rows.items() if ledger.FAILED in r}

    def _run(self, point: Point) -> int | None:
        directory = self.directory(point)
        with ledger.working_in(directory), stored.under(self._workdir / "features"):
            signal, results = _work(point, directory)
        if signal is not None:
            return signal
        ledger.check_finite(results)
        kept = {
            title: {"metric": result["metric"], **_numbers(result["last"])}
            for title, result in results.items()
        }
        self.parts.add(point.name, **self._row(point), results=kept)
        return None

    def _shown(self) -> list[str]:
        """Fields whose values differ between points, but for the seed."""
        fields = self.points[0].fields
        return [
            field
            for field in fields
            if field != _SEED and len({p.fields[field] for p in self.points}) > 1
        ]


def _work(
    point: Point, directory: pathlib.Path
) -> tuple[int | None, dict[str, dict[str, Any]]]:
    """Runs one point; returns the signal that stopped it, and its results."""
    if point.config.job == "evaluate":
        return None, evaluate.run(point.config, directory)
    outcome = train.run(point.config, directory, keep=train.folder_of_programs())
    return outcome.signal, outcome.results


def _axes(grid: str | None) -> dict[str, list[str]]:
    """Reads a grid: 'lr.base=1,2; seed=0' is {'lr.base': ['1', '2'], 'seed': ['0']}.

    Raises:
      ValueError: it is missing or cannot be read.
    """
    axes: dict[str, list[str]] = {}
    for piece in filter(None, (p.strip() for p in _split(grid or "", ";"))):
        field, equals, text = (part.strip() for part in piece.partition("="))
        values = [value.strip() for value in _split(text, ",")]
        if not (field and equals and all(values)):
            raise ValueError(
                f"--config.grid={grid}: {piece!r} is no field with its values; "
                f"expected FIELD=VALUE,VALUE, as in {_EXAMPLE}"
            )
        if field in axes or len(set(values)) < len(values):
            what = f"field {field}" if field in axes else f"a value of {field}"
            raise ValueError(f"--config.grid={grid}: {what} stands there twice")
        axes[field] = [_unquoted(value) for value in values]
    if not axes:
        raise ValueError(f"--config.grid={grid}: it is empty; write one, as {_EXAMPLE}")
    return axes


def _split(text: str, mark: str) -> list[str]:
    """Splits `text` at a mark that stands in no brackets and no quotes.

    Raises:
      ValueError: a bracket or a quote is not closed.
    """
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == mark and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    if depth or quote:
        raise ValueError(f"--config.grid: {text!r} has a bracket or quote left open")
    return pieces


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def _images_of(point: Point, directory: pathlib.Path) -> str:
    """Checks a point as its run will; returns the fingerprint of all its images."""
    config, prints = point.config, set[str]()
    if config.job == "evaluate":
        evaluators = evaluate.prepare(config, directory, begin=False).evaluators
    else:
        # Images are not decoded for this: on devices no set fits, with so few bytes.
        host = config.data.cache == "host"
        quick = {"data.cache": "off"} if host else {"data.cache_gib": 1e-9}
        job = train.prepare(resolve.changed(config, quick), directory, begin=False)
        prints.add(job.config["derived"]["train_fingerprint"])
        evaluators = job.evaluators
    for pair in evaluators.values():
        evaluator: Any = pair[0]
        read = {getattr(evaluator, name, None) for name in ("split", "bank", "select")}
        for split in read - {None}:
            prints.add(evaluator.context.source(split).fingerprint())
    return hashlib.sha256(" ".join(sorted(prints)).encode()).hexdigest()[:16]


def _name(fields: dict[str, str], several: Sequence[str]) -> str:
    """Names a point, as 'base3e-4-seed1-0f3a9c21': fields, and a digest of all."""
    parts = []
    for field in several:
        value = re.sub(r"[^\w.+-]+", "_", fields[field]).strip("_")
        parts.append(f"{field.rpartition('.')[2]}{value}")
    name = "-".join(parts) or "run"
    exact = "; ".join(f"{field}={fields[field]}" for field in sorted(fields))
    digest = hashlib.sha256(exact.encode()).hexdigest()[: _DIGEST - 1]
    return f"{name[: _LONGEST - _DIGEST]}-{digest}"


def _shard(listed: list[Point], shard: str | None) -> list[Point]:
    """Returns every n-th point from the i-th on, for a shard 'i/n'."""
    if shard is None:
        return listed
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(
            f"--config.shard={shard}; expected i/n with 1 <= i <= n, as 1/4"
        )
    if number > len(listed):
        raise ValueError(
            f"--config.shard={shard}: the grid has {len(listed)} points, so nothing is "
            "left for this one; start fewer"
        )
    return listed[number - 1 :: count]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if isinstance(v, int | float | str)}


def _spread(results: list[dict[str, Any]], title: str, metric: str) -> str:
    """Formats the mean of a number over runs, and its range."""
    values = [x[title][metric] for x in results if title in x]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4g}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.4g}..{max(values):.4g})"
