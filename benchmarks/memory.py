"""Checks that a run's memory does not grow, with a small run that evaluates often.

    python -m benchmarks.memory --minutes=10

Prints the resident memory of each minute, the least of twelve looks (evaluations and
checkpoints take some for a moment), and its growth since the third; a growth of more
than one per cent ends with code 1. Pages of files, which come and go with other
programs' use of the machine, do not count. Linux only.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
_LOOKS = 12  # a minute
_WARM_MINUTES = 3  # programs are compiled, readers and evaluators have run


def resident_kib(pid: int) -> int:
    """Resident memory of a process without pages of files, as Linux counts it."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--every", type=int, default=10, help="steps, to evaluate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "main.py", "--config=configs/mae_tiny.py:smoke"),
            *("--config.steps=100000000", "--config.checkpoint.every_steps=200"),
            f"--config.evals.reconstruction.every_steps={given.every}",
            f"--workdir={workdir}",
        ]
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        sizes = []
        try:
            for minute in range(1, given.minutes + 1):
                looks = []
                for _ in range(_LOOKS):
                    time.sleep(60 / _LOOKS)
                    looks.append(resident_kib(run.pid))
                sizes.append(min(looks))
                print(f"minute {minute}: {sizes[-1] / 1024:.1f} MiB", flush=True)
        finally:
            run.terminate()
            run.wait()
    first = sizes[min(_WARM_MINUTES, len(sizes)) - 1]
    growth = sizes[-1] / first - 1
    print(f"growth since minute {_WARM_MINUTES}: {100 * growth:.2f} %")
    return int(growth > 0.01)


if __name__ == "__main__":
    sys.exit(main())
