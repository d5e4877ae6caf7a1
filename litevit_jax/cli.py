"""The command line: --config, --workdir, and what to do when ImageNet is missing.

Importing this module loads neither JAX nor TensorFlow, so `--help` is quick.
"""

from __future__ import annotations

import errno
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import flags, logging

from litevit_jax.commandline import (
    EXIT_USAGE,
    MISSING,
    config_path,
    flags_for,
    parse,
    usage,
    with_variant,
)
from litevit_jax.commandline import define as define

EXIT_OK, EXIT_FAILED = 0, 1
EXIT_PREEMPTED = 42  # SIGTERM: saved, start the same command again to go on
EXIT_INTERRUPTED = 130  # Ctrl-C: saved as well
# Of several hosts one is gone or stuck (43): start the same command again, on all.

# What a recipe's field `job` may name.
_ANALYSES = ("advise", "analyse", "layers", "report")
_JOBS = (*_ANALYSES, "convert", "evaluate", "train", "transfer")

# What a disk may answer in the middle of a run, wherever it is written.
_DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS)

_ROOT = pathlib.Path(__file__).parents[1]


def run(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the job of the parsed flags; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    if values["config"].value is None:
        return usage(MISSING)
    from litevit_jax import distributed, registry

    why = None
    try:
        config: Any = values["config"].value
        job = _job(config)
        registry.check_fields(config)
        if values.plan or values.plan_out:
            return _plan(config, job, values.plan, values.plan_out)
        if job in ("evaluate", "train", "transfer"):
            _join(values)
        code = _run_job(job, argv, values)
    except SystemExit:
        raise
    except Exception as error:
        code, why = _report(error), error
    except KeyboardInterrupt as error:
        distributed.leave(EXIT_INTERRUPTED, error)
        raise
    return distributed.leave(code, why)


def _join(values: flags.FlagValues) -> None:
    """Starts JAX, with the other processes of this job if there are any."""
    from litevit_jax import cpu, distributed

    cpu.choose()
    config: Any = values["config"].value
    limits = distributed.Limits(**config.get("watchdog", {}))
    distributed.start(
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
        return _analysis(job, config, workdir)
    if job == "train" and _imagenet_is_missing(config):
        config, workdir = _quick_start(config, workdir, argv)
    workdir = workdir or os.path.join("runs", config.name)
    jobs = {"evaluate": _evaluate, "train": _train, "transfer": _transfer}
    return jobs[job](config, workdir)


def _say(text: str) -> None:
    """Prints on the first of several processes."""
    from litevit_jax import distributed

    if distributed.primary():
        print(text, flush=True)


def _job(config: Any) -> str:
    from litevit_jax import registry

    return registry.check("job", config.get("job", "train"), list(_JOBS))


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

    topology.prepare(found := topology.find(target))  # before JAX starts
    from litevit_jax.plan import job as plans
    from litevit_jax.plan import report
    from litevit_jax.train import transfer

    plans.check_writable(path)
    single = transfer.single(config) if job == "transfer" else config
    planned = plans.run(single, found)
    print(report.text(planned))
    plans.write(planned, path)
    return EXIT_OK if planned["memory"]["fits"] else EXIT_FAILED


def _convert(config: Any, workdir: str | None) -> int:
    if workdir:
        raise ValueError(
            f"--workdir={workdir}: a conversion has no run directory, it writes "
            "--config.target alone; leave the flag out"
        )
    from litevit_jax.train import convert

    print(convert.run(config))
    return EXIT_OK


def _train(config: Any, workdir: str) -> int:
    _prepare_cpu(config)
    from litevit_jax.train import loop, progress

    outcome = loop.run(config, workdir)
    if outcome.signal is not None:
        return _stopped(outcome.signal)
    if outcome.results:
        _say(progress.results_table(outcome.results))
    if config.log.report:
        _report_at_end(config, workdir)
    _say(f"done: step {outcome.step}, everything is in {workdir}")
    return EXIT_OK


def _report_at_end(config: Any, workdir: str) -> None:
    """Draws the run's report; the run is complete whether that succeeds or not."""
    import jax

    if jax.process_index():
        return
    if jax.process_count() > 1:
        print(
            "a report is drawn by one process: python main.py "
            f"--config=configs/analysis.py:report --config.models={workdir}"
        )
        return
    try:
        from litevit_jax.analysis import job

        print(f"report: {job.after_training(config, workdir)}")
    except Exception as error:
        print(
            f"the report could not be drawn ({error}); the run is complete. Again: "
            "python main.py --config=configs/analysis.py:report --config.models="
            f"{workdir}",
            file=sys.stderr,
        )
        if "LITEVIT_TRACEBACK" in os.environ:
            traceback.print_exception(error)


def _analysis(name: str, config: Any, workdir: str | None) -> int:
    """The jobs that look into checkpoints and runs."""
    if name == "layers":
        _prepare_cpu(config)
    from litevit_jax.analysis import job

    outcome = job.run(name, config, workdir)
    print(outcome.text)
    return EXIT_OK if outcome.signal is None else _stopped(outcome.signal)


def _evaluate(config: Any, workdir: str) -> int:
    from litevit_jax.train import evaluate, progress

    results = evaluate.run(config, workdir)
    _say(progress.results_table(results))
    if config.log.report:
        _report_at_end(config, workdir)
    _say(f"done: results are in {os.path.join(workdir, 'evals')}")
    return EXIT_OK


def _transfer(config: Any, workdir: str) -> int:
    _prepare_cpu(config)
    from litevit_jax.train import transfer

    if not config.sweep.on:
        return _train(transfer.single(config), workdir)
    outcome = transfer.run(config, workdir)
    _say(outcome.table)
    if outcome.signal is not None:
        return _stopped(outcome.signal)
    _say(f"done: all points are in {os.path.join(workdir, 'sweep.json')}")
    return EXIT_OK


def _prepare_cpu(config: Any) -> None:
    from litevit_jax import cpu, distributed

    if config.batch_size and config.data.image_size:  # else the data decides
        sides = (config.data.image_size, config.data.image_width)
        values = sides[0] * (sides[1] or sides[0]) * config.data.channels
        slices = max(config.accum_steps, 1) * distributed.count()
        cpu.prepare(config.batch_size // slices, values)


def _stopped(number: int) -> int:
    import signal

    return EXIT_PREEMPTED if number == signal.SIGTERM else EXIT_INTERRUPTED


def _report(error: Exception) -> int:
    """Says what went wrong: our own errors as a message, others with their trace."""
    frames = traceback.extract_tb(error.__traceback__)
    full = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    deliberate = isinstance(
        error, ValueError | KeyError | OSError | RuntimeError | FloatingPointError
    )
    ours = frames and pathlib.Path(frames[-1].filename).is_relative_to(_ROOT)
    inside = "site-packages" in frames[-1].filename if frames else False
    deliberate = full or (deliberate and ours and not inside)
    if deliberate and "LITEVIT_TRACEBACK" not in os.environ:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {text}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError | KeyError) else EXIT_FAILED
    traceback.print_exception(error)
    return EXIT_FAILED


def _imagenet_is_missing(config: Any) -> bool:
    """Whether nobody said where ImageNet is and it is not at the default place."""
    from litevit_jax.data.sources import tfds

    data = config.data
    named = data.dir or data.required or os.environ.get("TFDS_DATA_DIR")
    return data.source == "tfds" and not named and tfds.locate(data.name) is None


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

    if distributed.count() > 1:
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
