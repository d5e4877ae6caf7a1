"""Recognises the program that wrote a file of weights by its container and names.

Containers, prefixes and known head counts: recipes 11.1 and 1.1. A prefix is taken
off the start of a name only, and only where it says which model the entry is of.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from litevit_jax import choices
from litevit_jax.models import layers
from litevit_jax.weights import detectron2, hf, mmseg, names
from litevit_jax.weights.base import Entry, WeightsError

BRANCHES = ("base_encoder", "momentum_encoder")
CONTAINERS = ("model", "state_dict")

# (width, depth) -> heads, where the program that wrote the file leaves no choice.
# timm and DeiT have other head counts at these sizes, and their files record none.
_STANDARD = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_MAE_LITE = {(192, 12): 12, (384, 12): 12} | _STANDARD
HEADS = {
    "mae": _STANDARD,
    "mae_lite": _MAE_LITE,
    "mae_lite_distill": _MAE_LITE,
    "mae_lite_classifier": _MAE_LITE,
    "mae_lite_moco": {(192, 12): 12, (384, 12): 6, (768, 12): 12},
    "moco_v3": {(384, 12): 12, (768, 12): 12},
}
DECODER_HEADS = {(512, 8): 16, (96, 1): 3, (192, 1): 6}

# Entries of pre-training alone, which nothing here reads.
_LEFTOVERS = {
    "mae_lite": r"(tch_model|attn_adapter|hidden_adapter)\..*",
    "moco": r"(base_encoder|momentum_encoder|predictor)\..*",
}
_SCALE = "LayerScale"
# Names of other vision transformers -> what they have that ours lack.
_FOREIGN = (
    (r"reg_token|register_tokens", "register tokens"),
    (r"blocks\.0\.(ls[12]\.gamma|gamma_[12])", _SCALE),
    (r"blocks\.0\.attn\.[qk]_norm\..*", "normalised queries and keys"),
    (r"blocks\.0\.mlp\.(w12|w3|fc1_g|fc1_x|norm)\..*", "a gated MLP"),
    (r"norm_pre\..*", "a norm before the blocks"),
    (r"attn_pool\..*", "pooling by attention"),
    (r"patch_embed\.backbone\..*", "a convolutional network before the patches"),
)
_PROJECTOR = r"head\.\d+\..*"
_POS_ATOL = 1e-5  # MoCo's float32 table is 5e-7 from ours (recipes 1.2)


@dataclasses.dataclass(frozen=True)
class Source:
    """The entries of a file under timm keys.

    Attributes:
      name: of the program, and of the model where it has several.
      entries: those of the model, with unknown names among them.
      unused: names in the file that are expected and not needed.
      detector: its parts, if the file is one of detectron2's.
    """

    name: str
    entries: dict[str, Entry]
    unused: tuple[str, ...] = ()
    detector: detectron2.Parts | None = None


def state_dict(tree: Any) -> tuple[dict[str, Any], str | None]:
    """The state dict in what `torch.save` wrote, and the key it is kept under.

    Raises:
      WeightsError: there is none, or more than one.
    """
    if not isinstance(tree, dict):
        raise WeightsError(f"it holds a {type(tree).__name__}, expected a state dict")
    containers = [name for name in CONTAINERS if isinstance(tree.get(name), dict)]
    if len(containers) > 1:
        raise WeightsError(
            f"it holds both {containers[0]!r} and {containers[1]!r}; save one"
        )
    return (tree[containers[0]], containers[0]) if containers else (tree, None)


def recognise(
    entries: dict[str, Entry], container: str | None, metadata: dict, branch: str | None
) -> Source:
    """Recognises the source of a file and renames its entries to timm keys.

    Args:
      entries: as the file names them.
      container: the key that the state dict was kept under, if any.
      metadata: of a safetensors file.
      branch: which encoder of a MoCo file; None takes 'base_encoder'.

    Raises:
      WeightsError: an architecture that differs from ours, or a missing branch.
    """
    if entries and all(key.startswith("module.") for key in entries):
        entries = {key.removeprefix("module."): e for key, e in entries.items()}
    starts = {key.split(".")[0] for key in entries}
    if starts & set(BRANCHES):
        return _moco(entries, container, branch or BRANCHES[0])
    if branch is not None:
        raise WeightsError(f"branch={branch!r} is for files of MoCo v3; this is none")
    if detectron2.is_one(entries):
        parts = detectron2.split(entries)
        writer = metadata.get(names.WRITER, "detectron2")
        return Source(writer, parts.encoder, parts.unused, parts)
    if mmseg.is_one(set(entries)):
        kept, unused = mmseg.split(set(entries))
        renamed = {mmseg.to_timm(key): entries[key] for key in kept}
        writer = metadata.get(names.WRITER, "mmseg")  # ours, or another
        return Source(writer, renamed, tuple(unused))
    if metadata.get(names.WRITER) == names.PACKAGE:
        return Source(names.PACKAGE, entries)
    if "model" in starts:
        return _mae_lite(entries)
    if "vit" in starts:
        return Source("hf_vitmae", hf.to_timm(entries))
    return Source(_plain_name(entries, container), *_without_mask_token(entries))


def _moco(entries: dict[str, Entry], container: str | None, branch: str) -> Source:
    if branch not in BRANCHES:
        hint = choices.suggest(branch, BRANCHES)
        raise WeightsError(f"branch={branch!r} unknown; {hint}")
    own, rest = _split(entries, f"{branch}.", _LEFTOVERS["moco"])
    if not own:
        raise WeightsError(f"a file of MoCo v3 without {branch}.*")
    unused = [key for key in own if re.fullmatch(_PROJECTOR, key)]
    kept = {key: e for key, e in own.items() if key not in unused}
    name = "moco_v3" if container == "state_dict" else "mae_lite_moco"
    return Source(name, kept, (*rest, *(f"{branch}.{key}" for key in unused)))


def _mae_lite(entries: dict[str, Entry]) -> Source:
    own, rest = _split(entries, "model.", _LEFTOVERS["mae_lite"])
    extra = _attention_only_block(own)
    kept, unused = _without_mask_token(
        {key: e for key, e in own.items() if key not in extra}
    )
    name = "mae_lite"
    if "head.weight" in own:
        name = "mae_lite_classifier"
    elif rest or extra:
        name = "mae_lite_distill"
    return Source(name, kept, (*rest, *(f"model.{key}" for key in (*extra, *unused))))


def _split(entries: dict[str, Entry], prefix: str, leftovers: str) -> tuple[dict, list]:
    """Entries without their prefix (or none, if unknown), and expected leftovers."""
    own, rest = {}, []
    for key, entry in entries.items():
        if key.startswith(prefix):
            own[key.removeprefix(prefix)] = entry
        elif re.fullmatch(leftovers, key):
            rest.append(key)
        else:
            own[key] = entry
    if all(key in entries for key in own):
        own = {}
    return own, rest


def _attention_only_block(entries: dict[str, Entry]) -> list[str]:
    """Keys of a last block that has no more than norm1 and qkv.

    Decoupled distillation adds one; only the blocks before it serve afterwards
    (recipes 3).
    """
    last = max((_block_of(key) for key in entries), default=-1)
    keys = [key for key in entries if _block_of(key) == last >= 0]
    partial = all(re.search(r"\.(norm1|attn\.qkv)\.\w+$", key) for key in keys)
    return keys if partial else []


def _block_of(key: str) -> int:
    match = re.match(r"blocks\.(\d{1,4})\.", key)
    return int(match[1]) if match else -1


def _without_mask_token(entries: dict[str, Entry]) -> tuple[dict, tuple[str, ...]]:
    """Removes a mask token whose decoder is missing; returns its key too."""
    if "mask_token" not in entries or "decoder_embed.weight" in entries:
        return entries, ()
    kept = {key: e for key, e in entries.items() if key != "mask_token"}
    return kept, ("mask_token",)


def check_parts(entries: dict[str, Entry], expected: Callable[[str], bool]) -> None:
    """Raises a WeightsError for a vision transformer that ours cannot be.

    Args:
      entries: under timm keys.
      expected: whether a key may be unused or missing.
    """
    if "patch_embed.proj.weight" not in entries:
        return
    biased = any(key.endswith(names.BIAS_TABLE) for key in entries)
    parts: dict[str, list[str]] = {}
    for key in sorted(entries):
        for pattern, what in _FOREIGN:
            # Blocks with a bias table have such factors here too.
            supported = biased and what == _SCALE
            if re.fullmatch(pattern, key) and not supported and not expected(key):
                parts.setdefault(what, []).append(key)
    problems = [f"{what} ({_shown(keys, entries)})" for what, keys in parts.items()]
    table = entries.get("pos_embed")
    if "cls_token" not in entries and not expected("cls_token"):
        rows = "" if table is None else f" (pos_embed {list(table.shape)})"
        problems.append(f"no class token{rows}")
    if table is None and not expected("pos_embed"):
        problems.append("no pos_embed (rotary positions, or relative ones alone)")
    endings = (".attn.qkv.bias", ".attn.q_bias")
    if any(key.endswith(".attn.qkv.weight") for key in entries) and not (
        any(key.endswith(endings) for key in entries)
        or expected("blocks.0.attn.qkv.bias")
    ):
        problems.append("queries, keys and values without a bias")
    if problems:
        raise WeightsError(
            "it is a vision transformer of another kind than this package's encoders; "
            f"it has {', '.join(problems)}. Expected a class token, a pos_embed with a "
            "row for it, and blocks as in timm's plain vit_* and deit_*: take such a "
            "model"
        )


def _shown(keys: list[str], entries: dict[str, Entry]) -> str:
    """The first key with its shape, and the number of further keys."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{keys[0][:60]} {list(entries[keys[0]].shape)}{more}"


def _plain_name(entries: dict[str, Entry], container: str | None) -> str:
    if "dist_token" in entries:
        raise WeightsError(
            "it has a dist_token: DeiT's distilled models have two extra tokens, ours "
            "one; take the model without distillation"
        )
    if any(re.fullmatch(r"(blocks\.\d+\.attn\.)?rel_pos.*", key) for key in entries):
        raise WeightsError(
            "it has relative positions of another kind than this package's encoder, "
            "whose blocks have a relative_position_bias_table each"
        )
    if is_classifier(entries):
        return "deit" if container == "model" else "timm"
    decodes = "decoder_embed.weight" in entries
    return "mae" if decodes or pos_kind(entries, None) == "sincos" else "timm"


def is_classifier(entries: dict[str, Entry]) -> bool:
    """Whether the model has a head that reads pooled tokens."""
    return bool({"head.weight", "fc_norm.weight"} & entries.keys())


def pos_kind(entries: dict[str, Entry], grid: tuple[int, int] | None) -> str:
    """Returns the `pos_embed` of `vit.make_encoder` that fits the file's table.

    A table that equals a fixed one is no parameter; a classifier's was trained, and is
    'learned' whatever it holds.
    """
    entry = entries.get("pos_embed")
    if entry is None or is_classifier(entries) or len(entry.shape) != 3:
        return "learned"
    grid = grid or names.square_grid(entry.shape[1] - 1)
    if grid is None or entry.shape[2] % 4:
        return "learned"
    table = entry.read()
    for kind in ("sincos", "sincos_moco"):
        if equals_table(table, grid, kind):
            return kind
    return "learned"


def equals_table(table: np.ndarray, grid: tuple[int, int], kind: str) -> bool:
    """Whether `[1, 1 + N, D]` is the fixed table of that kind."""
    if table.ndim != 3 or table.shape[:2] != (1, 1 + grid[0] * grid[1]):
        return False
    wanted = layers.sincos_table(grid, table.shape[2], kind)
    return bool(np.abs(table[0] - wanted).max() <= _POS_ATOL)
