"""What the processes of tests/distributed/runs_test.py do, all of it in one launch.

    python tests/job_program.py PLAN.json --coordinator=... --num_processes=...

The plan lists pieces of work, by the names of the functions below. Without flags it
runs alone. What a process finds goes to `<folder>/<piece>-<process>.json`.
"""

import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
from absl import flags

from litevit_jax import cli, distributed, exits, sharding
from litevit_jax.data import pipeline
from litevit_jax.distributed import start, watchdog
from litevit_jax.jobs import train as train_module
from litevit_jax.train import build, shared_workdir
from tests import jobs

values = flags.FlagValues()


def train(name, workdir, **overrides):
    """A whole run; its losses and results are in `workdir`."""
    outcome = train_module.run(jobs.tiny(name, **overrides), workdir)
    return {"step": outcome.step, "signal": outcome.signal}


def rows(workdir):
    """Which rows of the first two batches this process reads, and where they go."""
    job = train_module.prepare(jobs.tiny(), pathlib.Path(workdir))
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


def stopped(workdir, process, at_step, **overrides):
    """A run that SIGTERM reaches in one process alone."""
    at = distributed.process_index() == process
    with _at_batch(at_step, lambda: os.kill(os.getpid(), signal.SIGTERM), at):
        return train("mae_tiny", workdir, **overrides)


def unshared(folder):
    """A workdir of each process's own: what it says."""
    shared_workdir._PATIENCE_S = 2.0
    try:
        train_module.run(jobs.tiny(), f"{folder}/own-{distributed.process_index()}")
    except ValueError as error:
        return str(error)


def bad_data(workdir, process, at_step, **overrides):
    """One process cannot read its data; ends the job."""

    def fail():
        raise pipeline.BadDataError("7 of 9 examples cannot be read so far")

    with _at_batch(at_step, fail, distributed.process_index() == process):
        return train("mae_tiny", workdir, **overrides)


def stuck(workdir, process, at_step, **overrides):
    """One process waits for data that never come; ends the job."""
    with _at_batch(
        at_step, lambda: time.sleep(7200), distributed.process_index() == process
    ):
        return train("mae_tiny", workdir, **overrides)


class _at_batch:
    """While it lasts, `happens()` before batch number `step` of a run is read."""

    def __init__(self, step, happens, here):
        self.step, self.happens, self.here = step, happens, here

    def __enter__(self):
        self.stream = build._stream

        def stream(*args):
            for number, batch in enumerate(self.stream(*args)):
                if self.here and number == self.step:
                    self.happens()
                yield batch

        build._stream = stream

    def __exit__(self, *_):
        build._stream = self.stream


def main(argv):
    cli.define(values, ["program"])
    values(["program", *argv[2:]])
    flags.FLAGS.mark_as_parsed()
    sharding._MIN_SHARDED_SIZE = 64  # so that fsdp divides even these models
    build.build_step = jobs.sharing_designs()
    plan = json.loads(pathlib.Path(argv[1]).read_text())
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
