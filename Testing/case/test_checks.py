"""What is flagged in a sentence: every rule by an example that breaks it, and sentences that break none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from VelvetMedLib.case import Case, CaseFinding, Report, Section, Segment, Sentence, checked, report_markdown
from VelvetMedLib.case.checks import flags_of
from VelvetMedLib.case.editing import add_sentence, restore, rewrite
from VelvetMedLib.case.overruling import set_thresholds
from VelvetMedLib.reports import ontology


def finding(name: str, state: Any, **facts: Any) -> CaseFinding:
    unit = ontology().finding(name).measure.unit
    return CaseFinding(
        name=name, display=ontology().finding(name).display, state=state, **({"unit": unit} if "value" in facts else {}), **facts
    )


FINDINGS = (
    finding("pleural_effusion", "uncertain", probability=0.1, value=40.0, volume_ml=40.0, side="right"),
    finding("cardiomegaly", "present", probability=0.9, value=0.6, severity="moderate"),
    finding("lung_nodule", "present", side="left", site="lung_lower_lobe_left", size_mm=8.2, count=1, value=8.2),
    finding("liver_lesion", "present", size_mm=30.4, count=3, value=30.4),
    finding("consolidation", "present", side="both", site="lung_lower_lobe_left", value=70.0, volume_ml=70.0, severity="moderate"),
    finding("lung_mass", "absent"),
    finding("hydronephrosis", "uncertain"),
    finding("pneumothorax", "not_assessed", reason="not assessed by this model"),
    finding("splenomegaly", "absent", value=98.0),
)
LIVER = Segment(
    label=4, name="liver", display="liver", code=ontology().structure("liver").code, color=(1, 2, 3), kind="organ",
    volume_ml=1431.0, mean_hu=58.2, center_ras_mm=(0, 0, 0), box_ras_mm=((0, 0, 0), (1, 1, 1)),
)  # fmt: skip


def rules(text: str, title: str = "") -> list[tuple[str, str]]:
    return [(flag.kind, flag.rule) for flag in flags_of(text, title, FINDINGS, (LIVER,))]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("No pleural effusion.", "measurement"),
        ("The heart is normal in size.", "measurement"),
        ("Splenomegaly.", "measurement"),
        ("There is a mass in the right upper lobe.", "state"),
        ("Nodule of 8 mm in the right lower lobe.", "side"),
        ("Nodule of 8 mm in the left upper lobe.", "site"),
        ("Nodule of 1.2 cm in the left lower lobe.", "size"),
        ("Liver lesions up to 5 cm.", "size"),
        ("Two lung nodules.", "count"),
        ("Severe cardiomegaly.", "grade"),
        ("Cardiomegaly with a cardiothoracic ratio of 0.71.", "value"),
    ],
)
def test_what_contradicts_the_record_is_flagged_by_its_rule(text: str, rule: str) -> None:
    assert rules(text) == [("contradiction", rule)]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("No hydronephrosis.", "certainty"),
        ("There is hydronephrosis.", "certainty"),
        ("No pneumothorax.", "assessed"),
        ("Nodule of 8 mm in the left lower lobe, previously 6 mm.", "number"),
        ("The liver has a volume of 1900 ml.", "number"),
        ("A clip of 13 mm.", "number"),
        ("Liver lesion of 12 mm.", "size"),
        ("Consolidation in the right upper lobe.", "site"),
    ],
)
def test_what_nothing_on_record_bears_out_is_unsupported(text: str, rule: str) -> None:
    assert rules(text) == [("unsupported", rule)]


@pytest.mark.parametrize(
    "text",
    [
        "Solitary 8 mm nodule in the left lower lobe.",
        "No effusion on the left.",
        "Moderate cardiomegaly, cardiothoracic ratio 0.60.",
        "Three liver lesions, the largest measuring 3.0 cm.",
        "Moderate consolidation in the left lower lobe.",
        "Pneumothorax is not assessed.",
        "Hydronephrosis cannot be excluded.",
        "The spleen is 98 mm long.",
        "The liver has a volume of 1431 ml.",
        "No thyroid abnormality.",
    ],
)
def test_what_the_record_bears_out_is_not_flagged(text: str) -> None:
    assert rules(text) == []


def test_sentences_on_technique_are_not_checked() -> None:
    assert rules("No pleural effusion; 5 mm sections.", "Comparison") == []


def test_an_effusion_that_is_segmented_but_has_no_value_is_measured_by_its_segment() -> None:
    fluid = replace(LIVER, label=106, name="pleural_effusion", display="pleural effusion", kind="lesion", volume_ml=40.0)
    flags = flags_of("No effusion.", "", (finding("pleural_effusion", "absent"),), (fluid,))
    assert [flag.rule for flag in flags] == ["measurement"] and "40 ml" in flags[0].reason


@pytest.fixture
def drafted(small_case: Case) -> Case:
    sentences = (Sentence(text="No lung mass.", state="absent", finding="lung_mass", support=0.9), Sentence(text="Splenomegaly."))
    report = Report(style="structured", sections=(Section(title="Findings", sentences=sentences),))
    findings = (*FINDINGS[:5], replace(FINDINGS[5], probability=0.3), *FINDINGS[6:])
    return checked(replace(small_case, findings=findings, report=report))


def flags(case: Case) -> list[list[str]]:
    assert case.report is not None
    return [[flag.rule for flag in sentence.flags] for section in case.report.sections for sentence in section.sentences]


def test_a_persons_words_are_checked_as_the_models_are_and_a_flag_goes_with_its_cause(drafted: Case) -> None:
    assert flags(drafted) == [[], ["measurement"]]
    wrong = rewrite(drafted, (0, 0), "A mass in the left upper lobe.")
    assert flags(wrong) == [["state"], ["measurement"]]
    assert flags(restore(wrong, (0, 0))) == [[], ["measurement"]]
    assert flags(add_sentence(drafted, "No effusion."))[-1] == ["measurement"]
    assert flags(set_thresholds(drafted, "lung_mass", 0.1, 0.2)) == [["state"], ["measurement"]]


def test_flags_are_stored_and_read_and_an_older_case_reads_as_unchecked(drafted: Case) -> None:
    data = json.loads(json.dumps(drafted.as_dict()))
    assert Case.from_dict(data) == drafted
    for section in data["report"]["sections"]:
        for sentence in section["sentences"]:
            del sentence["flags"]
    older = Case.from_dict(data | {"schema_version": 1})
    assert flags(older) == [[], []] and older.schema_version == drafted.schema_version
    assert checked(older) == drafted


def test_the_markdown_gives_the_reason_of_every_flag(drafted: Case) -> None:
    line = next(line for line in report_markdown(drafted).split("\n") if "Splenomegaly" in line)
    assert "Contradicted: The craniocaudal length was measured as 98 mm." in line
