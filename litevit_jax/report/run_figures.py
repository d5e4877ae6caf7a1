"""Figures of what runs logged: curves, evaluations, speed, pictures."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from litevit_jax.report import draw, plots, run_record

_WIDEST = 1200  # pixels of a photograph inside the page
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
_PERCENT = ("top1", "top5", "mean_per_class")  # endings of metrics
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


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      name: of its file, without ending.
      section: of the page: 'curves', 'probes', 'blocks', 'speed', 'pictures',
        'attention', 'maps', 'cka' or 'features'.
      title, caption: what it shows.
      data: the numbers it is drawn from, as JSON takes them.
      canvas: of a chart.
      pixels: uint8 [H, W, 3] of a sheet of images.
    """

    name: str
    section: str
    title: str
    caption: str
    data: Any
    canvas: draw.Canvas | None = None
    pixels: np.ndarray | None = None

    def image(self) -> np.ndarray:
        """uint8 [H, W, 3], for a file beside the page."""
        return self._photo() if self.canvas is None else self.canvas.image()

    def _photo(self) -> np.ndarray:
        assert self.pixels is not None  # a figure has the one or the other
        return self.pixels

    def embedded(self) -> str:
        """Markup of the page: SVG, or a photograph as JPEG."""
        if self.canvas is not None:
            return self.canvas.svg(self.title)
        picture = Image.fromarray(self._photo())
        if picture.width > _WIDEST:
            height = round(picture.height * _WIDEST / picture.width)
            picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=88)
        address = draw.data_uri(file.getvalue(), "jpeg")
        wide = picture.width
        return f'<img src="{address}" alt="" width="{wide}" style="--native:{wide}px">'


def of_runs(runs: Sequence[run_record.Run], colors: dict[str, str]) -> list[Figure]:
    """Curves of what was logged, evaluations over time, speed, and pictures.

    Args:
      runs: as read.
      colors: name of a run -> the colour of its curves.
    """
    found = []
    for key in _logged(runs):
        section = "speed" if key in _SPEED else "curves"
        found.append(_curve(runs, key, section, colors))
    for run in runs:
        found += _heads(run, len(runs) > 1)
    found += _probes(runs, colors)
    found += _blocks(runs)
    for run in runs:
        found += _pictures(run, len(runs) > 1)
    return found


def _logged(runs: Sequence[run_record.Run]) -> list[str]:
    """Metrics of training, the usual ones first."""
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
        canvas=plots.curves(drawn, axes, colors=[colors[name] for name in drawn]),
    )


def _heads(run: run_record.Run, several: bool) -> list[Figure]:
    """Numbers of the heads, as attn_entropy/head_01, in one figure a metric."""
    groups: dict[str, list[str]] = {}
    for key in run.steps:
        if "/head_" in key:
            groups.setdefault(key.partition("/")[0], []).append(key)
    found = []
    for name, keys in groups.items():
        drawn, data = {}, {}
        for key in sorted(keys):
            steps, values = run_record.series(run.steps[key], 300)
            drawn[key.partition("/")[2].replace("_", " ")] = (steps, values)
            data[key] = {"steps": steps, "values": values}
        colors = [
            draw.ramp_color(0.85 * i / max(len(drawn), 1)) for i in range(len(drawn))
        ]
        axes = plots.Axes("update", with_unit(name), whole_x=True)
        of = f" of {run.name}" * several
        found.append(
            Figure(
                name=f"curves-{name}-{file_name(run.name)}",
                section="curves",
                title=f"Attention entropy of the last block{of}"
                if name == "attn_entropy"
                else f"{name}{of}",
                caption=f"{name}/head_NN in metrics.jsonl",
                data={"source": "metrics.jsonl", "run": run.name, "series": data},
                canvas=plots.curves(drawn, axes, colors=colors),
            )
        )
    return found


def _probes(runs: Sequence[run_record.Run], colors: dict[str, str]) -> list[Figure]:
    """The main number of every evaluation that was made more than once."""
    found = []
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
            found.append(
                Figure(
                    name=f"probes-{file_name(title)}",
                    section="probes",
                    title=f"{title}: {metric}",
                    caption=f"history in evals/{title}/result.json",
                    data={"source": f"evals/{title}/result.json", "series": data},
                    canvas=plots.curves(
                        drawn, axes, colors=[colors[name] for name in drawn]
                    ),
                )
            )
    return found


def _blocks(runs: Sequence[run_record.Run]) -> list[Figure]:
    """What every block knows, of evaluations with a row for each: linear and k-NN."""
    found = []
    for title in dict.fromkeys(title for run in runs for title in run.results):
        tables = {
            run.name: run.results[title]["last"]["table"]
            for run in runs
            if "block" in run.results.get(title, {}).get("last", {})
        }
        if tables:
            found.append(of_blocks(title, tables, f"last in evals/{title}/result.json"))
    return found


def of_blocks(title: str, tables: dict[str, list], source: str) -> Figure:
    """Accuracy over blocks.

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
        for kind, said in (("linear", "linear"), ("knn", "k-NN")):
            data[name][kind] = [row[kind] for row in rows]
            drawn[f"{of}{said}"] = (ks, data[name][kind])
    return Figure(
        name=f"blocks-{file_name(title)}",
        section="blocks",
        title=f"{title}: accuracy after every block",
        caption=f"percent right after block 1 to the last; {source}",
        data={"source": source, "series": data},
        canvas=plots.curves(
            drawn, plots.Axes("block", with_unit("top1"), whole_x=True)
        ),
    )


def _pictures(run: run_record.Run, several: bool) -> list[Figure]:
    """The reconstructions of a run: the first and the last, or the last of each."""
    chosen = (
        run.pictures[-1:]
        if several
        else dict.fromkeys([*run.pictures[:1], *run.pictures[-1:]])
    )
    found = []
    for path in chosen:
        step = int(path.stem.rpartition("_")[2])
        found.append(
            Figure(
                name=f"pictures-{file_name(run.name)}-{step}",
                section="pictures",
                title=f"{run.name}, after {step:,} updates",
                caption="original, masked, reconstructed; visible patches are the "
                "original's",
                data={"source": f"pictures/{path.name}", "step": step},
                pixels=np.asarray(Image.open(path).convert("RGB")),
            )
        )
    return found


def with_unit(metric: str) -> str:
    """What stands at the axis of a metric."""
    if metric.endswith(_PERCENT):
        return f"{metric}, %"
    return _UNITS.get(metric, metric)


def file_name(name: str) -> str:
    """`name` with what no file should be called by replaced."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
