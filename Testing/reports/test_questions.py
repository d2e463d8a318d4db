"""Questions: answers come from the record, yes and no balance over a cohort, typed questions are understood."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from VelvetMedLib.reports import FindingRecord, make_questions, ontology, parse_question, suggested_questions


def test_every_generated_question_is_understood_again(random_records) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        for q in make_questions(random_records(rng), rng):
            finding, _, kind = parse_question(q.question)
            assert (finding, kind) == (q.finding, q.kind), q.question


def test_answers_are_lower_case_and_carry_the_records_numbers() -> None:
    record = FindingRecord(name="renal_cyst", state="present", side="left", size_mm=23.4, count=2)
    answers = {q.kind: (q.answer, q.slotted_answer) for q in make_questions([record], np.random.default_rng(1))}
    assert answers["size"] == ("23 mm", "[SIZE]")
    assert answers["count"] == ("two", "[COUNT]")
    assert answers["side"][0] == "left" and answers["presence"][0] == "yes"
    assert answers["findings"][0] == "renal cyst"


def test_yes_and_no_balance_for_every_finding_over_a_cohort() -> None:
    rng = np.random.default_rng(2)
    tally: dict[str, Counter[str]] = {f.name: Counter() for f in ontology().findings}
    for _ in range(1500):
        records = [FindingRecord(name=f.name, state="present" if rng.random() < 0.22 else "absent") for f in ontology().findings]
        for q in make_questions(records, rng):
            if q.kind == "presence" and q.finding:
                tally[q.finding][q.answer] += 1
    shares = [c["yes"] / (c["yes"] + c["no"]) for c in tally.values()]
    assert min(shares) > 0.42 and max(shares) < 0.58


def test_a_finding_outside_the_field_of_view_is_never_answered_with_no() -> None:
    rng = np.random.default_rng(3)
    record = FindingRecord(name="splenomegaly", state="not_assessed")
    answers = {q.answer for _ in range(200) for q in make_questions([record], rng) if q.kind == "presence"}
    assert answers == {"not assessed on this scan"}


def test_a_normal_scan_is_called_normal() -> None:
    records = [FindingRecord(name=f.name, state="absent") for f in ontology().findings]
    answers = {q.kind: q.answer for q in make_questions(records, np.random.default_rng(4)) if q.finding is None}
    assert answers == {"findings": "no abnormal findings", "normal": "yes"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a pneumothorax?", ("pneumothorax", None, "presence")),
        ("how big is the renal cyst", ("renal_cyst", None, "size")),
        ("How many nodules are there?", ("lung_nodule", None, "count")),
        ("Where is the consolidation?", ("consolidation", None, "site")),
        ("Is the effusion on the left or right?", ("pleural_effusion", None, "side")),
        ("Is the spleen enlarged?", ("splenomegaly", "spleen", "presence")),
        ("How large is the liver?", (None, "liver", "size")),
        ("What is the volume of the left kidney?", (None, "kidney_left", "volume")),
        ("What are the findings?", (None, None, "findings")),
        ("Is this scan normal?", (None, None, "normal")),
        ("Is the heart normal?", ("cardiomegaly", "heart", "presence")),
        ("What is the capital of France?", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_a_typed_question_is_understood(text: str, expected: tuple[str | None, str | None, str | None]) -> None:
    assert parse_question(text) == expected


def test_suggested_questions_ask_for_what_was_found(random_records) -> None:
    record = FindingRecord(name="lung_nodule", state="present", side="right", site="lung_upper_lobe_right", size_mm=9.0)
    suggestions = suggested_questions([record])
    assert "How large is the lung nodule?" in suggestions and len(suggestions) <= 6
    assert all(parse_question(q)[2] for q in suggestions)
