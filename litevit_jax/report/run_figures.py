"""Figures of what runs logged: curves, evaluations, speed, pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import figure
from PIL import Image

from litevit_jax.report import page, plots, render, run_record

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
_SPEED = ("images_per_s", "data_wait", "step_s")
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
      section: of the page: 'curves', 'probes', 'blocks', 'speed', 'pictures',
        'attention', 'maps', 'cka', 'features' or 'layers'.
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

    def save(self, directory: pathlib.Path) -> None:
        """Writes the PNG."""
        path = directory / self.file
        if self.plot is not None:
            path.write_bytes(render.png(self.plot))
        else:
            Image.fromarray(self._sheet()).save(path)

    def picture(self, room: int | None = None) -> page.Picture:
        """Returns what the page shows: SVG, a photograph, or the file's name.

        Args:
          room: bytes of markup that a photograph may have; None: any number.
        """
        about = (self.name, self.title, self.caption, self.file)
        if self.plot is not None:
            svg = render.svg(self.plot, title=self.title, prefix=self.name)
            return page.Picture(*about, svg=svg)
        photo, width = page.photograph(self._sheet())
        if room is not None and len(photo) > room:
            return page.Picture(*about, wide=True)
        return page.Picture(*about, wide=True, photo=photo, width=width)

    def _sheet(self) -> np.ndarray:
        assert self.pixels is not None  # a figure has the one or the other
        return self.pixels


def of_runs(runs: Sequence[run_record.Run], colors: dict[str, str]) -> list[Figure]:
    """Draws curves of what was logged, evaluations over time, speed, and pictures.

    Args:
      runs: as read.
      colors: name of a run -> the colour of its curves.
    """
    figures = []
    for key in _logged(runs):
        section = "speed" if key in _SPEED else "curves"
        figures.append(_curve(runs, key, section, colors))
    for run in runs:
        figures += _heads(run, len(runs) > 1)
    figures += _probes(runs, colors)
    figures += _blocks(runs)
    for run in runs:
        figures += _pictures(run, len(runs) > 1)
    return figures


def _logged(runs: Sequence[run_record.Run]) -> list[str]:
    """Returns the metrics of training, the usual ones first."""
    keys: dict[str, None] = {}
    for run in runs:
        titles = {*run.results, *run.config.get("evals", {})}
        for key in run.steps:
            if key.partition("/")[0] not in titles and "/head_" not in key:
                keys[key] = None
    keys.pop("epoch", None)
    rest = sorted(k for k in keys if k not in (*_FIRST, *_SPEED))
    return [k for k in (*_FIRST, *rest, *_SPEED) if k in keys]


def _curve(
    runs: Sequence[run_record.Run], key: str, section: str, colors: dict[str, str]
) -> Figure:
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
    return Figure(
        name=f"{section}-{file_name(key)}",
        section=section,
        title=_TITLES.get(key, key),
        caption=f"{key} in metrics.jsonl",
        data={"metric": key, "source": "metrics.jsonl", "series": data},
        plot=plots.curves(drawn, axes, colors=[colors[name] for name in drawn]),
    )


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


def _probes(runs: Sequence[run_record.Run], colors: dict[str, str]) -> list[Figure]:
    """Draws the main number of every evaluation that was made more than once."""
    figures = []
    titles = dict.fromkeys(title for run in runs for title in run.results)
    for title in titles:
        drawn, data, metric = {}, {}, ""
        for run in runs:
            result = run.results.get(title)
            if result is None or len(result.get("history", [])) < 2:
                continue
            metric = result["metric"]
            rows = [
                r for r in result["history"] if isinstance(r.get(metric), int | float)
            ]
            steps, values = [r["step"] for r in rows], [r[metric] for r in rows]
            drawn[run.name] = (steps, values)
            data[run.name] = {"metric": metric, "steps": steps, "values": values}
        if drawn:
            axes = plots.Axes("update", with_unit(metric), whole_x=True)
            figures.append(
                Figure(
                    name=f"probes-{file_name(title)}",
                    section="probes",
                    title=f"{title}: {metric}",
                    caption=f"history in evals/{title}/result.json",
                    data={"source": f"evals/{title}/result.json", "series": data},
                    plot=plots.curves(
                        drawn, axes, colors=[colors[name] for name in drawn]
                    ),
                )
            )
    return figures


def _blocks(runs: Sequence[run_record.Run]) -> list[Figure]:
    """Draws linear and k-NN accuracy over blocks, of evaluations that have them."""
    figures = []
    for title in dict.fromkeys(title for run in runs for title in run.results):
        tables = {
            run.name: run.results[title]["last"]["table"]
            for run in runs
            if "block" in run.results.get(title, {}).get("last", {})
        }
        if tables:
            figures.append(
                of_blocks(title, tables, f"last in evals/{title}/result.json")
            )
    return figures


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


def _pictures(run: run_record.Run, several: bool) -> list[Figure]:
    """Shows the pictures of a run: of each kind the first and the last, or the last."""
    kinds: dict[str, list[pathlib.Path]] = {}
    for path in run.pictures:
        kinds.setdefault(path.stem.rpartition("_")[0], []).append(path)
    chosen = [
        (kind, path)
        for kind, all_paths in kinds.items()
        for path in dict.fromkeys([*([] if several else all_paths[:1]), all_paths[-1]])
    ]
    figures = []
    for kind, path in chosen:
        name = file_name(run.name) + f"-{kind}" * (kind != "reconstruction")
        step = int(path.stem.rpartition("_")[2])
        figures.append(
            Figure(
                name=f"pictures-{name}-{step}",
                section="pictures",
                title=f"{run.name}, after {step:,} updates",
                caption=run_record.PICTURES[kind],
                data={"source": f"pictures/{path.name}", "step": step},
                pixels=read_pixels(path),
            )
        )
    return figures


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
