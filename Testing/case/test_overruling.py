"""Thresholds of a person and findings that the model missed: the model's own word stays, and nothing contradicts silently."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from VelvetMedLib.case import Case, CaseFinding, read_case
from VelvetMedLib.case.editing import mark_edited, rewrite, sentence_at
from VelvetMedLib.case.overruling import (
    DISAGREE,
    MEASURED,
    add_finding,
    remove_finding,
    reset_thresholds,
    reworded,
    set_thresholds,
    state_by,
)
from VelvetMedLib.reports import ontology
from VelvetMedLib.reports.parse import parse_sentence

WHEN = "2026-11-22T10:00:00+00:00"
POINT = (10.0, -20.0, 30.0)
NODULE_SENTENCE, EFFUSION_SENTENCE = (0, 0), (0, 2)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A nodule (present, 0.91), an uncertain effusion (0.44), spleen not assessed, everything else absent (0.04)."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from velvetmed_phantom import write_small_case

    labels = np.zeros((20, 30, 25), np.uint8)
    labels[4:12, 5:20, 3:12], labels[14:16, 20:23, 5:8] = 4, 101
    return read_case(write_small_case(tmp_path_factory.mktemp("case") / "case", labels, np.diag([1.0, 1.0, 2.0, 1.0])))


def the(case: Case, name: str) -> CaseFinding:
    return next(f for f in case.findings if f.name == name)


def test_a_state_follows_the_stored_probability_and_the_persons_thresholds(case: Case) -> None:
    for low, high, state in ((0.2, 0.4, "present"), (0.2, 0.5, "uncertain"), (0.45, 0.5, "absent"), (0.44, 0.44, "present")):
        after = the(set_thresholds(case, "pleural_effusion", low, high, when=WHEN), "pleural_effusion")
        assert after.state == state and after.probability == 0.44
        assert after.overruling is not None and not after.by_person
        assert (after.overruling.machine_state, after.overruling.absent_below, after.overruling.present_from) == ("uncertain", low, high)


def test_the_models_own_state_comes_back_whole_however_often_it_was_overruled(case: Case) -> None:
    changed = set_thresholds(set_thresholds(case, "lung_nodule", 0.92, 0.95), "lung_nodule", 0.1, 0.99)
    assert the(changed, "lung_nodule").state == "uncertain"
    assert reset_thresholds(changed, "lung_nodule") == case
    assert reset_thresholds(case, "lung_nodule") is case


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_thresholds_that_cross_or_leave_the_range_are_refused(case: Case, low: float, high: float) -> None:
    with pytest.raises(ValueError):
        set_thresholds(case, "lung_nodule", low, high)


def test_what_was_not_assessed_stays_so_under_any_threshold(case: Case) -> None:
    with pytest.raises(ValueError, match="not assessed"):
        set_thresholds(case, "splenomegaly", 0.0, 0.0)


def test_a_sentence_that_no_longer_agrees_is_stale_and_agrees_again_after_a_reset(case: Case) -> None:
    changed = set_thresholds(case, "pleural_effusion", 0.6, 0.8)
    assert sentence_at(changed, EFFUSION_SENTENCE).stale and not sentence_at(changed, NODULE_SENTENCE).stale
    assert not sentence_at(set_thresholds(changed, "pleural_effusion", 0.2, 0.8), EFFUSION_SENTENCE).stale
    assert not sentence_at(reset_thresholds(changed, "pleural_effusion"), EFFUSION_SENTENCE).stale


def test_a_persons_own_sentence_is_not_judged_by_thresholds(case: Case) -> None:
    mine = rewrite(case, EFFUSION_SENTENCE, "A small right pleural effusion.")
    assert not sentence_at(set_thresholds(mine, "pleural_effusion", 0.6, 0.8), EFFUSION_SENTENCE).stale


def test_a_measurement_that_contradicts_makes_it_uncertain_as_in_the_analysis(case: Case) -> None:
    """The slow twin is the analysis itself: the same rule on the same numbers."""
    from VelvetMedLib.bundle.config import Calibration, FindingEntry
    from VelvetMedLib.tasks import findings as analysis
    from VelvetMedLib.tasks.evidence import Measured

    for finding in map(ontology().finding, MEASURED):
        edges = [edge for edge in (finding.measure.absent_below, finding.measure.present_from, finding.measure.absent_above) if edge]
        for probability in (0.1, 0.5, 0.9):
            for value in [edge + step for edge in edges for step in (-20.0, -0.01, 0.0, 0.01, 20.0)]:
                entry = FindingEntry(name=finding.name, calibration=Calibration(), threshold_absent=0.3, threshold_present=0.7)
                expected = analysis.decide(finding, analysis.state_of(entry, probability), Measured(value=value))
                made = replace(the(case, finding.name), state="absent", probability=probability, value=value, reason=None)
                changed = replace(case, findings=tuple(made if f.name == finding.name else f for f in case.findings))
                after = the(set_thresholds(changed, finding.name, 0.3, 0.7), finding.name)
                assert (after.state, after.reason) == expected, (finding.name, probability, value)


def test_a_cut_off_organ_that_is_already_too_large_cannot_be_made_absent(case: Case) -> None:
    made = replace(the(case, "cardiomegaly"), state="uncertain", probability=0.3, reason=DISAGREE, value=None)
    changed = replace(case, findings=tuple(made if f.name == "cardiomegaly" else f for f in case.findings))
    assert the(set_thresholds(changed, "cardiomegaly", 0.5, 0.6), "cardiomegaly").state == "uncertain"
    assert the(set_thresholds(changed, "cardiomegaly", 0.1, 0.2), "cardiomegaly").state == "present"


def test_a_missed_finding_is_the_persons_alone_and_stands_beside_the_models(case: Case) -> None:
    after = add_finding(case, "lung_nodule", point_ras_mm=POINT, side="right", site="lung_lower_lobe_right", when=WHEN)
    new = after.findings[-1]
    assert new.by_person and new.probability is None and new.state == "present" and new.overruling is not None
    assert new.link is not None and new.link.center_ras_mm == POINT and new.overruling.changed == WHEN
    assert the(after, "lung_nodule") == the(case, "lung_nodule") and len(after.findings) == len(case.findings) + 1
    twice = add_finding(after, "lung_nodule", point_ras_mm=POINT)
    assert sum(f.by_person for f in twice.findings) == 2


def test_a_missed_finding_makes_the_models_denial_stale_until_it_is_taken_out(case: Case) -> None:
    place = (0, 1)  # "No consolidation."
    after = add_finding(case, "consolidation", point_ras_mm=POINT, state="uncertain")
    assert sentence_at(after, place).stale
    assert remove_finding(after, after.findings[-1]) == case


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "unheard of"},
        {"name": "splenomegaly", "side": "left"},
        {"name": "lung_nodule", "site": "liver"},
        {"name": "lung_nodule", "state": "absent"},
    ],
)
def test_what_the_ontology_does_not_allow_is_refused(case: Case, wrong: dict[str, str]) -> None:
    options = dict(wrong)
    with pytest.raises(ValueError):
        add_finding(case, options.pop("name"), point_ras_mm=POINT, **options)


def test_only_what_a_person_added_can_be_removed(case: Case) -> None:
    with pytest.raises(ValueError):
        remove_finding(case, case.findings[0])


def test_a_sentence_that_a_threshold_contradicted_is_worded_anew_and_stays_the_models(case: Case) -> None:
    changed = set_thresholds(case, "pleural_effusion", 0.6, 0.8)
    after = sentence_at(reworded(changed), EFFUSION_SENTENCE)
    assert [(said.name, said.state) for said in parse_sentence(after.text)] == [("pleural_effusion", "absent")]
    assert (after.state, after.stale, after.by_person) == ("absent", False, False) and after.support == pytest.approx(0.56)
    assert reworded(changed) == reworded(changed) and reworded(case) == case


def test_a_denial_of_what_a_person_added_becomes_their_sentence_and_keeps_the_models_words(case: Case) -> None:
    place = (0, 1)  # "No consolidation."
    after = sentence_at(reworded(add_finding(case, "consolidation", point_ras_mm=POINT, side="left")), place)
    assert after.by_person and after.revision is not None and after.revision.machine_text == "No consolidation."
    assert [(said.name, said.state) for said in parse_sentence(after.text)] == [("consolidation", "present")] and not after.stale


def test_a_sentence_on_an_edited_segment_waits_for_the_new_figures(case: Case) -> None:
    edited = mark_edited(set_thresholds(case, "lung_nodule", 0.92, 0.95), ["lung_nodule"])
    assert sentence_at(reworded(edited), NODULE_SENTENCE).stale


def test_an_overruled_case_reads_back_from_json_and_an_older_one_still_reads(case: Case) -> None:
    changed = add_finding(set_thresholds(case, "lung_nodule", 0.1, 0.95), "lung_nodule", point_ras_mm=POINT)
    assert Case.from_dict(changed.as_dict()) == changed
    older = case.as_dict()
    for finding in older["findings"]:
        finding.pop("overruling")
    assert Case.from_dict(older) == case


def test_the_states_of_two_thresholds_meet_without_a_gap() -> None:
    assert [state_by(p, 0.3, 0.7) for p in (0.0, 0.2999, 0.3, 0.6999, 0.7, 1.0)] == [
        "absent",
        "absent",
        "uncertain",
        "uncertain",
        "present",
        "present",
    ]
