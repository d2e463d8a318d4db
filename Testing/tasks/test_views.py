"""Both views in physical space: the same patient gives the same view, whatever the order of the voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from VelvetMedLib.ct import from_array
from VelvetMedLib.tasks.views import fine_view, global_view, scaled, squeeze_box, windowed


def test_windows_map_to_zero_and_one_and_clip():
    hu = np.array([-2000.0, -1000.0, 0.0, 1000.0, 3000.0])
    assert np.allclose(scaled(hu, (-1000, 1000)), [0, 0, 0.5, 1, 1])
    assert windowed(hu.reshape(5, 1, 1)).shape == (2, 5, 1, 1)


def test_a_volume_already_on_a_fine_grid_keeps_its_voxels(make_body: Any):
    volume = make_body((40, 40, 40), 4.0)
    view = fine_view(volume, (4.0, 4.0, 4.0))
    offset = np.rint((view.grid.ijk_to_ras[:3, 3] - volume.ijk_to_ras[:3, 3]) / 4).astype(int)
    box = tuple(slice(o, o + n) for o, n in zip(offset, view.hu_xyz.shape, strict=True))
    assert np.abs(view.hu_xyz - volume.voxels_kji.transpose(2, 1, 0)[box]).max() <= 1


@pytest.mark.parametrize("flips", [(), (2,), (1,), (0, 1, 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_flipped_and_permuted_scans_give_the_same_views(body: Any, flips: tuple[int, ...], order: tuple[int, ...]):
    voxels, affine = body.voxels_kji.transpose(order), np.eye(4)
    ijk_of_new = [2 - order[2 - a] for a in range(3)]
    affine[:3, :3] = body.ijk_to_ras[:3, ijk_of_new]
    affine[:3, 3] = body.ijk_to_ras[:3, 3]
    for axis in flips:
        column = 2 - axis
        affine[:3, 3] += affine[:3, column] * (voxels.shape[axis] - 1)
        affine[:3, column] *= -1
        voxels = np.flip(voxels, axis)
    turned = fine_view(from_array(np.ascontiguousarray(voxels), affine))
    plain = fine_view(body)
    assert turned.grid.equals(plain.grid)
    assert np.abs(turned.hu_xyz - plain.hu_xyz).max() <= 1.0
    assert np.array_equal(turned.in_view, plain.in_view)


def test_squeezing_is_an_exact_mean_over_each_cell(rng: np.random.Generator):
    hu = rng.uniform(-900, 900, (12, 8, 20))
    affine = np.diag([2.0, 3.0, 1.5, 1.0])
    box = (np.array([-1.0, -1.5, -0.75]), np.array([23.0, 22.5, 29.25]))
    seen = squeeze_box(hu, affine, box, shape=(4, 4, 5))
    blocks = scaled(hu, (-1000, 1000)).reshape(4, 3, 4, 2, 5, 4).mean((1, 3, 5))
    assert np.allclose(seen.voxels_xyz, blocks, atol=1e-5)
    assert seen.view_spacing_mm == pytest.approx((6.0, 6.0, 6.0))
    assert seen.ijk_to_ras[:3, 3] == pytest.approx([2.0, 1.5, 2.25])


def test_a_box_beyond_the_scan_is_air_there():
    seen = squeeze_box(np.zeros((4, 4, 4)), np.eye(4), (np.full(3, -4.5), np.full(3, 3.5)), shape=(2, 2, 2))
    assert seen.voxels_xyz[0, 0, 0] == 0.0 and seen.voxels_xyz[1, 1, 1] == pytest.approx(0.5)


def test_the_mean_of_the_global_view_is_that_of_the_fine_view(body: Any):
    view = fine_view(body)
    seen = global_view(view)
    assert seen.voxels_xyz.shape == (64, 64, 64) and seen.voxels_xyz.min() >= 0 and seen.voxels_xyz.max() <= 1
    index = np.linalg.inv(view.grid.ijk_to_ras) @ np.append(view.body_box_ras[0], 1.0)
    low = np.round(index[:3]).astype(int)
    inside = scaled(view.hu_xyz, (-1000, 1000))[low[0] :, low[1] :, low[2] :]
    assert abs(float(inside.mean()) - float(seen.voxels_xyz.mean())) < 0.08


def test_an_oblique_scan_is_marked_where_the_grid_leaves_it(body: Any):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    view = fine_view(from_array(body.voxels_kji, turn @ body.ijk_to_ras))
    inner = view.in_view[1:-1, 1:-1, 1:-1]
    assert inner.any() and not inner.all()
    assert (view.hu_xyz[~inner] < -900).mean() > 0.98


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
