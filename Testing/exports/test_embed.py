"""What a page carries of the scan: same place in the patient, small enough, and nothing invented."""

from __future__ import annotations

import base64
import gzip
import io

import nibabel
import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.exports import embed
from VelvetMedLib.exports.embed import page_images

LIVER_RAS, NODULE_RAS = (28.0, -4.0, -12.0), (-30.0, 12.0, 20.0)


def _decoded(text: str) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(base64.b64decode(text))))


@pytest.fixture(scope="module")
def images(phantom):
    return page_images(phantom.volume, phantom.labels_kji, phantom.volume.grid)


@pytest.mark.parametrize(("place", "label", "hu"), [(LIVER_RAS, 4, 60), (NODULE_RAS, 101, 90), ((0.0, 0.0, 40.0), 0, 40)])
def test_a_point_in_the_patient_keeps_its_label_and_its_density(images, place, label, hu):
    scan, labels = _decoded(images.ct_base64), _decoded(images.labels_base64)
    i, j, k = np.rint(np.linalg.inv(scan.affine) @ [*place, 1])[:3].astype(int)
    assert np.asarray(labels.dataobj)[i, j, k] == label
    assert abs(int(np.asarray(scan.dataobj)[i, j, k]) - hu) <= 3


def test_the_grid_of_the_page_runs_right_anterior_superior_and_both_images_share_it(images):
    scan, labels = _decoded(images.ct_base64), _decoded(images.labels_base64)
    assert nibabel.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert np.array_equal(scan.affine, labels.affine)
    assert scan.shape == labels.shape


def test_voxels_are_whole_hounsfield_units_and_labels_are_bytes(images):
    assert _decoded(images.ct_base64).get_data_dtype() == np.int16
    assert _decoded(images.labels_base64).get_data_dtype() == np.uint8


def test_no_label_is_invented(images, phantom):
    assert set(np.unique(images.labels_kji)) == set(np.unique(phantom.labels_kji))


def test_the_page_is_never_finer_than_the_scan(images):
    assert images.spacing_mm == pytest.approx(4.0)


def test_a_scan_that_does_not_fit_is_thinned_out_until_it_does(phantom):
    full = page_images(phantom.volume, None, None)
    limit = len(full.ct_base64) // 3
    small = page_images(phantom.volume, None, None, max_encoded_bytes=limit)
    assert len(small.ct_base64) <= limit
    assert small.spacing_mm > full.spacing_mm


def test_a_large_field_of_view_is_given_no_more_voxels_than_the_budget():
    grid = ct.Grid((600, 512, 512), np.diag([0.8, 0.8, 0.8, 1.0]))
    spacing = embed.first_spacing_mm(grid)
    assert np.prod(grid.shape_kji) * 0.8**3 / spacing**3 == pytest.approx(embed.MAX_VOXELS)


def test_noise_is_averaged_and_not_just_skipped_over_when_the_scan_is_thinned_out():
    noise = np.random.default_rng(5).normal(0, 100, (64, 64, 64)).astype(np.int16)
    volume = ct.from_array(noise, np.eye(4))
    thinned = page_images(volume, None, None, max_encoded_bytes=30_000)
    assert thinned.spacing_mm > 2.5
    assert thinned.ct_kji[2:-2, 2:-2, 2:-2].std() < 0.35 * noise.std()


def test_without_an_image_the_segments_are_shown_on_air(phantom):
    images = page_images(None, phantom.labels_kji, phantom.volume.grid)
    assert images.has_ct is False
    assert (images.ct_kji == -1024).all()
    assert images.labels_base64 is not None


def test_with_neither_image_nor_segments_there_is_nothing_to_show():
    assert page_images(None, None, None) is None


def test_the_same_scan_gives_the_same_bytes(phantom, images):
    again = page_images(phantom.volume, phantom.labels_kji, phantom.volume.grid)
    assert (again.ct_base64, again.labels_base64) == (images.ct_base64, images.labels_base64)
