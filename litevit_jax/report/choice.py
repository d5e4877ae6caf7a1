"""Says what a comparison of pre-training methods shows, and no more than that."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from litevit_jax.report import advice

if TYPE_CHECKING:
    from litevit_jax.report import run_figures

CLOSE = 5.0  # points of error up to which what shows no difference is as good
SAME = "these numbers show no difference"


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracies in percent of several seeds.

    Attributes:
      values: one for each seed.
      n: images that each was measured on.
    """

    values: tuple[float, ...]
    n: int

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def of_images(self) -> float:
        """The standard error of a share of n images."""
        return advice.standard_error(self.n, self.mean)

    @property
    def of_seeds(self) -> float:
        """The standard error of the mean over the seeds; 0 for a single one."""
        if len(self.values) < 2:
            return 0.0
        return statistics.stdev(self.values) / math.sqrt(len(self.values))

    @property
    def error(self) -> float:
        """The standard error of the mean: of the seeds or of n images, the larger."""
        return max(self.of_images, self.of_seeds)

    @property
    def text(self) -> str:
        """The mean and two standard errors."""
        return f"{self.mean:.1f} ± {2 * self.error:.1f}"


Scores = Mapping[str, Mapping[float, Score]]  # encoder -> share of the labels -> score


def apart(one: Score, other: Score) -> bool:
    """Tells whether the first is above the second by more than chance explains."""
    return one.mean - other.mean > margin(one, other)


def margin(one: Score, other: Score) -> float:
    """Returns the difference, in points, that chance exceeds in 5 of 100 cases.

    It is that of a t test between the seeds of both (with 3 of each 2.8 standard
    errors, with 2 of each 4.3), or two standard errors of so many images, the larger.
    """
    from scipy import special  # late: only this needs it

    images = 2 * math.hypot(one.of_images, other.of_images)
    degrees = len(one.values) + len(other.values) - 2
    if not degrees:
        return images
    times = float(special.stdtrit(degrees, 0.975))
    return max(images, times * math.hypot(one.of_seeds, other.of_seeds))


def recommended(scores: Scores) -> str:
    """Returns the encoder with the highest mean over the shares that all have."""
    shares = set.intersection(*(set(by_share) for by_share in scores.values()))
    return max(
        scores, key=lambda name: sum(scores[name][share].mean for share in shares)
    )


def of_choice(name: str, scores: Scores) -> str:
    """Names the recommended encoder, and those that no share tells from it."""
    same = [
        other
        for other, by_share in scores.items()
        if other != name and not any(_differ(scores[name], by_share))
    ]
    text = (
        f"Recommended: {name}, which has the highest mean after fine-tuning over all "
        "shares of the labels."
    )
    if not same:
        return text
    return f"{text} These numbers cannot tell it from {' and '.join(same)}."


def _differ(one: Mapping[float, Score], other: Mapping[float, Score]) -> list[bool]:
    """Tells for each share that both have whether one of them is above the other."""
    shares = [share for share in one if share in other]
    return [
        apart(one[share], other[share]) or apart(other[share], one[share])
        for share in shares
    ]


def of_methods(scores: Scores, counts: Mapping[float, int]) -> list[str]:
    """Says for each share of the labels which encoder is best after fine-tuning.

    Args:
      scores: after fine-tuning.
      counts: share -> labelled images.
    """
    sentences = []
    for share, count in counts.items():
        here = {name: each[share] for name, each in scores.items() if share in each}
        if len(here) < 2:
            continue
        first, *others = sorted(here, key=lambda name: -here[name].mean)
        best = here[first]
        below = [name for name in others if apart(best, here[name])]
        near = [name for name in others if name not in below]
        text = f"With {labels(share, count)}, {first} is highest: {best.text} %"
        if below:
            text += f", above {_listed(below, here)}"
        if near:
            text += f"; {SAME} from {_listed(near, here)}"
        sentences.append(f"{text}.")
    return sentences


def of_baseline(name: str, scores: Scores) -> str:
    """Says whether the recommended encoder is better than random parameters."""
    random = scores.get("random")
    if random is None or name == "random":
        return ""
    better = [s for s in random if s in scores[name] and _above(scores, name, s)]
    if not better:
        return (
            f"{name} against random parameters: {SAME}. More minutes, more images or "
            "an encoder that was pre-trained elsewhere (--config.init) may show one."
        )
    share = min(better)
    gain = scores[name][share].mean - random[share].mean
    return (
        f"Starting from {name} gains {gain:.1f} points over random parameters with "
        f"{_percent(share)} of the labels, where up to "
        f"{margin(scores[name][share], random[share]):.1f} may be chance."
    )


def of_probe(name: str, tuned: Mapping[float, Score], probed: Scores) -> str:
    """Says where fine-tuning is below a linear probe of the same encoder."""
    both = [share for share in tuned if share in probed.get(name, {})]
    below = [share for share in both if apart(probed[name][share], tuned[share])]
    if not below:
        return ""
    share = max(below)
    return (
        f"Fine-tuning {name} is below its linear probe ({tuned[share].text} against "
        f"{probed[name][share].text} % with {_percent(share)} of the labels): it had "
        "too few updates in these minutes. Give more before you rely on its order, and "
        "see that of the linear probe."
    )


def _above(scores: Scores, name: str, share: float) -> bool:
    return apart(scores[name][share], scores["random"][share])


def of_blocks(
    name: str, by_kept: Mapping[int, Mapping[float, Score]], depth: int
) -> tuple[str, int]:
    """Says how many blocks to tune: the fewest that lose nothing.

    Args:
      name: of the encoder.
      by_kept: how many of the first blocks do not change -> share of the labels ->
        score after fine-tuning. 0: all change.
      depth: number of blocks.

    Returns:
      The sentence, and how many of the first blocks to keep.
    """
    whole = by_kept[0]
    fits = [
        kept
        for kept, by_share in by_kept.items()
        if not any(apart(whole[s], score) for s, score in by_share.items())
    ]
    most = max(fits)
    share = max(whole)
    names = {kept: _tuned(depth - kept) if kept else "all blocks" for kept in by_kept}
    numbers = "; ".join(
        f"{names[kept]} {by_kept[kept][share].text} %" for kept in sorted(by_kept)
    )
    numbers = f"with {_percent(share)} of the labels: {numbers}"
    gains = [k for k in fits if k and apart(by_kept[k][share], whole[share])]
    if gains:
        most = max(gains, key=lambda k: by_kept[k][share].mean)
        sentence = (
            f"Tune {_tuned(depth - most)} of {name}, which is better ({numbers})."
        )
        return sentence, most
    if most and margin(whole[share], by_kept[most][share]) > CLOSE:
        return (
            f"Tune all blocks of {name}: {SAME} between that and tuning fewer, but "
            f"their errors are large ({numbers})."
        ), 0
    if not most:
        return f"Tune all blocks of {name}: with fewer it loses ({numbers}).", 0
    return (
        f"Tuning {_tuned(depth - most)} of {name} is enough: {SAME} between that and "
        f"tuning all ({numbers})."
    ), most


def _tuned(blocks: int) -> str:
    if not blocks:
        return "the head alone"
    return f"the head and the last {f'{blocks} blocks' if blocks > 1 else 'block'}"


def of_images(name: str, curve: Mapping[float, Score], images: int) -> str:
    """Says what more images to pre-train on bring, by a linear probe.

    Args:
      name: of the method.
      curve: share of the images -> score of a linear probe with all labels.
      images: that a share of 1 is.
    """
    shares = sorted(curve)
    numbers = ", ".join(
        f"{round(share * images):,}: {curve[share].text} %" for share in shares
    )
    text = f"Images that {name} is pre-trained on, and its linear probe: {numbers}."
    low, high = curve[shares[0]], curve[shares[-1]]
    if not apart(high, low):
        return f"{text} {SAME.capitalize()}, no sign that more would help."
    before, times = curve[shares[-2]], shares[-1] / shares[-2]
    last = (
        f"the last step, {times:g} times as many, brought {high.mean - before.mean:.1f}"
    )
    if apart(high, before):
        return (
            f"{text} More images help: {last} points. Expect at most as much from "
            f"{times:g} times as many again."
        )
    return (
        f"{text} More images helped, but {last} points, within the error of "
        f"{margin(high, before):.1f}: expect little of still more."
    )


def of_labels(name: str, scores: Mapping[float, Score], counts: Mapping) -> str:
    """Says what more labels bring to the fine-tuned encoder."""
    shares = sorted(scores)
    if len(shares) < 2:
        return ""
    few, many = scores[shares[-2]], scores[shares[-1]]
    start = (
        f"From {counts[shares[-2]]:,} to {counts[shares[-1]]:,} labels {name} goes "
        f"from {few.text} to {many.text} %"
    )
    if not apart(many, few):
        return f"{start}: {SAME}."
    return f"{start}: more labels are worth it."


def figure(title: str, evaluation: str, scores: Scores) -> run_figures.Figure:
    """Draws accuracy over the share of the labels, with two standard errors."""
    from litevit_jax.report import plots, run_figures  # late: they plot

    shares = sorted({share for each in scores.values() for share in each})
    lines: plots.Series = {}
    errors, data = {}, {}
    for name, each in scores.items():
        known = [(x, each[share]) for x, share in enumerate(shares) if share in each]
        lines[name] = [x for x, _ in known], [score.mean for _, score in known]
        errors[name] = [2 * score.error for _, score in known]
        data[name] = {str(share): score.values for share, score in each.items()}
    ticks = tuple(_percent(share) for share in shares)
    axes = plots.Axes("share of the labels", "top-1, %", ticks=ticks)
    return run_figures.Figure(
        name=f"choose-{run_figures.file_name(evaluation)}",
        section="probes",
        title=title,
        caption="mean over the seeds; bars: two standard errors (choose.json)",
        data=data,
        plot=plots.curves(lines, axes, errors=errors),
    )


def labels(share: float, count: int) -> str:
    """Returns a share of the labels in words."""
    what = "all labels" if share == 1 else f"{_percent(share)} of the labels"
    return f"{what} ({count:,} images)"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _listed(names: Sequence[str], scores: Mapping[str, Score]) -> str:
    return ", ".join(f"{name} ({scores[name].text})" for name in names)


def as_rows(tables: Mapping[str, Scores], counts: Mapping[float, int]) -> list[Any]:
    """Returns rows of text: encoder, labels, and a column for each evaluation."""
    rows = [["encoder", "labels", *tables, "seeds"]]
    names = list(dict.fromkeys(name for each in tables.values() for name in each))
    for name in names:
        for share in counts:
            cells = [each.get(name, {}).get(share) for each in tables.values()]
            known = [cell for cell in cells if cell is not None]
            if known:
                texts = ["-" if cell is None else cell.text for cell in cells]
                seeds = str(max(len(cell.values) for cell in known))
                rows.append([name, _percent(share), *texts, seeds])
    return rows
