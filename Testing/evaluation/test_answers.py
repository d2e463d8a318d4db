"""Answers: what counts as right, what is withheld, whether they agree with the report, and baselines that learn from other cases only."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.evaluation.answers import Answered, agrees, baseline, consistency, lean, measures, score
from VelvetMedLib.reports import FindingRecord


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
        ("normal", "None of the findings that were assessed is present. 3 of 21 findings were not assessed.", "yes", 1.0),
        ("normal", "No. Emphysema.", "no", 1.0),
        ("volume", "The segment of the liver measures 1432 ml. It is partly outside the field of view.", "1300 ml", 1.0),
        ("volume", "The segment of the liver measures 1432 ml.", "1200 ml", 0.0),
        ("density", "The mean density of the liver is -8 HU.", "1 HU", 1.0),
        ("density", "The mean density of the liver is 8 HU.", "-8 HU", 0.0),
        ("compare", "No: the right kidney (152 ml) is smaller than the left kidney (171 ml), 11 % apart.", "left kidney", 1.0),
        ("compare", "The liver (at least 1432 ml) is larger than the spleen (210 ml), at least 85 % apart.", "spleen", 0.0),
        ("compare", "The heart (300 ml) and the spleen (290 ml) are about the same, 3 % apart.", "heart", 0.0),
        ("place", "No, not in the left lower lobe: lung nodule is seen elsewhere.", "no", 1.0),
        ("place", "Yes. Nodule.", "no", 0.0),
        ("findings", "Emphysema, pleural effusion. Uncertain: cardiomegaly, splenomegaly.", "pleural effusion, emphysema", 1.0),
        ("findings", "Emphysema.", "emphysema, pleural effusion", 2 / 3),
        ("findings", "None of the findings that were assessed is present.", "no abnormal findings", 1.0),
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


def closed(case: int, truth: str, answer: str, **more: object) -> Answered:
    return Answered(case=case, group=case, kind="presence", finding="emphysema", truth=truth, answer=answer, **more)  # type: ignore[arg-type]


ROWS = [
    closed(0, "yes", "Yes. Emphysema.", forced="yes"),
    closed(1, "yes", "Uncertain (probability 0.40). Possible emphysema.", forced="yes"),
    closed(2, "yes", "This question cannot be answered from this scan: x.", unanswered="not_assessed", forced="no"),
    closed(3, "no", "Uncertain (probability 0.40). Possible emphysema.", forced="yes"),
    closed(4, "no", "No. No emphysema.", forced="no"),
    closed(5, "not assessed on this scan", "This question cannot be answered from this scan: x.", unanswered="out_of_view", forced="no"),
]


def test_what_is_withheld_lowers_coverage_and_not_the_share_right_of_what_is_said() -> None:
    found = {name: float(measure(np.ones((1, 6)))[0]) for name, measure in measures(ROWS, 6).items() if "/model/" in name}
    at = "answers/model/yes or no, "
    assert [found[f"{at}{p}, answered"] for p in ("firm", "leaning", "forced")] == pytest.approx([2 / 5, 4 / 5, 1])
    assert [found[f"{at}{p}, when answered"] for p in ("firm", "leaning", "forced")] == pytest.approx([1, 3 / 4, 3 / 5])
    assert [found[f"{at}{p}, balanced"] for p in ("firm", "leaning", "forced")] == pytest.approx(
        [(1 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 2) / 2]
    )
    assert found["answers/model/presence"] == pytest.approx(3 / 6) and found["answers/model/mean of types"] == pytest.approx(3 / 6)


def test_a_probability_leans_to_the_threshold_that_is_nearer_in_odds() -> None:
    # Odds 1:9 and 4:1; in the middle, by their logarithms, lie odds of 2:3.
    assert [lean(p, 0.1, 0.8) for p in (0.39, 0.41)] == ["no", "yes"]
    assert lean(0.5, 0.0, 0.0) == "yes" and lean(0.5, 1.0, 1.0) == "no"


def test_baselines_are_measured_on_the_questions_that_the_model_answers() -> None:
    found = measures(ROWS, 6)
    # Of cases 0 and 4, which the model answers: the other half of the cases says "no" (case 3, of 1, 3, 5 one each) or "yes".
    answered = found["answers/question only/yes or no, firm, when answered"]
    assert answered(np.array([[1.0, 0, 0, 0, 0, 0]]))[0] in (0.0, 1.0) and np.isnan(answered(np.array([[0, 1.0, 1.0, 1.0, 0, 1.0]]))[0])


def test_refusing_what_cannot_be_answered_is_right_and_of_numbers_the_baseline_says_the_median() -> None:
    assert score("beyond", "This question cannot be answered", "", unanswered="beyond") == 1.0
    assert score("beyond", "Yes.", "") == 0.0
    sizes = [
        Answered(case=n, group=n, kind="volume", finding="liver", truth=f"{ml} ml", answer="") for n, ml in enumerate([10, 20, 30, 40, 80])
    ]
    assert baseline(sizes, [lambda one: one.kind]) == ["30 ml", "30 ml", "30 ml", "30 ml", "30 ml"]


def test_an_answer_that_contradicts_findings_or_report_is_counted() -> None:
    record = FindingRecord(name="lung_nodule", state="present", side="left", size_mm=12.0, count=2)

    def one(kind: str, answer: str, unanswered: str | None = None) -> Answered:
        return Answered(case=0, group=0, kind=kind, finding="lung_nodule", truth="", answer=answer, unanswered=unanswered)

    assert agrees(one("presence", "Yes. Two nodules."), [record]) is True
    assert agrees(one("presence", "Uncertain. Possible nodule."), [record]) is False
    assert agrees(one("side", "Right."), [record]) is False and agrees(one("size", "12 mm."), [record]) is True
    assert agrees(one("count", "Three."), [record]) is False
    assert agrees(one("side", "This question cannot be answered", "not_assessed"), [record]) is None
    assert agrees(one("severity", "Mild."), [record]) is None  # the record has none
    assert agrees(one("findings", "Lung nodule. Uncertain: emphysema."), [record]) is True
    assert agrees(one("findings", "Emphysema."), [record]) is False
    unseen = [FindingRecord(name="lung_nodule", state="not_assessed")]
    nothing = one("findings", "This question cannot be answered from this scan: none could be assessed.", "not_assessed")
    assert agrees(nothing, unseen) is True and agrees(nothing, [record]) is False
    assert agrees(one("presence", "No. No nodule."), unseen) is False
    assert agrees(one("presence", "No. No nodule."), unseen, whole=False) is None
    rows = [one("presence", "Yes. Two nodules."), one("side", "Left.")]
    found = consistency(rows, [[record]], ["There is a 12 mm nodule in the right upper lobe."])
    assert found["consistency/answers with findings"](np.ones((1, 1)))[0] == 1.0
    assert found["consistency/answers with report"](np.ones((1, 1)))[0] == 0.5
    assert "consistency/answers with report" not in consistency(rows, [[record]], [None])
