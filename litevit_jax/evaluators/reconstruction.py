"""Masked images and their reconstructions as a picture, and the masked loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from litevit_jax import distributed, paths
from litevit_jax.evaluators import base

_COLUMNS = ("original", "masked", "reconstructed")
_TITLE = 16  # pixels above each column
_GAP = 4


def make(
    *,
    context: base.Context,
    split: str = "eval",
    images: int = 8,
    examples: int = 1024,
) -> Reconstruction:
    """Builds the evaluator.

    Args:
      context: see base.
      split: 'eval' or 'train'.
      images: how many are drawn.
      examples: over how many the loss is taken, at most.

    Raises:
      ValueError: nothing would be drawn or counted.
    """
    if images < 1 or examples < 1:
        raise ValueError(f"reconstruction: {images=} and {examples=} must be >= 1")
    return Reconstruction(context, split, images, examples)


@dataclasses.dataclass(frozen=True)
class Reconstruction(base.Evaluator):
    """Draws `<outdir>/reconstruction_<step>.png`; predictions are de-normalised with
    the true patch statistics and visible patches are the original's."""

    split: str
    images: int
    examples: int

    @property
    def metrics(self) -> dict[str, bool]:
        """The loss."""
        return {"mae_loss": False}

    @property
    def reads(self) -> tuple[str, ...]:
        """The loss of each example, and two pictures of it."""
        return ("mae_loss", "masked", "reconstruction")

    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """Returns mae_loss, the mean over masked patches, and n, the images counted."""
        total, n, drawn = 0.0, 0, []
        stream = self.context.over(
            state, self.split, self.reads, images=True, limit=self.examples
        )
        for batch, out in stream:
            mask = batch["mask"] > 0
            mask &= np.cumsum(mask) <= self.examples - n
            total += float(out["mae_loss"][mask].sum())
            n += int(mask.sum())
            for i in np.flatnonzero(mask)[: self.images - len(drawn)]:
                pair = (out[name][i] for name in ("masked", "reconstruction"))
                drawn.append([batch["image"][i], *map(self._pixels, pair)])
        if distributed.is_primary():
            path = self.context.outdir / f"reconstruction_{step:07d}.png"
            paths.make_folder(path.parent)
            with path.open("wb") as file:
                Image.fromarray(grid(drawn)).save(file, format="png")
        return {"mae_loss": total / max(n, 1), "n": n}

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        """Converts normalised [H, W, C] to uint8."""
        mean, std = np.asarray(self.context.mean), np.asarray(self.context.std)
        pixels = np.nan_to_num(image.astype(np.float32) * std + mean) * 255
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def grid(
    rows: list[list[np.ndarray]],
    *,
    least: int = 96,
    columns: tuple[str, ...] = _COLUMNS,
) -> np.ndarray:
    """Draws a uint8 picture [H, W, 3]: two examples side by side in each row.

    `columns` are the titles above the images of an example.

    Small images are enlarged, pixel by pixel, to at least `least` pixels.
    """
    height, width = rows[0][0].shape[:2]
    scale = max(1, -(-least // min(height, width)))
    height, width = height * scale, width * scale
    block = len(columns) * (width + _GAP) + 3 * _GAP
    lines = -(-len(rows) // 2)
    size = (min(len(rows), 2) * block, _TITLE + lines * (height + _GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        line, half = divmod(number, 2)
        for column, image in enumerate(row):
            x = half * block + column * (width + _GAP)
            if line == 0:
                draw.text((x + 2, 2), columns[column], fill="black")
            tile = Image.fromarray(rgb(image)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            canvas.paste(tile, (x, _TITLE + line * (height + _GAP)))
    return np.asarray(canvas)


def rgb(image: np.ndarray) -> np.ndarray:
    """Converts [H, W, C] to [H, W, 3]: grey is repeated, further channels left out."""
    if image.shape[2] in (1, 2):
        return np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])
