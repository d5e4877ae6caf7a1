"""The quick start behind `make demo`: pre-train on the digits, probe, compare.

    python -m launch.demo

It makes three ordinary runs of main.py under runs/demo; a second call skips them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

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


def run(name: str, arguments: list[str]) -> None:
    """Runs main.py in runs/demo/<name>; stops the demo if it fails."""
    command = ["python", "main.py", *arguments, f"--workdir={RUNS / name}"]
    print(f"\n$ {' '.join(command)}", flush=True)
    # The two probes are one program with other numbers: it is compiled once.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str((ROOT / RUNS / ".cache").absolute())
    }
    code = subprocess.run(
        [sys.executable, *command[1:]], cwd=ROOT, env=environment
    ).returncode
    if code:
        sys.exit(
            f"the demo stopped: the command above ended with code {code}. Run it "
            f"again to go on, or remove {RUNS} to start afresh"
        )


def top1(name: str, evaluator: str) -> float:
    """Last top-1 (percent) that run `name` recorded."""
    path = ROOT / RUNS / name / "evals" / evaluator / "result.json"
    return json.loads(path.read_text())["last"]["top1"]


def main() -> None:
    """Runs the stages and prints the results."""
    start = time.monotonic()
    for name, arguments in STAGES.items():
        run(name, arguments)
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
