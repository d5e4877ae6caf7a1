"""The best step of a run by one number of an evaluator, and when to stop for it.

`checkpoint.keep_best=EVALUATOR.METRIC` keeps the checkpoint of the step at which the
number was best; `stop.patience` ends the run when it has not improved in that many
evaluations. Both follow from the results in their order alone, and are saved with every
checkpoint: a killed run decides as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from litevit_jax import choices
from litevit_jax.data import split_names
from litevit_jax.terminal import counted

KEY = "keep_best"  # of a result.json


@dataclasses.dataclass(frozen=True)
class Rule:
    """A number to choose a step by.

    Attributes:
      title: of the evaluator.
      metric: its number.
      highest: whether a higher one is better.
      patience: evaluations without a better one that end a run; None: none do.
      images: what it is measured on, in words.
    """

    title: str
    metric: str
    highest: bool
    patience: int | None
    images: str

    @property
    def by(self) -> str:
        """The name in `checkpoint.keep_best`."""
        return f"{self.title}.{self.metric}"

    def note(self) -> str:
        """Says what is kept, for the start of a run."""
        most = "highest" if self.highest else "lowest"
        text = f"the step with the {most} {self.by} is kept, chosen on {self.images}"
        if self.patience is not None:
            text += (
                f"; {counted(self.patience, 'evaluation')} without a better one end it"
            )
        return text


def rule(
    config: Mapping[str, Any], evaluators: Mapping[str, tuple[Any, int]]
) -> Rule | None:
    """Checks `checkpoint.keep_best` and `stop.patience`; None without the former.

    Args:
      config: of the run, as it is saved.
      evaluators: title -> (evaluator, every_steps).

    Raises:
      ValueError: no such number, or it is not measured on validation images during the
        run.
    """
    name, patience = config["checkpoint"]["keep_best"], config["stop"]["patience"]
    if name is None:
        if patience is not None:
            raise ValueError(
                f"stop.patience={patience} counts evaluations without a better number, "
                "but none is named: --config.checkpoint.keep_best=EVALUATOR.METRIC"
                f"{_listed(evaluators)}"
            )
        return None
    known = _known(evaluators)
    if not known:
        raise ValueError(
            f"checkpoint.keep_best={name}: this run has no evaluator with a number to "
            "choose by; add one, as the variant knn=DIR does"
        )
    highest = known[choices.check("checkpoint.keep_best", name, known)]
    title, _, metric = name.partition(".")
    evaluator, every = evaluators[title]
    if not every:
        raise ValueError(
            f"checkpoint.keep_best={name}: evals.{title} runs at the end alone; say "
            f"how often it runs with --config.evals.{title}.every_steps=N"
        )
    own, data = config["evals"][title].get("data"), config["data"]
    trained_on = config["derived"]["train_fingerprint"]
    images = _images(name, evaluator, own, data, trained_on)
    return Rule(title, metric, highest, patience, images)


def _known(evaluators: Mapping[str, tuple[Any, int]]) -> dict[str, bool]:
    """Returns EVALUATOR.METRIC -> whether a higher one is better."""
    return {
        f"{title}.{metric}": highest
        for title, (evaluator, _) in evaluators.items()
        for metric, highest in evaluator.metrics.items()
    }


def _listed(evaluators: Mapping[str, tuple[Any, int]]) -> str:
    known = ", ".join(_known(evaluators))
    return f", of {known}" if known else ""


def _images(name: str, evaluator: Any, own: Any, data: Any, trained_on: str) -> str:
    """Describes the images that `evaluator` measures on.

    `own` is the block of its own data, if it has one, and `data` that of the run.

    Raises:
      ValueError: they are those of training, or a test split.
    """
    title = name.partition(".")[0]
    split = getattr(evaluator, "split", None)
    if split is None:
        return f"the images that evals.{title} reads"
    where = "data" if own is None else f"evals.{title}.data"
    block = data if own is None else {"holdout": {}, "eval_split": "test", **own}
    held = block["holdout"].get("eval") or 0
    advice = (
        f"hold out a part of the training images with --config.{where}.holdout.eval=0.1"
        f", or name a validation split with --config.{where}.eval_split="
    )
    if split == "train":
        raise ValueError(
            f"checkpoint.keep_best={name}: evals.{title}.split=train measures on "
            "training images, which tell nothing about others; set "
            f"--config.evals.{title}.split=eval and {advice}"
        )
    if split == "select":
        return "validation images: the part of the training split for choosing"
    if held:
        return f"validation images: {held:g} of the training split ({where}.holdout)"
    names = block["eval_split"]
    if "test" in {split_names.read(each).kind for each in _names(names)}:
        raise ValueError(
            f"checkpoint.keep_best={name} would choose by {where}.eval_split={names!r},"
            f" the test split: what is chosen by it cannot be tested on it; {advice}"
        )
    same = own is None and _names(names) & _names(data["train_split"])
    whole = same and "[" not in names
    if whole or evaluator.context.source(split).fingerprint() == trained_on:
        raise ValueError(
            f"checkpoint.keep_best={name} would choose by {where}.eval_split={names!r},"
            f" which are training images; {advice}"
        )
    return f"validation images: split {names!r}"


def _names(text: str) -> set[str]:
    """Returns the names of the splits in 'a[:50%]+b'."""
    return {part.partition("[")[0].strip() for part in text.split("+")}


class Best:
    """The best step so far.

    Attributes:
      rule: by which it is told.
      record: 'by', 'step' and 'value' of the best evaluation (None: none was finite),
        'at' (the step of the last evaluation), 'waited' (evaluations since the best
        one) and 'images'; None before the first evaluation.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.record: dict[str, Any] | None = None

    def resume(self, record: dict[str, Any] | None) -> None:
        """Goes on from what a checkpoint recorded; another number starts anew."""
        if record is not None and record["by"] == self.rule.by:
            self.record = record

    def update(self, step: int, value: float) -> None:
        """Counts the evaluation after update `step`, unless it is counted already."""
        old = self.record
        if old is not None and step <= old["at"]:
            return
        least = None if old is None else old["value"]
        better = math.isfinite(value)
        if better and least is not None:
            better = value > least if self.rule.highest else value < least
        waited = 0 if better else 1 + (0 if old is None else old["waited"])
        kept = {} if old is None or better else {k: old[k] for k in ("step", "value")}
        first = {"step": step if better else None, "value": value if better else None}
        about = {"by": self.rule.by, "images": self.rule.images}
        self.record = {**about, **first, **kept, "at": step, "waited": waited}

    @property
    def over(self) -> str:
        """Says why the run ends early; '' while it goes on."""
        record = self.record
        if record is None or not is_over(record, self.rule.patience):
            return ""
        waited = counted(record["waited"], "evaluation")
        return (
            f"stopped early at step {record['at']}: {waited} without a better "
            f"{self.rule.by} "
            f"(stop.patience={self.rule.patience}; raise it to go on)"
        )


def is_over(record: dict[str, Any], patience: int | None) -> bool:
    """Whether a run ends early after the evaluations that `record` counts."""
    return patience is not None and record["waited"] >= patience


def recorded(results: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the record of `Best` among the results of a run; None without one."""
    records = (result.get(KEY) for result in results.values())
    return next((x for x in records if _is_record(x)), None)


def _is_record(x: object) -> bool:
    """Whether a file's content has the form of a record: files may be damaged."""
    if not isinstance(x, dict):
        return False
    numbers, words = (
        [x.get(k) for k in ("at", "waited")],
        (x.get("by"), x.get("images")),
    )
    best = x.get("step"), x.get("value")
    kept = best == (None, None) or all(isinstance(n, int | float) for n in best)
    whole = all(isinstance(n, int) for n in numbers)
    return kept and whole and all(isinstance(word, str) for word in words)


def ended_at(
    saved: Mapping[str, Any], results: Mapping[str, dict[str, Any]]
) -> int | None:
    """Returns the step at which a run ended early; None if it did not.

    `saved`: its config, which may be damaged or older than `stop`.
    """
    record, block = recorded(results), saved.get("stop")
    patience = block.get("patience") if isinstance(block, dict) else None
    over = record is not None and is_over(record, patience)
    return record["at"] if record is not None and over else None


def sentence(results: Mapping[str, dict[str, Any]], workdir: str | os.PathLike) -> str:
    """Says which step was best and where it is; '' if none is kept."""
    record = recorded(results)
    if record is None or record["step"] is None:
        return ""
    where = os.path.join(workdir, "checkpoints", str(record["step"]))
    return (
        f"best by {record['by']}: {record['value']:.4g} at step {record['step']}, "
        f"chosen on {record['images']}; use it with --config.init={where}"
    )
