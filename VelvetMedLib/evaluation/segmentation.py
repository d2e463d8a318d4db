"""How well one label map agrees with another: Dice, surface Dice and HD95 by structure, and the table over many scans.

Distances are MONAI's (`compute_surface_dice`, `compute_hausdorff_distance`): the surface of a mask is its outermost voxels, distances
run between voxel centres in mm. A mask that the end of the scan cuts has a surface there, in both maps alike.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.evaluation.bootstrap import Measure, mean, mean_of
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import LabelsKJI, Triple

SURFACE_TOLERANCE_MM = 2.0
HD_PERCENTILE = 95


@dataclass(frozen=True, kw_only=True)
class StructureScore:
    """One structure in one scan. None: not defined, because a mask is empty.

    In neither map: nothing is scored. In one map only: Dice and surface Dice are 0, and HD95 has no value; count those with
    `missed` (only in the truth) and `invented` (only found), or a mean of HD95 flatters.
    """

    case: str
    structure: str
    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    truth_ml: float
    found_ml: float

    @property
    def missed(self) -> bool:
        return self.truth_ml > 0 and self.found_ml == 0

    @property
    def invented(self) -> bool:
        return self.truth_ml == 0 and self.found_ml > 0


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """One structure over all scans: means and standard deviations over the n scans with a value (hd95_n for HD95)."""

    structure: str
    n: int
    dice: float
    dice_sd: float
    surface_dice: float
    hd95_mm: float
    hd95_n: int
    missed: int
    invented: int


def dice_by_label(found: LabelsKJI, truth: LabelsKJI, labels: Iterable[int]) -> dict[int, float | None]:
    """2 |A and B| / (|A| + |B|) of each label, None where both are empty; one pass over the arrays, any axis order."""
    wanted = list(labels)
    size = max([*wanted, int(found.max(initial=0)), int(truth.max(initial=0))]) + 1
    flat_found, flat_truth = found.ravel(), truth.ravel()
    in_found, in_truth = np.bincount(flat_found, minlength=size), np.bincount(flat_truth, minlength=size)
    in_both = np.bincount(flat_truth[flat_found == flat_truth], minlength=size)
    total = in_found + in_truth
    return {n: float(2 * in_both[n] / total[n]) if total[n] else None for n in wanted}


def score_case(
    found_kji: LabelsKJI,
    truth_kji: LabelsKJI,
    spacing_mm: Triple,
    structures: Mapping[int, str],
    *,
    case: str = "",
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> list[StructureScore]:
    """Scores of every structure (label -> name) of two label maps on one grid; spacing_mm along i, j, k.

    Raises ValueError where the shapes differ: resample the found map to the scan's own grid first.
    """
    if found_kji.shape != truth_kji.shape:
        raise ValueError(f"label maps of shapes {found_kji.shape} and {truth_kji.shape} do not lie on one grid")
    voxel_ml = math.prod(spacing_mm) / 1000
    dice = dice_by_label(found_kji, truth_kji, structures)
    scores = []
    for label, name in structures.items():
        a, b = found_kji == label, truth_kji == label
        found_ml, truth_ml = float(a.sum()) * voxel_ml, float(b.sum()) * voxel_ml
        surface: float | None = None
        hd95: float | None = None
        if found_ml and truth_ml:
            surface, hd95 = surface_scores(a, b, spacing_mm, tolerance_mm=tolerance_mm)
        elif found_ml or truth_ml:
            surface = 0.0
        scores.append(
            StructureScore(
                case=case, structure=name, dice=dice[label], surface_dice=surface, hd95_mm=hd95, truth_ml=truth_ml, found_ml=found_ml
            )
        )
    return scores


def surface_scores(
    first_kji: NDArray[np.bool_], second_kji: NDArray[np.bool_], spacing_mm: Triple, *, tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> tuple[float, float]:
    """(surface Dice at `tolerance_mm`, HD95 in mm) of two masks that are not empty; HD95 is the larger of the two directions."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    box = _box(first_kji | second_kji)
    # One empty voxel around: the end of the array is a surface for every implementation.
    a, b = (torch.from_numpy(np.pad(mask[box], 1).astype(np.float32))[None, None] for mask in (first_kji, second_kji))
    steps = list(reversed(spacing_mm))
    with warnings.catch_warnings():
        # MONAI 1.6 calls a function of its own with an argument that it has deprecated.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        surface = compute_surface_dice(a, b, class_thresholds=[tolerance_mm], include_background=True, spacing=steps)
        hd = compute_hausdorff_distance(a, b, include_background=True, percentile=HD_PERCENTILE, spacing=steps)
    return float(surface[0, 0]), float(hd[0, 0])


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def summarise(scores: Sequence[StructureScore]) -> list[StructureSummary]:
    """One line per structure, in order of first appearance; a structure that no scan has is left out."""
    lines = []
    for name in dict.fromkeys(score.structure for score in scores):
        own = [score for score in scores if score.structure == name and score.dice is not None]
        if not own:
            continue
        dice = np.array([score.dice for score in own], dtype=np.float64)
        hd = [score.hd95_mm for score in own if score.hd95_mm is not None]
        lines.append(
            StructureSummary(
                structure=name,
                n=len(own),
                dice=float(dice.mean()),
                dice_sd=float(dice.std(ddof=1)) if len(own) > 1 else math.nan,
                surface_dice=float(np.mean([score.surface_dice for score in own])),
                hd95_mm=float(np.mean(hd)) if hd else math.nan,
                hd95_n=len(hd),
                missed=sum(score.missed for score in own),
                invented=sum(score.invented for score in own),
            )
        )
    return lines


def mean_dice(scores: Sequence[StructureScore]) -> float:
    """Mean over structures of the mean over scans; each structure weighs the same. NaN without any."""
    lines = summarise(scores)
    return float(np.mean([line.dice for line in lines])) if lines else math.nan


def as_markdown(lines: Sequence[StructureSummary], *, tolerance_mm: float = SURFACE_TOLERANCE_MM) -> str:
    """The table, with the mean over structures in its last row."""
    rows = [
        f"| structure | scans | Dice | SD | surface Dice at {tolerance_mm:g} mm | HD95 (mm) | missed | invented |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        hd = _number(x.hd95_mm, 1) + (f" (n = {x.hd95_n})" if x.hd95_n != x.n else "")
        row = [x.structure, str(x.n), _number(x.dice, 3), _number(x.dice_sd, 3), _number(x.surface_dice, 3), hd]
        rows.append(f"| {' | '.join([*row, str(x.missed), str(x.invented)])} |")
    if lines:
        mean = [_number(float(np.mean([getattr(x, name) for x in lines])), 3) for name in ("dice", "surface_dice")]
        rows.append(f"| **mean of structures** | | **{mean[0]}** | | **{mean[1]}** | | | |")
    return "\n".join(rows) + "\n"


def measures(cases: Sequence[Sequence[StructureScore]]) -> dict[str, Measure]:
    """Dice, surface Dice and HD95 of each structure over the cases that have a value, and their means over organs and kinds of lesion."""
    lesions = [lesion.name for lesion in ontology().lesions]
    scored = {score.structure for case in cases for score in case}
    names = [name for name in [*(s.name for s in ontology().structures), *lesions] if name in scored]
    out: dict[str, Measure] = {}
    for metric, field in (("Dice", "dice"), ("surface Dice", "surface_dice"), ("HD95 (mm)", "hd95_mm")):
        by_case = [{score.structure: getattr(score, field) for score in case} for case in cases]
        of = {name: mean([math.nan if (v := case.get(name)) is None else v for case in by_case]) for name in names}
        out |= {f"segmentation/{name}/{metric}": measure for name, measure in of.items()}
        for group, chosen in (("organs", [n for n in names if n not in lesions]), ("lesions", [n for n in names if n in lesions])):
            if chosen:
                out[f"segmentation/{group}/{metric}"] = mean_of([of[name] for name in chosen])
    return out


def as_records(lines: Sequence[StructureSummary | StructureScore]) -> list[dict[str, Any]]:
    """JSON-ready; numbers that do not exist are null."""
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(line).items()} for line in lines]


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
