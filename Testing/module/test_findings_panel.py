"""Findings driven by clicks and keys: sorting, filters, next and previous, windows, heat-maps, axes, thresholds, missed findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

NAME, STATE, PROBABILITY, WHERE, SIZE = range(5)


def cells(panel: Any) -> list[list[str]]:
    table = panel.ui.findingsTable
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def column(panel: Any, number: int) -> list[str]:
    return [row[number] for row in cells(panel)]


def choose(panel: Any, name: str) -> None:
    panel.ui.findingsTable.setCurrentCell(column(panel, NAME).index(name), 0)


def press_header(panel: Any, number: int) -> None:
    panel.ui.findingsTable.horizontalHeader().sectionClicked.emit(number)


@pytest.fixture
def analysed(widget: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> Any:
    """The widget after an analysis by the model whose thresholds are known (absent below 20, present from 80 %)."""
    from VelvetMedLib.case import CaseModel

    widget.panels.analyze.ui.applyButton.click()
    model = CaseModel(id="mine", version="0.1", sha256="1" * 64, licence="Apache-2.0")
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[-1][1]["out"]), model=model)))
    widget.poll()
    open_groups(widget)
    return widget


def open_groups(widget: Any) -> None:
    """Thresholds and the form for missed findings are folded at first, and what is folded cannot be clicked."""
    for group in (widget.panels.findings.ui.thresholdsGroup, widget.panels.findings.ui.addGroup):
        assert group.collapsed
        group.collapsed = False


def current_case(widget: Any) -> Any:
    return widget.logic.case()


def test_every_state_has_its_own_sign_word_and_place_in_the_table(analysed: Any) -> None:
    panel = analysed.panels.findings
    panel.set_filter("all")
    assert cells(panel)[0] == ["Lung nodule", "● present", "91", "left upper lobe", "7"]
    assert cells(panel)[1] == ["Pleural effusion", "◐ uncertain", "44", "right", ""]
    assert cells(panel)[-1][:3] == ["Splenomegaly", "– not assessed", ""]
    choose(panel, "Splenomegaly")
    assert "not wholly in the scan" in panel.ui.selectedLabel.text and not panel.ui.absentBelow.enabled


@pytest.mark.parametrize(
    ("name", "count"), [("relevant", 2), ("all", 21), ("present", 1), ("uncertain", 1), ("absent", 18), ("not_assessed", 1)]
)
def test_a_filter_by_state_shows_these_and_counts_the_others(analysed: Any, name: str, count: int) -> None:
    panel = analysed.panels.findings
    panel.set_filter(name)
    assert len(cells(panel)) == count and panel.filter == name
    assert ("18 absent" in panel.ui.findingsHint.text) == (name in ("relevant", "present", "uncertain", "not_assessed"))


def test_the_filter_by_state_is_kept_with_the_scene(analysed: Any) -> None:
    from VelvetMedCore.parameters import parameter_node, read_parameters

    analysed.panels.findings.set_filter("absent")
    assert read_parameters(parameter_node()).findings_filter == "absent"
    analysed.panels.findings.set_filter("nonsense")
    analysed.panels.refresh_from_scene()
    assert analysed.panels.findings.filter == "relevant"


def test_words_filter_by_name_side_place_and_state_in_any_order(analysed: Any) -> None:
    panel = analysed.panels.findings
    panel.set_filter("all")
    for text, expected in (
        ("nodule", ["Lung nodule"]),
        ("LOBE left", ["Lung nodule"]),
        ("right", ["Pleural effusion"]),
        ("not assessed", ["Splenomegaly"]),
        ("zzz", []),
    ):
        panel.ui.filterEdit.text = text
        assert column(panel, NAME) == expected, text
    assert "None of these" in panel.ui.findingsHint.text
    panel.ui.filterEdit.text = ""
    assert len(cells(panel)) == 21


def test_a_press_on_a_title_sorts_a_second_turns_round_a_third_is_as_at_first(analysed: Any) -> None:
    panel = analysed.panels.findings
    panel.set_filter("all")
    first = column(panel, NAME)
    press_header(panel, NAME)
    assert column(panel, NAME) == sorted(first, key=str.casefold)
    press_header(panel, NAME)
    assert column(panel, NAME) == sorted(first, key=str.casefold, reverse=True)
    press_header(panel, NAME)
    assert column(panel, NAME) == first


def test_numbers_sort_as_numbers_and_what_has_none_comes_last_either_way(analysed: Any) -> None:
    panel = analysed.panels.findings
    panel.set_filter("all")
    press_header(panel, PROBABILITY)
    assert column(panel, PROBABILITY)[-1] == "" and column(panel, PROBABILITY)[-3:-1] == ["44", "91"]
    press_header(panel, PROBABILITY)
    assert column(panel, PROBABILITY)[:2] == ["91", "44"] and column(panel, PROBABILITY)[-1] == ""
    press_header(panel, SIZE)
    assert column(panel, SIZE)[0] == "7" and set(column(panel, SIZE)[1:]) == {""}
    press_header(panel, STATE)
    assert column(panel, STATE)[0] == "● present" and column(panel, STATE)[-1] == "– not assessed"


def test_next_and_previous_go_from_place_to_place_and_round_the_end(analysed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = analysed.panels.findings
    seen: list[str] = []
    monkeypatch.setattr(panel, "_go_to", lambda finding: seen.append(finding.name))
    panel.set_filter("all")
    for _ in range(3):
        panel.ui.nextButton.click()
    panel.ui.previousButton.click()
    assert seen == ["lung_nodule", "pleural_effusion", "lung_nodule", "pleural_effusion"]
    panel.set_filter("present")
    seen.clear()
    panel.ui.nextButton.click()
    panel.ui.nextButton.click()
    assert seen == ["lung_nodule", "lung_nodule"]  # the only one is gone to again: the view may have been moved away
    panel.set_filter("absent")
    assert not panel.ui.nextButton.enabled and not panel.ui.previousButton.enabled


def test_keys_do_the_same_but_only_while_the_module_is_in_front(analysed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import qt

    panel = analysed.panels.findings
    keys = {shortcut.key.toString(): shortcut for shortcut in panel._shortcuts}
    assert set(keys) == {"Ctrl+PgUp", "Ctrl+PgDown"} and all(s.context == qt.Qt.ApplicationShortcut for s in keys.values())
    seen: list[str] = []
    monkeypatch.setattr(panel, "_go_to", lambda finding: seen.append(finding.name))
    keys["Ctrl+PgDown"].activated.emit()
    keys["Ctrl+PgUp"].activated.emit()
    assert seen == ["lung_nodule", "pleural_effusion"]
    analysed.exit()
    assert not any(shortcut.enabled for shortcut in keys.values())
    analysed.enter()
    assert all(shortcut.enabled for shortcut in keys.values())


def window_of(ct: Any) -> tuple[float, float]:
    display = ct.GetDisplayNode()
    return display.GetWindow(), display.GetLevel()


def test_the_fitting_window_comes_with_the_finding_and_a_chosen_one_stays(analysed: Any, ct: Any) -> None:
    panel = analysed.panels.findings
    choose(panel, "Lung nodule")
    assert window_of(ct) == (1500.0, -600.0)
    choose(panel, "Pleural effusion")
    assert window_of(ct) == (400.0, 40.0)
    panel.ui.windowSelector.setCurrentIndex(3)
    assert window_of(ct) == (1800.0, 400.0)
    panel.ui.windowSelector.setCurrentIndex(4)
    choose(panel, "Lung nodule")
    assert window_of(ct) == (1800.0, 400.0)


def lines(scene: Any) -> list[Any]:
    return [scene.GetNthNodeByClass(n, "vtkMRMLMarkupsLineNode") for n in range(scene.GetNumberOfNodesByClass("vtkMRMLMarkupsLineNode"))]


def test_long_and_short_axis_are_drawn_as_markups_and_go_when_they_are_not_wanted(analysed: Any, scene: Any) -> None:
    panel = analysed.panels.findings
    choose(panel, "Lung nodule")
    long, short = lines(scene)
    assert (long.GetName(), short.GetName()) == ("long axis", "short axis")
    assert long.GetLineLengthWorld() >= short.GetLineLengthWorld() > 0 and "Research use only" in long.GetAttribute("VelvetMed.Notice")
    panel.ui.axesBox.click()
    assert lines(scene) == []


def write_heat(path: str) -> None:
    from VelvetMedLib.ct import write_nifti

    heat = np.zeros((4, 5, 6), np.float32)
    heat[1, 2, 3] = 0.8
    write_nifti(Path(path), heat, np.diag([4.0, 4.0, 4.0, 1.0]))


def foreground(scene: Any) -> Any:
    node = scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    return scene.GetNodeByID(node.GetForegroundVolumeID() or "")


@pytest.fixture
def composite(scene: Any) -> Any:
    return scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")


def test_a_heat_map_is_asked_for_once_laid_over_the_ct_and_taken_away(analysed: Any, scene: Any, fake_worker: Any, composite: Any) -> None:
    panel = analysed.panels.findings
    panel.ui.heatmapBox.click()
    choose(panel, "Lung nodule")
    verb, params = fake_worker.requests[-1]
    assert verb == "ground" and params["phrase"] == "lung nodule" and params["scan_grid"] is False and params["bundle"]
    write_heat(params["out"])
    fake_worker.say("result", heatmap=params["out"], score=0.8, peak_ras_mm=[12.0, 8.0, 4.0])
    analysed.poll()
    shown = foreground(scene)
    assert shown is not None and shown.GetAttribute("VelvetMed.Finding") == "lung_nodule"
    asked = len(fake_worker.requests)
    choose(panel, "Pleural effusion")
    fake_worker.say("error", code="cancelled")
    analysed.poll()
    choose(panel, "Lung nodule")
    assert len(fake_worker.requests) == asked + 1 and foreground(scene) is shown  # the nodule's own is kept in the scene
    panel.ui.heatmapBox.click()
    assert foreground(scene) is None


def test_a_heat_map_that_arrives_after_another_finding_was_chosen_is_kept_but_not_shown(
    analysed: Any, scene: Any, fake_worker: Any, composite: Any
) -> None:
    from VelvetMedCore.overlays import find_heatmap

    panel = analysed.panels.findings
    panel.ui.heatmapBox.click()
    choose(panel, "Lung nodule")
    params = fake_worker.requests[-1][1]
    choose(panel, "Pleural effusion")
    write_heat(params["out"])
    fake_worker.say("result", heatmap=params["out"])
    analysed.poll()
    assert find_heatmap("case", "lung_nodule") is not None and foreground(scene) is None
    # The worker is free again: now the one that is looked at is asked for.
    assert fake_worker.requests[-1][1]["phrase"] == "pleural effusion" and analysed.logic.busy


def test_where_nothing_is_marked_it_is_said_whenever_that_map_is_seen(analysed: Any, fake_worker: Any) -> None:
    panel = analysed.panels.findings
    panel.ui.heatmapBox.click()
    for name, marked in (("Lung nodule", False), ("Pleural effusion", True)):
        choose(panel, name)
        params = fake_worker.requests[-1][1]
        write_heat(params["out"])
        fake_worker.say("result", heatmap=params["out"], marked=marked)
        analysed.poll()
        assert ("Nothing is marked" in panel.ui.findingsMessage.text) is not marked
    choose(panel, "Lung nodule")  # its map is in the scene: the worker is not asked again
    assert not analysed.logic.busy and "Nothing is marked" in panel.ui.findingsMessage.text


def test_an_error_about_a_heat_map_is_shown_beside_the_findings(analysed: Any, fake_worker: Any) -> None:
    from VelvetMedLib.errors import CaseError

    panel = analysed.panels.findings
    panel.ui.heatmapBox.click()
    choose(panel, "Lung nodule")
    problem = CaseError("The case holds no encoding.", found="a", expected="b", next_step="Analyse again.")
    fake_worker.say("error", **problem.as_dict())
    analysed.poll()
    assert "Analyse again." in panel.ui.findingsMessage.text and not analysed.panels.analyze.ui.messageLabel.isVisibleTo(analysed.parent)
    choose(panel, "Pleural effusion")
    assert "Analyse again." not in panel.ui.findingsMessage.text


def test_a_heat_map_that_was_damaged_on_the_way_is_said_in_words(analysed: Any, fake_worker: Any) -> None:
    panel = analysed.panels.findings
    panel.ui.heatmapBox.click()
    choose(panel, "Lung nodule")
    fake_worker.say("result", heatmap="/nowhere.nii.gz")
    analysed.poll()
    assert "heat-map cannot be read" in panel.ui.findingsMessage.text


def test_a_finding_measured_on_organs_has_no_heat_map_and_says_so(analysed: Any, fake_worker: Any) -> None:
    case = current_case(analysed)
    link = case.findings[0].link
    heart = tuple(replace(f, state="present", probability=0.9, link=link) if f.name == "cardiomegaly" else f for f in case.findings)
    analysed.panels.change(lambda old: replace(old, findings=heart))
    panel = analysed.panels.findings
    panel.ui.heatmapBox.click()
    asked = len(fake_worker.requests)
    choose(panel, "Cardiomegaly")
    assert "no heat-map" in panel.ui.findingsMessage.text and len(fake_worker.requests) == asked


def test_thresholds_change_the_state_live_and_are_marked_as_the_users(analysed: Any) -> None:
    panel = analysed.panels.findings
    choose(panel, "Pleural effusion")
    assert "20 and 80 %" in panel.ui.thresholdsLabel.text
    assert (panel.ui.absentBelow.value, panel.ui.presentFrom.value) == (20.0, 80.0)
    panel.ui.presentFrom.setValue(40)
    assert cells(panel)[1][:2] == ["Pleural effusion ✎", "● present"] and panel.current.name == "pleural_effusion"
    assert "By your thresholds" in panel.ui.selectedLabel.text and "uncertain" in panel.ui.selectedLabel.text
    table = analysed.logic.nodes().findings
    row = next(n for n in range(table.GetNumberOfRows()) if table.GetCellText(n, 0) == "pleural effusion")
    assert (table.GetCellText(row, 1), table.GetCellText(row, 9)) == ("present", "model, thresholds of the user")
    panel.ui.modelThresholdsButton.click()
    assert cells(panel)[1][:2] == ["Pleural effusion", "◐ uncertain"] and panel.ui.presentFrom.value == 80.0
    assert not panel.ui.modelThresholdsButton.enabled


def test_one_threshold_gives_way_to_the_other(analysed: Any) -> None:
    panel = analysed.panels.findings
    choose(panel, "Pleural effusion")
    panel.ui.absentBelow.setValue(90)
    assert (panel.ui.absentBelow.value, panel.ui.presentFrom.value) == (90.0, 90.0)
    assert panel.current.state == "absent"  # hidden by the filter otherwise, but it is being judged
    panel.ui.presentFrom.setValue(30)
    overruling = next(f for f in current_case(analysed).findings if f.name == "pleural_effusion").overruling
    assert (overruling.absent_below, overruling.present_from) == (0.3, 0.3)


def test_a_filter_that_the_user_chooses_hides_what_does_not_fit_even_if_it_was_chosen(analysed: Any) -> None:
    panel = analysed.panels.findings
    choose(panel, "Pleural effusion")
    panel.set_filter("present")
    assert column(panel, NAME) == ["Lung nodule"] and panel.current is None


def test_a_model_that_is_no_longer_here_leaves_its_thresholds_unknown(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    open_groups(finished)
    monkeypatch.setattr(finished.panels.findings, "_model_thresholds", lambda name: None)
    panel = finished.panels.findings
    choose(panel, "Lung nodule")
    assert "not known here" in panel.ui.thresholdsLabel.text and panel.ui.absentBelow.enabled


def add(panel: Any, name: str, *, state: int = 0, side: int = 0) -> None:
    panel.ui.addName.setCurrentIndex(panel.ui.addName.findText(name))
    panel.ui.addState.setCurrentIndex(state)
    panel.ui.addSide.setCurrentIndex(side)
    panel.ui.addButton.click()


def test_a_missed_finding_is_added_at_the_crosshair_kept_and_taken_out_again(analysed: Any, scene: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    from VelvetMedCore.navigation import jump_to

    panel = analysed.panels.findings
    jump_to((4.0, 5.0, 60.0))
    add(panel, "Renal cyst", side=1)
    row = column(panel, NAME).index("Renal cyst ✎")
    assert cells(panel)[row][1:4] == ["● present", "", "left"]
    new = current_case(analysed).findings[-1]
    assert new.by_person and new.link.center_ras_mm == (4.0, 5.0, 60.0)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    host.app.processEvents()
    choose(panel, "Renal cyst ✎")
    assert "no model stands behind it" in panel.ui.selectedLabel.text and not panel.ui.presentFrom.enabled
    panel.ui.removeAddedButton.click()
    assert "Renal cyst ✎" not in column(panel, NAME) and not any(f.by_person for f in current_case(analysed).findings)


def test_a_finding_without_sides_is_not_asked_for_one(analysed: Any) -> None:
    panel = analysed.panels.findings
    panel.ui.addName.setCurrentIndex(panel.ui.addName.findText("Splenomegaly"))
    assert not panel.ui.addSide.enabled
    add(panel, "Splenomegaly", state=1, side=2)
    new = current_case(analysed).findings[-1]
    assert (new.name, new.state, new.side) == ("splenomegaly", "uncertain", None)


def test_the_place_of_a_missed_finding_is_named_where_the_ontology_has_a_name_for_it(
    analysed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = analysed.panels.findings
    monkeypatch.setattr(panel, "_place", lambda: ((1.0, 2.0, 3.0), "lung_lower_lobe_left"))
    add(panel, "Consolidation", side=1)
    assert current_case(analysed).findings[-1].site == "lung_lower_lobe_left"
    monkeypatch.setattr(panel, "_place", lambda: ((1.0, 2.0, 3.0), "liver"))
    add(panel, "Consolidation", side=1)
    assert current_case(analysed).findings[-1].site is None


def test_without_an_analysis_nothing_can_be_added_stepped_to_or_judged(widget: Any) -> None:
    ui = widget.panels.findings.ui
    assert not any(w.enabled for w in (ui.addButton, ui.removeAddedButton, ui.nextButton, ui.previousButton, ui.presentFrom))
    widget.panels.findings.next()
    widget.panels.change(lambda case: case)


def test_the_same_finding_stays_chosen_while_the_case_changes_and_not_in_another_case(analysed: Any) -> None:
    panel = analysed.panels.findings
    choose(panel, "Pleural effusion")
    add(panel, "Renal cyst", side=1)
    assert panel.current.name == "pleural_effusion"
    panel.show_case(replace(current_case(analysed), id="another"))
    assert panel.current is None
