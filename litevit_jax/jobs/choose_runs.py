"""The runs of the job 'choose': commands of recipes on the same images and encoder."""

from __future__ import annotations

import dataclasses
import io
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from litevit_jax import commandline, recipes
from litevit_jax.jobs import layer_study
from litevit_jax.train import resolve

# Method -> its recipe. The teacher of `distill` is one of the runs, too.
RECIPES = {
    "mae": "mae_tiny",
    "moco": "mocov3_tiny",
    "distill": "mae_tiny_distill",
    "teacher": "mae_base",
    "supervised": "deit_tiny",
}
# Peak learning rates per 256 images that suit short runs of small encoders: those of
# the recipes for digits. Given encoders are fine-tuned as the recipe has it.
_LR = {
    **dict.fromkeys(("mae", "distill", "teacher"), 3e-3),
    **{"moco": 1.5e-3, "supervised": 4e-3, "finetune": 4e-3},
}
_VARIANTS = ("digits", "digit_scenes", "imagenet2012")  # that need no path
_OF_IMAGES = ("image_size", "image_width", "channels", "range")
_LARGE, _SMALL, _EDGE, _LOOKED_AT = 64, 32, 48, 32  # pixels; images
_EXAMPLES = 50_000  # that probes learn from, at most


@dataclasses.dataclass(frozen=True)
class Command:
    """A recipe with other values of its fields, as the command line takes them.

    Attributes:
      recipe: with its variant, as 'mae_tiny:digits'.
      fields: 'lr.base' -> value.
    """

    recipe: str
    fields: Mapping[str, Any]

    def config(self) -> ConfigDict:
        """Returns the config.

        Raises:
          ValueError: a field that the recipe does not take.
        """
        fields = {name: str(value) for name, value in self.fields.items()}
        return commandline.config_of(self.recipe, fields)

    def changed(self, **fields: Any) -> Command:
        """Returns the command with other values of fields, of which a__b is a.b."""
        more = {name.replace("__", "."): value for name, value in fields.items()}
        return dataclasses.replace(self, fields={**self.fields, **more})

    def text(self, start: str) -> str:
        """Returns the command line; `start` is how the program is started."""
        words = [f"--config={self.recipe}"]
        words += [f"--config.{name}={value}" for name, value in self.fields.items()]
        return f"{start} {shlex.join(words)}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """The images, the encoder and the batch that all runs share.

    Attributes:
      data: the block, with an image size.
      normalize: mean and std of the images.
      encoder: sizes, with a patch size.
      batch_size: of all runs.
    """

    data: ConfigDict
    normalize: ConfigDict
    encoder: Mapping[str, int]
    batch_size: int

    @property
    def variant(self) -> str:
        """The variant of every recipe, behind its colon."""
        source = self.data.source
        if source == "tfds" and self.data.name == "imagenet2012":
            source = "imagenet2012"
        return source if source in _VARIANTS else f"data={source},path=."

    def pretraining(self, method: str, teacher: str | None = None) -> Command:
        """Returns the run of a method on all images, for the recipe's epochs.

        `teacher` is the run or file that `distill` follows.
        """
        wide = 2 if method == "teacher" else 1
        fields: dict[str, Any] = {"batch_size": self.batch_size}
        fields |= self._sizes(wide)
        if method == "moco":
            fields |= {"objective.mlp_dim": 256, "objective.embed_dim": 64}
        elif method == "supervised":
            fields["data.randaugment.layers"] = 0
        if teacher is not None:
            fields["teacher"] = teacher
        fields["lr.base"] = _LR[method]
        return self._command(RECIPES[method], fields, images=True)

    def finetuning(self, init: str, *, own: bool, kept: int = 0) -> Command:
        """Returns the fine-tuning of an encoder.

        Args:
          init: run or file, or 'random'.
          own: whether it is one of these runs, or random; others bring the size of
            their images, and the recipe's learning rate.
          kept: how many of the first blocks do not change, with the embeddings.
        """
        fields: dict[str, Any] = {"init": init, "batch_size": self.batch_size}
        fields["data.randaugment.layers"] = 0
        if init == "random":
            fields |= self._sizes(1)
        if own:
            fields["lr.base"] = _LR["finetune"]
        if kept:
            fields["optimizer.freeze"] = layer_study.frozen(kept)
        return self._command("finetune", fields, images=own)

    def probing(
        self, init: str, shares: Mapping[float, int], seed: int, like: str | None
    ) -> ConfigDict:
        """Returns the config of an evaluation that probes all blocks of an encoder.

        Args:
          init: run or file, or 'random', with the sizes of run `like`.
          shares: of the labels -> how many images that leaves.
          seed: of what is drawn.
          like: see `init`.
        """
        recipe = recipes.get("layer_probe", self.variant)
        fields = self._data_fields(recipe, images=False)
        fields |= {"init": init, "like": like, "seed": seed}
        fields["data.subset_seed"] = seed
        evals: dict[str, Any] = {}
        for share, count in shares.items():
            own = {} if share == 1 else {"data": self._part(share, seed)}
            few = {"examples": _EXAMPLES, "holdout": 0.1 if count >= 20 else 0.34}
            block = {"name": "layers", "split": "eval", "every_steps": 0, **few, **own}
            for pool in ("cls", "avg"):
                evals[f"{pool}_{percent(share)}"] = block | {"pool": pool}
        return resolve.changed(recipe, {**fields, "evals": evals, "log.report": False})

    def _part(self, share: float, seed: int) -> dict[str, Any]:
        """Returns the data block of an evaluator that learns from a share."""
        data = self.data.to_dict()
        names = ("source", "name", "dir", "options", "labels", "unlisted")
        names += ("train_split", "eval_split", "holdout", "long_tail")
        block = {name: data[name] for name in names}
        few = {"fraction": share, "fraction_of": "balanced", "subset_seed": seed}
        return block | few

    def _sizes(self, wide: int) -> dict[str, int]:
        sizes = {**self.encoder, "width": wide * self.encoder["width"]}
        return {f"objective.encoder.{name}": value for name, value in sizes.items()}

    def _command(self, recipe: str, fields: dict[str, Any], *, images: bool) -> Command:
        base = recipes.get(recipe, self.variant)
        more = self._data_fields(base, images=images)
        return Command(f"{recipe}:{self.variant}", {**more, **fields})

    def _data_fields(self, recipe: ConfigDict, *, images: bool) -> dict[str, Any]:
        """Returns the fields of the data in which a recipe differs from the setting.

        Without `images` their size and normalisation stay as they are there.
        """
        fields = {}
        for name, value in _leaves(self.data.to_dict()):
            if images or name not in _OF_IMAGES:
                fields[f"data.{name}"] = value
        if images:
            for name, value in self.normalize.items():
                fields[f"augment.normalize.{name}"] = tuple(value)
        known = dict(_leaves(recipe.to_dict()))
        return {
            name: value
            for name, value in fields.items()
            if value is not None and name in known and known[name] != value
        }


def setting(
    data: Mapping[str, Any],
    normalize: Mapping[str, Any],
    encoder: Mapping[str, Any],
    batch_size: int | None,
    source: Any,
) -> Setting:
    """Settles what a config leaves open: the sizes of images, patches, batches.

    Args:
      data, normalize, encoder, batch_size: of the config.
      source: the training images.

    Raises:
      ValueError: patches that do not divide the images.
    """
    side = data["image_size"] or _image_size(source)
    block, encoder = ConfigDict({**data, "image_size": side}), dict(encoder)
    if encoder["patch_size"] is None:
        encoder["patch_size"] = side // 4 if side < _SMALL else side // 8
    patch, width = encoder["patch_size"], data["image_width"] or side
    if not patch or side % patch or width % patch:
        raise ValueError(
            f"--config.encoder.patch_size={patch}: images are {side}x{width} pixels; "
            "expected a patch that divides both, as --config.data.image_size=64 "
            "--config.encoder.patch_size=8"
        )
    batch = batch_size or min(128, 2 ** (len(source).bit_length() - 1))
    return Setting(block, ConfigDict(dict(normalize)), encoder, batch)


def _image_size(source: Any) -> int:
    """Chooses 32 or 64 pixels by a few images' shorter sides."""
    rows = np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).astype(int)
    sides = []
    for row in rows:
        raw = source[int(row)]["image"]
        try:
            if isinstance(raw, bytes):
                with Image.open(io.BytesIO(raw)) as image:
                    sides.append(min(image.size))
            else:
                sides.append(min(np.shape(raw)[:2]))
        except (OSError, ValueError):  # pre-training names those it cannot read
            continue
    return _LARGE if sides and np.median(sides) > _EDGE else _SMALL


def percent(share: float) -> str:
    """Returns a share as it stands in names: 0.1 is '10', 0.005 is '0_5'."""
    return f"{100 * share:g}".replace(".", "_")


def share_of(text: str) -> float:
    """Returns the share that `percent` wrote."""
    return round(float(text.replace("_", ".")) / 100, 12)


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
