"""Images per second of one training step on this machine, ours and PyTorch's.

    python benchmarks/train_step.py --batch=64 --steps=3 --rounds=7
    python benchmarks/train_step.py --job=finetune --batch=32 --steps=2 --rounds=7

A step is forward, backward and AdamW (weight decay 0.05 on matrices) of ViT-Tiny with
12 heads in float32, on normalised images that are already in memory. Ours is the step
that training runs; the other side, where torch is installed, is the same step plainly
written. `mae`: there, all patches are embedded before masking, tokens are put back in
order, every patch is predicted. `finetune`: mixup 0.2, average pooling and a norm
before 1000 classes, soft-target cross-entropy, layer decay 0.85; --rpe=fused adds
relative position bias to both sides.

Each side lives in its own process, ours as main.py sets it up, torch as it comes
with as many threads as there are cores; they take turns within a round, so that a
slow minute of the machine hits both. On a machine with other work the rates still
depend on how either side's threads are scheduled: see the load printed, and compare
CPU seconds then.
Memory is the peak resident size of the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

BATCH = flags.DEFINE_integer("batch", 64, "Images per step.")
SIDE = flags.DEFINE_integer("image_size", 224, "Height and width of an image.")
STEPS = flags.DEFINE_integer("steps", 3, "Steps per measurement.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of each side.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
JOB = flags.DEFINE_enum("job", "mae", ["mae", "finetune"], "What a step learns.")
RPE = flags.DEFINE_enum("rpe", "none", ["none", "fused"], "Position bias of finetune.")
WORKER = flags.DEFINE_enum("worker", None, ["jax", "torch"], "Internal: be a side.")

ROOT = str(pathlib.Path(__file__).parents[1])
LR, CLASSES, MIXUP = 1e-4, 1000, 0.2
ADAMW = {
    "mae": {"b1": 0.9, "b2": 0.95, "weight_decay": 0.05, "layer_decay": 1.0},
    "finetune": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.05, "layer_decay": 0.85},
}


def images() -> np.ndarray:
    """Normalised images `[B, H, W, 3]`."""
    shape = (BATCH.value, SIDE.value, SIDE.value, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def labels() -> np.ndarray:
    """A class for each image `[B]`."""
    return np.random.default_rng(1).integers(CLASSES, size=BATCH.value, dtype=np.int32)


def jax_side() -> tuple[Callable[[int], float], str]:
    """(run this many steps and return the last loss, versions)."""
    from litevit_jax import cpu

    cpu.prepare(BATCH.value, 3 * SIDE.value**2)  # as main.py does
    import jax

    from litevit_jax import augment, sharding
    from litevit_jax.objectives import mae, supervised
    from litevit_jax.train import optimizer as optimizers
    from litevit_jax.train import state as states
    from litevit_jax.train import step

    tiny: dict[str, Any] = {"variant": "tiny"}
    settings: dict[str, Any] = {**ADAMW[JOB.value]}
    blocks: dict[str, dict[str, Any]] = {}
    if JOB.value == "mae":
        objective = mae.make(encoder=tiny, decoder=tiny, dtype="float32")
    else:
        tiny |= {"pos_embed": "learned_sincos", "rpe_style": RPE.value}
        objective = supervised.make(encoder=tiny, num_classes=CLASSES, dtype="float32")
        settings["no_decay"] = ("encoder/(cls_token|pos_embed)",)
        blocks["mix"] = {"mixup": MIXUP}
    mesh = sharding.make_mesh()
    rows = {"image": images(), "index": np.arange(BATCH.value, dtype=np.int32)}
    batch = sharding.global_batch(rows | {"label": labels()}, mesh)
    params = states.abstract_variables(objective, batch).params
    optimizer = optimizers.make(
        params, lambda _: jax.numpy.float32(LR), name="adamw", **settings
    )
    create, shardings = states.creator(objective, optimizer, batch, mesh)
    ops = augment.make(blocks)
    train_step = step.make_train_step(
        objective, optimizer, ops, seed=0, mesh=mesh, state_sharding=shardings
    )
    state = create(jax.random.key(0))

    def run(steps: int) -> float:
        nonlocal state
        metrics = {}
        for _ in range(steps):
            state, metrics = train_step(state, batch)
        return float(metrics["loss"])

    return run, f"jax {jax.__version__}"


def torch_side() -> tuple[Callable[[int], float], str]:
    """(run this many steps and return the last loss, versions)."""
    torch = importlib.import_module("torch")  # optional: no dependency of ours
    from benchmarks import torch_models

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    settings, patches = ADAMW[JOB.value], SIDE.value // 16
    if JOB.value == "mae":
        model = torch_models.mae(torch, patches)
    else:
        model = torch_models.classifier(torch, patches, CLASSES, RPE.value != "none")
    groups = torch_models.groups(model, LR, **settings)
    betas = (settings["b1"], settings["b2"])
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=betas)
    batch = torch.from_numpy(images().transpose(0, 3, 1, 2).copy())
    target = torch.from_numpy(labels()).long()

    def loss_of_step() -> Any:
        if JOB.value == "mae":
            return model(batch)
        return torch_models.mixed_loss(torch, model, batch, target, MIXUP)

    def run(steps: int) -> float:
        loss = None
        for _ in range(steps):
            loss = loss_of_step()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())  # type: ignore[union-attr]

    return run, f"torch {torch.__version__}"


def worker() -> None:
    """Serves measurements on stdin and stdout, one JSON line each."""
    run, versions = {"jax": jax_side, "torch": torch_side}[str(WORKER.value)]()
    first_loss = run(1)
    run(1)
    print(json.dumps({"versions": versions, "loss": first_loss}), flush=True)
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        run(int(line))
        found = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        }
        print(json.dumps(found), flush=True)


class Side:
    """A worker process and what it measured."""

    def __init__(self, name: str):
        command = [sys.executable, __file__, f"--worker={name}"]
        command += [f"--batch={BATCH.value}", f"--image_size={SIDE.value}"]
        command += [f"--job={JOB.value}", f"--rpe={RPE.value}"]
        pipe = subprocess.PIPE
        self.name, self.rates, self.cpu, self.peak_mib = name, [], [], 0.0
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        env["PYTHONPATH"] = os.pathsep.join(p for p in [ROOT, *sys.path] if p)
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=env
        )
        assert self._process.stdin and self._process.stdout  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.about = self._read()

    def measure(self) -> None:
        """Times `--steps` steps."""
        self._stdin.write(f"{STEPS.value}\n")
        self._stdin.flush()
        found = self._read()
        self.rates.append(BATCH.value * STEPS.value / found["seconds"])
        self.cpu.append(found["cpu_seconds"] / STEPS.value)
        self.peak_mib = found["peak_mib"]

    def close(self) -> None:
        """Ends the process."""
        self._stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.name} side died; its error is above")
        return json.loads(line)


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if "model name" in line)[13:].strip()
    except (OSError, StopIteration):
        return platform.processor()


def compare(names: list[str]) -> dict[str, Any]:
    """Measures the sides in turn; figures by name."""
    sides = [Side(name) for name in names]
    for _ in range(ROUNDS.value):
        for side in sides:
            side.measure()
    for side in sides:
        side.close()
    figures: dict[str, Any] = {
        side.name: side.about
        | {
            "images_per_s": spread(side.rates),
            "cpu_s_per_step": spread(side.cpu),
            "peak_mib": side.peak_mib,
        }
        for side in sides
    }
    if len(sides) == 2:
        pairs = zip(sides[0].rates, sides[1].rates, strict=True)
        figures["ratio"] = spread([ours / theirs for ours, theirs in pairs])
    return figures


def what() -> str:
    """The job, with what is added to it."""
    return JOB.value if RPE.value == "none" else f"{JOB.value} with position bias"


def describe(figures: dict[str, Any]) -> str:
    """The figures as text."""
    load = os.getloadavg()[0]
    lines = [f"{cpu_model()}, {os.cpu_count()} cores, load {load:.1f} at the end"]
    lines.append(
        f"python {platform.python_version()}; {what()}, ViT-Tiny, {SIDE.value} px, "
        f"batch {BATCH.value}, float32; {ROUNDS.value} x {STEPS.value} steps, "
        "median (min..max)"
    )
    for name, found in figures.items():
        found = {"images_per_s": found} if name == "ratio" else found
        rate = found["images_per_s"]
        line = "{median:.2f} ({min:.2f}..{max:.2f})".format(**rate)
        if name != "ratio":
            cpu = "{median:.2f} ({min:.2f}..{max:.2f})".format(
                **found["cpu_s_per_step"]
            )
            line += f" images/s, {cpu} CPU s/step, peak {found['peak_mib']:.0f} MiB, "
            line += found["versions"]
        lines.append(f"{name:>6}: {line}")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    if JOB.value == "mae" and RPE.value != "none":
        raise app.UsageError("--rpe goes with --job=finetune")
    if JOB.value == "finetune" and BATCH.value % 2:
        raise app.UsageError(f"--batch={BATCH.value} is odd, and mixup pairs images")
    if WORKER.value:
        return worker()
    names = ["jax", "torch"] if importlib.util.find_spec("torch") else ["jax"]
    figures = compare(names)
    print(describe(figures))
    if JSON.value:
        about = {"cpu": cpu_model(), "cores": os.cpu_count(), "batch": BATCH.value}
        about |= {"job": what(), "image_size": SIDE.value}
        with open(JSON.value, "w") as file:
            json.dump(figures | about, file, indent=2)


if __name__ == "__main__":
    app.run(main)
