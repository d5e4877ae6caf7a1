"""Builds the objective of a run or a file from its saved config, to predict with."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from litevit_jax import registry
from litevit_jax.models import layers, vit
from litevit_jax.objectives import base as objectives
from litevit_jax.train import resolve
from litevit_jax.warm_start import Checkpoint, detectors

_HEAD = "head/fc/kernel"


def objective_of(run: dict[str, Any]) -> Any:
    """Builds the objective of a run from its saved config."""
    return make(block_of(run))


def block_of(run: dict[str, Any]) -> dict[str, Any]:
    """Completes the objective's block of a run's saved config."""
    block = tuples(run["objective"])
    derived = run["derived"]
    return block | objectives.complete(resolve.without_none(block), derived)


def block_of_file(loaded: Checkpoint) -> dict[str, Any]:
    """Returns the block of an objective that predicts what a file's parameters can.

    Raises:
      ValueError: they are those of a detector's encoder alone.
    """
    config, params = loaded.config, loaded.params
    if detectors.is_one(loaded.directory, params):
        return tuples(detectors.block(config, params))
    encoder, pool = dict(config["objective"]["encoder"]), config["objective"]["pool"]
    encoder.pop("grid")
    encoder["final_norm"] = "encoder/norm/scale" in params
    objective = {"name": "encoder", "encoder": encoder, "pool": pool}
    kernel = params.get(_HEAD)
    if kernel is not None:
        objective |= {"name": "supervised", "num_classes": kernel.shape[1]}
        objective["loss"] = config["objective"]["loss"]
    if any(name.startswith("head_dist/") for name in params):
        # Two heads are read with the second one's teacher; none of it is loaded.
        objective |= {"teacher": dict(encoder), "distill": {}}
    return objective


def make(block: dict[str, Any]) -> Any:
    """Builds the objective of a complete block; 'encoder' is one that only encodes."""
    block = resolve.without_none(block)
    name = block.pop("name")
    if name == "encoder":
        return Encoder(vit.make_encoder(**block["encoder"]), block.get("pool"))
    return registry.make("objectives", name, **block)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Predicts features, as a file without a classifier can.

    With `pool` they are pooled and normalised, as in a classifier without its last
    layer.
    """

    encoder: vit.Encoder
    pool: str | None = None
    num_views: ClassVar[int] = 1
    multi_label: ClassVar[bool] = False

    def init(self, key: jax.Array, batch: dict[str, Any]) -> objectives.Variables:
        """Creates the parameters 'encoder' and, with `pool`, 'head': {'fc_norm'}."""
        image = jax.numpy.zeros((1, *batch["image"].shape[1:]))
        params = {"encoder": self.encoder.init(key, image)["params"]}
        if self.pool is not None:
            pooled = jax.numpy.zeros((1, self.encoder.width))
            params["head"] = {"fc_norm": self._norm.init(key, pooled)["params"]}
        return objectives.Variables(params, {}, {})

    def predict(
        self, params: Any, model_state: Any, batch: dict[str, Any]
    ) -> dict[str, jax.Array]:
        """Returns features [B, D] by name, see `vit.features_of`."""
        del model_state
        encoded: Any = self.encoder.apply({"params": params["encoder"]}, batch["image"])
        features = vit.features_of(*encoded)
        if self.pool is not None:
            norm = {"params": params["head"]["fc_norm"]}
            pooled = vit.pool_tokens(encoded[0], self.pool)
            features["features"] = jax.numpy.asarray(self._norm.apply(norm, pooled))
        return features

    @property
    def _norm(self) -> layers.LayerNorm:
        return layers.LayerNorm("float32")


def tuples(value: Any) -> Any:
    """Turns lists, which JSON makes of tuples, into tuples again, at any depth."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return value
