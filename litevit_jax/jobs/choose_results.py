"""Scores and sentences of the finished parts of the job 'choose'."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from litevit_jax import commandline
from litevit_jax.jobs import choose_runs, summary
from litevit_jax.jobs.choose_input import Lineup
from litevit_jax.jobs.choose_plan import Times
from litevit_jax.report import choice
from litevit_jax.train import auto

EVALUATIONS = {
    "finetune": "fine-tuning",
    "probe": "linear probe",
    "knn": "k-NN",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """The finished parts, and what they are of.

    Attributes:
      rows: name -> row of choose.json.
      counts: share of the labels -> images.
      lineup: the encoders that are compared.
      setting: of all runs.
      images: to learn from.
      held_out: images that all numbers are of.
    """

    rows: Mapping[str, dict[str, Any]]
    counts: Mapping[float, int]
    lineup: Lineup
    setting: choose_runs.Setting
    images: int
    held_out: int

    def scores(
        self, evaluation: str, *, images: float = 1.0, kept: int = 0
    ) -> dict[str, dict[float, choice.Score]]:
        """Returns encoder -> share of the labels -> score.

        Args:
          evaluation: of EVALUATIONS.
          images: share that the encoders were pre-trained on.
          kept: how many blocks did not change in fine-tuning.
        """
        values: dict[str, dict[float, list[dict[str, Any]]]] = {}
        for row in self.rows.values():
            if (row["images"], row["kept"]) != (images, kept):
                continue
            for share, numbers in _numbers(row, evaluation).items():
                by_share = values.setdefault(row["encoder"], {})
                by_share.setdefault(share, []).append(numbers)
        names = [n for n in (*self.lineup.methods, *self.lineup.given) if n in values]
        return {name: _of_rows(values[name], self.counts) for name in names}

    def best(self) -> str | None:
        """Returns the best encoder that was pre-trained without labels, or given."""
        return self._best([*self.lineup.pretrained, *self.lineup.given])

    def best_method(self) -> str | None:
        """Returns the best method that can be tried on fewer images."""
        return self._best(self.lineup.with_curve)

    def _best(self, names: Sequence[str]) -> str | None:
        tuned = self.scores("finetune")
        known = {name: tuned[name] for name in names if name in tuned}
        return choice.recommended(known) if known else None

    def depth(self, encoder: str | None) -> int:
        """Returns the number of an encoder's blocks; 0 before it was evaluated."""
        for row in self.rows.values():
            if row["kind"] == "evaluate" and row["encoder"] == encoder:
                return row["result"]["depth"]
        return 0

    def table(self) -> list[list[str]]:
        """Returns all scores as rows of text, the first one the heading."""
        tables = {title: self.scores(name) for name, title in EVALUATIONS.items()}
        return choice.as_rows(tables, self.counts)

    def text(self) -> str:
        """Formats all scores in columns."""
        return summary.columns(self.table())

    def notes(self, times: Mapping[str, Times], seeds: int) -> list[str]:
        """Says what is recommended, why, and what the full run takes."""
        tuned = self.scores("finetune")
        name, best, kept = choice.recommended(tuned), self.best(), 0
        notes = [choice.of_choice(name, tuned)]
        notes += choice.of_methods(tuned, self.counts)
        notes.append(choice.of_baseline(name, tuned))
        notes.append(choice.of_probe(name, tuned[name], self.scores("probe")))
        if best is not None:
            sentence, fewest = self._of_blocks(best)
            notes.append(sentence)
            kept = fewest if best == name else 0
        notes.append(choice.of_labels(name, tuned[name], self.counts))
        method = self.best_method()
        curve = self._curve(method)
        if method is not None and len(curve) > 1:
            notes.append(choice.of_images(method, curve, self.images))
        notes += self._commands(name, kept, times)
        notes.append(
            f"All numbers: top-1 in percent of {self.held_out:,} images held out of "
            f"training, mean of {seeds} seed{'s' * (seeds > 1)} ± two standard errors "
            "(of the seeds, or of so many images, the larger). Differences are judged "
            "by a t test between the seeds. With a larger encoder or more updates "
            "another method may win."
        )
        return [note for note in notes if note]

    def _of_blocks(self, name: str) -> tuple[str, int]:
        kept = sorted({0, *(row["kept"] for row in self.rows.values())})
        by_kept = {k: self.scores("finetune", kept=k).get(name, {}) for k in kept}
        known = {k: scores for k, scores in by_kept.items() if scores}
        if len(known) < 2:
            return "", 0
        return choice.of_blocks(name, known, self.depth(name))

    def _curve(self, method: str | None) -> dict[float, choice.Score]:
        """Returns share of the images -> linear probe with the most labels."""
        most, curve = max(self.counts), {}
        for images in sorted({row["images"] for row in self.rows.values()}):
            scores = self.scores("probe", images=images).get(method or "", {})
            if most in scores:
                curve[images] = scores[most]
        return curve

    def _commands(self, name: str, kept: int, times: Mapping[str, Times]) -> list[str]:
        """Returns the commands of the full runs, and what they take here."""
        lines, init = [], self.lineup.given.get(name, name)
        if name in choose_runs.RECIPES:
            methods, teacher = [name], None
            if name == "distill":
                methods = ["teacher", name] if self.lineup.own_teacher else [name]
                teacher = self.lineup.teacher or _folder("teacher")
            for method in methods:
                given = teacher if method == "distill" else None
                run = self.setting.pretraining(method, given)
                title = f"Full run of {'the ' * (method == 'teacher')}{method}"
                lines.append(self._full(title, run, _folder(method), times[method]))
            init = _folder(name)
        if name == "supervised":
            return lines
        own = name not in self.lineup.given
        tuning = self.setting.finetuning(init, own=own, kept=kept)
        measured = times["finetune" if own else f"finetune {name}"]
        folder = _folder(f"{name}-finetuned")
        return [*lines, self._full(f"Fine-tuning {name}", tuning, folder, measured)]

    def _full(
        self, title: str, run: choose_runs.Command, folder: str, measured: Times
    ) -> str:
        """Returns the command of a full run in `folder`, and what it takes here."""
        # Nothing is held out of its training.
        kept = {k: v for k, v in run.fields.items() if k != "data.holdout.eval"}
        run = dataclasses.replace(run, fields=kept)
        images = self.images + self.held_out
        epochs = run.config().epochs or auto.choose_epochs(images)
        per_s = self.setting.batch_size / measured.step_s
        return (
            f"{title} ({epochs:g} passes over {images:,} images, about "
            f"{_duration(epochs * images / per_s)} at the {per_s:,.0f} images/s "
            f"measured here): {run.text(commandline.command())} --workdir={folder}"
        )

    def draw(self, notes: Sequence[str], folder: pathlib.Path) -> pathlib.Path:
        """Writes the page; returns its path."""
        from litevit_jax.report import build, page  # late: it plots

        head, *rows = self.table()
        figures = [
            choice.figure(
                f"{title[0].upper()}{title[1:]} by labels", name, self.scores(name)
            )
            for name, title in EVALUATIONS.items()
        ]
        boxes: list[page.Note | page.Table] = [page.Note(note) for note in notes]
        return build.figure_report(
            figures,
            folder,
            title="Which pre-training for these images",
            summary=[*boxes, page.Table(head, rows)],
        )

    def plain(self) -> dict[str, Any]:
        """Returns all scores as JSON takes them."""
        return {
            evaluation: {
                encoder: [
                    {"labels": share, "mean": s.mean, "error": s.error, "n": s.n}
                    | {"values": s.values}
                    for share, s in by_share.items()
                ]
                for encoder, by_share in self.scores(evaluation).items()
            }
            for evaluation in EVALUATIONS
        }


def _of_rows(
    by_share: Mapping[float, list[dict[str, Any]]], counts: Mapping[float, int]
) -> dict[float, choice.Score]:
    return {
        share: choice.Score(
            tuple(each["top1"] for each in by_share[share]),
            min(each["n"] for each in by_share[share]),
        )
        for share in counts
        if share in by_share
    }


def _numbers(row: dict[str, Any], evaluation: str) -> dict[float, dict[str, Any]]:
    """Returns share of the labels -> top1 and n that a part measured."""
    result = row["result"]
    if evaluation != "finetune":
        if row["kind"] != "evaluate":
            return {}
        return {
            each["labels"]: {"top1": each[evaluation], "n": each["n"]}
            for each in result["probes"]
        }
    # A classifier that was trained with these labels has nothing to be tuned for.
    own = row["kind"] == "pretrain" and row["encoder"] == "supervised"
    return {row["labels"]: result} if own or row["kind"] == "finetune" else {}


def of_probes(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns of each share what the better tokens tell, chosen by training images.

    `results` are those of the evaluation that `Setting.probing` describes.
    """
    best: dict[str, dict[str, Any]] = {}
    for title, result in results.items():
        last, share = result["last"], title.partition("_")[2]
        if share not in best or last["select_top1"] > best[share]["select_top1"]:
            best[share] = last
    rows = []
    for share, last in best.items():
        knn = last["table"][last["block"] - 1]["knn"]
        row = {"labels": choose_runs.share_of(share), "probe": last["top1"], "knn": knn}
        rows.append(row | {key: last[key] for key in ("n", "block", "pool")})
    depth = len(next(iter(best.values()))["table"])
    return {"probes": rows, "depth": depth}


def _folder(name: str) -> str:
    """Returns the directory of a full run, in which the next one finds it."""
    return f"runs/full-{name}"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(seconds / 60, 0.1):.2g} minutes"
    return f"{seconds / 3600:.2g} hours"
