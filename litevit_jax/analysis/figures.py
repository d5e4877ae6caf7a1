"""Figures of a report: what runs logged, and what an analysis found."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from litevit_jax.analysis import charts, draw, record

_ROUNDING = 1e-9  # of the largest eigenvalue: LayerNorm leaves one that is 0
_WIDEST = 1200  # pixels of a photograph inside the page
_FIRST = ("loss", "mae_loss", "lr", "grad_norm", "effective_rank", "feature_std")
_UNITS = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_s": "images/s",
    "data_wait": "share of time",
    "step_s": "seconds an update",
    "effective_rank": "dimensions",
    "attn_entropy": "nats",
}
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
      section: of the page: 'curves', 'probes', 'speed', 'pictures', 'attention',
        'cka' or 'features'.
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
        return f'<img src="{address}" alt="" width="{picture.width}">'


def of_runs(runs: Sequence[record.Run]) -> list[Figure]:
    """Curves of what was logged, evaluations over time, speed, and pictures."""
    found = []
    for key in _logged(runs):
        section = "speed" if key in _SPEED else "curves"
        found.append(_curve(runs, key, section))
    for run in runs:
        found += _heads(run, len(runs) > 1)
    found += _probes(runs)
    for run in runs:
        found += _pictures(run, len(runs) > 1)
    return found


def _logged(runs: Sequence[record.Run]) -> list[str]:
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


def _curve(runs: Sequence[record.Run], key: str, section: str) -> Figure:
    drawn, data, colors = {}, {}, []
    most = max(1200 // len(runs), 100)
    for place, run in enumerate(runs):
        if key in run.steps:
            steps, values = record.series(run.steps[key], most)
            drawn[run.name] = (steps, values)
            data[run.name] = {"steps": steps, "values": values}
            colors.append(draw.color_of(place))
    axes = charts.Axes("update", _UNITS.get(key, key), whole_x=True)
    if key == "data_wait":
        axes = dataclasses.replace(axes, y_range=(0, 1))
    return Figure(
        name=f"{section}-{_file(key)}",
        section=section,
        title=_TITLES.get(key, key),
        caption=f"{key} in metrics.jsonl",
        data={"metric": key, "source": "metrics.jsonl", "series": data},
        canvas=charts.curves(drawn, axes, colors=colors),
    )


def _heads(run: record.Run, several: bool) -> list[Figure]:
    """Numbers of the heads, as attn_entropy/head_00, in one figure a metric."""
    groups: dict[str, list[str]] = {}
    for key in run.steps:
        if "/head_" in key:
            groups.setdefault(key.partition("/")[0], []).append(key)
    found = []
    for name, keys in groups.items():
        drawn, data = {}, {}
        for key in sorted(keys):
            steps, values = record.series(run.steps[key], 300)
            drawn[key.partition("/")[2].replace("_", " ")] = (steps, values)
            data[key] = {"steps": steps, "values": values}
        colors = [
            draw.ramp_color(0.85 * i / max(len(drawn), 1)) for i in range(len(drawn))
        ]
        axes = charts.Axes("update", _UNITS.get(name, name), whole_x=True)
        of = f" of {run.name}" * several
        found.append(
            Figure(
                name=f"curves-{name}-{_file(run.name)}",
                section="curves",
                title=f"Attention entropy of the last block{of}"
                if name == "attn_entropy"
                else f"{name}{of}",
                caption=f"{name}/head_NN in metrics.jsonl",
                data={"source": "metrics.jsonl", "run": run.name, "series": data},
                canvas=charts.curves(drawn, axes, colors=colors),
            )
        )
    return found


def _probes(runs: Sequence[record.Run]) -> list[Figure]:
    """The main number of every evaluation that was made more than once."""
    found = []
    titles = dict.fromkeys(title for run in runs for title in run.results)
    for title in titles:
        drawn, data, colors, metric = {}, {}, [], ""
        for place, run in enumerate(runs):
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
            colors.append(draw.color_of(place))
        if drawn:
            axes = charts.Axes("update", metric, whole_x=True)
            found.append(
                Figure(
                    name=f"probes-{_file(title)}",
                    section="probes",
                    title=f"{title}: {metric}",
                    caption=f"history in evals/{title}/result.json",
                    data={"source": f"evals/{title}/result.json", "series": data},
                    canvas=charts.curves(drawn, axes, colors=colors),
                )
            )
    return found


def _pictures(run: record.Run, several: bool) -> list[Figure]:
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
                name=f"pictures-{_file(run.name)}-{step}",
                section="pictures",
                title=f"{run.name}, after {step:,} updates",
                caption="original, masked, reconstructed; visible patches are the "
                "original's",
                data={"source": f"pictures/{path.name}", "step": step},
                pixels=np.asarray(Image.open(path).convert("RGB")),
            )
        )
    return found


def of_analysis(found: dict[str, Any], place: pathlib.Path) -> list[Figure]:
    """Figures of what analysis.json holds; `place` is its directory."""
    return [
        *_attention(found),
        *_sheets(found, place),
        *_cka(found.get("cka")),
        *_features(found),
    ]


def _attention(found: dict[str, Any]) -> list[Figure]:
    every = found.get("attention", {})
    paper = found.get("attention_compat") == "paper"
    unit = "patches x 14, as the paper" if paper else "pixels"
    names = {"distance": f"attention distance ({unit})", "entropy": "entropy (nats)"}
    figures = []
    for kind, label in names.items():
        flat = [x for one in every.values() for row in one[kind] for x in row]
        for place, (name, one) in enumerate(every.items()):
            axes = charts.Axes("layer", label, y_range=(0, 1.05 * max(flat)))
            canvas = charts.boxes(one[kind], axes, color=draw.color_of(place))
            figures.append(
                Figure(
                    name=f"attention-{kind}-{_file(name)}",
                    section="attention",
                    title=f"{name}: how {'far' if kind == 'distance' else 'widely'} "
                    "heads look",
                    caption="A box for each layer, a point for each head; the class "
                    "token is left out.",
                    data={"model": name, "unit": label, "layers": one[kind]},
                    canvas=canvas,
                )
            )
    return figures


def _sheets(found: dict[str, Any], place: pathlib.Path) -> list[Figure]:
    figures = []
    for one in found.get("maps", []):
        query = {"cls": "the class token", "center": "the central patch"}.get(
            one["query"], f"patch {one['query']}"
        )
        figures.append(
            Figure(
                name=pathlib.Path(one["file"]).stem,
                section="maps",
                title=f"{one['model']}, layer {one['layer']}: what {query} looks at",
                caption="The brightest patch of each map is its largest weight.",
                data=one,
                pixels=np.asarray(Image.open(place / one["file"]).convert("RGB")),
            )
        )
    for one in found.get("reconstructions", []):
        mean = sum(one["mae_loss"]) / len(one["mae_loss"])
        figures.append(
            Figure(
                name=pathlib.Path(one["file"]).stem,
                section="pictures",
                title=f"{one['model']}: {one['images']} of the images analysed",
                caption="original, masked, reconstructed; mean loss of their masked "
                f"patches {mean:.4f}",
                data=one,
                pixels=np.asarray(Image.open(place / one["file"]).convert("RGB")),
            )
        )
    return figures


def _cka(found: dict[str, Any] | None) -> list[Figure]:
    if not found:
        return []
    figures = []
    for pair in found["pairs"]:
        values = np.array(pair["values"], float)
        one, other = pair["rows"], pair["columns"]
        canvas = charts.heatmap(values, f"blocks of {other}", f"blocks of {one}")
        figures.append(
            Figure(
                name=f"cka-{_file(one)}-{_file(other)}",
                section="cka",
                title=one if one == other else f"{one} and {other}",
                caption=f"after 0 to {values.shape[0] - 1} and 0 to "
                f"{values.shape[1] - 1} blocks; {found['minibatches']} minibatches of "
                f"{found['size']} images",
                data=pair,
                canvas=canvas,
            )
        )
    return figures


def _features(found: dict[str, Any]) -> list[Figure]:
    every = found.get("features", {})
    if not every:
        return []
    of = found["features_of"]
    what = {
        "effective_rank": ("Effective rank", "dimensions", "RankMe of pooled tokens"),
        "token_similarity": (
            "Token similarity",
            "cosine",
            "between patches of an image",
        ),
    }
    figures = []
    for key, (title, unit, said) in what.items():
        drawn: charts.Series = {
            name: (range(len(one[key])), one[key]) for name, one in every.items()
        }
        axes = charts.Axes("blocks passed", unit, whole_x=True)
        figures.append(
            Figure(
                name=f"features-{key}",
                section="features",
                title=title,
                caption=f"{said}, read at {of['place']}, pool {of['pool']}",
                data={name: one[key] for name, one in every.items()},
                canvas=charts.curves(drawn, axes),
            )
        )
    spectra: charts.Series = {}
    for name, one in every.items():
        last = np.array(one["spectrum"][-1])
        share = last / max(last[0], 1e-300)
        drawn_part = [x if x > _ROUNDING else None for x in share.tolist()]
        spectra[name] = (range(1, len(last) + 1), drawn_part)
    axes = charts.Axes("dimension", "eigenvalue, of the largest", log_y=True)
    figures.append(
        Figure(
            name="features-spectrum",
            section="features",
            title="Spectrum after the last block",
            caption="eigenvalues of the covariance of the pooled features; those below "
            f"{_ROUNDING:g} of the largest are rounding and not drawn",
            data={name: one["spectrum"] for name, one in every.items()},
            canvas=charts.curves(spectra, dataclasses.replace(axes, whole_x=True)),
        )
    )
    return figures


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
