"""Killed while training or saving, or asked to stop: a run ends with the same bits."""

import json
import signal
import time

import jax
import numpy as np

from litevit_jax import checkpoint, plugins
from litevit_jax.train import state as states
from litevit_jax.warm_start import read
from tests import checkpoint_test, processes

STEPS = 20  # of the recipe
COMMAND = ["main.py", "--config=tests/smallest/recipe.py"]
BEST, ENDS = 8, 16  # the best step, and that which patience leads to
CHOICE = [
    *("--config.evals.peak.name=peak", "--config.evals.peak.every_steps=2"),
    *("--config.data.holdout.eval=0.1", "--config.checkpoint.keep_best=peak.height"),
    *("--config.checkpoint.keep=1", "--config.stop.patience=4"),
]
PLUGINS = str(processes.ROOT / "tests" / "smallest")


class Process:
    """A program in its own process; what it says goes to `log`."""

    def __init__(self, command, log):
        self.log = log
        environment = {"JAX_NUM_CPU_DEVICES": "2", plugins.VARIABLE: PLUGINS}
        self._process = processes.Fork(command, log, **environment)

    def until(self, happened):
        """Waits for `happened()`; what it returned."""
        deadline = time.monotonic() + processes.PATIENCE_S
        while not (found := happened()):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)
        return found

    def end(self, number=None):
        """Sends a signal, if any; the exit code."""
        if number is not None:
            self._process.send_signal(number)
        return self._process.wait(timeout=processes.PATIENCE_S)


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def saving(workdir):
    """The directory that a checkpoint is being written to, if any."""
    return list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))


def test_a_run_that_is_killed_and_stopped_ends_with_the_same_bits(tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    command = [*COMMAND, *CHOICE]
    uninterrupted = Process([*command, f"--workdir={whole}"], tmp_path / "whole.txt")
    assert uninterrupted.end() == 0, uninterrupted.log.read_text()

    def start(number):
        return Process([*command, f"--workdir={workdir}"], tmp_path / f"{number}.txt")

    run = start(1)  # killed in the middle of training
    run.until(lambda: (workdir / "checkpoints/2").exists() and len(rows(workdir)) > 2)
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    left = {path.name for path in saving(workdir)}

    run = start(2)  # killed in the middle of saving
    run.until(lambda: {path.name for path in saving(workdir)} - left)
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    assert "resuming at step " in run.log.read_text()

    before = len(rows(workdir))
    run = start(3)  # asked to stop
    run.until(lambda: len(rows(workdir)) > before + 1)
    assert run.end(signal.SIGTERM) == 42
    said = run.log.read_text()
    assert "stopped by SIGTERM; saved step" in said and "Traceback" not in said
    stopped = int(said.rpartition("saved step ")[2])
    assert 0 < stopped < ENDS
    assert read.read_params(str(workdir)).step == stopped

    run = start(4)
    assert run.end() == 0, run.log.read_text()
    assert f"resuming at step {stopped} of {STEPS}" in run.log.read_text()
    assert not saving(workdir)
    got, want = (read.read_params(str(path)) for path in (workdir, whole))
    assert got.step == want.step == ENDS
    assert got.params.keys() == want.params.keys()
    for name, value in want.params.items():
        np.testing.assert_array_equal(got.params[name], value, err_msg=name)
    losses = (
        {r["step"]: r["loss"] for r in rows(p) if "loss" in r} for p in (workdir, whole)
    )
    assert next(losses) == next(losses)
    kept = [
        sorted(p.name for p in (x / "checkpoints").iterdir()) for x in (workdir, whole)
    ]
    assert kept[0] == kept[1] == sorted(map(str, (BEST, ENDS)))
    results = (x / "evals/peak/result.json" for x in (workdir, whole))
    one, other = (json.loads(path.read_text())["keep_best"] for path in results)
    assert one == other and (one["step"], one["waited"]) == (BEST, 4)
    last = run.log.read_text()
    assert f"stopped early at step {ENDS}" in last and f"done: step {ENDS}" in last
    assert f"best by peak.height: 0 at step {BEST}, chosen on validation im" in last


def state(step):
    """2 MB in a few arrays, all of them different at every step."""
    base = np.arange(2**17, dtype=np.float32)
    return states.TrainState(
        step=np.int32(step),
        params={name: base + 1000 * step + place for place, name in enumerate("abcd")},
        model_state={},
        teacher={},
        opt_state=(),
    )


SAVE_FOREVER = """
import itertools, sys
import jax
from litevit_jax import checkpoint, plugins
from tests import kill_test

checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=2)
for step in itertools.count(int(sys.argv[2])):
    checkpoints.save(jax.device_put(kill_test.state(step)), config={})
"""


def test_a_kill_while_saving_leaves_the_newest_complete_step_intact(tmp_path):
    like, first = jax.device_put(state(0)), 1
    program = tmp_path / "save_forever.py"
    program.write_text(SAVE_FOREVER)
    for delay in (0.0, 0.02, 0.08):
        command = [program, tmp_path, first]
        process = Process(command, tmp_path / "log.txt")
        process.until((tmp_path / "checkpoints" / str(first + 2)).exists)
        process.until(lambda: saving(tmp_path))
        time.sleep(delay)
        process.end(signal.SIGKILL)
        names = (path.name for path in (tmp_path / "checkpoints").iterdir())
        newest = max(int(name) for name in names if name.isdigit())
        checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
        restored, _ = checkpoints.restore(checkpoint_test.abstract_of(like))
        checkpoints.close()
        assert int(restored.step) == newest >= first + 2
        for name, value in state(newest).params.items():
            np.testing.assert_array_equal(restored.params[name], value)
        first = newest + 1
    assert not (tmp_path / "corrupt").exists()
