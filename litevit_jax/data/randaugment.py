"""RandAugment on the host (Cubuk et al., arXiv 1909.13719), as recipes 5.1 state it.

It is timm 0.4.12's `rand-m10-mstd0.5-inc1`: 15 operations, in all of which a higher
level is a stronger change. Levels go from 0 to 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from litevit_jax.data.decode import Image

_MAX_LEVEL = 10.0
# Where a geometric operation uncovers nothing: ImageNet's mean colour, or its grey.
_FILL = {"RGB": (124, 116, 104), "L": 117}

Operation = Callable[[PIL.Image.Image, float, np.random.Generator], PIL.Image.Image]


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies `layers` operations drawn with replacement, each with `probability`.

    The level is drawn anew for every application: normal around `magnitude`, cut to
    0..10. At magnitude 10 half of the levels are 10, so the deviation is one-sided.

    Attributes:
      layers: operations drawn for an image; 0 turns RandAugment off.
      magnitude: mean level, 0 to 10.
      std: deviation of the level.
      probability: of an operation that was drawn to be applied.
    """

    layers: int = 2
    magnitude: float = 10.0
    std: float = 0.5
    probability: float = 0.5

    random: ClassVar[bool] = True

    def __post_init__(self):
        _expect(self.layers >= 0, "layers", self.layers, "0 (off) or more")
        level = 0 <= self.magnitude <= _MAX_LEVEL
        _expect(level, "magnitude", self.magnitude, "a level from 0 to 10")
        _expect(self.std >= 0, "std", self.std, "0 or more")
        chance = 0 <= self.probability <= 1
        _expect(chance, "probability", self.probability, "a probability, 0 to 1")

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Returns an RGB or L image, changed.

        Raises:
          ValueError: an array, which images of other channels than 1 and 3 are.
        """
        if isinstance(image, np.ndarray):
            raise ValueError(
                f"RandAugment needs images of 1 or 3 channels, got {image.shape[-1]}; "
                "turn it off with --config.data.randaugment.layers=0"
            )
        for chosen in rng.integers(len(OPERATIONS), size=self.layers):
            if rng.random() < self.probability:
                level = self.draw_level(rng)
                image = _OPERATIONS_IN_ORDER[chosen](image, level, rng)
        return image

    def draw_level(self, rng: np.random.Generator) -> float:
        """Draws one level, 0 to 10."""
        return min(max(rng.normal(self.magnitude, self.std), 0.0), _MAX_LEVEL)


def _expect(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"data.randaugment.{name}={got}; expected {expected}")


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _auto_contrast(image, level, rng):
    del level, rng
    return PIL.ImageOps.autocontrast(image)


def _equalize(image, level, rng):
    del level, rng
    return PIL.ImageOps.equalize(image)


def _invert(image, level, rng):
    del level, rng
    return PIL.ImageOps.invert(image)


def _rotate(image, level, rng):
    degrees = _signed(30 * level / _MAX_LEVEL, rng)
    bicubic = PIL.Image.Resampling.BICUBIC
    return image.rotate(degrees, bicubic, fillcolor=_FILL[image.mode])


def _posterize(image, level, rng):
    """Keeps 4 - int(0.4 level) bits; none at level 10, which leaves a black image.

    Recent versions of PIL refuse 0 bits; the version of the recipe gave black.
    """
    del rng
    kept = 4 - int(4 * level / _MAX_LEVEL)
    mask = 256 - 2 ** (8 - kept)
    return _by_table(image, [value & mask for value in range(256)])


def _solarize(image, level, rng):
    """Inverts pixels from 256 - int(25.6 level) on: all of them at level 10."""
    del rng
    threshold = 256 - int(256 * level / _MAX_LEVEL)
    return PIL.ImageOps.solarize(image, threshold)


def _solarize_add(image, level, rng):
    """Adds int(11 level) to pixels below 128."""
    del rng
    added = int(110 * level / _MAX_LEVEL)
    table = [min(v + added, 255) if v < 128 else v for v in range(256)]
    return _by_table(image, table)


def _by_table(image: PIL.Image.Image, table: list[int]) -> PIL.Image.Image:
    return image.point(table * len(image.getbands()))


def _enhance(kind: Callable[[PIL.Image.Image], PIL.ImageEnhance._Enhance]) -> Operation:
    """Moves an enhancement away from 1, which changes nothing, by up to 0.9."""

    def operation(image, level, rng):
        return kind(image).enhance(1 + _signed(0.9 * level / _MAX_LEVEL, rng))

    return operation


def _affine(image, matrix):
    return image.transform(
        image.size,
        PIL.Image.Transform.AFFINE,
        matrix,
        PIL.Image.Resampling.BICUBIC,
        fillcolor=_FILL[image.mode],
    )


def _shear_x(image, level, rng):
    return _affine(image, (1, _signed(0.3 * level / _MAX_LEVEL, rng), 0, 0, 1, 0))


def _shear_y(image, level, rng):
    return _affine(image, (1, 0, 0, _signed(0.3 * level / _MAX_LEVEL, rng), 1, 0))


def _translate_x(image, level, rng):
    pixels = _signed(0.45 * level / _MAX_LEVEL, rng) * image.size[0]
    return _affine(image, (1, 0, pixels, 0, 1, 0))


def _translate_y(image, level, rng):
    pixels = _signed(0.45 * level / _MAX_LEVEL, rng) * image.size[1]
    return _affine(image, (1, 0, 0, 0, 1, pixels))


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(PIL.ImageEnhance.Color),
    "contrast": _enhance(PIL.ImageEnhance.Contrast),
    "brightness": _enhance(PIL.ImageEnhance.Brightness),
    "sharpness": _enhance(PIL.ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_OPERATIONS_IN_ORDER = tuple(OPERATIONS.values())
