"""What a page says about a case, before any HTML."""

from __future__ import annotations

from dataclasses import replace

import pytest

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY
from VelvetMedLib.case import About
from VelvetMedLib.exports.view import case_summary, case_view, fraction, moment, number, words


def test_findings_stand_in_the_order_a_reader_needs_and_none_is_left_out(phantom):
    rows = case_view(phantom.case)["findings"]
    assert [row["state"] for row in rows] == ["present", "uncertain", "not_assessed", "absent"]


def test_states_are_counted_and_named_even_where_there_is_none(phantom):
    states = {state["name"]: (state["count"], state["word"]) for state in case_view(phantom.case)["states"]}
    assert states == {
        "present": (1, "present"),
        "uncertain": (1, "uncertain"),
        "not_assessed": (1, "not assessed"),
        "absent": (1, "absent"),
    }


def test_a_finding_that_was_not_assessed_says_why(phantom):
    row = next(row for row in case_view(phantom.case)["findings"] if row["state"] == "not_assessed")
    assert row["reason"] == "the spleen is outside the field of view"
    assert row["probability"] is None


def test_sizes_carry_their_unit_and_are_not_repeated_as_a_measurement(phantom):
    row = next(row for row in case_view(phantom.case)["findings"] if row["display"] == "Lung nodule")
    assert (row["size"], row["details"]) == ("28.4 mm", "2 lesions, 12 ml")


def test_a_ratio_is_named_by_what_was_measured(phantom):
    row = next(row for row in case_view(phantom.case)["findings"] if row["display"] == "Emphysema")
    assert row["details"] == "lung fraction 0.03"


def test_a_sentence_without_link_and_support_is_marked_as_having_no_image_evidence(phantom):
    sections = case_view(phantom.case)["sections"]
    assert sections[0]["sentences"][0]["no_evidence"] is True
    assert all(not sentence["no_evidence"] for section in sections[1:] for sentence in section["sentences"])


def test_every_link_goes_to_the_millimetres_of_the_case(phantom):
    view = case_view(phantom.case)
    sentence = view["sections"][1]["sentences"][0]
    assert view["links"][sentence["link"]]["center_ras_mm"] == list(phantom.case.findings[3].link.center_ras_mm)


def test_an_answer_says_what_it_is_about_and_why_there_is_none(phantom):
    plain = phantom.case.answers[0]
    organ = phantom.case.segments[0]
    box = About.between((0, 0, 0), (10, 20, 30))
    told = (
        replace(plain, about=About(segment=organ.name)),
        replace(plain, about=box, unanswered="out_of_view", confidence=0.0),
    )
    rows = case_view(replace(phantom.case, answers=(plain, *told)))["answers"]
    assert [row["about"] for row in rows] == [None, organ.display, str(box)]
    assert [row["unanswered"] for row in rows] == [None, None, "outside of the field of view"]
    assert rows[0]["confidence"] is not None and rows[2]["confidence"] is None


def test_lesions_are_listed_before_organs(phantom):
    assert [group["kind"] for group in case_view(phantom.case)["segments"]] == ["lesion", "organ"]


def test_the_two_sentences_about_research_use_are_always_there(phantom):
    assert case_view(phantom.case)["disclaimers"] == [RESEARCH_USE_ONLY, DRAFT_DISCLAIMER]


def test_the_attribution_of_the_scan_is_shown_once_and_not_among_the_run_facts(phantom):
    view = case_view(phantom.case)
    assert view["attribution"] == "Phantom made by the tests."
    assert all(name != "attribution" for group in view["facts"] for name, _ in group["rows"])


def test_nested_run_records_are_shown_leaf_by_leaf(phantom):
    run = next(group for group in case_view(phantom.case)["facts"] if group["title"] == "Run")
    assert run["rows"] == [("device", "cpu"), ("versions, python", "3.11")]


def test_a_summary_names_what_is_present_and_what_is_uncertain(phantom):
    summary = case_summary(phantom.case)
    assert (summary["present"], summary["uncertain"], summary["warnings"]) == (["lung nodule"], ["emphysema"], 1)


@pytest.mark.parametrize(
    ("value", "digits", "unit", "text"),
    [
        (1023.4, 0, "ml", "1,023 ml"),
        (-12.4, 0, "HU", "\u221212 HU"),
        (None, 0, "", "\u2013"),
        (float("nan"), 1, "mm", "\u2013"),
        (0.5, 2, "", "0.50"),
    ],
)
def test_numbers_are_written_as_people_read_them(value, digits, unit, text):
    assert number(value, digits, unit) == text


def test_shares_are_kept_between_nothing_and_everything():
    assert fraction(1.2) == {"text": "1.00", "percent": 100, "value": 1.0}
    assert fraction(None) is None


def test_times_lose_their_fractions_and_strange_ones_are_left_alone():
    assert moment("2026-11-21T22:40:12.345678+00:00") == "2026-11-21 22:40 UTC"
    assert moment("last week") == "last week"
    assert moment("") == ""


def test_places_are_named_as_the_ontology_names_them():
    assert words("lung_lower_lobe_left") == "left lower lobe"
    assert words("T12") == "T12"
    assert words(None) == ""


def test_what_a_person_rejected_is_left_out_and_words_of_theirs_and_stale_figures_are_marked(phantom):
    from VelvetMedLib.case.editing import judge, mark_edited, rewrite, sentences

    places = [place for place, _, _ in sentences(phantom.case)]
    case = judge(phantom.case, places[0], "rejected")
    case = rewrite(case, places[1], "My own words.")
    case = mark_edited(case, [segment.name for segment in case.segments])
    page = case_view(case)
    rows = [row for section in page["sections"] for row in section["sentences"]]
    assert len(rows) == len(places) - 1 and phantom.case.report.sections[0].sentences[0].text not in [row["text"] for row in rows]
    assert [row["text"] for row in rows if row["by_person"]] == ["My own words."]
    assert all(row["stale"] for group in page["segments"] for row in group["rows"])
