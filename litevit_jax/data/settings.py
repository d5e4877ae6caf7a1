"""Image settings of a config's `data` block, and what they become: a transform."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Transform(Protocol):
    """Turns a raw image into uint8 [H, W, C], or [V, H, W, C] of several views.

    It is picklable where worker processes are used.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every result: (H, W, C) or (V, H, W, C)."""
        ...

    def __call__(
        self, image: Any, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the result, preferably written to `out` if that is given."""
        ...


def image_size(data: Any) -> tuple[int, int]:
    """Returns (H, W) of the images that a `data` block asks for."""
    return data["image_size"], data.get("image_width") or data["image_size"]


def flips_on_host(data: Any) -> bool:
    """Whether `data.flip` is applied where images are decoded.

    It is where RandAugment must follow it; else the device flips, in the same share
    of the images.
    """
    return data["randaugment"]["layers"] > 0


def image_settings(data: Any) -> dict[str, Any]:
    """Collects the image settings of `data` as `data.transforms` takes them."""
    return {
        "image_size": image_size(data),
        "channels": data["channels"],
        "max_pixels": data["max_pixels"],
        "range": data["range"] or "full",
        "crop_scale": tuple(data["crop_scale"]),
        "crop_ratio": tuple(data["crop_ratio"]),
        "interpolation": data["interpolation"],
        "single_draw": data["single_draw"],
        "flip": data["flip"] if flips_on_host(data) else 0.0,
        "decoder": data["decoder"],
        "views": data["views"],
        "randaugment": dict(data["randaugment"]),
        "eval_crop_fraction": data["eval_crop_fraction"],
    }
