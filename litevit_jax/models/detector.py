"""A whole detector: ViTDet Mask R-CNN (arXiv 2203.16527), as in detectron2.

Encoder, pyramid, region proposals, box head and mask head, and how one's results become
the next one's inputs. Shapes are static: what varies in number is padded, with a mask.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax.models import boxes as box_ops
from litevit_jax.models import (
    detections,
    pyramid,
    roi_align,
    roi_heads,
    rpn,
    vitdet,
)

_POOLED_LEVELS = len(pyramid.LEVELS) - 1  # the last one is for proposals alone


@dataclasses.dataclass(frozen=True)
class Rules:
    """Sets how many boxes each step takes, by which overlaps; by default the paper's.

    Attributes:
      train_per_level, test_per_level: boxes of a level that become proposals at most.
      proposals: of an image.
      proposal_overlap: proposals of a level that overlap more suppress each other.
      anchor_low, anchor_high: overlaps below and from which an anchor is negative and
        positive.
      anchor_samples, anchor_positive: anchors of an image in a loss, and how many of
        them at most are positive.
      box_overlap: from which a proposal holds an object.
      box_samples, box_positive: proposals of an image in a loss, and how many of them
        at most hold an object.
      min_score, overlap, detections, candidates: see `detections.select`.
    """

    train_per_level: int = 2000
    test_per_level: int = 1000
    proposals: int = 1000
    proposal_overlap: float = 0.7
    anchor_low: float = 0.3
    anchor_high: float = 0.7
    anchor_samples: int = 256
    anchor_positive: int = 128
    box_overlap: float = 0.5
    box_samples: int = 512
    box_positive: int = 128
    min_score: float = 0.05
    overlap: float = 0.5
    detections: int = 100
    candidates: int = 2000

    def __post_init__(self):
        """Raises ValueError for a number out of range."""
        fields = vars(self)
        for name, value in fields.items():
            is_count = isinstance(getattr(Rules, name), int)
            if value < 1 if is_count else not 0 <= value <= 1:
                expected = "1 or more" if is_count else "a number from 0 to 1"
                raise ValueError(f"rules.{name}={value}: expected {expected}")
        for less, more in (
            ("anchor_low", "anchor_high"),
            ("anchor_positive", "anchor_samples"),
            ("box_positive", "box_samples"),
        ):
            if fields[less] > fields[more]:
                raise ValueError(
                    f"rules.{less}={fields[less]}: expected {more}={fields[more]} or "
                    "less"
                )


def make(
    *,
    encoder: dict[str, Any],
    num_classes: int,
    masks: bool = True,
    channels: int = 256,
    rpn_convs: int = 2,
    box_convs: int = 4,
    box_hidden: int = 1024,
    mask_convs: int = 4,
    anchor_sizes: tuple[float, ...] = (2, 4, 8, 16, 32),
    pooled: tuple[int, int] = (7, 14),
    dtype: str = "float32",
    **rules: Any,
) -> Detector:
    """Builds a detector.

    Args:
      encoder: arguments of `vitdet.make_encoder`.
      num_classes: K.
      masks: whether it has a mask head.
      channels: of the pyramid and of all convolutions.
      rpn_convs, box_convs, mask_convs: number of convolutions of each head.
      box_hidden: width of the box head's linear layer.
      anchor_sizes: of the pyramid's levels, in patches.
      pooled: bins on a side of what box and mask head read.
      dtype: of the computation.
      **rules: fields of `Rules`.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    if num_classes < 1 or channels < 1 or len(anchor_sizes) != len(pyramid.LEVELS):
        raise ValueError(
            f"detector: num_classes={num_classes}, channels={channels}, anchor_sizes="
            f"{tuple(anchor_sizes)}; expected at least 1 class and channel, and a size "
            f"for each of {len(pyramid.LEVELS)} levels"
        )
    encoder_fields: dict[str, Any] = {"dtype": dtype, **encoder}
    conv: dict[str, Any] = {
        "num_classes": num_classes,
        "channels": channels,
        "dtype": dtype,
    }
    return Detector(
        encoder=vitdet.make_encoder(**encoder_fields),
        neck=pyramid.Pyramid(channels, dtype),
        rpn=rpn.Head(rpn_convs, dtype),
        box_head=roi_heads.BoxHead(**conv, convs=box_convs, hidden=box_hidden),
        mask_head=roi_heads.MaskHead(**conv, convs=mask_convs) if masks else None,
        anchor_sizes=tuple(anchor_sizes),
        pooled=tuple(pooled),
        rules=Rules(**rules),
    )


@dataclasses.dataclass(frozen=True)
class Detector:
    """The modules of a detector.

    Its parameters are {'encoder', 'neck', 'rpn', 'box_head', 'mask_head'}.

    Attributes:
      encoder, neck, rpn, box_head, mask_head: see there; `mask_head` may be None.
      anchor_sizes: of the pyramid's levels, in patches.
      pooled: bins on a side of what box and mask head read.
      rules: how many boxes each step takes.
    """

    encoder: vitdet.Encoder
    neck: pyramid.Pyramid
    rpn: rpn.Head
    box_head: roi_heads.BoxHead
    mask_head: roi_heads.MaskHead | None
    anchor_sizes: tuple[float, ...]
    pooled: tuple[int, int]
    rules: Rules

    def init(self, key: jax.Array, image: jax.Array) -> dict[str, Any]:
        """Initial parameters; of `image [B, H, W, C]` only the shape matters."""
        keys = dict(zip(("encoder", *_HEADS), jax.random.split(key, 5), strict=True))
        params = {}
        image = jnp.zeros((1, *image.shape[1:]))
        (x, _), variables = self.encoder.init_with_output(keys["encoder"], image)
        params["encoder"] = variables["params"]
        maps, variables = self.neck.init_with_output(keys["neck"], x)
        params["neck"] = variables["params"]
        params["rpn"] = self.rpn.init(keys["rpn"], maps)["params"]
        pooled = [jnp.zeros((1, size, size, maps[0].shape[-1])) for size in self.pooled]
        params["box_head"] = self.box_head.init(keys["box_head"], pooled[0])["params"]
        if self.mask_head is not None:
            classes = jnp.zeros(1, jnp.int32)
            variables = self.mask_head.init(keys["mask_head"], pooled[1], classes)
            params["mask_head"] = variables["params"]
        return params

    def maps(
        self, params: Any, image: jax.Array, drop_keys: jax.Array | None = None
    ) -> list[jax.Array]:
        """Maps images `[B, H, W, C]` to a pyramid; `drop_keys [B]` drop paths."""
        x, _ = self.encoder.apply(
            {"params": params["encoder"]},
            image,
            drop_keys=drop_keys,
            train=drop_keys is not None,
        )
        maps: Any = self.neck.apply({"params": params["neck"]}, x)
        return maps

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels of an image on one side of a pixel of each level's map."""
        patch = self.encoder.patch_size
        return tuple(patch * 2.0 ** (level - 4) for level in pyramid.LEVELS)

    def anchors(self, image_size: tuple[int, ...]) -> list[np.ndarray]:
        """The anchors of each level `[N, 4]` of images with rows and columns."""
        patch = self.encoder.patch_size
        rows, columns = (side // patch for side in image_size)
        grids = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns)]
        grids.append((rows // 2, columns // 2))
        grids.append(((rows // 2 + 1) // 2, (columns // 2 + 1) // 2))
        levels = zip(grids, self.strides, self.anchor_sizes, strict=True)
        return [
            rpn.anchors(grid, stride, size * patch) for grid, stride, size in levels
        ]

    def score(
        self, params: Any, maps: list[jax.Array]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Logits `[B, N]` and offsets `[B, N, 4]` of each level's anchors."""
        logits_and_offsets: Any = self.rpn.apply({"params": params["rpn"]}, maps)
        return logits_and_offsets

    def propose(
        self,
        anchors: list[Any],
        logits: list[jax.Array],
        offsets: list[jax.Array],
        size: jax.Array,
        *,
        train: bool,
    ) -> rpn.Proposals:
        """Selects proposals of a batch, `[B, P, ..]`; `size [B, 2]` is image."""
        rules = self.rules
        boxes = [box_ops.decode(*x) for x in zip(anchors, offsets, strict=True)]

        def select(boxes, logits, size):
            return rpn.select(
                boxes,
                logits,
                size,
                per_level=rules.train_per_level if train else rules.test_per_level,
                count=rules.proposals,
                threshold=rules.proposal_overlap,
            )

        return jax.vmap(select)(boxes, logits, size)

    def pool(self, maps: list[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
        """Pools boxes `[B, R, 4]` from their level's map: `[B * R, size, size, C]`."""
        usual = 14.0 * self.encoder.patch_size
        first, last = pyramid.LEVELS[0], pyramid.LEVELS[_POOLED_LEVELS - 1]
        level = box_ops.level_of(boxes, first, last, usual) - first

        def pool(maps, boxes, level):
            strides = self.strides[:_POOLED_LEVELS]
            return roi_align.roi_align(maps, boxes, level, strides=strides, size=size)

        x = jax.vmap(pool)(maps[:_POOLED_LEVELS], boxes, level)
        return x.reshape(-1, *x.shape[2:])

    def classify(
        self, params: Any, maps: list[jax.Array], boxes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Logits `[B, R, K + 1]` and offsets `[B, R, K, 4]` of boxes `[B, R, 4]`."""
        x = self.pool(maps, boxes, self.pooled[0])
        outputs: Any = self.box_head.apply({"params": params["box_head"]}, x)
        logits, offsets = (x.reshape(*boxes.shape[:2], *x.shape[1:]) for x in outputs)
        return logits, offsets

    def mask_logits(
        self, params: Any, maps: list[jax.Array], boxes: jax.Array, classes: jax.Array
    ) -> jax.Array:
        """Mask logits `[B, R, s, s]` of boxes `[B, R, 4]` as classes `[B, R]`.

        Those of background, which has no mask, are 0.
        """
        assert self.mask_head is not None
        x = self.pool(maps, boxes, self.pooled[1])
        variables = {"params": params["mask_head"]}
        logits: Any = self.mask_head.apply(variables, x, classes.reshape(-1))
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])

    def detect(
        self, params: Any, image: jax.Array, size: jax.Array
    ) -> dict[str, jax.Array]:
        """Detects objects in images `[B, H, W, C]`, of which `size [B, 2]` is image.

        Returns:
          'boxes' `[B, D, 4]` in pixels of the network's input, 'scores' `[B, D]`,
          'classes' int32 `[B, D]`, 'valid' bool `[B, D]`, 'left_out' int32 `[B]` (see
          `detections.Detections`), and with a mask head 'masks' `[B, D, s, s]`, the
          probability that a pixel is the object's, laid over its box.
        """
        maps, rules = self.maps(params, image), self.rules
        scored = self.score(params, maps)
        anchors = self.anchors(image.shape[1:3])
        proposed = self.propose(anchors, scored[0], scored[1], size, train=False)
        logits, offsets = self.classify(params, maps, proposed.boxes)
        boxes = box_ops.decode(
            proposed.boxes[:, :, None], offsets, roi_heads.BOX_WEIGHTS
        )
        scores = jax.nn.softmax(logits)[..., :-1]

        def select(boxes, scores, valid, size):
            return detections.select(
                boxes,
                scores,
                valid,
                size,
                min_score=rules.min_score,
                threshold=rules.overlap,
                count=rules.detections,
                candidates=rules.candidates,
            )

        chosen = jax.vmap(select)(boxes, scores, proposed.valid, size)._asdict()
        del chosen["rows"]
        if self.mask_head is not None:
            args = (params, maps, chosen["boxes"], chosen["classes"])
            chosen["masks"] = jax.nn.sigmoid(self.mask_logits(*args))
        return chosen


_HEADS = ("neck", "rpn", "box_head", "mask_head")
