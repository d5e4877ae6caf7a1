"""Object detection and instance masks: ViTDet Mask R-CNN (arXiv 2203.16527).

The detector of arXiv 2205.14443's authors on COCO, as in detectron2; the losses are
those of `detection_losses`, added up.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import detector as detectors
from litevit_jax.objectives import base, detection_losses, health

_RULES = tuple(field.name for field in dataclasses.fields(detectors.Rules))


def make(
    *,
    encoder: dict[str, Any],
    num_classes: int = base.NUM_CLASSES,
    image_size: tuple[int, int] = base.IMAGE_SIZE,
    masks: bool = True,
    channels: int = 256,
    rpn_convs: int = 2,
    box_convs: int = 4,
    box_hidden: int = 1024,
    mask_convs: int = 4,
    anchor_sizes: tuple[float, ...] = (2, 4, 8, 16, 32),
    pooled: tuple[int, int] = (7, 14),
    rules: dict[str, Any] | None = None,
    drop_path: float = 0.0,
    dtype: str = "auto",
) -> Detect:
    """Builds the objective.

    Args:
      encoder: arguments of `vitdet.make_encoder` but `grid`, and `pos_embed`, which
        is 'learned_sincos': a trained table that starts from sines and cosines.
      num_classes: K.
      image_size: rows and columns of the images; the encoder's `grid` follows.
      masks: whether each object's mask is predicted, too.
      channels, rpn_convs, box_convs, box_hidden, mask_convs, anchor_sizes, pooled: see
        `models.detector.make`.
      rules: fields of `models.detector.Rules` that differ from its defaults.
      drop_path: rate of the encoder's last block.
      dtype: of encoder and convolutions; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, an unknown choice, or an encoder of other
        relative positions.
    """
    for name in rules or {}:
        choices.check("field of objective.rules", name, _RULES)
    detector = detectors.make(
        encoder={"drop_path": drop_path, **_encoder(encoder, tuple(image_size))},
        num_classes=num_classes,
        masks=masks,
        channels=channels,
        rpn_convs=rpn_convs,
        box_convs=box_convs,
        box_hidden=box_hidden,
        mask_convs=mask_convs,
        anchor_sizes=tuple(anchor_sizes),
        pooled=tuple(pooled),
        dtype=base.compute_dtype(dtype),
        **(rules or {}),
    )
    return Detect(detector)


def _encoder(block: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns the arguments of `vitdet.make_encoder` for the block of a config."""
    block = dict(block)
    choices.check(
        "objective.encoder.pos_embed",
        block.pop("pos_embed", "learned_sincos"),
        ("learned_sincos",),
    )
    if block.pop("rpe_style", "none") != "none":
        raise ValueError(
            "objective.encoder has a table of relative positions for all pairs of "
            "patches (rpe_style); a detector's encoder has tables by rows and columns, "
            "which start anew: give an encoder without such a table"
        )
    for unused in ("final_norm", "init_style"):  # there is no final norm to choose
        block.pop(unused, None)
    side = detectors.vitdet.make_encoder(**block, grid=(1, 1)).patch_size
    grid = (image_size[0] // side, image_size[1] // side)
    if min(grid) < 2 or (grid[0] * side, grid[1] * side) != image_size:
        raise ValueError(
            f"images of {image_size[0]}x{image_size[1]} pixels for patches of {side}: "
            f"expected a multiple of {side}, {2 * side} or more, on both sides; set "
            "data.image_size"
        )
    return block | {"grid": grid}


@dataclasses.dataclass(frozen=True)
class Detect(base.Objective):
    """The sum of the losses of proposals, boxes and masks.

    Attributes:
      detector: the modules, and how many boxes each step takes.
    """

    detector: detectors.Detector

    @property
    def annotations(self) -> tuple[str, ...]:
        """The objects of every image, or their boxes alone."""
        return ("boxes",) if self.detector.mask_head is None else ("objects",)

    @property
    def needs_whole_batch(self) -> str:
        """A reason: the losses' divisors are counts over the batch."""
        return "its losses are divided by the boxes that the whole batch samples"

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'neck', 'rpn', 'box_head', 'mask_head'}."""
        return base.Variables(self.detector.init(key, batch["image"]), {}, {})

    def loss(self, params, model_state, teacher, batch, key):
        """Adds up the losses; see `base.Objective` and `detection_losses.losses`.

        `batch` has 'boxes' float32 `[B, M, 4]` (left, top, right, bottom in pixels),
        'classes' int32 `[B, M]`, 'valid' bool `[B, M]` (the others are padding), 'size'
        `[B, 2]`, the rows and columns that are image, and for a mask head 'masks' uint8
        `[B, M, m * m / 8]`, the bits of each object's mask, laid over its box.

        Metrics are 'loss' and its parts: 'loss_objectness', 'loss_anchors',
        'loss_classes', 'loss_boxes' and, with a mask head, 'loss_masks'.
        """
        del teacher
        keys = base.example_keys(key, batch)
        draw_keys, drop_keys = (
            jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in (0, 1)
        )
        if self.detector.mask_head is not None:
            batch = {**batch, "masks": unpacked(batch["masks"])}
        each = detection_losses.losses(
            self.detector,
            params,
            batch,
            detection_losses.draw(self.detector, draw_keys, batch),
            drop_keys,
        )
        total = jnp.sum(jnp.stack(list(each.values())))
        metrics = {f"loss_{name}": value for name, value in each.items()}
        return total, ({"loss": total, **metrics}, model_state)

    def health(self, params, model_state, teacher, batch, key):
        """Health statistics of the mean patch token."""
        del model_state, teacher, key
        return health.of_maps(self.detector.encoder, params["encoder"], batch)

    def predict(self, params, model_state, batch):
        """Returns what `Detector.detect` does, computed in float32.

        `batch` has 'size' `[B, 2]`, the rows and columns that are image.
        """
        del model_state
        detector = self.detector
        parts = ("neck", "rpn", "box_head", "mask_head")
        exact: Any = {
            name: part.clone(dtype="float32")
            for name in parts
            if (part := getattr(detector, name)) is not None
        }
        exact["encoder"] = detector.encoder.clone(dtype="float32", attention="auto")
        detector = dataclasses.replace(detector, **exact)
        return detector.detect(params, batch["image"], batch["size"])


def unpacked(masks: jax.Array) -> jax.Array:
    """Unpacks masks `[B, M, m * m / 8]`, eight pixels a byte, to `[B, M, m, m]`.

    The first pixel of a byte is its highest bit, as `numpy.packbits` has it.
    """
    side = math.isqrt(8 * masks.shape[-1])
    return jnp.unpackbits(masks, axis=-1).reshape(*masks.shape[:2], side, side)
