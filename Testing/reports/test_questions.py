"""Questions: answers come from the record, and yes and no balance over a cohort."""

from __future__ import annotations

from collections import Counter

import numpy as np

from VelvetMedLib.reports import FindingRecord, make_questions, ontology, suggested_questions, understand


def test_every_generated_question_is_understood_again(random_records) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        for q in make_questions(random_records(rng), rng):
            asked = understand(q.question)
            assert (asked.finding, asked.kind, asked.beyond) == (q.finding, q.kind, None), q.question


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


def test_suggested_questions_ask_for_what_was_found(random_records) -> None:
    record = FindingRecord(name="lung_nodule", state="present", side="right", site="lung_upper_lobe_right", size_mm=9.0)
    suggestions = suggested_questions([record])
    assert "How large is the lung nodule?" in suggestions and len(suggestions) <= 6
    assert all(understand(q).understood for q in suggestions)
