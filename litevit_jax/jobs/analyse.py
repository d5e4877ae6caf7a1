"""The jobs that analyse and compare checkpoints and runs; a run's final report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import recipes, terminal
from litevit_jax.analysis import measure, models
from litevit_jax.jobs import choose, layer_study, summary
from litevit_jax.report import advice, page, run_record
from litevit_jax.train import resolve
from litevit_jax.train import workdir as workdirs


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a job: text for the user, and the signal that stopped it."""

    text: str
    signal: int | None = None


def run(name: str, config: ConfigDict, workdir: str | None) -> Outcome:
    """Runs job 'advise', 'analyse', 'choose', 'layers' or 'report'.

    Args:
      name: of the job.
      config: of it.
      workdir: None: runs/<name of the config>, or a single run's own for its report.

    Raises:
      ValueError, OSError: a mistake of the user's, before any compile.
    """
    if name == "report":
        page = draw(config.models, workdir, recipe=config.name)
        return Outcome(f"report: {page}")
    directory = workdir or f"runs/{config.name}"
    if name == "advise":
        return Outcome(advise(config.models, config.probe, directory))
    if name == "analyse":
        job = measure.prepare(config, pathlib.Path(directory))
        page = analyse(job)
        return Outcome(f"report: {page}\nall numbers: {directory}/analysis.json")
    if name == "choose":
        chosen = choose.run(config.to_dict(), directory)
        return Outcome(chosen.text, chosen.signal)
    outcome = layer_study.Study(config, pathlib.Path(directory)).run()
    text = (
        f"{outcome.table}\nreport: {outcome.page}\nall parts: {directory}/layers.json"
    )
    return Outcome(text, outcome.signal)


def main(config: ConfigDict, workdir: str | None, command: str) -> summary.Ending:
    """Runs the job that `config.job` names and prints its result; raises as `run`."""
    del command
    outcome = run(config.job, config, workdir)
    terminal.ConsoleLine().say(outcome.text)
    if outcome.signal is not None:
        return summary.Ending(config, signal=outcome.signal)
    return summary.Ending(config, workdir or "")


def analyse(job: measure.Job) -> pathlib.Path:
    """Runs an analysis and writes a page of it, which is returned."""
    directory, analysis = job.workdir, measure.run(job)
    runs = []
    for name, about in analysis["models"].items():
        if about["run"] is not None:
            runs.append(run_record.read(name, pathlib.Path(about["run"])))
    names = ", ".join(analysis["models"])
    title = f"Analysis of {names}"
    from litevit_jax.report import build  # late: it plots

    return build.run_report(
        runs,
        directory / "report",
        title=title,
        analysis=analysis,
        analysis_directory=directory,
    )


def draw(named: str, workdir: str | None, *, recipe: str) -> pathlib.Path:
    """Draws the report of the runs that `named` lists; returns the page.

    The report of a single run goes into its own directory unless `workdir` is given.
    `named` is `config.models`, and `recipe` the name of the config.

    Raises:
      ValueError, FileNotFoundError: they are no runs.
    """
    runs = [
        run_record.read(name, _run(name, path))
        for name, path in models.named(named).items()
    ]
    if len(runs) == 1 and recipe == "compare":
        raise ValueError(
            f"--config.models={named}: one run has nothing to be compared "
            "with; give two or more, NAME=RUN,NAME=RUN, or draw its report with "
            "configs/analysis.py:report"
        )
    if len(runs) == 1:
        directory = pathlib.Path(workdir) if workdir else runs[0].directory
        title = f"{runs[0].config.get('name', 'run')}: {runs[0].directory.name}"
    else:
        directory = pathlib.Path(workdir or f"runs/{recipe}")
        title = f"{', '.join(run.name for run in runs)} side by side"
    from litevit_jax.report import build  # late: it plots

    return build.run_report(runs, directory / "report", title=title)


def advise(named: str, probe: str | None, workdir: str) -> str:
    """Recommends an encoder and how many layers to tune, by results of layer probes.

    `named` lists directories of configs/layer_probe.py; `probe` is the evaluation in
    them, or None to choose it by held-out images. Writes advice.json and a page into
    `workdir`.

    Raises:
      ValueError, FileNotFoundError: a directory has no such result, or they are of
        different images.
    """
    probes, prints, random = {}, {}, {}
    for name, path in models.named(named).items():
        run = run_record.read(name, _run(name, path))
        lasts = _probes(run, probe, f"--config.models={name}={path}")
        prints[name] = _data(run.config)
        if run.config.get("job") == "evaluate" and run.config["init"] == "random":
            random[name] = lasts
        else:
            probes[name] = max(lasts, key=lambda last: last["select_top1"])
    if len(set(prints.values())) > 1:
        listed = "; ".join(f"{name}: {data}" for name, data in prints.items())
        raise ValueError(
            f"--config.models: probes of different data cannot be compared ({listed})"
        )
    text, rows = advice.of_probes(probes, random)
    directory = pathlib.Path(workdir)
    workdirs.write_json(directory / "advice.json", {"advice": text, "encoders": rows})
    head = list(rows[0])
    cells = [
        [
            row[k]
            if isinstance(row[k], str | bool)
            else page.Number(row[k], f"advice.json {row['name']} {k}")
            for k in head
        ]
        for row in rows
    ]
    from litevit_jax.report import build  # late: it plots

    build.figure_report(
        [],
        directory / "report",
        title="Which encoder, how many layers",
        summary=[page.Note(text), page.Table(head, cells)],
    )
    shown = [
        [str(x) if isinstance(x, str | bool) else page.rounded(x) for x in row.values()]
        for row in rows
    ]
    return f"{text}\n{summary.columns([head, *shown])}"


def _probes(run: run_record.Run, title: str | None, where: str) -> list[dict[str, Any]]:
    """Returns the last results of a run's layer probes, or of `title` alone."""
    titles = (title,) if title else ("layers", "layers_avg")
    lasts = [run.results[t]["last"] for t in titles if t in run.results]
    if not lasts:
        raise ValueError(
            f"{where}: no evals/{titles[0]}/result.json there; make one with "
            "configs/layer_probe.py"
        )
    if any("pool" not in last for last in lasts):
        raise ValueError(
            f"{where}: an older version wrote evals/{titles[0]}/result.json, without "
            "what held-out images chose; make it anew with configs/layer_probe.py and "
            "another --workdir"
        )
    return lasts


def _data(config: dict[str, Any]) -> str:
    """Describes the images that a probe learned from and was evaluated on."""
    fields = ("source", "name", "dir", "train_split", "eval_split", "shots", "fraction")
    return ", ".join(f"{k} {config['data'].get(k)}" for k in fields)


def _run(name: str, path: str) -> pathlib.Path:
    directory = pathlib.Path(path)
    if directory.is_file() or path.startswith("random:"):
        raise ValueError(
            f"--config.models={name}={path}: a report is of runs; to look into a file "
            "of weights or a model at random use configs/analysis.py without :report"
        )
    if directory.name.isdigit() and directory.parent.name == "checkpoints":
        return directory.parent.parent
    return directory


def after_training(workdir: str) -> pathlib.Path:
    """Writes the report of a complete run, with an analysis of its encoder.

    The analysis looks at `log.report_images` images (0: none) and is kept in the run's
    directory `analysis`. An evaluation trained nothing, and has none.
    """
    directory = pathlib.Path(workdir)
    run = run_record.read(directory.name, directory)
    if run.config["job"] != "evaluate" and run.config["log"]["report_images"]:
        measure.run(measure.prepare(_small(run), directory / "analysis"))
        run = run_record.read(directory.name, directory)
    title = f"{run.config['name']}: {directory.name}"
    from litevit_jax.report import build  # late: it plots

    return build.run_report([run], directory / "report", title=title)


def _small(run: run_record.Run) -> ConfigDict:
    """Returns the config of a small analysis of the run's own images."""
    config = run.config
    own = [block for block in config["evals"].values() if "data" not in block]
    splits = [block.get("split", "eval") for block in own]
    fields = {
        "models": f"{models.plain(run.name)}={run.directory}",
        "images": config["log"]["report_images"],
        "split": splits[0] if splits else "train",  # which every run has
        "mesh": config["mesh"],
        "seed": config["seed"],
        "data.workers": config["data"]["workers"],
        "data.threads": config["data"]["threads"],
    }
    return resolve.changed(recipes.get("analysis"), fields)
