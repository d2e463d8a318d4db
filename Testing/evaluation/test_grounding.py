"""Pointing: hits within 5 mm, in physical space, beside the chance of a random point; each way of placing a phrase apart."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.ct import Grid
from VelvetMedLib.evaluation.grounding import NEAR_MM, Pointed, body_of, measures, target_of

ANGLE = np.deg2rad(20)
OBLIQUE = np.array(
    [[-2.0 * np.cos(ANGLE), 0, -4.0 * np.sin(ANGLE), 30], [0, 3.0, 0, -5], [-2.0 * np.sin(ANGLE), 0, 4.0 * np.cos(ANGLE), 7], [0, 0, 0, 1]]
)
"""Oblique and left-handed, 2 x 3 x 4 mm: array order must not matter."""


def slow_near(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Distance of every voxel's centre from those of all of the mask, in the patient's millimetres."""
    k, j, i = np.indices(grid.shape_kji).reshape(3, -1)
    ras = (grid.ijk_to_ras @ np.stack([i, j, k, np.ones_like(i)]))[:3].T
    apart = np.linalg.norm(ras[:, None] - ras[mask.ravel()][None], axis=-1).min(1)
    return (apart <= NEAR_MM + 1e-4).reshape(grid.shape_kji)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_is_within_5_mm_of_the_finding_on_an_oblique_left_handed_grid(seed: int) -> None:
    rng, grid = np.random.default_rng(seed), Grid((8, 9, 10), OBLIQUE)
    assert np.linalg.det(OBLIQUE[:3, :3]) < 0
    mask = np.zeros(grid.shape_kji, bool)
    mask[tuple(rng.integers(0, n, 3) for n in mask.shape)] = True
    mask[3:5, 4:7, 2:6] |= seed == 2
    body = rng.random(mask.shape) < 0.7
    found, near = target_of(mask, grid, body), slow_near(mask, grid)
    assert found is not None and np.array_equal(found.near_kji, near)
    assert found.chance == pytest.approx((near & body).sum() / body.sum())
    for k, j, i in rng.integers(0, 8, (40, 3)):
        x, y, z = (OBLIQUE @ np.array([i + 0.4, j - 0.4, k + 0.3, 1.0]))[:3]
        assert found.holds((x, y, z)) == near[k, j, i]


def test_a_peak_beside_the_scan_misses_and_an_empty_finding_is_not_asked() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    mask, body = np.zeros(grid.shape_kji, bool), np.ones(grid.shape_kji, bool)
    assert target_of(mask, grid, body) is None
    mask[0, 0, 0] = True
    found = target_of(mask, grid, body)
    assert found is not None and found.holds((0.0, 0.0, 0.0)) and not found.holds((-1.0, 0.0, 0.0))


def test_the_body_is_tissue_and_the_organs_that_hold_air() -> None:
    hu, organs = np.array([-1000, -900, 40]), np.array([0, 10, 0])
    assert body_of(hu, organs).tolist() == [False, True, True]


def pointed(
    finding: str, *, way: str = "answer", called: bool = True, placed: bool = True, hit: bool = False, chance: float = 0.1
) -> Pointed:
    return Pointed(finding=finding, way=way, called=called, placed=placed, hit=hit, chance=chance)  # type: ignore[arg-type]


def test_what_was_not_placed_or_not_called_counts_as_missed_and_each_way_is_counted_apart() -> None:
    cases = [
        [
            pointed("emphysema", hit=True, called=False, chance=0.5),
            pointed("emphysema", way="lesions", hit=True),
            pointed("lung_mass", placed=False),
            pointed("lung_mass", way="lesions", placed=False),
            pointed("lung_mass", way="similarity", placed=False),
        ],
        [],
        [pointed("emphysema", hit=True, chance=0.3), pointed("emphysema", way="lesions")],
    ]
    found = {name: float(measure(np.ones((1, 3)))[0]) for name, measure in measures(cases).items()}
    assert found["grounding/all/pointing"] == pytest.approx(2 / 3) and found["grounding/all/placed"] == pytest.approx(2 / 3)
    assert found["grounding/all/called and pointed at"] == found["grounding/all/pointing by lesion head"] == pytest.approx(1 / 3)
    assert found["grounding/emphysema/chance"] == pytest.approx(0.4) and found["grounding/lung_mass/pointing"] == 0.0
    assert not any("cosine" in name for name in found), "a bundle that has no such map is not blamed for it"
