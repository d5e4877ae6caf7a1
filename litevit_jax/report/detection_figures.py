"""Figures of how well objects are detected: by size, by class, and over recall."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from litevit_jax.report import attempts, dots, plots, run_figures, run_record

SECTION = "objects"
_PREFIXES = {"boxes": "", "masks": "mask_"}
_SIZES = {
    "all": "all",
    "small": "to 32 x 32 px",
    "medium": "to 96 x 96 px",
    "large": "larger",
}
_AP = "average precision, %"


def of_runs(
    runs: Sequence[run_record.Run], notes: list[str]
) -> list[run_figures.Figure]:
    """Draws the evaluations of objects that runs have recorded.

    Args:
      runs: as read.
      notes: gets a line for what cannot be drawn.
    """
    figures: list[run_figures.Figure] = []
    kinds: dict[str, Callable[..., list[run_figures.Figure]]] = {
        "precision by size": _by_size,
        "precision by class": _by_class,
        "precision over recall": _over_recall,
    }
    for run in runs:
        for title, result in run.results.items():
            if not result["last"].get("curves"):
                continue
            for what, make in kinds.items():
                of = f"{run.name}, {title}" if len(runs) > 1 else title
                draw = functools.partial(make, run.name, title, of, result["last"])
                what = f"{what} of {of}"
                figures += attempts.attempt(what, notes, draw, [])
    return figures


def _figure(run: str, evaluation: str, kind: str, **about: Any) -> run_figures.Figure:
    name = f"{SECTION}-{kind}-{run_figures.file_name(f'{run}-{evaluation}')}"
    source = f"last in evals/{evaluation}/result.json"
    about["data"] = {"source": source, "run": run, **about["data"]}
    about["caption"] = f"{about['caption']}; {source}"
    return run_figures.Figure(name=name, section=SECTION, **about)


def _by_size(
    run: str, evaluation: str, of: str, last: dict[str, Any]
) -> list[run_figures.Figure]:
    series: dict[str, Sequence[float | None]] = {}
    for kind, prefix in _PREFIXES.items():
        names = (f"{prefix}ap" + f"_{x}" * (x != "all") for x in _SIZES)
        values = [last.get(name) for name in names]
        if f"{prefix}ap50" in last:
            series[kind] = values
    figure = _figure(
        run,
        evaluation,
        "size",
        title=f"{of}: by size of the objects",
        caption="mean of IoU 0.5 to 0.95; a size that no object has is left out",
        data={"sizes": list(_SIZES), "series": series},
        plot=dots.lines(list(_SIZES.values()), series, _AP),
    )
    return [figure]


def _by_class(
    run: str, evaluation: str, of: str, last: dict[str, Any]
) -> list[run_figures.Figure]:
    """Draws the classes by falling precision, with the number of their objects."""
    rows = [row for row in last["table"] if row["ap"] is not None]
    if len(rows) < 2:
        return []
    rows.sort(key=lambda row: -row["ap"])
    names = [f"{str(row['class'])[:16]} ({row['objects']:,})" for row in rows]
    series: dict[str, Sequence[float | None]] = {
        kind: [row.get(f"{prefix}ap") for row in rows]
        for kind, prefix in _PREFIXES.items()
        if f"{prefix}ap" in rows[0]
    }
    figure = _figure(
        run,
        evaluation,
        "class",
        title=f"{of}: by class",
        caption="the number of a class's objects behind its name; mean of IoU 0.5 to "
        "0.95; classes without objects are left out",
        data={"classes": [row["class"] for row in rows], "series": series},
        plot=dots.lines(names, series, _AP),
    )
    return [figure]


def _over_recall(
    run: str, evaluation: str, of: str, last: dict[str, Any]
) -> list[run_figures.Figure]:
    """Draws all classes together, and the best and worst ones of each kind."""
    curves = last["curves"]
    kinds = list(dict.fromkeys(row["of"] for row in curves))
    series, colors = {}, []
    for row in (row for row in curves if row["class"] is None):
        series[f"{row['of']}, IoU {row['iou']}"] = row["precision"]
        colors.append(plots.color_of(kinds.index(row["of"])))
    figures = [
        _figure(
            run,
            evaluation,
            "recall",
            title=f"{of}: precision over recall",
            caption="mean over all classes; a curve's mean is its average precision",
            data={"recall": [*range(101)], "series": series},
            plot=_curves(series, colors),
        )
    ]
    for kind in kinds:
        own = [row for row in curves if row["of"] == kind and row["class"] is not None]
        if not own:
            continue
        series = {str(row["class"]): row["precision"] for row in own}
        figures.append(
            _figure(
                run,
                evaluation,
                f"recall-{kind}",
                title=f"{of}: {kind} of the best and worst classes",
                caption="precision over recall at IoU 0.5, the best class first",
                data={"recall": [*range(101)], "series": series},
                plot=_curves(series),
            )
        )
    return figures


def _curves(series: dict[str, list[float]], colors: list[str] | None = None) -> Any:
    axes = plots.Axes("recall, %", "precision, %", y_range=(0, 103))
    drawn: plots.Series = {name: ([*range(101)], y) for name, y in series.items()}
    return plots.curves(drawn, axes, colors=colors)
