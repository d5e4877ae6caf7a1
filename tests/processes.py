"""Several local processes of one job, with CPU devices each and gloo between them."""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def free_port():
    """A port that nobody listens on."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def flags_of(index, count, port):
    """What tells a process who it is, on the command line."""
    place = f"--coordinator=127.0.0.1:{port}"
    return [place, f"--num_processes={count}", f"--process_id={index}"]


def slurm_step(index, count):
    """What SLURM tells a process, on one node; the port follows from the job's id."""
    return {
        "SLURM_JOB_ID": str(4096 + os.getpid() % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


class Job:
    """`count` processes of a command, of `devices` together, that flags or `slurm`
    tell apart; what number i says is in `<log>-i.txt`."""

    def __init__(self, arguments, log, *, count=2, devices=4, slurm=False):
        port = free_port()
        self.logs, self.processes = {}, {}
        for index in range(count):
            environment = {
                **os.environ,
                "PYTHONWARNINGS": "default",
                "PYTHONPATH": str(ROOT),
                "JAX_NUM_CPU_DEVICES": str(devices // count),
                **(slurm_step(index, count) if slurm else {}),
            }
            told = [] if slurm else flags_of(index, count, port)
            self.logs[index] = log.with_name(f"{log.name}-{index}.txt")
            with open(self.logs[index], "w") as out:
                self.processes[index] = subprocess.Popen(
                    [sys.executable, *arguments, *told],
                    cwd=ROOT,
                    env=environment,
                    stdout=out,
                    stderr=out,
                )

    def said(self, index=0):
        """What process `index` has said so far."""
        return self.logs[index].read_text()

    def until(self, happened, timeout_s=600):
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

    def end(self, timeout_s=600):
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
