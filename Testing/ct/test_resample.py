"""Resampling equals its slow twin, does not alias when shrinking, and leaves air outside."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.ct.resample import as_ras, resample_array


def slow_trilinear(array: np.ndarray, source: Grid, target: Grid, outside: float) -> np.ndarray:
    """Voxel by voxel: eight neighbours, weights from fractions, borders repeated up to half a voxel beyond the last centre."""
    out = np.full(target.shape_kji, outside, dtype=np.float64)
    matrix = source.ras_to_ijk @ target.ijk_to_ras
    size = np.array(source.shape_kji[::-1])
    for k, j, i in np.ndindex(*target.shape_kji):
        where = (matrix @ [i, j, k, 1.0])[:3]
        if (where < -0.5).any() or (where >= size - 0.5).any():
            continue
        base = np.floor(where).astype(int)
        part = where - base
        value = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            x, y, z = np.clip(base + corner, 0, size - 1)
            value += np.prod(np.where(corner, part, 1 - part)) * array[z, y, x]
        out[k, j, i] = value
    return out


def slow_nearest(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    out = np.zeros(target.shape_kji, dtype=array.dtype)
    matrix = source.ras_to_ijk @ target.ijk_to_ras
    size = np.array(source.shape_kji[::-1])
    for k, j, i in np.ndindex(*target.shape_kji):
        where = (matrix @ [i, j, k, 1.0])[:3]
        if (where >= -0.5).all() and (where < size - 0.5).all():
            x, y, z = np.clip(np.floor(where + 0.5).astype(int), 0, size - 1)
            out[k, j, i] = array[z, y, x]
    return out


def oblique(shape: tuple[int, int, int], spacing: list[float], seed: int) -> Grid:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] * spacing
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    matrix[:3, 3] = rng.normal(size=3) - axes @ ((np.array(shape[::-1]) - 1) / 2)
    return Grid(shape, matrix)


@pytest.mark.parametrize("seed", range(4))
def test_linear_resampling_equals_the_slow_obvious_trilinear_twin(seed) -> None:
    rng = np.random.default_rng(seed)
    source, target = oblique((9, 10, 11), [1.0, 1.3, 2.0], seed), oblique((12, 8, 7), [1.5, 1.0, 1.7], seed + 50)
    array = rng.normal(0, 400, source.shape_kji).astype(np.float32)
    fast = resample_array(array, source, target, outside=-1024.0, antialias=False)
    np.testing.assert_allclose(fast, slow_trilinear(array, source, target, -1024.0), atol=0.05)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_label_resampling_equals_the_slow_nearest_twin_and_keeps_its_type(seed, dtype) -> None:
    rng = np.random.default_rng(seed)
    source, target = oblique((9, 10, 11), [1.0, 1.3, 2.0], seed), oblique((12, 8, 7), [1.5, 1.0, 1.7], seed + 50)
    labels = rng.integers(0, np.iinfo(dtype).max, source.shape_kji, dtype=dtype, endpoint=True)
    fast = ct.resample_labels(labels, source, target)
    assert fast.dtype == dtype
    np.testing.assert_array_equal(fast, slow_nearest(labels, source, target))


def test_bool_masks_stay_bool() -> None:
    grid = Grid((8, 9, 10), np.eye(4))
    mask = np.zeros(grid.shape_kji, dtype=bool)
    mask[2:5, 3, 4:] = True
    out = ct.resample_labels(mask, grid, grid)
    assert out.dtype == np.bool_
    np.testing.assert_array_equal(out, mask)


def test_decimal_labels_and_arrays_off_their_grid_are_programming_errors() -> None:
    grid = Grid((8, 9, 10), np.eye(4))
    with pytest.raises(TypeError, match="integers"):
        ct.resample_labels(np.zeros(grid.shape_kji, dtype=np.float32), grid, grid)
    with pytest.raises(ValueError, match="does not lie"):
        ct.resample_labels(np.zeros((8, 9, 11), dtype=np.uint8), grid, grid)


def test_a_volume_on_its_own_grid_comes_back_unchanged(phantom) -> None:
    volume = ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras)
    same = ct.resample(volume, volume.grid)
    assert same.voxels_kji.dtype == np.int16
    np.testing.assert_array_equal(same.voxels_kji, volume.voxels_kji)


def test_outside_the_scan_is_air_unless_asked_otherwise(phantom) -> None:
    volume = ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras)
    far = np.diag([3.0, 3.0, 4.0, 1.0])
    far[:3, 3] = 10_000
    assert (ct.resample(volume, Grid((8, 8, 8), far)).voxels_kji == -1024).all()
    assert (ct.resample(volume, Grid((8, 8, 8), far), outside_hu=0).voxels_kji == 0).all()


def checkerboard(n: int) -> np.ndarray:
    k, j, i = np.indices((n, n, n))
    return np.where((i + j + k) % 2 == 0, 1000, -1000).astype(np.int16)


@pytest.mark.parametrize("factor", [1.9, 2.0, 3.0, 4.1, 5.7])
def test_a_checkerboard_shrunk_is_grey_and_not_a_false_pattern(factor) -> None:
    volume = ct.Volume(checkerboard(48), np.eye(4))
    grid = ct.ras_grid(volume, (factor,) * 3, box_ras=((8, 8, 8), (40, 40, 40)))
    smooth = ct.resample(volume, grid).voxels_kji
    aliased = ct.resample(volume, grid, antialias=False).voxels_kji
    assert np.abs(smooth).max() < 100  # of 1000
    assert np.abs(aliased).max() > 300 or factor == 2.0  # halving falls exactly between the squares


@pytest.mark.parametrize("factor", [1.6, 2.5, 5.7])
def test_smoothing_keeps_the_mean_and_the_place_of_a_blob(factor) -> None:
    k, j, i = np.indices((60, 60, 60)) - 29.5
    blob = 1000 * np.exp(-((i - 3) ** 2 + (j + 4) ** 2 + (k - 1) ** 2) / (2 * 6.0**2))
    volume = ct.Volume(blob.astype(np.float32), Grid((60, 60, 60), np.eye(4)).ijk_to_ras)
    small = ct.resample(volume, ct.ras_grid(volume, (factor,) * 3))
    weights = small.voxels_kji.astype(float)
    weights[weights < 0] = 0  # air outside
    assert weights.sum() * factor**3 == pytest.approx(blob.sum(), rel=0.02)
    z, y, x = (float((weights * axis).sum() / weights.sum()) for axis in np.indices(weights.shape))
    np.testing.assert_allclose((small.ijk_to_ras @ [x, y, z, 1.0])[:3] - 29.5, [3, -4, 1], atol=0.15)


@pytest.mark.parametrize("growth", [1.05, 1.3, 1.9, 2.6, 4.0, 5.7, 9.2])
def test_the_blur_has_its_variance_and_equals_plain_convolution(growth) -> None:
    from scipy.ndimage import correlate1d

    from VelvetMedLib.ct.smooth import bands, kernel

    variance, block = (growth**2 - 1) / (8 * np.log(2)), max(1, int(growth / 2))
    size = 150
    matrix = np.zeros((-(-size // block), size))
    for rows, columns, part in bands(size, variance, block):
        matrix[rows, columns] = part
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    middle = matrix.shape[0] // 2
    places = np.arange(size)
    mean = (matrix[middle] * places).sum()
    assert mean == pytest.approx(middle * block + (block - 1) / 2, abs=1e-4)
    assert (matrix[middle] * (places - mean) ** 2).sum() == pytest.approx(variance, rel=5e-3)
    if block % 2:
        reach = np.arange(-30, 31).astype(float)
        weights = kernel(reach, variance)
        line = np.random.default_rng(0).normal(size=size)
        slow = correlate1d(line, weights / weights.sum(), mode="nearest")[(block - 1) // 2 :: block]
        np.testing.assert_allclose((matrix @ line)[: slow.size], slow, atol=2e-4)


def test_smoothing_blurs_to_the_width_of_the_new_voxel() -> None:
    line = np.zeros((16, 16, 241), dtype=np.float32)
    line[:, :, 120] = 10_000
    source = Grid(line.shape, np.eye(4))
    x, out = [], []
    for shift in np.arange(0, 5, 0.5):  # many coarse grids, shifted, show the blur finely
        matrix = np.diag([5.0, 1.0, 1.0, 1.0])
        matrix[0, 3] = shift
        out.append(resample_array(line, source, Grid((16, 16, 48), matrix), outside=0.0)[8, 8])
        x.append(np.arange(48) * 5.0 + shift)
    places, heights = np.concatenate(x), np.concatenate(out)
    mean = (heights * places).sum() / heights.sum()
    variance = (heights * (places - mean) ** 2).sum() / heights.sum()
    wanted = (5.0**2 - 1) / (8 * np.log(2))
    assert mean == pytest.approx(120, abs=0.6)
    # Linear interpolation between every second voxel adds its triangle, 2^2 / 6.
    assert variance == pytest.approx(wanted + 4 / 6, rel=0.02)


@pytest.mark.parametrize("spacing", [1.0, 2.2, 5.3])
def test_a_part_resampled_alone_equals_the_part_of_the_whole(spacing) -> None:
    array = np.random.default_rng(0).normal(0, 300, (90, 80, 100)).astype(np.float32)
    source = oblique(array.shape, [-1.0, 1.1, 1.2], 3)
    whole = ct.ras_grid(source, (spacing,) * 3)
    first = np.array(whole.shape_kji) // 3
    matrix = whole.ijk_to_ras.copy()
    matrix[:3, 3] = (whole.ijk_to_ras @ [*first[::-1], 1.0])[:3]
    part = Grid((7, 6, 5), matrix)
    expected = resample_array(array, source, whole, outside=0.0)[tuple(slice(f, f + n) for f, n in zip(first, part.shape_kji, strict=True))]
    np.testing.assert_allclose(resample_array(array, source, part, outside=0.0), expected, atol=0.01)


def test_an_axis_that_does_not_shrink_is_not_smoothed(phantom) -> None:
    volume = ct.Volume(checkerboard(24), np.diag([1.0, 1.0, 1.0, 1.0]))
    finer = ct.ras_grid(volume, (0.5, 0.5, 0.5))
    a, b = ct.resample(volume, finer), ct.resample(volume, finer, antialias=False)
    np.testing.assert_array_equal(a.voxels_kji, b.voxels_kji)


def test_a_float_volume_stays_float(phantom) -> None:
    volume = ct.from_array(phantom.voxels_kji + np.float32(0.25), phantom.ijk_to_ras)
    assert volume.voxels_kji.dtype == np.float32
    assert ct.resample(volume, ct.ras_grid(volume, (5.0, 5.0, 5.0))).voxels_kji.dtype == np.float32


def test_the_ras_view_of_a_scan_keeps_every_voxel_in_its_place(phantom) -> None:
    matrix = phantom.ijk_to_ras @ np.array([[0, 0, -1, 47], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    array = np.ascontiguousarray(np.flip(phantom.voxels_kji, axis=2).transpose(2, 0, 1))
    turned, back = as_ras(array, Grid(array.shape, matrix))
    np.testing.assert_array_equal(turned, phantom.voxels_kji)
    np.testing.assert_allclose(back, phantom.ijk_to_ras, atol=1e-9)


def test_shrinking_loses_no_slice_at_the_far_end(on_centre) -> None:
    # 23 slices in blocks of 2: the last, incomplete block must still count.
    voxels = np.full((23, 16, 16), -1000, dtype=np.int16)
    voxels[-1:] = 20_000
    volume = ct.Volume(voxels, np.eye(4))
    out = ct.resample(volume, ct.ras_grid(volume, (1.0, 1.0, 5.0)))
    assert out.voxels_kji[-1].mean() > 1000
