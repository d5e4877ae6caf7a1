"""Merges the analyses that several runs hold, where they can be compared."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from litevit_jax.report import run_record

_SETTINGS = ("attention_compat", "features_of")
_PICTURES = ("maps", "patches", "reconstructions")


def of_runs(runs: Sequence[run_record.Run]) -> dict[str, Any]:
    """Returns the analyses of all runs as one, as analysis.json; {} if none has one.

    Each run's encoder has the name of the run, whatever its directory was called, and
    files of pictures their whole path. Similarity is within each run alone: what two
    runs look like to each other needs both at once (configs/analysis.py). A run whose
    numbers mean something else than those of the first is left out, with a note.
    """
    merged: dict[str, Any] = {}
    for run in runs:
        if not run.analysis:
            continue
        one = run.analysis if len(runs) == 1 else _renamed(run.analysis, run.name)
        one = _with_whole_paths(one)
        if not merged:
            merged = one
        elif _settings(one) != _settings(merged):
            merged["notes"].append(
                f"{run.name}: its analysis was made with other settings "
                f"({_settings(one)}; the first {_settings(merged)}) and is left out."
            )
        else:
            merged = _both(merged, one)
    return merged


def _settings(analysis: dict[str, Any]) -> str:
    of = {k: analysis[k] for k in _SETTINGS if k in analysis}
    flat = {**of.pop("features_of", {}), **of}
    return ", ".join(f"{k} {v}" for k, v in flat.items())


def _renamed(analysis: dict[str, Any], name: str) -> dict[str, Any]:
    """Calls the only model `name`; several keep their names, with `name` before."""
    old = list(analysis["models"])
    new = {o: name if len(old) == 1 else f"{name}_{o}" for o in old}
    renamed = dict(analysis)
    for key in ("models", "attention", "features"):
        if key in analysis:
            renamed[key] = {new[o]: value for o, value in analysis[key].items()}
    for key in _PICTURES:
        renamed[key] = [{**x, "model": new[x["model"]]} for x in analysis.get(key, [])]
    renamed["notes"] = [f"{name}: {note}" for note in analysis.get("notes", [])]
    renamed["picture_notes"] = []
    for note in analysis.get("picture_notes", []):
        model, colon, text = note.partition(":")
        renamed["picture_notes"].append(f"{new.get(model, model)}{colon}{text}")
    if "cka" in analysis:
        of = {k: analysis["cka"][k] for k in ("minibatches", "size")}
        pairs = [
            {**p, **of, "rows": new[p["rows"]], "columns": new[p["columns"]]}
            for p in analysis["cka"]["pairs"]
        ]
        renamed["cka"] = {**analysis["cka"], "pairs": pairs}
    return renamed


def _with_whole_paths(analysis: dict[str, Any]) -> dict[str, Any]:
    """Makes paths of pictures absolute, as the report lies in another directory."""
    directory = pathlib.Path(analysis["directory"]).absolute()
    copy = dict(analysis)
    for key in _PICTURES:
        rows = analysis.get(key, [])
        copy[key] = [{**x, "file": str(directory / x["file"])} for x in rows]
    for key in ("notes", "picture_notes"):
        copy[key] = list(analysis.get(key, []))
    return copy


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**other, **one}
    for key in ("models", "attention", "features"):
        merged[key] = {**one.get(key, {}), **other.get(key, {})}
    for key in (*_PICTURES, "notes", "picture_notes"):
        merged[key] = [*one[key], *other[key]]
    if "cka" in one and "cka" in other:
        merged["cka"] = {
            **one["cka"],
            "pairs": one["cka"]["pairs"] + other["cka"]["pairs"],
        }
    return merged
