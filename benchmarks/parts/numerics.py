"""Checks what the device computes: recorded values, precision, exact resume."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parts import common
from litevit_jax.models import attention, layers
from litevit_jax.objectives import mae, supervised
from litevit_jax.warm_start import read
from tests import golden

# Recorded from the reference models in float32, see tests/objectives.
MAE_LOSS, RAW_LOSS = 1.081296, 0.829725
LOGITS = [0.52863, 0.426949, 0.143044, 0.756373]
# (queries, keys, heads, size of a head) of the attention that is compared.
SHAPES = {"encoder": (50, 50, 12, 16), "decoder": (148, 197, 3, 32)}
BOUNDS = {"float32": 1e-4, "bfloat16": 0.015}


def run(part: common.Part) -> None:
    resume, before = "resume, same bits", len(part.rows)
    for name, measure in _in_process(part).items():
        part.row(name, measure)
    if len(part.rows) > before and not part.small and resume not in part.rows:
        sys.exit(common.AGAIN)  # this process holds the device that the runs need
    part.row(resume, functools.partial(_resume, part))


def _in_process(part: common.Part) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> measurement, of the rows that this process computes itself."""
    depth = 1 if part.small else None
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "MAE loss, recorded": _losses,
        "logits, recorded": _logits,
        "MAE gradient, float32 against CPU": functools.partial(
            _gradient_against_cpu, depth
        ),
        "MAE gradient, bfloat16 against float32": functools.partial(
            _half_against_whole, depth
        ),
    }
    for entry, name, dtype in itertools.product(attention.KERNELS, SHAPES, BOUNDS):
        if entry == "cudnn" and (part.platform != "gpu" or dtype == "float32"):
            continue
        compare = functools.partial(_attention, entry, SHAPES[name], dtype)
        rows[f"attention {entry!r}, {name}, {dtype}"] = compare
    return rows


def _key() -> jax.Array:
    return jax.random.key(0)  # not on import: it takes the device


def _checked(error: Any, bound: float, **more: Any) -> dict[str, Any]:
    """A row: the largest relative error, its bound, and whether it holds."""
    error = float(error)
    return {"error": error, "bound": bound, "ok": bool(error <= bound), **more}


def _golden(
    dtype: str = "float32", depth: int | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """(MAE-Tiny, or the first blocks of it, recorded parameters, recorded batch)."""
    tiny = {"variant": "tiny"}
    encoder = tiny if depth is None else tiny | {"depth": depth}
    objective = mae.make(encoder=encoder, decoder=tiny, dtype=dtype)
    batch = {"image": golden.images(2), "ids_shuffle": golden.ids_shuffle(2)}
    shapes = jax.eval_shape(objective.init, _key(), {"image": batch["image"]})
    return objective, golden.params_like(shapes.params), batch


def _losses() -> dict[str, Any]:
    objective, params, batch = _golden()
    raw = dataclasses.replace(objective, norm_pix_loss=False)

    @jax.jit
    def losses(params: Any, batch: Any) -> list[jax.Array]:
        return [o.loss(params, {}, {}, batch, _key())[0] for o in (objective, raw)]

    with jax.default_matmul_precision("highest"):
        values = [float(x) for x in losses(params, batch)]
    pairs = zip(values, (MAE_LOSS, RAW_LOSS), strict=True)
    return _checked(max(abs(a / b - 1) for a, b in pairs), 1e-5, value=values[0])


def _logits() -> dict[str, Any]:
    encoder = {"variant": "tiny", "pos_embed": "learned_sincos"}
    objective = supervised.make(
        encoder=encoder, num_classes=1000, pool="avg", dtype="float32"
    )
    image = golden.images(2)
    shapes = jax.eval_shape(objective.init, _key(), {"image": image})
    params = golden.params_like(shapes.params)
    # The reference's learned positions hold the table there.
    params["encoder"]["pos_embed"] = layers.sincos_table((14, 14), 192, "sincos")[None]
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(objective.predict)(params, {}, {"image": image})["logits"]
    error = np.abs(np.asarray(logits[0, :4]) - LOGITS).max() / np.abs(LOGITS).max()
    return _checked(error, 1e-4, value=float(logits[0, 0]))


@functools.cache
def _gradient(dtype: str, depth: int | None, device: jax.Device) -> Any:
    """(loss, gradient) of the recorded MAE, in the highest precision of float32."""
    objective, params, batch = _golden(dtype, depth)

    def loss(params: Any, batch: Any) -> jax.Array:
        return objective.loss(params, {}, {}, batch, _key())[0]

    with jax.default_matmul_precision("highest"), jax.default_device(device):
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, batch))


def _gradient_against_cpu(depth: int | None) -> dict[str, Any]:
    on_device = _gradient("float32", depth, jax.devices()[0])
    on_cpu = _gradient("float32", depth, jax.devices("cpu")[0])
    error = _distance(on_device[1], on_cpu[1])
    return _checked(error, 1e-4, value=float(on_device[0]))


def _half_against_whole(depth: int | None) -> dict[str, Any]:
    device = jax.devices()[0]
    half, whole = (_gradient(d, depth, device) for d in ("bfloat16", "float32"))
    loss = abs(float(half[0]) / float(whole[0]) - 1)
    return _checked(_distance(half[1], whole[1]), 0.05, loss_error=loss)


def _distance(tree: Any, reference: Any) -> float:
    """Euclidean distance of two trees, relative to the size of the second."""
    pairs = list(zip(*map(jax.tree.leaves, (tree, reference)), strict=True))
    apart = sum(float(np.square(np.float64(a) - b).sum()) for a, b in pairs)
    size = sum(float(np.square(np.float64(b)).sum()) for _, b in pairs)
    return (apart / size) ** 0.5


def _attention(entry: str, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """Compares values and gradients of one kernel with autodiff in float32."""
    queries, keys, heads, size = shape
    seeds = jax.random.split(jax.random.key(4), 4)
    lengths = (queries, keys, keys, queries)
    *args, weight = (
        jax.random.normal(seed, (4, heads, length, size))
        for seed, length in zip(seeds, lengths, strict=True)
    )
    args = [x.astype(dtype) for x in args]

    def own(q: Any, k: Any, v: Any) -> jax.Array:
        return attention.attend(q, k, v, 1 / size**0.5, kernel=entry)

    with jax.default_matmul_precision("highest"):
        got = _energy(own, *args, weight)
        want = _energy(_plain, *(x.astype(jnp.float32) for x in args), weight)
    pairs = zip(*map(jax.device_get, (got, want)), strict=True)
    errors = (np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
    return _checked(max(errors), BOUNDS[dtype])


def _plain(q: Any, k: Any, v: Any) -> jax.Array:
    probs = jax.nn.softmax(q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5)
    return jnp.einsum("bast,batd->basd", probs, v)


@functools.partial(jax.jit, static_argnums=0)  # the plain formula compiles once
def _energy(function: Any, q: Any, k: Any, v: Any, weight: Any) -> list[jax.Array]:
    """[out, gradients of its weighted sum by q, k and v] in float32."""

    def energy(*args: Any) -> Any:
        out = function(*args)
        return (out.astype(jnp.float32) * weight).sum(), out

    graded = jax.value_and_grad(energy, (0, 1, 2), has_aux=True)
    (_, out), grads = graded(q, k, v)
    return [x.astype(jnp.float32) for x in (out, *grads)]


def _resume(part: common.Part) -> dict[str, Any]:
    """Trains 20 steps at once, and again with a stop in between.

    One run after the other: a TPU belongs to one process, and programs that two
    processes compile at the same time may differ on a GPU, by what each has timed.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root)
        arguments = _arguments(folder, part.small)
        whole, stopped = ([*arguments, f"--workdir={folder / n}"] for n in "ab")
        codes = [part.run_main(*whole).returncode, _interrupted(part, stopped)]
        codes.append(part.run_main(*stopped).returncode)
        if codes != [0, 42, 0]:
            raise RuntimeError(f"exit codes {codes}, expected 0, 42 and 0")
        apart = _apart(folder / "a", folder / "b")
    return {"error": apart, "bound": 0.0, "ok": apart == 0.0}


def _arguments(folder: pathlib.Path, small: bool) -> list[str]:
    """A run of 20 steps: 4 blocks of ViT-Tiny on noise, or the digits if `small`."""
    if small:
        variant, more = "smoke", list(common.SMALL_MODEL)
    else:
        images = np.random.default_rng(0).integers(256, size=(256, 96, 96, 3))
        np.savez(folder / "images.npz", image=images.astype(np.uint8))
        variant = f"data=arrays,path={folder / 'images.npz'}"
        more = ["--config.data.image_size=96", "--config.batch_size=128"]
        more.append("--config.objective.encoder.depth=4")  # less to compile
    return [
        f"--config=configs/mae_tiny.py:{variant}",
        *more,
        "--config.steps=20",
        "--config.checkpoint.every_steps=100",
        "--config.evals.reconstruction.every_steps=0",
        "--config.log.report=False",
        "--config.log.every_steps=1",
        "--config.log.writers=('jsonl',)",
    ]


def _interrupted(part: common.Part, arguments: list[str]) -> int:
    """Runs main.py for 7 steps, asks it to stop and returns its exit code."""
    command = [sys.executable, "main.py", *arguments]
    with common.process(command, cwd=common.ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step 7/"):
                child.send_signal(signal.SIGTERM)
        try:
            return child.wait(timeout=max(part.left, 1))
        except subprocess.TimeoutExpired:
            raise common.OutOfTime from None


def _apart(one: pathlib.Path, other: pathlib.Path) -> float:
    """The largest difference of parameters in the last checkpoints of two runs."""

    states = [read.read_params(str(path)) for path in (one, other)]
    pairs = zip(*(jax.tree.leaves(s.params) for s in states), strict=True)
    return max(float(np.abs(np.float64(a) - b).max()) for a, b in pairs)
