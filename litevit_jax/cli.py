"""The command line: --config, --workdir, and what to do when ImageNet is missing.

Importing this module loads neither JAX nor TensorFlow, so `--help` is quick.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import traceback
from typing import Any

from absl import flags, logging

from litevit_jax import exits, preemption
from litevit_jax.commandline import (
    MISSING,
    command,
    config_path,
    flags_for,
    parse,
    usage,
    with_variant,
)
from litevit_jax.commandline import define as define

EXIT_OK, EXIT_FAILED, EXIT_USAGE = exits.OK, exits.FAILED, exits.USAGE
EXIT_PREEMPTED = preemption.PREEMPTED
EXIT_INTERRUPTED = preemption.INTERRUPTED

# What a recipe's field `job` may name.
_ANALYSES = ("advise", "analyse", "layers", "report")
_IDLE = ("advise", "report")  # they compute nothing
_JOBS = (*_ANALYSES, "convert", "evaluate", "train", "transfer")
_LABELLED = ("finetune", "linear_probe")  # recipes that need labels
_CLASSIFIERS = ("probe_grid", "supervised")  # objectives that tell classes apart


def run(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the job of the parsed flags; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    if values["config"].value is None:
        return usage(MISSING)
    from litevit_jax import cpu, distributed, registry, terminal

    why: BaseException | None = None
    before = distributed.heartbeats()
    try:
        config: Any = values["config"].value
        job = _job(config)
        registry.check_fields(config)
        with terminal.alive():
            if values.plan or values.plan_out:
                return _plan(config, job, values.plan, values.plan_out)
            if job not in _IDLE:
                cpu.choose()
            if job in ("evaluate", "train", "transfer"):
                _join(values)
            code = _run_job(job, argv, values)
    except SystemExit:
        raise
    except Exception as error:
        why = error
        distributed.wait_for_verdict(error)
        code = exits.report(error, begun=distributed.heartbeats() > before)
    except KeyboardInterrupt as error:
        preemption.say(f"{error or 'interrupted'}; run the same command to go on")
        code, why = preemption.exit_code(getattr(error, "signal", signal.SIGINT)), error
    return distributed.shutdown(code, why)


def _join(values: flags.FlagValues) -> None:
    """Starts JAX, with the other processes of this job if there are any."""
    from litevit_jax.distributed import start, watchdog

    if not 0 < values.join_timeout_s < math.inf:
        raise ValueError(f"--join_timeout_s={values.join_timeout_s}; expected seconds")
    config: Any = values["config"].value
    limits = watchdog.Limits(**config.watchdog)
    start.join(
        values.coordinator,
        values.num_processes,
        values.process_id,
        join_s=values.join_timeout_s,
        limits=limits,
    )


def _run_job(job: str, argv: list[str], values: flags.FlagValues) -> int:
    config: Any = values["config"].value
    workdir = values.workdir
    if job == "convert":
        return _convert(config, workdir)
    if job in _ANALYSES:
        _begin(job, config, workdir)
        return _analysis(job, config, workdir)
    if job == "train" and _imagenet_is_missing(config):
        config, workdir = _quick_start(config, workdir, argv)
    workdir = workdir or os.path.join("runs", config.name)
    _begin(job, config, workdir)
    jobs = {"evaluate": _evaluate, "train": _train, "transfer": _transfer}
    return jobs[job](config, workdir)


def _begin(job: str, config: Any, workdir: str | None) -> None:
    """Prepares JAX for the job; prints what runs, on which devices, where."""
    from litevit_jax import compilation, cpu, distributed, terminal

    if job in ("layers", "train", "transfer"):
        _prepare_cpu(config)
    devices: Any = []
    note = None
    if job not in _IDLE:
        note = compilation.use(config.compilation_cache)
        devices = cpu.devices()
    where = workdir or os.path.join("runs", config.name)
    _say(terminal.headline(config.name, job, where, devices))
    if note is not None:
        _say(note)
    distributed.heartbeat("starting", grace=True, begun=False)


def _say_next(config: Any, result: str) -> None:
    """Says what can be done next with `result`: the last lines of a job."""
    for purpose, recipe, flag in _next(config, result):
        variant, more = _for_its_images(config, result, recipe)
        flags = [f"--config={recipe}{variant}", f"--config.{flag}", *more]
        flags += _beside(*flags)
        _say(f"next, to {purpose}: {command()} {shlex.join(flags)}")


def _for_its_images(config: Any, result: str, recipe: str) -> tuple[str, list[str]]:
    """Returns the (variant, flags) by which `recipe` uses the images of a new run.
    A probe needs labels, and images to be tested on.
    """
    if config.job != "train" or recipe not in _LABELLED:
        return "", []
    from ml_collections import ConfigDict

    from litevit_jax import paths
    from litevit_jax.data import splits
    from litevit_jax.train import workdir

    saved = workdir.read_config(paths.path(result))
    if saved is None or saved["data"]["source"] in ("digits", "tfds"):
        return "", []
    if saved["derived"]["num_classes"] < 2:
        return ":data=folder,path=LABELLED", []
    try:
        splits.open_splits(ConfigDict(saved["data"]))("eval")
    except (OSError, ValueError):
        return "", ["--config.data.holdout.test=0.1"]
    return "", []


def _beside(recipe: str, flag: str, *_: str) -> list[str]:
    """Returns --workdir for a job that starts from a run or file: beside it."""
    name, encoder = recipe.partition("=")[2], flag.partition("init=")[2]
    if not encoder or encoder == "RUN":
        return []
    run = encoder.rstrip("/").partition("/checkpoints/")[0]
    stem = run.removesuffix(os.path.splitext(run)[1]) or run
    return [f"--workdir={stem}-{name.partition(':')[0]}"]


def _next(config: Any, result: str) -> list[tuple[str, str, str]]:
    """Returns (purpose, recipe, its flag) of each job that can follow.

    Args:
      config: of the job that has ended.
      result: its directory, or the file that it wrote.
    """
    job = config.job
    if job == "train" and config.objective.name not in _CLASSIFIERS:
        probe = ("probe the encoder", "linear_probe", f"init={result}")
        return [probe, ("fine-tune it", "finetune", f"init={result}")]
    if job in ("train", "transfer") and not config.fallback.encoder:  # no probe
        compare = ("compare runs", "analysis:compare", f"models=a={result},b=RUN")
        return [compare, ("evaluate it on other data", "evaluate", f"init={result}")]
    if job == "report":
        return [("look inside", "analysis", f"models={config.models}")]
    if job == "analyse":
        last = config.models.rpartition("=")[2]
        return [("probe its blocks", "layer_probe", f"init={last}")]
    if job == "convert":
        return [("fine-tune it", "finetune:data=folder,path=DIR", f"init={result}")]
    encoder = "RUN"
    if job != "advise":  # a probe, an evaluation, a study of layers
        encoder = config.like or encoder
        encoder = encoder if config.init in (None, "random") else config.init
    return [("fine-tune the encoder", "finetune", f"init={encoder}")]


def _say(text: str) -> None:
    """Prints on the first of several processes."""
    from litevit_jax import terminal

    terminal.ConsoleLine().say(text)


def _job(config: Any) -> str:
    from litevit_jax import choices

    return choices.check("job", config.job, list(_JOBS))


def _plan(config: Any, job: str, target: str | None, path: str | None) -> int:
    """Prints the plan; EXIT_FAILED if the run does not fit."""
    if target is None:
        raise ValueError(f"--plan_out={path} goes with --plan=TOPOLOGY, as v5e-8")
    if job not in ("train", "transfer"):
        raise ValueError(
            f"--plan={target}: a plan is of training, the job of {config.name} is "
            f"{job!r}; leave the flag out"
        )
    from litevit_jax.plan import topology

    topology.prepare(chips := topology.find(target))  # before JAX starts
    _say(f"{config.name}: plan for {target}; nothing is run")
    from litevit_jax.jobs import transfer
    from litevit_jax.plan import job as plans
    from litevit_jax.plan import report

    plans.check_writable(path)
    single = transfer.single(config) if job == "transfer" else config
    planned = plans.run(single, chips)
    _say(report.text(planned))
    plans.write(planned, path)
    return EXIT_OK if planned["memory"]["fits"] else EXIT_FAILED


def _convert(config: Any, workdir: str | None) -> int:
    if workdir:
        raise ValueError(
            f"--workdir={workdir}: a conversion has no run directory, it writes "
            "--config.target alone; leave the flag out"
        )
    _say(f"{config.name}: convert {config.source} to {config.target}")
    from litevit_jax.jobs import convert

    _say(convert.run(config))
    if config.target.endswith(".safetensors"):  # which the other recipes read
        _say_next(config, config.target)
    return EXIT_OK


def _train(config: Any, workdir: str) -> int:
    from litevit_jax.jobs import summary, train

    outcome = train.run(config, workdir)
    if outcome.signal is not None:
        return preemption.exit_code(outcome.signal)
    if outcome.results:
        _say(summary.results_table(outcome.results))
    if config.log.report:
        _report_at_end(config, workdir)
    _say(f"done: step {outcome.step}, everything is in {workdir}")
    _say_next(config, workdir)
    return EXIT_OK


def _report_at_end(config: Any, workdir: str) -> None:
    """Draws the run's report; the run is complete whether that succeeds or not."""
    import jax

    if jax.process_index():
        return
    if jax.process_count() > 1:
        print(
            f"a report is drawn by one process: {command()} --config=analysis:report "
            f"--config.models={workdir}"
        )
        return
    try:
        from litevit_jax.jobs import analyse as job

        _say(f"report: {job.after_training(config, workdir)}")
    except Exception as error:
        print(
            f"the report could not be drawn ({error}); the run is complete. Again: "
            f"{command()} --config=analysis:report --config.models={workdir}",
            file=sys.stderr,
        )
        if "LITEVIT_TRACEBACK" in os.environ:
            traceback.print_exception(error)


def _analysis(name: str, config: Any, workdir: str | None) -> int:
    """The jobs that look into checkpoints and runs."""
    from litevit_jax.jobs import analyse as job

    outcome = job.run(name, config, workdir)
    _say(outcome.text)
    if outcome.signal is not None:
        return preemption.exit_code(outcome.signal)
    _say_next(config, workdir or "")
    return EXIT_OK


def _evaluate(config: Any, workdir: str) -> int:
    from litevit_jax.jobs import evaluate, summary

    results = evaluate.run(config, workdir)
    _say(summary.results_table(results))
    if config.log.report:
        _report_at_end(config, workdir)
    _say(f"done: results are in {os.path.join(workdir, 'evals')}")
    _say_next(config, workdir)
    return EXIT_OK


def _transfer(config: Any, workdir: str) -> int:
    from litevit_jax.jobs import transfer

    if not config.sweep.on:
        return _train(transfer.single(config), workdir)
    outcome = transfer.run(config, workdir)
    _say(outcome.table)
    if outcome.signal is not None:
        return preemption.exit_code(outcome.signal)
    _say(f"done: all points are in {os.path.join(workdir, 'sweep.json')}")
    _say_next(config, str(outcome.final))
    return EXIT_OK


def _prepare_cpu(config: Any) -> None:
    from litevit_jax import cpu, distributed

    images = {**_given(config.fallback), **_given(config.data)}
    known = {"image_size", "channels"} <= images.keys()
    if config.batch_size and known:  # else the data decides
        sides = (images["image_size"], images.get("image_width"))
        values = sides[0] * (sides[1] or sides[0]) * images["channels"]
        cpu.prepare(config.batch_size // distributed.process_count(), values)


def _given(block: Any) -> dict[str, Any]:
    return {name: value for name, value in block.items() if value is not None}


def _imagenet_is_missing(config: Any) -> bool:
    """Whether ImageNet is neither named nor in its default directory."""
    data = config.data
    named = data.dir or data.required or os.environ.get("TFDS_DATA_DIR")
    if data.source != "tfds" or named:
        return False
    from litevit_jax.data.sources import tfds  # slow to import

    return tfds.locate(data.name) is None


def _quick_start(config: Any, workdir: str | None, argv: list[str]) -> tuple[Any, str]:
    """The digits variant of the same recipe, announced; an error on several hosts."""
    name, path = config.data.name, config_path(argv)
    ways = (
        f"  prepare it:     python -m litevit_jax.data.prepare --name={name} "
        "--data_dir=DIR --manual_dir=TARS\n"
        f"  require it:     --config={path}:{name} or --config.data.dir=DIR\n"
        f"  a folder:       --config={path}:data=folder,path=DIR"
    )
    from litevit_jax import distributed

    if distributed.process_count() > 1:
        raise FileNotFoundError(
            f"{name} was not found in ~/tensorflow_datasets, and the embedded quick "
            f"start is for a single host:\n{ways}"
        )
    argv = with_variant(argv, "digits")
    parse(argv, values := flags_for(argv))
    small = values.config
    workdir = f"{workdir or os.path.join('runs', config.name)}-digits"
    print(
        f"{name} was not found in ~/tensorflow_datasets, and no place was named.\n"
        f"Running the embedded quick start instead: digits, small encoder, in {workdir}"
        f"\n{ways}",
        flush=True,
    )
    return small, workdir
