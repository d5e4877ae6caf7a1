"""Draws sheets of images: attention, patch tokens, reconstructions of masked images."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from litevit_jax import choices
from litevit_jax.analysis import capture, features, images, models
from litevit_jax.data import subsets
from litevit_jax.evaluators import reconstruction

_TILE, _GAP, _HEAD = 112, 4, 24
FOLDER = "figures"


def draw_all(
    loaded: list[models.Model],
    source: subsets.Subset,
    workdir: pathlib.Path,
    *,
    data: ConfigDict,
    maps: ConfigDict,
    reconstructions: int,
) -> dict[str, Any]:
    """Draws attention, patch tokens and reconstructions of the first images.

    Args:
      loaded: the models.
      source: the images.
      workdir: of the analysis, where the pictures go.
      data: how the images are read.
      maps: `config.maps`, for how many images, and which maps.
      reconstructions: for how many images.

    Returns:
      'maps', 'patches' and 'reconstructions', a dict for each sheet with its 'file';
      and 'picture_notes', why others were not drawn.
    """
    few, many = maps.images, reconstructions
    kinds = ("maps", "patches", "reconstructions", "picture_notes")
    drawn: dict[str, list] = {kind: [] for kind in kinds}
    if not max(few, many):
        return drawn
    (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
    shown = images.first(data, loaded, source, max(few, many))
    for model in loaded:
        rows = shown[model.name]
        if few:
            part = rows["image"][:few]
            tokens = [_query(query, model.grid) for query in maps.queries]
            attended, patches = capture.look(model, part, tokens)
            drawn["maps"] += _maps(maps, model, part, attended, workdir)
            drawn["patches"].append(_patches(model, part, patches, workdir))
        if many and model.painter is None:
            drawn["picture_notes"].append(
                f"{model.name}: no reconstructions, as {_why_none(model)}."
            )
        elif many:
            part = {k: x[:many] for k, x in rows.items()}
            drawn["reconstructions"].append(_sheet(model, part, workdir))
    return drawn


def _why_none(model: models.Model) -> str:
    if model.path.startswith("random:"):
        return "a random model is only an encoder"
    if model.config:
        return "its checkpoint has no decoder"
    return (
        "its file has no decoder, or does not record its heads "
        "(--config.decoder_num_heads)"
    )


def check(maps: ConfigDict, loaded: list[models.Model]) -> None:
    """Raises a ValueError for layers, heads or queries that a model does not have."""
    for model in loaded:
        depth, heads = model.encoder.depth, model.encoder.num_heads
        for layer in maps.layers:
            if not -depth <= layer <= depth or layer == 0:
                raise ValueError(
                    f"maps.layers={tuple(maps.layers)}: {model.name} has layers "
                    f"1 to {depth} (or -1, the last, to -{depth})"
                )
        for head in maps.heads:
            if not 1 <= head <= heads:
                raise ValueError(
                    f"maps.heads={tuple(maps.heads)}: {model.name} has heads 1 "
                    f"to {heads}"
                )
        for query in maps.queries:
            _query(query, model.grid)


def _query(query: str, grid: tuple[int, int]) -> int:
    """The token of 'cls', 'center', or 'ROW/COLUMN' of a patch, counted from 0."""
    rows, columns = grid
    row, slash, column = str(query).partition("/")
    if query == "cls":
        return 0
    if query == "center":
        return 1 + rows // 2 * columns + columns // 2
    if slash and row.isdigit() and column.isdigit():
        if int(row) < rows and int(column) < columns:
            return 1 + int(row) * columns + int(column)
        raise ValueError(
            f"maps.queries: {query!r} is outside of the {rows}x{columns} patches"
        )
    known = ["cls", "center", "ROW/COLUMN"]
    raise ValueError(f"maps.queries: {choices.suggest(query, known)} (got {query!r})")


def _maps(
    maps: ConfigDict,
    model: models.Model,
    shown: np.ndarray,
    rows: np.ndarray,
    workdir: pathlib.Path,
) -> list[dict[str, Any]]:
    """Draws a sheet for each query and layer: a row per image, a column per head.

    `rows` are attention `[L, B, A, Q, N]`, see `capture.look`.
    """
    sheets = []
    heads = list(maps.heads) or [*range(1, model.encoder.num_heads + 1)]
    for index, query in enumerate(maps.queries):
        for layer in maps.layers:
            number = layer if layer > 0 else model.encoder.depth + 1 + layer
            sheet = attention_sheet(
                shown,
                rows[number - 1, :, :, index],
                model.grid,
                heads=heads,
                token=_query(query, model.grid),
            )
            name = f"{FOLDER}/attention-{model.name}-layer{number}-"
            name += f"{str(query).replace('/', '_')}.png"
            Image.fromarray(sheet).save(workdir / name, optimize=True)
            sheets.append(
                {
                    "model": model.name,
                    "layer": number,
                    "query": str(query),
                    "heads": heads,
                    "images": len(shown),
                    "file": name,
                }
            )
    return sheets


def attention_sheet(
    shown: np.ndarray,
    rows: np.ndarray,
    grid: tuple[int, int],
    *,
    heads: list[int],
    token: int,
) -> np.ndarray:
    """Draws a uint8 picture: each image, then the mean over heads, then single heads.

    Args:
      shown: uint8 `[B, H, W, C]`.
      rows: attention of one query `[B, A, N]`.
      grid: rows and columns of patches.
      heads: the heads to draw, counted from 1.
      token: the query; 0 is the class token, a patch gets a white frame.
    """
    lines = []
    for image, row in zip(shown, rows, strict=True):
        tile = _tile(image)
        maps = [row.mean(axis=0), *(row[head - 1] for head in heads)]
        tiles = [tile, *(_overlay(tile, x.reshape(grid)) for x in maps)]
        for picture in tiles if token else ():
            _frame(picture, token - 1, grid)
        lines.append(tiles)
    return _lined(["image", "mean", *(f"head {head}" for head in heads)], lines)


def _patches(
    model: models.Model, shown: np.ndarray, tokens: np.ndarray, workdir: pathlib.Path
) -> dict[str, Any]:
    """Draws the principal components of patch tokens `[B, N, D]`, a row per image."""
    scores, share = features.principal(tokens)
    name = f"{FOLDER}/patches-{model.name}.png"
    sheet = patch_sheet(shown, scores, model.grid)
    Image.fromarray(sheet).save(workdir / name, optimize=True)
    return {
        "model": model.name,
        "images": len(shown),
        "share": share.tolist(),
        "file": name,
    }


def patch_sheet(
    shown: np.ndarray, scores: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """Draws a uint8 picture: each image, three components as RGB, then each in grey.

    The range of a component is that of all images, so that a colour means the same in
    each.

    Args:
      shown: uint8 `[B, H, W, C]`.
      scores: components of the patch tokens `[B, N, 3]`.
      grid: rows and columns of patches.
    """
    low, high = scores.min(axis=(0, 1)), scores.max(axis=(0, 1))
    share = (scores - low) / np.where(high > low, high - low, 1)
    levels = np.where(high > low, np.round(255 * share), 128).astype(np.uint8)
    lines = []
    for image, level in zip(shown, levels, strict=True):
        colors = level.reshape(*grid, 3)
        tiles = [colors, *np.moveaxis(colors, 2, 0)]
        lines.append([_tile(image), *map(_upsampled, tiles)])
    return _lined(["image", "1 to 3", "first", "second", "third"], lines)


def _upsampled(levels: np.ndarray) -> Image.Image:
    """Enlarges uint8 `[R, C]` or `[R, C, 3]` smoothly to a tile."""
    way = Image.Resampling.BICUBIC
    return Image.fromarray(levels).resize((_TILE, _TILE), way).convert("RGB")


def _lined(titles: list[str], lines: list[list[Image.Image]]) -> np.ndarray:
    """Puts lines of tiles below their titles."""
    size = (len(titles) * (_TILE + _GAP), _HEAD + len(lines) * (_TILE + _GAP))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(17)
    for column, title in enumerate(titles):
        at = (column * (_TILE + _GAP) + 2, 17)
        ImageDraw.Draw(sheet).text(at, title, "#1c2530", font, anchor="ls")
    for line, tiles in enumerate(lines):
        for column, tile in enumerate(tiles):
            at = (column * (_TILE + _GAP), _HEAD + line * (_TILE + _GAP))
            sheet.paste(tile, at)
    return np.asarray(sheet)


def _tile(image: np.ndarray) -> Image.Image:
    pixels = reconstruction.rgb(image)
    small = max(pixels.shape[:2]) < _TILE
    way = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    return Image.fromarray(pixels).resize((_TILE, _TILE), way)


def _overlay(tile: Image.Image, weights: np.ndarray) -> Image.Image:
    """Lays colours of `weights [R, C]`, the largest brightest, over a grey image."""
    import matplotlib  # late: its import takes long

    share = weights / max(float(weights.max()), 1e-12)
    colors = matplotlib.colormaps["viridis"](share, bytes=True)[..., :3]
    size, way = (_TILE, _TILE), Image.Resampling.NEAREST
    colored = Image.fromarray(colors).resize(size, way)
    return Image.blend(tile.convert("L").convert("RGB"), colored, 0.6)


def _frame(picture: Image.Image, patch: int, grid: tuple[int, int]) -> None:
    row, column = divmod(patch, grid[1])
    high, wide = _TILE / grid[0], _TILE / grid[1]
    box = (column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1)
    ImageDraw.Draw(picture).rectangle(box, outline="white", width=2)


def _sheet(
    model: models.Model, rows: dict[str, np.ndarray], workdir: pathlib.Path
) -> dict[str, Any]:
    """Draws original, masked and reconstructed images side by side."""
    out = capture.reconstructions(model, rows["image"], rows["index"])
    mean, std = (np.asarray(x) for x in (model.view.mean, model.view.std))

    def pixels(image: np.ndarray) -> np.ndarray:
        return np.clip(np.round((image * std + mean) * 255), 0, 255).astype(np.uint8)

    drawn = [
        [image, pixels(masked), pixels(painted)]
        for image, masked, painted in zip(
            rows["image"], out["masked"], out["reconstruction"], strict=True
        )
    ]
    name = f"{FOLDER}/reconstruction-{model.name}.png"
    Image.fromarray(reconstruction.grid(drawn)).save(workdir / name, optimize=True)
    return {
        "model": model.name,
        "images": len(drawn),
        "mae_loss": [float(x) for x in out["mae_loss"]],
        "file": name,
    }
