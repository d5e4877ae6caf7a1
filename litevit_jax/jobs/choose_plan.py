"""The parts of the job 'choose', and how many updates fit into the minutes given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from litevit_jax.jobs import choose_runs

LEAST_UPDATES = 20  # of a run; less would say nothing
LEAST_PASSES = 10  # of a teacher over the images; less makes none
_PRETRAINING = 0.6  # share of the time that is left for updates
_SPARE = 0.9  # share of the minutes that is planned for
# Seconds that parts take at least where nothing else runs, without any update.
_LEAST_S = {"pretrain": 4.0, "evaluate": 2.5, "finetune": 1.5}


@dataclasses.dataclass(frozen=True)
class Part:
    """One run.

    Attributes:
      kind: 'pretrain', 'evaluate' or 'finetune'.
      encoder: a method, or the name of a given encoder.
      seed: of what is drawn.
      labels: share of the labels that it learns from.
      images: share of the images that the encoder was pre-trained on.
      kept: how many of the first blocks do not change; 0: all are tuned.
    """

    kind: str
    encoder: str
    seed: int
    labels: float = 1.0
    images: float = 1.0
    kept: int = 0

    @property
    def name(self) -> str:
        """The name of its directory."""
        words = [self.kind, self.encoder, f"seed{self.seed}"]
        for what, share in (("labels", self.labels), ("images", self.images)):
            words += [f"{what}{choose_runs.percent(share)}"] * (share < 1)
        return "-".join(words + [f"kept{self.kept}"] * bool(self.kept))


class Times(NamedTuple):
    """Seconds that were measured of a run.

    Attributes:
      start_s: seconds without its updates, most of them to compile.
      step_s: seconds of an update.
    """

    start_s: float
    step_s: float = 0.0


def compared(
    methods: Sequence[str],
    given: Sequence[str],
    shares: Sequence[float],
    seeds: Sequence[int],
    *,
    teacher: bool,
) -> list[Part]:
    """Lists the parts that compare methods and given encoders, seed by seed.

    `teacher`: whether `distill` has one of its own, a run for each seed.
    """
    parts = []
    for seed in seeds:
        for encoder in (*methods, *given):
            if encoder == "supervised":
                for share in shares:
                    parts.append(Part("pretrain", encoder, seed, share))
                    parts.append(Part("evaluate", encoder, seed, share))
                continue
            if encoder == "distill" and teacher:
                parts.append(Part("pretrain", "teacher", seed))
            if encoder in choose_runs.RECIPES:
                parts.append(Part("pretrain", encoder, seed))
            parts.append(Part("evaluate", encoder, seed))
            parts += [Part("finetune", encoder, seed, share) for share in shares]
    return parts


def of_best(
    encoder: str | None, blocks: Sequence[int], share: float, seeds: Sequence[int]
) -> list[Part]:
    """Lists fine-tunings of the best encoder whose first blocks do not change."""
    if encoder is None:
        return []
    return [
        Part("finetune", encoder, seed, share, kept=kept)
        for seed in seeds
        for kept in blocks
    ]


def of_fewer_images(
    method: str | None, fractions: Sequence[float], seeds: Sequence[int]
) -> list[Part]:
    """Lists the runs of the best method on a part of the images."""
    if method is None:
        return []
    return [
        Part(kind, method, seed, images=fraction)
        for seed in seeds
        for fraction in fractions
        for kind in ("pretrain", "evaluate")
    ]


def least_minutes(parts: Sequence[Part]) -> float:
    """Returns the minutes below which a budget makes no sense on any machine."""
    seconds = sum(_LEAST_S[part.kind] for part in parts)
    return math.ceil(10 * seconds / _SPARE / 60) / 10


def updates(
    parts: Sequence[Part],
    times: Mapping[str, Times],
    *,
    minutes: float,
    spent_s: float,
    teacher: bool,
) -> dict[str, int]:
    """Plans how many updates each kind of run has; runs of a kind have equally many.

    All pre-trainings take equal time, the teacher half of that of `distill`; so do all
    fine-tunings.

    Args:
      parts: all parts.
      times: program -> as measured, see `program`; 'again' is a fine-tuning whose
        program was compiled before. One is compiled for each seed and share of labels.
      minutes: for everything.
      spent_s: seconds that the measurement took.
      teacher: whether `distill` has a teacher of its own.

    Raises:
      ValueError: the minutes do not suffice; the message says how many would.
    """
    programs = [program(part) for part in parts if part.encoder != "teacher"]
    trained = [p for p in programs if p in choose_runs.RECIPES]
    tuned = [p for p in programs if p.startswith("finetune")]
    fixed = spent_s + _starts(parts, times)
    share = {**dict.fromkeys(trained, 1.0), **dict.fromkeys(tuned, 1.0)}
    if teacher and "distill" in share:
        share |= {"distill": 0.5, "teacher": 0.5}
    pretraining, finetuning = len(trained), len(tuned)

    def each(rest: float) -> dict[str, float]:
        """Returns program -> updates of a run, of `rest` seconds for all."""
        own = _PRETRAINING * rest / max(pretraining, 1)
        tune = (1 - _PRETRAINING) * rest / max(finetuning, 1)
        return {
            p: share[p] * (tune if p.startswith("finetune") else own) / times[p].step_s
            for p in share
        }

    planned = {p: int(n) for p, n in each(_SPARE * 60 * minutes - fixed).items()}
    if min(planned.values()) < LEAST_UPDATES:
        needed = LEAST_UPDATES / min(each(1.0).values())
        least = math.ceil((fixed + needed) / _SPARE / 60)
        raise ValueError(
            f"--config.minutes={minutes:g} leaves a run less than {LEAST_UPDATES} "
            f"updates: {len(parts)} parts take {fixed / 60:.1f} minutes here without "
            f"any update, most of it to compile. Give --config.minutes={least} or "
            "more, or fewer --config.seeds, --config.methods, --config.labels or "
            "--config.fractions; what was timed is kept in this directory"
        )
    return planned


def program(part: Part) -> str:
    """Returns the name of what a part runs, by which it is timed."""
    if part.kind == "evaluate":
        return "evaluate"
    own = part.encoder in (*choose_runs.RECIPES, "random")
    if part.kind == "pretrain":
        return part.encoder
    return "finetune" if own else f"finetune {part.encoder}"


def _starts(parts: Sequence[Part], times: Mapping[str, Times]) -> float:
    """Returns the seconds that parts take without any update."""
    tuned = [p for p in parts if program(p) == "finetune" and not p.kept]
    compiled = {(part.seed, part.labels) for part in tuned}
    total = len(compiled) * (times["finetune"].start_s - times["again"].start_s)
    for part in parts:
        total += times["again" if part in tuned else program(part)].start_s
    return total


def seconds(
    parts: Sequence[Part], times: Mapping[str, Times], planned: Mapping[str, int]
) -> float:
    """Returns how long parts take, as measured and planned."""
    names = [program(part) for part in parts]
    return _starts(parts, times) + sum(
        planned.get(name, 0) * times[name].step_s for name in names
    )


def plain(times: Mapping[str, Times]) -> dict[str, Any]:
    """Returns times as JSON takes them."""
    return {name: each._asdict() for name, each in times.items()}
