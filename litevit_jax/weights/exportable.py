"""The form of a vision transformer that is exported: parameters, sizes, function."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax import trees
from litevit_jax.models import layers, vit
from litevit_jax.weights import positions

# Parameters of a classifier's head that other programs can hold.
_HEAD = ("head/fc_norm/scale", "head/fc_norm/bias", "head/fc/kernel", "head/fc/bias")

Arrays = dict[str, np.ndarray]


def require(package: str) -> Any:
    """Imports a package of the extra 'export'.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this format needs the Python package {error.name!r}, which is not "
            'installed: pip install -e ".[export]"'
        ) from None


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder, with a classifier's head if it has one.

    Attributes:
      params: 'encoder/blocks_0/attn/qkv/kernel' -> float32 array; names of
        'encoder' and 'head'.
      encoder: the module; it computes in float32.
      image_size: height and width in pixels.
      channels: C.
      pool: 'avg' or 'cls' where a head reads pooled tokens, else None.
      notes: further facts about the parameters, as text.
    """

    params: Arrays
    encoder: vit.Encoder
    image_size: tuple[int, int]
    channels: int
    pool: str | None
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def output(self) -> str:
        """The output: logits `[B, K]`, features `[B, D]` or tokens `[B, T, D]`."""
        if self.pool is None:
            return "tokens"
        return "logits" if "head/fc/kernel" in self.params else "features"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        shape = (1, *self.image_size, self.channels)
        return layers.grid_of(shape, self.encoder.patch_size)

    @property
    def num_classes(self) -> int:
        """K; 0 without a classifier."""
        kernel = self.params.get("head/fc/kernel")
        return 0 if kernel is None else kernel.shape[1]

    @property
    def pos_table(self) -> np.ndarray:
        """Position embeddings `[1, 1 + N, D]`, learned or fixed, cls first."""
        if "encoder/pos_embed" in self.params:
            return self.params["encoder/pos_embed"]
        order = self.encoder.pos_embed
        return layers.sincos_table(self.grid, self.encoder.width, order)[None]

    @property
    def num_parameters(self) -> int:
        """The number of parameters, a fixed position table included."""
        count = sum(x.size for x in self.params.values())
        learned = "encoder/pos_embed" in self.params
        return count + (0 if learned else self.pos_table.size)

    def without_head(self) -> Model:
        """The encoder alone; its output is tokens."""
        params = {k: v for k, v in self.params.items() if k.startswith("encoder/")}
        return dataclasses.replace(self, params=params, pool=None)

    def without_classifier(self) -> Model:
        """Removes the last linear layer; its input becomes the output."""
        params = {k: v for k, v in self.params.items() if not k.startswith("head/fc/")}
        pool = self.pool if "head/fc_norm/scale" in params else None
        return dataclasses.replace(self, params=params, pool=pool)

    def resized(self, image_size: tuple[int, int]) -> Model:
        """The model for images of another size; learned positions are resized.

        Raises:
          ValueError: tables of relative positions would have fewer rows or columns.
        """
        other = dataclasses.replace(self, image_size=image_size)
        if other.grid == self.grid:
            return other
        params = dict(self.params)
        if "encoder/pos_embed" in params:
            table = positions.resize(self.pos_table, self.grid, other.grid)
            params["encoder/pos_embed"] = table
        for name in params:
            if name.endswith("/relative_position_bias_table"):
                table = positions.stretch_bias(params[name], self.grid, other.grid)
                params[name] = table
        return dataclasses.replace(other, params=params)

    def apply(self, image: jax.Array) -> jax.Array:
        """The output for normalised images `[B, H, W, C]`, float32."""
        return self.with_params(self.params, image)

    def with_params(self, flat: Arrays, image: jax.Array) -> jax.Array:
        """Runs `apply` with parameters as an argument: jit inlines no arrays."""
        params = trees.nest(flat)
        tokens, _ = self.encoder.apply({"params": params["encoder"]}, image)
        if self.pool is None:
            return tokens
        x, head = vit.pool_tokens(tokens, self.pool), params.get("head", {})
        if "fc_norm" in head:
            x = layers.LayerNorm("float32").apply({"params": head["fc_norm"]}, x)
        if "fc" in head:
            x = x @ head["fc"]["kernel"] + head["fc"]["bias"]
        return jnp.asarray(x)


def make(
    params: Arrays,
    encoder: dict[str, Any],
    *,
    image_size: tuple[int, int],
    pool: str | None = None,
    notes: dict[str, str] | None = None,
) -> Model:
    """Builds a model from the parameters of 'encoder' and 'head' in `params`.

    Args:
      params: as in `Model`; other names (a decoder's, ...) are left out.
      encoder: sizes, as `vit.make_encoder` takes them.
      image_size: height and width in pixels.
      pool: as in `Model`; None: 'avg' if the head has a norm, 'cls' if it has none.
      notes: as in `Model`.

    Raises:
      ValueError: parameters are missing, unknown or of other shapes than the
        encoder's, or a head that has no counterpart elsewhere.
    """
    taken = {k: v for k, v in params.items() if k.split("/")[0] in ("encoder", "head")}
    fields: dict[str, Any] = {k: v for k, v in encoder.items() if v is not None}
    fields |= {"final_norm": "encoder/norm/scale" in taken, "drop_path": 0.0}
    fields["dtype"] = "float32"
    if "encoder/pos_embed" in taken:
        fields["pos_embed"] = "learned"
    module = vit.make_encoder(**fields)
    kernel = taken.get("encoder/patch_embed/kernel", np.zeros((0, 0)))
    channels = kernel.shape[0] // module.patch_size**2
    if pool is None and any(name.startswith("head/") for name in taken):
        pool = "avg" if "head/fc_norm/scale" in taken else "cls"
    model = Model(taken, module, image_size, channels, pool, notes or {})
    _check(model)
    return model


def _check(model: Model) -> None:
    image = jax.ShapeDtypeStruct((1, *model.image_size, max(model.channels, 1)), "f4")
    key = jax.eval_shape(jax.random.key, 0)
    wanted = jax.eval_shape(model.encoder.init, key, image)["params"]
    shapes = {f"encoder/{k}": x.shape for k, x in trees.flatten(wanted).items()}
    shapes |= _head_shapes(model)
    problems = []
    for name in sorted(shapes.keys() | model.params.keys()):
        got = model.params.get(name)
        if got is None:
            problems.append(f"{name} {list(shapes[name])}: missing")
        elif name not in shapes:
            problems.append(f"{name} {list(got.shape)}: has no counterpart elsewhere")
        elif got.shape != shapes[name]:
            expected = list(shapes[name])
            problems.append(f"{name}: got {list(got.shape)}, expected {expected}")
    if problems:
        raise ValueError(
            f"the parameters are not those of a plain vision transformer of images "
            f"{model.image_size[0]}x{model.image_size[1]} ({len(problems)} "
            "differences):\n  " + "\n  ".join(problems[:10])
        )


def _head_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    width, classes = model.encoder.width, model.num_classes
    sizes = ((width,), (width,), (width, classes), (classes,))
    parts = {name.split("/")[1] for name in model.params if name.startswith("head/")}
    shapes = dict(zip(_HEAD, sizes, strict=True))
    return {name: s for name, s in shapes.items() if name.split("/")[1] in parts}


def fixed_images(model: Model, count: int = 2) -> np.ndarray:
    """Images `[B, H, W, C]` of normal noise, the same at every call."""
    shape = (count, *model.image_size, model.channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def count_macs(model: Model) -> int:
    """Multiply-accumulates of all products for one image (recipes 1.7)."""
    width, (rows, cols) = model.encoder.width, model.grid
    hidden = int(width * model.encoder.mlp_ratio)
    tokens = 1 + rows * cols
    linear = tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * tokens * tokens * width
    patches = math.prod(model.image_size) * model.channels * width
    head = width * model.num_classes
    return patches + model.encoder.depth * (linear + attention) + head
