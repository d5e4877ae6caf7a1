"""The job 'analyse': several checkpoints pass once over the same images, then figures.

Images are only added to sums, so that memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import array_digest, choices, sharding, terminal
from litevit_jax.analysis import (
    attention,
    capture,
    cka,
    features,
    images,
    models,
    pictures,
)
from litevit_jax.data import subsets, turbo
from litevit_jax.train import resolve
from litevit_jax.train import workdir as workdirs

ORDERS = ("random", "first")


@dataclasses.dataclass(frozen=True)
class Job:
    """An analysis, ready to start.

    Attributes:
      config: resolved.
      workdir: where results are written.
      mesh: the devices.
      models: in the order in which the user named them.
      source: the images, in the order in which they are read.
      wanted: the numbers to compute of each model.
    """

    config: ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    models: list[models.Model]
    source: subsets.Subset
    wanted: capture.Wanted


def run(job: Job) -> dict[str, Any]:
    """Runs an analysis; writes analysis.json and returns its content."""
    line = terminal.ConsoleLine()
    shown = terminal.counted(len(job.source), "image")
    with_models = f"with {terminal.counted(len(job.models), 'model')}"
    line.begin(f"report: looking at {shown} {with_models}")
    results = measure(job)
    line.begin("report: drawing attention maps, patch tokens and reconstructions")
    results |= draw(job)
    workdirs.write_json(job.workdir / "analysis.json", results)
    return results


def draw(job: Job) -> dict[str, Any]:
    """Draws the pictures of an analysis; returns what `pictures.draw_all` does."""
    config = job.config
    return pictures.draw_all(
        job.models,
        images.picture_source(config.data, config.split, config.rows, job.source),
        job.workdir,
        data=config.data,
        maps=config.maps,
        reconstructions=config.reconstruction.images,
    )


def prepare(config: ConfigDict, workdir: pathlib.Path) -> Job:
    """Reads models and lists images; checks that they can be analysed.

    Raises:
      ValueError, OSError: the user's mistake, named in the message.
    """
    terminal.ConsoleLine().begin("report: reading the models", begun=False)
    decoder = turbo.choose(config.data.decoder)
    config = resolve.changed(config, {"data.decoder": decoder})
    choices.check("order", config.order, list(ORDERS))
    wanted = _wanted(config.attention, config.features, config.cka)
    if jax.process_count() > 1:
        raise ValueError(
            f"{config.name}: analyses run in one process, here are "
            f"{jax.process_count()}; start it on one host"
        )
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, mesh)
    loaded = [
        models.read(
            name,
            path,
            num_heads=config.num_heads,
            decoder_num_heads=config.decoder_num_heads,
            average=config.init_ema,
            normalize={name: config.fallback[name] for name in ("mean", "std")},
            seed=config.seed,
        )
        for name, path in models.named(config.models).items()
    ]
    data, split = config.data, config.split
    images.complete_data(data, loaded, name=config.name)
    drawn = {"images": config.images, "order": config.order, "seed": config.seed}
    source = images.select(data, split, **drawn)
    images.picture_source(data, split, config.rows, source)
    if config.cka.on and min(len(source), config.batch_size) < cka.LEAST:
        raise ValueError(
            f"cka needs {cka.LEAST} images or more in a minibatch: split {split!r} "
            f"gives {len(source)} (images={config.images}), batch_size="
            f"{config.batch_size}; give more, or add --config.cka.on=False to the "
            "command of the analysis"
        )
    for model in loaded:  # traces by shapes: a model that does not fit fails here
        capture.check(model, wanted, config.batch_size, mesh)
    pictures.check(config.maps, loaded)
    plain = workdirs.plain(config.to_dict())
    _open(workdir, plain)
    return Job(config, workdir, mesh, loaded, source, wanted)


def _open(workdir: pathlib.Path, plain: dict[str, Any]) -> None:
    """Claims `workdir` for this analysis, which replaces an earlier one.

    Raises:
      ValueError: the directory belongs to another job.
    """
    old = workdirs.read_config(workdir)
    if old is not None and old.get("job") == plain["job"]:
        workdirs.write_json(workdir / "config.json", plain)
    workdirs.open_run(workdir, plain)


def _wanted(
    maps: ConfigDict, features: ConfigDict, similarity: ConfigDict
) -> capture.Wanted:
    """Collects what is wanted by the blocks `attention`, `features` and `cka`."""
    choices.check("attention.compat", maps.compat, list(attention.COMPAT))
    choices.check("features.place", features.place, list(capture.PLACES))
    choices.check("features.pool", features.pool, ["avg", "cls"])
    return capture.Wanted(
        cka=similarity.on,
        attention=maps.on,
        features=features.on,
        point=features.place,
        compat=maps.compat,
        pool=features.pool,
    )


class _Sums:
    """Sums over all images: similarities, and means of each model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.similar = cka.Minibatches()
        self.means = {model.name: attention.Means() for model in job.models}
        self.moments = {model.name: features.Moments() for model in job.models}
        self.seen, self.left_out = 0, 0
        self._size = min(job.config.batch_size, len(job.source))

    def add(self, outs: dict[str, Any], mask: np.ndarray) -> None:
        """Adds a batch of all models; `mask [B]` is true for images that were read."""
        self.seen += int(mask.sum())
        for name, out in outs.items():
            kept = {
                k: out[k] for k in ("entropy", "distance", "similarity") if k in out
            }
            self.means[name].add(kept, mask)
            if "pooled" in out:
                self.moments[name].add(out["pooled"], mask)
        if self.job.wanted.cka:
            if mask.sum() != self._size:
                self.left_out += int(mask.sum())
                return
            grams = np.concatenate([out["grams"] for out in outs.values()])
            self.similar.add(grams[:, mask][:, :, mask])


def measure(job: Job) -> dict[str, Any]:
    """Passes over all images and returns the numbers of analysis.json; see `run`."""
    sums = _Sums(job)
    passes = {m.name: capture.passes(m, job.wanted, job.mesh) for m in job.models}
    index_of_view, opened = images.streams(
        job.config.data, job.config.batch_size, job.models, job.source
    )
    batch_sharding = sharding.batch_sharding(job.mesh)
    with contextlib.ExitStack() as stack:
        for stream in opened:
            stack.callback(stream.close)
        for batches in zip(*opened, strict=True):
            mask = np.all([batch["mask"] > 0 for batch in batches], axis=0)
            outs = {}
            for model in job.models:
                image = batches[index_of_view[model.view]]["image"]
                outs[model.name] = passes[model.name](
                    jax.device_put(jnp.asarray(image), batch_sharding)
                )
            sums.add(outs, mask)
    return _about(job, sums) | _numbers(job, sums)


def _about(job: Job, sums: _Sums) -> dict[str, Any]:
    config = job.config
    return {
        "images": sums.seen,
        "order": config.order,
        "seed": config.seed,
        "split": config.split,
        "data": {k: config.data[k] for k in ("source", "name", "dir")},
        "fingerprint": job.source.fingerprint(),
        "models": {m.name: _describe(m, sums.seen) for m in job.models},
        "notes": _notes(job, sums),
    }


def _describe(model: models.Model, images: int) -> dict[str, Any]:
    encoder = model.encoder
    return {
        "path": model.path,
        "run": None if model.run is None else str(model.run),
        "step": model.step,
        "width": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "patch_size": encoder.patch_size,
        "image_size": list(model.view.size),
        "last_norm": model.last_norm,
        "images": images,
        "fingerprint": array_digest.digest(model.params),
    }


def _numbers(job: Job, sums: _Sums) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    wanted, names = job.wanted, list(sums.means)
    if wanted.cka and sums.similar.count:
        numbers["cka"] = {
            "place": wanted.point,
            "minibatches": sums.similar.count,
            "size": sums.similar.size,
            "pairs": _pairs(job.models, sums.similar.cka()),
        }
    if wanted.attention:
        kinds = ("entropy", "distance")
        numbers["attention"] = {
            n: {kind: sums.means[n].mean(kind).tolist() for kind in kinds}
            for n in names
        }
        numbers["attention_compat"] = wanted.compat
    if wanted.features:
        numbers["features_of"] = {"place": wanted.point, "pool": wanted.pool}
        numbers["features"] = {
            n: {
                "effective_rank": sums.moments[n].effective_rank().tolist(),
                "token_similarity": sums.means[n].mean("similarity").tolist(),
                "spectrum": sums.moments[n].spectrum().tolist(),
            }
            for n in names
        }
    return numbers


def _pairs(loaded: list[models.Model], matrix: np.ndarray) -> list[dict[str, Any]]:
    """Cuts a matrix over all models' layers into blocks, one per pair of models."""
    ends = np.cumsum([0, *(model.encoder.depth + 1 for model in loaded)])
    pairs = []
    for i, one in enumerate(loaded):
        for j, other in list(enumerate(loaded))[i:]:
            block = matrix[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
            values = [[x if np.isfinite(x) else None for x in row] for row in block]
            pairs.append({"rows": one.name, "columns": other.name, "values": values})
    return pairs


def _notes(job: Job, sums: _Sums) -> list[str]:
    """Notes that a reader needs before comparing the models."""
    notes, loaded = [], job.models
    if sums.left_out:
        notes.append(
            f"CKA: {sums.left_out} of {sums.seen} images did not fill a minibatch of "
            f"{min(job.config.batch_size, len(job.source))}; all other figures include "
            "them."
        )
    if sums.seen < len(job.source):
        notes.append(f"{len(job.source) - sums.seen} images could not be read.")
    for what, values in {
        "depths": {m.name: m.encoder.depth for m in loaded},
        "widths": {m.name: m.encoder.width for m in loaded},
        "patches": {
            m.name: f"{_by(m.grid)} of {m.encoder.patch_size} pixels" for m in loaded
        },
        "image sizes": {m.name: _by(m.view.size) for m in loaded},
        "crops": {m.name: images.crop_of(job.config.data, m.view) for m in loaded},
        "head counts": {m.name: m.encoder.num_heads for m in loaded},
    }.items():
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            notes.append(
                f"The models have different {what} ({listed}): {_MEANS[what]}."
            )
    for model in loaded:
        if model.last_norm == "none" and job.wanted.point == "norm1":
            notes.append(
                f"{model.name} has no norm after its last block: its last layer is "
                "shown through a LayerNorm without parameters."
            )
    return notes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


_MEANS = {
    "depths": "their layers are compared all with all, not by number",
    "widths": "effective ranks have different upper bounds, and spectra different "
    "lengths",
    "patches": "entropies have different upper bounds, the logarithms of their "
    "numbers of patches, and attention maps different grids",
    "crops": "they see different parts of the same images; give all the same with "
    "--config.data.eval_crop_fraction",
    "image sizes": "the same images, each resized; distances in pixels are of each "
    "model's own images and cannot be compared",
    "head counts": "heads cannot be compared by number",
}
