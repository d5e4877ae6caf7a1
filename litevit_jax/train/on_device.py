"""Trains on a set that the devices hold: whether they do, and the step for it.

The host draws which images to crop, and where; the devices crop them, and do several
updates in one call.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import distributed, sharding
from litevit_jax.augment import crop
from litevit_jax.data import cache, calls, device, draws, resident, settings
from litevit_jax.train import gpu_memory
from litevit_jax.train import workdir as workdirs
from litevit_jax.train.job import TrainState
from litevit_jax.trees import PyTree

if TYPE_CHECKING:
    from litevit_jax.data.sources.base import Source
    from litevit_jax.objectives.base import Batch, Metrics

Feed = Callable[[int], Generator[device.Fed, None, None]]
Update = Callable[["TrainState", "Batch"], tuple[TrainState, "Metrics"]]


@dataclasses.dataclass(frozen=True)
class Held:
    """The training images of a run on its devices.

    Attributes:
      columns: uint8 `[N, w, h, C]` on each device, or `[D, N / D, w, h, C]`, divided
        over D of them.
      labels: int32 `[N]`.
      seed: uint32, of the run; an argument of its program, which serves all seeds.
      drawn: which of them are cropped, and where.
      scales: as in `calls.Calls`.
      size: (H, W) of a crop.
      mesh: of the run.
      most: updates of a call, at most.
      most_each: bytes of each device that these images and evaluations may take.
    """

    columns: jax.Array
    labels: jax.Array
    seed: jax.Array
    drawn: draws.Draws
    scales: np.ndarray
    size: tuple[int, int]
    mesh: Mesh
    most: int
    most_each: int

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """The arrays that a call brings along."""
        return {"columns": self.columns, "labels": self.labels, "seed": self.seed}

    def memory_left(self) -> int:
        """Returns how many bytes of a device's memory JAX may use besides."""
        return gpu_memory.memory_of(self.mesh) - self.most_each

    def for_evaluations(self) -> int:
        """Returns how many bytes of each device evaluations may keep."""
        return self.most_each - self.columns.addressable_shards[0].data.nbytes

    def call(self, batch_size: int) -> PyTree:
        """Returns a call by shape, with its layout."""
        layout = sharding.slice_sharding(self.mesh)
        each = (self.most, batch_size)
        box = (*each, self.drawn.views, len(crop.BOX))
        rows = {
            "index": jax.ShapeDtypeStruct(each, jnp.int32, sharding=layout),
            "box": jax.ShapeDtypeStruct(box, jnp.float32, sharding=layout),
        }
        whole = sharding.replicated(self.mesh)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        held = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            self.arrays,
        )
        return {"held": held, "rows": rows, "updates": count}

    def read(self, batch: Batch) -> tuple[Batch, Callable[[Batch], Batch]]:
        """Returns the rows of one update, and what adds images to a part of them."""
        rows = {"index": batch["index"], "box": batch["box"]}
        rows["label"] = batch["labels"][rows["index"]]
        return rows, functools.partial(self._cropped, batch["columns"])

    def _cropped(self, columns: jax.Array, part: Batch) -> Batch:
        """Replaces the boxes of a part of the batch by their images."""
        images = self._chosen(columns, part["index"])
        boxes = jnp.moveaxis(part["box"], 1, 0)
        views = [crop.resized_crops(images, box, self.size) for box in boxes]
        rest = {name: x for name, x in part.items() if name != "box"}
        if len(views) == 1:
            return {**rest, "image": views[0]}
        return {**rest, "views": jnp.stack(views)}

    def _chosen(self, columns: jax.Array, index: jax.Array) -> jax.Array:
        """Returns the images `[B, w, h, C]` of examples `index`."""
        if columns.ndim == 4:
            return columns[index]
        # Each device looks in its own part: the parts need not come together.
        parts, each = columns.shape[:2]
        row = index - each * jnp.arange(parts)[:, None]
        images = jax.vmap(lambda part, rows: part[rows])(
            columns, jnp.clip(row, 0, each - 1)
        )
        inside = ((row >= 0) & (row < each))[..., None, None, None]
        images = jnp.where(inside, images, 0).sum(axis=0, dtype=jnp.uint8)
        layout = sharding.batch_sharding(self.mesh)
        return jax.lax.with_sharding_constraint(images, layout)

    def looped(self, update: Update, state: TrainState) -> jax.stages.Wrapped:
        """Jits (state, call) -> (state, metrics `[most]` of each update).

        One program does any number of updates, so that no bit depends on how many.

        Args:
          update: (state, batch) -> (state, metrics) of one.
          state: the layout of its arrays.
        """
        one = jax.jit(update)  # traced once, for its shapes and for the loop

        def train_call(
            state_now: TrainState, call: PyTree
        ) -> tuple[TrainState, Metrics]:
            def batch_of(number: jax.Array | int) -> Batch:
                return {
                    **call["held"],
                    **{k: x[number] for k, x in call["rows"].items()},
                }

            def body(
                number: jax.Array, carry: tuple[TrainState, Metrics]
            ) -> tuple[TrainState, Metrics]:
                new, metrics = one(carry[0], batch_of(number))
                new = jax.lax.with_sharding_constraint(new, state)
                rows = {k: x.at[number].set(metrics[k]) for k, x in carry[1].items()}
                return new, rows

            shapes = jax.eval_shape(one, state_now, batch_of(0))[1]
            zeros = {k: jnp.zeros(self.most, x.dtype) for k, x in shapes.items()}
            return jax.lax.fori_loop(0, call["updates"], body, (state_now, zeros))

        rows = sharding.slice_sharding(self.mesh)
        whole = sharding.replicated(self.mesh)
        held = {name: x.sharding for name, x in self.arrays.items()}
        return jax.jit(
            train_call,
            donate_argnums=0,
            in_shardings=(state, {"held": held, "rows": rows, "updates": whole}),
            out_shardings=(state, whole),
        )


def open_set(
    data: ConfigDict,
    mesh: Mesh,
    source: Callable[[str], Source],
    workdir: pathlib.Path,
    *,
    steps_per_call: int | str,
    seed: int,
) -> tuple[Held | None, list[str]]:
    """Reads the training images onto the devices, if `data` says so and they fit.

    Returns:
      The images, or None if the host crops them; and lines for the start.

    Raises:
      ValueError: a setting that contradicts another, or none that is known; the run
        began with its images on devices, and they do not fit.
      pipeline.BadDataError: too many images cannot be read.
    """
    setting, most = cache.setting(data), steps_per_call
    at_most = _updates(most)
    if (host := _why_host(setting, data, workdir)) is not None:
        if most != "auto" and at_most > 1:
            raise ValueError(
                f"steps_per_call={most} with data.cache={setting}: several updates in "
                "one call take their images from the devices; set "
                "--config.data.cache=device, or leave steps_per_call=auto"
            )
        return None, [f"images are cropped on the host: {host}"] if host else []
    images, most_each = source("train"), cache.most_on_device(mesh, data.cache_gib)
    ignored = f"; steps_per_call={most} has no effect" if most != "auto" else ""
    if images.multi_label:
        return None, [_several_labels(setting) + ignored]
    try:
        least = min(most_each * mesh.size, cache.most_here())
        read = resident.load(images, data, least)
    except resident.TooLargeError as error:
        why = f"{error} GiB ({_bounds(most_each, mesh, data)})"
        if distributed.run_on_primary(lambda: _recorded(workdir)) == "device":
            raise ValueError(
                f"--workdir={workdir}: this run began with its images on the devices "
                f"and goes on so, but {why}. Raise --config.data.cache_gib, or resume "
                "where they fit"
            ) from None
        return None, [f"images are cropped on the host: {why}{ignored}"]
    sharded = read.columns.nbytes > most_each
    held = Held(
        *_put(read, mesh, sharded=sharded),
        seed=sharding.put(np.uint32(seed), sharding.replicated(mesh)),
        drawn=_drawn(read, images, data, seed),
        scales=read.scales,
        size=settings.image_size(data),
        mesh=mesh,
        most=at_most,
        most_each=most_each,
    )
    where = (
        "divided over the devices" if sharded and mesh.size > 1 else "on each device"
    )
    return held, [f"images are cropped on the device: {read.note}, {where}"]


def _bounds(most_each: int, mesh: Mesh, data: ConfigDict) -> str:
    """Says what a set may take of the devices, and of the host that decodes it."""
    return (
        f"{mesh.size} x {most_each / cache.GIB:.3g} on the devices, a fifth of their "
        f"memory and at most data.cache_gib={data.cache_gib}; "
        f"{cache.most_here() / cache.GIB:.3g} on the host, half of its memory, divided "
        "among its processes"
    )


def _drawn(
    read: resident.Resident, images: Source, data: ConfigDict, seed: int
) -> draws.Draws:
    """Returns which of the images are cropped where."""
    crop, sampling = resident.crop_of(data), images.sampling
    return draws.Draws(crop, read.sizes, read.readable, seed, data.views, sampling)


def _several_labels(setting: str) -> str:
    """Says why the host crops images of several labels; an error if devices must."""
    if setting == "device":
        raise ValueError(
            "data.cache=device keeps one label an image, and these have several; leave "
            "the setting out, or use --config.data.cache=host"
        )
    return "images are cropped on the host: they have several labels each"


def _updates(setting: int | str) -> int:
    """Returns the most updates of a call by `config.steps_per_call`."""
    text = str(setting)
    if text == "auto":
        return calls.MOST
    if text.isascii() and text.isdigit() and 0 < int(text) <= 1024:
        return int(text)
    raise ValueError(
        f"steps_per_call={text}: expected auto, or the most updates of one call, 1 to "
        "1024"
    )


def _why_host(setting: str, data: ConfigDict, workdir: pathlib.Path) -> str | None:
    """Says why the host crops the images ('': it was asked to); None: devices do.

    'auto' stays with what the run in `workdir` began with, if there is one.
    """
    why_not = resident.why_not(data)
    if setting == "device":
        if why_not:
            raise ValueError(
                f"data.cache=device: {why_not}; leave the setting out, or use "
                "--config.data.cache=host"
            )
        return None
    if setting != "auto" or why_not:
        return why_not if setting == "auto" else ""
    recorded = distributed.run_on_primary(functools.partial(_recorded, workdir))
    return "the run began so" if recorded == "host" else None


def _recorded(workdir: pathlib.Path) -> str | None:
    """Returns where the run in `workdir` crops its images; None without a run."""
    try:
        saved = workdirs.read_config(workdir)
    except OSError:  # a path that cannot be one: the run's begin refuses it by name
        return None
    if saved is None:
        return None
    return saved.get("derived", {}).get("cropped_on", "host")


def _put(
    read: resident.Resident, mesh: Mesh, *, sharded: bool
) -> tuple[jax.Array, jax.Array]:
    """Puts columns and labels on the devices; see `Held`."""
    columns, whole = read.columns, sharding.replicated(mesh)
    labels = sharding.put(read.labels, whole)
    if not sharded:
        return sharding.put(columns, whole), labels
    each = -(-len(columns) // mesh.size)
    shape = (mesh.size, each, *columns.shape[1:])

    def part(index: Any) -> np.ndarray:
        """Returns the part of a device, without a copy of all images."""
        first, last, _ = index[0].indices(mesh.size)
        rows = columns[first * each : last * each]
        padding = [(0, (last - first) * each - len(rows)), *[(0, 0)] * 3]
        return np.pad(rows, padding).reshape(last - first, *shape[1:])

    layout = sharding.batch_sharding(mesh)
    return jax.make_array_from_callback(shape, layout, part), labels


def feeder(
    held: Held | None,
    mesh: Mesh,
    stream: Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    batch_size: int,
    every: Sequence[int],
    total_steps: int,
) -> Feed:
    """Returns a function from a step to the calls from there on.

    Args:
      held: the images on the devices; None takes the batches of `stream`.
      mesh: of the run.
      stream: step -> host batches.
      batch_size: of the run.
      every: numbers of updates after which something happens; 0: never.
      total_steps: of the run.
    """
    if held is None:
        return lambda step: device.feed(stream(step), mesh)
    return calls.Calls(
        draws=held.drawn,
        scales=held.scales,
        held=held.arrays,
        mesh=mesh,
        batch_size=batch_size,
        most=held.most,
        stops=calls.stops_at(every, total_steps),
    ).feed
