"""The nearest images of a set for every image of a split, by the cosine of features."""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from litevit_jax import distributed
from litevit_jax.evaluators import base, embed, parts
from litevit_jax.evaluators.parts import Table, Written, partial

_AMONG = "train"  # split of the images that are searched, unless a file has them
_CHUNK = 2**14  # rows that are compared at once


def make(
    *,
    context: base.Context,
    among: str | None = None,
    target: str | None = None,
    split: str = "eval",
    top: int = 5,
    pool: str | None = None,
    block: int | None = None,
) -> Neighbours:
    """Builds the evaluator.

    Args:
      context: see base.
      among: an embedding, a .parquet or .npz file of `embed` by the same encoder;
        anything else: the images of split 'train', whose features are computed.
      target: new file; its ending says how: .csv or .jsonl. None: neighbours.csv in
        the run directory, where it replaces the last one.
      split: the images whose neighbours are looked for.
      top: neighbours of each image, the nearest first.
      pool, block: the features that are compared, see evaluator 'embed'.

    Raises:
      ValueError: an unknown ending or pool, no neighbour, or an embedding of images
        that were prepared in another way.
      FileExistsError: the target is there already.
    """
    if top < 1 or pool == "tokens":
        raise ValueError(
            f"neighbours: top={top} with pool={pool!r}; expected 1 neighbour or more, "
            "and one vector for each image: cls, avg or cls_avg"
        )
    workdir = context.outdir.parent
    own = workdir / "among.npz"
    features = embed.make(context=context, target="x.npz", pool=pool, block=block)
    features = dataclasses.replace(features, split=_AMONG, path=own)
    path = workdir / "neighbours.csv" if target is None else pathlib.Path(target)
    if target is not None:
        parts.check_target("neighbours", path, _WRITERS, [path])
    file = embedding_of(among)
    if file is not None:
        about = embed.read_about(file)
        wanted = {**parts.of_images(context), "reads": features.reads, "block": block}
        _check_same(file, about, wanted)
    return Neighbours(context, split, path, top, features, file)


def embedding_of(among: str | None) -> pathlib.Path | None:
    """Returns the embedding that `among` names; None if it names images.

    Raises:
      ValueError: a format of `embed` that does not say of which encoder it is.
      FileNotFoundError: it is not there.
    """
    path = pathlib.Path(among or "").expanduser()
    if path.suffix in (".npy", ".csv"):
        raise ValueError(
            f"neighbours: among={among}; expected an embedding that ends in "
            f"{' or '.join(embed.READABLE)}, which names its encoder, or images"
        )
    if path.suffix not in embed.READABLE:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"neighbours: among={among} does not exist")
    return path


def folder_of(file: pathlib.Path) -> str | None:
    """Returns where the images of an embedding are, if it says so."""
    return embed.read_about(file).get("folder")


def _check_same(
    file: pathlib.Path, about: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Raises ValueError if an embedding differs from what would be computed now."""
    for name, value in json.loads(json.dumps(wanted)).items():
        if about.get(name) != value:
            raise ValueError(
                f"{file} is an embedding with {name} {about.get(name)}, now {value}: "
                "its features cannot be compared; give the same model, pool, block and "
                "images (--config.pool=, --config.block=), or embed them again"
            )


@dataclasses.dataclass(frozen=True)
class Neighbours(base.Evaluator):
    """Writes the `top` nearest images of a set for every image of a split to `path`.

    Every pair is compared, in float64. Equally near images come in the order of the
    set; those that could not be read are no neighbours.

    Attributes:
      features: how they are computed, of the set too.
      among: an embedding of the set; None: it is computed, and kept in the run
        directory for the next command.
    """

    split: str
    path: pathlib.Path
    top: int
    features: embed.Embed
    among: pathlib.Path | None
    own_file: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that are compared."""
        return self.features.reads

    def check_data(self) -> None:
        """Lists the images that are searched, before anything is compiled."""
        if self.among is None:
            self.context.source(_AMONG)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns n, the images, `unreadable` among them, `among_n` and the file."""
        bank = embed.read(self._embedding(state, step))
        unit = _unit(bank.features)
        readable = int(np.isfinite(unit).all(axis=1).sum())
        if not readable:
            raise ValueError(
                "neighbours: none of the images to search could be read; give others "
                "with --config.among="
            )
        about = {"top": self.top, "among": bank.about["images"]}
        about |= self.features.about(state)
        file = parts.Parts(self.context, self.split, self.path, self.reads, about)

        def nearest_of(out: base.Rows) -> np.ndarray:
            return nearest(self.features.features(out), unit, min(self.top, readable))

        writer = functools.partial(_WRITERS[self.path.suffix], bank=bank)
        numbers = file.write(state, nearest_of, writer)
        del numbers["width"]
        return {**numbers, "among_n": len(bank.path)}

    def _embedding(self, state: Any, step: int) -> pathlib.Path:
        """Returns the file of the set's features, which is computed if need be."""
        if self.among is not None:
            about = embed.read_about(self.among)
            _check_same(self.among, about, self.features.about(state))
            return self.among
        own = self.features
        about = own.parts(state).described(state)
        if not distributed.run_on_primary(functools.partial(_kept, own.path, about)):
            own.run(state, step=step)
        return own.path


def _kept(path: pathlib.Path, about: dict[str, Any]) -> bool:
    """Whether the features that an earlier command left are those that are asked for.

    Others are removed.
    """
    try:
        if path.exists() and embed.read_about(path) == about:
            return True
    except ValueError:  # damaged: it is made again
        pass
    path.unlink(missing_ok=True)
    return False


def nearest(features: np.ndarray, unit: np.ndarray, top: int) -> np.ndarray:
    """Finds the nearest rows of a set.

    Args:
      features: [B, D], of which those that are no numbers have no neighbours.
      unit: float [n, D] of length 1; rows that are no numbers are passed over.
      top: how many.

    Returns:
      Row numbers and cosines, float64 [B, top, 2], the nearest first.
    """
    query = _unit(features)
    known = np.isfinite(query).all(axis=1)
    best = [np.zeros((0, 2)) for _ in query]
    for start in range(0, len(unit), _CHUNK):
        rows = unit[start : start + _CHUNK]
        cosine = np.clip(query @ rows.T, -1.0, 1.0)
        cosine[:, ~np.isfinite(rows).all(axis=1)] = -np.inf
        last = max(len(rows) - top, 0)
        least = np.partition(cosine, last, axis=1)[:, last]
        for i in np.flatnonzero(known):
            near = np.flatnonzero(cosine[i] >= least[i])
            pairs = np.stack([start + near, cosine[i, near]], axis=-1)
            pairs = np.concatenate([best[i], pairs])
            best[i] = pairs[np.argsort(-pairs[:, 1], kind="stable")[:top]]
    nothing = np.full((top, 2), np.nan)
    return np.stack([x if len(x) else nothing for x in best])


def _unit(features: np.ndarray) -> np.ndarray:
    """Scales rows [n, D] to length 1, in float64; zeros stay."""
    wide = features.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300)


class Row(NamedTuple):
    """A row of the file.

    Attributes:
      path: of the image.
      label: its class by the data, '' if that is not known.
      error: why it could not be read, or ''.
      nearest: (path, label, cosine) of its neighbours, the nearest first.
    """

    path: str
    label: str
    error: str
    nearest: list[tuple[str, str, float]]


def read(path: pathlib.Path, limit: int) -> list[Row]:
    """Reads the first `limit` rows of a file of neighbours."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            for line in itertools.islice(file, limit):
                row = json.loads(line)
                text = [row[name] or "" for name in parts.TEXT]
                each = row["neighbours"]
                near = [(x["path"], x["label"] or "", x["cosine"]) for x in each]
                rows.append(Row(text[0], text[1], text[2], near))
            return rows
        for row in itertools.islice(csv.reader(file), 1, limit + 1):
            triples = zip(row[3::3], row[4::3], row[5::3], strict=True)
            near = [(name, label, float(c)) for name, label, c in triples if c]
            rows.append(Row(row[0], row[1], row[2], near))
    return rows


def _rows(
    table: Table, bank: embed.Embedding
) -> Iterator[tuple[list[Any], list[tuple[str, str, float]]]]:
    """Yields (path, label and error, neighbours) of each image."""
    for numbers, columns in table.parts():
        text = zip(*(columns[name] for name in parts.TEXT), strict=True)
        for row, pairs in zip(text, numbers, strict=True):
            known = [(int(k), float(c)) for k, c in pairs if not np.isnan(c)]
            yield list(row), [(bank.path[k], bank.label[k], c) for k, c in known]


def _write_csv(path: pathlib.Path, table: Table, bank: embed.Embedding) -> Written:
    top = table.shape[0]
    names = ("neighbour", "label", "cosine")
    with partial(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = [f"{name}_{i}" for i in range(1, top + 1) for name in names]
        writer.writerow([*parts.TEXT, *head])
        for text, near in _rows(table, bank):
            cells = [cell for name, of, c in near for cell in (name, of, f"{c:.9g}")]
            writer.writerow([*text, *cells, *[""] * (3 * top - len(cells))])
    return [(partial(path), path)]


def _write_jsonl(path: pathlib.Path, table: Table, bank: embed.Embedding) -> Written:
    with partial(path).open("w", encoding="utf-8") as file:
        for text, near in _rows(table, bank):
            row = dict(zip(parts.TEXT, text, strict=True))
            each = [{"path": p, "label": of or None, "cosine": c} for p, of, c in near]
            file.write(json.dumps({**row, "neighbours": each}, ensure_ascii=False))
            file.write("\n")
    return [(partial(path), path)]


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl}
