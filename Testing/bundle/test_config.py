"""bundle.json checks itself: what is wrong is named with its place, and nothing in it can ask for code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from VelvetMedLib.bundle import BundleConfig, Calibration, FindingEntry
from VelvetMedLib.bundle.reading import parse
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
    entries = [FindingEntry(name=n, calibration=Calibration(slope=2, bias=-1)) for n in ontology().finding_names]
    entries[1] = replace(entries[1], prevalence=0.25, evidence=(1.0, 1.5, 0.0, -2.0))
    first = config(findings=tuple(entries))
    assert parse(first.to_json()) == first and first.to_json().count('"evidence"') == 1


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
        ("findings.2.evidence", [1.0, 2.0], "findings[2].evidence"),
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


# families


def _text_of(bundle: Any, change: Callable[[dict[str, Any]], None]) -> str:
    data = json.loads(bundle.config.to_json())
    change(data)
    return json.dumps(data)


def test_a_bundle_of_the_first_family_is_written_as_older_versions_read_it(random_bundle: Any) -> None:
    data = json.loads(random_bundle.config.to_json())
    assert not {"family", "zero_shot"} & set(data) and set(data["views"]) == {"global", "fine"}
    assert parse(json.dumps(data)) == random_bundle.config


def test_a_bundle_of_one_crop_survives_its_json(colipri_bundle: Any) -> None:
    assert parse(colipri_bundle.config.to_json()) == colipri_bundle.config


def test_a_family_that_is_not_known_is_refused(random_bundle: Any) -> None:
    with pytest.raises(BundleError, match="kind that this VelvetMed does not know"):
        parse(_text_of(random_bundle, lambda d: d.update(family="telepathy")))


@pytest.mark.parametrize("view", ["global", "fine"])
def test_a_bundle_without_a_view_that_its_family_needs_is_refused(random_bundle: Any, view: str) -> None:
    with pytest.raises(BundleError) as refused:
        parse(_text_of(random_bundle, lambda d: d["views"].pop(view)))
    assert view in refused.value.found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["views"].pop("crop"), "views: no crop"),
        (lambda d: d.pop("zero_shot"), "nothing"),
        (lambda d: d["views"]["crop"].update(orientation="LPS"), "LPS"),
        (lambda d: d["views"]["crop"].update(windows=0), "0"),
        (lambda d: d["zero_shot"].update(variant="vibes"), "vibes"),
        (lambda d: d.update(structures=["liver"]), "liver"),
    ],
)
def test_a_bundle_of_one_crop_with_a_setting_that_cannot_be_is_refused(colipri_bundle: Any, change: Any, words: str) -> None:
    with pytest.raises(BundleError) as refused:
        parse(_text_of(colipri_bundle, change))
    assert words in refused.value.found
