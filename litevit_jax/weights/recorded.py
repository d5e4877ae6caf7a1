"""Facts that shapes do not give: recorded by a file's writer, or given by the user.

timm keeps them in a `config.json` beside the file, or as text in the metadata of a
safetensors file: the model's name, its arguments and its `pretrained_cfg`.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from typing import Any

from litevit_jax.weights import names
from litevit_jax.weights.base import Entry, WeightsError, short

# The functions that this package computes, by timm's names; files must agree.
COMPUTED = {"act": "gelu", "norm": "layernorm"}
_INTERPOLATION = "bicubic"
_OWN_WORDS = ("crop", "interpolation", names.CLASSES)
_ABOUT = {"gelu": "by the error function", "layernorm": "with epsilon 1e-6"}
POOLS = {"avg": "avg", "cls": "cls", "token": "cls"}
_TIMM_KEYS = {"pool": "global_pool", "act": "act_layer", "norm": "norm_layer"}
# Sizes of timm's and DeiT's names -> width and heads.
_HEADS = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
}


def config_beside(path: pathlib.Path, width: int) -> tuple[dict[str, Any], list[str]]:
    """Reads timm's `config.json` in the file's folder; returns facts and notes.

    Returns:
      `num_attention_heads`, `image_size`, `pool`, `act`, `norm`, `mean`, `std`, `crop`,
      `interpolation` and `classes` where recorded; {} without such a file, or with that
      of another model.

    Raises:
      WeightsError: it is damaged, or its mean or std is not usable.
    """
    file = path.parent / "config.json"
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}, []
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError):
        raise WeightsError(f"{file} beside it is no JSON") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return {}, []
    recorded_width = config.get("num_features", width)
    if recorded_width != width:
        got = short(recorded_width)
        note = f"{file} is of another model: its width is {got}, not {width}"
        return {}, [note]
    return _facts(config, width), []


def metadata(text: dict[str, str], width: int) -> dict[str, str]:
    """Adds the facts that metadata holds under timm's names under our own names.

    Raises:
      WeightsError: its mean or std is not usable.
    """
    parsed: dict[str, Any] = {}
    for key, value in text.items():
        try:
            parsed[key] = json.loads(value) if value.startswith("{") else value
        except (ValueError, RecursionError):
            continue
    facts = _facts(parsed, width)
    texts = {key: facts[key] for key in _TIMM_KEYS if key in facts}
    if "num_attention_heads" in facts:
        texts[names.NUM_HEADS] = str(facts["num_attention_heads"])
    if "image_size" in facts:
        texts["image_size"] = "{}x{}".format(*facts["image_size"])
    texts |= {key: json.dumps(facts[key]) for key in ("mean", "std") if key in facts}
    # Other writers may mean something else by these words.
    text = {key: value for key, value in text.items() if key not in _OWN_WORDS}
    texts |= {key: _text(facts[key]) for key in _OWN_WORDS if key in facts}
    return {**texts, **text}


def _text(fact: Any) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact)


def _facts(config: dict[str, Any], width: int) -> dict[str, Any]:
    """Returns the facts in timm's config under this package's names."""
    arguments = config.get("model_args")
    three = (arguments, config, config.get("pretrained_cfg"))
    blocks: list[dict[str, Any]] = [x for x in three if isinstance(x, dict)]

    def look(key: str) -> Any:
        return next((block[key] for block in blocks if block.get(key)), None)

    facts = {name: look(key) for name, key in _TIMM_KEYS.items()}
    architecture = str(look("architecture") or "")
    if "quickgelu" in architecture:
        facts["act"] = "quick_gelu"
    size = re.match(r"(?:vit|deit3?)_([a-z]+)_", architecture)
    standard, heads = _HEADS.get(size[1] if size else "", (None, None))
    given = arguments.get("num_heads") if isinstance(arguments, dict) else None
    facts["num_attention_heads"] = given or (heads if standard == width else None)
    facts["image_size"] = _sides(look("img_size") or look("input_size"))
    facts["crop"], facts["interpolation"] = look("crop_pct"), look("interpolation")
    labels = look("label_names")
    whole = isinstance(labels, list) and all(isinstance(x, str) for x in labels)
    facts[names.CLASSES] = labels if whole else None
    for key in ("mean", "std"):
        values = (block.get(key) for block in blocks)
        # Text is a file's own metadata, which is not timm's.
        given = (x for x in values if x is not None and not isinstance(x, str))
        facts[key] = _statistics(key, next(given, None))
    return {key: value for key, value in facts.items() if value is not None}


def _statistics(key: str, values: Any) -> list[float] | None:
    """Reads means or deviations of channels from a value of timm's config."""
    if values is None:
        return None
    values = values if isinstance(values, list | tuple) else [values]
    numbers = values and all(
        type(x) in (int, float) and math.isfinite(x) for x in values
    )
    if not numbers or (key == "std" and min(values) <= 0):
        raise WeightsError(
            f"timm's config says {key}={short(values)} of its images; expected one "
            f"finite number{' above 0' * (key == 'std')} for each channel: correct it "
            f"there, or remove {key}"
        )
    return list(map(float, values))


def check(text: dict[str, str]) -> list[str]:
    """Checks what metadata says of images and head; returns notes.

    Raises:
      WeightsError: a crop or kind of probabilities that nothing here can use.
    """
    kind, crop = text.get(names.PROBABILITIES), text.get("crop")
    if kind not in (None, *names.PROBABILITIES_OF):
        raise WeightsError(
            f"its metadata say {names.PROBABILITIES}={short(kind)}; expected "
            f"{' or '.join(names.PROBABILITIES_OF)}"
        )
    try:
        usable = crop is None or 0 < float(crop) <= 1
    except ValueError:
        usable = False
    if not usable:
        raise WeightsError(
            f"its metadata say crop={short(crop)}; expected the share of the shorter "
            "side that evaluations keep, above 0 and at most 1"
        )
    method = text.get("interpolation", _INTERPOLATION)
    return [_other_interpolation(method)] if method != _INTERPOLATION else []


def _other_interpolation(method: str) -> str:
    return (
        f"its images were resized by {short(method)} interpolation, here they are by "
        f"{_INTERPOLATION}: numbers differ a little"
    )


def of_images(
    entries: dict[str, Entry], config: dict[str, Any], text: dict[str, str]
) -> dict[str, str]:
    """Returns what is recorded of images and classes, as text.

    Mean and std are among it if both have a number for each channel, classes if the
    head has as many.
    """
    texts = {k: _text(config[k]) for k in _OWN_WORDS if k in config}
    texts = {k: text[k] for k in _OWN_WORDS if k in text} | texts
    head = entries.get("head.weight")
    count = len(names.parse_list(texts.get(names.CLASSES)))
    if head is None or head.shape[0] != count:
        texts.pop(names.CLASSES, None)
    return texts | _statistics_of(entries, config, text)


def _statistics_of(
    entries: dict[str, Entry], config: dict[str, Any], text: dict[str, str]
) -> dict[str, str]:
    kernel = entries.get("patch_embed.proj.weight")
    known = {key: json.dumps(config[key]) for key in ("mean", "std") if key in config}
    known = {key: text.get(key, known.get(key)) for key in ("mean", "std")}
    lists = [names.parse_list(value) for value in known.values()]
    fit = kernel is not None and all(len(x) == kernel.shape[1] for x in lists)
    return {key: value for key, value in known.items() if value and fit}


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width of `224`, `[224, 160]` or `[3, 224, 160]`."""
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) < 2:
        return None
    height, width = sides[-2:]
    both = type(height) is int and type(width) is int and min(height, width) > 0
    return (height, width) if both else None


def grid(
    entries: dict[str, Entry], config: dict[str, Any], text: dict[str, str]
) -> tuple[int, int] | None:
    """The grid that follows from the recorded image size, if the table fits it."""
    known = config.get("image_size") or names.parse_grid(text.get("image_size", ""))
    sides = _sides(known)
    kernel, table = entries.get("patch_embed.proj.weight"), entries.get("pos_embed")
    shapes = [() if entry is None else entry.shape for entry in (kernel, table)]
    if not sides or [len(shape) for shape in shapes] != [4, 3] or not shapes[0][3]:
        return None
    rows, columns = (side // shapes[0][3] for side in sides)
    return (rows, columns) if rows * columns == shapes[1][1] - 1 else None


def function(
    source: str,
    entries: dict[str, Entry],
    records: dict[str, dict[str, Any]],
    given: dict[str, str | None],
) -> tuple[str | None, list[str]]:
    """Returns the pooling of a model, and notes on what had to be assumed.

    Args:
      source: the program that wrote the file.
      entries: by timm keys.
      records: 'metadata' or 'config.json' -> its facts.
      given: 'pool', 'act' and 'norm' from the user, or None.

    Returns:
      'avg' or 'cls' where a head or a norm reads pooled tokens, or if it is given;
      else None.

    Raises:
      WeightsError: a contradiction, or a function that this package does not compute.
    """
    assumed = []
    for what, computed in COMPUTED.items():
        value = _agreed(what, given, records)
        if value is None:
            assumed.append(f"{what}={computed} ({_ABOUT[computed]})")
        elif str(value).lower() != computed:
            raise WeightsError(
                f"{what}={short(value)}: the encoders of this package compute "
                f"{computed} ({_ABOUT[computed]}) alone; with it these weights would "
                "be another function"
            )
    reads = {"head.weight", "fc_norm.weight"} & entries.keys()
    pool = _agreed("pool", given, records if reads else {})
    if pool is not None and pool not in POOLS and not (pool == "none" and not reads):
        raise WeightsError(
            f"pool={short(pool)}: expected avg (the mean of the patch tokens) or cls "
            "(the class token, timm's 'token')"
        )
    if reads and pool is None:
        pool = "avg" if "fc_norm.weight" in entries else "cls"
        assumed.insert(0, f"pool={pool}")
    if source != "timm" or not assumed:
        return POOLS.get(pool or ""), []
    note = (
        f"assumed, as nothing recorded says it: {', '.join(assumed)}; if that is not "
        "so, say so when converting (--config.pool=, --config.act=, --config.norm=)"
    )
    return POOLS.get(pool or ""), [note]


def _agreed(
    what: str, given: dict[str, Any], records: dict[str, dict[str, Any]]
) -> Any:
    """Returns the value that the user and all records agree on; None without one."""
    agreed = given.get(what)
    for record_name, record in records.items():
        value = record.get(what)
        if value is None:
            continue
        if agreed is not None and POOLS.get(agreed, agreed) != POOLS.get(value, value):
            raise WeightsError(
                f"{what}={short(agreed)}, but its {record_name} says {short(value)}; "
                "leave one of them out"
            )
        agreed = value
    return agreed
