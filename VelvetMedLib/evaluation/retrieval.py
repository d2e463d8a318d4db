"""Retrieval between scans and reports: recall at k both ways, with every study that cannot be told apart counted as right."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.evaluation.bootstrap import Measure, mean
from VelvetMedLib.evaluation.records import facts_of, record_scores, record_word
from VelvetMedLib.reports import FindingRecord

Scores = NDArray[np.floating[Any]]
KS = (1, 5, 10)
LEAST_GALLERY = 5
"""Studies; a smaller gallery tells nothing."""
WAYS = ("text to image", "image to text")


def same_group(groups: Sequence[Hashable]) -> NDArray[np.bool_]:
    """[N, N], True where two studies are of one group: the same study, or the same facts in their reports."""
    numbers = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    of = np.array([numbers[group] for group in groups])
    return np.asarray(of[:, None] == of[None, :])


def alikeness(vectors: Scores) -> float:
    """Mean cosine between different rows of unit vectors [N, D], N at least 2: 1 where all are one and the same."""
    count = len(vectors)
    return float((np.square(vectors.sum(0, dtype=np.float64)).sum() - count) / (count * (count - 1)))


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


def galleries(views: Sequence[str]) -> dict[str, list[int]]:
    """Which studies a query is compared with: all, and those of one field of view. What a scan covers gives its report away."""
    of_view = {f"only {view}": [n for n, v in enumerate(views) if v == view] for view in sorted(set(views))}
    all_of_them = {"all": list(range(len(views)))} | (of_view if len(of_view) > 1 else {})
    return {name: members for name, members in all_of_them.items() if len(members) >= LEAST_GALLERY}


def by_words(kept: Scores, texts: Mapping[str, Scores], dimension: int) -> dict[str, Scores]:
    """[scans, texts] of each wording, as the product searches by words; where that weighs statements, by the vectors alone, too.

    kept [N, D + statements]; texts: by wording, of the same shape; dimension: D.
    """
    out: dict[str, Scores] = {name: np.asarray(kept @ queries.T) for name, queries in texts.items()}
    if kept.shape[1] > dimension:
        out |= {f"{name}, vectors alone": np.asarray(kept[:, :dimension] @ queries[:, :dimension].T) for name, queries in texts.items()}
    return out


def measures(model: Mapping[str, Scores], records: Sequence[Sequence[FindingRecord]], views: Sequence[str]) -> dict[str, Measure]:
    """R@k by gallery, by what counts as right ("own report", or any of "equal record"), by whose scores, and by way.

    model: its scores by name, [scans, texts] in one order. Beside them stand the record oracle (who reads every report and scan right)
    and chance. A gallery of k studies or fewer has no R@k.
    """
    scores = {
        **model, "record oracle": record_scores([facts_of(r) for r in records]), "chance": np.zeros((len(views), len(views)))
    }  # fmt: skip
    equal = same_group([record_word(r) for r in records])
    out: dict[str, Measure] = {}
    for gallery, members in galleries(views).items():
        inside = np.ix_(members, members)
        for right, relevant in (("own report", np.eye(len(views), dtype=bool)), ("equal record", equal)):
            for name, values in scores.items():
                for way, matrix in zip(WAYS, (values.T, values), strict=True):
                    for k in (k for k in KS if k < len(members)):
                        hits = np.full(len(views), np.nan)
                        hits[members] = hit_chances(matrix[inside], relevant[inside], k)
                        out[f"retrieval/{gallery}/{right}/{name}/{way} R@{k}"] = mean(hits)
    return out
