"""Programs in processes of their own, and several local processes of one job."""

import atexit
import contextlib
import ctypes
import functools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]

# Seconds after which a process hangs: none takes as long, on however busy a machine.
PATIENCE_S = 3600


@contextlib.contextmanager
def working_in(directory):
    """Another process that is at work in `directory` until the event is set."""
    directory.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    begun, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(directory, begun, end))
    other.start()
    try:
        assert begun.wait(PATIENCE_S)
        yield end
    finally:
        end.set()
        other.join()


def _hold(directory, begun, end):
    from litevit_jax.train import lock

    lock.take(directory)
    begun.set()
    end.wait()


def free_port():
    """A port that nobody listens on."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def until_sigterm_is_handled(process):
    """Waits until a process that was just started has a handler of SIGTERM."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    handled = r"SigCgt:\s*([0-9a-f]+)"
    while not int(re.search(handled, status.read_text())[1], 16) & 1 << 14:
        assert process.poll() is None


def flags_of(index, count, port):
    """What tells a process who it is, on the command line."""
    place = f"--coordinator=127.0.0.1:{port}"
    return [place, f"--num_processes={count}", f"--process_id={index}"]


class Fork:
    """`python PROGRAM ...` in a process of its own; what it says goes to `log`.

    On Linux it is a fork of a process that has imported the package
    (tests/fork_server.py), which saves seconds of CPU time. Elsewhere it is a new one.
    """

    def __init__(self, arguments, log, *, directory=ROOT, **environment):
        environment = {**os.environ, **environment}
        arguments = list(map(str, arguments))
        if not os.path.exists(log):  # it may be a pipe
            pathlib.Path(log).touch()
        self.returncode, self._process = None, None
        if sys.platform == "linux":
            request = {"arguments": arguments, "log": str(log)}
            request |= {"environment": environment, "directory": str(directory)}
            self.pid = _fork(request)
            return
        with open(log, "a") as out:
            command = [sys.executable, *arguments]
            self._process = subprocess.Popen(
                command, cwd=directory, env=environment, stdout=out, stderr=out
            )
            self.pid = self._process.pid

    def poll(self):
        """The exit code, negative after a signal; None while it runs."""
        if self._process is not None:
            self.returncode = self._process.poll()
        elif self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=PATIENCE_S):
        """The exit code; raises if it runs longer."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


def start(command, env=None, **_):
    """As subprocess.Popen of `python PROGRAM ...` whose output and errors are `stdout`;
    a `Fork` on Linux."""
    if sys.platform == "linux":
        return _Piped(command[1:], env or {})
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **output)


class _Piped(Fork):
    """A fork whose output can be read."""

    def __init__(self, arguments, environment):
        with tempfile.TemporaryDirectory() as folder:
            os.mkfifo(pipe := pathlib.Path(folder, "pipe"))
            super().__init__(arguments, pipe, **environment)
            # This waits until the fork has opened it.
            self.stdout = os.fdopen(os.open(pipe, os.O_RDONLY))

    def communicate(self, timeout=PATIENCE_S):
        """What it prints until it ends, and nothing of errors."""
        output = self.stdout.read()
        self.wait(timeout)
        return output, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self.stdout.close()


_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def _fork(request):
    """The id of a new process, which becomes a child of this one."""
    server, prctl = _server(), ctypes.CDLL(None).prctl
    prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
    try:
        print(json.dumps(request), file=server.stdin, flush=True)
        return int(server.stdout.readline())
    finally:
        prctl(_ADOPT_ORPHANS, 0, 0, 0, 0)


@functools.cache
def _server():
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server"],
        cwd=ROOT,
        # BLAS would start threads, of which forks have none.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_stop, server)
    return server


def _stop(server):
    with server:
        server.stdin.close()


# srun, as far as the launcher knows it: starts the tasks of a step, on this machine,
# and ends with the worst of their codes. What task i says is in $LOGS-i.txt.
_SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$LOGS-srun.txt"
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < TASKS; task++)); do
  SLURM_NTASKS=$TASKS SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_NODES=1 \
    SLURM_STEP_NODELIST=localhost "$@" >"$LOGS-$task.txt" 2>&1 &
  tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do
  wait "$task"
  code=$?
  ((code > worst)) && worst=$code
done
exit $worst
"""
_SCONTROL = '#!/bin/sh\necho "$*" >"$LOGS-scontrol.txt"\n'
_SQUEUE = '#!/bin/sh\necho "${STATE:-RUNNING}"\n'
_PYTHON = """#!/bin/sh
cd "$CODE" && exec "$PYTHON" "$@"
"""


def sbatch(
    folder, arguments, *, count, python=_PYTHON, timeout_s=PATIENCE_S, **environment
):
    """Runs launch/slurm/train.sbatch with `count` tasks on this machine.

    Returns its exit code and what was said: by the tasks, to srun and to scontrol.
    """
    files = {
        "srun": _SRUN,
        "scontrol": _SCONTROL,
        "squeue": _SQUEUE,
        "code/.venv/bin/python": python,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    # The port where they meet follows from the job's number.
    told = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(4096 + os.getpid() % 4096),
        "SLURM_SUBMIT_DIR": str(folder / "code"),
        "TASKS": str(count),
        "LOGS": str(folder / "said"),
        "CODE": str(ROOT),
        "PYTHON": sys.executable,
    }
    command = [ROOT / "launch" / "slurm" / "train.sbatch", *arguments]
    done = subprocess.run(
        command, env=os.environ | told | environment, timeout=timeout_s
    )
    said = {p.stem.removeprefix("said-"): p.read_text() for p in folder.glob("said-*")}
    return done.returncode, said


class Job:
    """`count` processes of a command, of `devices` together; what number i says is in
    `<log>-i.txt`."""

    def __init__(self, arguments, log, *, count=2, devices=4):
        port = free_port()
        self.logs, self.processes = {}, {}
        for index in range(count):
            self.logs[index] = log.with_name(f"{log.name}-{index}.txt")
            self.processes[index] = Fork(
                [*arguments, *flags_of(index, count, port)],
                self.logs[index],
                JAX_NUM_CPU_DEVICES=str(devices // count),
            )

    def said(self, index=0):
        """What process `index` has said so far."""
        return self.logs[index].read_text()

    def until(self, happened, timeout_s=PATIENCE_S):
        """Waits for `happened()`; what it returned."""
        deadline = time.monotonic() + timeout_s
        while not (found := happened()):
            for process in self.processes.values():
                assert process.poll() is None, self.everything()
            assert time.monotonic() < deadline, self.everything()
            time.sleep(0.005)
        return found

    def signal(self, index, number):
        """Sends a signal to process `index`."""
        self.processes[index].send_signal(number)

    def end(self, timeout_s=PATIENCE_S):
        """Exit codes, once all have ended; nothing is left running."""
        deadline = time.monotonic() + timeout_s
        try:
            for process in self.processes.values():
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        finally:
            self.kill()
        return [process.returncode for process in self.processes.values()]

    def kill(self):
        """Ends what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def everything(self):
        """All that all processes said, for a message."""
        return "\n".join(f"--- process {i}\n{self.said(i)}" for i in self.logs)
