"""Figures of the numbers of an analysis: attention, similarity, features, sheets."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from litevit_jax.report import attempts, plots, run_figures

_ROUNDING = 1e-9  # of the largest eigenvalue: LayerNorm leaves one that is 0


def of_analysis(
    analysis: dict[str, Any],
    directory: pathlib.Path,
    colors: dict[str, str],
    notes: list[str],
) -> list[run_figures.Figure]:
    """Draws the figures of an analysis.

    Args:
      analysis: what analysis.json holds.
      directory: where it lies.
      colors: name of a model -> its colour.
      notes: gets a line for what cannot be drawn.
    """
    figures: list[run_figures.Figure] = []
    for what, make in (
        ("the attention of heads", lambda: _attention(analysis, colors)),
        ("the similarity of layers", lambda: _cka(analysis.get("cka"))),
        ("the figures of features", lambda: _features(analysis, colors)),
    ):
        figures += attempts.attempt(what, notes, make, [])
    sheets = {"maps": _map, "patches": _patches, "reconstructions": _reconstruction}
    for kind, make_sheet in sheets.items():
        for one in analysis.get(kind, []):
            what = f"{one.get('file')}, a picture of the analysis,"
            make = functools.partial(make_sheet, one, directory)
            figures += attempts.attempt(what, notes, make, [])
    return figures


def _attention(
    analysis: dict[str, Any], colors: dict[str, str]
) -> list[run_figures.Figure]:
    every = analysis.get("attention", {})
    paper = analysis.get("attention_compat") == "paper"
    unit = "patches x 14, as the paper" if paper else "pixels"
    names = {"distance": f"attention distance ({unit})", "entropy": "entropy (nats)"}
    drawn = []
    for kind, label in names.items():
        flat = [x for one in every.values() for row in one[kind] for x in row]
        for name, one in every.items():
            # The same for all models, and no more: from 0 on boxes would be flat.
            shared = plots.widened(min(flat), max(flat), 0.05)
            axes = plots.Axes("block", label, y_range=shared)
            drawn.append(
                run_figures.Figure(
                    name=f"attention-{kind}-{run_figures.file_name(name)}",
                    section="attention",
                    title=f"{name}: how {'far' if kind == 'distance' else 'widely'} "
                    "heads look",
                    caption="A box for each block, a point for each head; the class "
                    "token is left out.",
                    data={"model": name, "unit": label, "layers": one[kind]},
                    plot=plots.boxes(one[kind], axes, color=colors[name]),
                )
            )
    return drawn


def _map(one: dict[str, Any], directory: pathlib.Path) -> list[run_figures.Figure]:
    """Shows a sheet of attention maps."""
    asked, model = str(one["query"]), one["model"]
    query = {"cls": "the class token", "center": "the central patch"}.get(
        asked, f"patch {asked}"
    )
    mark = asked.replace("/", "_")
    figure = run_figures.Figure(
        name=f"attention-{run_figures.file_name(model)}-layer{one['layer']}-{mark}",
        section="maps",
        title=f"{model}, block {one['layer']}: what {query} looks at",
        caption="The brightest patch of each map is its largest weight.",
        data=one,
        pixels=run_figures.read_pixels(directory / one["file"]),
    )
    return [figure]


def _patches(one: dict[str, Any], directory: pathlib.Path) -> list[run_figures.Figure]:
    """Shows a sheet of principal components of patch tokens."""
    model, share = one["model"], [f"{100 * x:.0f}" for x in one["share"]]
    figure = run_figures.Figure(
        name=f"patches-{run_figures.file_name(model)}",
        section="patches",
        title=f"{model}, after the last block: what is alike",
        caption=f"The components have {', '.join(share[:-1])} and {share[-1]} % of the "
        "variance.",
        data=one,
        pixels=run_figures.read_pixels(directory / one["file"]),
    )
    return [figure]


def _reconstruction(
    one: dict[str, Any], directory: pathlib.Path
) -> list[run_figures.Figure]:
    """Shows a sheet of reconstructed images."""
    mean = sum(one["mae_loss"]) / len(one["mae_loss"])
    figure = run_figures.Figure(
        name=f"reconstruction-{run_figures.file_name(one['model'])}",
        section="pictures",
        title=f"{one['model']}: {one['images']} of the images analysed",
        caption="original, masked, reconstructed; mean loss of their masked patches "
        f"{mean:.4f}",
        data=one,
        pixels=run_figures.read_pixels(directory / one["file"]),
    )
    return [figure]


def _cka(cka: dict[str, Any] | None) -> list[run_figures.Figure]:
    if not cka:
        return []
    drawn = []
    for pair in cka["pairs"]:
        of = {**cka, **pair}  # runs side by side may have looked at other numbers
        values = np.array(pair["values"], float)
        one, other = pair["rows"], pair["columns"]
        names = f"blocks of {other}", f"blocks of {one}"
        drawn.append(
            run_figures.Figure(
                name=f"cka-{run_figures.file_name(one)}-{run_figures.file_name(other)}",
                section="cka",
                title=one if one == other else f"{one} and {other}",
                caption=f"after 0 to {values.shape[0] - 1} and 0 to "
                f"{values.shape[1] - 1} blocks; {of['minibatches']} minibatches of "
                f"{of['size']} images",
                data=pair,
                plot=plots.heatmap(values, *names, "linear CKA"),
            )
        )
    return drawn


def _features(
    analysis: dict[str, Any], colors: dict[str, str]
) -> list[run_figures.Figure]:
    every = analysis.get("features", {})
    own = [colors[name] for name in every]
    if not every:
        return []
    of = analysis["features_of"]
    what = {
        "effective_rank": ("Effective rank", "dimensions", "RankMe of pooled tokens"),
        "token_similarity": (
            "Token similarity",
            "cosine",
            "between patches of an image",
        ),
    }
    drawn = []
    for key, (title, unit, measure) in what.items():
        lines: plots.Series = {
            name: (range(len(one[key])), one[key]) for name, one in every.items()
        }
        axes = plots.Axes("blocks passed", unit, whole_x=True)
        drawn.append(
            run_figures.Figure(
                name=f"features-{key}",
                section="features",
                title=title,
                caption=f"{measure}, read at {of['place']}, pool {of['pool']}",
                data={name: one[key] for name, one in every.items()},
                plot=plots.curves(lines, axes, colors=own),
            )
        )
    spectra: plots.Series = {}
    for name, one in every.items():
        last = np.array(one["spectrum"][-1])
        share = last / max(last[0], 1e-300)
        drawn_part = [x if x > _ROUNDING else None for x in share.tolist()]
        spectra[name] = (range(1, len(last) + 1), drawn_part)
    axes = plots.Axes("dimension", "eigenvalue, of the largest", log_y=True)
    drawn.append(
        run_figures.Figure(
            name="features-spectrum",
            section="features",
            title="Spectrum after the last block",
            caption="eigenvalues of the covariance of the pooled features; those below "
            f"{_ROUNDING:g} of the largest are rounding and not drawn",
            data={name: one["spectrum"] for name, one in every.items()},
            plot=plots.curves(
                spectra, dataclasses.replace(axes, whole_x=True), colors=own
            ),
        )
    )
    return drawn
