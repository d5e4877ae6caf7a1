"""What the processes of tests/distributed/runs_test.py do, all of it in one launch.

    python tests/job_program.py PLAN.json --coordinator=... --num_processes=...

The plan lists pieces of work, by the names of the functions below; what a process finds
goes to `<folder>/<piece>-<process>.json`. Or it has the arguments of a `command`, which
is run as main.py does, and what `happens` in a process before it reads a batch.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from absl import flags
from jax._src import cache_key

from litevit_jax import __main__ as program
from litevit_jax import cli, distributed, exits, sharding
from litevit_jax.data import pipeline
from litevit_jax.distributed import start, watchdog
from litevit_jax.jobs import train as train_module
from litevit_jax.train import build, shared_workdir
from tests import jobs, processes

SMALLEST = "tests.smallest.recipe"

values = flags.FlagValues()


def config(name, **overrides):
    """The tiny form of a recipe, or the recipe of tests/smallest as it is."""
    make = jobs.config if name == SMALLEST else jobs.tiny
    return make(name, **overrides)


def train(name, workdir, **overrides):
    """A whole run; its losses and results are in `workdir`."""
    outcome = train_module.run(config(name, **overrides), workdir)
    return {"step": outcome.step, "signal": outcome.signal}


def rows(workdir):
    """Which rows of the first two batches this process reads, and where they go."""
    job = train_module.prepare(config(SMALLEST), pathlib.Path(workdir))
    stream, read, placed = job.stream(0), [], []
    for _ in range(2):
        batch = next(stream)
        read.append(batch["index"].tolist())
        array = sharding.global_batch(batch, job.mesh)["index"]
        placed.append(
            {int(s.index[0].start or 0): np.asarray(s.data).tolist()
             for s in array.addressable_shards}
        )  # fmt: skip
    stream.close()
    return {"read": read, "placed": placed}


def stopped(name, workdir, process, at_batch, **overrides):
    """A run that SIGTERM reaches in one process alone."""
    with _at_batch(at_batch, process, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        return train(name, workdir, **overrides)


def early(name, workdir, **overrides):
    """A run that patience ends; each process finds another step to be the best."""
    made = config(name, data__holdout__eval=0.1, stop__patience=2, **overrides)
    with made.unlocked():
        made.checkpoint.update(keep=1, keep_best="peak.height")
        at = 4 + 2 * distributed.process_index()
        made.evals = {"peak": {"name": "peak", "every_steps": 2, "at": at}}
    outcome = train_module.run(made, workdir)
    result = outcome.results["peak"]["keep_best"]
    return {"step": outcome.step, "best": result["step"]}


def unshared(folder):
    """A workdir of each process's own: what it says."""
    shared_workdir._PATIENCE_S = 2.0
    try:
        train_module.run(
            config(SMALLEST), f"{folder}/own-{distributed.process_index()}"
        )
    except ValueError as error:
        return str(error)


def bad_data(name, workdir, process, at_batch, **overrides):
    """One process cannot read its data; ends the job."""

    def fail():
        raise pipeline.BadDataError("7 of 9 examples cannot be read so far")

    with _at_batch(at_batch, process, fail):
        return train(name, workdir, **overrides)


class _at_batch:
    """While it lasts, `happens()` in a process before it reads batch number `batch`."""

    def __init__(self, batch, process, happens):
        self.batch, self.process, self.happens = batch, process, happens

    def __enter__(self):
        self.stream = build._stream

        def stream(*args):
            here = distributed.process_index() == self.process
            for number, batch in enumerate(self.stream(*args)):
                if here and number == self.batch:
                    self.happens()
                yield batch

        build._stream = stream

    def __exit__(self, *_):
        build._stream = self.stream


def command(arguments, happens):
    """Runs main.py; one process gets a signal, or waits for data that never come."""
    batch, process, number = happens

    def happen():
        if number is None:
            time.sleep(7200)
        os.kill(os.getpid(), number)

    sys.argv = ["main.py", *arguments]
    with _at_batch(batch, process, happen):
        program.main()


def share_programs():
    """The first process compiles, and the others load what it has compiled.

    A JAX of CPUs gives each process keys of its own, though the programs are the same.
    """
    jax.config.update("jax_share_binary_between_hosts", True)
    patience_ms = 1000 * processes.PATIENCE_S
    jax.config.update("jax_share_binary_between_hosts_timeout_ms", patience_ms)
    cache_key._hash_accelerator_config = cache_key._hash_devices


def main(argv):
    share_programs()
    plan = json.loads(pathlib.Path(argv[1]).read_text())
    sharding._MIN_SHARDED_SIZE = 64  # so that fsdp divides even these models
    if "command" in plan:
        command([*plan["command"], *argv[2:]], plan["happens"])
    cli.define(values, ["program"])
    values(["program", *argv[2:]])
    flags.FLAGS.mark_as_parsed()
    build.build_step = jobs.sharing_designs()
    if values.process_id == plan.get("late_clock"):
        now = time.time
        time.time = lambda: now() - 3600
    why, code = None, 0
    try:
        start.join(
            values.coordinator,
            values.num_processes,
            values.process_id,
            limits=watchdog.Limits(**plan["limits"]),
        )
        folder = pathlib.Path(plan["folder"])
        for piece, (name, kwargs) in plan["pieces"].items():
            found = globals()[name](**kwargs)
            path = folder / f"{piece}-{distributed.process_index()}.json"
            path.write_text(json.dumps(found))
    except Exception as error:
        distributed.wait_for_verdict(error)
        code, why = exits.report(error, begun=distributed.heartbeats() > 0), error
    sys.exit(distributed.shutdown(code, why))


if __name__ == "__main__":
    main(sys.argv)
