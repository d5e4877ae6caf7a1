"""Compiles the training step of a config for a target."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import sharding
from litevit_jax.data import settings, transforms
from litevit_jax.plan import examples, flops, topology
from litevit_jax.train import build, resolve
from litevit_jax.train import start as starts
from litevit_jax.train import state as states
from litevit_jax.warm_start import images, read, start


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run by shapes, on the target's mesh.

    Attributes:
      config: resolved, with `derived`.
      target: the chips planned for.
      mesh: the target's devices.
      design: the step to compile, its state and batch by shapes.
      examples_from: where counts come from: 'data', or 'known' if it is not here.
    """

    config: ConfigDict
    target: topology.Target
    mesh: Mesh
    design: build.BuiltStep
    examples_from: str

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, all files together."""
        fixed = ["teacher"] if self.design.objective.frozen_teacher else []
        return states.saved_bytes(self.design.state, fixed)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradient that the devices add up."""
        trained, _ = self.design.optimizer.split(self.design.state.params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trained))


def plan(config: ConfigDict, target: topology.Target) -> Planned:
    """Designs the run of `config` for `target`.

    Raises:
      ValueError, KeyError, OSError: the user's mistake, named in the message.
    """
    config = resolve.settle(config)
    if not target.on_cpu and config.objective.dtype == "auto":
        # 'auto' would look at this process's own devices, which are CPUs.
        resolve.assign(config.objective, {"dtype": "bfloat16"})
    if config.init_required and not config.init:
        resolve.assign(config, {"init": "random"})  # a plan asks for sizes alone
    mesh = sharding.make_mesh(**config.mesh, devices=topology.devices(target))
    loaded = start.init_checkpoint(config)
    images.settle(config, loaded, _teach(config.teacher, config.objective))
    source, origin = examples.source(config.data)
    transforms.train_ops(**settings.image_settings(config.data))
    design = build.build_step(config, mesh, source, target.chip.hbm)
    return Planned(config, target, mesh, design, origin)


def _teach(path: str | None, objective: ConfigDict) -> read.Checkpoint | None:
    """Reads the named teacher; without one, its block must give its sizes."""
    block = objective.get("teacher")  # most objectives have none
    if block is None or path:
        return start.teacher_checkpoint(path, objective)
    if not (block.get("variant") or block.get("width")):
        raise ValueError(
            f"{starts.teacher_missing_error(objective.name)}; for a plan its "
            "size is enough, as in --config.objective.teacher.variant=large"
        )
    return None


def model_flops(planned: Planned) -> int:
    """FLOPs of the matrix products of one step, over all devices.

    Health metrics, which only logged steps compute, are left out.
    """
    config = planned.config.copy_and_resolve_references()
    resolve.assign(config.log, {"health": False})
    source = examples.Counted(
        config.derived.train_examples,
        config.derived.num_classes,
        settings.annotations_of(config.data),
    )
    memory = planned.target.chip.hbm
    quiet = build.build_step(config, planned.mesh, lambda split: source, memory)
    return flops.count(quiet.step, quiet.state, quiet.batch)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Turns JAX's compilation cache off inside the context.

    The cache writes programs for described devices, but cannot read them again.
    """
    enabled = jax.config.jax_enable_compilation_cache  # pyrefly: ignore
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides once whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def compile_step(planned: Planned) -> tuple[Any, float]:
    """Compiles the step: (the compiled step, seconds it took).

    Raises:
      MemoryError: the program does not fit; with the compiler's message.
    """
    start = time.monotonic()
    lowered = planned.design.step.lower(planned.design.state, planned.design.batch)
    try:
        with without_cache():
            compiled = lowered.compile(topology.compiler_options(planned.target))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(str(error)) from None
    return compiled, time.monotonic() - start
