"""Questions by clicks: what is suggested, what is asked about, confidence and place, stopping, the history, and a scene that closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui


def shown(finished: Any) -> str:
    return str(finished.panels.ask.ui.answersView.plainText).replace("\xa0", " ")


def ask(finished: Any, question: str) -> None:
    finished.panels.ask.ui.questionEdit.text = question
    finished.panels.ask.ui.askButton.click()


def answer(finished: Any, fake_worker: Any, text: str, **more: Any) -> None:
    fake_worker.say("result", answer=text, **more)
    finished.poll()


def test_suggestions_follow_from_the_findings_and_the_segments_of_this_case(finished: Any) -> None:
    box = finished.panels.ask.ui.suggestions
    suggested = [box.itemText(n) for n in range(1, box.count)]
    assert "How large is the lung nodule?" in suggested and "Is there a pleural effusion?" in suggested
    assert "What is the volume of the liver?" in suggested
    # What was not assessed is not asked for.
    assert not any("splenomegaly" in question for question in suggested)


def test_an_answer_shows_confidence_and_whether_it_has_a_place(finished: Any, fake_worker: Any) -> None:
    ask(finished, "Is there a lung nodule?")
    link = finished.panels._case.findings[0].link
    answer(finished, fake_worker, "Yes.", confidence=0.8, link=link.as_dict())
    ask(finished, "Why?")
    answer(finished, fake_worker, "This question cannot be answered from this scan.", confidence=0.0)
    text = shown(finished)
    assert text.index("Why?") < text.index("Is there a lung nodule?")  # the newest first
    assert "confidence 80 %" in text and "confidence 0 %" in text and text.count("no place") == 1


def test_a_question_can_be_stopped_and_asked_again(finished: Any, fake_worker: Any) -> None:
    from VelvetMedLib.errors import Cancelled

    ui = finished.panels.ask.ui
    ask(finished, "Is the scan normal?")
    assert ui.askButton.text == "Stop" and ui.askButton.enabled
    ui.askButton.click()
    assert fake_worker.cancelled == [len(fake_worker.requests)] and not ui.askButton.enabled
    fake_worker.say("error", **Cancelled().as_dict())
    finished.poll()
    assert ui.askButton.text == "Ask" and ui.askButton.enabled and ui.askMessage.text == "Stopped."
    assert finished.logic.case().answers == ()
    ui.askButton.click()
    assert fake_worker.requests[-1][1]["question"] == "Is the scan normal?"


def test_the_history_is_kept_with_the_scene(finished: Any, fake_worker: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    ask(finished, "Is there a lung nodule?")
    answer(finished, fake_worker, "Yes.", confidence=0.8)
    before = shown(finished)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    assert shown(finished) == ""
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    host.app.processEvents()
    assert shown(finished) == before and "Is there a lung nodule?" in before
    ask(finished, "And now?")  # an analysis of an earlier session can be asked, too
    assert fake_worker.requests[-1][0] == "ask" and (Path(fake_worker.requests[-1][1]["case"]) / "case.json").is_file()


def test_what_a_person_changed_is_in_the_folder_that_answers_are_read_from(finished: Any, fake_worker: Any) -> None:
    from VelvetMedLib.case import read_case
    from VelvetMedLib.case.editing import rewrite

    finished.panels.change(lambda case: rewrite(case, (0, 0), "My own words."))
    ask(finished, "What are the findings?")
    asked = read_case(fake_worker.requests[-1][1]["case"])
    assert asked.report.sections[0].sentences[0].text == "My own words."


def test_closing_the_scene_during_a_question_stops_it(finished: Any, fake_worker: Any, host: Any) -> None:
    ask(finished, "Is the scan normal?")
    host.close_scene()
    ui = finished.panels.ask.ui
    assert not finished.logic.busy and ui.askButton.text == "Ask" and not ui.askButton.enabled and ui.askMessage.text == ""


def test_an_unknown_place_of_an_answer_does_nothing(finished: Any) -> None:
    import qt

    for nowhere in ("answer:9", "answer:x", "https:"):
        finished.panels.ask.ui.answersView.anchorClicked.emit(qt.QUrl(nowhere))


def choose(finished: Any, words: str) -> Any:
    """Picks what the question is about; returns the panel's widgets."""
    ui = finished.panels.ask.ui
    texts = [ui.aboutSelector.itemText(n) for n in range(ui.aboutSelector.count)]
    ui.aboutSelector.setCurrentIndex(texts.index(words))
    return ui


def box_in_scan(finished: Any) -> Any:
    """A region of interest of 4 x 3 x 5 mm in the middle of the oblique, left-handed scan."""
    import slicer

    scan = finished.panels._case.input
    middle = np.array(scan.ijk_to_ras) @ [*((np.array(scan.shape_kji[::-1]) - 1) / 2), 1.0]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    node.SetCenter(*middle[:3])
    node.SetSize(4.0, 3.0, 5.0)
    return node


def test_a_question_can_be_put_to_a_segment_and_the_history_says_so(finished: Any, fake_worker: Any) -> None:
    import qt

    ui = choose(finished, "Spleen")
    suggested = [ui.suggestions.itemText(n) for n in range(1, ui.suggestions.count)]
    assert suggested[:3] == ["What is seen here?", "What is the mean density?", "How large is it?"] and not ui.aboutState.visible
    ask(finished, "How large is it?")
    assert fake_worker.requests[-1][1]["about"] == {"segment": "spleen", "box_to_ras": None}
    answer(finished, fake_worker, "210 ml.")
    assert finished.logic.case().answers[0].about.segment == "spleen" and "About: spleen" in shown(finished)
    assert ui.aboutSelector.currentText == "Spleen"  # the choice stays for the next question
    gone: list[Any] = []
    finished.panels.ask._go_to = gone.append
    ui.answersView.anchorClicked.emit(qt.QUrl("answer:0"))
    spleen = next(s for s in finished.panels._case.segments if s.name == "spleen")
    assert gone[0].label == spleen.label and gone[0].center_ras_mm == spleen.center_ras_mm


def test_a_box_is_asked_about_where_it_is_now_also_under_a_transform(finished: Any, fake_worker: Any) -> None:
    import slicer
    import vtk

    from VelvetMedLib.case import About

    node = box_in_scan(finished)
    ui = choose(finished, "A box (region of interest)")
    assert ui.boxRow.visible and "4 × 3 × 5 mm, within the scan" in ui.aboutState.text
    turn = vtk.vtkTransform()
    turn.RotateZ(30)
    turn.Translate(1, 2, 3)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    inverse = turn.GetLinearInverse().TransformPoint(node.GetCenter())
    node.SetCenter(*inverse)
    node.SetAndObserveTransformNodeID(transform.GetID())
    ask(finished, "mean HU?")
    asked = About.from_dict(fake_worker.requests[-1][1]["about"])
    draws = np.random.default_rng(0).uniform(-5, 5, (400, 3)) + asked.center_ras_mm
    told = [bool(node.IsPointInROIWorld(point.tolist())) for point in draws]
    assert any(told) and asked.holds(draws).tolist() == told
    answer(finished, fake_worker, "40 HU.")
    assert "About: box of 4 × 3 × 5 mm" in shown(finished)


def test_a_box_outside_of_the_scan_is_said_to_be_so_at_once_and_cannot_be_asked_about(finished: Any, fake_worker: Any) -> None:
    ui = choose(finished, "A box (region of interest)")
    finished.panels.ask.ui.questionEdit.text = "What is here?"
    assert "Place a box" in ui.aboutState.text and not ui.askButton.enabled
    node = box_in_scan(finished)
    assert ui.askButton.enabled
    node.SetSize(300.0, 3.0, 5.0)
    assert "of it lie outside of the scan" in ui.aboutState.text and ui.askButton.enabled
    node.SetCenter(900.0, 0.0, 0.0)
    assert "lies outside of the scan" in ui.aboutState.text and not ui.askButton.enabled
    choose(finished, "Whole scan")
    assert ui.askButton.enabled and not ui.boxRow.visible and not ui.aboutState.visible
    ask(finished, "What is here?")
    assert "about" not in fake_worker.requests[-1][1]


def test_a_new_box_lies_around_the_crosshair_and_one_bent_by_a_transform_is_refused(finished: Any, scene: Any) -> None:
    import slicer
    import vtk

    ui = choose(finished, "A box (region of interest)")
    middle = box_in_scan(finished).GetCenter()
    crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode") or scene.AddNewNodeByClass("vtkMRMLCrosshairNode")
    crosshair.SetCrosshairRAS(*middle)
    ui.newBoxButton.click()
    node = ui.boxSelector.currentNode()
    assert np.allclose(node.GetCenter(), middle) and tuple(node.GetSize()) == (40.0, 40.0, 40.0)
    bend = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (50, 50, 50)):
        source.InsertNextPoint(point)
        target.InsertNextPoint(point[0] + 8 * (point[0] > 0) * (point[1] > 0), *point[1:])
    bend.SetSourceLandmarks(source)
    bend.SetTargetLandmarks(target)
    bend.SetBasisToR()
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    warp.SetAndObserveTransformToParent(bend)
    node.SetAndObserveTransformNodeID(warp.GetID())
    assert "bends it" in ui.aboutState.text and not ui.askButton.enabled


def test_closing_the_scene_forgets_the_box(finished: Any, host: Any) -> None:
    box_in_scan(finished)
    ui = choose(finished, "A box (region of interest)")
    host.close_scene()
    assert ui.boxSelector.currentNode() is None and not ui.aboutSelector.enabled and not ui.aboutState.visible
    assert finished.panels.ask._watch._node is None


def test_no_answer_is_told_by_its_reason_and_not_by_a_confidence(finished: Any, fake_worker: Any) -> None:
    ask(finished, "Who is the patient?")
    answer(finished, fake_worker, "This question cannot be answered from this scan: who.", confidence=0.0, unanswered="beyond")
    assert "no question for a scan" in shown(finished) and "confidence" not in shown(finished)
