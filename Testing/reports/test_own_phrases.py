"""A user's own phrases: what may be taken of a report, what never is, and that a phrase says what a record holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import FindingRecord, ontology, parse_sentence, render, write_report, write_sentence
from VelvetMedLib.reports.own_phrases import Phrases, harvest, phrase_of, read_phrases, write_phrases
from VelvetMedLib.reports.phrases import fill_slots

REPORT = """Report for Jane Q. Miller, born 03.04.1957, MRN 7713924
TECHNIQUE: CT of the chest, 11 Jan 2024, Siemens Somatom.
FINDINGS:
There is a 6 mm nodule in the right upper lobe.
Small left pleural effusion.
No pneumothorax. Spleen is enlarged, measuring 14.5 cm.
IMPRESSION: Nodule. Please phone Dr. Okafor on 555-0199.
"""


@pytest.mark.parametrize(
    ("sentence", "template"),
    [
        ("There is a 6 mm nodule in the right upper lobe.", "There is a [SIZE] nodule in the {site}."),
        ("12 mm nodule in the LLL.", "[SIZE] nodule in the {site}."),
        ("Small left pleural effusion.", "Small {side} pleural effusion."),
        ("Moderate bilateral pleural effusions.", "Moderate bilateral pleural effusions."),
        ("Bilateral pleural effusion.", "Bilateral pleural effusion."),
        ("THERE IS NO PNEUMOTHORAX.", "There is no pneumothorax."),
        ("Spleen is enlarged, measuring 14.5 cm.", "Spleen is enlarged, measuring [VALUE]."),
        ("The heart is enlarged with a cardiothoracic ratio of 0.58.", "The heart is enlarged with a cardiothoracic ratio of [VALUE]."),
        (
            "There are three nodules in the right lung, the largest measuring 9 mm.",
            "There are [COUNT] nodules in the {side} lung, the largest measuring [SIZE].",
        ),
        ("Moderate compression fracture of T12.", "Moderate compression fracture of {site}."),
    ],
)
def test_numbers_sides_and_places_become_slots(sentence: str, template: str):
    phrase = phrase_of(sentence)
    assert phrase is not None and phrase.text == template


@pytest.mark.parametrize(
    "sentence",
    [
        "Mrs. Miller has a 6 mm nodule in the right upper lobe.",  # a name
        "mrs miller has a nodule in the right upper lobe.",  # a name in small letters
        "Brown nodule in the right upper lobe.",  # a word that could be a name
        "There is a 6 mm nodule in the right upper lobe, seen on 11.01.2024.",  # a date
        "Nodule 7713924 in the right upper lobe.",  # an identifier
        "Nodule in the right upper lobe as seen at Springfield General.",  # a place
        "There is a new 6 mm nodule in the right upper lobe.",  # an earlier scan
        "The 6 mm nodule in the right upper lobe is unchanged.",
        "Liver metastasis measuring 12 mm.",  # more than was found
        "Consolidation in the left lower lobe, likely pneumonia.",
        "There is probably a nodule in the right upper lobe.",  # a doubt that the parser does not hold against presence
        "Multiple nodules in both lungs.",  # a count that was not counted
        "No pleural effusion or pneumothorax.",  # two findings
        "No large pleural effusion.",  # room for a small one
        "No left pleural effusion.",  # room for one on the right
        "There is a nodule in the right upper lobe and the pancreas is normal.",  # an organ that nobody looked at
        "6 mm nodule in the right upper lobe and 4 mm in the left lower lobe.",  # two sizes
    ],
)
def test_a_sentence_that_could_hold_a_patient_or_says_more_than_the_finding_is_left_out(sentence: str):
    phrase = phrase_of(sentence)
    assert phrase is None or (phrase.state == "uncertain" and "probably" in sentence)


def test_nothing_of_a_patient_reaches_the_file(tmp_path: Path):
    write_phrases(tmp_path / "own.json", harvest([REPORT] * 3))
    text = (tmp_path / "own.json").read_text(encoding="utf-8")
    assert not [word for word in ("Miller", "Jane", "1957", "7713924", "Okafor", "555", "2024", "Siemens") if word.lower() in text.lower()]
    found = read_phrases(tmp_path / "own.json")
    assert {p.finding for p in found.phrases} == {"lung_nodule", "pleural_effusion", "pneumothorax", "splenomegaly"}
    assert {p.reports for p in found.phrases} == {3} and found.reports == 3


def test_names_scattered_over_real_sentences_never_get_through():
    """Every word of a generated sentence is replaced by a name in turn: unless it was a slot, nothing is taken."""
    rng = np.random.default_rng(0)
    record = FindingRecord(name="lung_nodule", state="present", side="right", site="lung_upper_lobe_right", size_mm=14.2, count=1)
    taken = []
    for _ in range(60):
        words = write_sentence(record, rng, "narrative").text.split()
        for n in range(len(words)):
            for name in ("Ngozi", "smith"):
                taken.append(phrase_of(" ".join([*words[:n], name, *words[n + 1 :]])))
    assert len(taken) > 500 and not any(p is not None for p in taken)


def generated(seed: int, count: int = 40) -> tuple[list[list[FindingRecord]], list[str]]:
    """Records of made-up patients, and reports on them in all styles."""
    rng = np.random.default_rng(seed)
    cases, texts = [], []
    for n in range(count):
        records = []
        for finding in ontology().findings:
            site = str(rng.choice(finding.sites)) if finding.sites and rng.random() < 0.7 else None
            side: Any = str(rng.choice(["left", "right"])) if finding.sided else None
            if site is not None and site.endswith(("_left", "_right")):
                side = site.rpartition("_")[2]
            size = float(rng.integers(4, 60)) if finding.sized else None
            state: Any = str(rng.choice(["present", "absent", "uncertain"]))
            record = FindingRecord(name=finding.name, state=state)
            records.append(replace(record, side=side, site=site, size_mm=size) if state != "absent" else record)
        cases.append(records)
        style = ["structured", "narrative", "terse", "itemised"][n % 4]
        texts.append(render(write_report(records, style=style, rng=rng), style))
    return cases, texts


def test_phrases_of_some_reports_say_the_records_of_others_and_nothing_else():
    phrases = harvest(generated(1)[1])
    assert len(phrases.phrases) > 100
    told = 0
    for records in generated(2)[0]:
        for record in records:
            phrase = phrases.best(record)
            if phrase is None:
                continue
            told += 1
            text = fill_slots(phrase.worded(record), record)
            said = parse_sentence(text, phrase_section(record))
            assert [m.name for m in said] == [record.name] and said[0].state == record.state, text
            assert said[0].side in (None, record.side) and said[0].site in (None, record.site), text
            assert said[0].size_mm is None or abs(said[0].size_mm - record.size_mm) <= 0.6, text
            assert record.side is None or said[0].side == record.side, text
    assert told > 0.8 * 40 * len(ontology().findings)


def phrase_section(record: FindingRecord) -> str:
    return ontology().finding(record.name).section


def test_the_phrase_that_tells_most_is_taken_then_the_one_that_most_reports_have():
    nodule = FindingRecord(name="lung_nodule", state="present", side="right", site="lung_upper_lobe_right", size_mm=14.2)
    plain, sized, other = "Nodule in the right upper lobe.", "6 mm nodule in the left lower lobe.", "Left lower lobe nodule of 6 mm."
    assert best(harvest([plain, plain, plain, sized]), nodule) == "[SIZE] nodule in the right upper lobe."
    assert best(harvest([sized, other, other]), nodule) == "Right upper lobe nodule of [SIZE]."
    # Words that pass over the side are worse than the built-in ones.
    assert harvest(["There is a nodule."]).best(nodule) is None


def best(phrases: Phrases, record: FindingRecord) -> str:
    phrase = phrases.best(record)
    assert phrase is not None
    return phrase.worded(record)


@pytest.mark.parametrize("text", ["[SIZE] nodule of Mr. Miller.", "Nodule 12 in the {site}."])
def test_a_file_with_words_that_nobody_vouches_for_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "own.json"
    write_phrases(path, harvest([REPORT]))
    data = json.loads(path.read_text(encoding="utf-8"))
    data["phrases"][0]["text"] = text
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UsageError, match="velvetmed phrases"):
        read_phrases(path)
