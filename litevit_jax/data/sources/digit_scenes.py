"""Scenes of real digits on real photographs, with the class of every pixel or object.

Scikit-learn's 1797 handwritten digits and two photographs, nothing to download. A
scene is a darkened crop of a photograph with 1 to 4 digits in light colours, which do
not touch. The label of a pixel is 0 for the background and 1 to 10 for the digits 0 to
9; as objects, digits have masks, boxes and ten classes. Splits 'train' and 'test' share
no digit and no part of a photograph.

A scene follows from (seed, split, number), so it is the same wherever it is drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np

from litevit_jax.data import decode as decoding
from litevit_jax.data import objects, resample
from litevit_jax.data.sources import base, digits

_SPLITS = ("train", "test")
_VERSION = "digit_scenes-1"
_TRAIN_DIGITS = 1400  # the first ones
_COLUMNS = {"train": (0.0, 0.75), "test": (0.82, 1.0)}  # of a photograph
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_DARK = 0.6
_INK = 0.35  # of the whole; what has more belongs to the digit
_MOST_DIGITS = 4
_TRIES = 20  # positions of a digit, until it touches no other
_LEAST_SIZE, _MOST_SIZE = 32, 1024
_KEEP = 2**28  # bytes of scenes that are kept in memory


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
      image: uint8 [S, S, 3].
      masks: bool [M, S, S], of the digits; none touches another.
      digits: int32 [M], 0 to 9.
    """

    image: np.ndarray
    masks: np.ndarray
    digits: np.ndarray

    @property
    def label_map(self) -> np.ndarray:
        """Labels uint8 [S, S]: 0 for the background, the digit plus 1 elsewhere."""
        labels = (self.digits + 1)[:, None, None] * self.masks
        return labels.sum(axis=0).astype(np.uint8)


class DigitScenes(base.Source):
    """The scenes of one split, each drawn when it is first read."""

    def __init__(
        self, split: str, *, size: int, scenes: int, seed: int, as_objects: bool = False
    ):
        self._split, self._size, self._count, self._seed = split, size, scenes, seed
        self._as_objects = as_objects
        self.annotations = ("objects", "boxes") if as_objects else ("label_map",)
        self.class_ids = range(10) if as_objects else ()
        self._kept: dict[int, dict[str, Any]] = {}
        self.other_splits = [other for other in _SPLITS if other != split]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    @property
    def classes(self) -> list[str]:
        return ["background"] * (not self._as_objects) + [str(x) for x in range(10)]

    @property
    def channels(self) -> int:
        return 3

    @property
    def in_memory(self) -> bool:
        return True

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        example: dict[str, Any] | None = self._kept.get(index)
        if example is None:
            scene = self.scene(index)
            example = {"image": scene.image, "label": -1}
            if self._as_objects:
                number = index + 1
                those = objects.of_masks(scene.masks, scene.digits.tolist(), number)
                example["objects"] = those
            else:
                example["label_map"] = scene.label_map
            if self._count * self._size**2 * 4 <= _KEEP:
                self._kept[index] = example
        return dict(example)

    def scene(self, index: int) -> Scene:
        """Draws scene `index`."""
        key = [self._seed, _SPLITS.index(self._split), index]
        return _draw(np.random.RandomState(key), self._split, self._size)

    def label_of(self, index: int) -> int:
        return -1

    def name_of(self, index: int) -> str:
        return f"digit_scenes/{self._split}[{index}]"

    def fingerprint(self) -> str:
        numbers = f"{self._split} {self._size} {self._count} {self._seed}"
        numbers += " objects" * self._as_objects
        content = [digits.table().tobytes(), *_files()]
        return base.digest([_VERSION.encode(), numbers.encode(), *content])


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
    size: int = 96,
    scenes: int = 4000,
    test_scenes: int = 300,
    seed: int = 0,
    objects: bool = False,
) -> DigitScenes:
    """The 'train' or 'test' split.

    Args:
      split: 'train' or 'test'.
      dir: must be None; the data is embedded.
      name: ignored.
      holdout: ignored; the split is fixed.
      size: height and width of a scene in pixels.
      scenes: number of scenes to train on.
      test_scenes: number of scenes to test on.
      seed: of the scenes.
      objects: whether scenes have objects, in place of a class for each pixel.
    """
    del name, holdout
    base.check_split(split, _SPLITS, "digit_scenes")
    if dir is not None:
        raise ValueError(
            f"data.dir={dir!r} is set, but the source 'digit_scenes' reads no "
            "directory; choose data.source=segfolder, or leave data.dir empty"
        )
    if not _LEAST_SIZE <= size <= _MOST_SIZE:
        raise ValueError(
            f"data.options.size={size}; expected {_LEAST_SIZE} to {_MOST_SIZE} pixels"
        )
    count = scenes if split == "train" else test_scenes
    if count < 1 or not 0 <= seed < 2**32:
        raise ValueError(
            f"data.options: {count} scenes of {split!r}, seed={seed}; expected at "
            "least one scene and 0 <= seed < 2^32"
        )
    how = {"size": size, "scenes": count, "seed": seed}
    return DigitScenes(split, **how, as_objects=bool(objects))


# NumPy promises that RandomState's numbers never change.
def _draw(rng: np.random.RandomState, split: str, size: int) -> Scene:
    """Draws a scene of `size` x `size` pixels."""
    image = _background(rng, split, size).astype(np.float32)
    rows, kinds = _digits(split)
    masks, drawn = [], []
    covered = np.zeros((size, size), bool)
    for _ in range(rng.randint(1, _MOST_DIGITS + 1)):
        row = rng.randint(len(rows))
        low, high = _sides(size)
        side = rng.randint(low, high + 1)
        colour = rng.uniform(160, 255, 3).astype(np.float32)
        whole = resample.Window.whole((side, side))
        ink = resample.bilinear(rows[row][..., None], whole) / np.float32(255)
        mask = ink[..., 0] > _INK
        for _ in range(_TRIES):
            top, left = (rng.randint(size - side + 1) for _ in range(2))
            part = (slice(top, top + side), slice(left, left + side))
            if not (_grown(covered)[part] & mask).any():
                break
        else:
            continue  # no room is left
        image[part] += ink * (colour - image[part])
        covered[part] |= mask
        masks.append(np.zeros((size, size), bool))
        masks[-1][part] = mask
        drawn.append(kinds[row])
    pixels = np.floor(image + np.float32(0.5)).astype(np.uint8)
    return Scene(pixels, np.stack(masks), np.array(drawn, np.int32))


def _sides(size: int) -> tuple[int, int]:
    """Returns the smallest and the largest side of a digit: 20 and 56 in 96 pixels."""
    return 8 + size // 8, size * 2 // 3 - 8


def _background(rng: np.random.RandomState, split: str, size: int) -> np.ndarray:
    """Draws a crop of a photograph, darkened: uint8 [size, size, 3]."""
    photograph = _photographs()[rng.randint(len(_PHOTOGRAPHS))]
    first, last = (round(share * photograph.shape[1]) for share in _COLUMNS[split])
    photograph = photograph[:, first:last]
    side = min(size, *photograph.shape[:2])
    top, left = (rng.randint(whole - side + 1) for whole in photograph.shape[:2])
    crop = photograph[top : top + side, left : left + side]
    crop = resample.bilinear(crop, resample.Window.whole((size, size)))
    return (crop * np.float32(_DARK)).astype(np.uint8)


def _grown(mask: np.ndarray) -> np.ndarray:
    """Returns a mask [h, w] with the eight neighbours of its pixels."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits of a split: ink uint8 [N, 8, 8] and their values [N]."""
    images, labels = digits.load()
    chosen = slice(_TRAIN_DIGITS) if split == "train" else slice(_TRAIN_DIGITS, None)
    return images[chosen], labels[chosen]


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    """Returns scikit-learn's photographs, uint8 [427, 640, 3]."""
    decode = decoding.Decode()
    return tuple(np.asarray(decode(encoded)) for encoded in _files())


@functools.cache
def _files() -> tuple[bytes, ...]:
    """Returns the files of the photographs; scikit-learn is not imported."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None  # the package requires it
    top = pathlib.Path(spec.origin).parent / "datasets" / "images"
    return tuple((top / name).read_bytes() for name in _PHOTOGRAPHS)
