"""Features of frozen encoders on the host, and the linear classifier in closed form.

Shared by the evaluators that learn from features without training.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from litevit_jax.data import subsets
from litevit_jax.evaluators import base, stored

# Strengths of regularisation to choose from, for features of mean square norm 1.
L2 = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def gather(
    context: base.Context, state: Any, split: str, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gathers features [n, ...], labels [n], indices [n] of a split's labelled images.

    In the order of the split, whatever the batches; `name` is the prediction's. Inside
    `stored.under` they are computed once for several runs.
    """
    compute = functools.partial(_encode, context, state, split, name)
    return stored.gathered(context, state, split, name, compute)


def _encode(
    context: base.Context, state: Any, split: str, name: str
) -> stored.Gathered:
    features, labels, index = [], [], []
    for batch, out in context.over(state, split, (name,)):
        keep = (batch["mask"] > 0) & (batch["label"] >= 0)
        features.append(out[name][keep].astype(np.float32))
        labels.append(batch["label"][keep])
        index.append(batch["index"][keep])
    return np.concatenate(features), np.concatenate(labels), np.concatenate(index)


def gather_rows(
    context: base.Context, state: Any, split: str, rows: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Gathers features [n, ...] and labels [n] of different `rows`, in their order.

    They are read in the order of the split, so that all drawings of a whole split need
    the same features.
    """
    if len(rows) < len(context.source(split)):
        context = part(context, split, np.sort(rows))
    features, label, index = gather(context, state, split, name)
    order = np.argsort(np.argsort(rows)[index])
    return features[order], label[order]


def part(context: base.Context, split: str, rows: np.ndarray) -> base.Context:
    """Restricts `context` to `rows` [n] of `split`, which are numbered anew."""
    chosen = subsets.Subset(context.source(split), rows)
    return dataclasses.replace(context, source=lambda _: chosen)


def check_l2(name: str, l2: tuple[float, ...]) -> None:
    """Raises ValueError unless there are strengths and all are positive."""
    if not l2 or min(l2) <= 0:
        raise ValueError(
            f"{name}: l2={tuple(l2)}; expected one or more positive numbers"
        )


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Least-squares regression onto classes, for several strengths at once.

    Attributes:
      mean [D], scale: features are centred and divided by.
      weights [R, D, K], bias [K]: for each of R strengths.
    """

    mean: np.ndarray
    scale: float
    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray, index: int) -> np.ndarray:
        """Scores classes [n, K] by features [n, D] with strength number `index`."""
        x = (features.astype(np.float64) - self.mean) / self.scale
        return x @ self.weights[index] + self.bias


def fit(
    features: np.ndarray, label: np.ndarray, num_classes: int, l2: tuple[float, ...]
) -> Ridge:
    """Minimises mean |x W + b - y|^2 + l2 |W|^2 over W [D, K] and b [K].

    y is one-hot; x are the features, centred and divided by their root mean square
    norm, so that `l2` means the same for any width. In float64, through the smaller
    of the two Gram matrices.

    Args:
      features: [n, D].
      label: [n].
      num_classes: K.
      l2: R strengths, each positive.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    x = features.astype(np.float64) - mean
    scale = max(float(np.sqrt(np.square(x).sum(axis=1).mean())), 1e-12)
    x = x / scale
    target = np.eye(num_classes)[label]
    bias = target.mean(axis=0)
    count, width = x.shape
    few = count < width
    values, vectors = np.linalg.eigh((x @ x.T if few else x.T @ x) / count)
    values = np.maximum(values, 0.0)
    inner = vectors.T @ ((target - bias) if few else x.T @ (target - bias)) / count
    solved = [vectors @ (inner / (values + s)[:, None]) for s in l2]
    weights = np.stack([x.T @ w if few else w for w in solved])
    return Ridge(mean, scale, weights, bias)


def choose(ridge: Ridge, features: np.ndarray, label: np.ndarray) -> tuple[int, float]:
    """Chooses a strength by held-out [n, D] and [n]: (its number, accuracy in percent).

    Of equally good ones it is the last, the strongest where they ascend.
    """
    scores = (ridge.scores(features, index) for index in range(len(ridge.weights)))
    right = np.array([(s.argmax(axis=1) == label).mean() for s in scores])
    best = len(right) - 1 - int(np.argmax(right[::-1]))
    return best, 100 * float(right[best])
