"""The sides of a comparison: our step and a plain PyTorch one, each in its own process.

A `Spec` describes a step; `jax_side` and `torch_side` build it and return a function
that runs it. A `Side` is such a process: it is stopped (SIGSTOP) out of its turn, so
that spinning threads do not slow the other side down, and runs one step that is not
timed when it continues, since its caches are cold.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# The Python that runs PyTorch's side may have neither JAX nor the package's other
# dependencies: they are imported where they are used.

ROOT = str(pathlib.Path(__file__).resolve().parents[1])
LR, CLASSES, MIXUP = 1e-4, 1000, 0.2
PIXEL_CLASSES, IGNORED = 150, 255  # of label maps
# Job -> (recipe, its variant, changes of its config).
JOBS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "mae": ("mae_tiny", None, {}),
    "distill": ("mae_tiny_distill", None, {"objective.teacher.variant": "base"}),
    "finetune": ("finetune", "scratch", {"data.randaugment.layers": 0}),
    "mocov3": ("mocov3_tiny", None, {}),
    "segment": (
        "segment",
        "ade20k",
        {
            "objective.encoder.variant": "tiny",
            "data.channels": 3,
            "augment.normalize.mean": (0.485, 0.456, 0.406),
            "augment.normalize.std": (0.229, 0.224, 0.225),
        },
    ),
    "probe": (
        "linear_probe",
        "imagenet2012",
        {"objective.encoder.variant": "tiny", "objective.encoder.pos_embed": "sincos"},
    ),
}
# Settings of torch's AdamW; our step reads the same from the recipe.
ADAMW = {
    "mae": {"b1": 0.9, "b2": 0.95, "weight_decay": 0.05},
    "finetune": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.05, "layer_decay": 0.85},
    "mocov3": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.1, "decay_1d": True},
    "segment": {
        **{"b1": 0.9, "b2": 0.999, "weight_decay": 0.05, "layer_decay": 0.8},
        "decay_positions": True,
    },
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One training step.

    Attributes:
      job: a key of `JOBS`.
      batch: images per update; MoCo v3 takes two views of each.
      image_size: height and width in pixels.
      fields: changes of the recipe's config, 'a.b' -> value; our side alone.
      biased: fine-tuning with relative position bias, on both sides.
      half: PyTorch runs in bfloat16 autocast with scaled_dot_product_attention.
      compiled: PyTorch compiles its model.
    """

    job: str = "mae"
    batch: int = 64
    image_size: int = 224
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    biased: bool = False
    half: bool = False
    compiled: bool = False


@dataclasses.dataclass
class Step:
    """Our step of a `Spec`, not compiled yet.

    Attributes:
      design: a `BuiltStep` of litevit_jax.train.build.
      state: TrainState on the mesh; each call of `run` replaces it.
      batch: on the mesh.
      program: the function that `run` calls: the jitted step or, after `compile`, the
        compiled one.
    """

    design: Any
    state: Any
    batch: dict[str, Any]
    program: Any

    def compile(self) -> Any:
        """Compiles the step ahead of time; returns the compiled program."""
        self.program = self.design.step.lower(self.state, self.batch).compile()
        return self.program

    def run(self, steps: int) -> float:
        """Makes `steps` updates and returns the loss of the last."""
        metrics: dict[str, Any] = {}
        for _ in range(steps):
            self.state, metrics = self.program(self.state, self.batch)
        return float(metrics["loss"])


def images(spec: Spec) -> np.ndarray:
    """Images as bytes `[B, H, W, 3]`, or `[B, 2, H, W, 3]` if a step has two views."""
    views = (2,) if spec.job == "mocov3" else ()
    shape = (spec.batch, *views, spec.image_size, spec.image_size, 3)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def labels(spec: Spec) -> np.ndarray:
    """A class for each image `[B]`."""
    rng = np.random.default_rng(1)
    return rng.integers(CLASSES, size=spec.batch, dtype=np.int32)


def label_maps(spec: Spec) -> np.ndarray:
    """A class for each pixel, uint8 `[B, H, W]`; a tenth of them has none."""
    shape = (spec.batch, spec.image_size, spec.image_size)
    rng = np.random.default_rng(1)
    each = rng.integers(PIXEL_CLASSES, size=shape, dtype=np.uint8)
    return np.where(rng.random(shape) < 0.1, IGNORED, each).astype(np.uint8)


def recipe(spec: Spec) -> Any:
    """The job's config, without the work that a loader does outside the step.

    Raises:
      KeyError: a field that the recipe does not have.
    """
    from litevit_jax import recipes

    name, variant, fields = JOBS[spec.job]
    config = recipes.get(name, variant)
    config = config.copy_and_resolve_references().unlock()
    common = {"batch_size": spec.batch, "data.image_size": spec.image_size}
    common |= {"data.flip": 0.0, "log.health": False}
    config.update_from_flattened_dict({**fields, **common, **spec.fields})
    kept = {"normalize", "mix"} & set(config.augment)
    config.augment = {key: config.augment[key] for key in kept}
    if spec.biased:
        config.objective.encoder.rpe_style = "fused"
    return config


def host_batch(spec: Spec) -> dict[str, np.ndarray]:
    """A batch as our input pipeline gives it."""
    name = "views" if spec.job == "mocov3" else "image"
    index = np.arange(spec.batch, dtype=np.int32)
    batch = {"index": index, "label": labels(spec), name: images(spec)}
    if spec.job == "segment":
        size = np.full((spec.batch, 2), spec.image_size, np.int32)
        batch |= {"label_map": label_maps(spec), "size": size}
    return batch


def our_step(spec: Spec) -> Step:
    """Designs our step and creates its state; a frozen teacher starts at random."""
    import jax

    from litevit_jax import sharding
    from litevit_jax.plan import examples
    from litevit_jax.train import build, resolve

    config, mesh = recipe(spec), sharding.make_mesh()
    config = resolve.settle(config)
    source = examples.Counted(1_281_167, CLASSES)
    if spec.job == "segment":
        source = examples.Counted(20_210, PIXEL_CLASSES, ("label_map",))
    design = build.build_step(config, mesh, lambda split: source)
    batch = sharding.global_batch(host_batch(spec), mesh)
    state: Any = design.create(jax.random.key(0))
    if design.objective.frozen_teacher:
        rng = np.random.default_rng(2)
        teacher = jax.tree.map(
            lambda x: jax.device_put(
                (0.02 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding
            ),
            design.state.teacher,
        )
        state = state.replace(teacher=teacher)
    return Step(design, state, batch, design.step)


def jax_side(spec: Spec) -> tuple[Callable[[int], float], str]:
    """Builds our side: (a function from steps to the last loss, versions)."""
    from litevit_jax import cpu

    cpu.prepare(spec.batch, 3 * spec.image_size**2)  # as main.py does
    import jax

    cpu.devices()  # an accelerator that is asked for and missing is an error
    step = our_step(spec)
    devices = f"{jax.device_count()} {jax.default_backend()} devices"
    slices = f"{step.design.slices} slices each"
    return step.run, f"jax {jax.__version__}, {devices}, {slices}"


def torch_side(spec: Spec) -> tuple[Callable[[int], float], str]:
    """Builds PyTorch's side: (a function from steps to the last loss, versions)."""
    torch = importlib.import_module("torch")  # optional: not a dependency
    from benchmarks import torch_models

    device = "cuda" if spec.half and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    settings = ADAMW[spec.job]
    pixels = images(spec).astype(np.float32)  # how they are normalised costs nothing
    pixels = np.moveaxis(pixels / 127.5 - 1, -1, -3).copy()
    batch = torch.from_numpy(pixels).to(device)
    target = label_maps(spec) if spec.job == "segment" else labels(spec)
    target = torch.from_numpy(target).long().to(device)
    model, loss_of_step = _torch_loss(torch, torch_models, spec, batch, target, device)
    groups = torch_models.groups(model, LR, **settings)
    betas = (settings["b1"], settings["b2"])
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=betas, **fused)

    def run(steps: int) -> float:
        loss = None
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=spec.half):
                loss = loss_of_step()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())  # type: ignore[union-attr]

    how = "compiled" if spec.compiled else "eager"
    half = ", bfloat16 autocast" if spec.half else ""
    return run, f"torch {torch.__version__}, {device}, {how}{half}"


def _torch_loss(
    torch: Any, models: Any, spec: Spec, batch: Any, target: Any, device: str
) -> tuple[Any, Callable[[], Any]]:
    """Returns the job's plain model, and a function that gives its loss."""
    patches = spec.image_size // 16
    if spec.job == "mae":
        model = models.mae(torch, patches, fused=spec.half)
    elif spec.job == "finetune":
        model = models.classifier(torch, patches, CLASSES, spec.biased, fused=spec.half)
    elif spec.job == "segment":
        model = models.segmenter(torch, patches, PIXEL_CLASSES, fused=spec.half)
    else:
        model = models.moco(torch, patches, fused=spec.half)
    model = model.to(device)
    called = torch.compile(model) if spec.compiled else model
    if spec.job == "mae":
        return model, functools.partial(called, batch)
    if spec.job == "finetune":
        mixed = functools.partial(models.mixed_loss, torch, called, batch, target)
        return model, functools.partial(mixed, MIXUP)
    if spec.job == "segment":
        return model, functools.partial(called, batch, target)
    return model, functools.partial(called, *batch.unbind(1))


class Side:
    """A process that runs one side, and its measurements.

    Attributes:
      rates: images/s of each measurement.
      cpu: CPU seconds a step, likewise.
      peak_mib: largest resident size of the process.
      steps_mib: the same, without what building and compiling took.
      about: versions, seconds until it was ready, its first loss.
    """

    def __init__(
        self,
        name: str,
        spec: Any,
        *,
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        module: str = "benchmarks.sides",
    ):
        command = [python, "-m", module, name]
        command.append(json.dumps(dataclasses.asdict(spec)))
        pipe = subprocess.PIPE
        self.name, self._spec = name, spec
        self.rates: list[float] = []
        self.cpu: list[float] = []
        self.peak_mib = self.steps_mib = 0.0
        paths = [ROOT, *(sys.path if python == sys.executable else [])]
        paths.append(os.environ.get("PYTHONPATH", ""))
        env = (
            os.environ
            | (env or {})
            | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        )
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=env,
            cwd=ROOT,
        )
        assert self._process.stdin and self._process.stdout  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.about: dict[str, Any] = {}

    def wait_ready(self) -> None:
        """Waits until it has compiled and run its first step, then stops it.

        Raises:
          RuntimeError: the process died.
        """
        self.about = self._read()
        self.halt()

    def measure(self, steps: int) -> None:
        """Continues the process, times `steps` steps and stops it again."""
        self.go_on()
        self._stdin.write(f"{steps}\n")
        self._stdin.flush()
        row = self._read()
        self.halt()
        self.rates.append(self._spec.batch * steps / row["seconds"])
        self.cpu.append(row["cpu_seconds"] / steps)
        self.peak_mib, self.steps_mib = row["peak_mib"], row.get("steps_mib", 0.0)

    @property
    def batch(self) -> int:
        """Images of one step."""
        return self._spec.batch

    def forget(self) -> None:
        """Drops the measurements so far, such as a warm-up."""
        self.rates.clear()
        self.cpu.clear()

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def figures(self) -> dict[str, Any]:
        """The measurements, with their spread."""
        return self.about | {
            "images_per_s": spread(self.rates),
            "cpu_s_per_step": spread(self.cpu),
            "peak_mib": self.peak_mib,
            "steps_mib": self.steps_mib,
        }

    def halt(self) -> None:
        """Stops all its threads; returns when they have stopped."""
        self._process.send_signal(signal.SIGSTOP)
        # A process that has died instead is left to `close`.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """Continues all its threads, also those that spin while they wait."""
        self._process.send_signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """CPU time of its threads so far, as Linux counts it."""
        stat = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text()
        ticks = stat.rpartition(")")[2].split()[11:13]  # of the user, of the system
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def _read(self) -> dict[str, Any]:
        for line in self._stdout:
            if line.startswith("{"):
                return json.loads(line)
            print(line, end="", file=sys.stderr)
        raise RuntimeError(f"the {self.name} side died; its error is above")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(own: Side, peer: Side) -> dict[str, float]:
    """The ratio of `own` to `peer` in images/s, measurement by measurement."""
    pairs = zip(own.rates, peer.rates, strict=True)
    return spread([one / other for one, other in pairs])


def beside(own: Side, peer: Side, rounds: int, steps: int) -> dict[str, Any]:
    """Measures `own` while the peer is stopped and while it waits, in turn."""
    figures: dict[str, Any] = {}
    rates: dict[str, list[tuple[float, float]]] = {"stopped": [], "waiting": []}
    shares = []
    for _ in range(rounds):
        for kind, kept in rates.items():
            peer.measure(1)  # its threads have just had work
            if kind == "waiting":
                peer.go_on()
            start, used = time.perf_counter(), peer.cpu_seconds()
            own.measure(steps)
            used, spent = peer.cpu_seconds() - used, time.perf_counter() - start
            if kind == "waiting":
                shares.append(100 * used / spent)
                peer.halt()
            kept.append((own.rates[-1], own.cpu[-1]))
    for kind, kept in rates.items():
        speeds, seconds = zip(*kept, strict=True)
        figures[f"peer {kind}"] = own.figures() | {
            "images_per_s": spread(speeds),
            "cpu_s_per_step": spread(seconds),
        }
    figures["peer waiting"]["% of a core that it uses"] = spread(shares)
    return figures


def serve(name: str, spec: Spec) -> None:
    """Serves measurements on stdin and stdout, one JSON line each."""
    answer(lambda: {"jax": jax_side, "torch": torch_side}[name](spec))


def answer(build: Callable[[], tuple[Callable[[int], float], str]]) -> None:
    """Builds a side, then runs and times as many steps as each line of stdin says."""
    start = time.perf_counter()
    run, versions = build()
    first_loss = run(1)
    run(1)
    about = {"versions": versions, "loss": first_loss}
    about["ready_s"] = time.perf_counter() - start
    ready_mib = _peak_mib()
    _forget_peak()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        run(1)  # it was stopped, and the other side has had the caches
        start, cpu_start = time.perf_counter(), time.process_time()
        run(int(line))
        row = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "peak_mib": max(ready_mib, _peak_mib()),
            "steps_mib": _peak_mib(),
        }
        print(json.dumps(row), flush=True)


def _peak_mib():
    """The largest resident size of this process since `_forget_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _forget_peak():
    """Makes Linux count the peak from now on, without what compiling took."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere it stays in
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    serve(sys.argv[1], Spec(**json.loads(sys.argv[2])))
