"""Questions by clicks: what is suggested, confidence and place, stopping, the history in the scene, and a scene that closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
