"""Reads what a run takes from another: encoder, images, parameters, a teacher."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import numpy as np


class Checkpoint(NamedTuple):
    """Parameters of a run at a step, read without its training state."""

    params: dict[str, np.ndarray]  # 'encoder/norm/scale' -> array
    config: dict[str, Any]
    step: int
    directory: pathlib.Path
    model_state: dict[str, np.ndarray] = {}  # noqa: RUF012  running statistics
