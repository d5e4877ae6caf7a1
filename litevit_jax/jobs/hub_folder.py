"""Folders for timm and hubs, as targets of a conversion."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from litevit_jax.report import run_record
from litevit_jax.warm_start import Checkpoint
from litevit_jax.weights import exportable as models
from litevit_jax.weights import timm_folder

Results = Sequence[tuple[str, str, float]]  # (evaluation, metric, value)


def check_new(folder: pathlib.Path, kind: str | None) -> pathlib.Path:
    """Returns a folder for timm, which must be new or empty.

    Raises:
      ValueError: another format than timm's.
      FileExistsError: something is there.
    """
    if kind not in (None, "timm"):
        raise ValueError(
            f"--config.target={folder}/ is a folder for timm, --config.format={kind}; "
            "leave the format out, or name a file"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"--config.target={folder}/ is there already, and not an empty folder; "
            "remove it or name another"
        )
    return folder


def texts(name: str, model: models.Model, results: Results) -> dict[str, str]:
    """Returns the texts of a folder for timm, by name."""
    return {
        "config.json": json.dumps(timm_folder.config(model), indent=2) + "\n",
        "README.md": timm_folder.card(name, model, results),
    }


def results_of(loaded: Checkpoint, *, average: bool) -> Results:
    """Returns what a run recorded of its parameters at the step that was read.

    A run that keeps an average has evaluated that.
    """
    kept = (loaded.config.get("optimizer") or {}).get("ema_decay") is not None
    if kept != average:
        return ()
    rows = []
    for title, result in run_record.results(loaded.directory, []).items():
        metric = result["metric"]
        for row in (result["last"], *result["history"]):
            if row.get("step") == loaded.step and isinstance(row.get(metric), float):
                rows.append((title, metric, row[metric]))
                break
    return tuple(rows)
