"""Published numbers of the recipes, and how far a run is from its recipe.

Numbers are those of the authors' repository (recipes 10.1 and 10.2), in
percent of ImageNet's validation images. Recalled or unpublished ones are not here.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from litevit_jax import choices, recipes
from litevit_jax.report import run_record
from litevit_jax.train import workdir as workdirs

_README = "README of the authors' repository, 2023"
_NOTES = "MoCo notes of the authors' repository, 2023"
_LATER = "the authors' repository, 2025 (arXiv 2404.12210)"
_FINETUNED = "ImageNet top-1 after 300 epochs of fine-tuning"


@dataclasses.dataclass(frozen=True)
class Expected:
    """A published number.

    Attributes:
      value: in percent.
      what: is measured, after what.
      source: where it is published.
    """

    value: float
    what: str
    source: str


# By the recipe of the pre-training. `deit_tiny` has none: it is the training itself.
AFTER_FINETUNING = {
    "mae_tiny": Expected(78.0, _FINETUNED, _README),
    "mae_small": Expected(82.1, f"{_FINETUNED}, layer decay 0.75", _README),
    "mae_tiny_distill": Expected(78.4, _FINETUNED, _README),
    "mae_small_distill": Expected(82.5, f"{_FINETUNED}, layer decay 0.75", _README),
    "mae_tiny_distill_d2": Expected(78.7, _FINETUNED, _LATER),
    "mocov3_tiny": Expected(76.8, f"{_FINETUNED}, layer decay 0.75", _NOTES),
}
FROM_SCRATCH = {
    "deit_tiny": Expected(75.8, "ImageNet top-1 after 300 epochs", _README),
}
_BIAS = "ImageNet top-1 after 1000 epochs of fine-tuning with relative position bias"
WITH_BIAS = {
    "mae_tiny": Expected(79.0, _BIAS, _README),
    "mae_tiny_distill_d2": Expected(79.4, _BIAS, _LATER),
}


_DATA = {"detect": ("coco", "COCO"), "segment": ("ade20k", "ADE20K")}


def recipe_of(config: dict[str, Any]) -> str | None:
    """Returns the file in configs/ that a run's config was made by, or None."""
    title = str(config.get("name", ""))
    fits = [n for n in recipes.names() if title == n or title.startswith(f"{n}-")]
    return max(fits, key=len, default=None)


def data_of(recipe: str) -> tuple[str, str]:
    """Returns the variant of the data that a recipe was published for, and a name."""
    return _DATA.get(recipe, ("imagenet2012", "ImageNet"))


def differences(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (field, the recipe's value, the run's) where a run departs from it.

    The recipe is that for the data of `data_of`. Fields that the run's config lacks,
    being older than they are, are no departure; nor are those of an older version that
    are gone.
    """
    name = recipe_of(config)
    if name is None:
        return []
    try:
        plain = recipes.get(name, data_of(name)[0])
    except ValueError:  # a recipe that reads no images of its own
        plain = recipes.get(name)
    recipe = workdirs.plain(plain.copy_and_resolve_references().to_dict())
    _fill_images(recipe)
    run = {key: value for key, value in config.items() if key != "derived"}
    skipped = {"data.required", *choices.REMOVED}  # the former is of the variant
    rows = [r for r in workdirs.differences(recipe, run) if r[0] not in skipped]
    return [(k, a, b) for k, a, b in rows if b is not None or _has(run, k)]


def _fill_images(recipe: dict[str, Any]) -> None:
    """Puts the recipe's own images where it would take those of an encoder."""
    default = recipe.get("fallback") or {}
    blocks = [recipe.get("data"), recipe.get("augment", {}).get("normalize")]
    for block in filter(None, blocks):
        block.update({k: v for k, v in default.items() if block.get(k, 0) is None})


def _has(block: Any, field: str) -> bool:
    for key in field.split("."):
        if not isinstance(block, dict) or key not in block:
            return False
        block = block[key]
    return True


def of(run: run_record.Run) -> dict[str, Any] | None:
    """Returns what is published for a run's recipe, and what the run reached.

    Returns:
      'expected', 'what', 'source'; 'reached' (None: this run does not measure it) with
      its 'result' and 'key'; 'comparable', and 'why' not. None: nothing is published.
    """
    recipe = recipe_of(run.config)
    first = _pretraining(run.config)
    expected = None
    if recipe in ("finetune", "finetune_rpe"):
        known = WITH_BIAS if recipe == "finetune_rpe" else AFTER_FINETUNING
        expected = known.get(first or "")
    elif recipe is not None:
        expected = AFTER_FINETUNING.get(recipe) or FROM_SCRATCH.get(recipe)
    if expected is None:
        return None
    row: dict[str, Any] = {
        "expected": expected.value,
        "what": expected.what,
        "source": expected.source,
        "reached": None,
        "result": None,
    }
    result = run.results.get("test")
    top1 = None if result is None else result["last"].get("top1")
    if isinstance(top1, int | float) and recipe != "linear_probe":
        row |= {"reached": top1, "result": "test"}
    return row | _comparable(run, row["reached"] is not None)


def _pretraining(config: dict[str, Any]) -> str | None:
    """Returns the recipe of the run that `init` names, if it can be read."""
    init = config.get("init")
    if not isinstance(init, str) or not init:
        return None
    for directory in (pathlib.Path(init), *pathlib.Path(init).parents[:2]):
        if (directory / "config.json").is_file():
            return recipe_of(run_record.read(directory.name, directory).config)
    return None


def _comparable(run: run_record.Run, measured: bool) -> dict[str, Any]:
    data = run.block("data")
    if not measured:
        why = "fine-tune this run with configs/finetune.py to measure it"
    elif data.get("name") != "imagenet2012":
        why = f"this run's data are {data.get('name') or data.get('source')}"
    elif run.last_step < (run.total_steps or 0):
        why = "this run is not finished"
    else:
        fields = [k for k, *_ in differences(run.config) if _matters(k)]
        why = f"these fields differ: {', '.join(fields)}" if fields else ""
    return {"comparable": not why, "why": why}


def _matters(field: str) -> bool:
    quiet = ("name", "init", "seed", "log.", "checkpoint.", "mesh.", "evals.", "like")
    machine = ("dir", "threads", "workers", "required", "cache")
    return not field.startswith((*quiet, *(f"data.{name}" for name in machine)))
