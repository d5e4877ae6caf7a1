"""Reads a file of weights, by whatever program, into parameters of our names."""

from __future__ import annotations

import dataclasses
import json
import mmap
import pathlib
import re
from typing import Any

import numpy as np

from litevit_jax.weights import (
    detectron2,
    hf,
    infer,
    names,
    recognise,
    recorded,
    safetensors,
    torch_file,
)
from litevit_jax.weights.base import HALF, Entry, WeightsError

_MOST = 10  # differences that an error lists


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Attributes:
      params: 'encoder/blocks_0/attn/qkv/kernel' -> float32 array, in our layout;
        'decoder/...' where the file has a decoder, 'head/fc/...' and
        'head/fc_norm/...' of a classifier, 'head_dist/...' of a distilled one;
        'neck/...', 'rpn/...', 'box_head/...' and 'mask_head/...' of a detector.
      encoder: width, depth, num_heads, patch_size and pos_embed, as
        `vit.make_encoder` takes them; 'mlp_ratio' if it is not 4, 'grid' (which
        encoders do not take) if it is not square.
      decoder: width, depth and num_heads, or None.
      source: the program that wrote the file, as `recognise` names it.
      path: of the file.
      grid: rows and columns of patches that `pos_embed` was made for.
      pool: 'avg' or 'cls' where a head or a norm reads pooled tokens, else None.
      windows: of a detector's encoder, see `detectron2.windows`.
      unused: names in the file that were left out, all of them expected.
      notes: facts that a user should know.
      metadata: the text metadata of a file that this package wrote; of another
        program's file, mean, std, crop and classes if it records them.
    """

    params: dict[str, np.ndarray]
    encoder: dict[str, Any]
    decoder: dict[str, Any] | None
    source: str
    path: str
    grid: tuple[int, int]
    pool: str | None = None
    windows: dict[str, Any] | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def normalize(self) -> dict[str, tuple[float, ...]]:
        """Mean and std of each channel that the model was trained with, if recorded."""
        statistics = {
            k: names.parse_list(self.metadata.get(k)) for k in ("mean", "std")
        }
        return {k: tuple(map(float, v)) for k, v in statistics.items() if v}

    @property
    def detector(self) -> dict[str, Any]:
        """Settings of a detector of ours that shapes do not tell, if recorded."""
        own = self.metadata.get(names.WRITER) == names.PACKAGE
        return json.loads(self.metadata.get(names.DETECTOR, "{}")) if own else {}

    @property
    def loss(self) -> str:
        """The loss that its head learned by, as in `objective.loss`."""
        kind = self.metadata.get(names.PROBABILITIES, "softmax")
        return names.PROBABILITIES_OF[kind]

    @property
    def classes(self) -> list[str]:
        """Names of its head's classes, in order; [] if unknown."""
        return [
            str(name) for name in names.parse_list(self.metadata.get(names.CLASSES))
        ]


def read(
    path: str | pathlib.Path,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    branch: str | None = None,
    grid: tuple[int, int] | None = None,
    pool: str | None = None,
    act: str | None = None,
    norm: str | None = None,
    allow_half: bool = False,
    allow_unused: tuple[str, ...] = (),
    allow_missing: tuple[str, ...] = (),
) -> Weights:
    """Reads `.pth`, `.pth.tar`, `.bin` or `.safetensors`, recognised by its content.

    No code in the file is run. Sizes follow from shapes. The head count must be
    recorded (in the file, or in timm's `config.json` beside it), known for its source,
    or given; what else shapes do not give is assumed, and listed in `notes`.

    Args:
      path: of the file.
      num_heads: of the encoder, where the file does not record it.
      decoder_num_heads: of the decoder; one with unknown head count is left out.
      branch: 'base_encoder' (default) or 'momentum_encoder' of MoCo v3.
      grid: rows and columns of patches, where they differ.
      pool: 'avg' or 'cls', the tokens that a head or a norm after the blocks reads.
      act, norm: of the blocks, by timm's names; only 'gelu' and 'layernorm' pass.
      allow_half: whether to take float16 and bfloat16 weights, which have fewer digits.
      allow_unused, allow_missing: patterns of timm keys that may be unused, missing.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: it cannot be read, or not without a wrong result.
    """
    if not (path := pathlib.Path(path)).is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    sizes = {"num_heads": num_heads, "decoder_num_heads": decoder_num_heads}
    options = {"pool": pool, "act": act, "norm": norm}
    try:
        source, model, used, notes, metadata = _measure(
            path, branch, (*allow_unused, *allow_missing), options, grid=grid, **sizes
        )
        params, unused = _take(model, allow_half, allow_unused, allow_missing)
        params |= _of_heads(source.detector, allow_half)
    except ValueError as error:  # also of `models`, about sizes
        raise WeightsError(f"{path}: {error}") from None
    return Weights(
        params=params,
        encoder=model.encoder,
        decoder=model.decoder,
        source=source.name,
        path=str(path),
        grid=model.grid,
        pool=used,
        windows=detectron2.windows(model.shapes),
        unused=(*source.unused, *model.unused, *unused),
        notes=(*model.notes, *notes),
        metadata=metadata,
    )


def _measure(
    path: pathlib.Path,
    branch: str | None,
    expected: tuple[str, ...],
    given: dict[str, str | None],
    **sizes_given: Any,
) -> tuple[recognise.Source, infer.Model, str | None, tuple[str, ...], dict[str, str]]:
    """Returns the file's source, model, pooling, notes and metadata."""
    entries, container, metadata = _open(path)
    source = recognise.recognise(entries, container, metadata, branch)
    if source.detector is not None:
        expected = (*expected, "cls_token")
    recognise.check_parts(source.entries, lambda key: _any(expected, key))
    config: dict[str, Any] = {}
    notes: list[str] = []
    if source.name == "hf_vitmae":
        config = hf.config_beside(path)
        notes += hf.notes(config)
    elif source.name != names.PACKAGE:
        width = infer.width(source.entries)
        metadata = recorded.metadata(metadata, width)
        config, notes = recorded.config_beside(path, width)
    if names.GRID not in metadata:
        grid = recorded.grid(source.entries, config, metadata)
        metadata |= {names.GRID: "{}x{}".format(*grid)} if grid else {}
    model = infer.measure(source, metadata=metadata, config=config, **sizes_given)
    records = {"metadata": metadata, "config.json": config}
    pool, assumed = recorded.function(source.name, source.entries, records, given)
    if metadata.get(names.WRITER) != names.PACKAGE:
        metadata = recorded.of_images(source.entries, config, metadata)
    notes += recorded.check(metadata)
    notes += source.detector.notes if source.detector else ()
    return source, model, pool, (*notes, *assumed), metadata


def _open(path: pathlib.Path) -> tuple[dict[str, Entry], str | None, dict[str, str]]:
    """Entries, the key they were kept under, and metadata."""
    if not path.stat().st_size:
        raise WeightsError("the file is empty; copy or download it again")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _is_safetensors(path, data):
        entries, metadata = safetensors.read(data)
        return entries, None, metadata
    if torch_file.starts_like_one(data):
        tree, storage_bytes = torch_file.read(str(path), data)
        tree, container = recognise.state_dict(tree)
        return torch_file.entries(tree, storage_bytes, len(data)), container, {}
    raise WeightsError(
        f"begins with {data[:16]!r}: neither torch.save's format nor safetensors (a "
        "web page or a pointer to a large file was downloaded in its place?)"
    )


def _is_safetensors(path: pathlib.Path, data: mmap.mmap) -> bool:
    """Whether a file is safetensors by its format, or by its ending if it is cut off.

    The first byte is not enough: 0x80 begins a pickle, and also a header of 128 bytes.
    """
    if safetensors.starts_like_one(data):
        return True
    cut_off = data[8:9] in (b"{", b"")
    other = torch_file.starts_like_one(data) and not cut_off
    return path.suffix == ".safetensors" and not other


def _take(
    model: infer.Model, allow_half: bool, allow_unused: Any, allow_missing: Any
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters by our names, and keys that were allowed to stay unused.

    Raises:
      WeightsError: entries are missing, unused, of other shapes or types.
    """
    params, unused, problems = {}, [], []
    for key, entry in model.entries.items():
        name = names.from_timm(key)
        if name not in model.shapes:
            if _any(allow_unused, key):
                unused.append(key)
            else:
                problems.append(f"{key} {list(entry.shape)}: unused, {_why(name)}")
            continue
        problem = _problem(name, entry, model.shapes[name], allow_half)
        if problem:
            problems.append(f"{key}: {problem}")
        else:
            params[name] = _read(key, name, entry)
    seen = {names.from_timm(key) for key in model.entries}
    for name in model.shapes.keys() - seen:
        key = str(names.to_timm(name))
        if not _any(allow_missing, key):
            problems.append(f"{key}: missing")
    if problems:
        raise WeightsError(_listed(model, problems))
    return params, unused


def _of_heads(
    parts: detectron2.Parts | None, allow_half: bool
) -> dict[str, np.ndarray]:
    """Parameters of a detector's pyramid and heads by our names.

    Raises:
      WeightsError: unknown names, or numbers of another type.
    """
    entries = {} if parts is None else parts.others
    for key, entry in entries.items():
        problem = _wrong_type(entry, allow_half)
        if problem:
            raise WeightsError(f"{key}: {problem}")
    arrays = {k: entry.read().astype(np.float32) for k, entry in entries.items()}
    for key, array in arrays.items():
        _check_finite(key, array)
    return detectron2.from_detectron2(arrays)


def _listed(model: infer.Model, problems: list[str]) -> str:
    """The differences, ordered, at most `_MOST` of them in full."""
    encoder = ", ".join(f"{k}={v}" for k, v in model.encoder.items())
    shown = [problem[:200] for problem in sorted(problems)[:_MOST]]
    more = len(problems) - len(shown)
    return (
        f"its entries are not those of an encoder with {encoder} ({len(problems)} "
        "differences):\n  " + "\n  ".join(shown) + (f"\n  and {more} more" * bool(more))
    )


def _any(patterns: tuple[str, ...], key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _why(name: str | None) -> str:
    return "unknown here" if name is None else "this model has none"


def _problem(
    name: str, entry: Entry, expected: tuple[int, ...], allow_half: bool
) -> str | None:
    """Describes a wrong type or shape of an entry; None if both are right."""
    if problem := _wrong_type(entry, allow_half):
        return problem
    if names.shape_from_timm(name, entry.shape) != expected:
        # Only the patch kernel has another rank in PyTorch, and it was checked before.
        wanted = expected[::-1] if name.endswith("/kernel") else expected
        return f"got shape {list(entry.shape)}, expected {list(wanted)}"
    return None


def _wrong_type(entry: Entry, allow_half: bool) -> str | None:
    if entry.dtype in HALF and not allow_half:
        return (
            f"is {entry.dtype}, expected float32; allow_half takes it as it is, with "
            "fewer digits"
        )
    if entry.dtype not in (*HALF, "float32", "float64"):
        return f"is {entry.dtype}, expected float32"
    return None


def _read(key: str, name: str, entry: Entry) -> np.ndarray:
    array = names.array_from_timm(name, entry.read().astype(np.float32))
    _check_finite(key, array)
    return array


def _check_finite(key: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise WeightsError(f"{key[:80]} is not finite (NaN or infinite numbers)")
