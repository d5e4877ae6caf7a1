"""What a recipe leaves open for images of yours: batch, epochs, warm-up and decoder.

The values follow from the number of training images and from the encoder, never from
the devices, so that a run is the same run wherever it goes on. docs/settings.md has
the measurements behind them.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from litevit_jax.terminal import counted
from litevit_jax.train import microbatch

# Of a decoder beside an encoder of sizes of your own: half as wide, one block, heads of
# as many numbers as those of the recipes' decoders.
_HEAD = 32
# A run sees so many crops, unless that takes fewer or more passes than these.
_CROPS = 8_000_000
_EPOCHS = (400, 1600)


def settings(config: ConfigDict, images: int) -> dict[str, Any]:
    """Returns dotted name -> value of each open field of the run's length and decoder.

    Args:
      config: of a run; its encoder's sizes are known.
      images: to train on.
    """
    chosen: dict[str, Any] = {}
    if config.batch_size is None:
        at_most = config.auto_batch.at_most
        chosen["batch_size"] = microbatch.choose_batch_size(images, at_most)
    if config.epochs is None:
        chosen["epochs"] = choose_epochs(images)
    if config.lr.warmup_epochs is None:
        chosen["lr.warmup_epochs"] = chosen.get("epochs", config.epochs) / 10
    decoder = config.objective.get("decoder")
    if decoder is not None and decoder.get("variant") == "auto":
        for name, value in decoder_sizes(config.objective.encoder).items():
            if name == "variant" or decoder[name] is None:
                chosen[f"objective.decoder.{name}"] = value
    return chosen


def notes(before: ConfigDict, after: ConfigDict) -> list[str]:
    """Says what was chosen, in a line: fields that were open `before`."""
    old, new = (_fields(config) for config in (before, after))
    words = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in new.items()
        if value != old[name] and value is not None
    ]
    if not words:
        return []
    count = counted(after.derived.train_examples, "image")
    return [f"chosen for {count} and this encoder: {', '.join(words)}"]


def _fields(config: ConfigDict) -> dict[str, Any]:
    """Returns dotted name -> value of all that `settings` may set."""
    decoder = config.objective.get("decoder") or {}
    return {
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "lr.warmup_epochs": config.lr.warmup_epochs,
        **{f"objective.decoder.{name}": decoder[name] for name in sorted(decoder)},
    }


def choose_epochs(images: int) -> int:
    """Chooses passes over the images: more of few images, 400 of 20,000 and more."""
    return min(max(round(_CROPS / images), _EPOCHS[0]), _EPOCHS[1])


def decoder_sizes(encoder: ConfigDict) -> dict[str, Any]:
    """Returns the sizes of MAE's decoder for the encoder of a config's block.

    A named encoder has the decoder of its recipe.
    """
    from litevit_jax.models import mae_decoder, vit

    name = (encoder.variant or "").removesuffix("_std")
    if name in mae_decoder.VARIANTS and encoder.width is None:
        return {"variant": name, "width": None, "depth": None, "num_heads": None}
    heads = max(vit.of_block(encoder).width // 2 // _HEAD, 1)
    return {"variant": None, "width": heads * _HEAD, "depth": 1, "num_heads": heads}
