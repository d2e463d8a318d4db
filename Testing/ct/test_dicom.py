"""DICOM series: order, gaps, tilt, mixed folders, choice of series; each fault has its own sentence with positions in mm."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.errors import ScanError


def centroid(volume: ct.Volume) -> np.ndarray:
    k, j, i = np.nonzero(volume.voxels_kji > 300)
    return (volume.ijk_to_ras @ [i.mean(), j.mean(), k.mean(), 1.0])[:3]


def refused(path, sentence: str, **options) -> ScanError:
    with pytest.raises(ScanError, match=sentence) as caught:
        ct.read(path, **options)
    assert all(caught.value.as_dict().values())
    return caught.value


def test_a_series_is_sorted_by_position_and_not_by_name(write_series, phantom) -> None:
    folder = write_series()[0].parent
    volume = ct.read(folder)
    assert volume.shape_kji == (40, 32, 48)
    assert volume.spacing_mm == pytest.approx((2.5, 3.0, 3.0))
    assert volume.grid.axis_codes == "LPS"
    np.testing.assert_allclose(centroid(volume), phantom.ball_ras_mm, atol=1.0)
    assert volume.warnings == ()
    assert volume.provenance["source"] == "dicom"


def test_simpleitk_finds_the_same_voxels_at_the_same_place(write_series) -> None:
    import SimpleITK as sitk

    files = write_series(stored="unsigned")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files[0].parent)))
    theirs, ours = reader.Execute(), ct.read(files[0].parent)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), ours.voxels_kji)
    mine = ct.to_sitk(ours)
    np.testing.assert_allclose(theirs.GetOrigin(), mine.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(theirs.GetSpacing(), mine.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(theirs.GetDirection(), mine.GetDirection(), atol=1e-5)


ORIENTATIONS = {
    "head first prone": (-1, 0, 0, 0, -1, 0),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": tuple(float(x) for x in np.linalg.qr(np.array([[1, 0.2], [0.1, 1], [0.3, -0.2]]))[0].T.ravel()),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_orientation_shows_the_ball_on_the_same_side_of_the_patient(write_series, phantom, name) -> None:
    folder = write_series(orientation=ORIENTATIONS[name], n=60, shape=(56, 60))[0].parent
    volume = ct.read(folder)
    np.testing.assert_allclose(centroid(volume), phantom.ball_ras_mm, atol=1.0)
    assert ct.read_header(folder).grid.equals(volume.grid)


def test_one_file_stands_for_its_series(write_series) -> None:
    files = write_series()
    write_series(files[0].parent, series=2, n=12)
    assert ct.read(files[7]).sha256() == ct.read(files[0].parent, series=1).sha256()


def test_missing_slices_are_named_by_their_position(write_series) -> None:
    folder = write_series(edit=lambda ds, k: k not in (10, 11, 25))[0].parent
    error = refused(folder, "Slices are missing from the series: 3")
    assert "-28.5, -25.5, 16.5 mm" in error.found


def test_unevenly_spaced_slices_are_refused_with_the_distances(write_series) -> None:
    z = np.concatenate([np.arange(20) * 3.0, 57 + np.arange(1, 21) * 4.5])
    error = refused(write_series(positions=z)[0].parent, "unevenly spaced")
    assert "from 3 to 4.5 mm" in error.found


def test_one_slice_out_of_place_is_uneven_spacing(write_series) -> None:
    z = np.arange(40) * 3.0
    z[20] += 0.8
    refused(write_series(positions=z)[0].parent, "unevenly spaced")


def test_positions_rounded_in_the_header_are_not_uneven(write_series) -> None:
    volume = ct.read(write_series(positions=np.round(np.arange(80) * 0.625, 1))[0].parent)
    assert volume.spacing_mm[2] == pytest.approx(0.625, abs=0.002)


def test_an_equal_duplicate_is_left_out_with_a_notice(write_series) -> None:
    z = [*(np.arange(40) * 3.0), 30.0]
    volume = ct.read(write_series(positions=z)[0].parent)
    assert volume.shape_kji[0] == 40
    assert any(w.startswith("1 duplicate slice was left out: at 30.0 mm") for w in volume.warnings)


def test_different_pictures_at_one_position_are_refused(write_series) -> None:
    def brighter(ds, k) -> None:
        if k == 40:
            ds.PixelData = (np.frombuffer(ds.PixelData, "<i2") + 7).astype("<i2").tobytes()

    folder = write_series(positions=[*(np.arange(40) * 3.0), 30.0], edit=brighter)[0].parent
    error = refused(folder, "Different slices lie at the same position")
    assert "30.0 mm" in error.found


def test_two_passes_in_one_series_are_told_apart_by_acquisition(write_series) -> None:
    def second_pass(ds, k) -> None:
        if k >= 40:
            ds.AcquisitionNumber = 2
            ds.PixelData = (np.frombuffer(ds.PixelData, "<i2") + 7).astype("<i2").tobytes()

    folder = write_series(positions=np.tile(np.arange(40) * 3.0, 2), edit=second_pass)[0].parent
    series = ct.list_series(folder)
    assert [s.n_images for s in series] == [40, 40]
    first, second = ct.read(folder, series=1), ct.read(folder, series=2)
    np.testing.assert_array_equal(first.voxels_kji + 7, second.voxels_kji)


def test_a_tilted_gantry_is_resampled_with_notice_and_the_ball_stays(write_series, phantom) -> None:
    folder = write_series(shear=(0.0, np.tan(np.radians(12)), 0.0), n=60, shape=(60, 48), pixel=(2.5, 2.5))[0].parent
    volume = ct.read(folder)
    assert any("tilted: slices are stacked 12.0 degrees off" in w for w in volume.warnings)
    assert any("resampled onto a straight grid" in w for w in volume.warnings)
    np.testing.assert_allclose(centroid(volume), phantom.ball_ras_mm, atol=1.0)
    assert volume.spacing_mm == pytest.approx((2.5, 2.5, 3.0), abs=1e-3)
    assert ct.read_header(folder).grid.equals(volume.grid)


def test_slices_beside_the_line_are_refused(write_series) -> None:
    def shifted(ds, k) -> None:
        if k == 20:
            ds.ImagePositionPatient[0] += 9

    refused(write_series(edit=shifted)[0].parent, "not stacked along one straight line")


def test_slices_thinner_than_their_distance_are_read_with_a_notice(write_series) -> None:
    def thin(ds, k) -> None:
        ds.SliceThickness = "1"

    volume = ct.read(write_series(spacing=8.0, n=16, edit=thin)[0].parent)
    assert any("1 mm thick but 8 mm apart" in w for w in volume.warnings)


def localiser(ds, k) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def test_in_a_mixed_folder_the_largest_axial_ct_is_read_and_the_rule_stated(write_series) -> None:
    folder = write_series(series=1, n=2, edit=localiser)[0].parent
    write_series(folder, series=2, n=20)
    write_series(folder, series=3, n=40)
    write_series(folder, series=4, n=60, orientation=(1, 0, 0, 0, 0, -1))
    write_series(folder, series=5, n=90, edit=lambda ds, k: setattr(ds, "Modality", "MR"))
    volume = ct.read(folder)
    assert volume.shape_kji[0] == 40
    (stated,) = volume.warnings
    assert stated.startswith("The folder holds 5 series (1: a localiser (scout view), 2 files; 2: axial CT, 20 slices of 48 x 32;")
    assert stated.endswith("Series 3 was read: the largest axial CT series.")


@pytest.mark.parametrize("choice", [2, "2", "1.2.3.2"])
def test_a_series_is_chosen_by_place_or_by_uid(write_series, choice) -> None:
    folder = write_series(series=1)[0].parent
    write_series(folder, series=2, n=20)
    assert ct.read(folder, series=choice).shape_kji[0] == 20
    assert ct.read_header(folder, series=choice).shape_kji[0] == 20


def test_a_choice_that_does_not_exist_lists_what_does(write_series) -> None:
    folder = write_series()[0].parent
    error = refused(folder, "no such series", series=9)
    assert error.found == "1: axial CT, 40 slices of 48 x 32"


def test_a_chosen_localiser_is_refused_as_such(write_series) -> None:
    folder = write_series(series=1, n=2, edit=localiser)[0].parent
    write_series(folder, series=2)
    refused(folder, "only a localiser", series=1)


def test_a_localiser_within_a_series_is_set_apart(write_series) -> None:
    folder = write_series()[0].parent
    write_series(folder, n=1, orientation=(1, 0, 0, 0, 0, -1), edit=localiser, prefix="scout")
    assert ct.read(folder).shape_kji[0] == 40


def set_field(name: str, value):
    def edit(ds, k) -> None:
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (set_field("Modality", "MR"), "not CT but MR"),
        (set_field("Modality", "PT"), "not CT but PT"),
        (localiser, "only a localiser"),
        (set_field("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), "screenshots"),
        (set_field("NumberOfFrames", "12"), "multi-frame"),
        (set_field("PhotometricInterpretation", "PALETTE COLOR"), "colour pictures"),
        (set_field("ImagePositionPatient", None), "do not say where they lie"),
        (set_field("ImageOrientationPatient", None), "do not say where they lie"),
        (set_field("PixelSpacing", None), "do not say where they lie"),
        (set_field("PixelSpacing", [0, 0]), "do not say where they lie"),
        (set_field("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "do not say where they lie"),
    ],
)
def test_what_is_not_a_ct_slice_is_refused_by_its_kind(write_series, edit, sentence) -> None:
    folder = write_series(n=10, edit=edit)[0].parent
    refused(folder, sentence)
    with pytest.raises(ScanError, match=sentence):
        ct.read_header(folder)


def test_one_slice_alone_and_a_handful_are_refused(write_series, tmp_path) -> None:
    refused(write_series(tmp_path / "one", n=1)[0].parent, "single slice")
    refused(write_series(tmp_path / "few", n=5)[0].parent, "too thin")


def test_an_empty_folder_and_a_folder_of_other_files_hold_no_series(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in refused(tmp_path / "empty", "holds no DICOM series").found
    (tmp_path / "notes.txt").write_text("not a scan", encoding="utf-8")
    assert "one file, which is no DICOM picture" in refused(tmp_path, "holds no DICOM series").found


def test_other_files_beside_the_slices_do_not_disturb(write_series) -> None:
    folder = write_series()[0].parent
    (folder / "readme.txt").write_text("hello", encoding="utf-8")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "sub").mkdir()
    assert ct.read(folder).warnings == ()


def test_slices_in_sub_folders_are_found(write_series, tmp_path) -> None:
    write_series(tmp_path / "study" / "a" / "b")
    assert ct.read(tmp_path / "study").shape_kji[0] == 40


def test_a_slice_cut_short_is_named_by_its_place_in_the_list_and_the_gap_told(write_series) -> None:
    files = sorted(write_series())
    files[20].write_bytes(files[20].read_bytes()[:-100])
    error = refused(files[0].parent, "Slices are missing")
    assert "file 21 of 40 (in order of name) is cut short" in error.found
    assert files[20].name not in str(error)


def test_a_damaged_last_slice_is_left_out_with_a_notice(write_series) -> None:
    files = sorted(write_series())
    files[-1].write_bytes(files[-1].read_bytes()[:400])
    volume = ct.read(files[0].parent)
    assert volume.shape_kji[0] == 39
    assert any(w.startswith("A DICOM file was left out: file 40 of 40") for w in volume.warnings)


def test_when_every_slice_is_damaged_the_first_is_named(write_series) -> None:
    files = sorted(write_series(n=10))
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    assert "file 1 of 10" in refused(files[0].parent, "None of the DICOM files").found


def test_the_header_of_a_series_is_read_without_pixels(write_series, monkeypatch) -> None:
    files = write_series()
    volume = ct.read(files[0].parent)
    from VelvetMedLib.ct import dicom

    def never(*_: object) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(dicom, "read_slices", never)
    monkeypatch.setattr("VelvetMedLib.ct.dicom_pixels.slice_hu", never)
    header = ct.read_header(files[0].parent)
    assert header.grid.equals(volume.grid)
    assert header.modality == "CT"


def test_listing_what_is_not_a_folder_is_refused(tmp_path) -> None:
    with pytest.raises(ScanError, match="no such folder to list"):
        ct.list_series(tmp_path / "nothing")
