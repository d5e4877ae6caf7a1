"""Parts that every transformer of the package is built from.

Sizes and initial values are those of arXiv 2205.14443 (recipes 1.1 to 1.4).
Parameter names are those of timm's vision transformers, because converters,
freeze patterns and weight-decay masks match on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax.models import relative
from litevit_jax.models.attention import attend
from litevit_jax.models.ops import gelu, linear, normalize, project_heads

INIT_STYLES = ("mae", "classifier", "moco", "rpe")
POS_EMBEDS = (
    "sincos",
    "sincos_moco",
    "learned",
    "learned_sincos",
    "learned_sincos_moco",
)

Initializer = Callable[..., jax.Array]
Intermediates = dict[str, jax.Array]


def uniform(bound: float) -> Initializer:
    """An initializer drawing from U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(stddev: float) -> Initializer:
    """An initializer drawing from N(0, stddev^2), not truncated.

    timm truncates its std 0.02 normal at +-2, which is 100 standard deviations.
    """
    return nn.initializers.normal(stddev)


def xavier(fan_in: int, fan_out: int) -> Initializer:
    """The Xavier uniform initializer, U(+-sqrt(6 / (fan_in + fan_out)))."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def dense_init(style: str, fan_in: int, fan_out: int) -> Initializer:
    """The initializer of a linear layer's kernel `[fan_in, fan_out]`."""
    if style in ("classifier", "rpe"):
        return normal(0.02)
    return xavier(fan_in, fan_out)


def branch_init(style: str, fan_in: int, fan_out: int, block: int) -> Initializer:
    """The kernel initializer of a residual branch's last layer; `block` counts from 0.

    'rpe' divides it by sqrt(2 i) in the i-th block, counted from 1 (recipes 1.4).
    """
    if style == "rpe":
        return normal(0.02 / math.sqrt(2 * (block + 1)))
    return dense_init(style, fan_in, fan_out)


def patch_inits(style: str, patch_dim: int, width: int) -> tuple[Initializer, ...]:
    """The initializers of the patch embedding's kernel and bias.

    MAE leaves the bias of the convolution at PyTorch's default, which is uniform
    and not zero; the classifier leaves the kernel at its default too.
    """
    if style == "rpe":
        return normal(0.02), nn.initializers.zeros
    torch_default = uniform(1 / math.sqrt(patch_dim))
    kernel = torch_default if style == "classifier" else xavier(patch_dim, width)
    bias = nn.initializers.zeros if style == "moco" else torch_default
    return kernel, bias


def cls_init(style: str) -> Initializer:
    """The initializer of the class token."""
    return normal(1e-6 if style == "moco" else 0.02)


def patchify(image: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images `[B, H, W, C]` into flat patches `[B, N, P*P*C]`.

    Patches are in row-major order; the pixels of one are ordered (row, column,
    channel).

    Raises:
      ValueError: the height or width is not a multiple of the patch size.
    """
    rows, cols = grid_of(image.shape, patch_size)
    batch, channels = image.shape[0], image.shape[-1]
    shape = (batch, rows, patch_size, cols, patch_size, channels)
    patches = image.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows * cols, patch_size**2 * channels)


def grid_of(image_shape: tuple[int, ...], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in images of shape `[B, H, W, C]`.

    Raises:
      ValueError: not four axes, or a side that patches do not divide.
    """
    if len(image_shape) != 4:
        raise ValueError(f"image: got shape {image_shape}, expected [B, H, W, C]")
    height, width = image_shape[1:3]
    if height % patch_size or width % patch_size or not height * width:
        raise ValueError(
            f"image of height {height} and width {width} does not divide into "
            f"patches; expected multiples of patch_size={patch_size}"
        )
    return height // patch_size, width // patch_size


def take_tokens(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows `ids [B, M]` of `tokens [B, N, D]`, in the order of `ids`: `[B, M, D]`."""
    # Ids are permutations by construction: no clamping or wrapping of indices.
    return jnp.take_along_axis(tokens, ids[..., None], axis=1, mode="promise_in_bounds")


def sincos_table(grid: tuple[int, int], width: int, order: str) -> np.ndarray:
    """The fixed 2-D position embedding, `[1 + N, D]`; row 0 (cls) is zero.

    Args:
      grid: rows and columns of patches.
      width: D, a multiple of 4.
      order: 'sincos' has the column in the first half of the channels, as MAE;
        'sincos_moco' has the row in it, as MoCo v3 (recipes 1.2).
    """
    count = width // 4
    omega = 10000.0 ** (-np.arange(count) / count)
    row, col = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    first, second = (row, col) if order == "sincos_moco" else (col, row)
    angles = [np.outer(axis, omega) for axis in (first, second)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return np.pad(table, ((1, 0), (0, 0))).astype(np.float32)


def drop_path(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Drops whole examples of a residual branch `[B, T, D]`, rescaling the kept.

    Args:
      x: the branch.
      keys: one typed key per example `[B]`, so that dropping does not depend on the
        device or the slice that an example is in.
      rate: probability of dropping.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    return jnp.where(kept[:, None, None], x / (1 - rate), 0).astype(x.dtype)


class LayerNorm(nn.Module):
    """LayerNorm with parameters `scale` and `bias`; the result is `dtype`."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to the same shape."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalize(x.astype(self.dtype), scale, bias)


class Linear(nn.Module):
    """A linear layer whose parameters are float32 and whose result is `dtype`."""

    features: int
    dtype: str
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        """Maps `[..., D]` to `[..., features]`, or only to its `columns`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        return linear(x.astype(self.dtype), kernel[:, columns], bias[columns])


def dense(name: str, style: str, sizes: tuple[int, int], dtype: str) -> Linear:
    """A linear layer of `sizes` (in, out) with zero initial bias."""
    return Linear(sizes[1], dtype, dense_init(style, *sizes), name=name)


def patch_embed(style: str, patch_dim: int, width: int, dtype: str) -> Linear:
    """The projection of flat patches `[B, N, P*P*C]` to `[B, N, D]`."""
    inits = patch_inits(style, patch_dim, width)
    return Linear(width, dtype, *inits, name="patch_embed")


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Splits tokens into heads: `[B, T, D] -> [B, A, T, D/A]`."""
    return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


class Qkv(nn.Module):
    """Queries, keys and values from one stored kernel; see `ops.project_heads`."""

    num_heads: int
    dtype: str
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array, first: int, bias: jax.Array | None = None):
        """Projects `[B, T, D]`; a given `bias` `[3 D]` replaces the layer's own."""
        width = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (width, 3 * width))
        if bias is None:
            bias = self.param("bias", nn.initializers.zeros, (3 * width,))
        return project_heads(x.astype(self.dtype), kernel, bias, self.num_heads, first)


class Attention(nn.Module):
    """Multi-head self-attention with one stored kernel for q, k and v.

    Attributes:
      num_heads: A.
      init_style: of the kernels.
      dtype: of the computation.
      block: number of its block, from 0.
      fused_bias: whether q, k and v have one stored bias; else q and v have their
        own, and k has none.
      grid: rows and columns of the patches behind the class token, for a relative
        position bias; None: no bias.
      kernel: one of `attention.CHOICES`.
    """

    num_heads: int
    init_style: str
    dtype: str
    block: int = 0
    fused_bias: bool = True
    grid: tuple[int, int] | None = None
    kernel: str = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, first_query: int = 0
    ) -> tuple[jax.Array, Intermediates]:
        """Maps tokens `[B, T, D]` to `[B, T, D]`, with intermediates by name.

        Tokens before `first_query` are keys and values but no queries: the result has
        the others alone, `[B, T - first_query, D]`.
        """
        width = x.shape[-1]
        q, k, v = self._project(x, first_query)
        scale, bias = (width // self.num_heads) ** -0.5, self._position_bias()
        if bias is not None:
            bias = bias[:, first_query:]
        out = attend(q, k, v, scale, bias, self.kernel)
        out = out.swapaxes(1, 2)  # [B, A, T, E] -> [B, T, A, E]
        logits = jnp.einsum(
            "bhnd,bhmd->bhnm", q * scale, k, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits = logits + bias
        probs = jax.nn.softmax(logits)
        init = branch_init(self.init_style, width, width, self.block)
        out = Linear(width, self.dtype, init, name="proj")(
            out.reshape(*out.shape[:2], width)
        )
        intermediates = {
            "q": q,
            "k": k,
            "v": v,
            "attn_logits": logits,
            "attn_probs": probs,
            "attn": out,
        }
        return out, intermediates

    def _project(self, x, first_query):
        """Queries `[B, A, T - first_query, D/A]`, keys and values `[B, A, T, D/A]`."""
        width = x.shape[-1]
        fan_out = width if self.init_style == "moco" else 3 * width
        kernel_init = dense_init(self.init_style, width, fan_out)
        bias = None if self.fused_bias else self._bias_of_two(width)
        qkv = Qkv(self.num_heads, self.dtype, kernel_init, name="qkv")
        return qkv(x, first_query, bias)

    def _bias_of_two(self, width):
        """The bias `[3 D]` of q, k and v, where k's is always 0."""
        q, v = (
            self.param(name, nn.initializers.zeros, (width,))
            for name in ("q_bias", "v_bias")
        )
        return jnp.concatenate([q, jnp.zeros_like(q), v])

    def _position_bias(self):
        if self.grid is None:
            return None
        shape = (relative.table_rows(self.grid), self.num_heads)
        table = self.param("relative_position_bias_table", nn.initializers.zeros, shape)
        return relative.expand(table, self.grid)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, `[B, T, D]` to `[B, T, D]`."""

    mlp_dim: int
    init_style: str
    dtype: str
    block: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = gelu(dense("fc1", self.init_style, (width, self.mlp_dim), self.dtype)(x))
        init = branch_init(self.init_style, self.mlp_dim, width, self.block)
        return Linear(width, self.dtype, init, name="fc2")(x)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then MLP (recipes 1.1, 1.5).

    Attributes:
      num_heads: A.
      mlp_dim: hidden width of the MLP.
      init_style: of the kernels.
      dtype: of the computation.
      drop_rate: of drop path.
      block: its number in the encoder, from 0, on which initial values may depend.
      fused_bias, grid: as of `Attention`; `attention` is its `kernel`.
      layer_scale: initial factor of each channel in both branches; None: no factor.
      make_attention: what takes the place of `Attention`, and its arguments.
    """

    num_heads: int
    mlp_dim: int
    init_style: str
    dtype: str
    drop_rate: float = 0.0
    block: int = 0
    fused_bias: bool = True
    grid: tuple[int, int] | None = None
    layer_scale: float | None = None
    attention: str = "auto"
    make_attention: Callable[..., nn.Module] = Attention

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop_keys: jax.Array | None = None,
        first_query: int = 0,
    ) -> tuple[jax.Array, Intermediates]:
        """Maps tokens `[B, T, D]` to `[B, T, D]`, with intermediates by name.

        Args:
          x: the residual stream.
          drop_keys: typed keys `[B]`; None keeps every branch.
          first_query: the others attend to the tokens before it, which are dropped
            afterwards; the result has `T - first_query` tokens.
        """
        intermediates = {"in": x}
        intermediates["norm1"] = LayerNorm(self.dtype, name="norm1")(x)
        sizes = (self.num_heads, self.init_style, self.dtype, self.block)
        how = (self.fused_bias, self.grid, self.attention)
        attention = self.make_attention(*sizes, *how, name="attn")
        branch, inside = attention(intermediates["norm1"], first_query)
        branch = self._scaled("gamma_1", branch)
        intermediates |= inside | {"attn": branch}
        x = x[:, first_query:] + self._drop(branch, drop_keys, 0)
        intermediates["norm2"] = LayerNorm(self.dtype, name="norm2")(x)
        mlp = Mlp(self.mlp_dim, self.init_style, self.dtype, self.block, name="mlp")
        intermediates["mlp"] = self._scaled("gamma_2", mlp(intermediates["norm2"]))
        x = x + self._drop(intermediates["mlp"], drop_keys, 1)
        return x, intermediates | {"out": x}

    def _scaled(self, name, branch):
        if self.layer_scale is None:
            return branch
        init = nn.initializers.constant(self.layer_scale)
        gamma = self.param(name, init, (branch.shape[-1],))
        return branch * gamma.astype(branch.dtype)

    def _drop(self, branch, drop_keys, index):
        if drop_keys is None or not self.drop_rate:
            return branch
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(drop_keys)
        return drop_path(branch, keys, self.drop_rate)
