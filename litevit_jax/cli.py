"""The command line: --config, --workdir, and what to do when ImageNet is missing.

Importing this module loads neither JAX nor TensorFlow, so `--help` is quick.
"""

from __future__ import annotations

import difflib
import errno
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_PREEMPTED = 42  # SIGTERM: saved, start the same command again to go on
EXIT_INTERRUPTED = 130  # Ctrl-C: saved as well

# Variables that a launcher of several hosts sets, and from which count on.
_HOST_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
_HOST_LISTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")

# What a recipe's field `job` may name.
_JOBS = ("convert", "evaluate", "train", "transfer")

# What a disk may answer in the middle of a run, wherever it is written.
_DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS)

_ROOT = pathlib.Path(__file__).parents[1]
_MISSING = "--config is missing, for example --config=configs/mae_tiny.py"


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses `argv` into `values`; a mistake is told in one message, without trace.

    Raises:
      SystemExit: the command line cannot be used.
    """
    try:
        rest = values(argv)
        if values["config"].value is not None:
            values["config"].value.get("name")  # a file that could not be read raises
    except (flags.Error, AttributeError, KeyError, OSError, ValueError, TypeError) as e:
        raise SystemExit(_usage(_explain(e, argv))) from None
    if len(rest) > 1:
        raise SystemExit(_usage(f"unexpected argument {rest[1]!r}"))
    return rest


def _usage(text: str) -> int:
    print(f"error: {text}\n(python main.py --help shows the flags)", file=sys.stderr)
    return EXIT_USAGE


def _explain(error: Exception, argv: list[str]) -> str:
    """What is wrong with the command line, where, and what would be right."""
    if _config_argument(argv) is None and _overrides(argv):
        return _MISSING
    path = _config_path(argv)
    recipe = _recipe(argv)
    if isinstance(recipe, OSError):
        return f"--config={path}: no such config file; {_config_files(path)}"
    if isinstance(recipe, AttributeError):
        return f"--config={path}: has no get_config(arg); {_config_files(path)}"
    if isinstance(recipe, Exception):
        return f"--config={_config_argument(argv)}: {_last_line(recipe)}"
    for name, value in _overrides(argv):
        wrong = _wrong_field(name, recipe)
        if wrong is None and f"--config.{name}={value}: " in str(error):
            wrong = _wrong_value(name, value, recipe)
        if wrong is not None:
            return wrong
    hint = ""
    if isinstance(error, flags.UnrecognizedFlagError):
        hint = "; the flags are --config=, --config.FIELD= and --workdir="
    return _last_line(error) + hint


def _last_line(error: Exception) -> str:
    last = ["", *str(error).strip().splitlines()][-1].strip()
    return last.removeprefix("ValueError: ") or type(error).__name__


def _overrides(argv: list[str]) -> list[tuple[str, str]]:
    """('a.b', 'value') for each --config.a.b=value."""
    given = (a.lstrip("-").partition("=") for a in argv if _is_override(a))
    return [(name.partition("config.")[2], value) for name, _, value in given]


def _is_override(argument: str) -> bool:
    name = argument.lstrip("-").removeprefix("no")
    return argument.startswith("-") and name.startswith("config.")


def _config_argument(argv: list[str]) -> str | None:
    """'FILE:VARIANT' of --config, or None."""
    for place, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else "".join(argv[place + 1 : place + 2])
    return None


def _config_path(argv: list[str]) -> str:
    return (_config_argument(argv) or "").partition(":")[0]


def _config_files(path: str) -> str:
    names = sorted(p.name for p in (_ROOT / "configs").glob("[!_]*.py"))
    known = [f"configs/{name}" for name in names if name != "common.py"]
    near = difflib.get_close_matches(path, known, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}choose from {', '.join(known)}"


def _recipe(argv: list[str]) -> Any:
    """The config that --config names, without overrides, or why there is none."""
    values = _define(argv := ["main.py", f"--config={_config_argument(argv) or ''}"])
    try:
        values(argv)
        config: Any = values["config"].value
        config.get("name")
        return config
    except (flags.Error, AttributeError, OSError, ValueError, TypeError) as error:
        return error


def _define(argv: list[str]) -> flags.FlagValues:
    """The flags of main.py, for `argv`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    return values


def _wrong_field(name: str, block: Any) -> str | None:
    """What is wrong with the field `a.b.c` of --config.a.b.c=, if it does not exist."""
    place = "config"
    for key in name.split("."):
        keys = sorted(block) if hasattr(block, "keys") else []
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            has = f"it has {', '.join(keys)}" if keys else "it is a value"
            return f"--config.{name}: {place} has no field {key!r}; {hint}{has}"
        block, place = block[key], f"{place}.{key}"
    return None


def _wrong_value(name: str, value: str, block: Any) -> str:
    *parents, key = name.split(".")
    for parent in parents:
        block = block[parent]
    old = block[key]
    if hasattr(old, "keys"):
        fields = ", ".join(f"--config.{name}.{field}=" for field in sorted(old))
        return f"--config.{name}={value}: expected one of its fields: {fields}"
    example = "" if old is None else f", as in --config.{name}={old}"
    expected = block.get_type(key).__name__
    return f"--config.{name}={value}: {value!r} is no {expected}{example}"


def run(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the job of the parsed flags; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    workdir = values.workdir
    config = values["config"].value
    if config is None:
        return _usage(_MISSING)
    try:
        job = _job(config)
        if job == "convert":
            return _convert(config, workdir)
        if job == "train" and _imagenet_is_missing(config):
            config, workdir = _quick_start(config, workdir, argv)
        workdir = workdir or os.path.join("runs", config.name)
        jobs = {"evaluate": _evaluate, "train": _train, "transfer": _transfer}
        return jobs[job](config, workdir)
    except SystemExit:
        raise
    except Exception as error:
        return _report(error)


def _job(config: Any) -> str:
    from litevit_jax import registry

    return registry.check("job", config.get("job", "train"), list(_JOBS))


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
        print(progress.results_table(outcome.results))
    print(f"done: step {outcome.step}, everything is in {workdir}")
    return EXIT_OK


def _evaluate(config: Any, workdir: str) -> int:
    from litevit_jax.train import evaluate, progress

    results = evaluate.run(config, workdir)
    print(progress.results_table(results))
    print(f"done: results are in {os.path.join(workdir, 'evals')}")
    return EXIT_OK


def _transfer(config: Any, workdir: str) -> int:
    _prepare_cpu(config)
    from litevit_jax.train import transfer

    if not config.sweep.on:
        return _train(transfer.single(config), workdir)
    outcome = transfer.run(config, workdir)
    print(outcome.table)
    if outcome.signal is not None:
        return _stopped(outcome.signal)
    print(f"done: all points are in {os.path.join(workdir, 'sweep.json')}")
    return EXIT_OK


def _prepare_cpu(config: Any) -> None:
    from litevit_jax import cpu

    if config.batch_size and config.data.image_size:  # else the data decides
        sides = (config.data.image_size, config.data.image_width)
        values = sides[0] * (sides[1] or sides[0]) * config.data.channels
        cpu.prepare(config.batch_size // max(config.accum_steps, 1), values)


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


def _several_hosts() -> bool:
    counts = (os.environ.get(name, "1") for name in _HOST_COUNTS)
    if any(count.isdigit() and int(count) > 1 for count in counts):
        return True
    if any("," in os.environ.get(name, "") for name in _HOST_LISTS):
        return True
    import jax

    return jax.process_count() > 1


def _quick_start(config: Any, workdir: str | None, argv: list[str]) -> tuple[Any, str]:
    """The digits variant of the same recipe, announced; an error on several hosts."""
    name, path = config.data.name, _config_path(argv)
    ways = (
        f"  prepare it:     python -m litevit_jax.data.prepare --name={name} "
        "--data_dir=DIR --manual_dir=TARS\n"
        f"  require it:     --config={path}:{name} or --config.data.dir=DIR\n"
        f"  a folder:       --config={path}:data=folder,path=DIR"
    )
    if _several_hosts():
        raise FileNotFoundError(
            f"{name} was not found in ~/tensorflow_datasets, and the embedded quick "
            f"start is for a single host:\n{ways}"
        )
    argv = _with_variant(argv, "digits")
    parse(argv, values := _define(argv))
    small = values.config
    workdir = f"{workdir or os.path.join('runs', config.name)}-digits"
    print(
        f"{name} was not found in ~/tensorflow_datasets, and no place was named.\n"
        f"Running the embedded quick start instead: digits, small encoder, in {workdir}"
        f"\n{ways}",
        flush=True,
    )
    return small, workdir


def _with_variant(argv: list[str], variant: str) -> list[str]:
    """`argv` with `variant` added to the argument of --config."""
    joined = []
    rest = iter(argv)
    for argument in rest:
        if argument in ("--config", "-config"):
            argument = f"--config={next(rest)}"
        if argument.lstrip("-").startswith("config="):
            argument += ("," if ":" in argument else ":") + variant
        joined.append(argument)
    return joined
