"""Retrieval between scans and reports: recall at k both ways, with every study that cannot be told apart counted as right."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
KS = (1, 5, 10)


def same_group(groups: Sequence[Hashable]) -> NDArray[np.bool_]:
    """[N, N], True where two studies are of one group: the same study, or the same facts in their reports."""
    numbers = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    of = np.array([numbers[group] for group in groups])
    return np.asarray(of[:, None] == of[None, :])


def hit_chances(scores: Scores, relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """For each query (row), the chance that a relevant candidate (column) is among the k best.

    It is 0 or 1 unless scores tie: equal scores are in random order, so that a constant model scores chance and not 1.
    """
    out = np.zeros(len(scores))
    for row, (values, right) in enumerate(zip(scores, relevant, strict=True)):
        if not right.any():
            continue
        best = values[right].max()
        better = int((values > best).sum())
        wrong_ties = int((values[~right] == best).sum())
        ties = wrong_ties + int((values[right] == best).sum())
        room = min(k - better, ties)
        if room > 0:
            # One minus the chance that all of the room goes to wrong candidates.
            out[row] = 1.0 - math.comb(wrong_ties, room) / math.comb(ties, room)
    return out


def recall_at(scores: Scores, relevant: NDArray[np.bool_], ks: Sequence[int] = KS) -> dict[str, float]:
    """R@k: share of queries with a relevant candidate among the k best. Queries without any relevant candidate count as missed."""
    return {f"R@{k}": float(hit_chances(scores, relevant, k).mean()) for k in ks}


def median_rank(scores: Scores, relevant: NDArray[np.bool_]) -> float:
    """Median over queries of the place (from 1) of the best relevant candidate; ties count half."""
    ranks = []
    for values, right in zip(scores, relevant, strict=True):
        best = values[right].max() if right.any() else -math.inf
        ranks.append(1 + int((values > best).sum()) + 0.5 * int((values[~right] == best).sum()))
    return float(np.median(ranks))


def chance(relevant: NDArray[np.bool_], ks: Sequence[int] = KS) -> dict[str, float]:
    """R@k of scores that mean nothing."""
    return recall_at(np.zeros(relevant.shape), relevant, ks)


def interval(
    scores: Scores, relevant: NDArray[np.bool_], k: int, *, draws: int = 2000, seed: int = 0, share: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of R@k over queries (percentiles); the gallery stays as it is."""
    hits = hit_chances(scores, relevant, k)
    draw = np.random.default_rng(seed)
    means = hits[draw.integers(len(hits), size=(draws, len(hits)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def retrieval(images: Scores, texts: Scores, groups: Sequence[Hashable], ks: Sequence[int] = KS) -> dict[str, float]:
    """Recall both ways and their mean, and median ranks, from unit vectors [N, D] of scans and reports in one order.

    Keys: "image_to_text R@1", "text_to_image R@1", "R@1" (the mean of the two), and so on; "mean recall" is their mean over
    all k, by which checkpoints are compared: R@1 alone rests on a handful of hits in a small gallery.
    """
    if len(images) != len(texts) or len(images) != len(groups):
        raise ValueError(f"{len(images)} images, {len(texts)} texts and {len(groups)} groups do not pair up")
    # float64: two scores must not tie because of the width of a number.
    scores = np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
    relevant = same_group(groups)
    forth, back = recall_at(scores, relevant, ks), recall_at(scores.T, relevant, ks)
    out = {f"image_to_text {name}": value for name, value in forth.items()}
    out |= {f"text_to_image {name}": value for name, value in back.items()}
    both = {name: 0.5 * (forth[name] + back[name]) for name in forth}
    out |= both | {"mean recall": sum(both.values()) / len(both)}
    out["image_to_text median rank"] = median_rank(scores, relevant)
    out["text_to_image median rank"] = median_rank(scores.T, relevant)
    return out
