"""What a run takes from another: parameters, encoder and data.

`config.init` names the run whose parameters are loaded; `config.like` one that only
lends its encoder and data (to compare with random parameters).
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import checkpoint
from litevit_jax.models import vit


def inherit(config: ConfigDict) -> checkpoint.Checkpoint | None:
    """Reads `init`, and takes what the config leaves open from its run (or `like`'s).

    Open are fields of the encoder that are None, and the data if its source is None.
    `config.encoder_default` fills what then is still open of the encoder.

    Raises:
      ValueError: nothing says where to start, or which encoder or data.
    """
    if config.get("init_required") and not config.init:
        raise ValueError(
            f"{config.name} evaluates a pre-trained encoder: which? Give its run with "
            "--config.init=RUN_DIR (or a step in it, RUN_DIR/checkpoints/STEP), or "
            "--config.init=random for one that never learned"
        )
    loaded = None
    if config.init and config.init != "random":
        loaded = checkpoint.read_params(config.init)
    like = None if loaded is None else loaded.config
    if config.like:
        like = _run_config(config.like)
    encoder = config.objective.encoder
    if like is not None:
        theirs = like["objective"]["encoder"]
        if encoder.variant is None:
            _check_same(theirs, encoder, config.init or config.like)
            ours = without_none(encoder.to_dict())
            encoder.update({**theirs, **ours})
        if config.data.source is None:
            _take_data(config, like)
    elif "encoder_default" in config:
        open_fields = {
            k: v for k, v in config.encoder_default.items() if not encoder[k]
        }
        encoder.update(open_fields)
    if config.data.source is None or not (encoder.variant or encoder.width):
        raise ValueError(
            f"{config.name}: which encoder and data? Give a pre-training run with "
            "--config.init=RUN_DIR; or, to start from --config.init=random, either "
            "--config.like=RUN_DIR (its encoder and data) or a variant (:digits)"
        )
    return loaded


def _run_config(path: str) -> dict[str, Any]:
    file = pathlib.Path(path) / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"--config.like={path}: no run directory there (no config.json)"
        )
    return json.loads(file.read_text())


def _check_same(theirs: dict[str, Any], ours: ConfigDict, where: str) -> None:
    for name, value in ours.items():
        if value is not None and theirs.get(name) not in (None, value):
            raise ValueError(
                f"objective.encoder.{name}={value}, but the checkpoint {where} has "
                f"{name}={theirs[name]}: another architecture; leave the field out to "
                "take the checkpoint's"
            )


def _take_data(config: ConfigDict, like: dict[str, Any]) -> None:
    """The other run's data and normalisation; what the recipe sets stays."""
    ours = {k: v for k, v in config.data.items() if v is not None}
    theirs = {
        k: tuple(v) if isinstance(v, list) else v for k, v in like["data"].items()
    }
    config.data.update({**theirs, **ours})
    config.augment.normalize.update(
        {k: tuple(v) for k, v in like["augment"]["normalize"].items()}
    )


def check(params: Any, loaded: Any, config: ConfigDict) -> None:
    if loaded is None:
        return
    heads = loaded.config["objective"]["encoder"]
    ours = without_none(config.objective.encoder.to_dict())
    theirs = without_none(heads)
    if _num_heads(ours) != _num_heads(theirs):
        raise ValueError(
            f"{config.init}: the checkpoint's encoder has {_num_heads(theirs)} heads, "
            f"objective.encoder has {_num_heads(ours)}; the shapes agree but the "
            "function does not: leave num_heads out to take the checkpoint's"
        )
    fill(params, loaded, config)


def _num_heads(encoder: dict[str, Any]) -> int:
    return vit.make_encoder(**encoder).num_heads


def fill(params: Any, loaded: checkpoint.Checkpoint, config: ConfigDict) -> Any:
    try:
        return checkpoint.fill(
            params, loaded.params, load=config.init_load, skip=config.init_skip
        )
    except ValueError as error:
        raise ValueError(f"--config.init={config.init}: {error}") from None


def without_none(block: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in block.items()
        if value is not None
    }
