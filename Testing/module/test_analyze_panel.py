"""Analyze driven by clicks: chosen parts, stages in words, what the request says, and results that lack a part."""

from __future__ import annotations

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
