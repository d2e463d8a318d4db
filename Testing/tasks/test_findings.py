"""Findings from made-up anatomy: state, place, size, count, links, and what must not be said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.bundle import Calibration, FindingEntry
from VelvetMedLib.cohorts.truth import CaseMaps, describe_instances, measure_finding, midline_ras
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.evidence import Evidence, Measured
from VelvetMedLib.tasks.findings import UNMEASURED, _find_one, calibrated, decide, finding_logits, lesion_channels, state_of
from VelvetMedLib.tasks.tokens import LESION_SIZE

HALF = (0.5,) * 17


def found(fine: Any, name: str, logit: float = 3.0, **entry: Any) -> Any:
    return _find_one(ontology().finding(name), FindingEntry(name=name, **entry), logit, Evidence(fine, HALF))


def test_calibration_and_thresholds_give_the_state():
    entry = FindingEntry(name="lung_nodule", calibration=Calibration(slope=2.0, bias=-1.0), threshold_absent=0.3, threshold_present=0.6)
    assert calibrated(entry, 0.5) == pytest.approx(0.5)
    assert [state_of(entry, p) for p in (0.1, 0.3, 0.59, 0.6)] == ["absent", "uncertain", "uncertain", "present"]
    assert calibrated(entry, 900) == 1.0 and calibrated(entry, -900) == 0.0


def test_what_the_lesion_map_shows_weighs_beside_the_head_in_findings_of_that_kind(random_bundle: Any):
    lesions = np.zeros((2, LESION_SIZE), np.float32)
    lesions[:, 48] = 1.0  # two nodules, the more probable one the smaller
    lesions[:, 48 + 17 + 6], lesions[:, 48 + 17 + 7] = (2.0, 0.5), (0.4, 0.9)
    memory = np.random.default_rng(0).normal(size=(6, random_bundle.model.findings.config.width)).astype(np.float32)
    encoding = SimpleNamespace(
        need_reading=lambda: SimpleNamespace(memory=memory, memory_mask=np.ones(6, bool)),
        need_fine=lambda: SimpleNamespace(lesion_tokens=lesions, lesion_logits=None),
    )
    weighing = tuple(
        replace(entry, evidence=(0.5, 10.0, 1.0, -0.5) if entry.name in ("lung_nodule", "liver_lesion", "cardiomegaly") else None)
        for entry in random_bundle.config.findings
    )
    plain = finding_logits(encoding, random_bundle)  # type: ignore[arg-type]
    weighed = finding_logits(encoding, replace(random_bundle, config=replace(random_bundle.config, findings=weighing)))  # type: ignore[arg-type]
    half = ("lung_nodule", "liver_lesion", "cardiomegaly")
    expected = [0.5 * z if name in half else z for name, z in zip(ontology().finding_names, plain, strict=True)]
    expected[ontology().finding_names.index("lung_nodule")] += 10 * 0.9 + 2.0 - 0.5 * 2
    assert weighed == pytest.approx(expected, abs=1e-5)


def test_a_nodule_has_side_site_size_count_and_a_link_inside_it(make_fine: Any):
    fine = make_fine({"lung_nodule": [((40, 44), (20, 23), (54, 56)), ((46, 48), (18, 20), (36, 38))]})
    nodule = found(fine, "lung_nodule")
    assert (nodule.state, nodule.side, nodule.site, nodule.count) == ("present", "right", "lung_upper_lobe_right", 2)
    assert nodule.size_mm == pytest.approx(np.hypot(4 * 4, 3 * 4), abs=2.5)
    assert nodule.link.kind == "lesion" and nodule.link.label == 101
    index = (np.array(nodule.link.center_ras_mm) - fine.grid.ijk_to_ras[:3, 3]) / 4
    assert fine.lesions_cxyz[(0, *np.rint(index).astype(int))] > 0


def test_lesions_on_both_sides_are_said_so_and_a_trace_on_one_side_is_not(make_fine: Any):
    both = make_fine({"consolidation": [((40, 50), (16, 26), (32, 40)), ((8, 14), (16, 22), (32, 38))]})
    assert found(both, "consolidation").side == "both"
    trace = make_fine({"consolidation": [((40, 50), (16, 26), (32, 40)), ((8, 10), (16, 18), (32, 34))]})
    assert found(trace, "consolidation").side == "right"


def test_an_effusion_outside_the_lungs_gets_the_side_it_lies_on(make_fine: Any):
    effusion = found(make_fine({"pleural_effusion": [((6, 24), (8, 12), (28, 40))]}), "pleural_effusion")
    assert effusion.side == "left" and effusion.site is None and effusion.size_mm is None
    assert effusion.volume_ml == pytest.approx(18 * 4 * 12 * 0.064, rel=0.01) and effusion.severity == "mild"


def test_a_mass_is_not_a_nodule_as_well(make_fine: Any):
    fine = make_fine({"lung_nodule": [((38, 48), (18, 28), (34, 42))]})
    assert found(fine, "lung_mass").size_mm > 32
    nodule = found(fine, "lung_nodule")
    assert nodule.size_mm is None and nodule.link.kind == "segment"


def test_a_nodule_beside_a_mass_is_measured_on_the_rest_and_both_as_the_cohorts_truth_measures_them(make_fine: Any):
    boxes = {"lung_nodule": [((38, 48), (18, 28), (34, 42)), ((8, 11), (20, 23), (54, 57))]}
    fine = make_fine(boxes)
    lesions = np.zeros(fine.organs_kji.shape, np.uint32)
    for number, ((x0, x1), (y0, y1), (z0, z1)) in enumerate(boxes["lung_nodule"]):
        lesions[z0:z1, y0:y1, x0:x1] = 1 << number
    maps = CaseMaps(fine.hu_kji.astype(np.float32), fine.organs_kji, lesions, ["lung_nodule"] * 2, fine.grid.ijk_to_ras)
    instances = describe_instances(maps, midline_ras(maps))
    for name, count, side in (("lung_nodule", 1, "left"), ("lung_mass", 1, "right")):
        truth = measure_finding(ontology().finding(name), maps, instances, None)
        measured = Evidence(fine, HALF).measure(ontology().finding(name))
        assert (measured.count, measured.side) == (truth.count, truth.side) == (count, side)
        assert measured.size_mm == pytest.approx(truth.size_mm, abs=0.06)
        assert measured.volume_ml == pytest.approx(truth.volume_ml, rel=0.01) and measured.site == truth.site


def test_present_without_a_lesion_to_point_at_links_to_the_organ(make_fine: Any):
    finding = found(make_fine(), "liver_lesion")
    assert finding.state == "present" and finding.link.kind == "segment"
    assert finding.link.label == ontology().structure("liver").label and finding.size_mm is None


def test_an_absent_finding_has_no_place_and_no_size(make_fine: Any):
    finding = found(make_fine({"lung_nodule": [((40, 44), (20, 23), (54, 56))]}), "lung_nodule", logit=-5.0)
    assert finding.state == "absent" and finding.probability < 0.05
    assert (finding.side, finding.site, finding.size_mm, finding.count, finding.value) == (None,) * 5


@pytest.mark.parametrize("logit", [5.0, -5.0])
def test_a_compressed_vertebra_says_that_nothing_of_it_was_measured(make_fine: Any, logit: float):
    fracture = found(make_fine({"vertebral_compression": [((28, 32), (6, 11), (30, 35))]}), "vertebral_compression", logit=logit)
    assert fracture.value is None and fracture.severity is None and fracture.site is None
    assert "no measurement" in fracture.reason and "model alone" in fracture.reason
    if fracture.state == "present":
        assert fracture.link.kind == "lesion" and fracture.link.label == ontology().lesion("vertebral_compression").label


def test_every_other_finding_has_a_way_to_be_measured():
    quantities = {f.measure.quantity for f in ontology().findings}
    assert quantities - set(UNMEASURED) == {
        "cardiothoracic_ratio", "liver_minus_spleen_hu", "craniocaudal_length_mm", "aortic_diameter_mm",
        "longest_axial_diameter_mm", "short_axis_mm", "volume_ml", "lung_fraction",
    }  # fmt: skip


def test_numbers_that_contradict_a_present_state_are_not_reported(make_fine: Any):
    finding = found(make_fine({"consolidation": [((40, 42), (20, 22), (34, 36))]}), "consolidation")
    assert finding.state == "present" and finding.value is None and finding.volume_ml is None and finding.severity is None
    assert finding.side == "right"


@pytest.mark.parametrize(
    ("name", "without"), [("liver_lesion", ("liver",)), ("cardiomegaly", ("heart",)), ("renal_cyst", ("kidney_left", "kidney_right"))]
)
def test_what_lies_outside_the_view_is_not_assessed_and_never_absent(make_fine: Any, name: str, without: tuple[str, ...]):
    finding = found(make_fine(without=without), name, logit=-9.0)
    assert finding.state == "not_assessed" and "not fully covered" in finding.reason
    assert finding.probability is None and finding.link is None


def test_lungs_cut_off_by_the_scan_are_not_assessed(make_fine: Any):
    bases = dict.fromkeys(("lung_upper_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right"), ((0, 0), (0, 0), (0, 0)))
    bases |= {"lung_lower_lobe_left": ((6, 24), (12, 30), (64, 70)), "lung_lower_lobe_right": ((34, 54), (12, 30), (64, 70))}
    assert found(make_fine(organs=bases), "pleural_effusion", logit=-9.0).state == "not_assessed"


def test_one_removed_kidney_does_not_hide_the_other(make_fine: Any):
    assert found(make_fine(without=("kidney_left",)), "kidney_stone", logit=-9.0).state == "absent"


def test_what_the_model_cannot_tell_from_chance_is_not_assessed_with_the_reason(make_fine: Any):
    finding = found(make_fine(), "kidney_stone", logit=9.0, assessed=False, reason="AUROC 0.51")
    assert finding.state == "not_assessed" and "AUROC 0.51" in finding.reason


def test_a_measurement_that_contradicts_the_model_makes_it_uncertain(make_fine: Any):
    narrow = {"heart": ((25, 31), (24, 38), (30, 46))}
    heart = found(make_fine(organs=narrow), "cardiomegaly", logit=5.0)
    assert heart.value < 0.5 and heart.state == "uncertain" and "disagree" in heart.reason
    wide = {"heart": ((10, 46), (24, 38), (32, 46))}
    heart = found(make_fine(organs=wide), "cardiomegaly", logit=5.0)
    assert heart.value > 0.54 and heart.state == "present" and heart.severity is not None


@pytest.mark.parametrize(
    ("lesions", "logit", "state", "value"),
    [
        ({}, 5.0, "uncertain", 0.0),
        ({"pleural_effusion": [((6, 24), (8, 12), (28, 40))]}, -5.0, "uncertain", 55.3),
        ({"pleural_effusion": [((6, 24), (8, 12), (28, 40))]}, 5.0, "present", 55.3),
        ({}, -5.0, "absent", 0.0),
    ],
)
def test_the_fluid_measured_stands_beside_the_models_verdict(make_fine: Any, lesions: Any, logit: float, state: str, value: float):
    effusion = found(make_fine(lesions), "pleural_effusion", logit=logit)
    assert effusion.state == state and effusion.value == pytest.approx(value, abs=0.1) and effusion.unit == "ml"
    assert ("disagree" in (effusion.reason or "")) == (state == "uncertain")


def test_what_the_model_cannot_tell_is_measured_all_the_same(make_fine: Any):
    steatosis = found(make_fine(), "hepatic_steatosis", assessed=False, reason="AUROC 0.5")
    assert steatosis.state == "not_assessed" and steatosis.probability is None and "AUROC 0.5" in steatosis.reason
    assert steatosis.value == pytest.approx(-5.0) and steatosis.unit == "HU" and steatosis.link is not None
    for fine in (make_fine(without=("spleen",)), make_fine(organs={"spleen": ((6, 14), (12, 22), (0, 12))})):
        assert found(fine, "splenomegaly", assessed=False, reason="AUROC 0.5").value is None, "cut off or out of view"


@pytest.mark.parametrize(
    ("state", "value", "expected"),
    [
        ("absent", 100.0, "not_assessed"),
        ("uncertain", 125.0, "not_assessed"),
        ("present", 140.0, "present"),
        ("absent", 140.0, "uncertain"),
    ],
)
def test_an_organ_cut_off_by_the_view_is_judged_only_where_it_is_already_too_large(state: Any, value: float, expected: str):
    assert decide(ontology().finding("splenomegaly"), state, Measured(value=value, reliable=False))[0] == expected


def test_the_liver_is_compared_with_the_spleen(make_fine: Any):
    finding = found(make_fine(), "hepatic_steatosis", logit=-5.0)
    assert finding.state == "absent" and finding.value == pytest.approx(-5.0) and finding.unit == "HU"


def test_the_liver_is_not_compared_in_an_arterial_phase_or_without_a_spleen(make_fine: Any):
    arterial = make_fine()
    arterial.hu_xyz[arterial.organs_xyz == ontology().structure("aorta").label] = 320
    assert "arterial phase" in found(arterial, "hepatic_steatosis").reason
    assert "spleen" in found(make_fine(without=("spleen",)), "hepatic_steatosis").reason


def test_the_heart_is_not_compared_with_a_chest_that_is_cut_off(make_fine: Any):
    assert "full width" in found(make_fine(without=("lung_upper_lobe_left",)), "cardiomegaly").reason


def test_the_spleens_length_is_measured_along_the_body(make_fine: Any):
    assert found(make_fine(), "splenomegaly", logit=-5.0).value == pytest.approx(80.0)


def test_only_lesions_of_present_or_uncertain_findings_may_be_shown(make_fine: Any):
    fine = make_fine({"lung_nodule": [((40, 44), (20, 23), (54, 56))], "renal_cyst": [((37, 41), (5, 9), (8, 12))]})
    findings = (found(fine, "lung_nodule", logit=5.0), found(fine, "renal_cyst", logit=-5.0))
    assert lesion_channels(findings) == {0}


def test_every_finding_can_be_measured_without_any_anatomy(make_fine: Any):
    empty = make_fine(without=tuple(s.name for s in ontology().structures))
    for finding in ontology().findings:
        assert found(empty, finding.name).state == "not_assessed"
