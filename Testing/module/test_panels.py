"""The panels, driven by clicks in the host, with a fake worker behind the real logic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui


def press_apply(widget: Any) -> None:
    widget.panels.analyze.ui.applyButton.click()


def cells(table: Any) -> list[list[str]]:
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def test_the_research_use_sentence_is_always_visible(widget: Any) -> None:
    label = widget.panels.ui.researchLabel
    assert label.text == "Research use only. Not for clinical use." and label.isVisible()
    widget.panels.clear()
    assert label.isVisible()


def test_apply_waits_for_the_acknowledgement_a_volume_and_a_model(widget: Any, host: Any, scene: Any) -> None:
    import slicer

    panel = widget.panels.analyze
    assert not panel.ui.applyButton.enabled and "Load a CT" in panel.ui.statusLabel.text
    slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.int16), name="a scan")
    panel.ui.volumeSelector.setCurrentNode(slicer.util.getNode("a scan"))
    assert panel.ui.applyButton.enabled and not panel.ui.statusLabel.visible
    panel.allow(False)
    assert not panel.ui.applyButton.enabled and "statement" in panel.ui.statusLabel.text
    panel.allow(True)
    panel.set_models([], "")
    assert not panel.ui.applyButton.enabled and "No model" in panel.ui.statusLabel.text


def test_the_first_start_asks_for_the_acknowledgement_and_remembers_it(widget: Any, host: Any, loaded_module: Any) -> None:
    from VelvetMedCore.settings import Settings
    from VelvetMedLib import __version__

    Settings().acknowledged_version = "0.0"
    first, parent = host.open_widget(loaded_module)
    setup = first.panels.setup
    assert not setup.acknowledged and not first.panels.ui.setupSection.collapsed
    setup.ui.acknowledgeButton.click()
    assert setup.acknowledged and Settings().acknowledged_version == __version__
    assert not setup.ui.acknowledgementFrame.isVisibleTo(parent)
    first.cleanup()
    parent.close()


def test_the_card_of_the_chosen_model_says_what_it_was_trained_on(widget: Any) -> None:
    text = widget.panels.setup.ui.modelCard.text
    assert "synthetic cases" in text and "Apache-2.0" in text and "12 held-out" in text


def test_progress_is_shown_by_stage_and_time_left_and_cancel_stops(widget: Any, ct: Any, fake_worker: Any, scene: Any) -> None:
    from VelvetMedLib.errors import Cancelled

    panel = widget.panels.analyze
    widget.panels.analyze.ui.volumeSelector.setCurrentNode(ct)
    press_apply(widget)
    before = scene.GetNumberOfNodes()
    assert panel.ui.progressRow.visible and not panel.ui.applyButton.enabled and widget._timer.active
    fake_worker.say("progress", fraction=0.5, stage="fine", seconds_left=42.0)
    widget.poll()
    assert panel.ui.progressBar.value == 500
    assert panel.ui.statusLabel.text == "Organs and lesions - about 40 s left"
    panel.ui.cancelButton.click()
    assert fake_worker.cancelled == [1] and "Stopping" in panel.ui.statusLabel.text
    fake_worker.say("error", **Cancelled().as_dict())
    widget.poll()
    assert not panel.ui.progressRow.visible and panel.ui.applyButton.enabled and not widget._timer.active
    assert "Nothing was changed" in panel.ui.statusLabel.text and scene.GetNumberOfNodes() == before


def test_a_dead_worker_is_explained_in_words_and_the_next_press_works(widget: Any, ct: Any, fake_worker: Any) -> None:
    from VelvetMedLib.worker.wording import exit_error

    panel = widget.panels.analyze
    press_apply(widget)
    _, problem = exit_error(1, ["ModuleNotFoundError: No module named 'torch'"])
    fake_worker.say("error", **problem.as_dict(), stderr=["ModuleNotFoundError: No module named 'torch'"])
    widget.poll()
    text = panel.ui.messageLabel.text
    assert panel.ui.messageLabel.visible and "torch is missing" in text and "Next:" in text and "Traceback" not in text
    assert "ModuleNotFoundError" in panel.ui.messageLabel.toolTip
    assert panel.ui.applyButton.enabled
    press_apply(widget)
    assert not panel.ui.messageLabel.visible and len(fake_worker.requests) == 2


def test_a_volume_with_several_values_is_refused_on_the_panel(widget: Any, scene: Any, fake_worker: Any) -> None:
    import slicer

    vector = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6, 3), np.uint8), name="colour", nodeClassName="vtkMRMLVectorVolumeNode")
    widget.panels.analyze.ui.volumeSelector.setCurrentNode(vector)
    press_apply(widget)
    assert "several values" in widget.panels.analyze.ui.messageLabel.text and fake_worker.requests == []


def test_a_result_fills_every_panel(finished: Any) -> None:
    panels = finished.panels
    findings = cells(panels.findings.ui.findingsTable)
    assert findings[0] == ["Lung nodule", "● present", "91", "left upper lobe", "7"]
    assert findings[1][1].startswith("◐ uncertain") and len(findings) == 2
    assert "18 absent, 1 not assessed" in panels.findings.ui.findingsHint.text
    assert "AI-generated draft" in panels.report.ui.reportView.plainText
    assert "No consolidation." in panels.report.ui.reportView.plainText
    segments = cells(panels.segments.ui.segmentsTable)
    assert [row[1] for row in segments] == ["Lung nodule or mass", "Spleen", "Liver"] and segments[2][2].startswith("≥ ")
    assert panels.ask.ui.questionEdit.enabled and panels.ask.ui.suggestions.count > 1
    assert "Done" in panels.analyze.ui.statusLabel.text


def test_a_sentence_is_shown_as_it_is_even_if_it_looks_like_markup(finished: Any) -> None:
    from dataclasses import replace

    panel, case = finished.panels.report, finished.panels._case
    section = case.report.sections[0]
    odd = replace(section.sentences[0], text="Nodule <b>x</b> & < 6 mm.")
    panel.show_case(replace(case, report=replace(case.report, sections=(replace(section, sentences=(odd,)),))))
    assert "Nodule <b>x</b> & < 6 mm." in panel.ui.reportView.plainText
    panel.show_case(replace(case, report=None))
    assert "No draft yet" in panel.ui.reportView.plainText and not panel.ui.copyButton.enabled


def test_the_filter_shows_all_findings_and_says_why_one_is_not_assessed(finished: Any) -> None:
    panel = finished.panels.findings
    panel.set_filter("all")
    rows = cells(panel.ui.findingsTable)
    assert len(rows) == 21 and rows[-1][1] == "– not assessed"
    assert "not wholly in the scan" in panel.ui.findingsTable.item(20, 0).toolTip()
    from VelvetMedCore.parameters import parameter_node, read_parameters

    assert read_parameters(parameter_node()).findings_filter == "all"


def slice_node(field_of_view_mm: tuple[float, float] = (200.0, 200.0)) -> Any:
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
    node.SetOrientationToAxial()
    node.SetDimensions(200, 200, 1)
    node.SetFieldOfView(*field_of_view_mm, 1)
    return node


def shows(node: Any, point: Any) -> bool:
    """Whether the point lies in the plane of a slice view and not near its border or beyond."""
    import vtk

    to_view = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(node.GetXYToRAS(), to_view)
    x, y, depth = to_view.MultiplyPoint((*point, 1.0))[:3]
    width, height = node.GetDimensions()[:2]
    return abs(depth) < 1e-3 and 0.04 * width < x < 0.96 * width and 0.04 * height < y < 0.96 * height


def test_a_click_on_a_finding_moves_the_slices_there_and_shows_its_segment(finished: Any) -> None:
    node = slice_node()
    panels = finished.panels
    display = finished.logic.nodes().segmentation.GetDisplayNode()
    display.SetSegmentVisibility("lung_nodule", False)
    panels.findings.ui.findingsTable.setCurrentCell(0, 0)
    link = panels._case.findings[0].link
    assert shows(node, link.center_ras_mm) and display.GetSegmentVisibility("lung_nodule")


def test_a_view_that_shows_the_place_is_not_shifted_and_one_that_does_not_is_centred(finished: Any) -> None:
    wide, narrow = slice_node((400.0, 400.0)), slice_node((5.0, 5.0))
    panels = finished.panels
    panels.findings.ui.findingsTable.setCurrentCell(0, 0)
    center = panels._case.findings[0].link.center_ras_mm
    assert shows(wide, center) and shows(narrow, center)
    assert [wide.GetSliceToRAS().GetElement(row, 3) for row in range(2)] == [0, 0]
    assert np.allclose([narrow.GetSliceToRAS().GetElement(row, 3) for row in range(2)], center[:2], atol=1e-3)


def test_a_click_on_a_sentence_moves_the_slices_there(finished: Any) -> None:
    import qt

    node = slice_node()
    report = finished.panels.report
    report.ui.reportView.anchorClicked.emit(qt.QUrl("sentence:0.2"))
    assert shows(node, finished.panels._case.report.sections[0].sentences[2].link.center_ras_mm)
    for nowhere in ("sentence:0.99", "sentence:7.0", "sentence:x.y"):
        report.ui.reportView.anchorClicked.emit(qt.QUrl(nowhere))
    report.ui.reportView.anchorClicked.emit(qt.QUrl("elsewhere"))


def test_a_click_on_a_segment_moves_the_slices_there(finished: Any) -> None:
    node = slice_node()
    finished.panels.segments.ui.segmentsTable.setCurrentCell(2, 1)
    liver = next(segment for segment in finished.panels._case.segments if segment.name == "liver")
    assert shows(node, liver.center_ras_mm)


def test_copying_puts_the_disclaimer_first(finished: Any) -> None:
    import slicer

    finished.panels.report.ui.copyButton.click()
    text = slicer.app.clipboard().text()
    assert text.startswith("AI-generated draft - not for clinical use. Unverified.\n") and "[uncertain]" in text


def test_surfaces_are_made_only_on_request(finished: Any) -> None:
    import slicer

    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    node = finished.logic.nodes().segmentation
    assert not node.GetSegmentation().ContainsRepresentation(name)
    finished.panels.segments.ui.show3dButton.click()
    assert node.GetSegmentation().ContainsRepresentation(name)
    finished.panels.segments.ui.show3dButton.click()
    assert not node.GetDisplayNode().GetVisibility3D()


def test_a_question_is_asked_answered_and_kept(finished: Any, fake_worker: Any) -> None:
    ask = finished.panels.ask
    assert not ask.ui.askButton.enabled
    ask.ui.suggestions.setCurrentIndex(1)
    assert ask.ui.questionEdit.text == ask.ui.suggestions.itemText(1)
    ask.ui.askButton.click()
    assert fake_worker.requests[-1][0] == "ask" and ask.ui.askButton.text == "Stop"
    link = finished.panels._case.findings[0].link
    fake_worker.say("result", answer="Yes, on the left.", confidence=0.87, link=link.as_dict())
    finished.poll()
    text = ask.ui.answersView.plainText
    assert "Yes, on the left." in text and "87 %" in text and "Research use only" in text
    node = slice_node()
    import qt

    ask.ui.answersView.anchorClicked.emit(qt.QUrl("answer:0"))
    assert shows(node, link.center_ras_mm)


def test_an_error_of_a_question_is_shown_where_it_was_asked(finished: Any, fake_worker: Any) -> None:
    from VelvetMedLib.errors import WorkerError

    ask = finished.panels.ask
    ask.ui.questionEdit.text = "Why?"
    ask.ui.askButton.click()
    problem = WorkerError("No answer.", found="nothing", expected="an answer", next_step="Ask again.")
    fake_worker.say("error", **problem.as_dict())
    finished.poll()
    assert "Ask again." in ask.ui.askMessage.text and ask.ui.askButton.enabled


def test_closing_the_scene_during_a_run_stops_the_worker_and_clears_the_panels(widget: Any, ct: Any, fake_worker: Any, host: Any) -> None:
    press_apply(widget)
    fake_worker.say("result", case="/nowhere")
    host.close_scene()
    assert fake_worker.killed == 1 and not widget.logic.busy and not widget._timer.active
    widget.poll()
    assert widget.panels.findings.ui.findingsTable.rowCount == 0
    assert not widget.panels.analyze.ui.progressRow.visible and not widget.panels.analyze.ui.applyButton.enabled


def test_closing_the_scene_clears_every_panel(finished: Any, host: Any) -> None:
    host.close_scene()
    panels = finished.panels
    assert panels.findings.ui.findingsTable.rowCount == panels.segments.ui.segmentsTable.rowCount == 0
    assert "No draft yet" in panels.report.ui.reportView.plainText and panels.report.text() == ""
    assert panels.ask.ui.answersView.plainText == "" and not panels.ask.ui.askButton.enabled
    finished.panels.segments.on_3d(True)


def test_a_reloaded_scene_fills_the_panels_again(finished: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    before = cells(finished.panels.findings.ui.findingsTable)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    host.app.processEvents()
    assert cells(finished.panels.findings.ui.findingsTable) == before
    assert finished.panels.analyze.volume.GetName() == "DOE^JOHN 1950"


def test_deleted_result_nodes_do_no_harm(finished: Any, scene: Any) -> None:
    nodes = finished.logic.nodes()
    scene.RemoveNode(nodes.segmentation)
    finished.panels.findings.ui.findingsTable.setCurrentCell(0, 0)
    finished.panels.segments.ui.show3dButton.click()
    scene.RemoveNode(nodes.case)
    finished.enter()
    assert finished.panels.findings.ui.findingsTable.rowCount == 0


def test_a_second_widget_and_a_cleanup_leave_no_observer_behind(widget: Any, host: Any, loaded_module: Any, scene: Any) -> None:
    second, parent = host.open_widget(loaded_module)
    second.cleanup()
    parent.close()
    host.close_scene()
    assert second.logic.busy is False and not second.hasObserver(scene, scene.EndCloseEvent, second.on_scene_changed)


def test_packages_are_installed_only_on_a_press_and_torch_through_its_extension(widget: Any, host: Any) -> None:
    setup, recorders = widget.panels.setup, host.recorders
    recorders.packaging.satisfied = False
    try:
        setup.refresh()
        assert setup.ui.installButton.isVisibleTo(setup.ui.root) and recorders.packaging.requested == [] and recorders.torch.requested == []
        setup.ui.installButton.click()
        assert recorders.torch.requested[0]["torchVersionRequirement"] == ">=2.2,!=2.9.*"
        wanted = recorders.packaging.requested[0]["requirements"]
        assert not any(line.startswith("torch") for line in wanted) and any(line.startswith("tokenizers") for line in wanted)
        assert not setup.ui.installButton.isVisibleTo(setup.ui.root)
    finally:
        recorders.packaging.satisfied = True
        recorders.packaging.requested.clear()
        recorders.torch.requested.clear()


def test_another_python_is_remembered_and_gets_its_own_worker(widget: Any, fake_worker: Any, ct: Any) -> None:
    from VelvetMedCore.settings import Settings

    press_apply(widget)
    fake_worker.say("error", code="worker", what="x")
    widget.poll()
    setup = widget.panels.setup
    setup.ui.pythonSelector.setCurrentIndex(1)
    setup.ui.pythonPath.currentPath = "/opt/python"
    assert Settings().own_python == "/opt/python" and fake_worker.closed >= 1 and not setup.ui.installButton.isVisibleTo(setup.ui.root)
    setup.ui.pythonSelector.setCurrentIndex(0)
    assert Settings().own_python == ""


def test_a_field_for_a_folder_asks_for_a_folder_and_one_for_a_file_for_a_file(widget: Any) -> None:
    import ctk

    analyze, similar = widget.panels.analyze.ui, widget.panels.similar.ui
    folders = (analyze.languagePath, similar.indexPath, similar.scansPath, widget.panels.save.ui.folderPath)
    assert not any(field.filters & ctk.ctkPathLineEdit.Files for field in folders)
    assert all(field.filters & ctk.ctkPathLineEdit.Files for field in (analyze.phrasesPath, widget.panels.setup.ui.pythonPath))


def test_nothing_is_wider_than_a_narrow_panel(finished: Any, host: Any) -> None:
    parent = finished.parent
    finished.panels.analyze.ui.formBox.collapsed = False
    parent.resize(350, 1400)
    host.app.processEvents()
    assert parent.minimumSizeHint().width() <= 350
