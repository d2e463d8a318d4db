"""Answers: what counts as right by type of question, and baselines that learn from the other cases only."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.evaluation.answers import Answered, baseline, measures, score


@pytest.mark.parametrize(
    ("kind", "answer", "truth", "points"),
    [
        ("presence", "Yes. A nodule in the left lung.", "yes", 1.0),
        ("presence", "No. There is no pleural effusion.", "yes", 0.0),
        ("presence", "Uncertain. Possible nodule.", "yes", 0.0),
        ("presence", "This question cannot be answered from this scan: outside the view.", "not assessed on this scan", 1.0),
        ("side", "Both sides.", "both sides", 1.0),
        ("side", "Uncertain finding; if real: left.", "right", 0.0),
        ("side", "This question cannot be answered from this scan.", "left", 0.0),
        ("site", "Left upper lobe.", "left upper lobe", 1.0),
        ("site", "Left lower lobe.", "left upper lobe", 0.0),
        ("site", "T12.", "t12", 1.0),
        ("size", "11 mm.", "10 mm", 1.0),
        ("size", "2.6 cm.", "20 mm", 0.0),
        ("size", "This question cannot be answered from this scan.", "20 mm", 0.0),
        ("count", "3.", "three", 1.0),
        ("count", "Two.", "three", 0.0),
        ("severity", "Moderate.", "moderate", 1.0),
        ("normal", "None of the findings looked for is called present. 3 of 21 findings were not assessed.", "yes", 1.0),
        ("normal", "No. Emphysema.", "no", 1.0),
        ("findings", "Emphysema, pleural effusion. Uncertain: cardiomegaly.", "pleural effusion, emphysema", 1.0),
        ("findings", "Emphysema.", "emphysema, pleural effusion", 2 / 3),
        ("findings", "None of the assessed findings is present.", "no abnormal findings", 1.0),
        ("findings", "", "emphysema", 0.0),
    ],
)
def test_an_answer_is_right_by_what_decides_it(kind: str, answer: str, truth: str, points: float) -> None:
    assert score(kind, answer, truth) == pytest.approx(points)


def asked(case: int, finding: str, truth: str, answer: str = "", group: object = None) -> Answered:
    return Answered(case=case, group=case if group is None else group, kind="presence", finding=finding, truth=truth, answer=answer)


def test_a_baseline_learns_from_the_other_half_of_the_cases_only() -> None:
    rows = [asked(0, "a", "yes"), asked(1, "a", "no"), asked(2, "a", "yes"), asked(3, "b", "no"), asked(4, "b", "x", group=0)]
    assert baseline(rows, [lambda one: one.kind]) == ["no", "yes", "no", "yes", "no"]
    by_finding = [lambda one: one.finding, lambda one: one.kind]
    assert baseline(rows, by_finding) == ["no", "yes", "no", "x", "no"]
    assert baseline(rows[:1], by_finding) == [""]


def test_as_many_yes_as_no_do_not_make_the_baseline_always_wrong() -> None:
    rows = [asked(n, "a", truth) for n, truth in enumerate(["yes", "yes", "yes", "no", "no", "no"])]
    right = [said == one.truth for said, one in zip(baseline(rows, [lambda one: one.kind]), rows, strict=True)]
    assert any(right)


def test_accuracy_and_balanced_accuracy_are_those_of_a_recount() -> None:
    rows = [asked(0, "a", "yes", "Yes."), asked(0, "b", "no", "Yes."), asked(1, "a", "no", "No."), asked(1, "b", "no", "No.")]
    found = measures(rows, 2)
    assert found["answers/model/presence"](np.ones((1, 2)))[0] == pytest.approx(3 / 4)
    assert found["answers/model/presence, balanced"](np.ones((1, 2)))[0] == pytest.approx((1 + 2 / 3) / 2)
    # Case 1 twice, case 0 not at all: all of its answers are right, and no "yes" is left to balance.
    assert found["answers/model/presence"](np.array([[0.0, 2.0]]))[0] == 1.0
    assert np.isnan(found["answers/model/presence, balanced"](np.array([[0.0, 2.0]]))[0])
