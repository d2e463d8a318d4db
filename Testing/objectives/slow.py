"""The objectives once more, in plain loops over numbers: written to be read, not to be fast. No code of ours is called."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(x: Array) -> Array:
    return x / math.sqrt(sum(float(c) ** 2 for c in x))


def linear(x: Array, weight: Array, bias: Array) -> Array:
    return np.array([sum(weight[o][i] * x[i] for i in range(len(x))) + bias[o] for o in range(len(bias))])


def mean_cell(top: Array) -> Array:
    """[C, x, y, z] -> [C]."""
    return np.array([float(np.mean(channel)) for channel in top])


def cells(feature_map: Array) -> list[Array]:
    """[C, x, y, z] -> one vector per cell, first axis slowest."""
    _, gx, gy, gz = feature_map.shape
    return [feature_map[:, x, y, z] for x in range(gx) for y in range(gy) for z in range(gz)]


def log_softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(v - top) for v in row)) + top
    return [v - total for v in row]


def softmax(row: Sequence[float]) -> list[float]:
    return [math.exp(v) for v in log_softmax(row)]


def contrast(logits: Array, groups: Sequence[int], kept: Sequence[bool], smoothing: float) -> tuple[float, int]:
    """Sum over kept items of half the row's and half the column's cross-entropy, and how many items are kept."""
    n = len(groups)
    columns = [j for j in range(n) if kept[j]]
    total = 0.0
    for i in columns:
        positives = [j for j in columns if groups[j] == groups[i]]
        target = {j: smoothing / len(columns) + ((1 - smoothing) / len(positives) if j in positives else 0.0) for j in columns}
        assert abs(sum(target.values()) - 1) < 1e-12
        for line in ([logits[i, j] for j in columns], [logits[j, i] for j in columns]):
            total += 0.5 * -sum(target[j] * logp for j, logp in zip(columns, log_softmax(line), strict=True))
    return total, len(columns)


def local_score(
    v: list[Array],
    t: list[Array],
    *,
    tau1: float = 4.0,
    tau2: float = 5.0,
    agg: str = "sum",
    skip_text_softmax: bool = False,
    local_tau: float = 0.0,
) -> float:
    """One image (unit vectors of its cells) and one text (unit vectors of its units)."""
    a = [[float(np.dot(cell, word)) for word in t] for cell in v]
    similarities = []
    for k in range(len(t)):
        if local_tau:
            drive = [a[m][k] / local_tau for m in range(len(v))]
        elif skip_text_softmax:
            drive = [tau1 * a[m][k] for m in range(len(v))]
        else:
            drive = [tau1 * softmax(a[m])[k] for m in range(len(v))]
        w = softmax(drive)
        context = np.zeros_like(v[0])
        for m in range(len(v)):
            context = context + w[m] * v[m]
        similarities.append(float(np.dot(unit(context), t[k])))
    total = sum(math.exp(tau2 * s) for s in similarities)
    return math.log(total / len(t) if agg == "mean" else total)


def nt_xent(a: list[Array], b: list[Array], groups: Sequence[int], temperature: float) -> tuple[float, int]:
    """Sum over the 2N views of -log softmax at the other view of the crop, among it and the views of other groups."""
    n = len(a)
    views = [*((unit(z), i) for i, z in enumerate(a)), *((unit(z), i) for i, z in enumerate(b))]
    total = 0.0
    for own, (z, i) in enumerate(views):
        other = (own + n) % (2 * n)
        row = {
            place: float(np.dot(z, y)) / temperature
            for place, (y, j) in enumerate(views)
            if place == other or (j != i and groups[j] != groups[i])
        }
        total -= row[other] - math.log(sum(math.exp(v) for v in row.values()))
    return total, 2 * n


def cross_entropy(logits: Sequence[float], answer: int) -> float:
    return -log_softmax([float(v) for v in logits])[answer]
