"""NIfTI: round trips against nibabel and SimpleITK, headers that others misread, and files that must be refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from VelvetMedLib import RESEARCH_USE_ONLY, ct
from VelvetMedLib.ct.nifti import quaternion_matrix
from VelvetMedLib.ct.nifti_write import header_bytes
from VelvetMedLib.errors import ScanError

OBLIQUE = np.array([[0.0, -2.9, 0.8, 10.0], [2.8, 0.0, 0.0, -20.0], [0.0, 0.8, 2.9, 30.0], [0, 0, 0, 1]])
OBLIQUE[:3, 1:3] = [[-2.9, 0.8], [0.0, 0.0], [0.8, 2.9]]


def edited(path: Path, changes: list[tuple[str, int, tuple]], *, source: Path) -> Path:
    """A copy of an uncompressed NIfTI file with header fields overwritten: (struct format, offset, values)."""
    data = bytearray(source.read_bytes())
    for fmt, offset, values in changes:
        struct.pack_into("<" + fmt, data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.fixture
def plain(phantom, tmp_path) -> Path:
    path = tmp_path / "plain.nii"
    ct.write_nifti(path, phantom.voxels_kji, phantom.ijk_to_ras)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_we_write_nibabel_and_simpleitk_read_at_the_same_place(phantom, tmp_path, name) -> None:
    import nibabel
    import SimpleITK as sitk

    path = tmp_path / name
    ct.write_nifti(path, phantom.voxels_kji, OBLIQUE)
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, phantom.voxels_kji)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), OBLIQUE, atol=1e-4)
    assert image.get_data_dtype() == np.int16
    other = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(other), phantom.voxels_kji)
    ours = ct.to_sitk(ct.from_array(phantom.voxels_kji, OBLIQUE))
    np.testing.assert_allclose(other.GetOrigin(), ours.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(other.GetDirection(), ours.GetDirection(), atol=1e-4)


@pytest.mark.parametrize("handed", [1.0, -1.0])
@pytest.mark.parametrize("nifti2", [False, True])
def test_what_nibabel_writes_we_read_at_the_same_place(phantom, tmp_path, handed, nifti2) -> None:
    import nibabel

    matrix = OBLIQUE @ np.diag([handed, 1, 1, 1])
    kind = nibabel.Nifti2Image if nifti2 else nibabel.Nifti1Image
    kind(phantom.voxels_kji.T, matrix).to_filename(tmp_path / "a.nii.gz")
    volume = ct.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.voxels_kji, phantom.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, matrix, atol=1e-5)
    assert volume.warnings == ()


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "b1", "i1", "f8"])
def test_every_written_type_comes_back_with_its_values(tmp_path, dtype) -> None:
    import nibabel

    array = np.random.default_rng(0).integers(0, 2 if dtype == "b1" else 100, (9, 10, 11)).astype(dtype)
    ct.write_nifti(tmp_path / "a.nii.gz", array, np.eye(4))
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).T, array)
    labels, grid = ct.read_labels(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(labels, array)
    assert labels.dtype == np.uint8
    assert grid.equals(ct.Grid((9, 10, 11), np.eye(4)))


def test_writing_twice_gives_the_same_bytes_without_name_or_time(phantom, tmp_path) -> None:
    for name in ("first patient.nii.gz", "second.nii.gz"):
        ct.write_nifti(tmp_path / name, phantom.voxels_kji, phantom.ijk_to_ras)
    a, b = (tmp_path / "first patient.nii.gz").read_bytes(), (tmp_path / "second.nii.gz").read_bytes()
    assert a == b
    assert b"patient" not in a[:64]


def test_the_research_sentence_is_in_the_header(phantom) -> None:
    assert RESEARCH_USE_ONLY.encode() in header_bytes(np.dtype("i2"), (8, 8, 8), np.eye(4))


def test_a_failed_write_leaves_neither_the_file_nor_a_part_of_it(phantom, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.nii.gz"
    ct.write_nifti(path, phantom.voxels_kji, phantom.ijk_to_ras)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        ct.write_nifti(path, phantom.voxels_kji[:-1], phantom.ijk_to_ras)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.int16), np.zeros((4, 4, 4), np.int64), np.zeros((4, 4, 4), complex)])
def test_arrays_that_nifti_cannot_hold_are_programming_errors(array, tmp_path) -> None:
    with pytest.raises((ValueError, TypeError)):
        ct.write_nifti(tmp_path / "a.nii", array, np.eye(4))


def test_the_intercept_is_applied_and_voxels_stay_16_bit(phantom, plain, tmp_path) -> None:
    shifted = (phantom.voxels_kji.astype(np.int32) + 1024).astype(np.int16)
    ct.write_nifti(plain, shifted, phantom.ijk_to_ras)
    volume = ct.read(edited(tmp_path / "b.nii", [("2f", 112, (1.0, -1024.0))], source=plain))
    assert volume.voxels_kji.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels_kji, phantom.voxels_kji)


def test_a_fractional_slope_gives_decimals_as_nibabel_does(phantom, plain, tmp_path) -> None:
    import nibabel

    path = edited(tmp_path / "b.nii", [("2f", 112, (0.75, -3.5))], source=plain)
    volume = ct.read(path)
    assert volume.voxels_kji.dtype == np.float32
    np.testing.assert_allclose(volume.voxels_kji, np.asarray(nibabel.load(path).dataobj).T, atol=1e-3)


@pytest.mark.parametrize("slope", [(float("nan"), -1024.0), (0.0, 5.0), (float("inf"), 0.0)])
def test_an_unusable_slope_is_ignored_with_a_notice(phantom, plain, tmp_path, slope) -> None:
    volume = ct.read(edited(tmp_path / "b.nii", [("2f", 112, slope)], source=plain))
    np.testing.assert_array_equal(volume.voxels_kji, phantom.voxels_kji)
    assert any("scale factors are not usable" in w for w in volume.warnings)


@pytest.mark.parametrize("slope", [(0.0, 0.0), (float("nan"), float("nan"))])
def test_a_slope_that_was_never_set_needs_no_notice(phantom, plain, tmp_path, slope) -> None:
    assert ct.read(edited(tmp_path / "b.nii", [("2f", 112, slope)], source=plain)).warnings == ()


def test_big_endian_files_are_read(phantom, tmp_path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(phantom.voxels_kji.T, OBLIQUE)
    swapped = nibabel.Nifti1Image(phantom.voxels_kji.T, OBLIQUE, header=image.header.as_byteswapped(">"))
    swapped.to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\0\0\1\x5c"
    np.testing.assert_array_equal(ct.read(tmp_path / "big.nii").voxels_kji, phantom.voxels_kji)


def test_a_gzip_file_with_a_plain_name_and_the_reverse_are_read(phantom, plain, tmp_path) -> None:
    (tmp_path / "named.nii").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    for name in ("named.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(ct.read(tmp_path / name).voxels_kji, phantom.voxels_kji)


def test_a_fourth_axis_of_one_is_no_fourth_axis(phantom, tmp_path) -> None:
    import nibabel

    nibabel.Nifti1Image(phantom.voxels_kji.T[..., None], OBLIQUE).to_filename(tmp_path / "a.nii")
    assert ct.read(tmp_path / "a.nii").shape_kji == phantom.voxels_kji.shape


def test_without_sform_the_qform_places_the_scan(plain, phantom, tmp_path) -> None:
    volume = ct.read(edited(tmp_path / "b.nii", [("h", 254, (0,))], source=plain))
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.ijk_to_ras, atol=1e-4)


def test_quaternions_equal_nibabels_for_any_rotation() -> None:
    import nibabel

    rng = np.random.default_rng(1)
    for _ in range(30):
        b, c, d = rng.uniform(-0.57, 0.57, 3)
        pixdim = (rng.choice([-1.0, 1.0]), *rng.uniform(0.5, 3, 3))
        header = nibabel.Nifti1Header()
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = b, c, d
        header["pixdim"][:4], header["qform_code"] = pixdim, 1
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = 1, 2, 3
        np.testing.assert_allclose(quaternion_matrix((b, c, d), (1, 2, 3), pixdim), header.get_qform(), atol=1e-5)
    # A half turn stored with rounding: |bcd| a hair above 1.
    assert np.isfinite(quaternion_matrix((1.0 + 1e-7, 0, 0), (0, 0, 0), (1, 1, 1, 1))).all()


def test_a_conflict_of_position_is_told_and_the_sform_used(plain, phantom, tmp_path) -> None:
    volume = ct.read(edited(tmp_path / "b.nii", [("f", 268, (999.0,))], source=plain))
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.ijk_to_ras, atol=1e-4)
    assert any("sform and qform differ" in w for w in volume.warnings)


def test_a_conflict_of_left_and_right_is_refused(plain, tmp_path) -> None:
    with pytest.raises(ScanError, match="contradicts itself about left and right"):
        ct.read(edited(tmp_path / "b.nii", [("f", 76, (-1.0,))], source=plain))


def test_a_singular_sform_falls_back_to_the_qform_with_a_notice(plain, phantom, tmp_path) -> None:
    volume = ct.read(edited(tmp_path / "b.nii", [("4f", 280, (0.0,) * 4)], source=plain))
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.ijk_to_ras, atol=1e-4)
    assert any("sform is not usable" in w for w in volume.warnings)


@pytest.mark.parametrize("codes", [(0, 0)])
def test_a_file_without_orientation_is_refused(plain, tmp_path, codes) -> None:
    with pytest.raises(ScanError, match="does not say how the scan lies"):
        ct.read(edited(tmp_path / "b.nii", [("2h", 252, codes)], source=plain))


def test_metres_are_turned_into_millimetres_with_a_notice(phantom, tmp_path) -> None:
    ct.write_nifti(tmp_path / "a.nii", phantom.voxels_kji, np.diag([0.001, 0.001, 0.001, 1]) @ phantom.ijk_to_ras)
    volume = ct.read(edited(tmp_path / "b.nii", [("B", 123, (1,))], source=tmp_path / "a.nii"))
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.ijk_to_ras, rtol=1e-5, atol=1e-4)
    assert any("metres" in w for w in volume.warnings)


def test_a_sheared_sform_that_simpleitk_refuses_is_straightened_and_keeps_the_ball_in_place(at, on_centre, tmp_path) -> None:
    import SimpleITK as sitk

    axes = np.diag([3.0, 3.0, 3.8])
    axes[1, 2] = 1.1
    shape = (44, 44, 48)
    matrix = on_centre(axes, shape)
    ct.write_nifti(tmp_path / "a.nii", at(shape, matrix), matrix)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(tmp_path / "a.nii"))
    volume = ct.read(tmp_path / "a.nii")
    assert any("resampled onto a straight grid" in w for w in volume.warnings)
    assert ct.read_header(tmp_path / "a.nii").grid.equals(volume.grid)
    k, j, i = np.nonzero(volume.voxels_kji > 300)
    np.testing.assert_allclose((volume.ijk_to_ras @ [i.mean(), j.mean(), k.mean(), 1])[:3], [25, 12, 30], atol=0.7)


def test_the_header_is_read_without_any_voxel(plain, phantom, tmp_path) -> None:
    (tmp_path / "cut.nii").write_bytes(plain.read_bytes()[:352])
    header = ct.read_header(tmp_path / "cut.nii")
    assert header.shape_kji == phantom.voxels_kji.shape
    np.testing.assert_allclose(header.ijk_to_ras, phantom.ijk_to_ras, atol=1e-4)
    assert (header.source, header.modality) == ("nifti", None)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_short_is_refused_with_the_bytes_counted(plain, tmp_path, packed) -> None:
    data = plain.read_bytes()[:-1000]
    (tmp_path / "cut.nii").write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ScanError, match="ends too early") as caught:
        ct.read(tmp_path / "cut.nii")
    assert "138,240" in caught.value.found  # 40 x 36 x 48 voxels of two bytes


def test_a_gzip_stream_cut_short_is_damaged(plain, tmp_path) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(plain.read_bytes())[:-500])
    with pytest.raises(ScanError, match=r"damaged|too early"):
        ct.read(tmp_path / "cut.nii.gz")


def test_a_header_that_promises_more_than_the_file_can_hold_allocates_nothing(plain, tmp_path) -> None:
    path = edited(tmp_path / "b.nii", [("8h", 40, (3, 1200, 1200, 1200, 1, 1, 1, 1))], source=plain)
    with pytest.raises(ScanError, match="ends too early"):
        ct.read(path)
    with pytest.raises(ScanError, match="larger than this program handles"):
        ct.read(edited(tmp_path / "c.nii", [("8h", 40, (3, 32767, 32767, 32767, 1, 1, 1, 1))], source=plain))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([("8h", 40, (2, 48, 1440, 1, 1, 1, 1, 1))], "two-dimensional picture"),
        ([("8h", 40, (3, 48, 1440, 1, 1, 1, 1, 1))], "single slice"),
        ([("8h", 40, (4, 48, 36, 20, 2, 1, 1, 1))], "more than three dimensions"),
        ([("8h", 40, (5, 48, 36, 10, 1, 4, 1, 1))], "4 values|vector image"),
        ([("8h", 40, (5, 48, 36, 10, 1, 3, 1, 1))], "colour image"),
        ([("8h", 40, (5, 48, 36, 10, 2, 2, 1, 1))], "more than three dimensions"),
        ([("8h", 40, (3, 48, 240, 6, 1, 1, 1, 1))], "too thin"),
        ([("h", 70, (128,))], "colour image"),
        ([("h", 70, (2304,))], "colour image"),
        ([("h", 70, (32,))], "vector image"),
        ([("h", 70, (1536,))], "type that is not supported"),
        ([("8h", 40, (3, 48, -36, 40, 1, 1, 1, 1))], "damaged"),
        ([("8h", 40, (99, 48, 36, 40, 1, 1, 1, 1))], "damaged"),
        ([("i", 0, (999,))], "damaged"),
        ([("4s", 344, (b"ni1\0",))], "half of a two-file"),
        ([("f", 280, (float("nan"),)), ("h", 252, (0,))], "does not say how the scan lies"),
        ([("f", 280, (300.0,)), ("h", 252, (0,))], "not believable"),
    ],
)
def test_each_bad_header_has_its_own_sentence_in_both_ways_of_reading(plain, tmp_path, changes, sentence) -> None:
    path = edited(tmp_path / "bad.nii", changes, source=plain)
    for read in (ct.read, ct.read_header):
        with pytest.raises(ScanError, match=sentence) as caught:
            read(path)
        assert all(caught.value.as_dict().values())
        assert str(tmp_path) not in str(caught.value)


def test_masks_with_decimals_or_negative_values_are_not_label_maps(phantom, tmp_path) -> None:
    ct.write_nifti(tmp_path / "a.nii", phantom.voxels_kji, np.eye(4))
    ct.write_nifti(tmp_path / "b.nii", np.full((8, 8, 8), 0.5, np.float32), np.eye(4))
    for name in ("a.nii", "b.nii"):
        with pytest.raises(ScanError, match="not a label map"):
            ct.read_labels(tmp_path / name)
