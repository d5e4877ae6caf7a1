"""Advises from the user's own numbers, and claims no more than these can tell.

Accuracies are in percent. Two of them differ if they are further apart than two
standard errors of their difference, as if each had been measured on images of its own;
on the same images the true error is smaller.
"""

from __future__ import annotations

import math
from typing import Any

Curves = dict[str, dict[str, dict[int, float]]]

_SETTINGS = {"rich": "With many images", "poor": "With few images"}
TOKENS = {"cls": "class token", "avg": "mean of the patches"}


def standard_error(n: int, top1: float) -> float:
    """Returns the standard error of an accuracy in percent of `n` images; never 0."""
    n = max(n, 1)
    least = 1 / max(n, 2)
    share = min(max(top1 / 100, least), 1 - least)
    return 100 * math.sqrt(share * (1 - share) / n)


def margin(n: int, one: float, other: float) -> float:
    """Returns two standard errors of the difference of accuracies of `n` images."""
    return 2 * math.hypot(standard_error(n, one), standard_error(n, other))


def _apart(n: int, one: float, other: float) -> bool:
    """Tells whether the first accuracy is above the second, beyond the error."""
    return one - other > margin(n, one, other)


def of_layers(curves: Curves, depth: int, n: int) -> list[str]:
    """Says what the curves of a layer study tell of each setting, a sentence each.

    Args:
      curves: kind -> setting -> {k: accuracy in percent}.
      depth: blocks of the encoder.
      n: test images, the same for all.
    """
    sentences = []
    for setting, begin in _SETTINGS.items():
        kept = curves.get("keep_first", {}).get(setting, {})
        start = curves.get("random", {}).get(setting, {}).get(0)
        if start is not None and depth in kept:
            sentences.append(f"{begin} {_of_setting(kept, start, depth, n)}")
    return sentences


def _of_setting(kept: dict[int, float], start: float, depth: int, n: int) -> str:
    """Returns the end of the sentence: how good the checkpoint is, and which blocks.

    The blocks that suffice are the fewest from which on nothing differs from the whole.
    """
    whole = kept[depth]
    both = f"{whole:.1f} % of {n:,} test images against {start:.1f} %"
    within = f"two standard errors of the difference are {margin(n, whole, start):.1f}"
    if _apart(n, start, whole):
        return f"the checkpoint is worse than a random start: {both}; {within}."
    if not _apart(n, whole, start):
        return f"the checkpoint cannot be told from a random start: {both}; {within}."
    helps = f"the checkpoint is better than a random start: {both}"
    lower = [k for k in kept if _apart(n, whole, kept[k])]
    enough = min(k for k in kept if k > max(lower, default=-1))
    if len(kept) == 1:
        return f"{helps}; {within}."
    if not _apart(n, kept[enough], start):
        return (
            f"{helps}. Which blocks it takes cannot be told: with "
            f"{_first(enough, depth)} it is {kept[enough]:.1f} %, between the two and "
            "within the error of both."
        )
    if enough == depth:
        return (
            f"{helps}, and it takes more than {_first(max(lower), depth)}: with these "
            f"alone it is {kept[max(lower)]:.1f} %."
        )
    return (
        f"{helps}, and {_first(enough, depth)} alone cannot be told from all of it: "
        f"{kept[enough]:.1f} %; two standard errors of the difference are "
        f"{margin(n, whole, kept[enough]):.1f}."
    )


def _first(k: int, depth: int) -> str:
    return f"the first {k} of {depth} blocks" if k else "its embeddings"


def of_probe(setting: str, result: dict[str, Any]) -> str:
    """Says what a probe of every block tells of a setting, and how it was chosen."""
    return (
        f"{_SETTINGS[setting]} a linear probe reads most from {_block(result)}: "
        f"{result['top1']:.1f} % of {result['n']:,} test images, standard error "
        f"{standard_error(result['n'], result['top1']):.1f}; chosen by "
        f"{result['select_n']:,} training images held out, of which it tells "
        f"{result['select_top1']:.1f} %."
    )


def _block(row: dict[str, Any]) -> str:
    return f"the {TOKENS[row['pool']]} after block {row['block']}"


def of_probes(
    probes: dict[str, dict[str, Any]],
    random: dict[str, list[dict[str, Any]]] | None = None,
) -> tuple[str, list[dict[str, Any]]]:
    """Says which encoder and how many layers to tune, from results of layer probes.

    Args:
      probes: name of an encoder -> the last result of evaluator `layers`: 'top1' of the
        best block, 'block', 'n', and 'table' of all blocks.
      random: names of encoders that never learned -> such results of each, of one or
        more choices of tokens. They are what others must beat; the best encoder is
        compared with what they give by the same tokens.

    Returns:
      Sentences; and the numbers they rest on, a row for each encoder.

    Raises:
      ValueError: there is nothing to compare, no encoder that has learned, or a result
        is none of `layers`.
    """
    trained = [_row(name, last, False) for name, last in probes.items()]
    if not trained:
        given = f" ({', '.join(random)}: random parameters)" if random else ""
        raise ValueError(
            "--config.models: no probe of an encoder that has learned"
            f"{given}; give the directory of a configs/layer_probe.py with "
            "--config.init=RUN_OR_FILE"
        )
    best = max(trained, key=_top1)
    floors = [
        _row(name, _by_same_tokens(lasts, best["pool"]), True)
        for name, lasts in (random or {}).items()
    ]
    floor, n = max(floors, key=_top1, default=None), best["n"]
    rows = sorted([*trained, *floors], key=_top1, reverse=True)
    if floor is not None and not _apart(n, best["top1"], floor["top1"]):
        worse = _apart(n, floor["top1"], best["top1"])
        beyond = "is worse than" if worse else "cannot be told from"
        return (
            f"None of these is worth starting from: the best, {best['name']} "
            f"({best['top1']:.1f} % from {_block(best)}), {beyond} random parameters "
            f"({floor['name']}, {floor['top1']:.1f} %) on {n:,} images, where two "
            "standard errors of the difference are "
            f"{margin(n, best['top1'], floor['top1']):.1f} points. Give more images, "
            "or another checkpoint."
        ), rows
    return f"{_start_from(best, trained, floor)} {_tuning(best)}", rows


def _top1(row: dict[str, Any]) -> float:
    return row["top1"]


def _by_same_tokens(lasts: list[dict[str, Any]], pool: str) -> dict[str, Any]:
    """Returns the encoder's result by these tokens, or else its highest."""
    return max([last for last in lasts if last["pool"] == pool] or lasts, key=_top1)


def _start_from(best: dict[str, Any], trained: list, floor: dict | None) -> str:
    """Returns the sentence that names an encoder, and those that may be as good."""
    n, top1 = best["n"], best["top1"]
    first = f"Start from {best['name']}: {_block(best)} tells {top1:.1f} %"
    if floor is not None:
        first += (
            f", where random parameters ({floor['name']}) give {floor['top1']:.1f} %"
        )
    others = sorted((r for r in trained if r is not best), key=lambda r: -r["top1"])
    near = [row for row in others if not _apart(n, top1, row["top1"])]
    if near:
        names = ", ".join(f"{row['name']} ({row['top1']:.1f} %)" for row in near)
        widest = max(margin(n, top1, row["top1"]) for row in near)
        return (
            f"{first}, but {names} cannot be told from it on {n:,} images (two "
            f"standard errors of the difference are {widest:.1f} points)."
        )
    if others:
        second = others[0]
        return (
            f"{first}, {top1 - second['top1']:.1f} points more than {second['name']}, "
            f"where two standard errors of the difference of {n:,} images are "
            f"{margin(n, top1, second['top1']):.1f}."
        )
    return f"{first} of {n:,} images; no other encoder was given to compare it with."


def _row(name: str, last: dict[str, Any], random: bool) -> dict[str, Any]:
    if "table" not in last or "block" not in last:
        raise ValueError(
            f"{name}: no result of the evaluator 'layers'; make one with "
            "configs/layer_probe.py"
        )
    linear = [row["linear"] for row in last["table"]]
    top1, n = linear[last["block"] - 1], last["n"]
    enough = next(i for i, x in enumerate(linear) if not _apart(n, top1, x))
    return {
        "name": name,
        "random": random,
        "top1": top1,
        "standard_error": standard_error(n, top1),
        "pool": last["pool"],
        "block": last["block"],
        "last": linear[-1],
        "enough": enough + 1,
        "depth": len(linear),
        "n": n,
    }


def _tuning(row: dict[str, Any]) -> str:
    """Returns the sentence on the layers to tune: those after the last gain."""
    tune = row["depth"] - row["enough"]
    if not tune:
        return (
            f"Its accuracy rises up to the last of {row['depth']} blocks "
            f"({row['last']:.1f} %), so none of them is in the way: tune little, the "
            "head and the last block."
        )
    after = f"the last tells {row['top1'] - row['last']:.1f} points less"
    if not _apart(row["n"], row["top1"], row["last"]):
        after = "no difference shows in those after it"
    return (
        f"Its block {row['enough']} of {row['depth']} cannot be told from the best, "
        f"and {after} ({row['last']:.1f} % after the last), so tune the last "
        f"{f'{tune} blocks' if tune > 1 else 'block'} and keep the first "
        f"{row['enough']}."
    )
