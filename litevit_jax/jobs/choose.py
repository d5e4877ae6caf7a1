"""The job 'choose': which pre-training suits images of yours, within some minutes.

Parts are ordinary runs: pre-trainings, probes and fine-tunings of small encoders. A
short measurement settles how many updates each has; choose.json keeps that plan and the
finished parts, so that a stopped job goes on.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import paths, terminal
from litevit_jax.evaluators import stored
from litevit_jax.jobs import (
    choose_input,
    choose_plan,
    choose_results,
    choose_runs,
    evaluate,
    ledger,
    summary,
    train,
)
from litevit_jax.jobs.choose_plan import Part, Times
from litevit_jax.jobs.choose_results import Results
from litevit_jax.train import resolve
from litevit_jax.train import workdir as workdirs

_TIMED = 24  # updates of a measurement


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of the job: its text and page, and the signal that stopped it."""

    text: str
    page: pathlib.Path | None = None
    signal: int | None = None


class Choice:
    """The parts of a choice, and their results in `choose.json`.

    Attributes:
      parts: those that are finished.
      counts: share of the labels -> images that it leaves, of shares that are compared.
    """

    def __init__(self, config: dict[str, Any], workdir: pathlib.Path) -> None:
        """Checks the config and the data, and reserves the workdir.

        Raises:
          ValueError, OSError: a mistake in the config or data, or too few minutes.
        """
        self._config, self._workdir = config, workdir
        self._say = terminal.ConsoleLine().say
        self._lineup = choose_input.lineup(
            config["methods"], config["init"], config["teacher"]
        )
        images, held_out = choose_input.images(config["data"])
        self._images, self._held_out = len(images), len(held_out)
        normalize, batch = config["augment"]["normalize"], config["batch_size"]
        self._setting = choose_runs.setting(
            config["data"], normalize, config["encoder"], batch, images
        )
        self.counts = choose_input.counts(config["labels"], images, self._say)
        if not (workdir / "choose.json").exists():
            self._check_minutes()
            self._check_given()
        derived = {"train_fingerprint": images.fingerprint()}
        plain = workdirs.plain({**config, "derived": derived})
        workdirs.open_run(workdir, plain, free=("minutes",))
        self.parts = ledger.Parts(workdir / "choose.json")

    def run(self) -> Outcome:
        """Runs what is not finished, then says what all of it shows.

        Raises:
          ValueError: the minutes do not suffice on this machine.
          Exception: whatever ended a part's run; the job goes on from there.
        """
        signal = self._plan()
        if signal is None:
            self._announce()
            signal = self._finish(self._compared())
        if signal is None:
            signal = self._finish([*self._compared(), *self._further()])
        if signal is not None:
            return Outcome(self.results.text(), signal=signal)
        notes = self.results.notes(self._times(), self._config["seeds"])
        result = {"notes": notes, "scores": self.results.plain()}
        self.parts.close(**self.parts.rest | {"result": result})
        page = None
        if self._config["log"]["report"]:
            page = self.results.draw(notes, self._workdir / "report")
        return Outcome("\n".join([self.results.text(), "", *notes]), page)

    @property
    def results(self) -> Results:
        """The finished parts, and what they are of."""
        about = (self.counts, self._lineup, self._setting)
        return Results(self.parts.rows, *about, self._images, self._held_out)

    def _plan(self) -> int | None:
        """Settles how many updates runs have, unless that was done before."""
        if "plan" in self.parts.rest:
            return None
        signal = self._measure()
        if signal is not None:
            return signal
        times, spent = self._times(), self.parts.rest["measured_s"]
        for _ in range(2):
            planned = choose_plan.updates(
                self._all_parts(),
                times,
                minutes=self._config["minutes"],
                spent_s=spent,
                teacher=self._lineup.own_teacher,
            )
            passes = planned.get("teacher", 0) * self._setting.batch_size / self._images
            if "teacher" not in planned or passes >= choose_plan.LEAST_PASSES:
                break
            self._say(
                f"distill is left out: in its time a teacher would see the images "
                f"{passes:.1f} times, and less than {choose_plan.LEAST_PASSES} make "
                "none; name one with --config.teacher=, or give more minutes"
            )
            self._lineup = self._lineup.without("distill")
        runs_s = choose_plan.seconds(self._all_parts(), times, planned)
        minutes = (spent + runs_s) / 60
        plan = {"updates": planned, "methods": self._lineup.methods, "minutes": minutes}
        plan["for"] = self._config["minutes"]
        self.parts.close(**self.parts.rest, plan=plan)
        return None

    def _announce(self) -> None:
        """Prints the plan."""
        plan, batch = self.parts.rest["plan"], self._setting.batch_size
        for method in set(self._lineup.methods) - set(plan["methods"]):
            self._lineup = self._lineup.without(method)
        if plan["for"] != self._config["minutes"]:
            self._say(f"the plan stays as it was made, for {plan['for']:g} minutes")
        rows = [["run", "updates", "passes over the images", "images/s"]]
        for name, count in plan["updates"].items():
            step_s = self._times()[name].step_s
            passes = f"{count * batch / self._images:.1f}"
            rows.append([name, f"{count:,}", passes, f"{batch / step_s:,.0f}"])
        side = self._setting.data.image_size
        self._say(
            f"{self._images:,} images to learn from, {self._held_out:,} held out, "
            f"{side} pixels in patches of {self._setting.encoder['patch_size']}, "
            f"batches of {batch}\n{summary.columns(rows)}\n{self._number()} runs, "
            f"about {plan['minutes']:.0f} minutes with this measurement"
        )

    def _measure(self) -> int | None:
        """Times each kind of run, but for those that were timed before."""
        for name, command in self._to_time():
            times = self.parts.rest.get("times", {})
            if name in times:
                continue
            self._say(f"timing {name}")
            directory = self._workdir / "measure" / name.replace(" ", "-")
            shutil.rmtree(directory, ignore_errors=True)  # of a killed measurement
            start = time.perf_counter()
            step_s = 0.0
            if command is None:
                evaluate.run(self._probing("random", self.counts, 0), directory)
            else:
                config = self._training(command, Part("", "", 0), _TIMED)
                outcome = train.run(config, directory)
                if outcome.signal is not None:
                    return outcome.signal
                step_s = _step_s(directory)
            wall = time.perf_counter() - start
            each = Times(max(wall - _TIMED * step_s, 0.0), step_s)
            rest = {k: v for k, v in self.parts.rest.items() if k != "times"}
            rest["measured_s"] = rest.get("measured_s", 0.0) + wall
            self.parts.close(**rest, times=times | choose_plan.plain({name: each}))
        return None

    def _to_time(self) -> list[tuple[str, choose_runs.Command | None]]:
        """Lists (program, its command); None is an evaluation."""
        tuning = self._setting.finetuning("random", own=True)
        listed: list[Any] = [("finetune", tuning)]
        # The same program again, to know what a start takes without compiling.
        listed += [("again", tuning), ("evaluate", None)]
        for name, path in self._lineup.given.items():
            given = self._setting.finetuning(path, own=False)
            listed.append((f"finetune {name}", given))
        learned = [m for m in self._lineup.methods if m in choose_runs.RECIPES]
        if self._lineup.own_teacher:
            learned.insert(learned.index("distill"), "teacher")
        for method in learned:
            teacher = None
            if method == "distill":
                own = str(self._workdir / "measure" / "teacher")
                teacher = self._config["teacher"] or own
            listed.append((method, self._setting.pretraining(method, teacher)))
        return listed

    def _times(self) -> dict[str, Times]:
        return {k: Times(**v) for k, v in self.parts.rest["times"].items()}

    def _compared(self) -> list[Part]:
        return choose_plan.compared(
            self._lineup.methods,
            list(self._lineup.given),
            list(self.counts),
            self._seeds(),
            teacher=self._lineup.own_teacher,
        )

    def _all_parts(self) -> list[Part]:
        """Lists all parts, with any method in place of the best one."""
        lineup = self._lineup
        named = next(iter([*lineup.pretrained, *lineup.given]), None)
        method = next(iter(lineup.with_curve), None)
        return [*self._compared(), *self._of(named, method, 4)]

    def _further(self) -> list[Part]:
        """Lists the parts that follow from how the encoders compare."""
        best = self.results.best()
        return self._of(best, self.results.best_method(), self.results.depth(best))

    def _of(self, best: str | None, method: str | None, depth: int) -> list[Part]:
        seeds, most = self._seeds(), max(self.counts)
        blocks = sorted({depth // 2, depth} - {0})
        fractions = self._config["fractions"]
        return [
            *choose_plan.of_best(best, blocks, most, seeds),
            *choose_plan.of_fewer_images(method, fractions, seeds),
        ]

    def _seeds(self) -> range:
        first = self._config["seed"]
        return range(first, first + self._config["seeds"])

    def _number(self) -> int:
        return len(self._all_parts())

    def _finish(self, planned: Sequence[Part]) -> int | None:
        return self.parts.finish(planned, "part", self._run)

    def _run(self, part: Part) -> int | None:
        directory = self._directory(part)
        if part.kind == "evaluate":
            shares = self.counts
            if part.encoder == "supervised":
                shares = {part.labels: self.counts[part.labels]}
            config = self._probing(self._init(part), shares, part.seed)
            with stored.under(self._workdir / "features"):
                result = choose_results.of_probes(evaluate.run(config, directory))
        else:
            updates = self.parts.rest["plan"]["updates"][choose_plan.program(part)]
            config = self._training(self._command(part), part, updates)
            outcome = train.run(config, directory)
            if outcome.signal is not None:
                return outcome.signal
            last = outcome.results.get("test", {}).get("last", {})
            result = {key: last[key] for key in ("top1", "n") if key in last}
        self.parts.add(part.name, **dataclasses.asdict(part), result=result)
        return None

    def _directory(self, part: Part) -> pathlib.Path:
        return self._workdir / "parts" / part.name

    def _init(self, part: Part) -> str:
        """Returns what a part starts from, or evaluates."""
        if part.encoder in self._lineup.given:
            return self._lineup.given[part.encoder]
        if part.encoder == "random":
            return "random"
        labels = part.labels if part.encoder == "supervised" else 1.0
        run = Part("pretrain", part.encoder, part.seed, labels, part.images)
        return str(self._directory(run))

    def _command(self, part: Part) -> choose_runs.Command:
        if part.kind == "finetune":
            own = part.encoder not in self._lineup.given
            init = self._init(part)
            return self._setting.finetuning(init, own=own, kept=part.kept)
        teacher = None
        if part.encoder == "distill":
            own = self._directory(Part("pretrain", "teacher", part.seed))
            teacher = self._config["teacher"] or str(own)
        return self._setting.pretraining(part.encoder, teacher)

    def _training(
        self, command: choose_runs.Command, part: Part, updates: int
    ) -> ConfigDict:
        """Returns the config of a run of so many updates."""
        fields = {"steps": updates, "seed": part.seed, "data__subset_seed": part.seed}
        if part.labels < 1:
            fields |= {"data__fraction": part.labels, "data__fraction_of": "balanced"}
        elif part.images < 1:
            fields |= {"data__fraction": part.images}
        config = command.changed(**fields).config()
        evals = {k: v for k, v in config.evals.to_dict().items() if k == "test"}
        more: dict[str, Any] = {"evals": evals, "log.every_steps": max(updates // 3, 1)}
        more |= {f"evals.{title}.every_steps": 0 for title in evals}
        more |= {"log.health": False, "log.report": False, "log.writers": ("jsonl",)}
        return resolve.changed(config, more | {"checkpoint.every_steps": 500})

    def _probing(self, init: str, shares: Mapping[float, int], seed: int) -> ConfigDict:
        like = str(self._workdir / "measure" / "finetune") if init == "random" else None
        return self._setting.probing(init, shares, seed, like)

    def _check_minutes(self) -> None:
        """Raises ValueError for minutes that no machine could do with."""
        least = choose_plan.least_minutes(self._all_parts())
        minutes = self._config["minutes"]
        if minutes < least:
            raise ValueError(
                f"--config.minutes={minutes:g}: these {self._number()} "
                f"runs take more than {least:g} minutes on any machine. Give more, or "
                "fewer --config.seeds, --config.methods, --config.labels or "
                "--config.fractions"
            )

    def _check_given(self) -> None:
        """Raises ValueError for encoders that do not fit, before any compile."""
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(self._lineup.given.values()):
                command = self._setting.finetuning(path, own=False)
                config = self._training(command, Part("", "", 0), _TIMED)
                where = pathlib.Path(folder) / str(number)
                train.prepare(config, where, begin=False)
            if self._config["teacher"]:
                teacher = self._config["teacher"]
                command = self._setting.pretraining("distill", teacher)
                config = self._training(command, Part("", "", 0), _TIMED)
                train.prepare(config, pathlib.Path(folder) / "teacher", begin=False)


def run(config: dict[str, Any], workdir: str) -> Outcome:
    """Runs the job of a config, as a dict; raises as `Choice`."""
    outcome = Choice(config, paths.path(workdir)).run()
    text = f"{outcome.text}\nall parts: {workdir}/choose.json"
    if outcome.page is not None:
        text += f"\nreport: {outcome.page}"
    return dataclasses.replace(outcome, text=text)


def _step_s(directory: pathlib.Path) -> float:
    """Returns the seconds of an update at the end of a run."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["step_s"] for row in rows if "step_s" in row][-1]
