"""Long and short axis: the library's lengths, found by brute force too, and in the right place on any grid. No Slicer needed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
OBLIQUE = np.array([[-0.7518, -0.3078, 0, 11], [-0.2736, 0.8457, 0, -22], [0, 0, 2.5, 33], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True)
def module_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "VelvetMed"))


def blob(seed: int, shape: tuple[int, int, int] = (7, 16, 14)) -> np.ndarray:
    """A few overlapping boxes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        low = [int(rng.integers(0, n - 3)) for n in shape]
        high = [int(rng.integers(a + 2, n + 1)) for a, n in zip(low, shape, strict=True)]
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] |= (
            rng.random([b - a for a, b in zip(low, high, strict=True)]) < 0.8
        )
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_lengths_are_those_of_the_library_on_an_axis_aligned_grid(seed: int) -> None:
    from VelvetMedCore.callipers import callipers
    from VelvetMedLib.case.measure import axial_axes
    from VelvetMedLib.ct import Grid

    mask = blob(seed)
    matrix = np.diag([-0.7, 0.9, 2.0, 1.0])
    found = callipers(mask, matrix)
    expected = axial_axes(mask, Grid(mask.shape, matrix))
    assert found is not None
    assert found.long_mm == pytest.approx(expected.long_mm, abs=1e-6)
    assert found.short_mm == pytest.approx(expected.short_mm, abs=1e-6)


def test_the_longest_pair_of_voxels_is_found_on_an_oblique_left_handed_grid() -> None:
    from VelvetMedCore.callipers import callipers

    mask = blob(11)
    found = callipers(mask, OBLIQUE)
    longest = 0.0
    for plane in range(mask.shape[0]):  # the slow twin: every pair of voxels of every slice, in millimetres
        j, i = np.nonzero(mask[plane])
        points = np.stack([i, j, np.full(len(i), plane)], 1) @ OBLIQUE[:3, :3].T
        longest = max([longest, *(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(points, 2))])
    assert found is not None
    # To the outer edges: half a voxel more at each end, at most a voxel's diagonal in all.
    assert longest <= found.long_mm <= longest + np.hypot(0.8, 0.9) + 1e-9


def test_both_axes_lie_on_one_slice_cross_at_right_angles_and_touch_the_lesion() -> None:
    from VelvetMedCore.callipers import callipers

    mask = np.zeros((5, 30, 30), bool)
    mask[2, 5:25, 10:16] = True
    found = callipers(mask, OBLIQUE)
    assert found is not None
    long, short = np.subtract(*found.long_ras_mm), np.subtract(*found.short_ras_mm)
    assert abs(float(long @ short)) < 1e-4 * float(np.linalg.norm(long) * np.linalg.norm(short))  # the matrix itself is rounded
    back = np.linalg.inv(OBLIQUE)
    ends = [(back @ np.array([*point, 1.0]))[:3] for point in (*found.long_ras_mm, *found.short_ras_mm)]
    assert all(k == pytest.approx(2, abs=1e-9) for _, _, k in ends)
    for i, j, _ in (*ends[:2], np.mean(ends[2:], axis=0)):
        assert 4 <= j <= 25 and 9 <= i <= 16


def test_a_sagittal_volume_is_measured_on_its_most_axial_slices() -> None:
    from VelvetMedCore.callipers import callipers

    sagittal = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])  # i runs along A, j along S, k along R
    mask = np.zeros((4, 12, 20), bool)
    mask[1:3, 5, 4:14] = True
    found = callipers(mask, sagittal)
    assert found is not None and {point[2] for point in (*found.long_ras_mm, *found.short_ras_mm)} == {5.0}


def test_one_voxel_is_as_long_as_it_is_wide_and_nothing_has_no_axes() -> None:
    from VelvetMedCore.callipers import callipers

    mask = np.zeros((3, 4, 5), bool)
    assert callipers(mask, OBLIQUE) is None
    mask[1, 2, 3] = True
    found = callipers(mask, np.diag([0.8, 0.9, 2.0, 1.0]))
    assert found is not None and (found.long_mm, found.short_mm) == (pytest.approx(0.9), pytest.approx(0.8))


def test_of_several_parts_the_one_at_the_point_is_taken_and_none_that_is_far_away() -> None:
    from VelvetMedCore.callipers import component_at

    mask = np.zeros((6, 20, 20), bool)
    mask[1:3, 2:5, 2:5] = mask[4:6, 12:18, 12:18] = True
    near = OBLIQUE[:3, :3] @ np.array([14, 14, 5]) + OBLIQUE[:3, 3]
    assert np.array_equal(np.argwhere(component_at(mask, OBLIQUE, tuple(near))).min(0), (4, 12, 12))
    beside = OBLIQUE[:3, :3] @ np.array([1, 1, 1]) + OBLIQUE[:3, 3]
    assert np.array_equal(np.argwhere(component_at(mask, OBLIQUE, tuple(beside))).max(0), (2, 4, 4))
    assert not component_at(mask, OBLIQUE, (500.0, 0.0, 0.0)).any()
    assert not component_at(np.zeros_like(mask), OBLIQUE, (0.0, 0.0, 0.0)).any()
