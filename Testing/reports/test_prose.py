"""Prose: every written sentence parses back to its record, in every style and wording; numbers equal the record's."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.reports import (
    ALL_STYLES,
    HELD_OUT_STYLE,
    STATES,
    STYLES,
    FindingRecord,
    ProseSentence,
    fill_slots,
    is_irrelevant,
    ontology,
    parse_report,
    parse_sentence,
    render,
    split_sections,
    split_sentences,
    write_report,
    write_sentence,
)
from VelvetMedLib.reports.phrases import phrase_book


def _difference(sentence: ProseSentence, record: FindingRecord) -> str | None:
    """What the parser makes of a sentence that differs from the record it was written from."""
    found = {m.name: m for m in parse_sentence(sentence.text)}
    if set(found) != {record.name}:
        return f"findings {sorted(found)}"
    got = found[record.name]
    if got.state != record.state:
        return f"state {got.state}"
    for name in ("side", "site", "count", "severity"):
        value, truth = getattr(got, name), getattr(record, name)
        if value != truth and (name in sentence.attributes or value is not None):
            return f"{name} {value} instead of {truth}"
    for name, tolerance in (("size_mm", 0.51), ("value", 0.51 if abs(record.value or 0) > 1 else 0.0051)):
        value, truth = getattr(got, name), getattr(record, name)
        if (name in sentence.attributes) and (value is None or abs(value - truth) > tolerance):
            return f"{name} {value} instead of {truth}"
    return None


@pytest.mark.parametrize("held_out", [False, True], ids=["training wording", "held-out wording"])
@pytest.mark.parametrize("style", ALL_STYLES)
def test_every_sentence_parses_back_to_its_record(make_record, style: str, held_out: bool) -> None:
    rng = np.random.default_rng([ALL_STYLES.index(style), held_out])
    wrong = []
    for _ in range(12):
        for finding in ontology().findings:
            for state in STATES:
                record = make_record(finding.name, state, rng)
                sentence = write_sentence(record, rng, style, held_out_wording=held_out)
                if (problem := _difference(sentence, record)) is not None:
                    wrong.append(f"{sentence.text!r}: {problem}")
    assert not wrong


@pytest.mark.parametrize("style", ALL_STYLES)
def test_every_report_says_exactly_the_states_of_its_records(random_records, style: str) -> None:
    rng = np.random.default_rng(ALL_STYLES.index(style))
    for n in range(16):
        records = {r.name: r for r in random_records(rng)}
        sections = write_report(records.values(), style=style, rng=rng, held_out_wording=bool(n % 2))
        said = set()
        for section in sections:
            for sentence in section.sentences:
                said |= set(sentence.findings)
                if not is_irrelevant(section.title):
                    states = {m.name: m.state for m in parse_sentence(sentence.text, section.title)}
                    assert states == {name: records[name].state for name in sentence.findings}, sentence.text
        for parsed in parse_report(render(sections, style)):
            assert parsed.state == (records[parsed.name].state if parsed.name in said else "not_assessed")


@pytest.mark.parametrize("style", ALL_STYLES)
def test_a_rendered_report_splits_into_the_sentences_it_was_made_of(random_records, style: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        sections = write_report(random_records(rng), style=style, rng=rng)
        split = [s for _, body in split_sections(render(sections, style)) for s in split_sentences(body)]
        assert split == [s.text for section in sections for s in section.sentences]


def test_present_and_uncertain_findings_are_always_said(random_records) -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        records = random_records(rng)
        said = {n for section in write_report(records, style="structured", rng=rng) for s in section.sentences for n in s.findings}
        expected = {r.name for r in records if r.state in ("present", "uncertain")}
        # A lone mass stands for the nodule it also is.
        assert expected - said <= {"lung_nodule"}


def test_negatives_are_named_about_seven_times_in_ten() -> None:
    rng = np.random.default_rng(7)
    records = [FindingRecord(name=f.name, state="absent") for f in ontology().findings]
    named = [
        len({n for section in write_report(records, style="itemised", rng=rng) for s in section.sentences for n in s.findings})
        for _ in range(80)
    ]
    assert 0.6 < np.mean(named) / len(records) < 0.85


def test_negatives_are_often_joined_in_one_sentence() -> None:
    rng = np.random.default_rng(8)
    records = [FindingRecord(name=f.name, state="absent") for f in ontology().findings]
    joined = [s for _ in range(10) for x in write_report(records, style="narrative", rng=rng) for s in x.sentences if len(s.findings) > 1]
    assert joined and all(s.finding == s.findings[0] and s.state == "absent" for s in joined)


def test_wordings_are_many_for_every_finding_and_state(make_record) -> None:
    rng = np.random.default_rng(9)
    least = {"present": 6, "absent": 5, "uncertain": 3, "not_assessed": 2}
    for finding in ontology().findings:
        for state in STATES:
            record = make_record(finding.name, state, rng)
            wordings = {write_sentence(record, rng, style).slotted for style in STYLES for _ in range(25)}
            assert len(wordings) >= 2 * least[state], (finding.name, state)


def test_held_out_wordings_and_nouns_are_disjoint_from_the_trained_ones() -> None:
    book = phrase_book()
    for state, frames in book["frames"].items():
        trained = {t for kind in ("full", "short") for t in frames[kind]} | {t for f in book["findings"].values() for t in f[state]}
        held_out = set(frames["held_out"]) | {t for f in book["findings"].values() for t in f.get(f"held_out_{state}", ())}
        assert held_out and not trained & held_out
    for name, spec in book["findings"].items():
        if name != "pneumothorax":
            assert not {n[0] for n in spec["nouns"]} & {n[0] for n in spec["held_out_nouns"]}, name


def test_one_style_is_held_out_from_training() -> None:
    assert len(STYLES) >= 4 and HELD_OUT_STYLE not in STYLES


def test_slots_stand_where_the_numbers_were(make_record) -> None:
    rng = np.random.default_rng(10)
    for _ in range(40):
        record = make_record("renal_cyst", "present", rng)
        sentence = write_sentence(record, rng, "structured")
        assert ("[SIZE]" in sentence.slotted) == ("size_mm" in sentence.attributes)
        assert "[" not in sentence.text
        filled = fill_slots(sentence.slotted, record)
        got = parse_sentence(filled)[0]
        assert got.count in (None, record.count) and (got.size_mm is None or abs(got.size_mm - record.size_mm) <= 0.5)


def test_filled_slots_agree_with_their_article_and_start_with_a_capital() -> None:
    record = FindingRecord(name="lung_nodule", state="present", size_mm=8.2, count=3)
    assert fill_slots("There is a [SIZE] nodule.", record) == "There is an 8 mm nodule."
    assert fill_slots("[COUNT] nodules up to [SIZE].", record) == "Three nodules up to 8 mm."
    assert fill_slots("A [SIZE] nodule.", FindingRecord(name="lung_nodule", state="present", size_mm=14.0)) == "A 14 mm nodule."


def test_a_slot_without_a_number_is_filled_with_words_never_with_an_invented_number() -> None:
    text = fill_slots("There is a [SIZE] nodule measuring [VALUE].", None)
    assert "[" not in text and not any(c.isdigit() for c in text)


def test_the_same_seed_writes_the_same_report(random_records) -> None:
    records = random_records(np.random.default_rng(11))
    first = write_report(records, style="narrative", rng=np.random.default_rng(1))
    assert first == write_report(records, style="narrative", rng=np.random.default_rng(1))
    assert first != write_report(records, style="narrative", rng=np.random.default_rng(2))


def test_technique_and_comparison_keep_to_their_own_sections_and_name_no_finding(random_records) -> None:
    rng = np.random.default_rng(12)
    plain = [
        (section.title, s)
        for _ in range(20)
        for section in write_report(random_records(rng), style="structured", rng=rng)
        for s in section.sentences
        if s.finding is None
    ]
    assert plain and {title for title, _ in plain} <= {"Technique", "Comparison", "Impression"}
    assert all(not parse_sentence(s.text) for _, s in plain)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown report style"):
        write_report([], style="sonnet", rng=np.random.default_rng(0))
