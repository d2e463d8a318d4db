"""Sections and sentences: what must stay whole stays whole, and text is only ever data."""

from __future__ import annotations

import pytest

from VelvetMedLib.reports import parse_report, parse_sentence, split_sections, split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A nodule of 1.5 cm is seen. No effusion.", ["A nodule of 1.5 cm is seen.", "No effusion."]),
        ("1. Nodule in the RUL.\n2. No effusion.\n3) Cyst.", ["Nodule in the RUL.", "No effusion.", "Cyst."]),
        ("1. Nodule. 2. Cyst.", ["Nodule.", "Cyst."]),
        ("- nodule\n- no effusion", ["nodule", "no effusion"]),
        ("Reported by J. Doe. Approx. 3 stones.", ["Reported by J. Doe.", "Approx. 3 stones."]),
        ("A line that is\nbroken in two. Next.", ["A line that is broken in two.", "Next."]),
        ("Is it a nodule? Yes!", ["Is it a nodule?", "Yes!"]),
        ("Lesion, e.g. a cyst, in the liver.", ["Lesion, e.g. a cyst, in the liver."]),
        ("First part\n\nSecond part", ["First part", "Second part"]),
        ("Size 12.5 x 10.0 mm.", ["Size 12.5 x 10.0 mm."]),
        ("...", []),
        ("", []),
    ],
)
def test_sentences_are_split_where_a_reader_would(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_sections_are_told_by_their_headings() -> None:
    text = "TECHNIQUE: CT of the chest.\n\nFINDINGS:\nLungs: A nodule.\nSpleen\nNormal.\nIMPRESSION: Nodule."
    assert split_sections(text) == [
        ("TECHNIQUE", "CT of the chest."),
        ("FINDINGS", ""),
        ("Lungs", "A nodule."),
        ("Spleen", "Normal."),
        ("IMPRESSION", "Nodule."),
    ]


def test_a_colon_inside_a_sentence_is_no_heading() -> None:
    assert split_sections("There are two lesions: one in the liver.") == [("", "There are two lesions: one in the liver.")]


def test_findings_that_a_report_does_not_mention_are_not_assessed() -> None:
    states = {r.name: r.state for r in parse_report("FINDINGS: No pleural effusion.")}
    assert len(states) == 21
    assert states.pop("pleural_effusion") == "absent"
    assert set(states.values()) == {"not_assessed"}


def test_the_indication_is_not_taken_for_a_finding() -> None:
    report = "INDICATION: Suspected pneumothorax, known 12 mm nodule.\nFINDINGS: No pneumothorax."
    states = {r.name: r.state for r in parse_report(report)}
    assert states["pneumothorax"] == "absent" and states["lung_nodule"] == "not_assessed"


def test_the_strongest_mention_counts_and_attributes_are_joined() -> None:
    report = "FINDINGS: No nodule in the left lung. A 9 mm nodule in the right upper lobe.\nIMPRESSION: Single nodule."
    nodule = parse_report(report)[0]
    assert (nodule.state, nodule.size_mm, nodule.side, nodule.count) == ("present", 9.0, "right", 1)


def test_a_bare_mass_belongs_to_the_organ_of_its_section() -> None:
    assert [m.name for m in parse_sentence("A 3 cm mass.", "Liver")] == ["liver_lesion"]
    assert [m.name for m in parse_sentence("A 3 cm mass.", "Lungs")] == ["lung_mass"]


@pytest.mark.parametrize(
    "text",
    [
        "\x00\x07\u202enodule\u202c",
        "<script>alert(1)</script>",
        "a" * 20000,
        "(" * 500,
        "no " * 3000,
        "nodule, " * 500,
        "\ud83d\ude00 12 mm",
    ],
    ids=["controls", "html", "long word", "brackets", "negations", "list", "emoji"],
)
def test_strange_text_is_handled_as_plain_data(text: str) -> None:
    split_sections(text)
    split_sentences(text)
    parse_report(text[:4000])
