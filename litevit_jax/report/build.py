"""Writes the report of a run, or of several side by side.

`index.html` opens from disk and needs no network; `report.json` holds every figure's
numbers; a PNG of each figure lies beside.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from litevit_jax import terminal
from litevit_jax.report import (
    analysis_figures,
    attempts,
    detection_figures,
    merge,
    page,
    plots,
    published,
    results,
    run_figures,
    run_record,
)
from litevit_jax.train import workdir as workdirs

_MOST_PHOTOS = 2_500_000  # bytes of markup for photographs: the page stays small

_SECTIONS = (
    ("curves", "Training", "What was logged, point by point, in updates."),
    ("probes", "Evaluations over time", ""),
    ("blocks", "What every block knows", "Classifiers that read one block alone."),
    ("classes", "Classes", "Lines are classes, columns what they are called."),
    (
        "objects",
        "Objects",
        "How well boxes and masks agree with those of the data, by COCO's rules.",
    ),
    ("speed", "Speed", "Between logged updates; the first interval compiles."),
    ("pictures", "Pictures", ""),
    (
        "attention",
        "Attention: distance and entropy",
        "Of each head, over all images and queries. A head that looks at all patches "
        "alike has the largest entropy, the logarithm of their number.",
    ),
    ("maps", "Attention maps", ""),
    (
        "patches",
        "Patch tokens",
        "Their first three principal components, of all images shown together, as red, "
        "green and blue. Patches of one colour are alike to the encoder.",
    ),
    (
        "cka",
        "Similarity of layers",
        "Linear CKA: 1 where two layers say the same of the images up to rotation and "
        "scale, 0 where they have nothing in common. Each cell is a pair of layers.",
    ),
    ("features", "Features", ""),
)


def run_report(
    runs: Sequence[run_record.Run],
    out: pathlib.Path,
    *,
    title: str,
    analysis: dict[str, Any] | None = None,
    analysis_directory: pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes the report of `runs` into `out`; returns the page.

    Args:
      runs: as read; their analyses stand in the page unless one of all is given.
      out: directory, whose files of an earlier report are replaced.
      title: of the page.
      analysis: of all models together, as analysis.json holds it.
      analysis_directory: where that lies.
    """
    terminal.ConsoleLine().begin("drawing the report")
    left_out: list[str] = []
    if analysis is None:
        make = functools.partial(merge.of_runs, runs)
        analysis = attempts.attempt("the analysis", left_out, make, {})
    colors = _colors(runs, analysis)
    figures = run_figures.of_runs(runs, colors, left_out)
    figures += detection_figures.of_runs(runs, left_out)
    directory = analysis_directory or out
    figures += analysis_figures.of_analysis(analysis, directory, colors, left_out)
    figures = _written(figures, out, left_out)

    def section(name: str, heading: str, make: Callable[[], list]) -> page.Section:
        what = f"the section {heading!r}"
        return page.Section(name, heading, attempts.attempt(what, left_out, make, []))

    sections = [
        section("results", "Results", lambda: results.tables(runs)),
        *_figure_sections(figures),
        section("recipe", "Recipe", lambda: _recipe(runs)),
        section("origin", "How it was made", lambda: _origin(runs, analysis)),
    ]
    # Last, as it lists what the others leave out.
    summary = _summary(runs, analysis, colors, left_out)
    sections.insert(0, page.Section("summary", "Summary", summary))
    subtitle = ", ".join(str(run.directory) for run in runs)
    numbers = _numbers(runs, title, analysis) | {"left_out": left_out}
    return _write(
        out,
        figures,
        page.render(title, subtitle or "no runs: files of weights", sections),
        numbers,
    )


def figure_report(
    figures: Sequence[run_figures.Figure],
    out: pathlib.Path,
    *,
    title: str,
    summary: Sequence[page.Note | page.Table],
) -> pathlib.Path:
    """Writes a report of figures alone, with a summary above; returns the page."""
    left_out: list[str] = []
    figures = _written(figures, out, left_out)
    shown = [page.Figures([figure.picture() for figure in figures])]
    boxes: list[Any] = [*summary, *map(page.Note, left_out)]
    sections = [
        page.Section("summary", "Summary", boxes),
        page.Section("figures", "Figures", shown if figures else []),
    ]
    notes = [part.text for part in boxes if isinstance(part, page.Note)]
    numbers = {"title": title, "notes": notes}
    return _write(out, figures, page.render(title, "", sections), numbers)


def _written(
    figures: Sequence[run_figures.Figure], out: pathlib.Path, left_out: list[str]
) -> list[run_figures.Figure]:
    """Writes a PNG of each figure; returns those that can be drawn, notes the others.

    Raises:
      OSError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for figure in figures:

        def both(figure: run_figures.Figure = figure) -> bytes | None:
            return figure.png() if figure.picture() else None

        png = attempts.attempt(f"figure {figure.title!r}", left_out, both, None)
        if png is not None:
            (out / figure.file).write_bytes(png)
            drawn.append(figure)
    return drawn


def _write(
    out: pathlib.Path,
    figures: Sequence[run_figures.Figure],
    text: str,
    numbers: dict[str, Any],
) -> pathlib.Path:
    data = text.encode("utf-8", "backslashreplace")  # halves of letters are none
    (out / "index.html").write_bytes(data)
    rows = [
        {
            "name": figure.name,
            "section": figure.section,
            "title": figure.title,
            "file": figure.file,
            "data": figure.data,
        }
        for figure in figures
    ]
    workdirs.write_json(out / "report.json", numbers | {"figures": rows})
    return out / "index.html"


def _colors(runs: Sequence[run_record.Run], analysis: dict[str, Any]) -> dict[str, str]:
    """Returns name -> colour: one for a run's curves and for its encoder's figures."""
    models = list(analysis.get("models", {}))
    if len(runs) == 1 and len(models) < 2:  # they may be called differently
        return dict.fromkeys([*models, runs[0].name], plots.color_of(0))
    names = dict.fromkeys([*models, *(run.name for run in runs)])
    return {name: plots.color_of(number) for number, name in enumerate(names)}


def _figure_sections(
    figures: Sequence[run_figures.Figure],
) -> list[page.Section]:
    """Returns the figures' sections, with photographs while they leave it small."""
    sections, room = [], _MOST_PHOTOS
    for name, heading, intro in _SECTIONS:
        pictures = []
        for figure in (one for one in figures if one.section == name):
            pictures.append(figure.picture(room))
            room -= len(pictures[-1].photo or "")
        parts: list[Any] = [page.Text(intro)] if intro else []
        parts = [*parts, page.Figures(pictures)] if pictures else []
        sections.append(page.Section(name, heading, parts))
    return sections


def _numbers(
    runs: Sequence[run_record.Run], title: str, analysis: dict[str, Any]
) -> dict[str, Any]:
    return {
        "title": title,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "runs": [
            {
                "name": run.name,
                "place": str(run.directory),
                "recipe": published.recipe_of(run.config),
                "last_step": run.last_step,
                "total_steps": run.total_steps,
                "results": {t: _result(r) for t, r in run.results.items()},
                "expected": published.of(run),
                "differences": [
                    {"field": k, "recipe": a, "run": b}
                    for k, a, b in published.differences(run.config)
                ],
                "config": run.config,
                "notes": run.notes,
            }
            for run in runs
        ],
        "analysis": {k: v for k, v in analysis.items() if k in ("images", "models")},
    }


def _result(result: dict[str, Any]) -> dict[str, Any]:
    return {k: result[k] for k in ("metric", "last", "best", "history") if k in result}


def _summary(
    runs: Sequence[run_record.Run],
    analysis: dict[str, Any],
    colors: dict[str, str],
    left_out: list[str],
) -> list[Any]:
    parts: list[Any] = []
    for run in runs:
        if len(runs) > 1:
            parts.append(page.Heading(run.name, colors[run.name]))
        parts.append(page.Cards(_cards(run)))
        parts += map(page.Note, run.notes)
    notes = [*analysis.get("notes", []), *analysis.get("picture_notes", []), *left_out]
    return [*parts, *map(page.Note, notes)]


def _cards(run: run_record.Run) -> list[tuple[str, Any]]:
    """Returns the few numbers that one looks for first."""
    cards: list[tuple[str, Any]] = []
    if run.total_steps:
        name = f"of {run.total_steps:,} updates"
        cards.append((name, page.Number(run.last_step, "metrics.jsonl last step")))
    for key, name in (("loss", "loss, last"), ("images_per_s", "images/s, last")):
        if run.steps.get(key):
            step = max(run.steps[key])
            source = f"metrics.jsonl {run.name} {step} {key}"
            cards.append((name, page.Number(run.steps[key][step], source)))
    for title, result in run.results.items():
        metric = result.get("metric")
        value = result["last"].get(metric)
        if isinstance(value, int | float):
            source = f"result.json {run.name}/{title} last.{metric}"
            cards.append((f"{title}: {metric}, last", page.Number(value, source)))
    return cards


def _between(runs: Sequence[run_record.Run]) -> list[Any]:
    """Returns the fields of the configs in which several runs differ."""
    flat = [dict(_leaves(run.config)) for run in runs]
    keys = sorted({key for one in flat for key in one if not key.startswith("derived")})
    rows = []
    for key in keys:
        values = [_short(one.get(key)) for one in flat]
        if len(set(values)) > 1:
            rows.append([page.Field(key), *values])
    table = page.Table(["field", *(run.name for run in runs)], rows)
    return [page.Heading("Where the runs differ"), table] if rows else []


def _leaves(block: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _recipe(runs: Sequence[run_record.Run]) -> list[Any]:
    """Lists how each run departs from its published recipe; whole configs folded."""
    parts = _between(runs) if len(runs) > 1 else []
    for run in runs:
        if len(runs) > 1:
            parts.append(page.Heading(run.name))
        parts += _departures(run, fold=len(runs) > 1)
        text = json.dumps(run.config, indent=1)
        parts.append(page.Folded("The whole config", page.Source(text)))
    return parts


def _departures(run: run_record.Run, *, fold: bool) -> list[Any]:
    name = published.recipe_of(run.config)
    if name is None:
        return [page.Text("No recipe in configs/ has this run's name.")]
    fields = published.differences(run.config)
    if not fields:
        return [page.Text(f"configs/{name}.py as it stands, nothing changed.")]
    rows = [[page.Field(k), _short(a), _short(b)] for k, a, b in fields]
    table = page.Table(["field", "recipe", "this run"], rows)
    text = (
        f"{len(fields)} fields differ from configs/{name}.py, the recipe for "
        f"{published.data_of(name)[1]}."
    )
    return [page.Text(text), page.Folded("These fields", table) if fold else table]


def _origin(runs: Sequence[run_record.Run], analysis: dict[str, Any]) -> list[Any]:
    parts: list[Any] = []
    for run in runs:
        for start in run.starts[:1] + run.starts[1:][-1:]:
            head = [run.name, f"started {start.get('time')}"]
            parts.append(page.Table(head, _start(start)))
    models = analysis.get("models", {})
    if models:
        keys = ("path", "step", "width", "depth", "num_heads", "patch_size")
        keys = (*keys, "image_size", "last_norm", "images")
        rows = [
            [name, *(_value(one.get(key, "–")) for key in keys)]
            for name, one in models.items()
        ]
        parts.append(page.Heading("Models analysed"))
        head = ["model", *(key.replace("_", " ") for key in keys)]
        parts.append(page.Table(head, rows))
    return parts


def _start(start: dict[str, Any]) -> list[list[str]]:
    """Returns rows about one start of a run: commit, devices, libraries, command."""
    versions, devices = start.get("versions", {}), start.get("devices", [])
    shown = ", ".join(map(str, devices[:4])) + ", …" * (len(devices) > 4)
    return [
        ["commit", start.get("commit", "–")],
        ["devices", shown],
        ["libraries", ", ".join(f"{k} {v}" for k, v in versions.items())],
        ["command", " ".join(map(str, start.get("command", [])))],
    ]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(value: Any) -> str:
    text = "–" if value is None else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
