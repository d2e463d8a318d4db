"""Labelled data sets and their preparation: nnU-Net, Decathlon, splits, geometry in RAS, crops, and cases that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning.augment import plan_flips
from finetuning.batches import CropMaker, drawn_point, windowed
from finetuning.coding import AnyOf, Coding, OneOf
from finetuning.settings import AugmentSettings, DataSettings
from finetuning.store import prepare
from finetuning.tasks import read_task, with_splits

from VelvetMedLib.cohorts import CohortOptions, make_cohort
from VelvetMedLib.cohorts.store import load_case
from VelvetMedLib.ct import read_labels, write_nifti
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.reports import ontology

SMALL = DataSettings(spacing_mm=(2.0, 2.0, 2.0), patch_voxels=(32, 32, 32), hu_min=-200.0, hu_max=300.0, crops_per_volume=2)
LABELS = {"background": 0, "kidney_left": 1, "kidney_right": 4}


def scan(side_mm: float = 72.0) -> tuple[Any, Any, Any]:
    """(hu_kji, labels_kji, ijk_to_ras) in L-P-S order: a body block with a left kidney (bright, larger) and a right one."""
    spacing = np.array([2.0, 2.0, 3.0])
    i, j, k = (int(side_mm / s) for s in spacing)
    hu, labels = np.full((k, j, i), -1000, np.int16), np.zeros((k, j, i), np.uint8)
    hu[2:-2, 4:-4, 4:-4] = 40
    # i grows to the left: high i is the patient's left.
    labels[8:14, 12:20, i - 12 : i - 6] = 1
    labels[8:14, 12:18, 6:10] = 4
    hu[labels == 1], hu[labels == 4] = 200, 120
    matrix = np.diag([-2.0, -2.0, 3.0, 1.0])
    matrix[:3, 3] = [40, 40, -100]
    return hu, labels, matrix


def nnunet(folder: Path, count: int = 5, **described: Any) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for n in range(count):
        hu, labels, matrix = scan()
        write_nifti(folder / "imagesTr" / f"case{n}_0000.nii.gz", hu + np.int16(n), matrix)
        write_nifti(folder / "labelsTr" / f"case{n}.nii.gz", labels, matrix)
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": count, "file_ending": ".nii.gz"} | described
    (folder / "dataset.json").write_text(json.dumps(content), "utf-8")
    return folder


def test_an_nnunet_folder_and_a_decathlon_task_read_alike(tmp_path: Path) -> None:
    task = read_task(nnunet(tmp_path / "a"))
    listed = [{"image": f"./imagesTr/case{n}_0000.nii.gz", "label": f"./labelsTr/case{n}.nii.gz"} for n in range(5)]
    labels = {"0": "background", "1": "kidney_left", "4": "kidney_right"}
    other = nnunet(tmp_path / "b", modality={"0": "CT"}, channel_names=None, labels=labels, training=listed, test=["./imagesTs/x.nii.gz"])
    same = read_task(other)
    assert task.names == same.names == ["kidney_left", "kidney_right"] and task.declared == same.declared == (0, 1, 4)
    assert [case.name for case in task.cases] == [case.name for case in same.cases] == [f"case{n}" for n in range(5)]
    assert read_task(tmp_path / "a", structures=["kidney_right"]).names == ["kidney_right"]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"channel_names": {"0": "T1"}}, "single CT"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "single CT"),
        ({"labels": {"background": 0, "whole": [1, "x"]}}, "cannot be read"),
        ({"labels": {"background": 0, "a": 1, "ignore": 4}}, "ignore label"),
        ({"labels": {"background": 0}}, "cannot be used"),
    ],
)
def test_data_sets_of_another_kind_are_refused(tmp_path: Path, described: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_task(nnunet(tmp_path / "a", 1, **described))


def test_a_folder_without_a_data_set_and_an_unknown_structure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no labelled data set"):
        read_task(tmp_path)
    with pytest.raises(UsageError, match="spleen"):
        read_task(nnunet(tmp_path / "a", 1), structures=["spleen"])


def test_splits_are_the_files_or_drawn_by_the_seed_and_few_labels_are_a_part_of_them(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "a", 5)
    drawn = with_splits(read_task(folder), val_share=0.4, seed=1)
    assert (len(drawn.of("train")), len(drawn.of("val"))) == (3, 2)
    assert drawn == with_splits(read_task(folder), val_share=0.4, seed=1)
    few = with_splits(read_task(folder), val_share=0.4, seed=1, most={"train": 2})
    assert few.of("val") == drawn.of("val") and {c.name for c in few.of("train")} < {c.name for c in drawn.of("train")}
    fewer = with_splits(read_task(folder), val_share=0.4, seed=1, most={"train": 1, "val": 1})
    assert {c.name for c in fewer.of("train")} < {c.name for c in few.of("train")} and len(fewer.of("val")) == 1
    folds = [{"train": ["case0"], "val": ["case1"]}, {"train": ["case2", "case3"], "val": ["case4"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds), "utf-8")
    second = with_splits(read_task(folder, fold=1), val_share=0.4, seed=1)
    assert {case.name: case.split for case in second.cases} == {"case2": "train", "case3": "train", "case4": "val"}
    manifest = tmp_path / "studies.jsonl"
    manifest.write_text("".join(json.dumps({"study": f"case{n}", "split": "test" if n else "train"}) + "\n" for n in range(3)), "utf-8")
    assert len(read_task(folder, splits=manifest).of("test")) == 2
    with pytest.raises(TrainingError, match="splits"):
        read_task(folder, fold=7)


def test_prepared_scans_lie_in_ras_at_the_chosen_spacing_with_left_on_the_left(tmp_path: Path) -> None:
    task = read_task(nnunet(tmp_path / "a", 1))
    (case,), bad = prepare(task, tmp_path / "store", SMALL)
    assert not bad and np.allclose(np.diag(case.grid.ijk_to_ras)[:3], 2.0)
    left, right = (np.argwhere(np.asarray(case.labels_xyz) == n).mean(0) for n in (1, 2))
    assert left[0] < right[0]  # x grows to the right
    assert case.counts[1] == (case.labels_xyz == 1).sum() and case.counts[1] * 8 == pytest.approx(6 * 8 * 6 * 12, rel=0.15)
    assert np.asarray(case.hu_xyz)[np.asarray(case.labels_xyz) == 1].mean() > 150
    # Air around the body is cut away: the block is 28 x 28 voxels of 2 mm and 20 of 3 mm.
    assert case.hu_xyz.shape[0] <= 30 and case.hu_xyz.shape[2] <= 32
    # The kept grid is where the scan is: the left kidney's centre in RAS.
    at = case.grid.ijk_to_ras @ np.array([*left, 1.0])
    _, labels, matrix = scan()
    k, j, i = np.argwhere(labels == 1).mean(0)
    assert np.allclose(at[:3], (matrix @ np.array([i, j, k, 1.0]))[:3], atol=1.1)


def test_preparing_again_does_nothing_until_a_source_changes(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "a", 1)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        (case,), _ = prepare(read_task(folder), tmp_path / "store", SMALL, progress=lambda *at: told.append(at))
    assert told == [(1, 1)]
    hu, _, matrix = scan()
    write_nifti(folder / "imagesTr" / "case0_0000.nii.gz", hu + np.int16(50), matrix)
    (changed,), _ = prepare(read_task(folder), tmp_path / "store", SMALL, progress=lambda *at: told.append(at))
    assert told == [(1, 1), (1, 1)] and changed.hu_xyz.max() > case.hu_xyz.max() - 1


def test_cases_that_cannot_be_used_are_left_out_by_name_and_reason(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "a", 5)
    (folder / "imagesTr" / "case0_0000.nii.gz").unlink()
    (folder / "imagesTr" / "case1_0000.nii.gz").write_bytes(b"\x1f\x8bnothing")
    _, labels, matrix = scan()
    write_nifti(folder / "labelsTr" / "case2.nii.gz", np.where(labels == 1, 9, labels).astype(np.uint8), matrix)
    shifted = matrix.copy()
    shifted[0, 3] += 30
    write_nifti(folder / "labelsTr" / "case3.nii.gz", labels, shifted)
    good, bad = prepare(read_task(folder), tmp_path / "store", SMALL)
    assert [case.name for case in good] == ["case4"]
    reasons = {entry.study: entry.reason for entry in bad}
    assert "missing" in reasons["case0"] and "damaged" in reasons["case1"]
    assert "[9]" in reasons["case2"] and "does not lie on the scan" in reasons["case3"]


def test_crops_depend_on_seed_epoch_and_case_alone_and_hit_structures_as_often_as_asked(tmp_path: Path) -> None:
    cases, _ = prepare(read_task(nnunet(tmp_path / "a", 2)), tmp_path / "store", SMALL)
    augment = AugmentSettings(shift_chance=0.0)
    maker = CropMaker(cases, SMALL, augment, plan_flips(["kidney_left", "kidney_right"], augment), seed=3)
    both, alone = maker.batch(["case0", "case1"], 5), maker.batch(["case1"], 5)
    assert both.images.shape == (4, 1, 32, 32, 32) and both.labels.shape == (4, 1, 32, 32, 32)
    assert (both.images[2:] == alone.images).all() and not (both.images[2:] == maker.batch(["case1"], 6).images).all()
    assert set(both.labels.unique().tolist()) <= {0, 1, 2} and both.images.min() >= 0 and both.images.max() <= 1
    # Windowed values and labels belong together: the left kidney is brightest.
    assert both.images[both.labels == 1].mean() > both.images[both.labels == 2].mean() > both.images[both.labels == 0].mean()
    rng = np.random.default_rng(0)
    flat = np.asarray(cases[0].labels_xyz).ravel()
    hits = [int(flat[drawn_point(cases[0], SMALL, rng)]) for _ in range(3000)]
    assert np.mean([h > 0 for h in hits]) == pytest.approx(SMALL.positive_share, abs=0.04)
    share = cases[0].counts[1] / sum(cases[0].counts[1:])
    assert np.mean([h == 1 for h in hits if h]) == pytest.approx(share, abs=0.04)
    even = DataSettings(by_structure=True, positive_share=1.0)
    hits = [int(flat[drawn_point(cases[0], even, rng)]) for _ in range(3000)]
    assert np.mean([h == 1 for h in hits]) == pytest.approx(0.5, abs=0.04)


def test_the_window_maps_its_ends_to_0_and_1_and_clips_beyond() -> None:
    assert windowed(np.array([-1000, -200, 50, 300, 3000]), SMALL).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("coding", [OneOf(3), AnyOf(3)])
def test_an_array_of_structures_gives_back_their_masks_sizes_and_best_logits(coding: Coding) -> None:
    rng = np.random.default_rng(0)
    number = rng.integers(0, 4, (3, 4, 5))
    masks = [number == n for n in (1, 2, 3)]
    if isinstance(coding, AnyOf):
        masks[2] = masks[2] | masks[0]  # these share voxels
    coded = coding.coded(masks)
    again = {n: layer == value for layer, of in coding.layers(coded) for value, n in of.items()}
    assert all(np.array_equal(again[n], mask) for n, mask in enumerate(masks, start=1))
    assert coding.counts(coded) == [int((number == 0).sum()), *(int(mask.sum()) for mask in masks)]
    targets = coding.targets(torch.from_numpy(coded.astype(np.int64))[None, None])
    sure = torch.nn.functional.one_hot(targets[0, 0], 4).movedim(-1, 0) if isinstance(coding, OneOf) else targets[0]
    assert len(sure) == coding.outputs and np.array_equal(coding.found(sure.float() - 0.5), coded)


def test_regions_that_overlap_are_learnt_one_by_one_and_others_as_classes(tmp_path: Path) -> None:
    labels = {"background": 0, "kidneys": [1, 4], "kidney_left": 1}
    task = read_task(nnunet(tmp_path / "a", 1, labels=labels))
    assert task.coding == AnyOf(2) and task.names == ["kidney_left", "kidneys"]
    (case,), bad = prepare(task, tmp_path / "store", SMALL)
    left, both = (case.labels_xyz & 1) > 0, (case.labels_xyz & 2) > 0
    assert not bad and left.any() and not (left & ~both).any() and case.counts[2] == both.sum() > left.sum() == case.counts[1]
    assert set(np.unique(case.labels_xyz.ravel()[case.points[1]])) == {3} and read_task(
        tmp_path / "a", structures=["kidneys"]
    ).coding == OneOf(1)


def test_lesions_of_a_cohort_are_its_instances_by_kind_and_only_a_cohort_has_them(tmp_path: Path) -> None:
    options = CohortOptions(spacing_mm=8.0, largest_shape_ijk=(48, 48, 48), normal_fraction=0.0, affected_probability=0.9)
    make_cohort(tmp_path / "cohort", 2, seed=2, options=options, sheet=False)
    task = read_task(tmp_path / "cohort", kind="lesions")
    assert task.names == [lesion.name for lesion in ontology().lesions] and isinstance(task.coding, AnyOf)
    case, source = task.cases[0], load_case(tmp_path / "cohort" / task.cases[0].name)
    values, _ = read_labels(case.label)
    shown = 0
    for name, mask in zip(task.names, task.members(values, case), strict=True):
        slow = np.zeros(values.shape, bool)
        for instance in source.instances:
            if instance["lesion"] == name:
                slow |= (source.lesions_kji >> np.uint32(instance["id"] - 1)) & 1 > 0
        assert np.array_equal(mask, slow)
        shown += bool(slow.any())
    assert shown > 3 and not task.foreign(values, case) and task.foreign(values | np.uint32(1 << 31), case)
    with pytest.raises(UsageError, match="Only a cohort"):
        read_task(nnunet(tmp_path / "a", 1), kind="lesions")


def test_a_cohort_is_read_with_twins_in_one_split(tmp_path: Path) -> None:
    options = CohortOptions(spacing_mm=8.0, largest_shape_ijk=(48, 48, 48))
    make_cohort(tmp_path / "cohort", 4, seed=2, options=options, sheet=False)
    task = read_task(tmp_path / "cohort", structures=["liver", "kidney_left", "kidney_right"])
    assert task.names == ["kidney_right", "kidney_left", "liver"] and len(task.cases) == 4
    assert all(case.split in ("train", "val", "test") for case in task.cases)
    groups = {case.group: case.split for case in task.cases}
    assert all(groups[case.group] == case.split for case in task.cases)
    good, bad = prepare(task, tmp_path / "store", DataSettings(spacing_mm=(8.0, 8.0, 8.0), patch_voxels=(32, 32, 32)))
    assert len(good) == 4 and not bad and all(case.labels_xyz.max() <= 3 for case in good)
