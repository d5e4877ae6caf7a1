"""The images that an analysis looks at, as each of its models sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from litevit_jax.analysis import models
from litevit_jax.data import pipeline, settings, splits, subsets, transforms
from litevit_jax.train import resolve
from litevit_jax.warm_start import match

_IF_OPEN = {"flip": 0.0, "crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)}
CROP = 0.875  # ImageNet's usual crop, for files of weights, which record none


def complete_data(data: ConfigDict, loaded: list[models.Model], *, name: str) -> None:
    """Completes block `data` from the first model that is a run, if it names no data.

    Size and range stay each model's own, unless the block sets them. `name` is the
    recipe's, for messages.

    Raises:
      ValueError: neither the config nor a model names the images.
    """
    if data.source is None:
        run = next((model.config for model in loaded if model.config), None)
        if run is None:
            raise ValueError(
                f"{name}: which images? --config.models names no run that has "
                "any; give --config=configs/analysis.py:digits, :imagenet2012 or "
                ":data=folder,path=DIR"
            )
        own = ("image_size", "image_width", "range")
        asked = {field: data[field] for field in own}
        run_data = {k: v for k, v in match.data_of(run).items() if k in data}
        resolve.fill_open(data, {**run_data, **_IF_OPEN})
        resolve.assign(data, asked)
    ranges = {model.view.range for model in loaded}
    if data.range is None and len(ranges) == 1:
        resolve.assign(data, {"range": ranges.pop()})
    resolve.pixel_range(data, data.eval_split)


def select(
    data: ConfigDict, split: str, *, images: int, order: str, seed: int
) -> subsets.Subset:
    """Selects `images` of a split, the first or, in 'random' order, drawn by seed.

    Raises:
      ValueError, OSError: no such data or split.
    """
    source = splits.open_split(data, split)
    if images < 1:
        raise ValueError(f"{images=}; expected 1 or more")
    indices = np.arange(len(source))
    if order == "random":
        indices = np.random.default_rng(seed).permutation(indices)
    return subsets.Subset(source, indices[:images])


def picture_source(
    data: ConfigDict, split: str, rows: Sequence[int], source: subsets.Subset
) -> subsets.Subset:
    """Returns the images to draw: `rows` of the split, or else `source`.

    Raises:
      ValueError: the split has no such image.
    """
    if not rows:
        return source
    whole = splits.open_split(data, split)
    if not all(0 <= row < len(whole) for row in rows):
        raise ValueError(
            f"rows={tuple(rows)}: split {split!r} has images 0 to {len(whole) - 1}"
        )
    return subsets.Subset(whole, np.array(rows))


def streams(
    data: ConfigDict,
    batch_size: int,
    loaded: list[models.Model],
    source: subsets.Subset,
) -> tuple[dict[models.View, int], list[pipeline.Stream]]:
    """Opens a stream of the images for each way in which models see them.

    Returns:
      View -> index of its stream, and the streams, whose batches have the same examples
      in the same rows.
    """
    index_of_view: dict[models.View, int] = {}
    index_of: dict[Any, int] = {}
    opened = []
    for view in dict.fromkeys(model.view for model in loaded):
        block = _block(data, view)
        key = (view.size, view.channels, block["eval_crop_fraction"], block["range"])
        if key not in index_of:
            index_of[key] = len(opened)
            opened.append(_stream(block, batch_size, source))
        index_of_view[view] = index_of[key]
    return index_of_view, opened


def first(
    data: ConfigDict, loaded: list[models.Model], source: subsets.Subset, count: int
) -> dict[str, dict[str, np.ndarray]]:
    """Model's name -> the first images: uint8 'image', and 'index' in `source`."""
    few = subsets.Subset(source, np.arange(min(count, len(source))))
    index_of_view, opened = streams(data, len(few), loaded, few)
    taken = []
    with contextlib.ExitStack() as stack:
        for stream in opened:
            stack.callback(stream.close)
            batch = next(stream)
            kept = batch["mask"] > 0
            taken.append({k: batch[k][kept] for k in ("image", "index")})
    return {model.name: taken[index_of_view[model.view]] for model in loaded}


def crop_of(data: ConfigDict, view: models.View) -> float:
    """The share of the shorter side that the middle crop of a model keeps."""
    return data.eval_crop_fraction or view.crop or CROP


def _block(data: ConfigDict, view: models.View) -> dict[str, Any]:
    block = data.to_dict()
    crop = crop_of(data, view)
    block |= {"image_size": view.size[0], "image_width": view.size[1]}
    block["range"] = block["range"] or view.range
    return block | {"channels": view.channels, "views": 1, "eval_crop_fraction": crop}


def _stream(
    block: dict[str, Any], batch_size: int, source: subsets.Subset
) -> pipeline.Stream:
    return pipeline.eval_batches(
        source,
        transforms.eval_ops(**settings.image_settings(block)),
        batch_size=batch_size,
        workers=block["workers"],
        threads=block["threads"],
        max_bad_fraction=block["max_bad_fraction"],
    )
