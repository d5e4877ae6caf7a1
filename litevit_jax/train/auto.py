"""The length of a run, and settings that a recipe leaves open for images of yours.

Batch, epochs, warm-up and decoder follow from the number of training images and from
the encoder, never from the devices: a run is the same run wherever it goes on.
docs/settings.md has the measurements behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from litevit_jax.terminal import counted
from litevit_jax.train import microbatch

# Training images of ImageNet-1k. The recipes' authors leave out what remains of each
# epoch after its whole batches: 312 updates at a batch of 4096.
_IMAGENET = 1_281_167
# A run sees so many crops, unless that takes fewer or more passes than these.
_CROPS = 8_000_000
_EPOCHS = (400, 1600)
# Of a decoder beside an encoder of sizes of your own: half as wide, but not narrower
# than this, with heads of as many numbers as those of the recipes' decoders.
_NARROWEST, _HEAD = 64, 32


def settings(
    images: int,
    *,
    batch_size: int | None,
    batch: Mapping[str, Any],
    lr_base: float | None,
    epochs: float | None,
    warmup_epochs: float | None,
    objective: Mapping[str, Any],
) -> dict[str, Any]:
    """Chooses what is None, and the decoder 'auto'; returns dotted name -> value.

    Args:
      images: to train on.
      batch_size, lr_base, epochs, warmup_epochs: of the config.
      batch: its block `auto_batch`.
      objective: its block, of an encoder whose sizes are known.
    """
    chosen: dict[str, Any] = {}
    if batch_size is None:
        batch_size = microbatch.choose_batch_size(images, batch["at_most"])
        chosen["batch_size"] = batch_size
    if lr_base is None:
        # AdamW's steps are of one size, whatever the batch: their noise falls with its
        # root, and the peak follows that.
        root = math.sqrt(batch["recipe_batch"] / batch_size)
        chosen["lr.base"] = float(f"{batch['recipe_lr'] * root:.3g}")
    if epochs is None:
        chosen["epochs"] = epochs = choose_epochs(images)
    if warmup_epochs is None:
        chosen["lr.warmup_epochs"] = epochs / 10
    decoder = objective.get("decoder") or {}
    if decoder.get("variant") == "auto":
        for name, value in decoder_sizes(objective["encoder"]).items():
            if name == "variant" or decoder[name] is None:
                chosen[f"objective.decoder.{name}"] = value
    return chosen


def choose_epochs(images: int) -> int:
    """Chooses passes over the images: more of few images, 400 of 20,000 and more."""
    return min(max(round(_CROPS / images), _EPOCHS[0]), _EPOCHS[1])


def decoder_sizes(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes of MAE's decoder for the encoder of a config's block.

    A named encoder has the decoder of its recipe.
    """
    from litevit_jax.models import mae_decoder, vit

    name = (encoder["variant"] or "").removesuffix("_std")
    if name in mae_decoder.VARIANTS and encoder["width"] is None:
        return {"variant": name, "width": None, "depth": None, "num_heads": None}
    heads = max(vit.of_block(encoder).width // 2, _NARROWEST) // _HEAD
    return {"variant": None, "width": heads * _HEAD, "depth": 1, "num_heads": heads}


def note(images: int, chosen: Mapping[str, Any], steps: int | None = None) -> list[str]:
    """Says in a line what `settings` chose, but for what every such run has.

    Args:
      images: to train on.
      chosen: what `settings` returned.
      steps: of the config; where they are given, they replace the epochs.
    """
    hidden = {"objective.decoder.variant"}
    if steps is not None:
        hidden |= {"epochs", "lr.warmup_epochs"}
    words = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in chosen.items()
        if value is not None and name not in hidden
    ]
    if not words:
        return []
    return [f"chosen for {counted(images, 'image')}: {', '.join(words)}"]


def length(
    images: int,
    *,
    steps: int | None,
    epochs: float,
    warmup_epochs: float,
    batch_size: int,
    at_least: int,
    extend_to: int | None = None,
) -> dict[str, float]:
    """Counts the updates of a run, and of them those of an epoch and of the warm-up.

    An epoch is a pass over the images: images / batch_size updates, a fraction of one
    if the batch is larger, for no image is dropped. Of ImageNet's images it is whole
    batches, as the recipes count.

    Raises:
      ValueError: a run without a step, or a warm-up that does not fit into it.
    """
    if epochs <= 0 or (steps is not None and steps < 1):
        raise ValueError(f"steps={steps}, epochs={epochs}: a run needs at least one")
    used = images
    if images == _IMAGENET and images >= batch_size:
        used -= images % batch_size
    by_epochs = max(round(epochs * used / batch_size), 1)
    total = max(by_epochs, at_least) if steps is None else steps
    warmup = round(warmup_epochs * used / batch_size)
    if total != by_epochs:  # a run of another length keeps its proportions
        warmup = round(total * warmup_epochs / epochs)
    if warmup >= total:
        raise ValueError(
            f"a warm-up of {warmup} steps does not fit a run of {total}: "
            f"lr.warmup_epochs={warmup_epochs:g}, epochs={epochs}; set "
            f"--config.lr.warmup_epochs={epochs / 10:g} (a tenth of the run), or train "
            "longer"
        )
    length = {"steps_per_epoch": used / batch_size, "warmup_steps": warmup}
    if extend_to is None:
        return {**length, "total_steps": total}
    longer = round(extend_to * used / batch_size)
    if longer <= total:
        raise ValueError(
            f"extend_to={extend_to} epochs are {longer:,} updates, and the run has "
            f"{total:,} without it; give more epochs than it has"
        )
    return {**length, "total_steps": longer, "planned_steps": total}
