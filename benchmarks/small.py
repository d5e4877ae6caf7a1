"""Small sets: images per second of a bare step, from the host, and from the device.

    python benchmarks/small.py
    python benchmarks/small.py --jobs=digits --rounds=15 --seconds=4
    python benchmarks/small.py --data=DIR_OR_NPZ --json=FILE

`bare` is the step of the recipe fed one batch that never changes: the limit of what any
input can reach. `host` is the same step fed by threads that decode, crop and resize
(data.cache=off), `device` the step that crops images which the device holds
(data.cache=device), several updates a call; `single` is `device` with one update a
call. All are of one process and take turns within a round, so that a slow minute of the
machine hits each; a ratio is that of the two in a round, given as median (min..max).
`waits` is the share of the time spent on waiting for data, `updates` how many a call
had in the last round.

Jobs: `digits`, MAE on the embedded digits as the quick start trains it; `short`, the
same with batches of 8 and a small model, whose steps are short; `cifar`, MAE on images
of 32 pixels with patches of 4; `probe`, a linear probe of that encoder. The images are
those of --data (a folder, or a file of arrays, of 32-pixel images), or random ones.
`evaluation`: passes over the training images that predict features, from the host, and
from the device after the first pass, beside the prediction of one batch alone; `embed`
also writes them to a .npy file, as configs/embed.py does. `--jobs=embed` measures
nothing else, with ViT-Tiny's encoder on images of 96 pixels in patches of 16. Ratios
marked CPU are of images per second of CPU time, of all threads: other programs on the
machine disturb them less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from litevit_jax import cpu

cpu.choose()  # before JAX is loaded
import jax
import numpy as np

from litevit_jax import cli, compilation, sharding
from litevit_jax.evaluators import base, embed
from litevit_jax.jobs import train

JOBS = flags.DEFINE_list(
    "jobs", ["digits", "short", "cifar", "probe"], "What is measured."
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each side.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "Length of a measurement.")
DATA = flags.DEFINE_string("data", None, "Folder or arrays in place of random images.")
IMAGES = flags.DEFINE_integer(
    "images", 5000, "Random images, where there is no --data."
)
BATCH = flags.DEFINE_integer("batch", 0, "Images per update; 0: the recipe's.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

_CIFAR = {
    "data.image_size": 32,
    "data.crop_scale": (0.2, 1.0),
    "data.eval_crop_fraction": 1.0,
    "objective.encoder.patch_size": 4,
    "objective.encoder.width": 96,
    "objective.encoder.depth": 4,
    "objective.encoder.num_heads": 6,
    "objective.decoder.width": 48,
    "objective.decoder.num_heads": 3,
}
_EMBED = {
    "batch_size": 128,
    "data.image_size": 96,
    "data.eval_crop_fraction": 1.0,
    "lr.warmup_epochs": 0.0,
}
_SHORT = {
    "batch_size": 8,
    "objective.encoder.width": 24,
    "objective.encoder.depth": 1,
    "objective.encoder.num_heads": 2,
    "objective.decoder.width": 16,
    "objective.decoder.num_heads": 2,
}
_SIDES = {
    "bare": {"data.cache": "off"},
    "host": {"data.cache": "off"},
    "device": {"data.cache": "device"},
    "single": {"data.cache": "device", "steps_per_call": "1"},
}
_FOREVER = {"steps": 10**8, "log.writers": ("jsonl",), "checkpoint.every_steps": 10**6}


def config_of(recipe: str, arg: str, fields: dict[str, Any]) -> Any:
    """Returns a recipe with other values of some fields."""
    config = importlib.import_module(f"litevit_jax.configs.{recipe}").get_config(arg)
    with config.unlocked():
        config.evals = {}
        for name, value in fields.items():
            *blocks, last = name.split(".")
            block = config
            for part in blocks:
                block = block[part]
            block[last] = value
    return config


class Side:
    """One way of feeding the step of a job."""

    def __init__(self, config: Any, folder: str, *, bare: bool = False):
        """Builds the run in `folder` and compiles its step."""
        self._job = train.prepare(config, folder)
        self._state = self._job.create()
        self._feed = self._job.feed(0)
        self._fed, self._metrics = next(self._feed), None
        self._bare = bare
        if bare:
            self._feed.close()
        lowered = self._job.step.lower(self._state, self._fed.batch)
        self._program = lowered.compile()
        self._batch_size = self._job.config["batch_size"]
        self.updates = 1

    def measure(self, seconds: float) -> dict[str, float]:
        """Trains for so many seconds: images/s and the share of waiting."""
        fed = self._one()
        jax.block_until_ready(self._state)
        steps, wait_s, start = 0, 0.0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            fed = self._one()
            steps, wait_s = steps + fed.updates, wait_s + fed.wait_s * (not self._bare)
        jax.block_until_ready(self._state)
        spent = time.perf_counter() - start
        self.updates = max(fed.updates, 1)
        return {"rate": steps * self._batch_size / spent, "wait": 100 * wait_s / spent}

    def _one(self) -> Any:
        """Calls the step once, and reads the metrics of the call before, as a run."""
        fed = self._fed if self._bare else next(self._feed)
        before = self._metrics
        self._state, self._metrics = self._program(self._state, fed.batch)
        jax.device_get(before)
        return fed

    def close(self) -> None:
        """Stops reading and frees the folder."""
        self._feed.close()
        self._job.release()


@contextlib.contextmanager
def sides(recipe: str, arg: str, fields: dict[str, Any]) -> Iterator[dict[str, Side]]:
    """Builds the sides of a job."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        built = {}
        for name, own in _SIDES.items():
            config = config_of(recipe, arg, {**fields, **own, **_FOREVER})
            side = Side(config, f"{folder}/{name}", bare=name == "bare")
            stack.callback(side.close)
            built[name] = side
        yield built


def compare(recipe: str, arg: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Measures the sides in turn, after a round that is not counted."""
    rates: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    with sides(recipe, arg, fields) as built:
        for number in range(ROUNDS.value + 1):
            for name, side in built.items():
                figures = side.measure(SECONDS.value)
                if number:  # round 0 is not counted
                    rates.setdefault(name, []).append(figures["rate"])
                    waits.setdefault(name, []).append(figures["wait"])
            tell(f"training, round {number} of {ROUNDS.value}")
        updates = built["device"].updates
    ratios = {
        f"{name}/bare": [x / y for x, y in zip(rates[name], rates["bare"], strict=True)]
        for name in ("host", "device", "single")
    }
    return {
        "images/s": {name: spread(x) for name, x in rates.items()},
        "ratios": {name: spread(x) for name, x in ratios.items()},
        "wait %": {name: spread(x) for name, x in waits.items() if name != "bare"},
        "updates": updates,
    }


def evaluate(recipe: str, arg: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Measures passes over the training images that predict their features."""
    name = "features"
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(recipe, arg, {**fields, "data.cache": "device", **_FOREVER})
        with config.unlocked():
            config.evals = {"knn": {"name": "knn"}}
        job = train.prepare(config, folder)
        evaluator: Any = job.evaluators["knn"][0]
        # Each pass computes its predictions, though they are those of the last one.
        state = job.create()
        context = dataclasses.replace(evaluator.context, last=None)
        host = dataclasses.replace(context, kept=None)
        batches = [*host.over(state, "train", (name,), images=True, limit=1)]
        batch = sharding.global_batch(batches[0][0], job.mesh)
        predict = base._only(context.predict, (name,), False, job.mesh)

        def bare() -> int:
            for _ in range(passes):
                jax.device_get(predict(state.params, state.model_state, batch))
            return passes

        def over(one: Any) -> int:
            return sum(1 for _ in one.over(state, "train", (name,)))

        def written() -> None:
            target = pathlib.Path(folder) / "features.npy"
            embed.make(context=host, target=str(target), split="train").run(
                state, step=0
            )
            for path in target.parent.glob("features.npy*"):
                path.unlink()

        def seconds(run: Any, *args: Any) -> np.ndarray:
            start = np.array([time.perf_counter(), time.process_time()])
            run(*args)
            return np.array([time.perf_counter(), time.process_time()]) - start

        passes = over(context)  # the first one, which the devices keep
        times = []
        for number in range(ROUNDS.value + 1):
            times.append(
                {"bare": seconds(bare), "host": seconds(over, host)}
                | {"device": seconds(over, context), "embed": seconds(written)}
            )
            tell(f"evaluation, round {number} of {ROUNDS.value}")
        del times[0]  # round 0 is not counted
        job.release()
    images = job.config["derived"]["train_examples"]
    pairs = [(k, "bare") for k in ("host", "device", "embed")] + [("embed", "host")]
    ratios = {
        f"{k}/{of}{what}": spread([t[of][i] / t[k][i] for t in times])
        for i, what in enumerate(("", " CPU"))
        for k, of in pairs
    }
    rates = {k: spread([images / t[k][0] for t in times]) for k in times[0]}
    return {"images/s": rates, "ratios": ratios}


def tell(text: str) -> None:
    """Prints how far it is, beside the figures."""
    print(text, file=sys.stderr, flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and the ends."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def images_in(folder: str) -> str:
    """Returns the variant of the images: of --data, or random ones in `folder`."""
    if DATA.value:
        kind = "arrays" if DATA.value.endswith((".npz", ".npy")) else "folder"
        return f'data={kind},path="{DATA.value}"'
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", IMAGES.value), ("test", IMAGES.value // 5)):
        shape = (count, 32, 32, 3)
        arrays[f"{split}_image"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_label"] = np.arange(count) % 10
    path = pathlib.Path(folder) / "random.npz"
    np.savez(path, **arrays)
    return f'data=arrays,path="{path}"'


def both(*about: Any) -> dict[str, Any]:
    """Measures training, and evaluation beside it."""
    return {**compare(*about), "evaluation": evaluate(*about)}


def measure(job: str) -> dict[str, Any]:
    """Measures one of the jobs."""
    batch = {"batch_size": BATCH.value} if BATCH.value else {}
    with tempfile.TemporaryDirectory() as folder:
        if job == "digits":
            return both("mae_tiny", "digits", batch)
        arg, fields = images_in(folder), {**_CIFAR, **batch}
        if job == "short":
            return compare("mae_tiny", "digits", {**_SHORT, **batch})
        if job == "cifar":
            return both("mae_tiny", arg, fields)
        if job == "embed":
            return evaluate("mae_tiny", arg, {**_EMBED, **batch})
        run, short = f"{folder}/run", {"steps": 1, "lr.warmup_epochs": 0.0}
        train.run(config_of("mae_tiny", arg, {**fields, **short}), run)
        return compare("linear_probe", "", {"init": run, **batch})


def describe(figures: dict[str, Any]) -> str:
    """Returns the figures of a job as lines."""

    def text(values: dict[str, float], digits: int) -> str:
        return "{median:.{d}f} ({min:.{d}f}..{max:.{d}f})".format(**values, d=digits)

    lines = [f"  {k:12} {text(v, 0)} images/s" for k, v in figures["images/s"].items()]
    lines += [f"  {k:14} {text(v, 3)}" for k, v in figures["ratios"].items()]
    waits = figures.get("wait %", {})
    lines += [f"  {k:12} waits {text(v, 1)} %" for k, v in waits.items()]
    if waits:
        lines.append(f"  updates of a call: {figures['updates']}")
    if "evaluation" in figures:
        lines += [" evaluation", describe(figures["evaluation"])]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures the jobs, each in a process that is set up as main.py does."""
    if len(JOBS.value) > 1:
        for job in JOBS.value:
            subprocess.run(
                [sys.executable, *argv, *_flags(), f"--jobs={job}"], check=True
            )
        return
    (job,) = JOBS.value
    recipe = "linear_probe" if job == "probe" else "mae_tiny"
    fields = {"cifar": _CIFAR, "short": _SHORT}.get(job, {})
    cli.prepare_cpu(
        config_of(recipe, "digits" if job in ("digits", "short") else "", fields)
    )
    compilation.use("auto")
    figures = measure(job)
    print(f"{job}, load {os.getloadavg()[0]:.1f}\n{describe(figures)}", flush=True)
    if JSON.value:
        path = pathlib.Path(JSON.value)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, job: figures}, indent=1) + "\n")


def _flags() -> list[str]:
    """Returns the flags of this command that are not defaults."""
    own = [ROUNDS, SECONDS, DATA, IMAGES, BATCH, JSON]
    return [f"--{flag.name}={flag.value}" for flag in own if flag.value != flag.default]


if __name__ == "__main__":
    app.run(main)
