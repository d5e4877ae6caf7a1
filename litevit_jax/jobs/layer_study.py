"""The job 'layers': measures which blocks of a checkpoint help a task.

Parts are ordinary runs of one short fine-tuning recipe that differ in the blocks which
start from the checkpoint, and in those that never change. What is finished is in
layers.json, so that a study that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import choices, recipes
from litevit_jax.evaluators import stored
from litevit_jax.jobs import evaluate, ledger, summary, train
from litevit_jax.models import vit
from litevit_jax.report import advice, page
from litevit_jax.train import resolve
from litevit_jax.train import workdir as workdirs
from litevit_jax.warm_start import images, start

KINDS = ("probe", "keep_first", "keep_last", "freeze", "swap")
METRICS = ("top1", "mean_per_class")
_EMBEDDINGS = "encoder/(cls_token|pos_embed|patch_embed/.*)"


def frozen(count: int) -> tuple[str, ...]:
    """Returns `optimizer.freeze` that keeps the embeddings and the first blocks."""
    return (_EMBEDDINGS, *_blocks(0, count))


def _blocks(start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"encoder/blocks_{i}/.*" for i in range(start, stop))


@dataclasses.dataclass(frozen=True)
class Part:
    """One run: which blocks are kept, frozen or swapped, with how much data."""

    kind: str
    k: int
    setting: str

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.setting}-{self.kind}-{self.k:02d}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a study: its table, its page, and the signal that stopped it."""

    table: str
    page: pathlib.Path
    signal: int | None = None


class Study:
    """The parts of a config, and their results in `layers.json`."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        self._config = resolve.changed(config, {})
        self._workdir = workdir
        self._depth = self._check()
        self._steps: int | None = self._config.steps
        self.planned = self._plan()
        self._open()
        self.parts = ledger.Parts(workdir / "layers.json", depth=self._depth)

    def run(self) -> Outcome:
        """Runs the parts that are not finished, then draws all.

        Raises:
          ValueError, OSError: a mistake in the config or data, before any compile.
          Exception: whatever ended a part's run; the study goes on from there.
        """
        signal = self.parts.finish(self.planned, "part", self._run)
        return Outcome(self.table(), self.draw(), signal)

    def _run(self, part: Part) -> int | None:
        if part.kind == "probe":
            self.probe(part)
            return None
        outcome = train.run(self.config_of(part), self.directory(part))
        if outcome.signal is None:
            last = outcome.results["test"]["last"]
            self.parts.add(part.name, **dataclasses.asdict(part), result=last)
        return outcome.signal

    def config_of(self, part: Part) -> ConfigDict:
        """Returns the config of a part's run."""
        own = self._config
        fields = {
            "job": "train",
            "init_donor": None,
            "data.fraction": own.study[part.setting],
        }
        if part.setting == "poor":
            # As many updates as with many images, and as many of warm-up, which keeps
            # its share of the run: only what is seen differs.
            fields["steps"] = self._steps
        nothing = {"init_load": (), "init_skip": (".*",)}
        if part.kind == "random":  # the same encoder, no parameter of the checkpoint
            fields |= nothing if own.init != "random" else {}
        elif part.kind == "freeze":
            fields["optimizer.freeze"] = frozen(part.k)
        elif part.kind == "swap":
            fields["init_donor"] = own.init_donor
            fields["init_donor_load"] = _blocks(part.k, self._depth)
        else:
            ends = (0, part.k)
            if part.kind == "keep_last":
                ends = (self._depth - part.k, self._depth)
            load = (_EMBEDDINGS, *_blocks(*ends))
            fields |= nothing | {"init_load": load}
        return resolve.changed(own, fields, without=["study"])

    def probe_of(self, part: Part) -> ConfigDict:
        """Returns the config of a probe, an evaluation that trains nothing."""
        recipe, own = recipes.get("layer_probe"), self._config
        shared = ("init", "init_ema", "init_grid", "seed", "mesh")
        fields = {name: own[name] for name in shared}
        heads = own.objective.encoder.get("num_heads")
        fields["objective.encoder.num_heads"] = heads
        for name, block, given in (
            ("data", recipe.data, own.data),
            ("augment.normalize", recipe.augment.normalize, own.augment.normalize),
        ):
            known = ((k, v) for k, v in given.items() if v is not None and k in block)
            fields |= {f"{name}.{key}": value for key, value in known}
        fields["data.fraction"] = own.study[part.setting]
        evals = {k: v for k, v in recipe.evals.items() if v["name"] == "layers"}
        return resolve.changed(recipe, {**fields, "evals": evals})

    def probe(self, part: Part) -> None:
        """Runs and records a part of kind 'probe'."""
        with stored.under(self._workdir / "features"):
            results = evaluate.run(self.probe_of(part), self.directory(part))
        tables = {title: result["last"]["table"] for title, result in results.items()}
        # Test images choose nothing, not even which tokens are read.
        lasts = [result["last"] for result in results.values()]
        best = max(lasts, key=lambda last: last["select_top1"])
        kept = ("top1", "block", "n", "pool", "select_top1", "select_n")
        result = {k: best[k] for k in kept}
        row = dataclasses.asdict(part)
        self.parts.add(part.name, **row, result=result, tables=tables)

    def directory(self, part: Part) -> pathlib.Path:
        """Returns the directory of a part's run."""
        return self._workdir / "parts" / part.name

    def curves(self, metric: str) -> dict[str, dict[str, dict[int, float]]]:
        """Maps kind -> setting -> {k: result} of the finished parts.

        The whole checkpoint and none of its blocks are the same run in several kinds;
        it was run once and appears in all of them.
        """
        curves: dict[str, dict[str, dict[int, float]]] = {}
        trained = [r for r in self.parts.rows.values() if r["kind"] != "probe"]
        for row in trained:
            by_k = curves.setdefault(row["kind"], {}).setdefault(row["setting"], {})
            by_k[row["k"]] = row["result"][metric]
        for setting, whole in curves.get("keep_first", {}).items():
            for kind, k, kept in (
                ("keep_last", self._depth, self._depth),
                ("keep_last", 0, 0),
                ("freeze", 0, self._depth),
                ("swap", self._depth, self._depth),
            ):
                if kept in whole and setting in curves.get(kind, {}):
                    curves[kind][setting].setdefault(k, whole[kept])
        return curves

    def table(self) -> str:
        """Formats all finished parts in columns."""
        metric = self._config.study.metric
        rows = [["data", "what", "k", metric, "n"]]
        for part in self.planned:
            if part.name in self.parts:
                result = self.parts.rows[part.name]["result"]
                k, number, what = part.k, result[metric], part.kind
                if part.kind == "probe":  # always of top1: the block that was chosen
                    k, number = result["block"], result["top1"]
                    what = f"probe, {advice.TOKENS[result['pool']]}"
                row = [part.setting, what, str(k), f"{number:.2f}"]
                rows.append([*row, str(result["n"])])
        return summary.columns(rows)

    def draw(self) -> pathlib.Path:
        """Writes the page of the finished parts; returns its path."""
        from litevit_jax.report import build, run_figures  # late: it plots

        study = self._config.study
        curves = self.curves(study.metric)
        shares = {setting: study[setting] for setting in ("rich", "poor")}
        figures = run_figures.of_study(curves, shares, study.metric)
        for title, tables in self._probed().items():
            source = "parts of kind probe in layers.json"
            figures.append(run_figures.of_blocks(title, tables, source))
        notes = self._notes(curves)
        missing = len([p for p in self.planned if p.name not in self.parts])
        if missing:
            notes.append(f"{missing} of {len(self.planned)} parts are not finished.")
        return build.figure_report(
            figures,
            self._workdir / "report",
            title=f"Layers of {self._config.init}",
            summary=[page.Note(note) for note in notes],
        )

    def _notes(self, curves: advice.Curves) -> list[str]:
        """Writes sentences about the finished parts."""
        metric, rows = self._config.study.metric, list(self.parts.rows.values())
        notes = [
            advice.of_probe(row["setting"], row["result"])
            for row in rows
            if row["kind"] == "probe"
        ]
        counts = {row["result"]["n"] for row in rows if row["kind"] != "probe"}
        if metric != "top1":
            notes.append(f"What {metric} tells is left to you: its error is unknown.")
        elif counts:
            notes += advice.of_layers(curves, self._depth, min(counts))
        if counts:
            notes.append(
                f"All parts had {self._steps:,} updates. Errors are of the test images "
                "alone; parts trained with another seed would differ too."
            )
        return notes

    def _probed(self) -> dict[str, dict[str, Any]]:
        """Returns way to pool tokens -> setting -> what each block knows."""
        tables: dict[str, dict[str, Any]] = {}
        for row in self.parts.rows.values():
            for title, table in row.get("tables", {}).items():
                tables.setdefault(title, {})[row["setting"]] = table
        return tables

    def _plan(self) -> list[Part]:
        study, depth = self._config.study, self._depth
        ks = list(study.depths) or [*range(depth + 1)]
        planned = []
        for setting in ("rich", "poor"):
            planned.append(Part("random", 0, setting))
            for kind in study.kinds:
                for k in ks:
                    part = self._part(kind, k, setting)
                    if part is not None and part not in planned:
                        planned.append(part)
        return planned

    def _part(self, kind: str, k: int, setting: str) -> Part | None:
        """Returns a part, None if it does not apply; equal runs are one part."""
        if kind == "swap" and not self._config.init_donor:
            return None
        if kind == "probe":
            return None if self._config.init == "random" else Part(kind, 0, setting)
        whole = (
            (kind == "keep_last" and k == self._depth)
            or (kind == "freeze" and k == 0)
            or (kind == "swap" and k == self._depth)
        )
        if whole:
            return Part("keep_first", self._depth, setting)
        if kind == "keep_last" and k == 0:
            return Part("keep_first", 0, setting)
        return Part(kind, k, setting)

    def _check(self) -> int:
        """Checks the study; returns the depth of the encoder."""
        study = self._config.study
        for kind in study.kinds:
            choices.check("study.kinds", kind, list(KINDS))
        choices.check("study.metric", study.metric, list(METRICS))
        for name in ("rich", "poor"):
            if not 0 < study[name] <= 1:
                raise ValueError(
                    f"study.{name}={study[name]}; expected a share of the training "
                    "images, above 0 and at most 1"
                )
        probe = resolve.changed(self._config, {})
        images.settle(probe, start.init_checkpoint(probe), None)
        fields = {"data": probe.data, "augment": probe.augment}
        self._config = resolve.changed(self._config, fields)
        block = resolve.without_none(probe.objective.encoder.to_dict())
        depth = block.get("depth") or vit.VARIANTS[block["variant"]]["depth"]
        for k in study.depths:
            if not 0 <= k <= depth:
                raise ValueError(
                    f"study.depths={tuple(study.depths)}: the encoder has {depth} "
                    "blocks; expected numbers from 0 to that"
                )
        return depth

    def _open(self) -> None:
        """Checks one part of each kind, and reserves the workdir."""
        kinds = {(part.kind, part.setting): part for part in self.planned}
        few = [p for (kind, s), p in kinds.items() if s == "rich" or kind == "random"]
        for part in few:  # the others differ from these by k alone
            if part.kind != "probe":
                config, directory = self.config_of(part), self.directory(part)
                job = train.prepare(config, directory, begin=False)
                self._steps = self._steps or job.total_steps  # the first is rich
        for part in [p for p in self.planned if p.kind == "probe"]:
            share = self._config.study[part.setting]
            try:
                config, directory = self.probe_of(part), self.directory(part)
                evaluate.prepare(config, directory, begin=False)
            except ValueError as error:
                raise ValueError(
                    f"part {part.name}, with --config.study.{part.setting}="
                    f"{share:g} of the training images: {error}"
                ) from None
        derived = {"total_steps": self._steps}  # of every part
        plain = workdirs.plain({**self._config.to_dict(), "derived": derived})
        workdirs.open_run(
            self._workdir, plain, free=("study.depths", "study.kinds", "init_donor")
        )
