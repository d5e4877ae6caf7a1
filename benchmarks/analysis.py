"""Time and memory of an analysis: 1,024 images, ViT-Tiny/16 at 224 pixels.

    python benchmarks/analysis.py --images=1024
    python benchmarks/analysis.py --images=256 --json=out.json

The pass computes all that configs/analysis.py asks for: CKA of 13 layers, the distance
and entropy of 144 heads, spectrum, rank and token similarity; then maps of 4 images.
Parameters are random, and images are noise in memory, so that no disk is measured. The
figures are the seconds of the pass, compiling included, the seconds and CPU seconds of
everything (on a busy machine look at the latter), and the largest resident memory of
the process. Run it for 256 and 1,024 images: memory must not grow with their number.
Bounds: 3 minutes and 4 GiB on 2 CPU cores.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import tempfile
import time

import numpy as np
from absl import app, flags

IMAGES = flags.DEFINE_integer("images", 1024, "Number of images.")
BATCH = flags.DEFINE_integer("batch", 64, "Images of a minibatch.")
SIDE = flags.DEFINE_integer("image_size", 224, "Height and width of an image.")
VARIANT = flags.DEFINE_string("variant", "tiny", "Variant of the encoder.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def write_images(path: pathlib.Path) -> None:
    """Writes IMAGES images of noise, which data=arrays reads."""
    rng = np.random.default_rng(0)
    shape = (IMAGES.value, SIDE.value, SIDE.value, 3)
    np.save(path, rng.integers(0, 256, shape, dtype=np.uint8))


def analyse(images: pathlib.Path, workdir: pathlib.Path) -> dict[str, float]:
    """Prepares and runs one analysis; returns its figures."""
    import jax

    from litevit_jax.analysis import measure, models
    from litevit_jax.configs import analysis as recipe
    from litevit_jax.models import vit

    config = recipe.get_config(f"data=arrays,path={images}")
    config.models = "tiny=drawn"
    config.images, config.batch_size = IMAGES.value, BATCH.value
    config.data.eval_split = "train"
    config.data.eval_crop_fraction = 1.0
    config.reconstruction.images = 0
    encoder = vit.make_encoder(variant=VARIANT.value, final_norm=False)
    size = (SIDE.value, SIDE.value)
    image = np.zeros((1, *size, 3), np.float32)
    params = jax.device_get(jax.jit(encoder.init)(jax.random.key(0), image)["params"])
    view = models.View(size, 3, (0.5,) * 3, (0.25,) * 3)
    drawn = models.Model("tiny", "drawn", 0, encoder, params, "none", {}, view)
    models.read = lambda *_, **__: drawn
    start, started = time.perf_counter(), time.process_time()
    job = measure.prepare(config, workdir)
    results = measure.measure(job)
    passed = time.perf_counter() - start
    measure.draw(job)
    return {
        "images": results["images"],
        "minibatches": results["cka"]["minibatches"],
        "pass_s": passed,
        "all_s": time.perf_counter() - start,
        "images_per_s": results["images"] / passed,
        "cpu_s": time.process_time() - started,
    }


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        images = pathlib.Path(directory) / "images.npy"
        write_images(images)
        figures = analyse(images, pathlib.Path(directory) / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures |= {"peak_gib": peak, "cores": len(os.sched_getaffinity(0))}
    for name, value in figures.items():
        print(f"{name:14s} {value:.4g}")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
