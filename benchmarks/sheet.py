"""Puts figures of a report side by side, at web size, for a page of docs/.

    python benchmarks/sheet.py --out=docs/analysis_cka.png --titles=MAE,MoCo \\
        runs/analysis/report/cka-mae-mae.png runs/analysis/report/cka-moco-moco.png

Figures are drawn at twice their size on the page; here `--scale` shrinks them. They
appear in the order of the command line.
"""

from __future__ import annotations

from absl import app, flags
from PIL import Image, ImageDraw, ImageFont

OUT = flags.DEFINE_string("out", None, "The picture to write.", required=True)
COLUMNS = flags.DEFINE_integer("columns", 3, "Figures beside each other.")
TITLES = flags.DEFINE_list("titles", [], "The title above each figure.")
SCALE = flags.DEFINE_float("scale", 0.5, "Factor of the figures' own size.")


_HEAD = 26  # pixels of a title


def main(argv: list[str]) -> None:
    tiles = []
    for path in argv[1:]:
        picture = Image.open(path).convert("RGB")
        wide, high = (round(side * SCALE.value) for side in picture.size)
        size = (wide, high)
        small = picture.resize(size, Image.Resampling.LANCZOS)
        tile = Image.new("RGB", (size[0], size[1] + _HEAD), "white")
        tile.paste(small, (0, _HEAD))
        title = TITLES.value[len(tiles)] if TITLES.value else ""
        font = ImageFont.load_default(17)
        ImageDraw.Draw(tile).text((70, 5), title, "black", font)
        tiles.append(tile)
    wide, high = (max(tile.size[axis] for tile in tiles) + 8 for axis in (0, 1))
    rows = -(-len(tiles) // COLUMNS.value)
    sheet = Image.new("RGB", (wide * COLUMNS.value, high * rows), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS.value)
        sheet.paste(tile, (column * wide, row * high))
    sheet.quantize(128, dither=Image.Dither.NONE).save(OUT.value, optimize=True)


if __name__ == "__main__":
    app.run(main)
