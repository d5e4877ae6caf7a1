"""The jobs that can follow one that has ended, as commands to copy."""

from __future__ import annotations

import os
import shlex
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import paths
from litevit_jax.data import splits
from litevit_jax.train import workdir

_LABELLED = ("finetune", "linear_probe")  # recipes that need labels
_CLASSIFIERS = ("probe_grid", "supervised")  # objectives that tell classes apart


def lines(config: Any, result: str, command: str) -> list[str]:
    """Returns the last lines of a job: commands that can follow.

    Args:
      config: config of the job that has ended.
      result: its directory, or the file that it wrote.
      command: how this program was started.
    """
    rows = []
    for purpose, recipe, flag in _next(config, result):
        variant, more = _for_its_images(config, result, recipe)
        flags = [f"--config={recipe}{variant}", f"--config.{flag}", *more]
        flags += _beside(*flags)
        rows.append(f"next, to {purpose}: {command} {shlex.join(flags)}")
    return rows


def _for_its_images(config: Any, result: str, recipe: str) -> tuple[str, list[str]]:
    """Returns the (variant, flags) by which `recipe` uses the images of a new run.

    A probe needs labels, and images to be tested on.
    """
    if config.job != "train" or recipe not in _LABELLED:
        return "", []
    saved = workdir.read_config(paths.path(result))
    if saved is None or saved["data"]["source"] in ("digits", "tfds"):
        return "", []
    if saved["derived"]["num_classes"] < 2:
        return ":data=folder,path=LABELLED", []
    try:
        splits.open_splits(ConfigDict(saved["data"]))("eval")
    except (OSError, ValueError):
        return "", ["--config.data.holdout.test=0.1"]
    return "", []


def _beside(recipe: str, flag: str, *_: str) -> list[str]:
    """Returns --workdir for a job that starts from a run or file: beside it."""
    name, encoder = recipe.partition("=")[2], flag.partition("init=")[2]
    if not encoder or encoder == "RUN":
        return []
    run = encoder.rstrip("/").partition("/checkpoints/")[0]
    stem = run.removesuffix(os.path.splitext(run)[1]) or run
    return [f"--workdir={stem}-{name.partition(':')[0]}"]


def _next(config: Any, result: str) -> list[tuple[str, str, str]]:
    """Returns (purpose, recipe, its flag) of each job that can follow."""
    job = config.job
    if job == "choose":  # what it prints has the commands
        return []
    if job == "train" and config.objective.name == "segmentation":
        draw = ("label images of yours", "evaluate:label_maps,data=folder,path=DIR")
        return [(*draw, f"init={result}")]
    if (config.get("objective") or {}).get("name") == "detect":
        model = result if job == "train" else config.init
        boxes = "" if config.objective.get("masks", True) else "boxes,"
        draw = ("detect objects on your images", "predict:data=folder,path=DIR")
        other = f"evaluate:coco,{boxes}data=cocojson,path=DIR"
        evaluate = ("evaluate it on other data", other, f"init={model}")
        return [(*draw, f"init={model}"), *[evaluate] * (job == "train")]
    if job == "train" and config.data.source == "digit_scenes":
        return [("label every pixel", "segment:digit_scenes", f"init={result}")]
    if job == "train" and config.objective.name not in _CLASSIFIERS:
        probe = ("probe the encoder", "linear_probe", f"init={result}")
        return [probe, ("fine-tune it", "finetune", f"init={result}")]
    if job in ("train", "transfer") and not config.fallback.encoder:  # no probe
        compare = ("compare runs", "analysis:compare", f"models=a={result},b=RUN")
        return [compare, ("evaluate it on other data", "evaluate", f"init={result}")]
    if job == "report":
        return [("look inside", "analysis", f"models={config.models}")]
    if job == "analyse":
        last = config.models.rpartition("=")[2]
        return [("probe its blocks", "layer_probe", f"init={last}")]
    if job == "convert":
        detects = config.format == "detectron2" or result.endswith(".pth")
        variant = "detect:folder" if detects else "finetune:data=folder"
        return [("fine-tune it", f"{variant},path=DIR", f"init={result}")]
    encoder = "RUN"
    if job != "advise":  # a probe, an evaluation, a study of layers
        encoder = config.like or encoder
        encoder = encoder if config.init in (None, "random") else config.init
    return [("fine-tune the encoder", "finetune", f"init={encoder}")]
