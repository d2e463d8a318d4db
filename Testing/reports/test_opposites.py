"""Statements with their opposites: only what a report states plainly, nothing that another of its sentences contradicts."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.reports import STYLES, FindingRecord, ontology, parse_sentence, write_report
from VelvetMedLib.reports.opposites import FORMS, Statement, label_phrase, nouns, opposites, plain, statements, worded
from VelvetMedLib.reports.practice import chosen_part, parts, short_prompt, shuffled


def stated(*sentences: str, title: str = "Findings") -> list[tuple[str, bool]]:
    return [(s.finding, s.present) for s in statements([(title, sentences)])]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("There is a pleural effusion on the left.", ("pleural_effusion", True)),
        ("Small right pneumothorax.", ("pneumothorax", True)),
        ("No pleural effusion.", ("pleural_effusion", False)),
        ("Heart size is normal.", ("cardiomegaly", False)),
        ("Pneumothorax: absent.", ("pneumothorax", False)),
    ],
)
def test_a_plain_sentence_on_one_finding_is_a_statement_in_either_direction(sentence: str, expected: tuple[str, bool]) -> None:
    assert stated(sentence) == [expected]


@pytest.mark.parametrize(
    "sentence",
    [
        "Pneumothorax cannot be excluded.",
        "Possible small pleural effusion.",
        "Findings suspicious for emphysema.",
        "Probable hiatal hernia.",
        "Pleural effusion?",
        "Emphysema is unchanged.",
        "New pleural effusion.",
        "The pleural effusion has increased since the prior study.",
        "Stable cardiomegaly.",
        "Previously described lung nodule.",
        "Pleural effusion and pneumothorax.",
        "No pleural effusion or pneumothorax.",
        "Neither lung nodule nor consolidation is seen.",
        "No large pleural effusion.",
        "No significant emphysema.",
        "No pleural effusion on the left.",
        "No lung nodule in the right upper lobe.",
        "No suspicious lung nodules.",
        "No new lung nodules.",
        "The pleura cannot be assessed for effusion.",
        "The gallbladder is normal.",
    ],
)
def test_doubt_comparison_two_findings_and_limited_denials_are_skipped(sentence: str) -> None:
    assert stated(sentence) == []


@pytest.mark.parametrize(
    "other",
    ["No pleural effusion.", "Pleural effusion cannot be excluded.", "No pleural effusion on the right.", "No effusion or pneumothorax."],
)
def test_a_finding_that_another_sentence_contradicts_or_doubts_is_left_out_wherever_that_stands(other: str) -> None:
    said = "There is a pleural effusion."
    assert stated(said) == [("pleural_effusion", True)]
    assert "pleural_effusion" not in dict(stated(said, other))
    assert "pleural_effusion" not in dict(stated(other, said))
    elsewhere = statements([("Findings", [said]), ("Impression", [other])])
    assert "pleural_effusion" not in {s.finding for s in elsewhere}


def test_what_is_said_of_history_and_technique_is_no_statement() -> None:
    assert stated("Known pleural effusion.", "There is a pneumothorax.", title="Clinical history") == []


def test_true_and_opposite_differ_in_the_denial_alone_and_read_back_as_what_they_say() -> None:
    for finding in ontology().findings:
        for form in FORMS:
            for seed in range(6):
                affirmed, denied = worded(finding.name, form, np.random.default_rng(seed))
                first, second = parse_sentence(affirmed), parse_sentence(denied)
                assert [(r.name, r.state) for r in first] == [(finding.name, "present")], affirmed
                assert [(r.name, r.state) for r in second] == [(finding.name, "absent")], denied
                kept = [w for w in denied.lower().rstrip(".").split() if w != "no"]
                assert kept == [w for w in affirmed.lower().rstrip(".").split() if w not in ("a", "an")], (affirmed, denied)


def test_every_finding_of_the_ontology_has_a_name_that_stands_alone() -> None:
    assert all(nouns(finding.name) for finding in ontology().findings)


def test_a_denied_finding_gives_the_denial_as_the_true_sentence() -> None:
    pair = opposites(Statement("pneumothorax", False), np.random.default_rng(0))
    assert parse_sentence(pair.true)[0].state == "absent" and parse_sentence(pair.opposite)[0].state == "present"
    assert parse_sentence(label_phrase(Statement("pneumothorax", True), np.random.default_rng(0)))[0].state == "present"


@pytest.mark.parametrize("style", STYLES)
def test_statements_of_written_reports_are_never_wrong(style: str) -> None:
    """Records -> prose in every style -> statements: each agrees with the record it was written from."""
    names, found = ontology().finding_names, 0
    for seed in range(12):
        draw = np.random.default_rng([seed, STYLES.index(style)])
        states = draw.choice(["present", "absent", "uncertain", "not_assessed"], len(names), p=[0.3, 0.4, 0.2, 0.1])
        records = [FindingRecord(name=name, state=str(state)) for name, state in zip(names, states, strict=True)]  # type: ignore[arg-type]
        report = write_report(records, style=style, rng=draw)
        truth = {record.name: record.state for record in records}
        listed = statements([(section.title, [s.text for s in section.sentences]) for section in report])
        found += len(listed)
        for statement in listed:
            assert truth[statement.finding] == ("present" if statement.present else "absent"), (style, seed, statement)
    assert found > 40


def test_plainness_is_of_present_and_absent_only() -> None:
    assert not plain("Pleural effusion.", "uncertain") and not plain("Pleural effusion.", "not_assessed")


REPORT = [
    ("Technique", ["Helical scan."]),
    ("Lungs", ["Emphysema.", "No pneumothorax."]),
    ("Heart", ["Heart size is normal."]),
    ("Impression", ["Emphysema."]),
]


def test_a_report_falls_into_findings_impression_and_both() -> None:
    found = parts(REPORT)
    assert found["findings"] == ["Emphysema.", "No pneumothorax.", "Heart size is normal."] and found["impression"] == ["Emphysema."]
    assert found["both"] == [*found["findings"], "Emphysema."]
    assert set(parts(REPORT[:2])) == {"findings", "both"} and parts(REPORT[:1]) == {}


def test_a_part_is_drawn_by_its_share_and_never_one_that_is_not_there() -> None:
    draw, found = np.random.default_rng(0), parts(REPORT)
    drawn = [chosen_part(found, (0.6, 0.2, 0.2), draw) for _ in range(3000)]
    assert abs(drawn.count("findings") / 3000 - 0.6) < 0.03 and abs(drawn.count("impression") / 3000 - 0.2) < 0.03
    alone = {chosen_part(parts(REPORT[:2]), (0.6, 0.2, 0.2), draw) for _ in range(200)}
    assert alone == {"findings", "both"}
    assert chosen_part(found, (0.0, 1.0, 0.0), None) == "findings", "without a draw"
    assert chosen_part(parts(REPORT[3:]), (1.0, 0.0, 0.0), draw) == "both", "what there is"


def test_shuffling_keeps_every_sentence_and_a_short_prompt_is_sentences_or_a_phrase_that_is_true() -> None:
    draw, sentences = np.random.default_rng(0), parts(REPORT)["findings"]
    orders = {tuple(shuffled(sentences, draw)) for _ in range(100)}
    assert len(orders) == 6 and all(sorted(order) == sorted(sentences) for order in orders)
    prompts = [short_prompt(REPORT, sentences, draw) for _ in range(200)]
    taken = [p for p in prompts if set(p) <= set(sentences)]
    phrases = [p for p in prompts if not set(p) <= set(sentences)]
    assert {len(p) for p in taken} == {1, 2, 3} and all(len(set(p)) == len(p) for p in taken)
    truth = {"emphysema": "present", "pneumothorax": "absent", "cardiomegaly": "absent"}
    assert 60 < len(phrases) < 140
    for (phrase,) in phrases:
        (record,) = parse_sentence(phrase)
        assert truth[record.name] == record.state
