"""The ontology: order, labels, thresholds, and codes whose check digit is right."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from VelvetMedLib.reports import FindingRecord, ontology
from VelvetMedLib.reports.ontology import build


def test_there_are_32_structures_17_lesion_channels_and_21_findings_in_a_fixed_order() -> None:
    table = ontology()
    assert [s.label for s in table.structures] == list(range(1, 33))
    assert [x.label for x in table.lesions] == list(range(101, 118))
    assert [x.channel for x in table.lesions] == list(range(17))
    assert len(table.findings) == 21 and table.finding_index("lung_mass") == 1


def test_a_value_in_the_band_between_the_bounds_is_uncertain() -> None:
    nodule = ontology().finding("lung_nodule")
    assert [nodule.state_of(v) for v in (3.9, 4.0, 5.9, 6.0)] == ["absent", "uncertain", "uncertain", "present"]


def test_fat_is_worse_the_lower_the_value() -> None:
    fat = ontology().finding("hepatic_steatosis")
    assert [fat.state_of(v) for v in (-4.0, -5.0, -14.0, -15.0)] == ["absent", "uncertain", "uncertain", "present"]
    assert [fat.severity_of(v) for v in (-16.0, -25.0, -40.0)] == ["mild", "moderate", "severe"]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_could_not_be_measured_is_not_assessed_never_absent(value: float | None) -> None:
    assert {f.state_of(value) for f in ontology().findings} == {"not_assessed"}
    assert {f.severity_of(value) for f in ontology().findings} == {None}


def test_a_certain_mass_is_not_also_a_nodule_and_every_lesion_counts_for_a_mass() -> None:
    table = ontology()
    nodule, mass = table.finding("lung_nodule"), table.finding("lung_mass")
    assert [table.counts_for(nodule, mm) for mm in (5.0, 31.9, 32.0, 60.0)] == [True, True, False, False]
    assert all(table.counts_for(mass, mm) for mm in (5.0, 31.9, 32.0, 60.0))
    assert table.counts_for(table.finding("liver_lesion"), 90.0)


def test_every_site_has_words_and_lobes_imply_a_side() -> None:
    table = ontology()
    assert all(table.site_display(site) for site in table.sites)
    assert table.site_side("lung_middle_lobe_right") == "right" and table.site_side("aortic_arch") is None


# Verhoeff's scheme: the last digit of a SNOMED CT identifier, from its definition over the dihedral group of order 10.
def _verhoeff_holds(code: str) -> bool:
    def times(a: int, b: int) -> int:
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
        return 5 + (a - b) % 5 if b < 5 else (a - b) % 5

    step = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    check = 0
    for place, digit in enumerate(reversed(code)):
        value = int(digit)
        for _ in range(place % 8):
            value = step[value]
        check = times(check, value)
    return check == 0


def test_every_snomed_code_has_a_right_check_digit_or_is_left_empty() -> None:
    table = ontology()
    codes = [x.code for x in (*table.structures, *table.lesions, *table.findings)] + [
        x.category for x in (*table.structures, *table.lesions)
    ]
    assert not [c for c in codes if c.scheme == "SCT" and c.value and not _verhoeff_holds(c.value)]
    assert not _verhoeff_holds("110765005"), "the check itself must be able to fail"


def test_a_finding_that_names_an_unknown_structure_is_refused() -> None:
    data = json.loads(files("VelvetMedLib").joinpath("assets", "ontology.json").read_text(encoding="utf-8"))
    data["findings"][0]["requires"] = ["tail"]
    with pytest.raises(ValueError, match="lung_nodule"):
        build(data)


def test_a_record_survives_json_and_refuses_unknown_keys() -> None:
    record = FindingRecord(name="renal_cyst", state="present", side="left", size_mm=12.0, instance_ids=(2, 5))
    assert FindingRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record
    with pytest.raises(TypeError, match="colour"):
        FindingRecord.from_dict({"name": "renal_cyst", "state": "absent", "colour": "red"})
