"""Image settings of a config's `data` block, and what they become: a transform."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Transform(Protocol):
    """Turns a raw image into uint8 [H, W, C], or [V, H, W, C] of several views.

    It is picklable where worker processes are used. One with `extras` turns a whole
    example into named arrays: `image`, and those.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every image: (H, W, C) or (V, H, W, C)."""
        ...

    def __call__(
        self, raw: Any, rng: np.random.Generator, out: np.ndarray | None = None, /
    ) -> Any:
        """Returns the result, the image preferably written to `out` if given."""
        ...


def transform_extras(transform: Transform) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns name -> (shape, type) of what a transform yields beside the image."""
    return getattr(transform, "extras", {})


def image_size(data: Any) -> tuple[int, int]:
    """Returns (H, W) of the images that a `data` block asks for."""
    return data["image_size"], data.get("image_width") or data["image_size"]


def flips_on_host(data: Any) -> bool:
    """Whether `data.flip` is applied where images are decoded.

    It is where RandAugment must follow it, or annotations have to be flipped, too; else
    the device flips, in the same share of the images.
    """
    return data["randaugment"]["layers"] > 0 or bool(annotations_of(data))


def annotations_of(data: Any) -> tuple[str, ...]:
    """Returns what a run reads beside images and labels: `data.joint.annotations`."""
    return tuple(_joint(data).get("annotations", ()))


def _joint(data: Any) -> dict[str, Any]:
    """Returns the block `data.joint` without open fields; older runs have none."""
    block = dict(data.get("joint") or {})
    return {key: value for key, value in block.items() if value is not None}


def extras(data: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns name -> (shape, type) of what an example has beside image and label."""
    names, classes = annotations_of(data), data.get("multi_hot")
    labels = {"labels": ((classes,), np.uint8)} if classes else {}
    if {"objects", "boxes"} & set(names):
        from litevit_jax.data import joint

        return joint.extras_of_objects(joint.Settings(**_joint(data)))
    return (extras_of(names, image_size(data)) if names else {}) | labels


def extras_of(
    names: tuple[str, ...], size: tuple[int, int]
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns shapes and types of annotations of `size` (H, W), and of `size [2]`.

    That is how many rows and columns are image; the rest is padding.
    """
    return {**dict.fromkeys(names, (size, np.uint8)), "size": ((2,), np.int32)}


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
        "joint": _joint(data),
    }
