"""What is saved: the report, the segments and the Case folder, whole, marked, under neutral names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui


@pytest.fixture
def folder(finished: Any, tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    finished.panels.save.ui.folderPath.currentPath = str(path)
    return path


def press(finished: Any, name: str) -> str:
    ui = finished.panels.save.ui
    getattr(ui, f"{name}Button").click()
    return str(ui.saveMessage.text)


def test_nothing_can_be_saved_without_an_analysis_or_a_folder(widget: Any, tmp_path: Path) -> None:
    ui = widget.panels.save.ui
    ui.folderPath.currentPath = str(tmp_path)
    assert not (ui.reportButton.enabled or ui.segmentsButton.enabled or ui.caseButton.enabled)


def test_the_report_is_saved_with_its_marks(finished: Any, folder: Path) -> None:
    finished.panels.reviewing.on_edited(frozenset({"lung_nodule"}))
    assert press(finished, "report") == "report.md was written."
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("> **AI-generated draft") and "Out of date" in text and "DOE" not in text
    assert [p.name for p in folder.iterdir()] == ["report.md"]


def test_the_segments_are_saved_with_names_colours_and_codes_and_the_node_keeps_its_own_file(finished: Any, folder: Path) -> None:
    import slicer

    node = finished.logic.nodes().segmentation
    assert press(finished, "segments") == "segments.seg.nrrd was written."
    assert node.GetStorageNode() is None or "out" not in (node.GetStorageNode().GetFileName() or "")
    loaded = slicer.util.loadSegmentation(str(folder / "segments.seg.nrrd"))
    segmentation, before = loaded.GetSegmentation(), node.GetSegmentation()
    for name in ("liver", "spleen", "lung_nodule"):
        assert segmentation.GetSegment(name).GetName() == before.GetSegment(name).GetName()
        assert segmentation.GetSegment(name).GetTerminology() == before.GetSegment(name).GetTerminology()
        assert np.allclose(segmentation.GetSegment(name).GetColor(), before.GetSegment(name).GetColor(), atol=1e-3)
    assert b"Research use only" in (folder / "segments.seg.nrrd").read_bytes()[:20000]


def test_the_case_folder_holds_scan_segments_and_edits_as_they_are_now(finished: Any, folder: Path, labels: np.ndarray, ct: Any) -> None:
    import SimpleITK as sitk
    import slicer
    import vtk

    from VelvetMedLib.case import read_case, read_segmentation
    from VelvetMedLib.case.editing import rewrite

    finished.panels.change(lambda case: rewrite(case, (0, 0), "A nodule of 9 mm."))
    finished.logic.nodes().segmentation.GetSegmentation().RemoveSegment("spleen")
    assert press(finished, "case") == "case was written."
    case = read_case(folder / "case")
    kept, grid = read_segmentation(folder / "case")
    expected = labels.copy()
    expected[labels == 1] = 0
    assert np.array_equal(kept, expected) and case.report.sections[0].sentences[0].by_person
    assert next(s for s in case.segments if s.name == "spleen").stale
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "case" / "ct.nii.gz")))
    assert np.array_equal(voxels, slicer.util.arrayFromVolume(ct))
    matrix = vtk.vtkMatrix4x4()
    ct.GetIJKToRASMatrix(matrix)
    assert np.allclose(grid.ijk_to_ras, slicer.util.arrayFromVTKMatrix(matrix), atol=1e-4)
    for path in (p for p in (folder / "case").rglob("*") if p.is_file()):
        assert b"DOE" not in path.read_bytes(), path.name


def test_what_is_there_already_is_replaced_only_after_a_question(finished: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    (folder / "report.md").write_text("mine", encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_, **__: bool(asked.append(text)))
    press(finished, "report")
    assert "report.md" in asked[0] and (folder / "report.md").read_text(encoding="utf-8") == "mine"
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
    press(finished, "report")
    assert "AI-generated draft" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_said_in_words_and_nothing_is_left(
    finished: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished.panels.save.ui.folderPath.currentPath = str(folder / "missing")
    assert "Choose another folder." in press(finished, "report")
    finished.panels.save.ui.folderPath.currentPath = str(folder)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    assert "could not be written" in press(finished, "report")
    monkeypatch.undo()
    assert list(folder.iterdir()) == []


def test_after_the_scan_has_left_the_scene_the_case_is_saved_without_voxels(finished: Any, folder: Path, scene: Any, ct: Any) -> None:
    scene.RemoveNode(ct)
    assert press(finished, "case") == "case was written."
    assert (folder / "case" / "segmentation.nii.gz").is_file() and not (folder / "case" / "ct.nii.gz").exists()
