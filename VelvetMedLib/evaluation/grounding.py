"""Whether a phrase is found where it is true: the pointing game, with the chance of a random point of the body beside it.

The peak of the heat-map is a hit within 5 mm of the finding. Where the bundle marks nothing, or cannot place the phrase, it is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.ct import Grid
from VelvetMedLib.ct.body import BODY_ABOVE_HU
from VelvetMedLib.evaluation.bootstrap import Measure, ratio
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.class_maps import filled_box

NEAR_MM = 5.0
Way = Literal["answer", "lesions", "similarity"]
WAYS: dict[Way, str] = {"answer": "pointing", "lesions": "pointing by lesion head", "similarity": "pointing by cosine map"}
"""How a phrase is placed: as the bundle answers it, or in one way alone, and the name of its figure."""


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """One present finding, placed in one way. called: whether the bundle calls it present. placed: whether it gave a place at all.
    chance: share of the body that would be a hit."""

    finding: str
    way: Way
    called: bool
    placed: bool
    hit: bool
    chance: float


@dataclass(frozen=True, eq=False)
class Target:
    """Where a peak is a hit: voxels whose centre lies within `NEAR_MM` of the centre of one of the finding's, and their share of
    the body."""

    near_kji: NDArray[np.bool_]
    grid: Grid
    chance: float

    def holds(self, peak_ras_mm: Triple) -> bool:
        """Whether the voxel at a point is near."""
        i, j, k = np.rint(self.grid.ras_to_ijk @ np.array([*peak_ras_mm, 1.0]))[:3].astype(int)
        inside = all(0 <= n < size for n, size in zip((k, j, i), self.near_kji.shape, strict=True))
        return bool(inside and self.near_kji[k, j, i])


def target_of(mask_kji: NDArray[np.bool_], grid: Grid, body_kji: NDArray[np.bool_]) -> Target | None:
    """None if the mask is empty: there is nothing to point at."""
    tight = filled_box(mask_kji)
    if tight is None:
        return None
    reach = [int(NEAR_MM / step) + 1 for step in reversed(grid.spacing_mm)]
    box = tuple(slice(max(s.start - r, 0), s.stop + r) for s, r in zip(tight, reach, strict=True))
    image = sitk.GetImageFromArray(mask_kji[box].astype(np.uint8))
    image.SetSpacing(grid.spacing_mm)
    apart = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True))
    near = np.zeros(mask_kji.shape, bool)
    near[box] = mask_kji[box] | (apart <= NEAR_MM + 1e-4)
    return Target(near, grid, float((near & body_kji).sum() / max(1, body_kji.sum())))


def body_of(hu_kji: NDArray[np.number], organs_kji: NDArray[np.number]) -> NDArray[np.bool_]:  # type: ignore[type-arg]
    """Voxels of the patient: tissue, and the organs that hold air."""
    return np.asarray((hu_kji > BODY_ABOVE_HU) | (organs_kji > 0))


def measures(pointed: Sequence[Sequence[Pointed]]) -> dict[str, Measure]:
    """From the findings of each case, over all findings and of each: pointing, chance, the share that was placed, pointing where only
    what the bundle calls present can be a hit, and pointing in each way alone that the bundle has."""
    out: dict[str, Measure] = {}
    names = [n for n in ontology().finding_names if any(p.finding == n for case in pointed for p in case)]
    there = {way for case in pointed for p in case if p.placed for way in (p.way,)} | {"answer"}
    for name in ("all", *names):
        for way, figure in WAYS.items():
            if way not in there:
                continue
            own = [[p for p in case if name in ("all", p.finding) and p.way == way] for case in pointed]
            whole = [len(case) for case in own]
            out[f"grounding/{name}/{figure}"] = ratio([sum(p.hit for p in case) for case in own], whole)
            if way == "answer":
                out[f"grounding/{name}/called and pointed at"] = ratio([sum(p.hit and p.called for p in case) for case in own], whole)
                out[f"grounding/{name}/chance"] = ratio([sum(p.chance for p in case) for case in own], whole)
                out[f"grounding/{name}/placed"] = ratio([sum(p.placed for p in case) for case in own], whole)
    return out
