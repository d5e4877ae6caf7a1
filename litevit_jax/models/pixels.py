"""Images as bytes, which become floats only where they are read.

A normalised float32 copy of a batch has four times its bytes, and writing and reading
it costs an accelerator more than the arithmetic. What reads patches takes them as
bytes, gathers those it needs, and normalises these.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from litevit_jax.models import layers


@flax.struct.dataclass
class Pixels:
    """Images `[B, H, W, C]`, uint8, that stand for (bytes - shift) * scale.

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
    """Normalised flat patches of images `[B, H, W, C]`, or those that `ids` names.

    Args:
      image: normalised, or bytes that are not yet.
      patch_size: P.
      ids: of patches `[B, M]`; None takes all.

    Returns:
      `[B, M, P*P*C]` (of all patches `[B, N, P*P*C]`), float32 of bytes.
    """
    lazy = isinstance(image, Pixels)
    found = layers.patchify(image.bytes if lazy else image, patch_size)
    if ids is not None:
        found = layers.take_tokens(found, ids)
    if not lazy:
        return found
    count = patch_size**2
    shift = jnp.tile(jnp.asarray(image.shift, jnp.float32), count)
    scale = jnp.tile(jnp.asarray(image.scale, jnp.float32), count)
    return (found.astype(jnp.float32) - shift) * scale
