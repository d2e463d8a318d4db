"""The schema: JSON round trip, the issue's keys, and nothing of the wrong shape can be made."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from VelvetMedLib.case import Case, CaseFinding, Link, case_to_json
from VelvetMedLib.reports import FindingRecord


def test_a_case_survives_json_unchanged(small_case: Case) -> None:
    assert Case.from_dict(json.loads(case_to_json(small_case))) == small_case


def test_the_json_has_the_keys_that_readers_rely_on(small_case: Case) -> None:
    data = small_case.as_dict()
    assert {"model", "timings", "warnings", "schema_version", "disclaimer"} <= set(data)
    assert {"label", "name", "code", "color", "volume_ml"} <= set(data["segments"][0])
    assert set(data["segments"][0]["code"]) == {"scheme", "value", "meaning"}
    assert {"name", "state", "probability", "side", "site", "size_mm", "link"} <= set(data["findings"][0])
    assert {"text", "state", "support", "link"} <= set(data["report"]["sections"][0]["sentences"][0])


def test_numpy_values_become_plain_numbers(small_case: Case) -> None:
    assert type(small_case.timings["encode"]) is float and type(small_case.run["threads"]) is int
    assert Link(kind="point", center_ras_mm=np.array([1, 2, 3])).center_ras_mm == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "maybe"},
        {"probability": 1.2},
        {"probability": float("nan")},
        {"size_mm": "large"},
        {"count": 1.5},
        {"side": "top"},
        {"name": None},
        {"link": {"kind": "point", "center_ras_mm": [1, 2]}},
        {"link": {"kind": "point", "center_ras_mm": [1, 2, 3], "colour": "red"}},
    ],
    ids=str,
)
def test_a_finding_of_the_wrong_shape_cannot_be_made(changes: dict) -> None:
    with pytest.raises((TypeError, ValueError)):
        CaseFinding(**{"name": "lung_nodule", "display": "lung nodule", "state": "present", **changes})


def test_labels_and_findings_occur_once(small_case: Case) -> None:
    with pytest.raises(ValueError, match="twice"):
        replace(small_case, segments=small_case.segments * 2)
    with pytest.raises(ValueError, match="twice"):
        replace(small_case, findings=small_case.findings * 2)


def test_the_disclaimer_cannot_be_dropped(small_case: Case) -> None:
    with pytest.raises(ValueError, match="disclaimer"):
        replace(small_case, disclaimer="All clear.")


@pytest.mark.parametrize("text", ["Read from /home/jane.doe/scan.nii.gz", "C:\\Users\\Doe\\ct", "see file://x", "path=/data/DOE/1.dcm"])
def test_a_file_path_cannot_get_into_warnings_or_run(small_case: Case, text: str) -> None:
    with pytest.raises(ValueError, match="path"):
        replace(small_case, warnings=(text,))
    with pytest.raises(ValueError, match="path"):
        replace(small_case, run={"parameters": {"input": text}})


def test_ordinary_warnings_are_not_taken_for_paths(small_case: Case) -> None:
    replace(small_case, warnings=("Spacing 0.7/0.7/2.5 mm.", "CT and/or MR.", "Slices 3/40 are missing."), run={"ratio": "1/2"})


def test_a_finding_gives_the_record_that_sentences_and_questions_are_written_from():
    finding = CaseFinding(
        name="lung_nodule",
        display="lung nodule",
        state="present",
        probability=0.9,
        side="left",
        site="lung_upper_lobe_left",
        size_mm=7.5,
        count=2,
        severity=None,
        value=7.5,
        unit="mm",
        volume_ml=0.4,
    )
    wanted = FindingRecord(
        name="lung_nodule",
        state="present",
        side="left",
        site="lung_upper_lobe_left",
        size_mm=7.5,
        count=2,
        severity=None,
        value=7.5,
        volume_ml=0.4,
    )
    assert finding.record() == wanted
