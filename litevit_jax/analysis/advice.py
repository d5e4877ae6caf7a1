"""Two sentences from the user's own numbers, with the numbers they rest on."""

from __future__ import annotations

import math
from typing import Any

Curves = dict[str, dict[str, dict[int, float]]]

_SETTINGS = {"rich": "With many images", "poor": "With few images"}


def margin(n: int, top1: float) -> float:
    """Two standard errors of an accuracy in percent, of `n` images."""
    share = min(max(top1 / 100, 1 / max(n, 1)), 1 - 1 / max(n, 1))
    return 200 * math.sqrt(share * (1 - share) / max(n, 1))


def of_layers(found: Curves, depth: int, slack: float = 0.9) -> list[str]:
    """What the curves of a layer study say of each setting, a sentence each.

    The blocks that suffice are the fewest whose keeping has `slack` of the gain of the
    whole checkpoint over a random start.
    """
    said = []
    for setting, begin in _SETTINGS.items():
        kept = found.get("keep_first", {}).get(setting, {})
        start = found.get("random", {}).get(setting, {}).get(0)
        if start is None or depth not in kept:
            continue
        gain = kept[depth] - start
        if gain <= 0:
            said.append(
                f"{begin} the checkpoint does not help: {kept[depth]:.1f} with all of "
                f"it, {start:.1f} from a random start."
            )
            continue
        fewest = min(k for k in kept if kept[k] - start >= slack * gain)
        said.append(
            f"{begin} the first {fewest} of {depth} blocks carry "
            f"{100 * (kept[fewest] - start) / gain:.0f} % of the gain: "
            f"{kept[fewest]:.1f}, where all blocks give {kept[depth]:.1f} and a random "
            f"start {start:.1f}."
        )
    return said


def of_probes(probes: dict[str, dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Which encoder and how many layers to tune, from results of layer probes.

    Args:
      probes: name of an encoder -> the last result of evaluator `layers`: 'top1' of the
        best block, 'block', 'n', and 'table' of all blocks.

    Returns:
      Two sentences; and the numbers they rest on, a row for each encoder.

    Raises:
      ValueError: there is nothing to compare, or a result is none of `layers`.
    """
    rows = []
    for name, last in probes.items():
        if "table" not in last or "block" not in last:
            raise ValueError(
                f"{name}: no result of the evaluator 'layers'; make one with "
                "configs/layer_probe.py"
            )
        rows.append(_row(name, last))
    if not rows:
        raise ValueError(
            "no results of configs/layer_probe.py among --config.models; give the "
            "directories that it wrote"
        )
    rows.sort(key=lambda row: -row["top1"])
    best = rows[0]
    first = f"Start from {best['name']}: its best block tells {best['top1']:.1f} %"
    near = [r["name"] for r in rows[1:] if best["top1"] - r["top1"] <= best["margin"]]
    if near:
        first += (
            f", but {', '.join(near)} cannot be told from it on {best['n']:,} images "
            f"(two standard errors are {best['margin']:.1f} points)."
        )
    elif len(rows) > 1:
        first += (
            f", {best['top1'] - rows[1]['top1']:.1f} points more than "
            f"{rows[1]['name']}, where two standard errors of {best['n']:,} images "
            f"are {best['margin']:.1f}."
        )
    else:
        first += f" of {best['n']:,} images; nothing was given to compare it with."
    return f"{first} {_tuning(best)}", rows


def _row(name: str, last: dict[str, Any]) -> dict[str, Any]:
    linear = [row["linear"] for row in last["table"]]
    top1 = linear[last["block"]]
    within = margin(last["n"], top1)
    enough = next(i for i, x in enumerate(linear) if top1 - x <= within)
    return {
        "name": name,
        "top1": top1,
        "block": last["block"] + 1,
        "last": linear[-1],
        "enough": enough + 1,
        "depth": len(linear),
        "n": last["n"],
        "margin": within,
    }


def _tuning(row: dict[str, Any]) -> str:
    """How many layers: those above the block after which nothing is gained."""
    tune = row["depth"] - row["enough"]
    if not tune:
        return (
            f"Its accuracy rises up to the last of {row['depth']} blocks "
            f"({row['last']:.1f} %), so none of them is in the way: tune little, the "
            "head and the last block."
        )
    loses = row["top1"] - row["last"]
    after = f"the last {loses:.1f} points less ({row['last']:.1f} %)"
    if loses <= row["margin"]:
        after = f"those after it add nothing ({row['last']:.1f} % after the last)"
    return (
        f"Its block {row['enough']} of {row['depth']} already tells as much as its "
        f"best, and {after}, so tune the last {tune} block{'s' * (tune > 1)} and keep "
        f"the first {row['enough']}."
    )
