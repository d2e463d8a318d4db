"""Analyze driven by clicks: chosen parts, the form of the draft, stages in words, what the request says, results that lack a part."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gui


def boxes(widget: Any) -> tuple[Any, Any, Any]:
    ui = widget.panels.analyze.ui
    return ui.segmentsPart, ui.findingsPart, ui.reportPart


def test_everything_is_made_unless_a_part_is_taken_off(widget: Any, ct: Any, fake_worker: Any) -> None:
    widget.panels.analyze.ui.applyButton.click()
    assert fake_worker.requests[-1][1]["parts"] == ["segments", "findings", "report"]


def test_a_draft_comes_with_its_findings_and_goes_with_them(widget: Any, ct: Any) -> None:
    _segments, findings, report = boxes(widget)
    findings.click()
    assert not report.checked and widget.panels.analyze.parts == ("segments",)
    report.click()
    assert findings.checked and widget.panels.analyze.parts == ("segments", "findings", "report")


def test_with_nothing_to_make_apply_says_what_is_missing(widget: Any, ct: Any) -> None:
    segments, findings, _report = boxes(widget)
    segments.click()
    findings.click()
    ui = widget.panels.analyze.ui
    assert not ui.applyButton.enabled and "at least one" in ui.statusLabel.text
    segments.click()
    assert ui.applyButton.enabled and not ui.statusLabel.isVisibleTo(widget.panels.root)


def test_the_chosen_parts_are_kept_with_the_scene(widget: Any, ct: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    boxes(widget)[0].click()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    assert widget.panels.analyze.parts == ("segments", "findings", "report")
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    host.app.processEvents()
    assert widget.panels.analyze.parts == ("findings", "report")


def test_parts_cannot_be_changed_while_the_worker_computes(widget: Any, ct: Any) -> None:
    widget.panels.analyze.ui.applyButton.click()
    assert not any(box.enabled for box in boxes(widget))


def test_a_result_without_segments_shows_what_there_is(
    widget: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    widget.panels.analyze.ui.applyButton.click()
    folder = make_case(Path(fake_worker.requests[-1][1]["out"]))
    data = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    (folder / "segmentation.nii.gz").unlink()
    (folder / "case.json").write_text(json.dumps(data | {"segments": [], "files": {}}), encoding="utf-8")
    fake_worker.say("result", case=str(folder))
    widget.poll()
    assert widget.logic.nodes().segmentation is None and widget.logic.nodes().findings is not None
    panel = widget.panels.findings
    panel.ui.findingsTable.setCurrentCell(0, 0)  # its place is known, its segment is not
    assert panel.current.name == "lung_nodule" and "Done" in widget.panels.analyze.ui.statusLabel.text


@pytest.mark.parametrize(
    ("stage", "words"), [("prepare", "Preparing the scan"), ("segmentation", "Segments"), ("later stage", "Later stage")]
)
def test_stages_are_said_in_words_a_reader_knows(widget: Any, ct: Any, fake_worker: Any, stage: str, words: str) -> None:
    widget.panels.analyze.ui.applyButton.click()
    fake_worker.say("progress", fraction=0.1, stage=stage, seconds_left=None)
    widget.poll()
    assert widget.panels.analyze.ui.statusLabel.text.startswith(words)


def test_every_stage_of_the_analysis_has_its_words() -> None:
    from VelvetMedLib.tasks.analysis import STAGES
    from VelvetMedPanels.analyze import stage_word

    assert not [stage for stage in STAGES if stage_word(stage) == stage[:1].upper() + stage[1:] and stage != "findings"]


# the form of the draft


def choose_a_form(widget: Any) -> None:
    """Built-in phrases in the style of a telegram, brief, without bones; what is wrong is only flagged."""
    ui = widget.panels.analyze.ui
    ui.formBox.collapsed = False
    for selector, text in (
        (ui.writerSelector, "Built-in phrases"),
        (ui.styleSelector, "Telegram style"),
        (ui.lengthSelector, "All that is absent"),
    ):
        selector.setCurrentIndex(next(n for n in range(selector.count) if selector.itemText(n).startswith(text)))
    section_box(widget, "Bones").click()
    ui.flagOnlyBox.click()


def section_box(widget: Any, text: str) -> Any:
    import qt

    return next(box for box in widget.panels.analyze.ui.sectionsGrid.findChildren(qt.QCheckBox) if box.text == text)


def asked_for(fake_worker: Any) -> Any:
    """The form that the worker understands from the last request."""
    from VelvetMedLib.worker.handlers import _draft_of

    return _draft_of(fake_worker.requests[-1][1])


def test_the_worker_is_asked_for_the_form_that_was_chosen_and_else_for_its_default(widget: Any, ct: Any, fake_worker: Any) -> None:
    from VelvetMedLib.tasks.writers import DraftSettings, section_names

    apply = widget.panels.analyze.ui.applyButton
    apply.click()
    assert asked_for(fake_worker) == DraftSettings() and fake_worker.requests[-1][1]["writer"] is None
    widget.panels.clear()
    widget.logic.stop()
    choose_a_form(widget)
    apply.click()
    sections = tuple(name for name in section_names() if name != "bones")
    assert asked_for(fake_worker) == DraftSettings(style="terse", length="brief", sections=sections, hold_from=None)
    assert fake_worker.requests[-1][1]["writer"] == "composer"


def test_every_form_that_a_draft_can_have_can_be_chosen_in_words(widget: Any) -> None:
    from VelvetMedLib.reports import STYLES
    from VelvetMedLib.tasks.writers import LENGTHS, section_names
    from VelvetMedPanels.drafting import form_word

    ui = widget.panels.analyze.ui
    for selector, names in ((ui.styleSelector, STYLES), (ui.lengthSelector, LENGTHS)):
        assert [selector.itemText(n) for n in range(selector.count)] == [form_word(name) for name in names]
    assert all(section_box(widget, form_word(name)).checked for name in section_names())
    assert not [name for name in (*STYLES, *LENGTHS, *section_names()) if form_word(name) == name]


def test_a_scene_keeps_the_form_but_no_path_of_the_users(widget: Any, ct: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    panel = widget.panels.analyze
    panel.ui.phrasesPath.currentPath = "/home/jane/own.json"
    choose_a_form(widget)
    chosen = panel.form
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    assert panel.form != chosen and panel.ui.phrasesPath.currentPath == "/home/jane/own.json"
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    host.app.processEvents()
    assert panel.form == chosen
    with zipfile.ZipFile(tmp_path / "scene.mrb") as scene:
        texts = [scene.read(name) for name in scene.namelist() if name.endswith(".mrml")]
    assert b"terse" in texts[0] and b"jane" not in texts[0]


def test_a_form_of_another_version_is_shown_as_the_default(widget: Any) -> None:
    from VelvetMedCore.drafting import DraftForm

    panel = widget.panels.analyze
    panel.set_form(DraftForm(style="baroque", length="endless", sections="brain", writer="nobody", against="dropped"))
    assert panel.form == DraftForm()


@pytest.mark.parametrize(("writer", "path", "words"), [(2, "phrasesPath", "phrases"), (3, "languagePath", "language model")])
def test_a_writer_of_ones_own_is_named_by_its_path_which_is_remembered(
    widget: Any, ct: Any, fake_worker: Any, writer: int, path: str, words: str
) -> None:
    from VelvetMedCore.settings import Settings

    panel, ui = widget.panels.analyze, widget.panels.analyze.ui
    ui.formBox.collapsed = False
    ui.writerSelector.setCurrentIndex(writer)
    shown = [name for name in ("phrasesPath", "languagePath") if getattr(ui, name).isVisibleTo(ui.formBox)]
    assert shown == [path] and not ui.applyButton.enabled and words in ui.statusLabel.text
    getattr(ui, path).currentPath = " /home/me/mine "
    ui.applyButton.click()
    assert fake_worker.requests[-1][1]["writer"] == "/home/me/mine"
    assert "/home/me/mine" in (Settings().phrases_file, Settings().language_folder) and panel.is_running


def test_without_any_section_apply_says_what_is_missing(widget: Any, ct: Any) -> None:
    import qt

    ui = widget.panels.analyze.ui
    ui.formBox.collapsed = False
    for box in ui.sectionsGrid.findChildren(qt.QCheckBox):
        box.click()
    assert not ui.applyButton.enabled and "section" in ui.statusLabel.text
    section_box(widget, "Heart").click()
    assert ui.applyButton.enabled and widget.panels.analyze.form.sections == "heart"


def test_the_form_rests_without_a_draft_and_while_the_worker_computes(widget: Any, ct: Any, fake_worker: Any) -> None:
    ui = widget.panels.analyze.ui
    ui.writerSelector.setCurrentIndex(2)  # no file is chosen, which matters to no one without a draft
    assert ui.formBox.enabled
    ui.reportPart.click()
    assert not ui.formBox.enabled and ui.applyButton.enabled
    ui.applyButton.click()
    assert not {"style", "writer", "sections"} & set(fake_worker.requests[-1][1])
    widget.panels.clear()
    ui.reportPart.click()
    ui.writerSelector.setCurrentIndex(0)
    widget.logic.stop()
    ui.applyButton.click()
    assert not ui.formBox.enabled


@pytest.mark.parametrize(
    ("writer", "used", "named"),
    [
        ({}, "", None),
        ({"kind": "decoder"}, "", "decoder"),
        ({"kind": "composer", "own_phrases": 0}, "", "composer"),
        ({"kind": "composer", "own_phrases": 3}, "", "own.json"),
        ({"kind": "language model"}, "used", "used"),
    ],
)
def test_a_second_look_is_worded_by_the_writer_that_the_case_tells(
    logic: Any, make_case: Callable[..., Path], writer: Any, used: str, named: str | None
) -> None:
    from VelvetMedCore.drafting import form_of
    from VelvetMedLib.case import read_case
    from VelvetMedLib.errors import CaseError

    case = read_case(make_case(run={"writer": writer}))
    logic.settings.phrases_file = "own.json"
    assert form_of(case, used, logic.settings)["writer"] == named
    logic.settings.phrases_file = ""
    if named == "own.json":  # a scene of somebody else's
        with pytest.raises(CaseError, match="not known here"):
            form_of(case, "", logic.settings)
