"""Necks and heads that label every pixel, on the patch tokens of an encoder.

The reference is mmsegmentation with the authors' neck (arXiv 2205.14443's encoders;
Semantic FPN is arXiv 1901.02446); the linear heads are DINOv2's (arXiv 2304.07193).
Maps are `[B, h, w, D]`. BatchNorm takes its statistics over all pixels of the global
batch, in float32; convolutions compute in `dtype`.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import convolutions, heads, layers, ops

HEADS = ("linear", "linear_each", "linear_ms", "sem_fpn")
_LAST_BLOCKS = 4  # that 'linear_ms' reads
_CLASS_STD = 0.01  # of the last layer's initial kernel


def blocks_read(head: str, depth: int, given: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Returns the numbers of the blocks that a head reads, counted from 1.

    Args:
      head: one of `HEADS`.
      depth: blocks of the encoder.
      given: blocks to read instead of the usual ones, the last one is also -1; (): the
        usual ones, which of twelve are 4, 6, 8 and 12 for 'sem_fpn', the last four for
        'linear_ms' and the last one for 'linear'; 'linear_each' always reads all.

    Raises:
      ValueError: an unknown head, or blocks that it cannot read.
    """
    choices.check("head", head, HEADS)
    if not given and head == "sem_fpn":
        return tuple(max(1, round(depth * part / 6)) for part in (2, 3, 4, 6))
    if not given:
        counts = {"linear_ms": min(_LAST_BLOCKS, depth), "linear_each": depth}
        count = counts.get(head, 1)
        return tuple(range(depth - count + 1, depth + 1))
    counts = {"linear": 1, "linear_each": depth, "sem_fpn": 4}
    count = counts.get(head, len(given))
    blocks = tuple(depth + 1 + block if block < 0 else block for block in given)
    if len(blocks) != count or not all(1 <= block <= depth for block in blocks):
        raise ValueError(
            f"segmentation: out_blocks={tuple(given)} for head={head!r}; expected "
            f"{count} block(s) from 1 to {depth} (the last is also -1), or () for the "
            "usual ones"
        )
    return blocks


def make_head(
    *, head: str, num_classes: int, channels: int, dropout: float, dtype: str
) -> LinearHead | LinearEach | SemanticFpn:
    """Builds the head, which maps what it reads to logits of each class.

    Args:
      head: one of `HEADS`.
      num_classes: K.
      channels: of the convolutions of 'sem_fpn'.
      dropout: share of the channels that are dropped before the last layer.
      dtype: of the convolutions.

    Raises:
      ValueError: an unknown head, or a value out of range.
    """
    choices.check("head", head, HEADS)
    if num_classes < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"segmentation: num_classes={num_classes}, dropout={dropout}; expected at "
            "least 1 class and 0 <= dropout < 1"
        )
    if head == "linear_each":
        return LinearEach(num_classes, dropout)
    if head != "sem_fpn":
        return LinearHead(num_classes, dropout)
    return SemanticFpn(num_classes, channels, dropout, dtype)


def as_map(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Lays patch tokens out: `[B, 1 + N, D]` without the class token to `[B, h, w, D]`.

    Args:
      tokens: the class token first.
      grid: rows and columns of patches.
    """
    return tokens[:, 1:].reshape(tokens.shape[0], *grid, tokens.shape[-1])


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps `[B, h, w, C]` bilinearly to `size` (rows, columns).

    Pixel centres lie at .5 and nothing is antialiased: PyTorch's `interpolate` with
    `align_corners=False`.
    """
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def drop_channels(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Drops whole channels of maps `[B, h, w, C]`, rescaling the kept ones.

    Args:
      x: the maps.
      keys: one typed key per example `[B]`.
      rate: probability of dropping.
    """

    def kept(key):
        return jax.random.bernoulli(key, 1 - rate, x.shape[-1:])

    mask = jax.vmap(kept)(keys)[:, None, None]
    return jnp.where(mask, x / (1 - rate), 0).astype(x.dtype)


class Neck(nn.Module):
    """Turns four maps of one size into maps of 4, 2, 1 and 1/2 times that size.

    The first map becomes the largest. Kernels start as PyTorch's convolutions do.

    Attributes:
      channels: C of every result.
      dtype: of the products.
    """

    channels: int
    dtype: str

    @nn.compact
    def __call__(self, maps: list[jax.Array], *, train: bool) -> list[jax.Array]:
        """Maps four `[B, h, w, D]` to `[B, 4h, 4w, C]` .. `[B, h/2, w/2, C]`.

        Raises:
          ValueError: h or w is odd.
        """
        first, second, third, last = maps
        rows, cols = last.shape[1:3]
        if rows % 2 or cols % 2:
            raise ValueError(
                f"sem_fpn halves maps of {rows} x {cols} patches; expected even "
                "numbers: give images whose sides are multiples of two patches "
                "(--config.data.image_size)"
            )
        enlarge = functools.partial(convolutions.Enlarge, self.channels, self.dtype)
        x = _normed(enlarge(name="up4_first")(first), "up4_norm", self.dtype, train)
        return [
            enlarge(name="up4_last")(ops.gelu(x)),
            enlarge(name="up2")(second),
            self._linear("same", third),
            nn.max_pool(self._linear("down2", last), (2, 2), (2, 2)),
        ]

    def _linear(self, name, x):
        init = layers.uniform(1 / math.sqrt(x.shape[-1]))
        return layers.Linear(self.channels, self.dtype, init, init, name=name)(x)


class SemanticFpn(nn.Module):
    """The head of Semantic FPN: convolves and enlarges each map, and adds them up.

    Attributes:
      num_classes: K.
      channels: of the convolutions.
      dropout: share of the channels of the sum that are dropped in training.
      dtype: of the convolutions; the logits are float32.
    """

    num_classes: int
    channels: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], keys: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps `[B, h, w, C]`, each half as large as the one before, to `[B, h, w, K]`.

        `keys [B]` draw the dropped channels; None drops none.
        """
        total = None
        for level, x in enumerate(maps):
            for step in range(max(level, 1)):
                name = f"{level}_{step}"
                x = nn.Conv(
                    self.channels,
                    (3, 3),
                    padding=1,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=nn.initializers.variance_scaling(
                        2.0, "fan_out", "normal"
                    ),
                    name=f"conv_{name}",
                )(x)
                x = nn.relu(_normed(x, f"norm_{name}", self.dtype, train))
                if level:
                    x = resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            total = x if total is None else total + x
        return _classify(total, self.num_classes, self.dropout if train else 0.0, keys)


class LinearHead(nn.Module):
    """BatchNorm and a linear layer on each patch, of one map or several side by side.

    Attributes:
      num_classes: K.
      dropout: share of the channels that are dropped in training.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], keys: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps `[B, h, w, D]`, one or several, to `[B, h, w, K]`; see `SemanticFpn`."""
        x = jnp.concatenate(maps, axis=-1)
        x = _normed(x, "norm", "float32", train)
        return _classify(x, self.num_classes, self.dropout if train else 0.0, keys)


class LinearEach(nn.Module):
    """A linear head of its own on each map; the heads share nothing.

    Attributes:
      num_classes: K.
      dropout: see `LinearHead`.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], keys: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps L maps `[B, h, w, D]` to `[B, h, w, L, K]`; see `SemanticFpn`."""
        logits = [
            LinearHead(self.num_classes, self.dropout, name=f"block_{number:02d}")(
                [x], keys, train=train
            )
            for number, x in enumerate(maps)
        ]
        return jnp.stack(logits, axis=-2)


def _normed(x, name, dtype, train):
    norm = heads.BatchNorm(1e-5, affine=True, name=name)
    return norm(x.astype(jnp.float32), train=train).astype(dtype)


def _classify(x, num_classes, dropout, keys):
    """Computes float32 logits of each pixel."""
    if dropout and keys is not None:
        x = drop_channels(x, keys, dropout)
    init = layers.normal(_CLASS_STD)
    return layers.Linear(num_classes, "float32", init, name="fc")(x)
