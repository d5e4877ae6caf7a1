"""Resizes, crops and flips an image together with the objects on it.

Large-scale jitter, as detectron2 trains ViTDet: the image is flipped, resized by a
factor drawn from a wide range, and cut where it is too large. Boxes are made anew,
tight around what is left of the masks; objects of which nothing is left are dropped.
What the image does not fill is 0, and `size` says how much it fills (see `joint`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from litevit_jax.data import joint, objects, polygons
from litevit_jax.data.decode import Decode
from litevit_jax.data.sources.base import AnnotationError

_LEAST_SIDE = 1e-5  # pixels; boxes with a smaller side are dropped, as in detectron2
_NO_BOX = np.zeros(4)

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The way of an image into a crop: mirrored, then resized, then cut.

    Attributes:
      before: (h, w) of the image.
      resized: (h, w) that it is resized to.
      top, left: of the crop, in resized pixels.
      size: (h, w) of the crop.
      mirrored: whether left and right are swapped.
    """

    before: Size
    resized: Size
    top: int
    left: int
    size: Size
    mirrored: bool

    @property
    def window(self) -> polygons.Window:
        """Width and height of the crop."""
        return float(self.size[1]), float(self.size[0])

    @property
    def _scale(self) -> np.ndarray:
        return np.array(self.resized[::-1]) / self.before[::-1]

    def points(self, points: np.ndarray) -> np.ndarray:
        """Moves points [n, 2], x and y, of the image to the crop."""
        if self.mirrored:
            points = points * (-1, 1) + (self.before[1], 0)
        return points * self._scale - (self.left, self.top)

    def origins(self, points: np.ndarray) -> np.ndarray:
        """Moves points [n, 2] of the crop back to the image."""
        points = (points + np.array((self.left, self.top))) / self._scale
        return points * (-1, 1) + (self.before[1], 0) if self.mirrored else points

    def box(self, box: np.ndarray) -> np.ndarray:
        """Moves a box [4] to the crop, and cuts it."""
        ends = np.clip(self.points(np.reshape(box, (2, 2))), 0, self.window)
        return np.concatenate([ends.min(axis=0), ends.max(axis=0)])

    def pixels(self, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Writes uint8 [h, w, C], changed, to the top left of `out`; 0 elsewhere."""
        image = np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image
        (height, width), (rows, columns) = self.size, self.resized
        part = _resize(image, (columns, rows))
        part = part[self.top : self.top + height, self.left : self.left + width]
        out[:height, :width] = part
        out[height:], out[:height, width:] = 0, 0
        return out


def _resize(image: np.ndarray, width_height: Size) -> np.ndarray:
    """Resizes uint8 [h, w, C] as PIL does: bilinear, with antialiasing."""
    how = PIL.Image.Resampling.BILINEAR
    if image.shape[2] == 3:
        return np.asarray(PIL.Image.fromarray(image).resize(width_height, how))
    planes = (PIL.Image.fromarray(image[..., i]) for i in range(image.shape[2]))
    return np.stack([np.asarray(x.resize(width_height, how)) for x in planes], axis=-1)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """An example -> a random crop of its image and objects, for training.

    Attributes:
      decode: what makes an image of the bytes.
      size: (H, W) of the result.
      settings: of resizing, and of objects.
      flip: probability of left and right being swapped.
    """

    decode: Decode
    size: Size
    settings: joint.Settings
    flip: float = 0.5

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every image: (H, W, C)."""
        return (*self.size, self.decode.channels)

    @property
    def extras(self) -> dict[str, Any]:
        """Shapes and types of what comes beside the image."""
        return joint.extras_of_objects(self.settings)

    def __call__(
        self,
        example: Mapping[str, Any],
        rng: np.random.Generator,
        out: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Transforms `image` and `objects` of a source's example by one draw.

        Returns:
          `image` uint8 [H, W, C] (`out`, if that is given), `size` int32 [2], the rows
          and columns that are image; of M objects `boxes` float32 [M, 4], `classes`
          int32 [M], `valid` bool [M] (the others are padding), for 'objects' `masks`
          uint8 [M, m * m / 8], the bits of m x m pixels laid over each box, row by row
          (numpy.packbits); and `left_out` int32, how many smaller objects more there
          were.

        Raises:
          decode.DecodeError: the image is damaged, too large, or not an image.
          AnnotationError: the objects are of an image of another size.
        """
        image = joint.upright(self.decode, example["image"])
        check_size(example["objects"].size, image.shape[:2])
        geometry = self.draw(image.shape[:2], rng)
        out = np.empty(self.shape, np.uint8) if out is None else out
        return {
            "image": geometry.pixels(image, out),
            "size": np.array(geometry.size, np.int32),
            **self._targets(example["objects"], geometry),
        }

    def draw(self, before: Size, rng: np.random.Generator) -> Geometry:
        """Draws the flip, the size and the crop of an image of (h, w) pixels."""
        mirrored = bool(rng.random() < self.flip)
        factor = rng.uniform(*self.settings.ratio)
        scale = min(factor * a / b for a, b in zip(self.size, before, strict=True))
        # np.round: half to even, as in detectron2.
        resized = [max(int(np.round(side * scale)), 1) for side in before]
        draws = [rng.random() for _ in range(self.settings.crop_draws)]
        margins = [max(a - b, 0) for a, b in zip(resized, self.size, strict=True)]
        offsets = [
            int(np.round(margin * draw))
            for margin, draw in zip(margins, (draws * 2)[:2], strict=True)
        ]
        sides = [min(a, b) for a, b in zip(resized, self.size, strict=True)]
        return Geometry(
            before=(before[0], before[1]),
            resized=(resized[0], resized[1]),
            top=offsets[0],
            left=offsets[1],
            size=(sides[0], sides[1]),
            mirrored=mirrored,
        )

    def _targets(
        self, those: objects.Objects, geometry: Geometry
    ) -> dict[str, np.ndarray]:
        """Returns the objects that are seen in a crop, padded; no crowds."""
        pixels = self.settings.mask_size if "masks" in self.extras else 0
        boxes, classes, masks = [], [], []
        for i in np.flatnonzero(~those.crowd).tolist():
            shape = those.shapes[i]
            if shape is None and pixels:
                raise AnnotationError(
                    f"object {those.ids[i]} has no mask; expected one of each object. "
                    f"For boxes alone, {objects.BOXES_ALONE}"
                )
            box, mask = _seen(geometry, those.boxes[i], shape, pixels)
            if (box[2:] - box[:2] > _LEAST_SIDE).all() and (mask.any() or not pixels):
                boxes.append(box)
                classes.append(those.classes[i])
                masks.append(mask)
        kept = _largest(boxes, self.settings.max_objects)
        padded = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in self.extras.items()
            if name != "size"
        }
        for row, i in enumerate(kept):
            padded["boxes"][row], padded["classes"][row] = boxes[i], classes[i]
            padded["valid"][row] = True
            if pixels:
                padded["masks"][row] = np.packbits(masks[i])
        return padded | {"left_out": np.array(len(boxes) - len(kept), np.int32)}


def _largest(boxes: list[np.ndarray], count: int) -> list[int]:
    """Returns the numbers of the `count` boxes of the largest area, in order."""
    areas = [-float((box[2:] - box[:2]).prod()) for box in boxes]
    return sorted(np.argsort(areas, kind="stable")[:count].tolist())


def _seen(
    geometry: Geometry, box: np.ndarray, shape: Any, pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a crop shows of an object: its box [4], and its mask laid over it.

    The mask is bool [pixels, pixels]; the box is all 0 if nothing is seen.
    """
    if shape is None:
        return geometry.box(box), np.ones((0, 0), bool)
    if isinstance(shape, list):
        return _seen_polygons(geometry, shape, pixels)
    return _seen_runs(geometry, objects.bitmap(shape), pixels)


def _seen_polygons(
    geometry: Geometry, shape: list[Any], pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    parts, boxes = [], []
    for flat in shape:
        moved = geometry.points(np.reshape(flat, (-1, 2)))
        box = polygons.tight_box(moved, geometry.window)
        part = polygons.clip(moved, geometry.window)
        if box is not None and len(part) > 2:
            boxes.append(box)
            parts.append(part)
    if not parts:
        return _NO_BOX, np.zeros((pixels, pixels), bool)
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    box = np.concatenate([low[:2], high[2:]])
    drawn = polygons.draw(parts, box, pixels) if pixels else np.ones((0, 0), bool)
    return box, drawn


def _seen_runs(
    geometry: Geometry, mask: np.ndarray, pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Does as `_seen` for a mask bool [h, w]: pixels count as squares."""
    ends = geometry.origins(np.array([(0, 0), geometry.window]))
    low, high = ends.min(axis=0), ends.max(axis=0)
    left, top = np.maximum(np.floor(low), 0).astype(int)
    right, bottom = np.ceil(high).astype(int)
    part = objects.box_of(mask[top:bottom, left:right])
    box = geometry.box(np.add(part, (left, top, left, top)))
    if not any(part):
        return _NO_BOX, np.zeros((pixels, pixels), bool)
    share = (np.arange(pixels) + 0.5) / max(pixels, 1)
    centres = geometry.origins(box[:2] + share[:, None] * (box[2:] - box[:2]))
    columns, rows = np.floor(centres).astype(int).T
    rows, columns = rows.clip(0, len(mask) - 1), columns.clip(0, mask.shape[1] - 1)
    return box, mask[rows[:, None], columns]


def whole(example: Mapping[str, Any], before: Size, size: Size) -> Geometry:
    """Returns how a whole image of (h, w) pixels is fitted into `size`.

    Raises:
      AnnotationError: the objects are of an image of another size.
    """
    if "objects" in example:
        check_size(example["objects"].size, before)
    sides = fitted(before, size)
    return Geometry(before, sides, 0, 0, sides, False)


def fitted(before: Size, size: Size) -> Size:
    """Returns the largest (h, w), at least 1 x 1, of an image inside `size`."""
    # Two steps, as detectron2 resizes the short side and then caps the long one.
    scale = min(size) / min(before)
    sides = [min(size) if side == min(before) else side * scale for side in before]
    cap = min(1.0, *(a / b for a, b in zip(size, sides, strict=True)))
    height, width = (max(int(side * cap + 0.5), 1) for side in sides)
    return min(height, size[0]), min(width, size[1])


def check_size(annotated: Size, image: tuple[int, ...]) -> None:
    """Raises an AnnotationError unless the sizes (h, w) are the same."""
    if tuple(annotated) != tuple(image):
        turned = tuple(annotated) == tuple(image)[::-1]
        hint = " (the sides are swapped)" * turned
        raise AnnotationError(
            f"its objects are of an image of {annotated[1]} x {annotated[0]} pixels, "
            f"but the upright image has {image[1]} x {image[0]}{hint}; expected the "
            "same: the usual cause is a tool that does not turn images by their EXIF "
            "orientation, or that resized them; export them together"
        )
