"""Infers the sizes of the model in a file of weights, and its head count.

Shapes give all but the number of heads: a width of 192 means 3 heads in timm and 12
here, with the same arrays and another function (recipes 11.3).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax import trees
from litevit_jax.models import mae_decoder, relative, vit
from litevit_jax.weights import detectron2, names, recognise
from litevit_jax.weights.base import Entry, WeightsError, short

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Model:
    """The entries, sizes and head counts of a file's model.

    Attributes:
      entries: of parameters, under timm keys; unknown names among them.
      shapes: of all parameters that such a model has, by our names.
      encoder, decoder, grid, unused: as in `reader.Weights`.
    """

    entries: dict[str, Entry]
    shapes: Shapes
    encoder: dict[str, Any]
    decoder: dict[str, Any] | None
    grid: tuple[int, int]
    unused: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts that a user should know."""
        if not self.unused:
            return ()
        why = "its head count is not recorded; give it as decoder_num_heads"
        return (f"its decoder is left out: {why}",)


def measure(
    source: recognise.Source,
    *,
    metadata: dict[str, str],
    config: dict[str, Any],
    num_heads: int | None,
    decoder_num_heads: int | None,
    grid: tuple[int, int] | None,
) -> Model:
    """Infers sizes, head counts and position embedding of a source.

    Args:
      source: from `recognise.recognise`.
      metadata: of a safetensors file.
      config: of Hugging Face, {} if there is none.
      num_heads, decoder_num_heads, grid: as `reader.read` takes them.

    Raises:
      WeightsError: not a vision transformer, no head count, or a contradiction.
    """
    entries = dict(source.entries)
    encoder, channels = _encoder_sizes(entries)
    grid = _grid(entries, metadata, grid)
    style, bias_heads = _relative(entries, grid)
    recorded = _recorded(
        {"metadata": metadata.get(names.NUM_HEADS)},
        {"relative_position_bias_table": bias_heads},
        {"rel_pos_h, rel_pos_w": detectron2.heads(entries, encoder["width"])},
        {"config.json": config.get("num_attention_heads")},
        {source.name: _known(recognise.HEADS.get(source.name, {}), encoder)},
    )
    encoder["num_heads"] = _heads("num_heads", encoder["width"], num_heads, recorded)
    if style is not None:
        encoder["rpe_style"] = style
    windowed = source.detector is not None
    kind = "learned" if windowed else _pos_kind(entries, metadata, grid)
    encoder["pos_embed"] = kind
    if kind != "learned":
        del entries["pos_embed"]  # equal to the table that the encoder computes
    if grid[0] != grid[1]:
        encoder["grid"] = grid
    norm = "norm.weight" in entries
    # Only these two write encoders without a norm anywhere.
    others = source.name not in (names.PACKAGE, "mmseg") and not windowed
    if others and "fc_norm.weight" not in entries:
        norm = True
    shapes = _encoder_shapes(encoder, norm, channels, grid) | _head_shapes(entries)
    if windowed:
        del shapes["encoder/cls_token"]
        depth, width = encoder["depth"], encoder["width"]
        shapes |= detectron2.table_shapes(entries, depth, width)
    recorded = _recorded(
        {"metadata": metadata.get(names.DECODER_NUM_HEADS)},
        {"config.json": config.get("decoder_num_attention_heads")},
    )
    decoder, left_out = _decoder(source.name, entries, decoder_num_heads, recorded)
    if decoder is not None:
        _drop_decoder_table(entries, grid)
        shapes |= _decoder_shapes(decoder, encoder, channels)
    return Model(entries, shapes, encoder, decoder, grid, left_out)


def width(entries: dict[str, Entry]) -> int:
    """D by the patch embedding; 0 without one."""
    kernel = entries.get("patch_embed.proj.weight")
    return kernel.shape[0] if kernel is not None and kernel.shape else 0


def _encoder_sizes(entries: dict[str, Entry]) -> tuple[dict[str, Any], int]:
    """Width, depth, patch size and the MLP ratio if it is not 4; and channels."""
    kernel = entries.get("patch_embed.proj.weight")
    if kernel is None:
        first_names = ", ".join(name[:60] for name in sorted(entries)[:4]) or "none"
        raise WeightsError(
            f"no patch_embed.proj.weight: no vision transformer of a known source; "
            f"its names begin with {first_names}"
        )
    shape = kernel.shape
    if len(shape) != 4 or shape[2] != shape[3] or not all(shape):
        raise WeightsError(
            f"patch_embed.proj.weight: got shape {list(shape)}, expected [D, C, P, P]"
        )
    width, channels, side = shape[:3]
    sizes: dict[str, Any] = {
        "width": width,
        "depth": _depth(entries, "blocks"),
        "patch_size": side,
    }
    hidden = entries.get("blocks.0.mlp.fc1.weight")
    if hidden is not None and hidden.shape and hidden.shape[0] != 4 * width:
        sizes["mlp_ratio"] = hidden.shape[0] / width
    return sizes, channels


def _depth(entries: dict[str, Entry], blocks: str) -> int:
    """The number of blocks, of which each must have entries."""
    matches = (re.match(rf"{blocks}\.(\d{{1,4}})\.", key) for key in entries)
    numbers = {int(match[1]) for match in matches if match}
    gaps = sorted(set(range(max(numbers, default=0) + 1)) - numbers)
    if gaps:
        raise WeightsError(f"{blocks}.{gaps[0]} is missing ({len(gaps)} blocks are)")
    return len(numbers)


def _grid(
    entries: dict[str, Entry], metadata: dict[str, str], given: tuple[int, int] | None
) -> tuple[int, int]:
    entry = entries.get("pos_embed")
    if entry is None or len(entry.shape) != 3 or entry.shape[1] < 2:
        got = None if entry is None else list(entry.shape)
        raise WeightsError(f"pos_embed: got {got}, expected [1, 1 + N, D]")
    patches = entry.shape[1] - 1
    recorded = names.parse_grid(metadata.get(names.GRID, ""))
    if given and recorded and tuple(given) != recorded:
        raise WeightsError(f"grid={given} given, but recorded is {recorded}")
    grid = given or recorded or names.square_grid(patches)
    if grid is None:
        raise WeightsError(
            f"pos_embed has {patches} patches, no square; give grid=(rows, columns)"
        )
    if grid[0] * grid[1] != patches:
        raise WeightsError(f"pos_embed has {patches} patches, expected grid {grid}")
    return grid[0], grid[1]


def _relative(
    entries: dict[str, Entry], grid: tuple[int, int]
) -> tuple[str | None, int | None]:
    """Returns the `rpe_style` of `vit.make_encoder`, and the heads of its tables.

    Removes from `entries` the index of a table's rows, which PyTorch saves and we
    compute.

    Raises:
      WeightsError: tables whose rows are in another order than ours.
    """
    tables = [key for key in entries if key.endswith(names.BIAS_TABLE)]
    if not tables:
        return None, None
    rows, shape = relative.table_rows(grid), entries[tables[0]].shape
    if len(shape) != 2 or shape[0] != rows:
        raise WeightsError(
            f"{tables[0]}: got shape {list(shape)}, expected [{rows}, heads] for "
            f"{grid[0]}x{grid[1]} patches and a class token"
        )
    expected = relative.index(grid)
    for key in [key for key in entries if key.endswith(names.BIAS_INDEX)]:
        if not np.array_equal(entries.pop(key).read(), expected):
            raise WeightsError(
                f"{key} is not the order of rows that this package reads"
            )
    own = {key.removeprefix("blocks.0.") for key in entries}
    scaled, fused = "gamma_1" in own, "attn.qkv.bias" in own
    styles = ("qv_bias", "fused", "v2023", "dense")
    return styles[2 * scaled + fused], shape[1]


def _pos_kind(
    entries: dict[str, Entry], metadata: dict[str, str], grid: tuple[int, int]
) -> str:
    if metadata.get("pos_embed", "").startswith("learned"):
        return "learned"
    return recognise.pos_kind(entries, grid)


def _known(table: dict[tuple[int, int], int], sizes: dict[str, Any]) -> int | None:
    return table.get((sizes["width"], sizes["depth"]))


def _recorded(*records: dict[str, Any]) -> dict[str, int]:
    """Returns the head counts by the record that has them."""
    counts = {}
    for record in records:
        for where, value in record.items():
            if value is None:
                continue
            if not re.fullmatch(r"[1-9]\d{0,3}", str(value)):
                raise WeightsError(f"{where} has a head count of {short(value)}")
            counts[where] = int(value)
    return counts


def _heads(what: str, width: int, given: int | None, recorded: dict[str, int]) -> int:
    for where, value in recorded.items():
        if given is not None and given != value:
            raise WeightsError(
                f"{what}={given} given, but it has {value} heads ({where}); the shapes "
                "agree and the function does not: leave it out"
            )
    heads = given if given is not None else next(iter(recorded.values()), None)
    if heads is None:
        raise WeightsError(
            f"the number of heads is not recorded in it and cannot be inferred; give "
            f"{what}, a divisor of the width {width} (timm and DeiT have width / 64)"
        )
    if heads < 1 or width % heads:
        raise WeightsError(f"{what}={heads} does not divide the width {width}")
    return heads


def _shapes_of(module: Any, part: str, *args: Any, **kwargs: Any) -> Shapes:
    """Shapes of a module's parameters by our names, without computing any."""

    def init(key: jax.Array, *args: jax.Array) -> Any:
        return module.init(key, *args, **kwargs)["params"]

    key = jax.eval_shape(jax.random.key, 0)
    tree = jax.eval_shape(init, key, *args)
    return {f"{part}/{name}": x.shape for name, x in trees.flatten(tree).items()}


def _encoder_shapes(
    encoder: dict[str, Any], final_norm: bool, channels: int, grid: Any
) -> Shapes:
    fields = {k: v for k, v in encoder.items() if k != "grid"}
    module = vit.make_encoder(**fields, final_norm=final_norm)
    side = encoder["patch_size"]
    shape = (1, grid[0] * side, grid[1] * side, channels)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _shapes_of(module, "encoder", image)


def _head_shapes(entries: dict[str, Entry]) -> Shapes:
    """Returns the shapes of a classifier's linear layers and the norms before them."""
    width = entries["patch_embed.proj.weight"].shape[0]
    shapes: Shapes = {}
    heads = (("head", "fc_norm", "head"), ("head_dist", "dist_norm", "head_dist"))
    for part, norm, linear in heads:
        if f"{norm}.weight" in entries:
            shapes |= {f"{part}/fc_norm/{leaf}": (width,) for leaf in ("scale", "bias")}
        entry = entries.get(f"{linear}.weight")
        if entry is not None:
            classes = entry.shape[0] if entry.shape else 0
            shapes[f"{part}/fc/kernel"] = (width, classes)
            shapes[f"{part}/fc/bias"] = (classes,)
    return shapes


def _decoder(
    source: str, entries: dict[str, Entry], given: int | None, recorded: dict[str, int]
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Returns the decoder's sizes; or None and its keys, if heads are unknown.

    Such keys are removed from `entries`.
    """
    embed = entries.get("decoder_embed.weight")
    if embed is None:
        return None, ()
    if len(embed.shape) != 2:
        raise WeightsError(
            f"decoder_embed.weight: got shape {list(embed.shape)}, expected [E, D]"
        )
    width, depth = embed.shape[0], _depth(entries, "decoder_blocks")
    if source in recognise.HEADS and (width, depth) in recognise.DECODER_HEADS:
        recorded = {**recorded, source: recognise.DECODER_HEADS[width, depth]}
    if given is None and not recorded:
        keys = [k for k in entries if k == "mask_token" or k.startswith("decoder_")]
        for key in keys:
            del entries[key]
        return None, tuple(keys)
    heads = _heads("decoder_num_heads", width, given, recorded)
    return {"width": width, "depth": depth, "num_heads": heads}, ()


def _drop_decoder_table(entries: dict[str, Entry], grid: tuple[int, int]) -> None:
    """Removes the decoder's position table, which must be the one of our decoder."""
    entry = entries.pop(names.DECODER_POS_EMBED, None)
    if entry is not None and not recognise.equals_table(entry.read(), grid, "sincos"):
        raise WeightsError(
            f"{names.DECODER_POS_EMBED} is not the fixed sin-cos table that this "
            "package's decoder adds"
        )


def _decoder_shapes(
    decoder: dict[str, Any], encoder: dict[str, Any], channels: int
) -> Shapes:
    module = mae_decoder.make_decoder(**decoder)
    latent = jax.ShapeDtypeStruct((1, 2, encoder["width"]), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    patch_dim = encoder["patch_size"] ** 2 * channels
    return _shapes_of(module, "decoder", latent, ids, grid=(2, 2), patch_dim=patch_dim)
