"""A detector's step and test pass on this machine, ours and a plain PyTorch one's.

    python -m venv TORCH && TORCH/bin/pip install torch==2.14.1 torchvision==0.29.1
    python benchmarks/detection.py --torch=TORCH/bin/python --size=digits
    python benchmarks/detection.py --torch=TORCH/bin/python --size=tiny --rounds=5

`digits` is the recipe's model of digit scenes: 8 images of 48 pixels. `tiny` is
ViT-Tiny on 2 images of 256 pixels with 80 classes, a quarter of the paper's proposals
and an eighth of its samples. A step is forward, backward and AdamW, from images as
bytes on our side; a test pass is `predict`, from images to boxes, classes, scores and
masks. Both sides have the same parameters, images and objects, and float32; PyTorch's
has torchvision's kernels for RoIAlign and non-maximum suppression. Its numbers of boxes
vary; `fixed` marks a third side, PyTorch whose heads get as many boxes as ours, with
padding.

--check compares the five losses and the detections of both sides, which sample the
first boxes in order, before anything is timed.

Each side and part runs in its own process, stopped while it waits, and they take turns
within a round; see train_step.py. The share that is not the encoder is 1 less the time
of the encoder alone, forward and backward in a step. --cores=1 binds every process to
the first core that it may use, so that no thread spins: CPU seconds are comparable then
even on a busy machine. Memory is the largest resident size while steps run, without
compiling. --parts=test leaves steps out.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import detection_sides, importable, sides

SIZE = flags.DEFINE_enum("size", "digits", [*detection_sides.SIZES], "Which model.")
TORCH = flags.DEFINE_string("torch", sys.executable, "The Python that has PyTorch.")
PARTS = flags.DEFINE_multi_enum("parts", ["step", "test"], ["step", "test"], "What.")
STEPS = flags.DEFINE_integer("steps", 2, "Steps per measurement.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of each.", lower_bound=1)
CORES = flags.DEFINE_integer(
    "cores", 0, "Cores of each process; 0: all.", lower_bound=0
)
ALONE = flags.DEFINE_bool("alone", False, "Time our side alone.")
CHECK = flags.DEFINE_bool("check", False, "Compare what both sides compute first.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
_MODULE = "benchmarks.detection_sides"
_ENCODER = " of the encoder"


def specs(sizes: dict[str, Any], part: str, peer: bool) -> dict[str, tuple[str, Any]]:
    """Name -> (side, its spec) of all that is timed together."""
    batch = detection_sides.SIZES[SIZE.value].batch
    make = detection_sides.Spec
    every = {}
    for side in ("jax", "torch")[: 1 + peer]:
        for name in (part, part + _ENCODER):
            spec = make(SIZE.value, name, CORES.value, batch, sizes)
            every[f"{side} {name}"] = side, spec
    if peer and part == "step":
        spec = make(SIZE.value, part, CORES.value, batch, sizes, fixed=True)
        every[f"torch fixed {part}"] = "torch", spec
    return every


@contextlib.contextmanager
def ready(every: dict[str, tuple[str, Any]]) -> Iterator[dict[str, sides.Side]]:
    """The sides by name, stopped until they are measured."""
    started: dict[str, sides.Side] = {}
    try:
        for name, (side, spec) in every.items():
            python = sys.executable if side == "jax" else TORCH.value
            started[name] = sides.Side(side, spec, python=python, module=_MODULE)
        for one in started.values():
            one.wait_ready()
        yield started
    finally:
        for one in started.values():
            one.close()


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """The ratio of two lists of measurements, round by round, with its spread."""
    return sides.spread([a / b for a, b in zip(over, under, strict=True)])


def compare(sizes: dict[str, Any], part: str, peer: bool) -> dict[str, Any]:
    """Measures all sides of one part in turn; figures by name."""
    with ready(specs(sizes, part, peer)) as started:
        for _ in range(ROUNDS.value):
            for side in started.values():
                side.measure(STEPS.value)
    figures: dict[str, Any] = {name: x.figures() for name, x in started.items()}
    for name in ("jax", "torch")[: 1 + peer]:
        whole, alone = (started[f"{name} {x}"].cpu for x in (part, part + _ENCODER))
        share = ratio(alone, whole)
        figures[f"{name} {part}"]["% not the encoder"] = {
            key: 100 * (1 - share[other])
            for key, other in (("median", "median"), ("min", "max"), ("max", "min"))
        }
    own = started[f"jax {part}"]
    for name, side in started.items():
        if name.startswith("torch") and name.endswith(part):
            figures[f"{name} over jax"] = {
                "cpu_ratio": ratio(side.cpu, own.cpu),
                "rate_ratio": ratio(own.rates, side.rates),
            }
    return figures


def check(sizes: dict[str, Any]) -> str:
    """Compares what both sides compute; returns a line about it.

    Raises:
      RuntimeError: a side died, or a loss or detection differs.
    """
    out = {}
    for side, python in (("jax", sys.executable), ("torch", TORCH.value)):
        batch = detection_sides.SIZES[SIZE.value].batch
        spec = detection_sides.Spec(SIZE.value, "check", 0, batch, sizes)
        text = subprocess.run(
            [python, "-m", _MODULE, side, spec.to_json()],
            cwd=sides.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        lines = [line for line in text.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"the {side} side died; its error is above")
        out[side] = json.loads(lines[-1])
    own, peer = out["jax"], out["torch"]
    worst = max(abs(own[name] - peer[name]) / abs(own[name]) for name in own)
    if own.keys() != peer.keys() or worst > 1e-3:
        raise RuntimeError(f"the sides differ: {own} and {peer}")
    return f"both sides compute the same to {worst:.0e}: {json.dumps(own)}"


def describe(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for name, figure in figures.items():
        text = {
            key: "{median:.3g} ({min:.3g}..{max:.3g})".format(**value)
            for key, value in figure.items()
            if isinstance(value, dict)
        }
        words = [f"{value} {key}" for key, value in text.items()]
        if "steps_mib" in figure:
            words += [f"{figure['steps_mib']:.0f} MiB, with compiling"]
            words += [f"{figure['peak_mib']:.0f}", figure["versions"]]
        lines.append(f"{name:>28}: {', '.join(words)}")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    why = (
        None
        if ALONE.value
        else importable.missing("torch", "torchvision.ops", python=TORCH.value)
    )
    if why:
        print(
            f"torch is left out: {why}; pip install torch==2.14.1 torchvision==0.29.1"
        )
        print("into an environment of its own, and name its Python: --torch=PATH")
    peer = not (why or ALONE.value)
    sizes = detection_sides.sizes_of(SIZE.value)
    if CHECK.value and peer:
        print(check(sizes), flush=True)
    figures: dict[str, Any] = {}
    for part in dict.fromkeys(PARTS.value):
        figures |= compare(sizes, part, peer)
    load = statistics.mean(os.getloadavg())
    print(
        f"{SIZE.value}, {os.cpu_count()} cores, {CORES.value or 'all'} used, "
        f"load {load:.1f}, {ROUNDS.value} x {STEPS.value}, median (min..max)"
    )
    print(describe(figures))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    app.run(main)
