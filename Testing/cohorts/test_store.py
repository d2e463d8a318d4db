"""Cohorts on disk: same bytes from any number of processes, resumable, refused with words, twins that differ in one thing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.cohorts import Cohort, CohortOptions, load_case, make_case, make_cohort, read_cohort
from VelvetMedLib.cohorts.making import PLAN, plan_cases
from VelvetMedLib.errors import CohortError
from VelvetMedLib.reports import ALL_STYLES, ontology


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".png"
    }


def test_the_bytes_do_not_depend_on_the_number_of_processes(cohort_folder: Path, small_options: CohortOptions, tmp_path: Path) -> None:
    other = make_cohort(tmp_path / "two", 7, 11, 2, small_options, sheet=False)
    assert _hashes(other.folder) == _hashes(cohort_folder)


def test_an_interrupted_run_is_taken_up_and_ends_the_same(cohort_folder: Path, small_options: CohortOptions, tmp_path: Path) -> None:
    made: list[float] = []

    def stop_after_two() -> None:
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path / "cut", 7, 11, 1, small_options, sheet=False, cancel=stop_after_two)
    assert (tmp_path / "cut" / PLAN).exists()
    with pytest.raises(CohortError, match="not a finished cohort"):
        read_cohort(tmp_path / "cut")
    make_cohort(tmp_path / "cut", 7, 11, 1, small_options, sheet=False)
    assert _hashes(tmp_path / "cut") == _hashes(cohort_folder)


def test_a_longer_cohort_begins_with_the_shorter_one() -> None:
    options = CohortOptions(twin_fraction=0.2)
    assert plan_cases(30, 4, options)[:10] == plan_cases(10, 4, options)
    assert len({p.seed for p in plan_cases(200, 4, CohortOptions())}) == 200


def test_what_is_read_is_what_was_made(cohort: Cohort, small_options: CohortOptions) -> None:
    folder = cohort.case_folders[0]
    case = load_case(folder)
    made = make_case(case.record["seed"], small_options)
    np.testing.assert_array_equal(case.volume.voxels_kji, made.volume.voxels_kji)
    np.testing.assert_array_equal(case.organs_kji, made.organs_kji)
    np.testing.assert_array_equal(case.lesions_kji, made.lesions_kji)
    np.testing.assert_allclose(case.volume.ijk_to_ras, made.volume.ijk_to_ras, atol=1e-4)
    assert case.findings == made.records
    assert case.lesions_kji.dtype == np.uint32 and case.organs_kji.dtype == np.uint8 and case.volume.voxels_kji.dtype == np.int16


def test_the_case_can_be_read_as_any_scan_can(cohort: Cohort) -> None:
    from VelvetMedLib.ct import read

    folder = cohort.case_folders[0]
    volume = read(folder / "ct.nii.gz")
    np.testing.assert_array_equal(volume.voxels_kji, load_case(folder).volume.voxels_kji)
    assert volume.grid.axis_codes == "RAS"


def test_reports_come_in_every_style_with_questions_and_all_speak_of_the_records(cohort: Cohort) -> None:
    for folder in cohort.case_folders:
        record = load_case(folder).record
        assert set(record["reports"]) == set(ALL_STYLES) and len(ALL_STYLES) >= 4
        states = {f["name"]: f["state"] for f in record["findings"]}
        for sections in record["reports"].values():
            for section in sections:
                for sentence in section["sentences"]:
                    if sentence["finding"] is not None:
                        assert sentence["state"] == states[sentence["finding"]]
        assert record["questions"]
        assert "Research use only" in record["disclaimer"]


def test_twins_share_everything_but_one_finding(cohort: Cohort) -> None:
    met = 0
    for folder in cohort.case_folders:
        twin = load_case(folder)
        if twin.record["twin_of"] is None:
            continue
        base = load_case(cohort.folder / twin.record["twin_of"])
        assert twin.record["seed"] == base.record["seed"]
        assert twin.record["anatomy"] == base.record["anatomy"]
        assert twin.record["rendering"] == base.record["rendering"]
        difference = set(twin.record["drawn"]["affected"]) ^ set(base.record["drawn"]["affected"])
        assert difference == {twin.record["twin_finding"]}
        met += 1
    assert met >= 1


def test_a_painted_lesion_changes_only_voxels_around_it(small_options: CohortOptions) -> None:
    seed = next(s for s in range(40, 90) if _seen_lungs(s, small_options))
    without, with_it = make_case(seed, small_options), make_case(seed, small_options, twin="lung_mass")
    if len(without.instances) > len(with_it.instances):
        without, with_it = with_it, without
    changed = np.abs(without.volume.voxels_kji.astype(int) - with_it.volume.voxels_kji) > 30
    assert 0 < changed.mean() < 0.08
    far = changed.copy()
    mask = with_it.lesions_kji != without.lesions_kji
    k, j, i = np.nonzero(mask)
    pad = 6
    far[max(k.min() - pad, 0) : k.max() + pad, max(j.min() - pad, 0) : j.max() + pad, max(i.min() - pad, 0) : i.max() + pad] = False
    assert not far.any()


def _seen_lungs(seed: int, options: CohortOptions) -> bool:
    from VelvetMedLib.cohorts.synthetic import assessable_findings

    return "lung_mass" in assessable_findings(seed, options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"normal_fraction": 1.2},
        {"spacing_mm": 0.1},
        {"view_weights": (1.0, -1.0, 0.0, 0.0)},
        {"mode_weights": (0.0, 0.0, 0.0)},
        {"largest_shape_ijk": (4, 4, 4)},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(CohortError, match=next(iter(wrong))):
        CohortOptions(**wrong)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CohortError) as problem:
        make_cohort(tmp_path, 2, 1, 1)
    assert str(tmp_path) not in str(problem.value)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_finished_cohort_is_not_written_over(cohort_folder: Path, small_options: CohortOptions) -> None:
    with pytest.raises(CohortError, match="cannot be written"):
        make_cohort(cohort_folder, 7, 11, 1, small_options)


def test_numbers_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError):
        make_cohort(tmp_path / "new", 0, 1, 1)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_case_or_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not a case"):
        load_case(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps({"version": 99}), encoding="utf-8")
    with pytest.raises(CohortError, match="another version"):
        load_case(tmp_path)
    (tmp_path / "cohort.json").write_text(json.dumps({"version": 99}), encoding="utf-8")
    with pytest.raises(CohortError, match="another version"):
        read_cohort(tmp_path)


def test_an_unknown_twin_finding_is_refused() -> None:
    with pytest.raises(CohortError):
        make_case(1, twin="gout")


def test_a_damaged_image_is_refused_without_a_path(cohort: Cohort, tmp_path: Path) -> None:
    folder = tmp_path / "case_000000"
    folder.mkdir()
    (folder / "record.json").write_bytes((cohort.case_folders[0] / "record.json").read_bytes())
    (folder / "ct.nii.gz").write_bytes(b"nothing")
    with pytest.raises(CohortError) as problem:
        _ = load_case(folder).volume
    assert str(tmp_path) not in str(problem.value)


def test_the_manifest_says_what_it_is_and_where_it_comes_from(cohort: Cohort) -> None:
    assert "LIDC-IDRI" in cohort.manifest["attribution"]
    assert "Research use only" in cohort.manifest["disclaimer"]
    assert len(cohort) == 7 and cohort.seed == 11
    names = set(ontology().finding_names)
    assert all(set(entry["present"]) <= names for entry in cohort.manifest["cases"])
