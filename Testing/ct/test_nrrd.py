"""NRRD files: the same place as the phantom, written by SimpleITK and by pynrrd, and the faults that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.errors import ScanError


@pytest.fixture
def nrrd_file(phantom, tmp_path):
    import SimpleITK as sitk

    volume = ct.from_array(phantom.voxels_kji, phantom.ijk_to_ras)
    sitk.WriteImage(ct.to_sitk(volume), str(tmp_path / "a.nrrd"), useCompression=True)
    return tmp_path / "a.nrrd"


def test_an_nrrd_file_of_simpleitk_is_read_at_its_place(nrrd_file, phantom) -> None:
    volume = ct.read(nrrd_file)
    np.testing.assert_array_equal(volume.voxels_kji, phantom.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.ijk_to_ras, atol=1e-6)
    header = ct.read_header(nrrd_file)
    assert header.grid.equals(volume.grid)
    assert header.source == "nrrd"


@pytest.mark.parametrize(("space", "flip"), [("left-posterior-superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1))])
def test_an_nrrd_file_of_pynrrd_is_read_in_either_space(phantom, tmp_path, space, flip) -> None:
    import nrrd

    axes, origin = phantom.ijk_to_ras[:3, :3] * np.array(flip)[:, None], phantom.ijk_to_ras[:3, 3] * flip
    header = {"space": space, "space directions": axes.T, "space origin": origin, "encoding": "gzip"}
    nrrd.write(str(tmp_path / "a.nrrd"), phantom.voxels_kji.transpose(2, 1, 0), header)
    volume = ct.read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.voxels_kji, phantom.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.ijk_to_ras, atol=1e-6)


def test_a_header_with_its_data_in_another_file_is_read(phantom, tmp_path) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(ct.to_sitk(phantom.voxels_kji, phantom.ijk_to_ras), str(tmp_path / "a.nhdr"))
    np.testing.assert_array_equal(ct.read(tmp_path / "a.nhdr").voxels_kji, phantom.voxels_kji)


def test_an_nrrd_file_without_a_space_is_refused(phantom, tmp_path) -> None:
    import nrrd

    nrrd.write(str(tmp_path / "a.nrrd"), phantom.voxels_kji.transpose(2, 1, 0))
    with pytest.raises(ScanError, match="does not say how the scan lies"):
        ct.read(tmp_path / "a.nrrd")


def test_a_segmentation_file_is_refused_as_a_scan(phantom, tmp_path) -> None:
    import SimpleITK as sitk

    image = ct.to_sitk((phantom.voxels_kji > 300).astype(np.uint8), phantom.ijk_to_ras)
    image.SetMetaData("Segment0_Name", "ball")
    sitk.WriteImage(image, str(tmp_path / "a.seg.nrrd"))
    with pytest.raises(ScanError, match="a segmentation, not a scan"):
        ct.read(tmp_path / "a.seg.nrrd")
    labels, grid = ct.read_labels(tmp_path / "a.seg.nrrd")
    np.testing.assert_array_equal(labels, phantom.voxels_kji > 300)
    assert grid.equals(ct.Grid(phantom.voxels_kji.shape, phantom.ijk_to_ras))


def test_a_colour_nrrd_is_refused(tmp_path) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.Image([40, 40, 40], sitk.sitkVectorUInt8, 3), str(tmp_path / "a.nrrd"))
    with pytest.raises(ScanError, match="colour image"):
        ct.read(tmp_path / "a.nrrd")


def test_a_damaged_nrrd_is_refused_and_its_header_alone_still_read(nrrd_file, tmp_path, capfd) -> None:
    data = nrrd_file.read_bytes()
    (tmp_path / "cut.nrrd").write_bytes(data[: data.index(b"\n\n") + 40])
    assert ct.read_header(tmp_path / "cut.nrrd").shape_kji == (40, 36, 48)
    with pytest.raises(ScanError, match="damaged or incomplete"):
        ct.read(tmp_path / "cut.nrrd")
    (tmp_path / "bad.nrrd").write_bytes(b"NRRD0004\nspace: left-posterior-superior\ndimension: many\n\n")
    with pytest.raises(ScanError, match="header cannot be read"):
        ct.read(tmp_path / "bad.nrrd")
    assert str(tmp_path) not in "".join(capfd.readouterr())
