"""Images per second of one training step on this machine, ours and PyTorch's.

    python benchmarks/train_step.py --batch=64 --steps=2 --rounds=9
    python benchmarks/train_step.py --job=finetune --batch=32 --steps=2 --rounds=9
    python benchmarks/train_step.py --job=mocov3 --batch=32 --steps=2 --rounds=9
    python benchmarks/train_step.py --job=segment --image_size=512 --batch=2 --rounds=9

A step is forward, backward and AdamW of ViT-Tiny with 12 heads in float32. Ours is the
step that the recipe of the method trains with (`JOBS`), slices included, from images
as bytes, which it normalises; flips, colours and health metrics are left out. The
other side, where torch is installed, is the same step in straightforward code, from
normalised images. `mae`: torch embeds all patches before masking, puts tokens back in
order and predicts every patch. `finetune`: mixup 0.2,
average pooling and a norm before 1000 classes, soft-target cross-entropy, layer decay
0.85; --rpe=fused adds relative position bias to both sides. `mocov3`: two views,
projectors with BatchNorm, a teacher that is a moving average; a batch counts images,
not views. `segment`: Semantic FPN of 150 classes on an encoder with position bias,
layer scale and dropped paths, layer decay 0.8; labels are bytes and integers.

Each side runs in its own process, ours as main.py sets it up, torch with its defaults
and one thread per core. The sides take turns within a round, so that a slow minute of
the machine hits both. All threads of a side are stopped (SIGSTOP) while it waits, and
its first step afterwards is not timed. On a busy machine the rates still depend on how
the threads are scheduled: look at the printed load, and compare CPU seconds then.
Memory is the peak resident size of the process.

"--set=microbatch=8;remat=True" changes our config; --alone leaves torch out. --waiting
measures the cost of a waiting peer: our side alone, beside a stopped peer, and beside a
peer that waits after a step, in turn; with the share of a core that such a peer uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import importable, sides

BATCH = flags.DEFINE_integer("batch", 64, "Images per step.")
SIDE = flags.DEFINE_integer("image_size", 224, "Height and width of an image.")
STEPS = flags.DEFINE_integer("steps", 3, "Steps per measurement.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of each side.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
JOB = flags.DEFINE_enum("job", "mae", [*sides.ADAMW], "What a step learns.")
RPE = flags.DEFINE_enum("rpe", "none", ["none", "fused"], "Position bias of finetune.")
SET = flags.DEFINE_string("set", "", "Changes of our side's config: a.b=value;c=value.")
ALONE = flags.DEFINE_bool("alone", False, "Time our side alone.")
WAITING = flags.DEFINE_bool("waiting", False, "Measure what a waiting peer costs ours.")


def cpu_model() -> str:
    """The processor's name, as the system reports it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if "model name" in line)[13:].strip()
    except (OSError, StopIteration):
        return platform.processor()


@contextlib.contextmanager
def ready(names: list[str]) -> Iterator[list[sides.Side]]:
    """The sides of these names, stopped until they are measured."""
    fields = dict(field.split("=", 1) for field in SET.value.split(";") if field)
    biased = RPE.value != "none"
    spec = sides.Spec(JOB.value, BATCH.value, SIDE.value, fields, biased)
    on_cpu = {"JAX_PLATFORMS": "cpu"}
    started: list[sides.Side] = []
    try:
        for name in names:
            started.append(sides.Side(name, spec, env=on_cpu))
            started[-1].wait_ready()
        yield started
    finally:
        for side in started:
            side.close()


def waiting(names: list[str]) -> dict[str, Any]:
    """Measures our side with the last of `names` as an absent, stopped or waiting peer.

    Without torch the peer is another process of our side.
    """
    with ready(["jax"]) as (own,):
        for _ in range(ROUNDS.value):
            own.measure(STEPS.value)
        figures = {"alone": own.figures()}
    with ready(["jax", names[-1]]) as (own, peer):
        return figures | sides.beside(own, peer, ROUNDS.value, STEPS.value)


def compare(names: list[str]) -> dict[str, Any]:
    """Measures the sides in turn; figures by name."""
    with ready(names) as started:
        for _ in range(ROUNDS.value):
            for side in started:
                side.measure(STEPS.value)
    figures: dict[str, Any] = {side.name: side.figures() for side in started}
    if len(started) == 2:
        figures["ratio"] = sides.ratio(*started)
    return figures


def what() -> str:
    """The job and its options as text."""
    biased = "" if RPE.value == "none" else " with position bias"
    return f"{JOB.value}{biased}{SET.value and f', {SET.value}'}"


def describe(figures: dict[str, Any]) -> str:
    """The figures as text."""
    load = os.getloadavg()[0]
    lines = [f"{cpu_model()}, {os.cpu_count()} cores, load {load:.1f} at the end"]
    lines.append(
        f"python {platform.python_version()}; {what()}, ViT-Tiny, {SIDE.value} px, "
        f"batch {BATCH.value}, float32; {ROUNDS.value} x {STEPS.value} steps, "
        "median (min..max)"
    )
    for name, figure in figures.items():
        figure = {"images_per_s": figure} if name == "ratio" else figure
        rate = figure["images_per_s"]
        line = "{median:.2f} ({min:.2f}..{max:.2f})".format(**rate)
        if name != "ratio":
            cpu = "{median:.2f} ({min:.2f}..{max:.2f})".format(
                **figure["cpu_s_per_step"]
            )
            line += f" images/s, {cpu} CPU s/step, peak {figure['peak_mib']:.0f} MiB, "
            line += figure["versions"]
            if "% of a core that it uses" in figure:
                share = figure["% of a core that it uses"]
                line += ", the peer at {median:.0f} % of a core".format(**share)
        lines.append(f"{name:>6}: {line}")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    if JOB.value != "finetune" and RPE.value != "none":
        raise app.UsageError("--rpe goes with --job=finetune")
    if JOB.value == "finetune" and BATCH.value % 2:
        raise app.UsageError(f"--batch={BATCH.value} is odd, and mixup pairs images")
    names = ["jax", *([] if ALONE.value else importable.usable({"torch": ("torch",)}))]
    figures = waiting(names) if WAITING.value else compare(names)
    print(describe(figures))
    if JSON.value:
        about = {"cpu": cpu_model(), "cores": os.cpu_count(), "batch": BATCH.value}
        about |= {"job": what(), "image_size": SIDE.value}
        with open(JSON.value, "w") as file:
            json.dump(figures | about, file, indent=2)


if __name__ == "__main__":
    app.run(main)
