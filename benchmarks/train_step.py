"""Images per second of one MAE training step on this machine, ours and PyTorch's.

    python benchmarks/train_step.py --batch=64 --steps=3 --rounds=7

A step is forward, backward and AdamW (betas 0.9 and 0.95, weight decay 0.05 on
matrices) of the tiny model in float32, on normalised images that are already in
memory. Ours is the step that training runs. The other side, where torch is
installed, is the same step as the original writes it: all patches are embedded
before masking, tokens are put back in order, every patch is predicted.

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
WORKER = flags.DEFINE_enum("worker", None, ["jax", "torch"], "Internal: be a side.")

LR, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 0.05


def images() -> np.ndarray:
    """Normalised images `[B, H, W, 3]`."""
    shape = (BATCH.value, SIDE.value, SIDE.value, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def jax_side() -> tuple[Callable[[int], float], str]:
    """(run this many steps and return the last loss, versions)."""
    from litevit_jax import cpu

    cpu.prepare(BATCH.value, 3 * SIDE.value**2)  # as main.py does
    import jax

    from litevit_jax import sharding
    from litevit_jax.objectives import mae
    from litevit_jax.train import optimizer as optimizers
    from litevit_jax.train import state as states
    from litevit_jax.train import step

    tiny = {"variant": "tiny"}
    objective = mae.make(encoder=tiny, decoder=tiny, dtype="float32")
    mesh = sharding.make_mesh()
    rows = {"image": images(), "index": np.arange(BATCH.value, dtype=np.int32)}
    batch = sharding.global_batch(rows, mesh)
    params = states.abstract_variables(objective, batch).params
    betas: dict[str, Any] = {
        "b1": BETAS[0],
        "b2": BETAS[1],
        "weight_decay": WEIGHT_DECAY,
    }
    optimizer = optimizers.make(
        params, lambda _: jax.numpy.float32(LR), name="adamw", **betas
    )
    create, shardings = states.creator(objective, optimizer, batch, mesh)
    train_step = step.make_train_step(
        objective, optimizer, (), seed=0, mesh=mesh, state_sharding=shardings
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

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    model = torch_mae(torch, SIDE.value // 16)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    batch = torch.from_numpy(images().transpose(0, 3, 1, 2).copy())

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = model(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return run, f"torch {torch.__version__}"


def torch_block(torch: Any, width: int, num_heads: int) -> Any:
    """A pre-norm block with attention written out."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in "12")
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1 = nn.Linear(width, 4 * width)
            self.fc2 = nn.Linear(4 * width, width)

        def forward(self, x):
            size, tokens, _ = x.shape
            shape = (size, tokens, 3, num_heads, width // num_heads)
            q, k, v = self.qkv(self.norm1(x)).reshape(shape).permute(2, 0, 3, 1, 4)
            logits = (q @ k.transpose(-2, -1)) * (width // num_heads) ** -0.5
            out = (logits.softmax(dim=-1) @ v).transpose(1, 2)
            x = x + self.proj(out.reshape(size, tokens, width))
            return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

    return Block()


def torch_mae(torch: Any, side: int) -> Any:
    """The tiny MAE as He et al. order it, on `side` x `side` patches; gives a loss."""
    from litevit_jax.models.layers import sincos_table

    nn, num_patches = torch.nn, side**2

    class Mae(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 192, 16, 16)
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 192))
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, 96))
            self.blocks = nn.Sequential(
                *[torch_block(torch, 192, 12) for _ in "x" * 12]
            )
            self.norm = nn.LayerNorm(192, eps=1e-6)
            self.embed = nn.Linear(192, 96)
            self.decoder = torch_block(torch, 96, 3)
            self.decoder_norm = nn.LayerNorm(96, eps=1e-6)
            self.pred = nn.Linear(96, 768)
            for name, width in (("pos", 192), ("decoder_pos", 96)):
                table = sincos_table((side, side), width, "sincos")
                self.register_buffer(name, torch.from_numpy(table)[None])

        def forward(self, image):
            latent, restore, mask = self.encode(image)
            pred = self.decode(latent, restore)
            shape = (len(image), 3, side, 16, side, 16)
            target = image.reshape(shape).permute(0, 2, 4, 3, 5, 1)
            target = target.reshape(len(image), num_patches, 768)
            var = target.var(dim=-1, keepdim=True)
            target = (target - target.mean(dim=-1, keepdim=True)) / (var + 1e-6).sqrt()
            error = ((pred - target) ** 2).mean(dim=-1)
            return (error * mask).sum() / mask.sum()

        def encode(self, image):
            x = self.patch_embed(image).flatten(2).transpose(1, 2) + self.pos[:, 1:]
            size, kept = len(x), num_patches // 4
            ids = torch.rand(size, num_patches).argsort(dim=1)
            restore = ids.argsort(dim=1)
            index = ids[:, :kept, None].expand(-1, -1, 192)
            cls = self.cls_token.expand(size, -1, -1)
            x = torch.cat([cls, x.gather(1, index)], dim=1)
            return self.norm(self.blocks(x)), restore, (restore >= kept).float()

        def decode(self, latent, restore):
            x = self.embed(latent)
            missing = num_patches + 1 - x.shape[1]
            masked = self.mask_token.expand(len(x), missing, -1)
            patches = torch.cat([x[:, 1:], masked], dim=1)
            patches = patches.gather(1, restore.unsqueeze(-1).expand(-1, -1, 96))
            x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos
            return self.pred(self.decoder_norm(self.decoder(x)))[:, 1:]

    return Mae()


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
        pipe = subprocess.PIPE
        self.name, self.rates, self.cpu, self.peak_mib = name, [], [], 0.0
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        env["PYTHONPATH"] = os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p)
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


def describe(figures: dict[str, Any]) -> str:
    """The figures as text."""
    load = os.getloadavg()[0]
    lines = [f"{cpu_model()}, {os.cpu_count()} cores, load {load:.1f} at the end"]
    lines.append(
        f"python {platform.python_version()}; MAE tiny, {SIDE.value} px, "
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
    if WORKER.value:
        return worker()
    names = ["jax", "torch"] if importlib.util.find_spec("torch") else ["jax"]
    figures = compare(names)
    print(describe(figures))
    if JSON.value:
        about = {"cpu": cpu_model(), "cores": os.cpu_count(), "batch": BATCH.value}
        with open(JSON.value, "w") as file:
            json.dump(figures | about, file, indent=2)


if __name__ == "__main__":
    app.run(main)
