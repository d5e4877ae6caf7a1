"""The quick start behind `make demo`: pre-train on the digits, probe, compare.

    python -m launch.demo

It makes three ordinary runs of main.py under runs/demo; a second call skips them.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNS = pathlib.Path("runs/demo")
# On whole images: a crop of 8 pixels can cost a digit its meaning.
PROBE = ["--config=configs/linear_probe.py", "--config.steps=1000",
         "--config.data.crop_scale=1.0,1.0",
         "--config.data.crop_ratio=1.0,1.0",
         "--config.log.report=False"]  # fmt: skip
STAGES = {
    "mae": ["--config=configs/mae_tiny.py:digits", "--config.epochs=60"],
    "probe": [*PROBE, f"--config.init={RUNS}/mae"],
    "probe-random": [*PROBE, "--config.init=random", f"--config.like={RUNS}/mae"],
}
# Both probes are small, and together they use two cores better than one by one.
TOGETHER = (("mae",), ("probe", "probe-random"))


def run(names: Sequence[str]) -> None:
    """Runs main.py in runs/demo/<name> for each; stops the demo if one fails.

    They run at the same time. The first one prints as it goes, what the others print
    follows.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str((ROOT / RUNS / ".cache").absolute())
    }
    first, *_ = names
    with contextlib.ExitStack() as stack:
        started = []
        for name in names:
            command = ["main.py", *STAGES[name], f"--workdir={RUNS / name}"]
            if name == first:
                print_command(command)
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=None if name == first else subprocess.PIPE,
                stderr=None if name == first else subprocess.STDOUT,
            )
            stack.callback(process.terminate)  # if the demo is stopped
            started.append((process, command))
        for process, command in started:
            if process.stdout is not None:
                print_command(command)
                for line in process.stdout:
                    print(line, end="", flush=True)
            if code := process.wait():
                sys.exit(
                    f"the demo stopped: the command above ended with code {code}. Run "
                    f"it again to go on, or remove {RUNS} to start afresh"
                )


def print_command(command: list[str]) -> None:
    """Prints a command as one types it."""
    print(f"\n$ {' '.join(['python', *command])}", flush=True)


def top1(name: str, evaluator: str) -> float:
    """Last top-1 (percent) that run `name` recorded."""
    path = ROOT / RUNS / name / "evals" / evaluator / "result.json"
    return json.loads(path.read_text())["last"]["top1"]


def main() -> None:
    """Runs the stages and prints the results."""
    start = time.monotonic()
    for names in TOGETHER:
        run(names)
    pictures = sorted((ROOT / RUNS / "mae" / "pictures").glob("*.png"))
    print(f"\nDone in {time.monotonic() - start:.0f} s. Accuracy on held-out digits:")
    print(f"{'':24}{'linear probe':>14}{'k-NN':>10}")
    for title, name in (("MAE pre-trained", "probe"), ("random", "probe-random")):
        probe, knn = top1(name, "test"), top1(name, "knn")
        print(f"{title + ' encoder':24}{probe:>12.1f} %{knn:>8.1f} %")
    print(f"Reconstructions: {pictures[-1].relative_to(ROOT)}")
    print(f"Everything else: {RUNS}/mae (metrics.jsonl, tensorboard, checkpoints)")


if __name__ == "__main__":
    main()
