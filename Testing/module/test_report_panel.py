"""The report panel by clicks: state and support, editing, verdicts, what a person wrote, stale marks and a second look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

NODULE, CONSOLIDATION, EFFUSION = (0, 0), (0, 1), (0, 2)


def click(panel: Any, place: tuple[int, int]) -> None:
    import qt

    panel.ui.reportView.anchorClicked.emit(qt.QUrl(f"sentence:{place[0]}.{place[1]}"))


def shown(panel: Any) -> str:
    return str(panel.ui.reportView.plainText).replace("\xa0", " ")


def kept_sentences(widget: Any) -> list[Any]:
    from VelvetMedLib.case.editing import sentences

    return [sentence for _, _, sentence in sentences(widget.logic.case())]


def rewrite(panel: Any, place: tuple[int, int], text: str) -> None:
    click(panel, place)
    panel.ui.sentenceEdit.setPlainText(text)
    panel.ui.keepButton.click()


def test_every_sentence_shows_its_state_and_support(finished: Any) -> None:
    text = shown(finished.panels.report)
    assert "● A nodule of 7 mm in the left upper lobe. 91 %" in text and "○ No consolidation. 95 %" in text
    assert "◐ A small right pleural effusion is possible. 44 %" in text


def test_without_a_chosen_sentence_only_adding_is_possible(finished: Any) -> None:
    ui = finished.panels.report.ui
    buttons = (ui.keepButton, ui.restoreButton, ui.acceptButton, ui.rejectButton, ui.addButton)
    assert not any(button.enabled for button in buttons)
    ui.sentenceEdit.setPlainText("Clips.")
    assert ui.addButton.enabled and not ui.keepButton.enabled


def test_a_sentence_that_contradicts_what_was_found_says_so_with_the_reason_until_it_is_mended(finished: Any) -> None:
    panel = finished.panels.report
    rewrite(panel, NODULE, "A nodule of 7 mm in the right upper lobe.")
    reason = "✖ contradicted: The lung nodule was found on the left, not on the right."
    assert reason in shown(panel) and reason in panel.text()
    rewrite(panel, NODULE, "A nodule of 7 mm in the left upper lobe, previously 4 mm.")
    assert "? not borne out: No measurement of this scan is 4 mm." in shown(panel) and "contradicted" not in shown(panel)
    panel.ui.restoreButton.click()
    assert "✖" not in shown(panel) and "not borne out" not in shown(panel)
    assert [sentence.flags for sentence in kept_sentences(finished)] == [(), (), ()]


def test_a_persons_words_stay_apart_from_the_models_and_are_kept_with_whose_they_are(finished: Any) -> None:
    panel = finished.panels.report
    rewrite(panel, NODULE, "A nodule of 9 mm.")
    assert "A nodule of 9 mm. ✎ by hand" in shown(panel) and "91 %" not in shown(panel)
    assert "Model demo 1: “A nodule of 7 mm in the left upper lobe.”" in panel.ui.sentenceLabel.text
    assert "1111" in panel.ui.sentenceLabel.toolTip
    told = kept_sentences(finished)[0].revision
    assert told.machine_text == "A nodule of 7 mm in the left upper lobe." and told.weights_sha256 == "1" * 64 and told.changed
    assert "words of a person" in finished.logic.nodes().report.GetText()
    panel.ui.restoreButton.click()
    assert kept_sentences(finished)[0].revision is None and "A nodule of 7 mm in the left upper lobe. 91 %" in shown(panel)


def test_sentences_are_accepted_and_rejected_one_by_one_and_verdicts_can_be_taken_back(finished: Any) -> None:
    panel = finished.panels.report
    click(panel, NODULE)
    panel.ui.acceptButton.click()
    click(panel, CONSOLIDATION)
    panel.ui.rejectButton.click()
    assert "✓ accepted" in shown(panel) and "✗ rejected" in shown(panel)
    assert [s.revision.verdict if s.revision else None for s in kept_sentences(finished)] == ["accepted", "rejected", None]
    panel.ui.rejectButton.click()
    assert kept_sentences(finished)[1].revision.verdict is None and "rejected" not in shown(panel)
    panel.ui.rejectButton.click()
    panel.ui.acceptButton.click()  # from one verdict straight to the other
    assert kept_sentences(finished)[1].revision.verdict == "accepted" and not panel.ui.rejectButton.checked


def test_copying_puts_the_disclaimer_first_and_leaves_out_what_was_rejected(finished: Any) -> None:
    import slicer

    panel = finished.panels.report
    click(panel, CONSOLIDATION)
    panel.ui.rejectButton.click()
    panel.ui.copyButton.click()
    text = slicer.app.clipboard().text()
    assert text.startswith("AI-generated draft - not for clinical use. Unverified.\n") and "No consolidation." not in text
    assert "A small right pleural effusion is possible. [uncertain]" in text


def test_a_sentence_of_ones_own_is_added_and_taken_out_again(finished: Any) -> None:
    panel = finished.panels.report
    panel.ui.sentenceEdit.setPlainText("  Surgical clips\nin the axilla. ")
    panel.ui.addButton.click()
    assert "Added by hand" in shown(panel) and "Surgical clips in the axilla. ✎ by hand" in shown(panel)
    click(panel, EFFUSION)
    panel.ui.sentenceEdit.setPlainText("Old rib fracture.")
    panel.ui.addButton.click()
    assert [s.text for s in kept_sentences(finished)][3] == "Old rib fracture."
    click(panel, (1, 0))
    assert "Your own sentence" in panel.ui.sentenceLabel.text
    panel.ui.restoreButton.click()
    assert "Surgical clips" not in shown(panel) and "Added by hand" not in shown(panel)


def test_an_endless_sentence_changes_nothing(finished: Any) -> None:
    panel = finished.panels.report
    before = kept_sentences(finished)
    rewrite(panel, NODULE, "x" * 5000)
    assert kept_sentences(finished) == before


@pytest.mark.parametrize("name", ["scene.mrb", "scene.mrml"])
def test_edits_verdicts_and_stale_marks_survive_saving_and_reloading_the_scene(finished: Any, host: Any, tmp_path: Path, name: str) -> None:
    import slicer

    panel = finished.panels.report
    rewrite(panel, NODULE, "A nodule of 9 mm.")
    click(panel, CONSOLIDATION)
    panel.ui.rejectButton.click()
    finished.panels.reviewing.on_edited(frozenset({"lung_nodule"}))
    case, text = finished.logic.case(), shown(panel)
    folder = tmp_path / "scene"
    folder.mkdir()
    if name.endswith(".mrml"):
        save_every_node(folder)
    assert slicer.util.saveScene(str(folder / name))
    host.close_scene()
    assert "No draft yet" in shown(panel) and not panel.ui.staleFrame.visible
    slicer.util.loadScene(str(folder / name))
    host.app.processEvents()
    assert finished.logic.case() == case and shown(panel) == text
    assert "out of date" in panel.ui.staleLabel.text and panel.ui.recomputeButton.enabled
    assert finished.logic.case_volume().GetName() == "DOE^JOHN 1950"


def save_every_node(folder: Path) -> None:
    """Into files of their own, as Slicer's save dialog does before a .mrml is written."""
    import slicer

    endings = {
        "vtkMRMLScalarVolumeNode": ".nrrd",
        "vtkMRMLSegmentationNode": ".seg.nrrd",
        "vtkMRMLTableNode": ".tsv",
        "vtkMRMLTextNode": ".txt",
    }
    scene = slicer.mrmlScene
    for number in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(number)
        ending = endings.get(node.GetClassName().removeprefix("vtkMRML").removesuffix("Node"))
        if ending is not None:
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            storage.SetFileName(str(folder / f"node{number}{ending}"))
            assert storage.WriteData(node)


def paint_liver(widget: Any, slices: int = 2) -> None:
    """Erases slices of the liver in the shared label map, with the event that the Segment Editor sends."""
    from vtk.util import numpy_support

    node = widget.logic.nodes().segmentation
    image = node.GetBinaryLabelmapInternalRepresentation("liver")
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    value = node.GetSegmentation().GetSegment("liver").GetLabelValue()
    present = np.flatnonzero((values == value).any(axis=(1, 2)))[:slices]
    for k in present:
        values[k][values[k] == value] = 0
    image.Modified()
    node.GetSegmentation().InvokeEvent(node.GetSegmentation().SourceRepresentationModified)


def stale_names(widget: Any) -> set[str]:
    return {segment.name for segment in widget.logic.case().segments if segment.stale}


def test_an_edit_in_the_segment_editor_marks_figures_and_findings_at_once(finished: Any) -> None:
    paint_liver(finished)
    assert stale_names(finished) == {"liver"}
    panels = finished.panels
    for panel in (panels.report, panels.segments):
        assert panel.ui.staleFrame.isVisibleTo(panel.ui.root) and "liver" in panel.ui.staleLabel.text and panel.ui.recomputeButton.enabled
    table = panels.segments.ui.segmentsTable
    assert table.item(2, 1).text() == "Liver\u00a0⚠" and "out of date" in table.item(2, 2).toolTip()
    assert {f.name for f in finished.logic.case().findings if f.stale} >= {"liver_lesion", "hepatic_steatosis"}


def test_a_second_look_measures_here_and_asks_the_worker_for_the_sentences(finished: Any, fake_worker: Any) -> None:
    paint_liver(finished)
    before = next(s for s in finished.logic.case().segments if s.name == "liver")
    finished.panels.report.ui.recomputeButton.click()
    after = next(s for s in finished.logic.case().segments if s.name == "liver")
    assert after.volume_ml == pytest.approx(before.volume_ml * 6 / 8) and after.edited and not after.stale
    verb, params = fake_worker.requests[-1]
    assert verb == "report" and params["edited"] == [4] and params["style"] == "structured"
    labels = fake_worker.volumes[-1][0]
    assert set(np.unique(labels)) == {0, 4} and "Looking again" in finished.panels.report.ui.staleLabel.text
    assert not finished.panels.report.ui.recomputeButton.enabled
    case = finished.logic.case()
    findings = [f.as_dict() | {"stale": False} for f in case.findings]
    fake_worker.say("result", findings=findings, report=case.report.as_dict())
    finished.poll()
    assert not finished.panels.report.ui.staleFrame.visible and not any(f.stale for f in finished.logic.case().findings)


def test_a_second_look_asks_for_the_form_and_the_writer_of_the_draft_and_not_for_what_is_chosen_now(
    widget: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]
) -> None:
    ui = widget.panels.analyze.ui
    ui.writerSelector.setCurrentIndex(2)
    ui.phrasesPath.currentPath = "/home/me/own.json"
    ui.applyButton.click()
    form = {"style": "structured", "length": "brief", "sections": ["liver"], "hold_from": None}
    run = {"draft": form, "writer": {"kind": "composer", "own_phrases": 7, "sha256": "0" * 64}}
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[-1][1]["out"]), run=run)))
    widget.poll()
    ui.phrasesPath.currentPath = "/home/me/other.json"
    paint_liver(widget)
    widget.panels.report.ui.recomputeButton.click()
    verb, params = fake_worker.requests[-1]
    assert verb == "report" and form.items() <= params.items() and params["writer"] == "/home/me/own.json"


def test_when_the_second_look_fails_the_figures_stand_and_the_rest_stays_marked(finished: Any, fake_worker: Any) -> None:
    from VelvetMedLib.errors import WorkerError

    paint_liver(finished)
    finished.panels.segments.ui.recomputeButton.click()
    fake_worker.say("error", **WorkerError("It died.", found="x", expected="y", next_step="Press again.").as_dict())
    finished.poll()
    panel = finished.panels.report
    assert "Press again." in panel.ui.staleLabel.text and panel.ui.recomputeButton.enabled
    assert stale_names(finished) == set() and any(f.stale for f in finished.logic.case().findings)
    panel.ui.recomputeButton.click()
    assert fake_worker.requests[-1][0] == "report"


def test_without_the_scan_a_second_look_says_what_is_missing(finished: Any, scene: Any, ct: Any) -> None:
    paint_liver(finished)
    scene.RemoveNode(ct)
    finished.panels.report.ui.recomputeButton.click()
    assert "not in the scene" in finished.panels.report.ui.staleLabel.text and not finished.logic.busy


def test_closing_the_scene_during_a_second_look_stops_it_and_clears_the_panels(finished: Any, host: Any, fake_worker: Any) -> None:
    paint_liver(finished)
    finished.panels.report.ui.recomputeButton.click()
    host.close_scene()
    assert not finished.logic.busy and fake_worker.killed >= 1
    panel = finished.panels.report
    assert "No draft yet" in shown(panel) and not panel.ui.staleFrame.visible and not panel.ui.sentenceFrame.visible


def test_a_new_analysis_is_watched_and_the_old_segments_are_not(finished: Any, fake_worker: Any, make_case: Callable[..., Path]) -> None:
    from VelvetMedCore.parameters import parameter_node
    from VelvetMedCore.segment_figures import TABLE_ROLE

    old, old_table = finished.logic.nodes().segmentation, parameter_node().GetNodeReference(TABLE_ROLE)
    finished.panels.analyze.ui.applyButton.click()
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[-1][1]["out"]))))
    finished.poll()
    old.GetSegmentation().RemoveSegment("liver")
    assert stale_names(finished) == set()
    paint_liver(finished)
    assert stale_names(finished) == {"liver"}
    table = parameter_node().GetNodeReference(TABLE_ROLE)
    assert table is not old_table and "out of date" not in [old_table.GetCellText(row, 4) for row in range(3)]
    assert "out of date" in " ".join(table.GetCellText(row, 4) for row in range(3))


def test_a_deleted_segmentation_does_no_harm(finished: Any, scene: Any) -> None:
    node = finished.logic.nodes().segmentation
    scene.RemoveNode(node)
    finished.enter()
    finished.panels.segments.ui.lesionsButton.click()
    finished.panels.reviewing.recompute()
    assert "not in the scene" in finished.panels.report.ui.staleLabel.text


def test_lesions_alone_are_shown_and_organs_come_back(finished: Any) -> None:
    panel, display = finished.panels.segments, finished.logic.nodes().segmentation.GetDisplayNode()
    panel.ui.lesionsButton.click()
    assert display.GetSegmentVisibility("lung_nodule") and not display.GetSegmentVisibility("liver")
    finished.enter()
    assert panel.ui.lesionsButton.checked
    panel.ui.lesionsButton.click()
    assert display.GetSegmentVisibility("liver") and "SNOMED CT" in panel.ui.segmentsTable.item(2, 1).toolTip()
