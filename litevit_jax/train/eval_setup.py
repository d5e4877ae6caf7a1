"""Builds the evaluators of a config.

An evaluator reads the data of the run, or a labelled set of its own: the block `data`
beside its settings. It never touches what training reads or writes, so that a run
with it and one without are the same, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import augment, choices, registry, sharding
from litevit_jax.data import cache, relabel, settings, splits
from litevit_jax.data.kept import Kept
from litevit_jax.evaluators import base
from litevit_jax.train import state as states
from litevit_jax.trees import PyTree

if TYPE_CHECKING:
    from litevit_jax.data.sources.base import Source
    from litevit_jax.objectives.base import Variables
    from litevit_jax.train import best

Evaluators = dict[str, tuple[base.Evaluator, int]]
_OF_A_HEAD = ("grid_", "logits")  # predictions about the classes that it knows
_UNMATCHED = ("leave_out", "refuse")  # images of classes that the model does not know


@dataclasses.dataclass(frozen=True)
class Known:
    """The classes that a model tells apart: how many, and their names by number."""

    count: int
    names: list[str]

    @classmethod
    def of(cls, derived: Any) -> Known:
        """Returns the classes in a config's `derived`; old runs have no names."""
        return cls(derived["num_classes"], list(derived.get("classes") or []))


def make(
    config: ConfigDict,
    objective: states.Predictor,
    variables: Variables,
    source: Callable[[str], Source],
    *,
    mesh: Mesh,
    workdir: pathlib.Path,
    known: Known | None = None,
    eval_shape: Callable[..., states.Shapes] = jax.eval_shape,
    most: int | None = None,
) -> Evaluators:
    """Builds title -> (evaluator, every_steps) for each block of `config.evals`.

    Args:
      config: resolved; `derived.num_classes` are those of the run's own data.
      objective: what predicts.
      variables: its Variables, by shape.
      source: 'train' or 'eval' -> the run's own data.
      mesh: where batches go.
      workdir: where pictures go.
      known: the classes that the model was trained on; None: the run's own.
      eval_shape: as JAX's.
      most: bytes of each device that batches may take; None: what a set may.

    Raises:
      ValueError: the objective or the data lack what an evaluator needs.
      OSError: data does not exist.
    """
    if known is None:
        known = Known.of(config.derived)
    builder = _Builder(
        config, objective, variables, source, mesh, workdir, known, eval_shape, most
    )
    return {title: builder.make(title) for title in config.evals}


@dataclasses.dataclass(frozen=True)
class Predict:
    """Normalises uint8 images and predicts with an objective.

    JAX takes equal ones for the same: runs of one process share traces and programs.
    """

    objective: states.Predictor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Returns named arrays `[B, ...]` for a batch of uint8 images."""
        ops = augment.make({"normalize": {"mean": self.mean, "std": self.std}})
        batch = augment.apply(ops, jax.random.key(0), batch)
        return self.objective.predict(params, model_state, batch)


def _batch(data: ConfigDict, size: tuple[int, int], rows: int) -> states.Shapes:
    """Returns a batch of an evaluation: `rows` decoded images of `size` (H, W)."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((rows, *size, data.channels), jnp.uint8),
        "label": ((rows,), jnp.int32),
        "index": ((rows,), jnp.int32),
        "mask": ((rows,), jnp.float32),
    }
    if settings.annotations_of(data):
        shapes["size"] = ((rows, 2), jnp.int32)
    return {name: jax.ShapeDtypeStruct(*x) for name, x in shapes.items()}


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds the evaluators of one run, which share its prediction; see `make`."""

    config: ConfigDict
    objective: states.Predictor
    variables: Variables
    source: Callable[[str], Source]
    mesh: Mesh
    workdir: pathlib.Path
    known: Known
    eval_shape: Callable[..., states.Shapes]
    most: int | None

    @functools.cached_property
    def predict(self) -> jax.stages.Wrapped:
        """The jitted prediction from images of bytes."""
        normalize = self.config.augment.normalize
        mean, std = (tuple(normalize[key]) for key in ("mean", "std"))
        predict = Predict(self.objective, mean, std)
        return states.jitted(predict, "__call__")

    @functools.cached_property
    def kept(self) -> Kept | None:
        """Keeps the batches of evaluations where the images of training are."""
        config = self.config
        on_device = config.derived.get("cropped_on") == "device"
        if not on_device and cache.setting(config.data) != "device":
            return None
        if self.most is not None:
            return Kept(self.most)
        return Kept(cache.most_on_device(self.mesh, config.data.cache_gib))

    @functools.cached_property
    def last(self) -> base.LastPass:
        """Remembers predictions, which several evaluators may need."""
        return base.LastPass()

    def make(self, title: str) -> tuple[base.Evaluator, int]:
        """Builds (evaluator, every_steps) of block `title`."""
        config = self.config
        block = config.evals[title]
        if not isinstance(block, ConfigDict):
            raise ValueError(
                f"evals.{title}={block!r}: expected a block, as {{'name': 'knn'}}"
            )
        kwargs = block.to_dict()
        name, every = kwargs.pop("name", None), kwargs.pop("every_steps", 0)
        if name is None:
            raise ValueError(
                f"evals.{title} names no evaluator; choose from "
                f"{', '.join(registry.choices('evaluators'))}: evals.{title}.name"
            )
        unmatched = kwargs.pop("unmatched", "refuse")
        choices.check(f"evals.{title}.unmatched", unmatched, list(_UNMATCHED))
        block, data = kwargs.pop("data", None), config.data.to_dict()
        source, classes = self.source, config.derived.num_classes
        if block is not None:
            data = splits.evaluator_data(title, block, config.data)
            source = splits.open_evaluator(title, data)
            classes = len(source(kwargs.get("split", "eval")).classes)
        predicted = self._predicted(title, data)
        context = base.Context(
            predict=self.predict,
            source=source,
            batches=splits.evaluation_batches(data, config.batch_size, self.mesh),
            mesh=self.mesh,
            outdir=self.workdir / "pictures",
            mean=tuple(config.augment.normalize.mean),
            std=tuple(config.augment.normalize.std),
            num_classes=classes,
            rows=splits.evaluation_rows(data, self.mesh),
            size=settings.image_size(data),
            kept=self.kept,
            last=self.last,
            images=json.dumps(settings.image_settings(data), sort_keys=True),
            crop=data["eval_crop_fraction"],
            names=tuple(self.known.names),
            multi_label=self.objective.multi_label,
            predicts=tuple(predicted),
        )
        evaluator = registry.make("evaluators", name, context=context, **kwargs)
        base.check(name, evaluator, predicted, config.objective.name)
        if evaluator.labelled:
            hint = _leave_out(title, config.evals[title], config.job)
            refuses = unmatched == "refuse"
            evaluator = _matched(title, evaluator, self.known, refuses, hint)
        elif evaluator.own_file:  # whatever the classes of its images
            pass
        elif evaluator.named_classes:
            evaluator = _named(title, evaluator, self.known)
        elif "logits" in evaluator.reads or evaluator.same_classes:
            names = list(source(getattr(evaluator, "split", "eval")).classes)
            if classes != self.known.count:
                raise ValueError(_other_count(title, classes, self.known.count))
            _check_numbers(title, names, self.known)
        _check_data(title, evaluator, kwargs)
        return evaluator, every

    def _predicted(self, title: str, data: Any) -> states.Shapes:
        """Returns what the objective predicts for images of `data`, by shape."""
        variables, size = self.variables, settings.image_size(data)
        rows = splits.evaluation_rows(data, self.mesh)
        arguments = (
            variables.params,
            variables.model_state,
            _batch(self.config.data, size, rows),
        )
        # Sharded as in the evaluation, which then traces nothing anew.
        arguments = states.laid_out(arguments, sharding.replicated(self.mesh))
        try:
            return self.eval_shape(self.predict, *arguments)
        except (TypeError, ValueError) as error:
            own = settings.image_size(self.config.data)
            if own == size:
                raise
            raise ValueError(
                f"evals.{title}.data: images of {size[0]}x{size[1]}, but the model "
                f"learns from {own[0]}x{own[1]} and takes no others ({error}); leave "
                "image_size out"
            ) from None


def _check_data(title: str, evaluator: base.Evaluator, kwargs: dict[str, Any]) -> None:
    """Raises ValueError now, not after hours, for a split without what is needed."""
    for key in ("split", "bank", "select"):
        split = kwargs.get(key, getattr(evaluator, key, None))
        if split is not None:
            evaluator.context.source(split)
    try:
        evaluator.check_data()
    except ValueError as error:
        raise ValueError(f"evals.{title}: {error}") from None


def _check_numbers(title: str, names: list[str], known: Known) -> None:
    """Raises ValueError if classes `names` are not numbered as those of the model."""
    match = relabel.match(names, known.names, known.count)
    numbers = [] if match is None else match.numbers.tolist()
    moved = [label for label, number in enumerate(numbers) if label != number]
    if moved:
        label = moved[0]
        raise ValueError(
            f"evals.{title} takes classes by their numbers, and the model has others: "
            f"class {label} of the data is {names[label]!r}, that of the model "
            f"{known.names[label]!r}; give it a model that numbers them alike"
        )


def _matched(
    title: str, evaluator: base.Evaluator, known: Known, refuses: bool, hint: str
) -> base.Evaluator:
    """Returns `evaluator` with labels numbered as the model's classes.

    An evaluator that learns from the images of a bank takes the bank's classes. If it
    `refuses` images of other classes, `hint` says how to leave them out.

    Raises:
      ValueError: the model does not know a class.
    """
    context, original = evaluator.context, evaluator.context.source
    split, bank = (getattr(evaluator, name, None) for name in ("split", "bank"))
    if split is None:
        return evaluator
    if not any(name.startswith(_OF_A_HEAD) for name in evaluator.reads):
        names = original(bank or split).classes
        known = Known(len(names), names)

    @functools.cache
    def source(split: str) -> Source:
        own = original(split)
        match = relabel.match(own.classes, known.names, known.count)
        if match is None or not match.how or not known.names:
            return own
        return relabel.Relabelled(own, match.numbers, known.names)

    own = original(split)
    if not (own.classes and known.count):  # `check_data` says what is missing
        return evaluator
    try:
        match = relabel.match(own.classes, known.names, known.count)
    except ValueError as error:
        raise ValueError(f"evals.{title}: {error}") from None
    if match is None:
        raise ValueError(_other_count(title, len(own.classes), known.count))
    left_out = relabel.count(own, match.unknown) if len(match.unknown) else 0
    if left_out and (refuses or left_out == len(own)):
        hint = hint if left_out < len(own) else ""
        raise ValueError(_not_known(title, own, match, known, left_out) + hint)
    context = dataclasses.replace(
        context,
        source=source,
        num_classes=known.count,
        classes=match.how,
        unmatched=left_out,
    )
    return dataclasses.replace(evaluator, context=context)


def _named(title: str, evaluator: base.Evaluator, known: Known) -> base.Evaluator:
    """Returns `evaluator`, which matches classes, with a note on how.

    Raises:
      ValueError: the data have a class that the model does not know.
    """
    names = list(evaluator.context.source(getattr(evaluator, "split", "eval")).classes)
    try:
        match = relabel.match(names, known.names, known.count)
    except ValueError as error:
        raise ValueError(f"evals.{title}: {error}") from None
    if match is None or len(match.unknown):
        others = range(len(names)) if match is None else match.unknown
        raise ValueError(
            f"evals.{title}: {_listed([names[k] for k in others])}: {len(others)} of "
            f"{len(names)} classes of the data are none that the model was trained "
            f"on, which are {_listed(known.names) or known.count}; give them the names "
            "that it knows, or leave their objects out of the data"
        )
    context = dataclasses.replace(evaluator.context, classes=match.how)
    return dataclasses.replace(evaluator, context=context)


def _other_count(title: str, count: int, known: int) -> str:
    """Returns the message for classes without names whose number differs."""
    return (
        f"evals.{title}: the data has {count} classes, but the classifier was trained "
        f"on {known}; give the data that it knows, or compare features alone with "
        "evaluator 'knn'"
    )


def _not_known(
    title: str, own: Source, match: relabel.Match, known: Known, images: int
) -> str:
    """Returns the message for classes that the model does not know."""
    names = [own.classes[label] for label in match.unknown]
    return (
        f"evals.{title}: {_listed(names)}: {len(names)} of {len(own.classes)} classes "
        f"of the data ({images} of {len(own)} images) are none that the model was "
        f"trained on, which are {_listed(known.names)}; give them the names that it "
        "knows"
    )


def _leave_out(title: str, block: ConfigDict, job: str) -> str:
    """Says how the command line leaves out images of unknown classes; maybe ''."""
    field = f"evals.{title}.unmatched"
    if block["name"] not in ("classification", "confusion"):
        return ""
    text = ", or leave their images out with "
    if "unmatched" in block:
        return f"{text}--config.{field}=leave_out"
    if job != "evaluate":
        return f"{text}{field}='leave_out' in the recipe"
    return (
        f"{text}the variant classification: --config=configs/evaluate.py:"
        "classification,... --config.evals.classification.unmatched=leave_out"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown + (f", ... ({len(names)})" if len(names) > 5 else "")


def notes(evaluators: Evaluators, rule: best.Rule | None = None) -> list[str]:
    """Describes, in lines, unlike classes of data and model, and the best step."""
    lines = [] if rule is None else [rule.note()]
    for title, (evaluator, _) in evaluators.items():
        context = evaluator.context
        if context.classes:
            count = context.unmatched
            more = f"; {count} images of other classes are left out" if count else ""
            lines.append(f"evals.{title}: the data has {context.classes}{more}")
    return lines
