"""The images that an analysis looks at, as each of its models sees them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from litevit_jax.analysis import models
from litevit_jax.data import pipeline, settings, splits, subsets, transforms
from litevit_jax.train import resolve
from litevit_jax.warm_start import match

_IF_OPEN = {"flip": 0.0, "crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)}
CROP = 0.875  # ImageNet's usual crop, for files of weights, which record none


def complete_data(config: ConfigDict, loaded: list[models.Model]) -> None:
    """Completes `config.data` from the first model that is a run, if it names no data.

    Size and range stay each model's own, unless the config sets them.

    Raises:
      ValueError: neither the config nor a model names the images.
    """
    if config.data.source is None:
        run = next((model.config for model in loaded if model.config), None)
        if run is None:
            raise ValueError(
                f"{config.name}: which images? --config.models names no run that has "
                "any; give --config=configs/analysis.py:digits, :imagenet2012 or "
                ":data=folder,path=DIR"
            )
        own = ("image_size", "image_width", "range")
        asked = {name: config.data[name] for name in own}
        run_data = {k: v for k, v in match.data_of(run).items() if k in config.data}
        resolve.fill_open(config.data, {**run_data, **_IF_OPEN})
        resolve.assign(config.data, asked)
    ranges = {model.view.range for model in loaded}
    if config.data.range is None and len(ranges) == 1:
        resolve.assign(config.data, {"range": ranges.pop()})
    resolve.pixel_range(config.data, config.data.eval_split)


def select(config: ConfigDict) -> subsets.Subset:
    """Selects `config.images` of `config.split`, the first or drawn by seed.

    Raises:
      ValueError, OSError: no such data or split.
    """
    source = splits.open_split(config.data, config.split)
    if config.images < 1:
        raise ValueError(f"images={config.images}; expected 1 or more")
    order = np.arange(len(source))
    if config.order == "random":
        order = np.random.default_rng(config.seed).permutation(order)
    return subsets.Subset(source, order[: config.images])


def picture_source(config: ConfigDict, source: subsets.Subset) -> subsets.Subset:
    """The images to draw: `config.rows` of the split, or else `source`.

    Raises:
      ValueError: the split has no such image.
    """
    if not config.rows:
        return source
    whole = splits.open_split(config.data, config.split)
    if not all(0 <= row < len(whole) for row in config.rows):
        raise ValueError(
            f"rows={tuple(config.rows)}: split {config.split!r} has images 0 to "
            f"{len(whole) - 1}"
        )
    return subsets.Subset(whole, np.array(config.rows))


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
