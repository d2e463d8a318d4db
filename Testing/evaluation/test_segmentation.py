"""Scores of label maps against slow definitions: Dice by sets of voxels, surfaces by distances between all pairs of surface voxels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("monai", reason="surface distances are MONAI's")

from VelvetMedLib.evaluation.segmentation import (
    StructureScore,
    as_markdown,
    as_records,
    dice_by_label,
    mean_dice,
    measures,
    score_case,
    summarise,
    surface_scores,
)

SPACING = (0.7, 1.0, 2.5)  # i, j, k


def slow_surface(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres (k, j, i) of voxels with a face neighbour outside the mask; outside the array counts as outside."""
    cells = []
    for cell in map(tuple, np.argwhere(mask)):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = list(cell)
            other[axis] += step
            if not all(0 <= n < side for n, side in zip(other, mask.shape, strict=True)) or not mask[tuple(other)]:
                cells.append(cell)
                break
    return np.array(cells, dtype=np.float64)


def slow_scores(a: NDArray[np.bool_], b: NDArray[np.bool_], tolerance_mm: float) -> tuple[float, float]:
    steps = np.array(SPACING[::-1])
    pa, pb = slow_surface(a) * steps, slow_surface(b) * steps
    distance = np.sqrt(((pa[:, None] - pb[None]) ** 2).sum(-1))
    to_b, to_a = distance.min(1), distance.min(0)
    surface = ((to_b <= tolerance_mm).sum() + (to_a <= tolerance_mm).sum()) / (len(to_a) + len(to_b))
    return float(surface), float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def blobs(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    k, j, i = np.ogrid[:9, :12, :13]
    centre = rng.uniform(3, 8, (2, 3))
    radius = rng.uniform(2, 5, 2)
    return tuple((k - c[0]) ** 2 + (j - c[1]) ** 2 + (i - c[2]) ** 2 < r * r for c, r in zip(centre, radius, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_surface_dice_and_hd95_equal_distances_between_all_pairs_of_surface_voxels(seed: int) -> None:
    a, b = blobs(seed)
    fast = surface_scores(a, b, SPACING, tolerance_mm=2.0)
    assert fast == pytest.approx(slow_scores(a, b, 2.0), abs=1e-4)
    assert surface_scores(b, a, SPACING, tolerance_mm=2.0) == pytest.approx(fast, abs=1e-4)


def test_a_shift_by_one_slice_is_one_slice_thickness_along_k() -> None:
    a = np.zeros((12, 8, 8), bool)
    a[2:6, 2:6, 2:6] = True
    assert surface_scores(a, np.roll(a, 1, axis=0), SPACING)[1] == pytest.approx(2.5)
    assert surface_scores(a, np.roll(a, 1, axis=2), SPACING)[1] == pytest.approx(0.7)


def test_dice_by_label_equals_sets_of_voxels() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.integers(0, 4, (5, 6, 7), np.uint8), rng.integers(0, 4, (5, 6, 7), np.uint8)
    truth[truth == 3] = 0
    fast = dice_by_label(found, truth, [1, 2, 3, 9])
    for label in (1, 2, 3):
        a, b = set(map(tuple, np.argwhere(found == label))), set(map(tuple, np.argwhere(truth == label)))
        assert fast[label] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert fast[3] == 0.0 and fast[9] is None


def test_empty_masks_are_missed_invented_or_not_scored_and_never_a_perfect_score() -> None:
    truth, found = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[:2] = 1
    found[3] = 2
    names = {1: "liver", 2: "spleen", 3: "kidney"}
    liver, spleen, kidney = score_case(found, truth, (1.0, 1.0, 1.0), names, case="a")
    assert liver.missed and (liver.dice, liver.surface_dice, liver.hd95_mm) == (0.0, 0.0, None)
    assert spleen.invented and spleen.dice == 0.0 and spleen.found_ml == pytest.approx(0.016)
    assert (kidney.dice, kidney.surface_dice, kidney.missed, kidney.invented) == (None, None, False, False)
    assert [line.structure for line in summarise([liver, spleen, kidney])] == ["liver", "spleen"]


def test_a_map_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        score_case(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), (1.0, 1.0, 1.0), {1: "x"})


def score(case: str, structure: str, dice: float | None, hd: float | None = None) -> StructureScore:
    return StructureScore(
        case=case, structure=structure, dice=dice, surface_dice=dice, hd95_mm=hd, truth_ml=1.0, found_ml=1.0 if dice else 0.0
    )


def test_the_summary_weighs_structures_alike_and_counts_scans_without_a_distance() -> None:
    scores = [score("a", "liver", 0.8, 3.0), score("b", "liver", 0.6, 5.0), score("c", "liver", 0.0), score("a", "spleen", 0.9, 1.0)]
    liver, spleen = summarise(scores)
    assert (liver.n, liver.hd95_n, liver.missed) == (3, 2, 1)
    assert liver.dice == pytest.approx(1.4 / 3) and liver.hd95_mm == pytest.approx(4.0)
    assert liver.dice_sd == pytest.approx(float(np.std([0.8, 0.6, 0.0], ddof=1))) and math.isnan(spleen.dice_sd)
    assert mean_dice(scores) == pytest.approx((1.4 / 3 + 0.9) / 2)
    table = as_markdown([liver, spleen])
    assert "| liver | 3 | 0.467 |" in table and "4.0 (n = 2)" in table and "**0.683**" in table
    assert as_records([spleen])[0]["dice_sd"] is None
    assert math.isnan(mean_dice([]))


def test_measures_average_a_structure_over_the_cases_that_have_it_and_groups_over_structures() -> None:
    cases = [[score("a", "liver", 0.8, 4.0), score("a", "lung_nodule", 0.4)], [score("b", "liver", 0.6)], [score("c", "spleen", 0.5, 6.0)]]
    found = {name: float(measure(np.ones((1, 3)))[0]) for name, measure in measures(cases).items()}
    assert found["segmentation/liver/Dice"] == pytest.approx(0.7) and found["segmentation/organs/Dice"] == pytest.approx(0.6)
    assert found["segmentation/lesions/surface Dice"] == pytest.approx(0.4) and np.isnan(found["segmentation/lesions/HD95 (mm)"])
    assert found["segmentation/liver/HD95 (mm)"] == 4.0 and found["segmentation/organs/HD95 (mm)"] == pytest.approx(5.0)
    assert list(found)[:2] == ["segmentation/spleen/Dice", "segmentation/liver/Dice"]  # the ontology's order
