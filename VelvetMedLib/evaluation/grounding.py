"""Whether a phrase is found where it is true: the pointing game, with the chance of a random point of the body beside it.

The peak of the heat-map counts as a hit within one voxel of the finding. A finding that the bundle does not place is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.ct import Grid
from VelvetMedLib.ct.body import BODY_ABOVE_HU
from VelvetMedLib.evaluation.bootstrap import Measure, ratio
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import Triple


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """One present finding. placed: whether the bundle gave a place at all. chance: share of the body that would be a hit."""

    finding: str
    placed: bool
    hit: bool
    chance: float


def point_at(
    finding: str, peak_ras_mm: Triple | None, mask_kji: NDArray[np.bool_], grid: Grid, body_kji: NDArray[np.bool_]
) -> Pointed | None:
    """peak_ras_mm: None where the bundle gave no place. None if the mask is empty: there is nothing to point at."""
    if not mask_kji.any():
        return None
    near = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(mask_kji.astype(np.uint8)), [1, 1, 1], sitk.sitkBox)) > 0
    chance = float((near & body_kji).sum() / max(1, body_kji.sum()))
    if peak_ras_mm is None:
        return Pointed(finding=finding, placed=False, hit=False, chance=chance)
    i, j, k = np.rint(grid.ras_to_ijk @ np.array([*peak_ras_mm, 1.0]))[:3].astype(int)
    inside = all(0 <= n < size for n, size in zip((k, j, i), mask_kji.shape, strict=True))
    return Pointed(finding=finding, placed=True, hit=bool(inside and near[k, j, i]), chance=chance)


def body_of(hu_kji: NDArray[np.number], organs_kji: NDArray[np.number]) -> NDArray[np.bool_]:  # type: ignore[type-arg]
    """Voxels of the patient: tissue, and the organs that hold air."""
    return np.asarray((hu_kji > BODY_ABOVE_HU) | (organs_kji > 0))


def measures(pointed: Sequence[Sequence[Pointed]]) -> dict[str, Measure]:
    """Accuracy, chance and share placed, over all findings and of each, from the findings of each case."""
    out: dict[str, Measure] = {}
    names = [n for n in ontology().finding_names if any(p.finding == n for case in pointed for p in case)]
    for name in ("all", *names):
        own = [[p for p in case if name in ("all", p.finding)] for case in pointed]
        whole = [len(case) for case in own]
        out[f"grounding/{name}/pointing"] = ratio([sum(p.hit for p in case) for case in own], whole)
        out[f"grounding/{name}/chance"] = ratio([sum(p.chance for p in case) for case in own], whole)
        out[f"grounding/{name}/placed"] = ratio([sum(p.placed for p in case) for case in own], whole)
    return out
