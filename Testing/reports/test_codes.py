"""Every coded concept of the ontology means what the authority says it means: pydicom's copy of the DICOM tables, else a named source."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
from pydicom.sr._concepts_dict import concepts

from VelvetMedLib.reports import ontology
from VelvetMedLib.reports.ontology import Code

SYNONYMS = {
    "123037004": ("Anatomical Structure", "Body structure"),
    "49755003": ("Morphologically Altered Structure", "Morphologically Abnormal Structure"),
    "69748006": ("Thyroid gland", "Thyroid"),
}
"""The same concept under the name that Slicer and dcmqi use for it: (ours, pydicom's)."""

ELSEWHERE = {
    # The mask's own terminology: TotalSegmentator's resources/totalsegmentator_snomed_mapping.csv.
    "110765007": "Portal vein and splenic vein",
    "244849004": "Deep muscle of back",
    "68455001": "Iliopsoas muscle",
    # Fully specified names as HL7 FHIR value sets and mappings print them (body structures and disorders DICOM has no table for).
    "113276009": "Intestine",
    "95436008": "Lung consolidation",
    "87433001": "Pulmonary emphysema",
    "445512009": "Calcification of coronary artery",
    "42942008": "Compression fracture of vertebral column",
    "309529002": "Lung mass",
    "197321007": "Steatosis of liver",
    "16294009": "Splenomegaly",
    # DICOM's tables name a renal stone and a large heart by 386103008 and 287272002, findings that problem lists do not use;
    # these are the disorders that chest and abdominal reports are coded with.
    "95570007": "Kidney stone",
    "8186001": "Cardiomegaly",
    # In no DICOM table; the disorders and findings under which public radiology vocabularies list them.
    "46621007": "Atelectasis",
    "84089009": "Hiatal hernia",
    "300331000": "Lesion of liver",
    "43064006": "Hydronephrosis",
}
"""Concepts that the DICOM tables lack, each with its meaning and, above it, where that was looked up."""


def _all_codes() -> list[Code]:
    table = ontology()
    entries = (*table.structures, *table.lesions)
    return [*(e.code for e in (*entries, *table.findings)), *(e.category for e in entries)]


@lru_cache
def _known() -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for scheme in ("SCT", "DCM"):
        for by_value in concepts[scheme].values():
            for value, (meaning, _) in by_value.items():
                found.setdefault((scheme, value), set()).add(meaning)
    return found


def _words(meaning: str) -> frozenset[str]:
    """The words that carry a meaning: without SNOMED's tag in brackets and its 'structure of'."""
    plain = re.sub(r"\(.*?\)", "", meaning.lower())
    return frozenset(re.findall(r"[a-z]+", plain)) - {"structure", "of", "the"}


@pytest.mark.parametrize("code", sorted(set(_all_codes()), key=lambda c: (c.scheme, c.value)), ids=lambda c: f"{c.scheme}-{c.value}")
def test_a_code_is_in_the_dicom_tables_with_our_meaning_or_is_a_named_exception(code: Code) -> None:
    meanings = _known().get((code.scheme, code.value))
    if code.value in ELSEWHERE:
        assert meanings is None, "the DICOM tables know this code: it needs no exception"
        assert code.scheme == "SCT" and code.meaning == ELSEWHERE[code.value]
        return
    assert meanings, f"{code} is neither in the DICOM tables nor a named exception"
    ours, theirs = SYNONYMS.get(code.value, (code.meaning, code.meaning))
    assert code.meaning == ours and _words(theirs) in {_words(m) for m in meanings}


def test_every_structure_lesion_and_finding_is_coded() -> None:
    assert all(code.value and code.scheme in ("SCT", "DCM") for code in _all_codes())


def test_no_exception_is_left_over() -> None:
    used = {code.value for code in _all_codes()}
    assert set(ELSEWHERE) | set(SYNONYMS) <= used


def test_a_code_with_another_meaning_would_be_noticed() -> None:
    assert not any(_words("Liver") == _words(meaning) for meaning in _known()["SCT", "78961009"])
