"""The real chest CT: both of its forms are one volume, other libraries agree, and reading it is fast."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest

from VelvetMedLib import ct

pytestmark = pytest.mark.sample


@pytest.fixture(scope="module")
def forms(sample) -> tuple[ct.Volume, ct.Volume]:
    """The study read from NIfTI and from DICOM."""
    return ct.read(sample.ct), ct.read(sample.dicom)


def test_both_forms_hold_the_same_voxels_one_being_the_other_flipped(forms) -> None:
    nifti, dicom = forms
    assert (nifti.grid.axis_codes, dicom.grid.axis_codes) == ("LAS", "LPS")
    assert nifti.voxels_kji.dtype == dicom.voxels_kji.dtype == np.int16
    np.testing.assert_array_equal(nifti.voxels_kji[:, ::-1], dicom.voxels_kji)
    np.testing.assert_allclose(nifti.grid.corners_ras().min(axis=0), dicom.grid.corners_ras().min(axis=0), atol=1e-4)


@pytest.mark.parametrize("spacing_mm", [(4.0, 4.0, 4.0), (1.5, 1.5, 1.5)])
def test_both_forms_resampled_onto_one_grid_are_equal(forms, spacing_mm) -> None:
    nifti, dicom = forms
    grid = ct.ras_grid(nifti, spacing_mm, box_ras=((-60, -100, -200), (60, 20, -50)))
    a, b = ct.resample(nifti, grid).voxels_kji, ct.resample(dicom, grid).voxels_kji
    difference = np.abs(a.astype(int) - b)
    # The files themselves differ in the sixth decimal of the position: a value may round to its neighbour.
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 1e-3 * a.size


def test_both_forms_give_the_same_body_box_and_warnings(forms) -> None:
    nifti, dicom = forms
    np.testing.assert_allclose(ct.body_box(nifti), ct.body_box(dicom), atol=1e-3)
    assert nifti.warnings == dicom.warnings
    (notice,) = nifti.warnings
    assert "below -1024 HU" in notice


def test_the_intercept_is_applied_and_the_filling_is_air(forms) -> None:
    nifti, _ = forms
    assert nifti.voxels_kji.min() == -1024
    assert nifti.voxels_kji.max() == 3071


def test_nibabel_and_simpleitk_agree_with_our_reading(forms, sample) -> None:
    import nibabel
    import SimpleITK as sitk

    nifti, _ = forms
    image = nibabel.load(sample.ct)
    np.testing.assert_allclose(nifti.ijk_to_ras, image.affine, atol=1e-4)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(sample.ct)))
    np.testing.assert_array_equal(nifti.voxels_kji, np.maximum(theirs, -1024))


def test_organs_have_the_recorded_volumes_and_lie_on_their_side(forms, sample) -> None:
    labels, grid = ct.read_labels(sample.mask)
    assert labels.dtype == np.uint8
    assert grid.equals(forms[0].grid)
    with sample.structures.open(encoding="utf-8", newline="") as rows:
        number = {row["structure"]: int(row["id"]) for row in csv.DictReader(rows)}
    for name, volume_ml in (("spleen", 124.3), ("liver", 1022.6), ("heart", 370.4), ("aorta", 188.4)):
        if name in number:
            assert np.count_nonzero(labels == number[name]) * grid.voxel_volume_ml == pytest.approx(volume_ml, rel=0.01)
    k, j, i = (axis.mean() for axis in np.nonzero(labels == number["liver"]))
    liver = (grid.ijk_to_ras @ [i, j, k, 1.0])[0]
    k, j, i = (axis.mean() for axis in np.nonzero(labels == number["spleen"]))
    assert liver > (grid.ijk_to_ras @ [i, j, k, 1.0])[0]  # R grows to the right


def test_the_nodule_of_the_readers_is_soft_tissue_in_both_forms(forms) -> None:
    for volume in forms:
        i, j, k = np.rint((volume.grid.ras_to_ijk @ [-56.4, -86.5, -116.0, 1.0])[:3]).astype(int)
        assert -100 < volume.voxels_kji[k - 1 : k + 2, j - 2 : j + 3, i - 2 : i + 3].mean() < 150


def test_headers_give_the_same_grid_and_are_quick(forms, sample) -> None:
    for path, volume in zip((sample.ct, sample.dicom), forms, strict=True):
        start = time.process_time()
        header = ct.read_header(path)
        assert time.process_time() - start < 1.0
        assert header.grid.equals(volume.grid)


def test_the_short_way_to_pixels_equals_gdcm_on_real_slices(sample) -> None:
    from VelvetMedLib.ct.dicom_files import read_slice
    from VelvetMedLib.ct.dicom_pixels import gdcm_hu, slice_hu

    for name in ("1-001.dcm", "1-067.dcm", "1-133.dcm"):
        one = read_slice(sample.dicom / name)
        assert one is not None
        raw, padding = slice_hu(one)
        assert padding is not None
        decoded = gdcm_hu(one)
        np.testing.assert_array_equal(raw[~padding], decoded[~padding])


def test_the_body_box_is_as_wide_as_a_chest(forms) -> None:
    low, high = ct.body_box(forms[0])
    assert 250 < high[0] - low[0] <= 361
    assert 180 < high[1] - low[1] < 330
    assert high[2] - low[2] == pytest.approx(332.5, abs=5)
