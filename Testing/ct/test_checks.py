"""Arrays that are no CT volume: each fault is refused, or told, in its own sentence of four parts."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.errors import ScanError


def refused(array, sentence: str, matrix=None) -> ScanError:
    with pytest.raises(ScanError, match=sentence) as caught:
        ct.from_array(array, np.diag([3.0, 3.0, 4.0, 1.0]) if matrix is None else matrix)
    assert all(caught.value.as_dict().values())
    return caught.value


def body(dtype=np.int16, shape=(40, 36, 48)) -> np.ndarray:
    rng = np.random.default_rng(0)
    array = np.full(shape, -1000.0)
    array[8:-8, 8:-8, 8:-8] = rng.normal(40, 15, array[8:-8, 8:-8, 8:-8].shape)
    return array.astype(dtype)


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "f2", "f4", "f8", ">i2"])
def test_every_number_type_ends_as_int16_or_float32_with_equal_values(dtype) -> None:
    array = body(dtype)
    volume = ct.from_array(array, np.diag([3.0, 3.0, 4.0, 1.0]))
    assert volume.voxels_kji.dtype == (np.float32 if array.dtype.kind == "f" else np.int16)
    np.testing.assert_allclose(volume.voxels_kji, array.astype(np.float64), rtol=1e-3)
    assert volume.warnings == ()
    assert volume.unit == "HU"


def test_the_given_array_is_copied_and_never_changed() -> None:
    array = body()
    array[0, 0, 0] = -2048
    volume = ct.from_array(array, np.diag([3.0, 3.0, 4.0, 1.0]))
    assert array[0, 0, 0] == -2048
    assert volume.voxels_kji[0, 0, 0] == -1024
    array[:] = 0
    assert volume.voxels_kji.any()


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((64, 64), np.int16), "single two-dimensional picture"),
        (np.zeros((1, 64, 64), np.int16), "single slice"),
        (np.zeros((5, 64, 64), np.int16), "too thin"),
        (np.zeros((2, 40, 40, 40), np.int16), "more than three dimensions"),
        (np.zeros((40, 40, 40, 3), np.uint8), "colour image"),
        (np.zeros((40, 40, 40), complex), "vector image"),
        (np.zeros((40, 40, 40), [("r", "u1"), ("g", "u1"), ("b", "u1")]), "colour image"),
        (np.zeros((40, 40, 40), bool), "not plain numbers"),
        (np.full((40, 40, 40), "a"), "not plain numbers"),
        (np.full((40, 40, 40), -1000, np.int16), "same value"),
    ],
)
def test_what_is_not_a_volume_of_numbers_is_refused(array, sentence) -> None:
    refused(array, sentence)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_counted(value) -> None:
    array = body(np.float32)
    array[3, 4, 5:7] = value
    error = refused(array, "not numbers")
    assert ("2 voxels that are NaN" if np.isnan(value) else "2 that are infinite") in error.found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: (a + 1000) / 1100, "look rescaled"),
        (lambda a: (a - a.mean()) / a.std(), "look rescaled"),
        (lambda a: np.clip((a + 1000) / 4.5, 0, 255).astype(np.uint8), "8-bit grey levels or labels"),
        (lambda a: (a > 0).astype(np.uint8) * 17, "look rescaled"),
        (lambda a: (a + 1024).astype(np.uint16), "intercept of about -1024 was lost"),
        (lambda a: np.abs(a) * 3, "may be an MR"),
        (lambda a: np.minimum(a, -600), "every voxel is air"),
        (lambda a: a * 1000.0, "not Hounsfield units"),
    ],
)
def test_values_that_cannot_be_hounsfield_units_are_refused(change, sentence) -> None:
    error = refused(change(body(np.float64)), sentence)
    assert "values" in error.found


def test_a_windowed_scan_is_read_with_a_warning() -> None:
    volume = ct.from_array(np.clip(body(), -160, 240), np.diag([3.0, 3.0, 4.0, 1.0]))
    assert any("seems windowed" in w for w in volume.warnings)


def test_a_scan_without_air_is_read_with_a_warning() -> None:
    array = np.random.default_rng(0).normal(40, 30, (40, 40, 40)).astype(np.int16)
    volume = ct.from_array(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert any("no air at all" in w for w in volume.warnings)


def test_a_scan_with_hardly_any_soft_tissue_or_much_metal_is_read_with_a_warning() -> None:
    array = np.full((40, 40, 40), -1000, np.int16)
    array[:8] = 5000
    volume = ct.from_array(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert any("range of soft tissue" in w for w in volume.warnings)
    assert any("exceed 3071 HU" in w for w in volume.warnings)


@pytest.mark.parametrize("filling", [-2048, -3024, -32768])
def test_filling_outside_the_circle_is_clipped_to_air_with_its_share(filling) -> None:
    array = body()
    array[:4] = filling
    volume = ct.from_array(array, np.diag([3.0, 3.0, 4.0, 1.0]))
    assert volume.voxels_kji.min() == -1024
    assert volume.warnings == ("10 % of the voxels lay below -1024 HU (filling outside the scanner's circle) and were set to -1024 HU.",)


def test_few_voxels_along_an_axis_give_a_warning() -> None:
    volume = ct.from_array(body(shape=(24, 36, 48)), np.diag([3.0, 3.0, 4.0, 1.0]))
    assert any("only 24 voxels along one axis" in w for w in volume.warnings)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (np.eye(3), "position and orientation are not usable"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "position and orientation are not usable"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "position and orientation are not usable"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), "position and orientation are not usable"),
        (np.diag([0.001, 0.001, 0.001, 1.0]), "not believable"),
        (np.diag([900.0, 900.0, 900.0, 1.0]), "not believable"),
        (np.diag([0.3, 0.3, 0.3, 1.0]), "too little of the body"),
    ],
)
def test_matrices_that_cannot_place_a_patient_are_refused(matrix, sentence) -> None:
    refused(body(), sentence, matrix)


def test_the_hash_follows_voxels_place_and_type_and_nothing_else() -> None:
    matrix = np.diag([3.0, 3.0, 4.0, 1.0])
    volume = ct.from_array(body(), matrix)
    assert volume.sha256() == ct.from_array(body(), matrix, provenance={"source": "elsewhere"}).sha256()
    moved = matrix.copy()
    moved[0, 3] = 1
    other = body()
    other[5, 5, 5] += 1
    assert len({volume.sha256(), ct.from_array(body(), moved).sha256(), ct.from_array(other, matrix).sha256()}) == 3


def test_simpleitk_images_go_out_and_come_back(phantom) -> None:
    volume = ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras @ np.diag([-1, 1, 1, 1]))
    back = ct.from_sitk(ct.to_sitk(volume), provenance={"source": "test"})
    assert back.grid.equals(volume.grid)
    np.testing.assert_array_equal(back.voxels_kji, volume.voxels_kji)
    image = ct.to_sitk(phantom.voxels_kji, volume.grid)
    assert image.GetOrigin() == ct.to_sitk(phantom.voxels_kji, volume.ijk_to_ras).GetOrigin()
    with pytest.raises(ValueError, match="needs its grid"):
        ct.to_sitk(phantom.voxels_kji)


def test_a_colour_image_of_simpleitk_is_refused() -> None:
    import SimpleITK as sitk

    with pytest.raises(ScanError, match="colour image"):
        ct.from_sitk(sitk.Image([40, 40, 40], sitk.sitkVectorUInt8, 3))


def test_the_body_box_holds_the_body_and_not_the_table(phantom) -> None:
    voxels = phantom.voxels_kji.copy()
    voxels[:, 0:2, 4:-4] = 200  # a table top of 6 mm along the whole scan, touching nothing
    volume = ct.from_array(voxels, phantom.ijk_to_ras)
    low, high = ct.body_box(volume)
    np.testing.assert_allclose(low, [-60, -45, -70], atol=9)
    np.testing.assert_allclose(high, [60, 45, 70], atol=9)
    flip = np.array([[-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, -1, 39], [0, 0, 0, 1.0]])
    flipped = ct.from_array(voxels[::-1, :, ::-1], phantom.ijk_to_ras @ flip)
    np.testing.assert_allclose(ct.body_box(flipped), (low, high), atol=1e-6)


def test_without_any_body_the_box_is_the_whole_scan(phantom) -> None:
    volume = ct.Volume(np.full((40, 36, 48), -1000, np.int16), phantom.ijk_to_ras)
    np.testing.assert_allclose(ct.body_box(volume), volume.grid.box_ras())
