"""The cube around a scan's middle: every voxel where its grid says, for every orientation; equal to the public package's own."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from VelvetMedLib import ct
from VelvetMedLib.ct.crops import cell_grid, centre_crop

WINDOW = (-1000.0, 1000.0)


def ramp(shape_kji: tuple[int, int, int], ijk_to_ras: NDArray[np.float64]) -> ct.Volume:
    """HU that are linear in RAS mm, so that linear interpolation is exact: 2 R + 3 A + 5 S."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape_kji), indexing="ij")
    points = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ ijk_to_ras.T
    return ct.Volume((points[..., :3] @ np.array([2.0, 3.0, 5.0])).astype(np.float32), ijk_to_ras)


def points_of(grid: ct.Grid) -> NDArray[np.float64]:
    """RAS mm of every voxel of a grid, [X, Y, Z, 3]."""
    z, y, x = grid.shape_kji
    ijk = np.stack([*np.meshgrid(np.arange(x), np.arange(y), np.arange(z), indexing="ij"), np.ones((x, y, z))], axis=-1)
    return (ijk @ grid.ijk_to_ras.T)[..., :3]


def expected(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ np.array([2.0, 3.0, 5.0]) / 1000.0


def turned(degrees: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])


def affine(axes: NDArray[np.float64], shape_kji: tuple[int, int, int]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    matrix[:3, 3] = np.array([4.0, -7.0, 3.0]) - axes @ ((np.array(shape_kji[::-1]) - 1) / 2)
    return matrix


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_every_voxel_lies_where_the_grid_says_also_in_an_oblique_scan(degrees: float) -> None:
    shape = (30, 36, 41)
    volume = ramp(shape, affine(turned(degrees) @ np.diag([1.5, 1.7, 2.5]), shape))
    view = centre_crop(volume, 2.0, (16, 24, 20), WINDOW)
    assert view.voxels_xyz.shape == (16, 24, 20) and view.grid.shape_kji == (20, 24, 16)
    assert np.allclose(view.grid.spacing_mm, 2.0)
    inner = tuple(slice(first + 1, end - 1) for first, end in view.covered)
    difference = np.abs(view.voxels_xyz - expected(points_of(view.grid)))[inner]
    assert difference.max() < 2e-5


def test_all_forty_eight_ways_to_store_a_scan_give_one_view() -> None:
    shape = (20, 26, 32)
    volume = ramp(shape, affine(np.diag([2.4, 2.0, 3.1]), shape))
    wanted = centre_crop(volume, 2.0, (24, 24, 32), WINDOW)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        voxels = volume.voxels_kji.transpose(axes)[tuple(slice(None, None, f) for f in flips)]
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        matrix[:3, 3] = volume.ijk_to_ras[:3, 3]
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            column = volume.ijk_to_ras[:3, 2 - old]
            matrix[:3, 2 - new] = column * flip
            matrix[:3, 3] += column * (shape[old] - 1) * (flip < 0)
        view = centre_crop(ct.Volume(np.ascontiguousarray(voxels), matrix), 2.0, (24, 24, 32), WINDOW)
        np.testing.assert_allclose(view.voxels_xyz, wanted.voxels_xyz, atol=1e-5)
        assert view.grid.equals(wanted.grid)


def test_what_is_missing_is_padded_with_the_scans_lowest_value_and_the_odd_voxel_stands_first() -> None:
    shape = (10, 10, 9)
    volume = ramp(shape, affine(np.diag([2.0, 2.0, 2.0]), shape))
    view = centre_crop(volume, 2.0, (12, 8, 10), WINDOW)
    assert view.covered == ((2, 11), (0, 8), (0, 10))
    assert np.ptp(view.voxels_xyz[:2]) == np.ptp(view.voxels_xyz[11:]) == 0
    assert view.voxels_xyz[0, 0, 0] == pytest.approx(float(volume.voxels_kji.min()) / 1000.0, abs=1e-6)
    inside = view.voxels_xyz[2:11]
    np.testing.assert_allclose(inside, expected(points_of(view.grid))[2:11], atol=1e-5)


def test_the_window_is_mapped_to_minus_one_and_one() -> None:
    hu = np.tile(np.array([-1024, -1000, 0, 250, 500, 1000, 1500, 3000], np.int16), (8, 8, 1))
    view = centre_crop(ct.Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0])), 2.0, (8, 8, 8), WINDOW)
    assert view.voxels_xyz[:, 0, 0].tolist() == [-1.0, -1.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.0]


def test_a_scan_thinner_than_one_voxel_still_gives_one() -> None:
    volume = ct.Volume(np.zeros((40, 40, 33), np.int16), np.diag([0.03, 2.0, 2.0, 1.0]))
    assert centre_crop(volume, 2.0, (8, 8, 8), WINDOW).covered[0] == (4, 5)


def test_a_cell_covers_its_block_of_voxels() -> None:
    shape = (16, 16, 16)
    view = centre_crop(ramp(shape, affine(turned(20.0) @ np.diag([2.0, 2.0, 2.0]), shape)), 2.0, shape, WINDOW)
    cells = cell_grid(view.grid, 8)
    assert cells.shape_kji == (2, 2, 2) and np.allclose(cells.spacing_mm, 16.0)
    middle = points_of(view.grid)[:8, 8:16, :8].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(points_of(cells)[0, 1, 0], middle, atol=1e-9)


def oblique(volume: ct.Volume) -> ct.Volume:
    matrix = volume.ijk_to_ras.copy()
    matrix[:3] = turned(17.0) @ matrix[:3]
    return ct.from_array(volume.voxels_kji, matrix)


def flipped(volume: ct.Volume) -> ct.Volume:
    """Stored from feet to head the other way round, left-handed."""
    matrix = volume.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, 2] * (volume.shape_kji[0] - 1)
    matrix[:3, 2] *= -1
    return ct.from_array(np.ascontiguousarray(volume.voxels_kji[::-1]), matrix)


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "orientation", "spacing_mm", "side"),
    [
        (lambda v: v, "RAS", 2.0, 192),
        (lambda v: v, "SAR", 2.0, 192),
        (oblique, "RAS", 2.0, 192),
        (flipped, "RAS", 2.0, 192),
        (lambda v: v, "RAS", 1.0, 384),
    ],
    ids=["as it is", "superior first", "oblique", "flipped", "1 mm"],
)
def test_the_view_of_the_sample_scan_is_the_packages_own(
    sample: Any, tmp_path: Path, change: Any, orientation: str, spacing_mm: float, side: int
) -> None:
    """Both interpolate linearly. The package cuts an int16 scan's values to whole HU, ours keeps them: less than 1 HU, 0.001 here."""
    from Testing.plugins.colipri_package import load_package, their_processor, write_nifti_for_them

    load_package()
    import torchio

    volume = change(ct.read(sample.ct))
    path = write_nifti_for_them(volume, tmp_path / "scan.nii")
    image = their_processor(side, spacing_mm, orientation)(torchio.ScalarImage(path))
    theirs = image.data[0].numpy()
    view = centre_crop(volume, spacing_mm, (side, side, side), WINDOW)
    ours = view.voxels_xyz.transpose(2, 1, 0) if orientation == "SAR" else view.voxels_xyz
    assert theirs.shape == ours.shape
    difference = np.abs(theirs - ours)
    print(f"\nlargest difference {difference.max():.6f}, mean {difference.mean():.7f}")
    assert difference.max() <= 0.00101 and difference.mean() <= 0.0005
    if orientation == "RAS":
        np.testing.assert_allclose(image.affine, view.grid.ijk_to_ras, atol=1e-3)
