"""The one way in: what a path holds is told by its bytes; what is no scan is refused; nothing of the patient gets out."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.errors import ScanError, UsageError

MARKERS = {
    "PatientName": "ZZMARKERNAME^ANNA",
    "PatientID": "ZZMARKERID",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "ZZMARKERACC",
    "StudyDescription": "ZZMARKERSTUDY",
    "SeriesDescription": "ZZMARKERSERIES",
    "InstitutionName": "ZZMARKERHOSPITAL",
    "ReferringPhysicianName": "ZZMARKERDOCTOR",
    "StationName": "ZZMARKERSTATION",
    "ImageComments": "ZZMARKERCOMMENT",
    "ContrastBolusAgent": "ZZMARKERAGENT",
    "StudyInstanceUID": "1.2.777777.1",
}


def test_a_name_that_does_not_exist_is_refused_without_repeating_it(tmp_path) -> None:
    with pytest.raises(ScanError, match="was not found") as caught:
        ct.read(tmp_path / "ZZMARKER")
    assert "ZZMARKER" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"), [(b"", "an empty file"), (b"hello" * 200, "another or damaged format"), (b"\x1f\x8bnot", "another")]
)
def test_a_file_that_is_no_scan_is_refused(tmp_path, content, found) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    for read in (ct.read, ct.read_header, ct.read_labels):
        with pytest.raises(ScanError, match="not a scan that this program can read") as caught:
            read(tmp_path / "a.bin")
        assert found in caught.value.found


def test_an_archive_is_refused_with_the_advice_to_unpack_it(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.dcm", b"x")
    with pytest.raises(ScanError) as caught:
        ct.read(tmp_path / "a.zip")
    assert "Unpack it" in caught.value.next_step


def test_a_renamed_file_is_told_by_its_bytes(phantom, tmp_path, write_series) -> None:
    ct.write_nifti(tmp_path / "a.nii.gz", phantom.voxels_kji, phantom.ijk_to_ras)
    (tmp_path / "scan.dat").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    assert ct.read(tmp_path / "scan.dat").provenance["source"] == "nifti"
    files = write_series()
    assert ct.read(files[0].rename(files[0].with_suffix(".nii"))).provenance["source"] == "dicom"


def test_a_text_file_called_nii_is_a_damaged_nifti(tmp_path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"<html>not found</html>" * 50)
    with pytest.raises(ScanError, match="not a NIfTI volume"):
        ct.read(tmp_path / "a.nii.gz")


def test_a_series_cannot_be_chosen_in_a_nifti_file(phantom, tmp_path) -> None:
    ct.write_nifti(tmp_path / "a.nii", phantom.voxels_kji, phantom.ijk_to_ras)
    with pytest.raises(UsageError, match="only be chosen in a DICOM folder"):
        ct.read(tmp_path / "a.nii", series=1)


def test_a_file_the_system_will_not_open_is_refused_without_its_name(phantom, tmp_path, monkeypatch) -> None:
    ct.write_nifti(tmp_path / "ZZMARKER.nii", phantom.voxels_kji, phantom.ijk_to_ras)

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "ZZMARKER.nii"))

    monkeypatch.setattr("pathlib.Path.open", locked)
    with pytest.raises(ScanError, match="could not be opened") as caught:
        ct.read(tmp_path / "ZZMARKER.nii")
    assert "ZZMARKER" not in str(caught.value)


def test_a_dicom_folder_given_as_a_label_map_is_refused(write_series) -> None:
    with pytest.raises(ScanError, match="not a NIfTI or NRRD"):
        ct.read_labels(write_series(n=8)[0].parent)


def faults(k: int, kind: str, ds) -> object:
    return {
        "fine": None,
        "missing": None if k not in (7, 8) else False,
        "MR": setattr(ds, "Modality", "MR") if kind == "MR" else None,
        "no position": ds.pop("ImagePositionPatient", None) and None if kind == "no position" else None,
        "odd modality": setattr(ds, "Modality", "ZZMARKERMOD") if kind == "odd modality" else None,
    }[kind]


@pytest.mark.parametrize("kind", ["fine", "missing", "MR", "no position", "odd modality"])
def test_nothing_that_names_the_patient_gets_into_a_volume_a_message_or_the_terminal(write_series, tmp_path, capfd, caplog, kind) -> None:
    def marked(ds, k) -> object:
        for name, value in MARKERS.items():
            setattr(ds, name, value)
        ds.add_new(0x00091001, "LO", "ZZMARKERPRIVATE")
        ds.PatientPosition = "ZZMARKERPOSITION"
        return faults(k, kind, ds)

    folder = write_series(tmp_path / "ZZMARKERFOLDER", n=30, edit=marked)[0].parent
    out = []
    for read in (ct.read, ct.read_header, ct.list_series):
        try:
            out.append(repr(read(folder)))
        except ScanError as error:
            out += [str(error), repr(error), repr(error.as_dict())]
    if kind == "fine":
        volume = ct.read(folder)
        out += [repr(volume.provenance), repr(volume.warnings)]
        ct.write_nifti(tmp_path / "b.nii", volume.voxels_kji, volume.ijk_to_ras)
        assert b"ZZMARKER" not in (tmp_path / "b.nii").read_bytes()
    out += [*capfd.readouterr(), caplog.text]
    text = "\n".join(out)
    assert "ZZMARKER" not in text
    assert not any(value in text for value in ("777777", "19010203", "1.2.3.1"))


def test_importing_ct_pulls_neither_pydicom_nor_torch() -> None:
    import subprocess

    code = "import sys, VelvetMedLib.ct; print([m for m in ('pydicom', 'torch', 'nibabel', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 16))])
def test_mutated_headers_end_in_a_volume_or_a_sentence(phantom, write_series, tmp_path, seed) -> None:
    rng = np.random.default_rng(seed)
    ct.write_nifti(tmp_path / "a.nii", phantom.voxels_kji, phantom.ijk_to_ras)
    nifti = (tmp_path / "a.nii").read_bytes()
    folder = write_series(n=9, spacing=4.0)[0].parent
    victim = sorted(folder.iterdir())[4]
    dicom = victim.read_bytes()
    for n in range(25):
        for path, data, reach in ((tmp_path / "m.nii", nifti, 348), (victim, dicom, 900)):
            changed = bytearray(data)
            for at in rng.integers(0, reach, rng.integers(1, 12)):
                changed[at] = rng.integers(256)
            if n % 5 == 0:
                changed = changed[: rng.integers(0, len(changed))]
            path.write_bytes(changed)
            try:
                ct.read(tmp_path / "m.nii" if path.suffix == ".nii" else folder)
            except ScanError as error:
                assert all(error.as_dict().values())
