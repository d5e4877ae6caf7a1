"""Makes the evaluators of a config.

An evaluator reads the data of the run, or a labelled set of its own: the block `data`
beside its settings. It never touches what training reads or writes, so that a run
with it and one without are the same, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import choices, registry, sharding
from litevit_jax.data import relabel, settings, splits
from litevit_jax.evaluators import base
from litevit_jax.train import batch_shapes
from litevit_jax.train import state as states

Evaluators = dict[str, tuple[base.Evaluator, int]]
_OF_A_HEAD = ("grid_", "logits")  # predictions about the classes that it knows
_UNMATCHED = ("leave_out", "refuse")  # images of classes that the model does not know


@dataclasses.dataclass(frozen=True)
class Known:
    """The classes that a model tells apart: how many, and by number their names."""

    count: int
    names: list[str]

    @classmethod
    def of(cls, derived: Any) -> Known:
        """Those of a run, by its config's `derived`; old runs have no names."""
        return cls(derived["num_classes"], list(derived.get("classes") or []))


def make(
    config: ConfigDict,
    objective: Any,
    variables: Any,
    source: Callable[[str], Any],
    *,
    mesh: Mesh,
    workdir: pathlib.Path,
    known: Known | None = None,
) -> Evaluators:
    """Title -> (evaluator, every_steps) for each block of `config.evals`.

    Args:
      config: resolved; `derived.num_classes` are those of the run's own data.
      objective: what predicts.
      variables: its Variables, by shape.
      source: 'train' or 'eval' -> the run's own data.
      mesh: where batches go.
      workdir: where pictures go.
      known: the classes that the model was trained on; None: the run's own.

    Raises:
      ValueError: an evaluator that the objective, or the data, has nothing for.
      OSError: data that is not there.
    """
    if known is None:
        known = Known.of(config.derived)
    maker = _Maker(
        config,
        objective,
        variables,
        source,
        mesh=mesh,
        workdir=workdir,
        known=known,
    )
    return {title: maker.make(title) for title in config.evals}


class _Maker:
    """Makes the evaluators of one run; what predicts is the same for all of them."""

    def __init__(
        self,
        config: ConfigDict,
        objective: Any,
        variables: Any,
        source: Callable[[str], Any],
        *,
        mesh: Mesh,
        workdir: pathlib.Path,
        known: Known,
    ) -> None:
        self._known = known
        self._config, self._objective, self._variables = config, objective, variables
        self._source, self._mesh, self._workdir = source, mesh, workdir
        self._normalize = config.augment.normalize
        mean, std = (tuple(self._normalize[key]) for key in ("mean", "std"))
        self._predict = states.jitted(
            batch_shapes.Predict(objective, mean, std), "__call__"
        )

    def make(self, title: str) -> tuple[base.Evaluator, int]:
        """(evaluator, every_steps) of block `title`."""
        config = self._config
        kwargs = config.evals[title].to_dict()
        name, every = kwargs.pop("name"), kwargs.pop("every_steps")
        unmatched = kwargs.pop("unmatched", "refuse")
        choices.check(f"evals.{title}.unmatched", unmatched, list(_UNMATCHED))
        block, data = kwargs.pop("data", None), config.data.to_dict()
        source, classes = self._source, config.derived.num_classes
        if block is not None:
            data = splits.evaluator_data(title, block, config.data)
            source = splits.open_splits(data)
            classes = len(source(kwargs.get("split", "eval")).classes)
        context = base.Context(
            predict=self._predict,
            source=source,
            batches=splits.evaluation_batches(data, config.batch_size, self._mesh),
            mesh=self._mesh,
            outdir=self._workdir / "pictures",
            mean=tuple(self._normalize.mean),
            std=tuple(self._normalize.std),
            num_classes=classes,
            rows=splits.evaluation_rows(data, self._mesh),
        )
        evaluator = registry.make("evaluators", name, context=context, **kwargs)
        predicted = self._predicted(title, data)
        base.check(name, evaluator, predicted, config.objective.name)
        if evaluator.labelled:
            evaluator = _matched(title, evaluator, self._known, config)
        elif "logits" in evaluator.reads and classes != self._known.count:
            raise ValueError(_other_count(title, classes, self._known.count))
        _check_data(title, evaluator, kwargs)
        return evaluator, every

    def _predicted(self, title: str, data: Any) -> dict[str, Any]:
        """What the objective predicts for images of `data`, by shape."""
        variables, size = self._variables, settings.image_size(data)
        rows = splits.evaluation_rows(data, self._mesh)
        given = (
            variables.params,
            variables.model_state,
            batch_shapes.evaluation(self._config, size, rows),
        )
        # On the mesh, as those of the evaluation: these are not traced anew then.
        anywhere = sharding.replicated(self._mesh)
        given = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=anywhere), given
        )
        try:
            return jax.eval_shape(self._predict, *given)
        except (TypeError, ValueError) as error:
            ours = settings.image_size(self._config.data)
            if ours == size:
                raise
            raise ValueError(
                f"evals.{title}.data: images of {size[0]}x{size[1]}, but the model "
                f"learns from {ours[0]}x{ours[1]} and takes no others ({error}); leave "
                "image_size out"
            ) from None


def _check_data(title: str, evaluator: Any, kwargs: dict[str, Any]) -> None:
    """A split that is missing or has no labels is found now, not after hours."""
    for key in ("split", "bank", "select"):
        split = kwargs.get(key, getattr(evaluator, key, None))
        if split is not None:
            evaluator.context.source(split)
    try:
        evaluator.check_data()
    except ValueError as error:
        raise ValueError(f"evals.{title}: {error}") from None


def _matched(title: str, evaluator: Any, known: Known, config: ConfigDict) -> Any:
    """`evaluator` on labels that are numbers of the classes that the model knows.

    What learns from the images of a bank instead knows the bank's classes.

    Raises:
      ValueError: a class that is not known.
    """
    context, given = evaluator.context, evaluator.context.source
    split, bank = (getattr(evaluator, name, None) for name in ("split", "bank"))
    if split is None:
        return evaluator
    if not any(name.startswith(_OF_A_HEAD) for name in evaluator.reads):
        names = given(bank or split).classes
        known = Known(len(names), names)

    @functools.cache
    def source(split: str) -> Any:
        own = given(split)
        match = relabel.match(own.classes, known.names, known.count)
        if match is None or not match.how or not known.names:
            return own
        return relabel.Relabelled(own, match.numbers, known.names)

    own = given(split)
    if not (own.classes and known.count):  # `check_data` says what is missing
        return evaluator
    try:
        match = relabel.match(own.classes, known.names, known.count)
    except ValueError as error:
        raise ValueError(f"evals.{title}: {error}") from None
    if match is None:
        raise ValueError(_other_count(title, len(own.classes), known.count))
    left_out = relabel.count(own, match.unknown) if len(match.unknown) else 0
    refused = config.evals[title].get("unmatched", "refuse") == "refuse"
    if left_out and (refused or left_out == len(own)):
        hint = _leave_out(title, config) if left_out < len(own) else ""
        raise ValueError(_not_known(title, own, match, known, left_out) + hint)
    context = dataclasses.replace(
        context,
        source=source,
        num_classes=known.count,
        classes=match.how,
        unmatched=left_out,
    )
    return dataclasses.replace(evaluator, context=context)


def _other_count(title: str, ours: int, known: int) -> str:
    """What to say of classes without names that are not as many."""
    return (
        f"evals.{title}: the data has {ours} classes, but the classifier was trained "
        f"on {known}; give the data that it knows, or compare features alone with "
        "evaluator 'knn'"
    )


def _not_known(title: str, own: Any, match: Any, known: Known, images: int) -> str:
    """What to say of classes that the model does not know."""
    names = [own.classes[label] for label in match.unknown]
    return (
        f"evals.{title}: {_listed(names)}: {len(names)} of {len(own.classes)} classes "
        f"of the data ({images} of {len(own)} images) are none that the model was "
        f"trained on, which are {_listed(known.names)}; give them the names that it "
        "knows"
    )


def _leave_out(title: str, config: ConfigDict) -> str:
    """How the command line can leave out images of classes that are not known."""
    block, field = config.evals[title], f"evals.{title}.unmatched"
    if block["name"] != "classification":
        return ""
    text = ", or leave their images out with "
    if "unmatched" in block:
        return f"{text}--config.{field}=leave_out"
    if config.job != "evaluate":
        return f"{text}{field}='leave_out' in the recipe"
    return (
        f"{text}the variant classification: --config=configs/evaluate.py:"
        "classification,... --config.evals.classification.unmatched=leave_out"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown + (f", ... ({len(names)})" if len(names) > 5 else "")


def notes(evaluators: Evaluators) -> list[str]:
    """Lines about classes of the data that are not simply the model's."""
    found = []
    for title, (evaluator, _) in evaluators.items():
        context = evaluator.context
        if context.classes:
            count = context.unmatched
            more = f"; {count} images of other classes are left out" if count else ""
            found.append(f"evals.{title}: the data has {context.classes}{more}")
    return found
