"""bundle.json checks itself: what is wrong is named with its place, and nothing in it can ask for code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from VelvetMedLib.bundle import BundleConfig, Calibration, FindingEntry
from VelvetMedLib.bundle.config import parse
from VelvetMedLib.errors import BundleError
from VelvetMedLib.reports import ontology


def config(**changes: Any) -> BundleConfig:
    base: dict[str, Any] = {
        "id": "x", "version": "1", "recipe": "r", "licence": "l", "training_data": "t", "intended_use": "u", "architecture": {"a": [1, 2]},
    }  # fmt: skip
    return BundleConfig(**{**base, **changes})


def edited(path: str, value: Any) -> str:
    data = json.loads(config().to_json())
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(data)


def test_the_text_of_a_config_reads_back_as_the_same_config():
    first = config(findings=tuple(FindingEntry(name=n, calibration=Calibration(slope=2, bias=-1)) for n in ontology().finding_names))
    assert parse(first.to_json()) == first


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("format_version", 2, "format version"),
        ("format_version", None, "format version"),
        ("surprise", 1, "surprise"),
        ("views.fine.surprise", 1, "views.fine: surprise"),
        ("views.global.shape_voxels", [64, 64, 50], "views.global.shape_voxels"),
        ("views.fine.spacing_mm", [4.0, 4.0], "views.fine.spacing_mm"),
        ("views.fine.spacing_mm", "4", "views.fine.spacing_mm"),
        ("views.fine.hu_windows", [[100, 0]], "views.fine.hu_windows"),
        ("lesions.0.threshold", 0, "threshold"),
        ("lesions.0.name", "gremlin", "lesions"),
        ("findings.2.threshold_absent", 0.9, "thresholds"),
        ("findings.2.calibration.slope", -1, "calibration.slope"),
        ("findings.2.assessed", 1, "assessed"),
        ("findings.2.assessed", False, "reason"),
        ("structures.3", "gizzard", "structures"),
        ("id", "../up", "id"),
        ("id", 7, "id"),
        ("licence", " ", "licence"),
        ("files", {"a/b": {"sha256": "0" * 64, "bytes": 1}}, "files"),
        ("files", {"a": {"sha256": "zz", "bytes": 1}}, "sha256"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(path: str, value: Any, named: str):
    with pytest.raises(BundleError) as error:
        parse(edited(path, value))
    assert named in str(error.value)


@pytest.mark.parametrize("key", ["_target_", "auto_map", "trust_remote_code"])
def test_a_config_that_names_code_is_refused(key: str):
    with pytest.raises(BundleError, match="names code to run") as error:
        parse(edited(f"architecture.{key}", "os.system"))
    assert key in error.value.found


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format_version": NaN}'])
def test_text_that_is_no_json_object_is_refused(text: str):
    with pytest.raises(BundleError):
        parse(text)


def test_a_missing_key_is_named():
    data = json.loads(config().to_json())
    del data["views"]["fine"]["overlap"]
    with pytest.raises(BundleError) as error:
        parse(json.dumps(data))
    assert "overlap" in error.value.found
