"""Images as bytes, which become floats only where they are read.

A normalised float32 copy of a batch takes four times the memory, and writing and
reading it costs an accelerator more than the arithmetic. Code that reads patches
therefore gathers them as bytes and normalises only those that it needs.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from litevit_jax.models import layers


@flax.struct.dataclass
class Pixels:
    """Images `[B, H, W, C]`, uint8, whose values are (bytes - shift) * scale.

    Attributes:
      bytes: `[B, H, W, C]`.
      shift, scale: of each channel `[C]`.
    """

    bytes: jax.Array
    shift: tuple[float, ...] = flax.struct.field(pytree_node=False)
    scale: tuple[float, ...] = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the images, `[B, H, W, C]`."""
        return self.bytes.shape


def patches(
    image: jax.Array | Pixels, patch_size: int, ids: jax.Array | None = None
) -> jax.Array:
    """Normalised flat patches of images `[B, H, W, C]`, or only those that `ids` names.

    Args:
      image: normalised floats, or bytes as `Pixels`.
      patch_size: P.
      ids: numbers of patches `[B, M]`; None takes all.

    Returns:
      `[B, M, P*P*C]`, without `ids` `[B, N, P*P*C]`; float32 if images are bytes.
    """
    lazy = isinstance(image, Pixels)
    flat = layers.patchify(image.bytes if lazy else image, patch_size)
    if ids is not None:
        flat = layers.take_tokens(flat, ids)
    if not lazy:
        return flat
    count = patch_size**2
    shift = jnp.tile(jnp.asarray(image.shift, jnp.float32), count)
    scale = jnp.tile(jnp.asarray(image.scale, jnp.float32), count)
    return (flat.astype(jnp.float32) - shift) * scale
