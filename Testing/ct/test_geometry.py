"""Grids: spacing, axis names, boxes, the covering RAS grid, and straightening of sheared axes."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.ct.geometry import Grid, axis_codes, straighten


def test_spacing_is_along_i_j_k_and_not_along_array_axes() -> None:
    grid = Grid((10, 20, 30), np.diag([0.7, 0.8, 2.5, 1.0]))
    assert grid.spacing_mm == pytest.approx((0.7, 0.8, 2.5))
    assert grid.voxel_volume_ml == pytest.approx(0.7 * 0.8 * 2.5 / 1000)


def test_axis_codes_agree_with_nibabel_for_oblique_matrices() -> None:
    import nibabel

    rng = np.random.default_rng(0)
    for _ in range(50):
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 5, 3)
        matrix = np.eye(4)
        matrix[:3, :3] = axes
        cosines = np.sort(np.abs(axes / np.linalg.norm(axes, axis=0)).ravel())
        if cosines[-3] - cosines[-4] < 0.1:
            continue  # a tie may be broken either way
        assert axis_codes(matrix) == "".join(nibabel.aff2axcodes(matrix))


def test_a_grid_cannot_be_changed_through_its_matrix() -> None:
    matrix = np.eye(4)
    grid = Grid((8, 8, 8), matrix)
    matrix[0, 3] = 7
    assert grid.ijk_to_ras[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.ijk_to_ras[0, 0] = 2


def test_grids_are_equal_within_a_thousandth_of_a_millimetre_at_every_corner() -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    near, far = np.eye(4), np.eye(4)
    near[0, 3], far[0, 0] = 5e-4, 1.01
    assert grid.equals(Grid((8, 8, 8), near))
    assert not grid.equals(Grid((8, 8, 8), far))
    assert not grid.equals(Grid((8, 8, 9), np.eye(4)))


def test_the_ras_grid_covers_an_oblique_scan_and_overhangs_by_less_than_a_voxel(on_centre) -> None:
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    source = Grid((20, 30, 40), on_centre(turn * [1.5, -2.0, 3.0], (20, 30, 40)))
    grid = ct.ras_grid(source, (4.0, 5.0, 6.0))
    low, high = source.box_ras()
    covered_low, covered_high = grid.box_ras()
    assert (covered_low <= low + 1e-6).all()
    assert (covered_high >= high - 1e-6).all()
    assert ((covered_high - covered_low) - (high - low) < [4.0, 5.0, 6.0]).all()
    assert grid.axis_codes == "RAS"
    assert grid.spacing_mm == pytest.approx((4.0, 5.0, 6.0))


def test_the_ras_grid_of_a_box_covers_that_box_only(phantom) -> None:
    volume = ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras)
    grid = ct.ras_grid(volume, (4.0, 4.0, 4.0), box_ras=((-10, -20, -30), (10, 20, 30)))
    assert grid.shape_kji == (15, 10, 5)
    np.testing.assert_allclose(np.mean(grid.corners_ras(), axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("box", [((0, 0, 0), (10, 10, 0)), ((5, 0, 0), (4, 10, 10))])
def test_an_empty_box_is_a_programming_error(box) -> None:
    with pytest.raises(ValueError, match="hi > lo"):
        ct.ras_grid(Grid((8, 8, 8), np.eye(4)), (1.0, 1.0, 1.0), box_ras=box)


def test_axes_at_right_angles_are_left_alone_whatever_their_handedness() -> None:
    for flip in (1.0, -1.0):
        grid = Grid((10, 10, 10), np.diag([flip * 0.7, 0.7, 2.0, 1.0]))
        assert straighten(grid).grid is grid


def test_a_slightly_sheared_matrix_is_repaired_and_its_centre_stays() -> None:
    matrix = np.diag([0.7, 0.7, 2.5, 1.0])
    matrix[1, 2] = 0.002
    grid = Grid((100, 200, 200), matrix)
    result = straighten(grid)
    assert not result.needs_resampling
    assert 0 < result.off_by_mm < 0.5
    np.testing.assert_allclose(result.grid.corners_ras().mean(axis=0), grid.corners_ras().mean(axis=0), atol=1e-9)


def test_a_tilted_stack_gets_a_straight_grid_that_covers_it_at_the_true_slice_distance() -> None:
    tilt = np.radians(15)
    matrix = np.diag([1.0, 1.0, 3.0 * np.cos(tilt), 1.0])
    matrix[1, 2] = 3.0 * np.sin(tilt)
    grid = Grid((30, 64, 64), matrix)
    result = straighten(grid)
    assert result.needs_resampling
    axes = result.grid.ijk_to_ras[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-9)
    assert result.grid.spacing_mm == pytest.approx((1.0, 1.0, 3.0 * np.cos(tilt)))
    inside = (np.c_[grid.corners_ras(), np.ones(8)] @ result.grid.ras_to_ijk.T)[:, :3]
    assert (inside >= -0.51).all()
    assert (inside <= np.array(result.grid.shape_kji[::-1]) - 0.49).all()
