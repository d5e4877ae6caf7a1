"""Files of predicted label maps, for images that need no labels."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from litevit_jax import distributed, paths
from litevit_jax.data import decode
from litevit_jax.evaluators import base, reconstruction, segmentation, views


def make(
    *,
    context: base.Context,
    split: str = "eval",
    stride: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    overlay: float = 0.5,
) -> LabelMaps:
    """Builds the evaluator.

    Args:
      context: see base; its `size` is that of a window.
      split: 'eval' or 'train'.
      stride, scales, flip: as of evaluator 'segmentation'.
      overlay: share of the classes' colours in pictures of them on the image; 0: no
        such pictures.

    Raises:
      ValueError: a value out of range.
    """
    if not 0 <= overlay <= 1:
        raise ValueError(f"label_maps: overlay={overlay}; expected a share, 0 to 1")
    how = views.decoding(context, stride, scales, flip)
    return LabelMaps(context, split, how, overlay)


@dataclasses.dataclass(frozen=True)
class LabelMaps(base.Evaluator):
    """Writes `<outdir>/label_maps/NUMBER-NAME.png` for each image, at its own size.

    A pixel's value is the number of its class, its colour that of a palette.
    `NUMBER-NAME-overlay.png` shows the colours on the image.
    """

    split: str
    how: views.Decoding
    overlay: float

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("segmentation_logits",)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Writes the files; returns 'n', the images, and 'folder', where they are."""
        del step
        source, n = self.context.source(self.split), 0
        folder = self.context.outdir / "label_maps"
        decoded = decode.Decode(channels=len(self.context.mean))
        images = views.predict(self.context, state, self.split, self.how)
        for image in images:
            n += 1
            if not distributed.is_primary():
                continue
            nothing = np.full(image.size, segmentation.IGNORED, np.uint8)
            _, called = segmentation.count(image, nothing)
            classes = image.classes
            name = pathlib.PurePath(source.name_of(image.index)).stem
            start = f"{image.index:06d}-{''.join(filter(_is_plain, name))[:80]}"
            paths.make_folder(folder)
            _write(folder / f"{start}.png", indexed(called, classes))
            if self.overlay:
                pixels = np.asarray(decoded(source[image.index]["image"]))
                pixels = reconstruction.rgb(pixels.reshape(*image.size, -1))
                colours = segmentation.coloured(called, classes)
                mixed = (1 - self.overlay) * pixels + self.overlay * colours
                picture = Image.fromarray(np.round(mixed).astype(np.uint8))
                _write(folder / f"{start}-overlay.png", picture)
        return {"n": n, "folder": str(folder)}


def indexed(label: np.ndarray, classes: int) -> Image.Image:
    """Makes a picture whose pixels are labels `[H, W]`, with colours for `classes`."""
    height, width = label.shape
    picture = Image.frombytes("P", (width, height), label.tobytes())
    colours = segmentation.coloured(np.arange(256), classes)
    picture.putpalette(colours.tobytes())
    return picture


def _write(path: pathlib.Path, picture: Image.Image) -> None:
    with path.open("wb") as file:
        picture.save(file, format="png")


def _is_plain(letter: str) -> bool:
    return letter.isalnum() or letter in "-_."
