"""The analyses that several runs hold, as one: side by side what can be compared."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from litevit_jax.report import run_record

_SETTINGS = ("attention_compat", "features_of")


def of_runs(runs: Sequence[run_record.Run]) -> dict[str, Any]:
    """As analysis.json, of all runs that hold one; {} if none does.

    Each run's encoder has the name of the run, whatever its directory was called, and
    files of pictures their whole path. Similarity is within each run alone: what two
    runs look like to each other needs both at once (configs/analysis.py). A run whose
    numbers mean something else than those of the first is left out, with a note.
    """
    found: dict[str, Any] = {}
    for run in runs:
        if not run.analysis:
            continue
        one = run.analysis if len(runs) == 1 else _named(run.analysis, run.name)
        one = _placed(one)
        if not found:
            found = one
        elif _settings(one) != _settings(found):
            found["notes"].append(
                f"{run.name}: its analysis was made with other settings "
                f"({_settings(one)}; the first {_settings(found)}) and is left out."
            )
        else:
            found = _both(found, one)
    return found


def _settings(found: dict[str, Any]) -> str:
    of = {k: found[k] for k in _SETTINGS if k in found}
    flat = {**of.pop("features_of", {}), **of}
    return ", ".join(f"{k} {v}" for k, v in flat.items())


def _named(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The same with its only model called `name`; several are told apart by theirs."""
    old = list(found["models"])
    new = {o: name if len(old) == 1 else f"{name}_{o}" for o in old}
    named = dict(found)
    for key in ("models", "attention", "features"):
        if key in found:
            named[key] = {new[o]: value for o, value in found[key].items()}
    for key in ("maps", "reconstructions"):
        named[key] = [{**x, "model": new[x["model"]]} for x in found.get(key, [])]
    named["notes"] = [f"{name}: {note}" for note in found.get("notes", [])]
    named["picture_notes"] = []
    for note in found.get("picture_notes", []):
        model, colon, said = note.partition(":")
        named["picture_notes"].append(f"{new.get(model, model)}{colon}{said}")
    if "cka" in found:
        of = {k: found["cka"][k] for k in ("minibatches", "size")}
        pairs = [
            {**p, **of, "rows": new[p["rows"]], "columns": new[p["columns"]]}
            for p in found["cka"]["pairs"]
        ]
        named["cka"] = {**found["cka"], "pairs": pairs}
    return named


def _placed(found: dict[str, Any]) -> dict[str, Any]:
    place = pathlib.Path(found["place"]).absolute()  # a report lies elsewhere
    placed = dict(found)
    for key in ("maps", "reconstructions"):
        rows = found.get(key, [])
        placed[key] = [{**x, "file": str(place / x["file"])} for x in rows]
    for key in ("notes", "picture_notes"):
        placed[key] = list(found.get(key, []))
    return placed


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {**other, **one}
    for key in ("models", "attention", "features"):
        found[key] = {**one.get(key, {}), **other.get(key, {})}
    for key in ("maps", "reconstructions", "notes", "picture_notes"):
        found[key] = [*one[key], *other[key]]
    if "cka" in one and "cka" in other:
        found["cka"] = {
            **one["cka"],
            "pairs": one["cka"]["pairs"] + other["cka"]["pairs"],
        }
    return found
