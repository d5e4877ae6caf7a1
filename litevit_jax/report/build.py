"""One report of a run, or of several side by side: a page, its numbers, its pictures.

`index.html` opens from disk and asks nothing of any network; `report.json` holds every
figure's numbers; a PNG of each figure lies beside.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from litevit_jax import terminal
from litevit_jax.report import (
    analysis_figures,
    draw,
    merge,
    page,
    published,
    run_figures,
    run_record,
)
from litevit_jax.train import workdir as workdirs

_FOOT = (
    "Drawn by litevit_jax. Rounded numbers show all their digits under the pointer; "
    "report.json has them, and a PNG of every figure lies beside this page."
)
_MOST_PHOTOS = 2_500_000  # bytes of markup for photographs: the page stays small

_SECTIONS = (
    ("curves", "Training", "What was logged, point by point, in updates."),
    ("probes", "Evaluations over time", ""),
    ("blocks", "What every block knows", "Classifiers that read one block alone."),
    ("speed", "Speed", "Between logged updates; the first interval compiles."),
    ("pictures", "Reconstructions", ""),
    (
        "attention",
        "Attention: distance and entropy",
        "Of each head, over all images and queries. A head that looks at all patches "
        "alike has the largest entropy, the logarithm of their number.",
    ),
    ("maps", "Attention maps", ""),
    (
        "cka",
        "Similarity of layers",
        "Linear CKA: 1 where two layers say the same of the images up to rotation and "
        "scale, 0 where they have nothing in common. Each cell is a pair of layers.",
    ),
    ("features", "Features", ""),
)


def build(
    runs: Sequence[run_record.Run],
    out: pathlib.Path,
    *,
    title: str,
    analysis: dict[str, Any] | None = None,
    place: pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes the report of `runs` into `out`; returns the page.

    Args:
      runs: as read; their analyses stand in the page unless one of all is given.
      out: directory, whose files of an earlier report are replaced.
      title: of the page.
      analysis: of all models together, as analysis.json holds it.
      place: the directory of that analysis.
    """
    terminal.Line().begin("drawing the report")
    out.mkdir(parents=True, exist_ok=True)
    if analysis is None:
        analysis = merge.of_runs(runs)
    colors = _colors(runs, analysis)
    drawn = run_figures.of_runs(runs, colors)
    drawn += analysis_figures.of_analysis(analysis, place or out, colors)
    for figure in drawn:
        Image.fromarray(figure.image()).save(out / f"{figure.name}.png")
    (out / "index.html").write_text(_page(runs, drawn, title, analysis, colors))
    workdirs.write_json(out / "report.json", _numbers(runs, drawn, title, analysis))
    return out / "index.html"


def _colors(runs: Sequence[run_record.Run], analysis: dict[str, Any]) -> dict[str, str]:
    """Name -> colour, the same for a run's curves and for its encoder's figures."""
    models = list(analysis.get("models", {}))
    if len(runs) == 1 and len(models) < 2:  # they may be called differently
        return dict.fromkeys([*models, runs[0].name], draw.color_of(0))
    names = dict.fromkeys([*models, *(run.name for run in runs)])
    return {name: draw.color_of(place) for place, name in enumerate(names)}


def build_figures(
    drawn: Sequence[run_figures.Figure],
    out: pathlib.Path,
    *,
    title: str,
    notes: Sequence[str],
    table: str = "",
) -> pathlib.Path:
    """Writes a report of figures alone, with `notes` above them; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for figure in drawn:
        Image.fromarray(figure.image()).save(out / f"{figure.name}.png")
        body = figure.embedded()
        parts.append(page.figure(figure.name, figure.title, body, figure.caption))
    sections = [("summary", "Summary", page.notes(notes) + table)]
    sections.append(("figures", "Figures", page.grid(parts) if parts else ""))
    (out / "index.html").write_text(page.page(title, "", sections, _FOOT))
    numbers = {"title": title, "notes": list(notes), "figures": _figures(drawn)}
    workdirs.write_json(out / "report.json", numbers)
    return out / "index.html"


def _figures(drawn: Sequence[run_figures.Figure]) -> list[dict[str, Any]]:
    return [
        {
            "name": figure.name,
            "section": figure.section,
            "title": figure.title,
            "file": f"{figure.name}.png",
            "data": figure.data,
        }
        for figure in drawn
    ]


def _numbers(
    runs: Sequence[run_record.Run],
    drawn: Sequence[run_figures.Figure],
    title: str,
    analysis: dict[str, Any],
) -> dict[str, Any]:
    about = {k: v for k, v in analysis.items() if k in ("images", "models")}
    return {
        "title": title,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "runs": [
            {
                "name": run.name,
                "place": str(run.place),
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
        "analysis": about,
        "figures": _figures(drawn),
    }


def _result(result: dict[str, Any]) -> dict[str, Any]:
    return {k: result[k] for k in ("metric", "last", "best", "history") if k in result}


def _page(
    runs: Sequence[run_record.Run],
    drawn: Sequence[run_figures.Figure],
    title: str,
    analysis: dict[str, Any],
    colors: dict[str, str],
) -> str:
    sections = [("summary", "Summary", _summary(runs, analysis, colors))]
    sections.append(("results", "Results", _results(runs)))
    left = _MOST_PHOTOS
    for name, heading, said in _SECTIONS:
        parts = []
        for figure in (f for f in drawn if f.section == name):
            markup = figure.embedded()
            if figure.pixels is not None and len(markup) > left:
                markup = f"<p>{figure.name}.png lies beside this page.</p>"
            elif figure.pixels is not None:
                left -= len(markup)
            wide = figure.pixels is not None
            parts.append(
                page.figure(
                    figure.name, figure.title, markup, figure.caption, wide=wide
                )
            )
        text = f"<p>{page.text(said)}</p>" * bool(said)
        sections.append((name, heading, text + page.grid(parts) if parts else ""))
    sections.append(("recipe", "Recipe", _recipe(runs)))
    sections.append(("origin", "How it was made", _origin(runs, analysis)))
    under = ", ".join(str(run.place) for run in runs) or "no runs: files of weights"
    return page.page(title, under, sections, _FOOT)


def _summary(
    runs: Sequence[run_record.Run], analysis: dict[str, Any], colors: dict[str, str]
) -> str:
    parts = []
    for run in runs:
        if len(runs) > 1:
            parts.append(f"<h3>{page.swatch(colors[run.name], run.name).html}</h3>")
        parts.append(page.cards(_cards(run)))
        parts.append(page.notes(run.notes))
    said = [*analysis.get("notes", []), *analysis.get("picture_notes", [])]
    return "".join(parts) + page.notes(said)


def _cards(run: run_record.Run) -> list[tuple[str, Any]]:
    """The few numbers that one looks for first."""
    found: list[tuple[str, Any]] = []
    if run.total_steps:
        name = f"of {run.total_steps:,} updates"
        found.append((name, page.Number(run.last_step, "metrics.jsonl last step")))
    for key, said in (("loss", "loss, last"), ("images_per_s", "images/s, last")):
        if run.steps.get(key):
            step = max(run.steps[key])
            source = f"metrics.jsonl {run.name} {step} {key}"
            found.append((said, page.Number(run.steps[key][step], source)))
    for title, result in run.results.items():
        metric = result.get("metric")
        value = result["last"].get(metric)
        if isinstance(value, int | float):
            source = f"result.json {run.name}/{title} last.{metric}"
            found.append((f"{title}: {metric}, last", page.Number(value, source)))
    return found


def _results(runs: Sequence[run_record.Run]) -> str:
    several = len(runs) > 1
    rows = []
    for run in runs:
        for title, result in run.results.items():
            rows += _result_rows(run, title, result)
    body = ""
    if rows:
        head = ["run", "evaluation", "number", "last", "at update", "best", "at update"]
        if not several:
            head, rows = head[1:], [row[1:] for row in rows]
        body += page.table(head, rows)
    known = [(run, row) for run in runs if (row := published.of(run)) is not None]
    if known:
        body += "<h3>Expected and reached</h3>" + page.table(
            ["run", "expected", "what", "source", "reached", "to be compared?"],
            [_published(run, row) for run, row in known],
        )
    return body


def _result_rows(run: run_record.Run, title: str, result: dict[str, Any]) -> list[list]:
    last, best, metric = result["last"], result.get("best"), result.get("metric")
    names = [k for k in last if k not in run_record.STAMPS and k != metric]
    names = [k for k in (metric, *names) if isinstance(last.get(k), int | float)]
    rows = []
    for name in names:
        where = f"result.json {run.name}/{title}"
        row = [run.name, title, name, page.Number(last[name], f"{where} last.{name}")]
        row.append(page.Number(last.get("step"), f"{where} last.step"))
        if name == metric and best is not None:
            row += [
                page.Number(best[name], f"{where} best.{name}"),
                page.Number(best.get("step"), f"{where} best.step"),
            ]
        else:
            row += ["", ""]
        rows.append(row)
    return rows


def _published(run: run_record.Run, row: dict[str, Any]) -> list[Any]:
    reached: Any = "not measured by this run"
    if row["reached"] is not None:
        source = f"result.json {run.name}/{row['result']} last.top1"
        reached = page.Number(row["reached"], source)
    verdict = "yes" if row["comparable"] else f"no: {row['why']}"
    value = page.Number(row["expected"], f"published.py {row['source']}")
    return [run.name, value, row["what"], row["source"], reached, verdict]


def _between(runs: Sequence[run_record.Run]) -> str:
    """Fields of the configs in which several runs differ."""
    flat = [dict(_leaves(run.config)) for run in runs]
    keys = sorted({key for one in flat for key in one if not key.startswith("derived")})
    rows = []
    for key in keys:
        values = [_short(one.get(key)) for one in flat]
        if len(set(values)) > 1:
            rows.append([page.field(key), *values])
    head = ["field", *(run.name for run in runs)]
    return "<h3>Where the runs differ</h3>" + page.table(head, rows) if rows else ""


def _leaves(block: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _recipe(runs: Sequence[run_record.Run]) -> str:
    """How each run departs from its recipe for ImageNet; whole configs folded up."""
    parts = [_between(runs)] if len(runs) > 1 else []
    for run in runs:
        name = published.recipe_of(run.config)
        if len(runs) > 1:
            parts.append(f"<h3>{page.text(run.name)}</h3>")
        found = published.differences(run.config)
        if name is None:
            parts.append("<p>No recipe in configs/ has this run's name.</p>")
        elif not found:
            parts.append(f"<p>configs/{name}.py as it stands, nothing changed.</p>")
        else:
            parts.append(
                f"<p>{len(found)} fields differ from configs/{page.text(name)}.py, the "
                "recipe for ImageNet.</p>"
            )
            rows = [[page.field(k), _short(a), _short(b)] for k, a, b in found]
            found_table = page.table(["field", "recipe", "this run"], rows)
            if len(runs) > 1:
                found_table = page.details("These fields", found_table)
            parts.append(found_table)
        text = json.dumps(run.config, indent=1)
        parts.append(page.details("The whole config", f"<pre>{page.text(text)}</pre>"))
    return "".join(parts)


def _origin(runs: Sequence[run_record.Run], analysis: dict[str, Any]) -> str:
    body = ""
    for run in runs:
        for start in run.starts[:1] + run.starts[1:][-1:]:
            head = [run.name, f"started {start.get('time')}"]
            body += page.table(head, _start(start))
    models = analysis.get("models", {})
    if models:
        keys = ("path", "step", "width", "depth", "num_heads", "patch_size")
        keys = (*keys, "image_size", "last_norm", "images")
        body += "<h3>Models analysed</h3>"
        rows = [
            [name, *(_told(one.get(key, "–")) for key in keys)]
            for name, one in models.items()
        ]
        body += page.table(["model", *(key.replace("_", " ") for key in keys)], rows)
    return body


def _start(start: dict[str, Any]) -> list[list[str]]:
    """What one start of a run was made with."""
    versions, devices = start.get("versions", {}), start.get("devices", [])
    shown = ", ".join(map(str, devices[:4])) + ", …" * (len(devices) > 4)
    return [
        ["commit", start.get("commit", "–")],
        ["devices", shown],
        ["libraries", ", ".join(f"{k} {v}" for k, v in versions.items())],
        ["command", " ".join(map(str, start.get("command", [])))],
    ]


def _told(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(value: Any) -> str:
    said = "–" if value is None else json.dumps(value)
    return said if len(said) <= 120 else said[:117] + "..."
