"""Valid config values: names of plug-in files, numbers within bounds, text.

Every plug-in file (an objective, an evaluator, a data source, ...) exposes
`make(**kwargs)`. Nothing is registered: the folder's listing is the registry, with the
files of `plugins` beside it.
"""

from __future__ import annotations

import fnmatch
import inspect
import math
import numbers
import re
from typing import Any, NamedTuple, cast

from litevit_jax.choices import about_old


def choices(folder: str) -> list[str]:
    """Returns the names of the plug-ins in `folder`, for example 'objectives'."""
    from litevit_jax import plugins

    return plugins.choices(folder)


def make(folder: str, name: str, /, **kwargs: Any) -> Any:
    """Builds plug-in `name` of `folder` with its `make(**kwargs)`.

    Raises:
      ValueError: no such plug-in, a keyword that its `make` does not take, or a result
        of another kind.
    """
    from litevit_jax import plugins

    plugin = plugins.load(folder, name).make
    try:
        inspect.signature(plugin).bind(**kwargs)
    except TypeError as error:
        known = inspect.signature(plugin).parameters
        hint = plugins.about_keyword(folder, name, kwargs, known)
        what = f"{plugins.kind_of(folder)} {name!r}"
        raise ValueError(f"{what}: {error}{hint}") from error
    return plugins.make(folder, name, plugin, kwargs)


def defaults(folder: str, name: str) -> dict[str, Any]:
    """Returns keyword -> default value of plug-in `name`, where there is one.

    Raises:
      ValueError: no such plug-in.
    """
    from litevit_jax import plugins

    keywords = inspect.signature(plugins.load(folder, name).make).parameters
    pairs = ((key, keyword.default) for key, keyword in keywords.items())
    return {key: value for key, value in pairs if value is not inspect.Parameter.empty}


class Bound(NamedTuple):
    """Bounds of a numeric field: finite, from `low` to `high`.

    Attributes:
      low, high: the ends.
      above, below: whether the lower, or the upper, end itself is excluded.
      whole: whether only integers are valid.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether `value` is a number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        integer, number = isinstance(value, numbers.Integral), cast(float, value)
        if not integer and (self.whole or not math.isfinite(number)):
            return False
        low = number > self.low if self.above else number >= self.low
        return low and (number < self.high if self.below else number <= self.high)

    def text(self, value: Any) -> str:
        """Describes the valid numbers, for a message about the invalid `value`."""
        each = flat(value)
        real: list[Any] = [x for x in each if isinstance(x, numbers.Real)]
        kind = ""
        if self.whole and not all(isinstance(x, numbers.Integral) for x in each):
            kind = "an integer, "
        elif len(real) < len(each) or not all(x - x == 0 for x in real):
            kind = "a finite number, "
        low = f"more than {self.low:g}" if self.above else f"{self.low:.10g} or more"
        if self.low == -math.inf:
            return kind.removesuffix(", ")
        over = any(x > self.high for x in real)
        if self.high == math.inf or (self.whole and not over):
            return kind + low
        if self.above or self.below:
            return f"{kind}{low}, {'below' if self.below else 'at most'} {self.high:g}"
        return f"{kind}{self.low:.10g} to {self.high:.10g}"


_MOST_STEPS = 2**31 - 1  # a state counts them in an int32
_COUNT = Bound(1, _MOST_STEPS, whole=True)
_COUNT_OR_NONE = Bound(0, _MOST_STEPS, whole=True)
_POSITIVE = Bound(0, above=True)
_NOT_NEGATIVE = Bound(0)
_RATE = Bound(0, 1)
_PART = Bound(0, 1, above=True)
_BELOW_ONE = Bound(0, 1, below=True)

# Bounds of every number in a config by dotted name; a star matches any part of it.
# The first match applies, to each number where a field holds several.
_BOUNDS: dict[str, Bound] = {
    name: bound
    for bound, names in (
        # JAX repeats its keys from 2^32 on.
        (Bound(0, 2**32 - 1, whole=True), "seed *.seed data.subset_seed"),
        (_COUNT, "batch_size auto_batch.at_most auto_batch.*_batch"),
        (_COUNT, "epochs steps seeds images log.every_steps checkpoint.keep"),
        (_COUNT_OR_NONE, "*.steps_at_least evals.*.every_steps log.report_images"),
        (
            _COUNT,
            "nonfinite.max_in_a_row checkpoint.every_steps stop.patience extend_to",
        ),
        (_POSITIVE, "watchdog.*"),
        (
            _NOT_NEGATIVE,
            "lr.base auto_batch.recipe_lr lr.warmup_epochs lr.start lr.end",
        ),
        (_BELOW_ONE, "optimizer.b1 optimizer.b2 optimizer.momentum"),
        (_BELOW_ONE, "optimizer.ema_decay"),
        (_POSITIVE, "optimizer.eps optimizer.clip_norm optimizer.trust"),
        (_NOT_NEGATIVE, "optimizer.weight_decay optimizer.lr_factors"),
        (_PART, "optimizer.layer_decay"),
        (Bound(-1, _MOST_STEPS, whole=True), "mesh.*"),
        # Data.
        (Bound(1, 2**14, whole=True), "*image_size *image_width"),
        (Bound(1, 2**12, whole=True), "data.channels fallback.channels"),
        (_BELOW_ONE, "*.holdout *.holdout.test *.holdout.eval *.holdout.select"),
        (_COUNT, "data.multi_hot data.joint.max_* data.joint.crop_* data.joint.mask_*"),
        (_COUNT, "data.shots *.select_at_most data.max_pixels evals.*.shots"),
        (_PART, "*.fraction data.crop_scale *.eval_crop_fraction"),
        (Bound(1, 2**16, whole=True), "data.joint.short_side data.joint.long_side"),
        (_POSITIVE, "data.joint.ratio"),
        (_PART, "data.joint.most_of_one_class"),
        (_COUNT, "data.options.size data.options.scenes data.options.test_scenes"),
        (Bound(1), "*.long_tail"),
        (_POSITIVE, "data.crop_ratio data.cache_gib"),
        (_RATE, "data.flip *.max_bad_fraction *.probability"),
        (Bound(0, 100, whole=True), "data.randaugment.layers"),
        (_NOT_NEGATIVE, "data.randaugment.*"),
        (Bound(1, 16, whole=True), "data.views"),
        (Bound(0, 1024, whole=True), "data.workers"),
        (Bound(1, 1024, whole=True), "data.threads"),
        # Augmentations.
        (Bound(), "*normalize.mean fallback.mean"),
        (_POSITIVE, "*normalize.std fallback.std"),
        (Bound(0, 0.5), "augment.color_jitter.hue"),
        (_NOT_NEGATIVE, "augment.color_jitter.*"),
        (_POSITIVE, "augment.gaussian_blur.sigma augment.erase.*"),
        (Bound(0, 256, whole=True), "augment.solarize.threshold"),
        (_RATE, "augment.mix.switch augment.photometric.each"),
        (Bound(0, 90, whole=True), "augment.photometric.hue"),
        (_NOT_NEGATIVE, "augment.photometric.*"),
        (_NOT_NEGATIVE, "augment.mix.*"),
        # Models and objectives.
        (Bound(1, 2**16, whole=True), "*.width *.mlp_dim *.embed_dim *.box_hidden"),
        (Bound(1, 1024, whole=True), "*.depth *num_heads *.patch_size *.mask_unit"),
        (_BELOW_ONE, "*.drop_path *.label_smoothing objective.dropout"),
        (_POSITIVE, "*.mlp_ratio *.temperature *.tau *.anchor_sizes"),
        (Bound(0, 1, above=True, below=True), "objective.mask_ratio"),
        (_RATE, "objective.momentum objective.distill.alpha objective.rules.*overlap"),
        (_RATE, "*.rules.anchor_low *.rules.anchor_high *.rules.min_score"),
        (_COUNT, "*.rules.* *.pooled *.pos_grid *.window *.global_blocks"),
        (_COUNT, "objective.momentum_steps objective.num_classes"),
        (_COUNT, "objective.decoupled objective.channels"),
        (_COUNT_OR_NONE, "objective.class_counts objective.*_convs"),
        (Bound(whole=True), "objective.out_blocks"),
        (_NOT_NEGATIVE, "objective.weight objective.pairs objective.lrs"),
        # Evaluations and analyses.
        (_NOT_NEGATIVE, "evals.*.lrs evals.*.l2"),
        (_COUNT, "evals.*.k evals.*.seeds evals.*.held_out evals.*.examples"),
        (_COUNT, "evals.*.stride evals.*.block block latency.*"),
        (_RATE, "evals.*.overlay overlay min_score evals.*.min_score"),
        (_POSITIVE, "evals.*.scales"),
        (_COUNT_OR_NONE, "evals.*.images"),
        (_COUNT_OR_NONE, "maps.images reconstruction.images rows study.depths"),
        (_COUNT, "top evals.*.top"),
        (_COUNT_OR_NONE, "sheet_images"),
        (Bound(whole=True), "maps.layers"),
        (_COUNT, "maps.heads"),
        (_PART, "study.rich study.poor labels fractions"),
        (_POSITIVE, "sweep.lr_base sweep.epochs tolerance minutes"),
        (_PART, "sweep.layer_decay"),
        (_NOT_NEGATIVE, "sweep.warmup_epochs"),
    )
    for name in names.split()
}


# Fields that hold text: patterns of parameters' paths, and other words.
_PATTERNS = ("init_load", "init_load_if_there", "init_skip", "init_donor_load")
_PATTERNS += ("optimizer.freeze", "optimizer.no_decay")
_WORDS = ("init_rename", "*.features", "study.kinds", "maps.queries", "methods")
_WORDS += ("data.joint.annotations", "log.writers")
_NAMES = ("images",)  # how many images in one recipe, and which ones in another


def bound_of(name: str) -> Bound | None:
    """Returns the bound of config field `name`, for example 'lr.base', or None."""
    fits = (bound for key, bound in _BOUNDS.items() if fnmatch.fnmatchcase(name, key))
    return next(fits, None)


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks every number and every pattern of a config, before anything is read.

    Fields that are None are skipped; a number without a bound must be finite.

    Args:
      config: a config or a block of one.
      prefix: prefix of the fields' names, for example 'lr.'.

    Raises:
      ValueError: a number is NaN, infinite or out of bounds, a value has the wrong
        type, or a field was removed or renamed.
    """
    for key, value in config.items():
        name = f"{prefix}{key}"
        is_block = hasattr(value, "items")
        old = about_old(name, value, block=is_block)
        if old is not None:
            raise ValueError(f"config.{old}")
        if hasattr(value, "items"):
            check_fields(value, f"{name}.")
        elif value is not None:
            _check_text(name, value)
            _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    if name in _NAMES and isinstance(value, str):
        return
    bound, each = bound_of(name), flat(value)
    if bound is None:
        bound, each = Bound(), [x for x in each if isinstance(x, float)]
    if not all(bound.holds(x) for x in each):
        how = ""
        if any(isinstance(x, str) for x in each):
            how = f'; write every number out, as in --config.{name}="(0.5, 0.5, 0.5)"'
        expected = bound.text(value)
        raise ValueError(f"--config.{name}={value}; expected {expected}{how}")


def _check_text(name: str, value: Any) -> None:
    if not is_text(name):
        return
    for item in flat(value):
        if not isinstance(item, str):
            raise ValueError(
                f"--config.{name}={value}; expected text in quotes, got {item!r}"
            )
        try:
            re.compile(item if name in _PATTERNS else "")
        except re.error as error:
            raise ValueError(
                f"--config.{name}={value}: {item!r} is no regular expression: {error}"
            ) from None


def is_text(name: str) -> bool:
    """Whether config field `name` holds a tuple of text."""
    return any(fnmatch.fnmatchcase(name, key) for key in (*_PATTERNS, *_WORDS))


def flat(value: Any) -> list[Any]:
    """Flattens nested tuples and lists; a single value becomes a list of one."""
    if isinstance(value, tuple | list):
        return [x for item in value for x in flat(item)]
    return [value]
