"""One patient, stored in every possible way: the same place must hold the same tissue, in millimetres."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from VelvetMedLib import ct

ORDERS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def stored_as(phantom, axes: tuple[int, int, int], signs: tuple[int, int, int]):
    """The phantom with its axes permuted and flipped, and the matrix that still puts every voxel in its place."""
    array, matrix = phantom.voxels_kji.transpose(2, 1, 0), phantom.ijk_to_ras  # indexed (i, j, k) here
    array = array.transpose(axes)
    permutation = np.eye(4)[:, [*axes, 3]]
    matrix = matrix @ permutation
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, array.shape[axis] - 1
            matrix = matrix @ flip
    return np.ascontiguousarray(array.transpose(2, 1, 0)), matrix


def centroid_and_volume(volume: ct.Volume) -> tuple[np.ndarray, float]:
    k, j, i = np.nonzero(volume.voxels_kji > 300)
    ijk = np.array([i.mean(), j.mean(), k.mean(), 1.0])
    return (volume.ijk_to_ras @ ijk)[:3], k.size * volume.grid.voxel_volume_ml


def hu_at(volume: ct.Volume, ras: np.ndarray) -> float:
    i, j, k = np.rint((volume.grid.ras_to_ijk @ [*ras, 1.0])[:3]).astype(int)
    return float(volume.voxels_kji[k, j, i])


def test_there_are_48_ways_to_store_a_box() -> None:
    assert len(ORDERS) == 48


@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_every_axis_order_and_flip_puts_the_ball_at_the_same_place(phantom, axes, signs) -> None:
    volume = ct.from_array(*stored_as(phantom, axes, signs))
    centroid, volume_ml = centroid_and_volume(volume)
    expected, expected_ml = centroid_and_volume(ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras))
    np.testing.assert_allclose(centroid, expected, atol=1e-9)
    assert volume_ml == pytest.approx(expected_ml)
    assert hu_at(volume, phantom.ball_ras_mm) == 600
    assert hu_at(volume, phantom.ball_ras_mm * [-1, 1, 1]) == 40


@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_every_axis_order_and_flip_gives_one_and_the_same_resampled_array(phantom, axes, signs) -> None:
    reference = ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras)
    grid = ct.ras_grid(reference, (7.5, 7.0, 9.0))
    volume = ct.from_array(*stored_as(phantom, axes, signs))
    assert ct.ras_grid(volume, (7.5, 7.0, 9.0)).equals(grid)
    np.testing.assert_array_equal(ct.resample(volume, grid).voxels_kji, ct.resample(reference, grid).voxels_kji)
    labels = (volume.voxels_kji > 300).astype(np.uint8)
    expected = (reference.voxels_kji > 300).astype(np.uint8)
    np.testing.assert_array_equal(
        ct.resample_labels(labels, volume.grid, reference.grid), ct.resample_labels(expected, reference.grid, reference.grid)
    )


@pytest.mark.parametrize(("axes", "signs"), ORDERS[::5])
def test_every_axis_order_and_flip_survives_a_nifti_file(phantom, axes, signs, tmp_path) -> None:
    array, matrix = stored_as(phantom, axes, signs)
    ct.write_nifti(tmp_path / "a.nii.gz", array, matrix)
    back = ct.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.voxels_kji, array)
    np.testing.assert_allclose(back.ijk_to_ras, matrix, atol=1e-5)


def rotation(rng: np.random.Generator) -> np.ndarray:
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("handed", [1, -1])
def test_oblique_scans_of_either_handedness_show_the_ball_where_it_is(at, on_centre, phantom, seed, handed) -> None:
    shape = (60, 64, 58)
    matrix = on_centre(rotation(np.random.default_rng(seed)) * [2.5 * handed, 3.0, 2.8], shape)
    volume = ct.from_array(at(shape, matrix), matrix)
    centroid, volume_ml = centroid_and_volume(volume)
    np.testing.assert_allclose(centroid, phantom.ball_ras_mm, atol=0.5)
    assert volume_ml == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.05)
    grid = ct.ras_grid(volume, (2.0, 2.0, 2.0), box_ras=((0, -10, 10), (50, 40, 60)))
    centroid, _ = centroid_and_volume(ct.resample(volume, grid))
    np.testing.assert_allclose(centroid, phantom.ball_ras_mm, atol=0.5)


def test_a_scan_more_than_ten_times_longer_than_wide_in_its_voxels_keeps_the_ball_in_place(at, on_centre, phantom) -> None:
    shape = (16, 160, 160)
    matrix = on_centre(np.diag([-0.8, -0.8, 10.0]), shape)
    volume = ct.from_array(at(shape, matrix), matrix)
    centroid, _ = centroid_and_volume(volume)
    np.testing.assert_allclose(centroid[:2], phantom.ball_ras_mm[:2], atol=0.3)
    assert abs(centroid[2] - phantom.ball_ras_mm[2]) < 5.0
    assert volume.spacing_mm == pytest.approx((0.8, 0.8, 10.0))
    assert any("only 16 voxels" in w for w in volume.warnings)


def test_a_scan_shifted_far_from_the_origin_keeps_its_millimetres(at, on_centre) -> None:
    shape = (40, 36, 48)
    matrix = on_centre(np.diag([3.0, 3.0, 4.0]), shape)
    voxels = at(shape, matrix)
    moved = matrix.copy()
    moved[:3, 3] += [1000.0, -2000.0, 3000.0]
    a = centroid_and_volume(ct.from_array(voxels, matrix))[0]
    b = centroid_and_volume(ct.from_array(voxels, moved))[0]
    np.testing.assert_allclose(b - a, [1000.0, -2000.0, 3000.0], atol=1e-6)
