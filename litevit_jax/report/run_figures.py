"""Figures of what runs logged: curves, evaluations, speed, pictures."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import figure
from PIL import Image

from litevit_jax.report import attempts, page, plots, render, run_record

_FIRST = ("loss", "mae_loss", "lr", "grad_norm", "effective_rank", "feature_std")
_UNITS = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_s": "images/s",
    "data_wait": "% of the time",
    "step_s": "seconds an update",
    "effective_rank": "dimensions",
    "attn_entropy": "nats",
}
# Endings of metrics.
_PERCENT = ("top1", "top5", "mean_per_class", "miou", "aacc", "macc", "pixel_acc")
_PERCENT += ("ap", "ap50", "ap75")
_SPEED = ("images_per_s", "data_wait", "step_s")
_MOST_CLASSES = 40  # of a matrix that is drawn
_TITLES = {
    "loss": "Loss",
    "mae_loss": "Reconstruction loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "effective_rank": "Effective rank of the features",
    "feature_std": "Spread of the features (0: collapsed)",
    "images_per_s": "Throughput",
    "data_wait": "Time spent waiting for data",
    "step_s": "Time of an update",
}


_STUDIES = {
    "keep_first": "The first k blocks kept, the others at random",
    "keep_last": "The last k blocks kept, the others at random",
    "freeze": "The first k blocks frozen",
    "swap": "The first k blocks kept, the others the donor's",
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: a plot, or a sheet of images.

    Attributes:
      name: of its file, without ending.
      section: of the page: 'curves', 'probes', 'blocks', 'classes', 'objects', 'speed',
        'pictures', 'attention', 'maps', 'patches', 'cka', 'features' or 'layers'.
      title, caption: what it shows.
      data: the numbers it is drawn from, as JSON takes them.
      plot: the drawn numbers, or None.
      pixels: uint8 [H, W, 3] of a sheet of images, or None.
    """

    name: str
    section: str
    title: str
    caption: str
    data: Any
    plot: figure.Figure | None = None
    pixels: np.ndarray | None = None

    @property
    def file(self) -> str:
        """Name of the PNG beside the page."""
        return f"{self.name}.png"

    def png(self) -> bytes:
        """Returns the figure as a PNG file."""
        if self.plot is not None:
            return render.png(self.plot)
        file = io.BytesIO()
        Image.fromarray(self._sheet()).save(file, "PNG")
        return file.getvalue()

    @functools.cached_property
    def svg(self) -> str | None:
        """The figure as an <svg> element; None for a sheet of images."""
        if self.plot is None:
            return None
        return render.svg(self.plot, title=self.title, prefix=self.name)

    def picture(self, room: int | None = None) -> page.Picture:
        """Returns what the page shows: SVG, a photograph, or the file's name.

        Args:
          room: bytes of markup that a photograph may have; None: any number.
        """
        about = (self.name, self.title, self.caption, self.file)
        if self.svg is not None:
            return page.Picture(*about, svg=self.svg)
        photo, width = page.photograph(self._sheet())
        if room is not None and len(photo) > room:
            return page.Picture(*about, wide=True)
        return page.Picture(*about, wide=True, photo=photo, width=width)

    def _sheet(self) -> np.ndarray:
        assert self.pixels is not None  # a figure has the one or the other
        return self.pixels


def of_runs(
    runs: Sequence[run_record.Run], colors: dict[str, str], notes: list[str]
) -> list[Figure]:
    """Draws curves of what was logged, evaluations over time, speed, and pictures.

    Args:
      runs: as read.
      colors: name of a run -> the colour of its curves.
      notes: gets a line for what cannot be drawn.
    """
    figures: list[Figure] = []

    def draw(what: str, make: Callable[[], list[Figure]]) -> None:
        figures.extend(attempts.attempt(what, notes, make, []))

    for key in _logged(runs):
        section = "speed" if key in _SPEED else "curves"
        make = functools.partial(_curve, runs, key, section, colors)
        draw(f"the curve of {key}", make)
    for run in runs:
        of = functools.partial(_heads, run, len(runs) > 1)
        draw(f"the curves of the heads of {run.name}", of)
    titles = dict.fromkeys(title for run in runs for title in run.results)
    for title in titles:
        over_time = functools.partial(_probe, runs, title, colors)
        draw(f"evaluation {title} over time", over_time)
    for title in titles:
        blocks = functools.partial(_block, runs, title)
        draw(f"the blocks of evaluation {title}", blocks)
    for run in runs:
        for title in run.results:
            matrix = functools.partial(_confusion, run, title, len(runs) > 1)
            draw(f"the confusion matrix of {title} of {run.name}", matrix)
        for path in _chosen(run, len(runs) > 1):
            shown = functools.partial(_picture, run, path)
            draw(f"pictures/{path.name} of {run.name}", shown)
    return figures


def _logged(runs: Sequence[run_record.Run]) -> list[str]:
    """Returns the metrics of training, the usual ones first."""
    keys: dict[str, None] = {}
    for run in runs:
        titles = {*run.results, *run.block("evals")}
        for key in run.steps:
            if key.partition("/")[0] not in titles and "/head_" not in key:
                keys[key] = None
    keys.pop("epoch", None)
    rest = sorted(k for k in keys if k not in (*_FIRST, *_SPEED))
    return [k for k in (*_FIRST, *rest, *_SPEED) if k in keys]


def _curve(
    runs: Sequence[run_record.Run], key: str, section: str, colors: dict[str, str]
) -> list[Figure]:
    drawn, data = {}, {}
    most = max(1200 // len(runs), 100)
    for run in runs:
        if key in run.steps:
            steps, values = run_record.series(run.steps[key], most)
            drawn[run.name] = (steps, values)
            data[run.name] = {"steps": steps, "values": values}
    axes = plots.Axes("update", with_unit(key), whole_x=True)
    if key == "data_wait":
        axes = dataclasses.replace(axes, y_range=(0, 100))
    figure = Figure(
        name=f"{section}-{file_name(key)}",
        section=section,
        title=_TITLES.get(key, key),
        caption=f"{key} in metrics.jsonl",
        data={"metric": key, "source": "metrics.jsonl", "series": data},
        plot=plots.curves(drawn, axes, colors=[colors[name] for name in drawn]),
    )
    return [figure]


def _heads(run: run_record.Run, several: bool) -> list[Figure]:
    """Draws the numbers of heads, as attn_entropy/head_01, in one figure a metric."""
    groups: dict[str, list[str]] = {}
    for key in run.steps:
        if "/head_" in key:
            groups.setdefault(key.partition("/")[0], []).append(key)
    figures = []
    for name, keys in groups.items():
        drawn, data = {}, {}
        for key in sorted(keys):
            steps, values = run_record.series(run.steps[key], 300)
            drawn[key.partition("/")[2].replace("_", " ")] = (steps, values)
            data[key] = {"steps": steps, "values": values}
        colors = [
            plots.ramp_color(0.85 * i / max(len(drawn), 1)) for i in range(len(drawn))
        ]
        axes = plots.Axes("update", with_unit(name), whole_x=True)
        of = f" of {run.name}" * several
        figures.append(
            Figure(
                name=f"curves-{name}-{file_name(run.name)}",
                section="curves",
                title=f"Attention entropy of the last block{of}"
                if name == "attn_entropy"
                else f"{name}{of}",
                caption=f"{name}/head_NN in metrics.jsonl",
                data={"source": "metrics.jsonl", "run": run.name, "series": data},
                plot=plots.curves(drawn, axes, colors=colors),
            )
        )
    return figures


def _probe(
    runs: Sequence[run_record.Run], title: str, colors: dict[str, str]
) -> list[Figure]:
    """Draws the main number of an evaluation that was made more than once."""
    drawn, data, metric = {}, {}, ""
    for run in runs:
        result = run.results.get(title)
        if result is None or len(result["history"]) < 2:
            continue
        metric = result["metric"]
        rows = [r for r in result["history"] if isinstance(r.get(metric), int | float)]
        steps, values = [r["step"] for r in rows], [r[metric] for r in rows]
        drawn[run.name] = (steps, values)
        data[run.name] = {"metric": metric, "steps": steps, "values": values}
    if not drawn:
        return []
    axes = plots.Axes("update", with_unit(metric), whole_x=True)
    figure = Figure(
        name=f"probes-{file_name(title)}",
        section="probes",
        title=f"{title}: {metric}",
        caption=f"history in evals/{title}/result.json",
        data={"source": f"evals/{title}/result.json", "series": data},
        plot=plots.curves(drawn, axes, colors=[colors[name] for name in drawn]),
    )
    return [figure]


def _block(runs: Sequence[run_record.Run], title: str) -> list[Figure]:
    """Draws linear and k-NN accuracy over blocks, if evaluation `title` has them."""
    tables = {
        run.name: run.results[title]["last"]["table"]
        for run in runs
        if "block" in run.results.get(title, {}).get("last", {})
    }
    source = f"last in evals/{title}/result.json"
    return [of_blocks(title, tables, source)] if tables else []


def of_blocks(title: str, tables: dict[str, list], source: str) -> Figure:
    """Draws linear and k-NN accuracy over blocks.

    Args:
      title: of the evaluation, one of `layers`.
      tables: name -> rows of its 'table'.
      source: where they are recorded.
    """
    drawn: plots.Series = {}
    data: dict[str, Any] = {}
    for name, rows in tables.items():
        of = f"{name}: " * (len(tables) > 1)
        ks = [*range(1, len(rows) + 1)]  # older tables count from 0
        data[name] = {"block": ks}
        for kind, label in (("linear", "linear"), ("knn", "k-NN")):
            data[name][kind] = [row[kind] for row in rows]
            drawn[f"{of}{label}"] = (ks, data[name][kind])
    return Figure(
        name=f"blocks-{file_name(title)}",
        section="blocks",
        title=f"{title}: accuracy after every block",
        caption=f"percent right after block 1 to the last; {source}",
        data={"source": source, "series": data},
        plot=plots.curves(drawn, plots.Axes("block", with_unit("top1"), whole_x=True)),
    )


def _confusion(run: run_record.Run, title: str, several: bool) -> list[Figure]:
    """Draws the confusion matrix of evaluation `title`, if it has a small one."""
    rows = run.results[title]["last"].get("matrix", [])
    names = [row["class"] for row in rows]
    called = list(
        dict.fromkeys([*names, *(name for x in rows for name in x["called"])])
    )
    if not 2 <= len(called) <= _MOST_CLASSES:
        return []
    counts = np.array([[row["called"].get(x, 0) for x in called] for row in rows])
    images = counts.sum(axis=1, keepdims=True)
    shares = np.where(images > 0, 100 * counts / np.maximum(images, 1), np.nan)
    source = f"evals/{title}/result.json"
    figure = Figure(
        name=f"confusion-{file_name(run.name)}-{file_name(title)}",
        section="classes",
        title=f"{run.name}: " * several + f"{title}, what each class is called",
        caption=f"percent of the images of a line's class; last.matrix in {source}",
        data={"source": source, "run": run.name, "matrix": rows},
        plot=plots.matrix(shares, names, called, "% of the images of a class"),
    )
    return [figure]


def of_study(
    curves: dict[str, dict[str, dict[int, float]]],
    shares: dict[str, float],
    metric: str,
) -> list[Figure]:
    """Draws what a layer study measured, a figure for each kind of parts.

    Args:
      curves: kind -> setting -> {k: number}.
      shares: setting -> share of the training images.
      metric: what the numbers are.
    """
    figures = []
    for kind in (kind for kind in curves if kind in _STUDIES):
        lines: plots.Series = {}
        data: dict[str, Any] = {}
        for setting, by_k in curves[kind].items():
            ks = sorted(by_k)
            values = [by_k[k] for k in ks]
            lines[f"{setting}: {100 * shares[setting]:g} % of the images"] = ks, values
            data[setting] = {"k": ks, "values": values}
        axes = plots.Axes("k, blocks", with_unit(metric), whole_x=True)
        figures.append(
            Figure(
                name=f"layers-{kind}",
                section="layers",
                title=_STUDIES[kind],
                caption="results of the parts in layers.json",
                data=data,
                plot=plots.curves(lines, axes),
            )
        )
    return figures


def _chosen(run: run_record.Run, several: bool) -> list[pathlib.Path]:
    """Returns the pictures to show, of each kind the first and last, or the last."""
    kinds: dict[str, list[pathlib.Path]] = {}
    for path in run.pictures:
        kinds.setdefault(path.stem.rpartition("_")[0], []).append(path)
    return [
        path
        for paths in kinds.values()
        for path in dict.fromkeys([*([] if several else paths[:1]), paths[-1]])
    ]


def _picture(run: run_record.Run, path: pathlib.Path) -> list[Figure]:
    """Shows the pictures of a run after some update."""
    kind, _, number = path.stem.rpartition("_")
    step = int(number)
    name = file_name(run.name) + f"-{kind}" * (kind != "reconstruction")
    figure = Figure(
        name=f"pictures-{name}-{step}",
        section="pictures",
        title=f"{run.name}, after {step:,} updates",
        caption=run_record.PICTURES[kind],
        data={"source": f"pictures/{path.name}", "step": step},
        pixels=read_pixels(path),
    )
    return [figure]


def read_pixels(path: pathlib.Path) -> np.ndarray:
    """Reads a picture: uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def with_unit(metric: str) -> str:
    """Returns what stands at the axis of a metric."""
    if metric.endswith(_PERCENT):
        return f"{metric}, %"
    return _UNITS.get(metric, metric)


def file_name(name: str) -> str:
    """Returns `name` as part of a file's name: no odd letters, at most 60 of them."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    if len(plain) <= 60:
        return plain
    return f"{plain[:50]}-{hashlib.sha256(name.encode()).hexdigest()[:9]}"
