"""The command line: --config, --workdir, and what to do when ImageNet is missing.

Importing this module loads neither JAX nor TensorFlow, so `--help` is quick.
"""

from __future__ import annotations

import importlib
import logging as std_logging
import math
import os
import signal
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from litevit_jax import commandline, exits, preemption, subcommands
from litevit_jax.arguments import config_path, with_variant
from litevit_jax.commandline import MISSING, command, flags_for, usage
from litevit_jax.commandline import define as define

EXIT_OK, EXIT_FAILED, EXIT_USAGE = exits.OK, exits.FAILED, exits.USAGE
EXIT_PREEMPTED = preemption.PREEMPTED
EXIT_INTERRUPTED = preemption.INTERRUPTED

# What a recipe's field `job` may name.
_ANALYSES = ("advise", "analyse", "choose", "layers", "report")
_IDLE = ("advise", "report")  # they compute nothing
_SHARED = ("evaluate", "sweep", "train", "transfer")  # several processes share them
_JOBS = (*_ANALYSES, "convert", *_SHARED)


class _Warnings(std_logging.Formatter):
    """Prints 'warning: text', without absl's time and line of source."""

    def format(self, record: std_logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Runs the subcommand that `argv` names, or parses its flags into `values`.

    Raises:
      SystemExit: a subcommand ran, or see `commandline.parse`.
    """
    logging.get_absl_handler().setFormatter(_Warnings())
    subcommands.run(argv)
    return commandline.parse(argv, values)


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
        planned = values.plan or values.plan_out
        if job not in _IDLE and not planned:
            cpu.choose()  # before there are threads, which get heaps of their own
        with terminal.alive():
            if planned:
                return _plan(config, job, values.plan, values.plan_out)
            if job in _SHARED:
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
    if job == "train" and _imagenet_is_missing(config):
        config, workdir = _quick_start(config, workdir, argv)
    if job in _SHARED:
        workdir = workdir or os.path.join("runs", config.name)
    if job != "convert":
        _begin(job, config, workdir)
    module = "analyse" if job in _ANALYSES else job
    main = importlib.import_module(f"litevit_jax.jobs.{module}").main
    ending = main(config, workdir, command())
    if ending.signal is not None:
        return preemption.exit_code(ending.signal)
    if ending.result is not None:
        from litevit_jax.jobs import next_steps

        for line in next_steps.lines(ending.config, ending.result, command()):
            _say(line)
    return EXIT_OK


def _begin(job: str, config: Any, workdir: str | None) -> None:
    """Prepares JAX for the job; prints what runs, on which devices, where."""
    from litevit_jax import compilation, cpu, distributed

    if job == "sweep":
        from litevit_jax.jobs import sweep

        points = sweep.points(config.recipe, config.grid, config.shard)
        prepare_cpu(points[0].config)
    if job in ("layers", "train", "transfer"):
        prepare_cpu(config)
    devices: Any = []
    note = None
    if job not in _IDLE:
        note = compilation.use(config.compilation_cache)
        devices = cpu.devices()
    where = workdir or os.path.join("runs", config.name)
    _say(headline(config.name, job, where, devices))
    if note is not None:
        _say(note)
    distributed.heartbeat("starting", grace=True, begun=False)


def headline(name: str, job: str, where: str | None, devices: Sequence[Any]) -> str:
    """Returns the first line of every job: its name, kind, devices and directory."""
    from litevit_jax import distributed
    from litevit_jax.terminal import counted

    text = f"{name}: {job}"
    if devices:
        platform = devices[0].platform
        text += f" on {counted(len(devices), f'{platform.upper()} device')}"
        kinds = sorted({d.device_kind for d in devices} - {platform})
        text += f" ({', '.join(kinds)})" if kinds else ""
    if distributed.process_count() > 1:
        text += f" of {distributed.process_count()} processes"
    return f"{text}, in {where}" if where else text


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


def prepare_cpu(config: Any) -> None:
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
