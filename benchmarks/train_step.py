"""Images per second of one training step on this machine, ours and PyTorch's.

    python benchmarks/train_step.py --batch=64 --steps=2 --rounds=9
    python benchmarks/train_step.py --job=finetune --batch=32 --steps=2 --rounds=9
    python benchmarks/train_step.py --job=mocov3 --batch=32 --steps=2 --rounds=9

A step is forward, backward and AdamW of ViT-Tiny with 12 heads in float32. Ours is the
step that the recipe of the method trains with (`JOBS`), slices included, from images
as bytes, which it normalises; flips, colours and health metrics are left out. The
other side, where torch is installed, is the same step plainly written, and is handed
images that are normalised already. `mae`: there, all patches are embedded before
masking, tokens are put back in order, every patch is predicted. `finetune`: mixup 0.2,
average pooling and a norm before 1000 classes, soft-target cross-entropy, layer decay
0.85; --rpe=fused adds relative position bias to both sides. `mocov3`: two views,
projectors with BatchNorm, a teacher that is a moving average; a batch counts images,
not views.

Each side lives in its own process, ours as main.py sets it up, torch as it comes
with as many threads as there are cores; they take turns within a round, so that a
slow minute of the machine hits both. On a machine with other work the rates still
depend on how either side's threads are scheduled: see the load printed, and compare
CPU seconds then. Memory is the peak resident size of the process.

"--set=microbatch=8;scan=True" changes the config of ours; --alone leaves torch out.
"""

from __future__ import annotations

import functools
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

ROOT = str(pathlib.Path(__file__).parents[1])
LR, CLASSES, MIXUP = 1e-4, 1000, 0.2
# Job -> (recipe, its variant, changes of its config).
JOBS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "mae": ("mae_tiny", None, {}),
    "finetune": ("finetune", "scratch", {"data.randaugment.layers": 0}),
    "mocov3": ("mocov3_tiny", None, {}),
}
# What torch's AdamW is told; ours reads it from the recipe.
ADAMW = {
    "mae": {"b1": 0.9, "b2": 0.95, "weight_decay": 0.05},
    "finetune": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.05, "layer_decay": 0.85},
    "mocov3": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.1, "decay_1d": True},
}

BATCH = flags.DEFINE_integer("batch", 64, "Images per step.")
SIDE = flags.DEFINE_integer("image_size", 224, "Height and width of an image.")
STEPS = flags.DEFINE_integer("steps", 3, "Steps per measurement.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of each side.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
JOB = flags.DEFINE_enum("job", "mae", [*JOBS], "What a step learns.")
RPE = flags.DEFINE_enum("rpe", "none", ["none", "fused"], "Position bias of finetune.")
SET = flags.DEFINE_string(
    "set", "", "Changes of the config of ours: a.b=value;c=value."
)
ALONE = flags.DEFINE_bool("alone", False, "Time our side alone.")
WORKER = flags.DEFINE_enum("worker", None, ["jax", "torch"], "Internal: be a side.")


def images() -> np.ndarray:
    """Images as bytes `[B, H, W, 3]`, `[B, 2, H, W, 3]` where a step has two views."""
    views = (2,) if JOB.value == "mocov3" else ()
    shape = (BATCH.value, *views, SIDE.value, SIDE.value, 3)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def labels() -> np.ndarray:
    """A class for each image `[B]`."""
    return np.random.default_rng(1).integers(CLASSES, size=BATCH.value, dtype=np.int32)


def jax_side() -> tuple[Callable[[int], float], str]:
    """(run this many steps and return the last loss, versions)."""
    from litevit_jax import cpu

    cpu.prepare(BATCH.value, 3 * SIDE.value**2)  # as main.py does
    import jax

    from litevit_jax import sharding
    from litevit_jax.plan import examples
    from litevit_jax.train import setup

    config, mesh = recipe(), sharding.make_mesh()
    setup.settle(config)
    source = examples.Counted(1_281_167, CLASSES)
    made = setup.design(config, mesh, lambda split: source)
    name = "views" if JOB.value == "mocov3" else "image"
    rows = {"index": np.arange(BATCH.value, dtype=np.int32), "label": labels()}
    batch = sharding.global_batch({**rows, name: images()}, mesh)
    state = made.create(jax.random.key(0))

    def run(steps: int) -> float:
        nonlocal state
        metrics = {}
        for _ in range(steps):
            state, metrics = made.step(state, batch)
        return float(metrics["loss"])

    return run, f"jax {jax.__version__}, {mesh.size} devices, {made.slices} slices each"


def recipe() -> Any:
    """The job's config without what a loader does elsewhere."""
    name, variant, fields = JOBS[JOB.value]
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    config = config.copy_and_resolve_references().unlock()
    said = dict(field.split("=", 1) for field in SET.value.split(";") if field)
    common = {"batch_size": BATCH.value, "data.image_size": SIDE.value}
    common |= {"data.flip": 0.0, "log.health": False}
    config.update_from_flattened_dict({**fields, **common, **said})
    kept = {"normalize", "mix"} & set(config.augment)
    config.augment = {key: config.augment[key] for key in kept}
    if RPE.value != "none":
        config.objective.encoder.rpe_style = RPE.value
    return config


def torch_side() -> tuple[Callable[[int], float], str]:
    """(run this many steps and return the last loss, versions)."""
    torch = importlib.import_module("torch")  # optional: no dependency of ours
    from benchmarks import torch_models

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    settings, patches = ADAMW[JOB.value], SIDE.value // 16
    pixels = images().astype(np.float32)  # how they are normalised costs nothing here
    pixels = np.moveaxis(pixels / 127.5 - 1, -1, -3).copy()
    batch, target = torch.from_numpy(pixels), torch.from_numpy(labels()).long()
    if JOB.value == "mae":
        model = torch_models.mae(torch, patches)
        loss_of_step = functools.partial(model, batch)
    elif JOB.value == "finetune":
        biased = RPE.value != "none"
        model = torch_models.classifier(torch, patches, CLASSES, biased)
        loss_of_step = functools.partial(
            torch_models.mixed_loss, torch, model, batch, target, MIXUP
        )
    else:
        model, views = torch_models.moco(torch, patches), batch.unbind(1)
        loss_of_step = functools.partial(model, *views)
    groups = torch_models.groups(model, LR, **settings)
    betas = (settings["b1"], settings["b2"])
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=betas)

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
        command += [f"--job={JOB.value}", f"--rpe={RPE.value}", f"--set={SET.value}"]
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
    if JOB.value != "finetune" and RPE.value != "none":
        raise app.UsageError("--rpe goes with --job=finetune")
    if JOB.value == "finetune" and BATCH.value % 2:
        raise app.UsageError(f"--batch={BATCH.value} is odd, and mixup pairs images")
    if WORKER.value:
        return worker()
    there = importlib.util.find_spec("torch") and not ALONE.value
    names = ["jax", "torch"] if there else ["jax"]
    figures = compare(names)
    print(describe(figures))
    if JSON.value:
        about = {"cpu": cpu_model(), "cores": os.cpu_count(), "batch": BATCH.value}
        about |= {"job": what(), "image_size": SIDE.value}
        with open(JSON.value, "w") as file:
            json.dump(figures | about, file, indent=2)


if __name__ == "__main__":
    app.run(main)
