"""Our parameters by the names and in the layouts of other programs."""

from __future__ import annotations

import dataclasses

import numpy as np

from litevit_jax.models import layers
from litevit_jax.weights import exportable as models
from litevit_jax.weights import mmseg as mmseg_names
from litevit_jax.weights import names

# Where detectron2's ViTDet detectors have their backbone. It works without a class
# token (but skips its row of the position table) and without a final norm.
VITDET_PREFIX = "backbone.net."
NOT_IN_VITDET = ("cls_token", "norm.weight", "norm.bias")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Arrays under another program's names.

    Attributes:
      arrays: its name -> array, in PyTorch's layout.
      left_out: timm's names of arrays that the program cannot hold.
    """

    arrays: models.Arrays
    left_out: tuple[str, ...] = ()


def timm(model: models.Model, decoder: models.Arrays) -> Layout:
    """timm's VisionTransformer; a fixed position table is written out."""
    arrays = _to_timm(model, model.params)
    arrays["pos_embed"] = np.ascontiguousarray(model.pos_table)
    return Layout(arrays, tuple(_to_timm(model, decoder)))


def mae(model: models.Model, decoder: models.Arrays) -> Layout:
    """The official MAE's names: timm's, and the decoder with its position table.

    Raises:
      ValueError: the source has no decoder.
    """
    if not decoder:
        raise ValueError(
            "format 'mae' holds a decoder, and the source has none; "
            "--config.format=timm holds the encoder alone"
        )
    arrays = timm(model, {}).arrays | _to_timm(model, decoder)
    width = decoder["decoder/mask_token"].shape[-1]
    table = layers.sincos_table(model.grid, width, "sincos")[None]
    return Layout(arrays | {names.DECODER_POS_EMBED: table})


def vitdet(model: models.Model, decoder: models.Arrays) -> Layout:
    """detectron2's ViTDet backbone.

    Raises:
      ValueError: the grid of patches is not square, which ViTDet assumes; or blocks
        with tables of relative positions, of which it has others.
    """
    _check_square(model, "vitdet")
    check_plain(model, "vitdet")
    whole = timm(model, decoder)
    left_out = [*NOT_IN_VITDET, *_heads(whole.arrays)]
    kept = {k: v for k, v in whole.arrays.items() if k not in left_out}
    arrays = {VITDET_PREFIX + name: value for name, value in kept.items()}
    left_out = [name for name in left_out if name in whole.arrays]
    return Layout(arrays, (*left_out, *whole.left_out))


def mmseg(model: models.Model, decoder: models.Arrays) -> Layout:
    """The backbone of mmsegmentation's `VisionTransformer`.

    With tables of relative positions and layer scale it is that of its `MAE`.

    Raises:
      ValueError: the grid of patches is not square, which its loading needs; or blocks
        with tables that differ from those of `MAE`.
    """
    _check_square(model, "mmseg")
    whole = timm(model, decoder)
    left_out, tables = _heads(whole.arrays), mmseg_names.has_tables({*whole.arrays})
    if tables and model.encoder.rpe_style != "dense":
        raise ValueError(
            f"format 'mmseg': blocks of rpe_style={model.encoder.rpe_style!r} are not "
            "those of mmsegmentation's MAE, which are 'dense'; fine-tune this encoder "
            "with configs/segment.py, which takes it, or export to timm"
        )
    arrays = {
        mmseg_names.from_timm(name, tables=tables): value
        for name, value in whole.arrays.items()
        if name not in left_out
    }
    return Layout(arrays, (*left_out, *whole.left_out))


def _to_timm(model: models.Model, params: models.Arrays) -> models.Arrays:
    side = model.encoder.patch_size
    arrays = {}
    for name, value in params.items():
        key = names.to_timm(name)
        if key is None:
            raise ValueError(
                f"parameter {name} {list(value.shape)} has no name in timm; "
                "only plain vision transformers can be exported"
            )
        arrays[key] = names.array_to_timm(name, value, patch_size=side)
    return arrays


def _heads(arrays: models.Arrays) -> list[str]:
    return [name for name in arrays if name.startswith(("head.", "fc_norm."))]


def check_plain(model: models.Model, kind: str) -> None:
    """Raises a ValueError if blocks have tables, for which a format has no place."""
    if model.encoder.rpe_style != "none":
        raise ValueError(
            f"format {kind!r} has no place for tables of relative positions (rpe_style="
            f"{model.encoder.rpe_style!r}), without which the model computes something "
            "else; export to timm, mmseg or stablehlo"
        )


def _check_square(model: models.Model, program: str) -> None:
    rows, columns = model.grid
    if rows != columns:
        raise ValueError(
            f"format {program!r} needs a square grid of patches, this model has "
            f"{rows}x{columns}; give --config.image_size=SIDE to resize its positions, "
            "or export to timm"
        )


LAYOUTS = {"timm": timm, "mae": mae, "vitdet": vitdet, "mmseg": mmseg}
