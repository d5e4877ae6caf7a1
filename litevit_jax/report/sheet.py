"""Contact sheets: one HTML file with small copies of images and lines about each."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from litevit_jax import paths
from litevit_jax.data import decode
from litevit_jax.report import page

_FOOTER = "Images are small copies inside this file; it needs nothing beside it."


class Thumbnails:
    """Makes small copies of images.

    Args:
      data: block of a config, which says how bytes become pixels.
    """

    def __init__(self, data: Any) -> None:
        self._decode = decode.Decode(
            channels=data["channels"],
            max_pixels=data["max_pixels"],
            range=data["range"] or "full",
        )

    def tile(self, name: str, read: Callable[[], Any], **about: Any) -> page.Tile:
        """Makes the tile of an image.

        Args:
          name: of the image.
          read: returns its bytes or pixels.
          about: further fields of the tile.
        """
        try:
            photo = page.thumbnail(_picture(self._decode(read())))
        except Exception as error:  # whatever a file system or a format may raise
            about.setdefault("note", str(error))
            photo = None
        if photo is not None and self._decode.channels not in (1, 3):
            line = (f"shown: channel 1 of {self._decode.channels}", None)
            about["lines"] = [*about.get("lines", ()), line]
        return page.Tile(name, photo, **about)


def _picture(image: decode.Image) -> Image.Image:
    """Returns an image as a picture; of many channels, the first one is shown."""
    if not isinstance(image, np.ndarray):
        return image
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0]))


def write(
    path: pathlib.Path, title: str, subtitle: str, sections: Sequence[page.Section]
) -> None:
    """Writes the page."""
    paths.replace_text(path, page.render(title, subtitle, sections, _FOOTER))
