"""The folder: whole or not at all, refused in four parts where it is damaged, and free of the patient's identity."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY, ct
from VelvetMedLib.case import Answer, Case, CaseInput, read_case, read_segmentation, report_markdown, update_case, write_case
from VelvetMedLib.errors import CaseError


def _refused(folder: Path, words: str, read=read_case) -> CaseError:
    with pytest.raises(CaseError) as caught:
        read(folder)
    error = caught.value
    assert all((error.what, error.found, error.expected, error.next_step))
    assert str(folder) not in str(error) and words in str(error)
    return error


def test_a_written_case_reads_back_with_its_segmentation_on_its_own_grid(tmp_path, small_case, labels_kji, oblique) -> None:
    written = write_case(tmp_path / "case", small_case, segmentation_kji=labels_kji, grid=oblique)
    assert read_case(tmp_path / "case") == written == replace(small_case, files=written.files)
    labels, grid = read_segmentation(tmp_path / "case")
    assert labels.dtype == np.uint8 and np.array_equal(labels, labels_kji)
    assert np.allclose(grid.ijk_to_ras, oblique, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "case").iterdir()) == ["case.json", "report.md", "segmentation.nii.gz"]
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


def test_image_and_encoding_travel_in_the_folder_where_wanted(tmp_path, small_case) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 900, (40, 41, 42)).astype(np.int16)
    volume = ct.from_array(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]))
    (tmp_path / "e").write_bytes(b"tensors")
    case = replace(small_case, input=CaseInput.of(volume), segments=())
    written = write_case(tmp_path / "case", case, volume=volume, encoding_path=tmp_path / "e")
    assert set(written.files) == {"ct.nii.gz", "encoding.safetensors"}
    assert ct.read(tmp_path / "case" / "ct.nii.gz").sha256() == case.input.sha256


def test_the_report_begins_with_the_disclaimer_and_shows_state_and_place_of_every_sentence(small_case) -> None:
    text = report_markdown(small_case)
    assert text.startswith(f"> **{DRAFT_DISCLAIMER}**") and RESEARCH_USE_ONLY in text
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert "present; support 0.90; liver lesion at R 12, A -3, S 18 mm" in lines[0]
    assert "no image evidence" in lines[1] and "absent; support 0.97" in lines[2]
    assert "Partly outside the field of view: liver" in text


def test_markup_in_a_sentence_is_shown_and_not_interpreted(small_case) -> None:
    text = report_markdown(small_case)
    assert "<script>" not in text and "&lt;script&gt;" in text and "\\*bold\\*" in text


def test_an_answer_is_added_without_touching_the_images(tmp_path, small_case, labels_kji, oblique) -> None:
    folder = tmp_path / "case"
    write_case(folder, small_case, segmentation_kji=labels_kji, grid=oblique)
    before = (folder / "segmentation.nii.gz").read_bytes()
    answer = Answer(question="Is there a stone?", answer="no", confidence=0.8, finding="kidney_stone", created="2026-01-02T03:04:06+00:00")
    update_case(folder, replace(read_case(folder), answers=(answer,)))
    assert read_case(folder).answers == (answer,)
    assert (folder / "segmentation.nii.gz").read_bytes() == before and read_segmentation(folder)[0].any()


def test_an_earlier_case_is_replaced_and_foreign_content_is_not(tmp_path, small_case) -> None:
    write_case(tmp_path / "case", small_case)
    write_case(tmp_path / "case", replace(small_case, id="second"))
    assert read_case(tmp_path / "case").id == "second" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    _refused(tmp_path / "photos", "not a case", lambda folder: write_case(folder, small_case))
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_a_missing_case_is_refused(tmp_path) -> None:
    _refused(tmp_path / "nowhere", "no such folder")
    _refused(tmp_path, "no case.json")


def test_an_unknown_version_is_refused_by_number(tmp_path, small_case) -> None:
    write_case(tmp_path / "case", small_case)
    path = tmp_path / "case" / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"schema_version": 7}), encoding="utf-8")
    _refused(tmp_path / "case", "schema version 7")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"schema_version": 1}', b'{"schema_version": 1, "id": "x", "\xc3\xa9": 1}', b"[" * 100000],
    ids=["empty", "cut", "list", "not UTF-8", "keys missing", "unknown key", "deep"],
)
def test_damaged_json_is_refused(tmp_path, small_case, content: bytes) -> None:
    write_case(tmp_path / "case", small_case)
    (tmp_path / "case" / "case.json").write_bytes(content)
    _refused(tmp_path / "case", "damaged")


def test_a_value_of_the_wrong_kind_in_the_json_is_named(tmp_path, small_case) -> None:
    write_case(tmp_path / "case", small_case)
    path = tmp_path / "case" / "case.json"
    path.write_text(path.read_text("utf-8").replace('"state": "uncertain"', '"state": "perhaps"'), encoding="utf-8")
    _refused(tmp_path / "case", "CaseFinding.state")


def test_a_missing_or_cut_file_is_refused_by_name(tmp_path, small_case, labels_kji, oblique) -> None:
    folder = tmp_path / "case"
    write_case(folder, small_case, segmentation_kji=labels_kji, grid=oblique)
    path = folder / "segmentation.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    _refused(folder, "segmentation.nii.gz")
    path.unlink()
    _refused(folder, "segmentation.nii.gz")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    _refused(folder, "changed", read_segmentation)


def test_a_case_json_that_points_outside_its_folder_is_refused(tmp_path, small_case) -> None:
    write_case(tmp_path / "case", small_case)
    (tmp_path / "secret").write_bytes(b"1234")
    path = tmp_path / "case" / "case.json"
    data = json.loads(path.read_text("utf-8")) | {"files": {"../secret": {"sha256": "0", "bytes": 4}}}
    path.write_text(json.dumps(data), encoding="utf-8")
    _refused(tmp_path / "case", "outside")


def test_a_segmentation_that_does_not_fit_the_scan_is_not_written(tmp_path, small_case, oblique) -> None:
    with pytest.raises(ValueError, match="shape"):
        write_case(tmp_path / "case", small_case, segmentation_kji=np.zeros((3, 3, 3), np.uint8), grid=oblique)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_words_and_leaves_nothing(tmp_path, small_case, monkeypatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    _refused(tmp_path / "case", "No space left", lambda folder: write_case(folder, small_case))
    assert list(tmp_path.iterdir()) == []


def _killed_at(step: int, work) -> bool:
    """Run work in a forked child that dies before its n-th change of the disk. True if it died, False if it finished."""
    child = os.fork()
    if child == 0:
        left = [step]

        def dying(function):
            def call(*arguments, **options):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return function(*arguments, **options)

            return call

        for name in ("fsync", "replace", "mkdir", "rmdir", "unlink", "rename"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to die in the middle of a write")
def test_a_kill_at_any_step_leaves_the_old_case_or_the_new_one(tmp_path, small_case, labels_kji, oblique) -> None:
    new = replace(small_case, id="new")
    folder = tmp_path / "case"
    for fresh in (True, False):
        step = 0
        while True:
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            if not fresh:
                write_case(folder, small_case, segmentation_kji=labels_kji, grid=oblique)
            died = _killed_at(step, lambda: write_case(folder, new, segmentation_kji=labels_kji, grid=oblique))
            if fresh and not (folder / "case.json").exists():
                assert not folder.exists()
            else:
                case = read_case(folder)
                assert case.id in ("c0ffee", "new") and read_segmentation(folder)[0].any()
            # Whatever was left behind, the next write succeeds.
            write_case(folder, replace(small_case, id="third"), segmentation_kji=labels_kji, grid=oblique)
            assert read_case(folder).id == "third"
            if not died:
                break
            step += 1
        assert step >= 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to die in the middle of a write")
def test_a_kill_in_an_update_leaves_the_old_answers_or_the_new_ones(tmp_path, small_case) -> None:
    answer = Answer(question="?", answer="no", created="2026-01-02T03:04:06+00:00")
    folder = tmp_path / "case"
    step = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        write_case(folder, small_case)
        died = _killed_at(step, lambda: update_case(folder, replace(small_case, answers=(answer,))))
        assert read_case(folder).answers in ((), (answer,))
        if not died:
            break
        step += 1
    assert step >= 3 and read_case(folder).answers == (answer,)


def test_no_marker_of_the_patient_reaches_a_case(tmp_path, small_case) -> None:
    marker = "ZZMARKER"
    source = tmp_path / f"{marker}^JANE" / f"{marker}_scan.nii.gz"
    source.parent.mkdir()
    rng = np.random.default_rng(0)
    ct.write_nifti(source, rng.integers(-1000, 900, (40, 41, 42)).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    raw = bytearray(gzip.decompress(source.read_bytes()))
    raw[148 : 148 + 16] = f"{marker} Patient".encode()[:16].ljust(16, b"\0")
    raw[228 : 228 + 16] = marker.encode().ljust(16, b"\0")
    source.write_bytes(gzip.compress(bytes(raw)))
    volume = ct.read(source)
    labels = np.zeros(volume.shape_kji, np.uint8)
    labels[10:20, 10:20, 10:20] = 4
    folder = tmp_path / "out"
    case: Case = replace(small_case, input=CaseInput.of(volume), warnings=tuple(volume.warnings))
    write_case(folder, case, segmentation_kji=labels, grid=volume.grid, volume=volume)
    for path in folder.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert marker.encode() not in content and str(tmp_path).encode() not in content, path.name
        assert marker not in path.name
