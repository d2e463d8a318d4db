"""Labels are measured: re-measuring the written files gives the record; sides, sites, bands and missing organs are right."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.case import measure
from VelvetMedLib.cohorts import Cohort, SyntheticCase, load_case
from VelvetMedLib.cohorts.store import CohortCase
from VelvetMedLib.cohorts.truth import CaseMaps, midline_ras, read_truth
from VelvetMedLib.reports import LUNG_LOBES, FindingRecord, ontology


def _maps(case: CohortCase) -> CaseMaps:
    channels = [""] * max((x["id"] for x in case.instances), default=0)
    for x in case.instances:
        channels[x["id"] - 1] = x["lesion"]
    return CaseMaps(case.volume.voxels_kji.astype(np.float32), case.organs_kji, case.lesions_kji, channels, case.volume.ijk_to_ras)


def test_measuring_the_written_files_again_gives_the_record(cohort: Cohort) -> None:
    for folder in cohort.case_folders:
        case = load_case(folder)
        phase = case.record["rendering"]["phase"]
        _, again = read_truth(_maps(case), case.record["view"]["seen"], case.record["vertebra"], phase != "arterial")
        for old, new in zip(case.findings, again, strict=True):
            if old.name == "hepatic_steatosis" and old.value is not None:
                # Truth was read before noise and calibration error; the stored scan may be off by little.
                assert new.value == pytest.approx(old.value, abs=6.0)
                continue
            for attribute in ("state", "side", "site", "count", "size_mm"):
                assert getattr(new, attribute) == getattr(old, attribute), f"{attribute} of {old.name}"
            assert new.value == old.value


def test_every_instance_agrees_with_a_measurement_of_its_bit(cohort: Cohort) -> None:
    for folder in cohort.case_folders:
        case = load_case(folder)
        for x in case.instances:
            mask = (case.lesions_kji >> np.uint32(x["id"] - 1)) & np.uint32(1) > 0
            assert mask.any()
            assert measure.volume_ml(mask, case.volume) == pytest.approx(x["volume_ml"], abs=1e-3)
            assert measure.longest_axial_diameter_mm(mask, case.volume) == pytest.approx(x["size_mm"], abs=0.01)


def test_every_bit_in_the_mask_is_in_the_table(cohort: Cohort) -> None:
    for folder in cohort.case_folders:
        case = load_case(folder)
        known = sum(1 << (x["id"] - 1) for x in case.instances)
        assert int(np.bitwise_or.reduce(case.lesions_kji, axis=None)) & ~known == 0


def test_states_follow_from_values_by_the_ontology(cases: list[SyntheticCase]) -> None:
    for case in cases:
        for record in case.records:
            finding = ontology().finding(record.name)
            assert record.state == finding.state_of(record.value)
            if record.state == "present":
                assert record.severity == finding.severity_of(record.value)


def test_all_findings_are_recorded_in_the_order_of_the_ontology(cases: list[SyntheticCase]) -> None:
    for case in cases:
        assert tuple(r.name for r in case.records) == ontology().finding_names


def test_what_a_finding_needs_and_is_out_of_view_makes_it_not_assessed(cases: list[SyntheticCase]) -> None:
    met = 0
    for case in cases:
        seen = case.facts["view"]["seen"]
        for record in case.records:
            finding = ontology().finding(record.name)
            if any(seen[name] < 0.1 for name in finding.requires):
                assert record.state == "not_assessed"
                assert record.value is None and record.side is None and not record.instance_ids
                met += 1
    assert met > 5


def _of(cases: list[SyntheticCase], name: str) -> list[tuple[SyntheticCase, FindingRecord]]:
    return [(c, r) for c in cases for r in c.records if r.name == name and r.state in ("present", "uncertain")]


def test_sides_are_the_patients_sides(cases: list[SyntheticCase]) -> None:
    met = 0
    for case in cases:
        maps = CaseMaps(case.volume.voxels_kji.astype(np.float32), case.organs_kji, case.lesions_kji, [], case.volume.ijk_to_ras)
        middle = midline_ras(maps)
        for x in case.instances:
            if x["lesion"] in ("pleural_effusion", "lung_nodule", "renal_cyst", "hydronephrosis", "pneumothorax"):
                right = x["center_ras_mm"][0] > middle
                # A lobe may cross the spine's midline by little.
                assert x["side"] == ("right" if right else "left") or abs(x["center_ras_mm"][0] - middle) < 15
                met += 1
    assert met > 8


def test_an_organ_includes_its_lesions_but_fluid_and_free_air_are_no_lung(cases: list[SyntheticCase]) -> None:
    lobes = [ontology().structure(n).label for n in LUNG_LOBES]
    for case in cases:
        for x in case.instances:
            mask = (case.lesions_kji >> np.uint32(x["id"] - 1)) & np.uint32(1) > 0
            under = case.organs_kji[mask]
            if x["lesion"] in ("lung_nodule", "consolidation", "ground_glass_opacity", "emphysema", "atelectasis"):
                assert np.isin(under, lobes).mean() > 0.95, x
            if x["lesion"] in ("pleural_effusion", "pneumothorax"):
                assert np.isin(under, lobes).mean() < 0.05, x
            if x["lesion"] in ("renal_cyst", "kidney_stone", "hydronephrosis"):
                assert np.isin(under, [2, 3]).mean() > 0.9, x
            if x["lesion"] == "liver_lesion":
                assert (under == 4).mean() > 0.8, x


def test_densities_are_those_of_the_lesions(cases: list[SyntheticCase]) -> None:
    for case in cases:
        for x in case.instances:
            if x["lesion"] == "pleural_effusion" and x["volume_ml"] > 20:
                assert -40 < x["mean_hu"] < 80
            if x["lesion"] == "pneumothorax":
                assert x["mean_hu"] < -850
            if x["lesion"] == "coronary_calcification":
                assert x["mean_hu"] > 80


def test_fluid_lies_behind_and_free_air_in_front(cases: list[SyntheticCase]) -> None:
    lobes = {"left": [9, 10], "right": [11, 12, 13]}
    for case in cases:
        for x in case.instances:
            if x["lesion"] not in ("pleural_effusion", "pneumothorax") or x["volume_ml"] < 40:
                continue
            lung = np.isin(case.organs_kji, lobes[x["side"]])
            if not lung.any():
                continue
            center = measure.centroid_ras(lung, case.volume)
            assert center is not None
            behind = x["center_ras_mm"][1] < center[1]
            assert behind == (x["lesion"] == "pleural_effusion")


def test_a_mass_is_not_counted_as_a_nodule_too(cases: list[SyntheticCase]) -> None:
    for case in cases:
        nodule = next(r for r in case.records if r.name == "lung_nodule")
        if nodule.size_mm is not None:
            assert nodule.size_mm < 32.0
