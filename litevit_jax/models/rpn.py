"""Region proposals: anchors, the head that scores and moves them, and a selection.

Faster R-CNN (arXiv 1506.01497) on a pyramid, as in detectron2's ViTDet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax.models import boxes as box_ops
from litevit_jax.models import convolutions, layers, nms, ranking

RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors of one pixel, in this order
_STD = 0.01  # of all initial kernels


def anchors(
    grid: tuple[int, int], stride: float, size: float, ratios: tuple = RATIOS
) -> np.ndarray:
    """The anchors of a level `[h * w * len(ratios), 4]`: row, column, then ratio.

    They lie around the outer corner of each pixel's first pixel of the image, not its
    centre, as in detectron2, and may reach over the image's edge.

    Args:
      grid: rows and columns of the map.
      stride: pixels of the image on one side of a pixel of the map.
      size: root of the area.
      ratios: heights over widths.
    """
    widths = [math.sqrt(size**2 / ratio) for ratio in ratios]
    sides = [
        (width, ratio * width) for width, ratio in zip(widths, ratios, strict=True)
    ]
    around = np.asarray([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides], np.float32)
    y, x = np.indices(grid, np.float32) * np.float32(stride)
    corner = np.stack([x, y, x, y], axis=-1)
    return (corner[:, :, None] + around).reshape(-1, 4)


class Head(nn.Module):
    """Scores each anchor and moves it; one head for all levels.

    Attributes:
      convs: number of convolutions before the two outputs.
      dtype: of the products; results are float32.
      ratios: anchors of a pixel.
    """

    convs: int
    dtype: str
    ratios: int = len(RATIOS)

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> tuple[list[jax.Array], ...]:
        """Returns logits `[B, N]` and offsets `[B, N, 4]` of each level's anchors."""

        def conv(features, side, name):
            init = layers.normal(_STD)
            make = convolutions.conv
            return make(features, side, self.dtype, name=name, init=init, bias=True)

        channels = maps[0].shape[-1]
        hidden = [conv(channels, 3, f"conv_{i}") for i in range(self.convs)]
        to_logits = conv(self.ratios, 1, "logits")
        to_offsets = conv(4 * self.ratios, 1, "offsets")
        logits, offsets = [], []
        for x in maps:
            for layer in hidden:
                x = nn.relu(layer(x))
            batch = x.shape[0]
            logits.append(to_logits(x).reshape(batch, -1).astype(jnp.float32))
            offsets.append(to_offsets(x).reshape(batch, -1, 4).astype(jnp.float32))
        return logits, offsets


class Proposals(NamedTuple):
    """The best boxes of an image, by falling logit.

    Attributes:
      boxes: `[P, 4]`, within the image.
      logits: `[P]`.
      valid: bool `[P]`; the others are padding.
    """

    boxes: jax.Array
    logits: jax.Array
    valid: jax.Array


def select(
    boxes: list[jax.Array],
    logits: list[jax.Array],
    size: jax.Array,
    *,
    per_level: int,
    count: int,
    threshold: float,
) -> Proposals:
    """Selects proposals of one image; `jax.vmap` does a batch.

    Of each level the best `per_level` are cut to the image, and empty ones and those
    that overlap a better one of their level are dropped; the best of all levels remain.
    No gradient passes.

    Args:
      boxes: decoded boxes of each level `[N, 4]`.
      logits: of each level `[N]`.
      size: rows and columns `[2]` that are image, the rest is padding.
      per_level: how many of a level take part.
      count: P.
      threshold: overlaps greater than it suppress.
    """
    boxes, logits = jax.lax.stop_gradient((boxes, logits))
    most = min(per_level, max(len(x) for x in logits))
    best = []
    for level_boxes, level_logits in zip(boxes, logits, strict=True):
        taken = min(most, len(level_logits))
        score, index = ranking.largest(level_logits, taken)
        clipped = box_ops.clip(level_boxes[index], size)
        padding = (0, most - taken)  # an empty box is not valid
        best.append((jnp.pad(clipped, (padding, (0, 0))), jnp.pad(score, padding)))
    stacked, scores = (jnp.stack(x) for x in zip(*best, strict=True))
    valid = box_ops.has_area(stacked)

    def keep(boxes, scores, valid):
        return nms.kept(boxes, scores, threshold, valid=valid)

    kept = jax.vmap(keep)(stacked, scores, valid).reshape(-1)
    stacked, scores = stacked.reshape(-1, 4), scores.reshape(-1)
    ranked, index = ranking.largest(jnp.where(kept, scores, -jnp.inf), count)
    valid = ranked > -jnp.inf
    return Proposals(
        jnp.where(valid[:, None], stacked[index], 0), jnp.where(valid, ranked, 0), valid
    )
