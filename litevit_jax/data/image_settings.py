"""Checks the settings of images in a config's `data` block."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from litevit_jax import choices
from litevit_jax.data.decode import DEFAULT_MAX_PIXELS
from litevit_jax.data.joint import Settings

INTERPOLATIONS = ("bilinear", "bicubic", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The checked settings of images in a config's `data` block."""

    image_size: tuple[int, int]
    channels: int = 3
    max_pixels: int = DEFAULT_MAX_PIXELS
    range: str = "full"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"
    single_draw: bool = False
    flip: float = 0.5
    randaugment: dict[str, Any] | None = None
    views: int = 1
    eval_crop_fraction: float = 0.875
    decoder: str = "pillow"
    joint: dict[str, Any] | None = None

    def __post_init__(self):
        choices.check("data.interpolation", self.interpolation, list(INTERPOLATIONS))
        _check_range("crop_scale", self.crop_scale, high=1.0)
        _check_range("crop_ratio", self.crop_ratio, high=math.inf)
        _expect(0 <= self.flip <= 1, "flip", self.flip, "a probability, 0 to 1")
        fraction = self.eval_crop_fraction
        _expect(0 < fraction <= 1, "eval_crop_fraction", fraction, "0 < fraction <= 1")
        size = self.image_size
        whole = len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
        _expect(whole, "image_size", size, "(height, width), positive integers")
        _expect(self.views > 0, "views", self.views, "at least 1")
        _expect(self.channels > 0, "channels", self.channels, "at least 1")
        _expect(self.max_pixels > 0, "max_pixels", self.max_pixels, "at least 1")
        layers = (self.randaugment or {}).get("layers", 0)
        if layers and self.channels not in (1, 3):
            raise ValueError(
                f"data.channels={self.channels} with data.randaugment.layers={layers}: "
                "RandAugment is defined for 1 or 3 channels; turn it off with "
                "--config.data.randaugment.layers=0"
            )
        names = self.joint_settings.annotations
        if names and (layers or self.views > 1):
            raise ValueError(
                f"data.joint.annotations={names} with data.views={self.views} and "
                f"data.randaugment.layers={layers}: annotations go with one view of an "
                "image, which RandAugment would bend; set both to 1 and 0"
            )

    @property
    def joint_settings(self) -> Settings:
        """The settings of images with annotations."""
        return Settings(**(self.joint or {}))


def _check_range(name: str, values: tuple[float, float], *, high: float) -> None:
    ordered = len(values) == 2 and 0 < values[0] <= values[1] <= high
    limit = f" <= {high:g}" if high < math.inf else ""
    _expect(ordered, name, values, f"(low, high) with 0 < low <= high{limit}")


def _expect(condition: bool, name: str, got: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"data.{name}={got}; expected {expected}")
