"""A run of a few minutes: MAE on small images, then a probe of its encoder."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import time
from typing import Any

from benchmarks.parts import common

# ViT-Tiny on 64 patches of an image of 32 x 32 pixels.
_FIELDS = (
    "data.image_size=32",
    "data.cache=device",
    "data.crop_scale=0.2,1.0",
    "data.eval_crop_fraction=1.0",
    "objective.encoder.patch_size=4",
    "batch_size=1024",
    "lr.base=6e-4",
    "lr.warmup_epochs=5",
)


def run(part: common.Part) -> None:
    for name, measure in (("MAE", _pretrain), ("linear probe", _probe)):
        part.row(name, functools.partial(measure, part))


def _pretrain(part: common.Part) -> dict[str, Any]:
    """Trains for about half of the remaining time, estimated from its first steps."""
    workdir = part.out / "learning" / "mae"
    small = common.SMALL_MODEL if part.small else ()
    epochs = _epochs(part, workdir)
    row = _main(part, "mae_tiny", workdir, *_recipe(part), *epochs, *small)
    curves = list((workdir / "report").glob("*loss*.png"))
    for path in curves[:1]:
        shutil.copy(path, part.out / common.CURVES)
    return row


def _probe(part: common.Part) -> dict[str, Any]:
    init = part.out / "learning" / "mae"
    fields = [f"init={init}"]
    quick = [f"log.{name}=False" for name in ("health", "report")]
    quick.append("log.writers=('jsonl',)")
    fields += ["steps=6", "batch_size=16", *quick] if part.small else ["steps=2000"]
    row = _main(part, "linear_probe", part.out / "learning" / "probe", *fields)
    path = part.out / "learning" / "probe" / "evals" / "test" / "result.json"
    row["top-1 %"] = json.loads(path.read_text())["last"]["top1"]
    return row


def _recipe(part: common.Part) -> list[str]:
    """The variant and fields of the pre-training."""
    if part.small or not part.data:
        return [":smoke"] if part.small else [":digits"]
    kind = "arrays" if str(part.data).endswith(".npz") else "folder"
    return [f":data={kind},path={pathlib.Path(part.data).resolve()}", *_FIELDS]


def _epochs(part: common.Part, workdir: pathlib.Path) -> list[str]:
    """The number of passes that fit the time, at 20,000 images a second.

    A run that was interrupted goes on with the number that it began with.
    """
    if part.small or not part.data:
        return []
    begun = workdir / "config.json"
    if begun.exists():
        return [f"epochs={json.loads(begun.read_text())['epochs']}"]
    return [f"epochs={max(round(part.left * 0.4 * 20_000 / 50_000), 5)}"]


def _main(
    part: common.Part, recipe: str, workdir: pathlib.Path, *settings: str
) -> dict[str, Any]:
    """Runs main.py; images/s of its metrics and seconds of the whole."""
    variant = "".join(s for s in settings if s.startswith(":"))
    fields = [
        s if s.startswith("--") else f"--config.{s}"
        for s in settings
        if not s.startswith(":")
    ]
    start = time.time()
    config = f"--config=configs/{recipe}.py{variant}"
    done = part.run_main(config, f"--workdir={workdir}", *fields)
    if done.returncode:
        raise RuntimeError(
            f"{recipe} ended with {done.returncode}: {done.stdout[-500:]}"
        )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "images_per_s" in row]
    rates = sorted(row["images_per_s"] for row in rows[1:] or rows)
    losses = [row["loss"] for row in rows]
    return {
        "images/s": {
            "median": rates[len(rates) // 2],
            "min": rates[0],
            "max": rates[-1],
        },
        "steps": rows[-1]["step"],
        "first loss": losses[0],
        "last loss": losses[-1],
        "seconds": time.time() - start,
    }
