"""Labels on the scan's own grid equal the slow way, in every orientation, and segments measure what the map holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.ct import Grid
from VelvetMedLib.ct.resample import resample_array
from VelvetMedLib.tasks import segmentation
from VelvetMedLib.tasks.class_maps import ClassMaps
from VelvetMedLib.tasks.segmentation import organ_labels, overlay_lesions, segments_of


def soft(fine: Any, seed: int = 0) -> tuple[Any, np.ndarray]:
    """The fine part with smooth, uncertain probabilities around its labels, and these for all classes, [33, X, Y, Z]."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((33, *fine.organs_xyz.shape), np.float32)
    for label in range(33):
        maps[label] = (fine.organs_xyz == label) * 3.0
    maps += rng.normal(0, 0.6, maps.shape)
    for axis in (1, 2, 3):
        maps = (maps + np.roll(maps, 1, axis) + np.roll(maps, -1, axis)) / 3
    odds = np.exp(maps * 2)
    quantised = (odds / odds.sum(0) * 255 + 0.5).astype(np.uint8)
    maps = ClassMaps.of(quantised)
    return replace(fine, organ_maps=maps, organs_xyz=maps.labels_xyz()), quantised


def slow_labels(quantised: np.ndarray, fine_grid: Grid, grid: Grid) -> np.ndarray:
    """All classes at once, then the largest."""
    return np.argmax([resample_array(part.transpose(2, 1, 0), fine_grid, grid, outside=0.0, antialias=False) for part in quantised], 0)


def turned_grid(degrees: float, left_handed: bool, spacing: tuple[float, float, float] = (3.1, 2.3, 5.0)) -> Grid:
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(angle), -np.sin(angle), 0.1 * np.sin(angle)], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    affine[:3, :3] = np.linalg.qr(affine[:3, :3])[0]
    affine[:3, :3] *= np.sign(np.diag(affine[:3, :3]))
    affine[:3, :3] = affine[:3, :3] * np.array(spacing)
    shape = (50, 74, 66)
    if left_handed:
        affine[:3, 2] *= -1
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape[::-1]) - 1) / 2 + [0, 0, 0]
    return Grid(shape, affine)


@pytest.mark.parametrize("grid", [turned_grid(0, False), turned_grid(0, True), turned_grid(17, False), turned_grid(-30, True)])
def test_the_running_maximum_equals_all_classes_at_once(make_fine: Any, grid: Grid, monkeypatch: pytest.MonkeyPatch):
    fine, quantised = soft(make_fine())
    monkeypatch.setattr(segmentation, "SLAB_VOXELS", 30_000)
    quick, slow = organ_labels(fine, grid), slow_labels(quantised, fine.grid, grid)
    inside = slow > 0
    assert inside.sum() > 5000
    assert (quick == slow).mean() >= 0.999
    assert (quick[inside] == slow[inside]).mean() >= 0.998


def test_slabs_change_nothing(make_fine: Any, monkeypatch: pytest.MonkeyPatch):
    fine, grid = soft(make_fine(), 1)[0], turned_grid(10, False)
    whole = organ_labels(fine, grid)
    monkeypatch.setattr(segmentation, "SLAB_VOXELS", 40_000)
    assert np.array_equal(organ_labels(fine, grid), whole)


def test_the_same_organ_lies_at_the_same_millimetres_on_every_grid(make_fine: Any):
    fine = make_fine()
    seen = []
    for grid in (turned_grid(0, False), turned_grid(0, True), turned_grid(25, False)):
        labels = organ_labels(fine, grid)
        seen.append({s.name: s for s in segments_of(labels, np.full(grid.shape_kji, 40, np.int16), grid)})
    for name in ("liver", "heart", "aorta", "lung_upper_lobe_left"):
        for other in seen[1:]:
            assert other[name].volume_ml == pytest.approx(seen[0][name].volume_ml, rel=0.06)
            assert np.linalg.norm(np.subtract(other[name].center_ras_mm, seen[0][name].center_ras_mm)) < 3.0
    assert seen[0]["liver"].volume_ml == pytest.approx(24 * 24 * 22 * 0.064, rel=0.06)


def test_lesions_lie_over_organs_and_only_where_asked(make_fine: Any):
    fine = make_fine({"liver_lesion": [((36, 42), (20, 26), (12, 18))], "renal_cyst": [((38, 40), (6, 8), (8, 10))]})
    labels = organ_labels(fine, fine.grid)
    overlay_lesions(labels, fine, fine.grid, {11}, [0.5] * 17)
    assert (labels == 112).sum() == 216 and not (labels == 113).any()
    assert (labels[12:18, 20:26, 36:42] == 112).all()


def test_of_two_lesions_at_one_place_the_surer_one_is_shown(make_fine: Any):
    fine = make_fine({"consolidation": [((40, 46), (18, 24), (34, 40))], "atelectasis": [((40, 46), (18, 24), (34, 40))]})
    fine.lesions_cxyz[1][fine.lesions_cxyz[1] > 0] = 200
    labels = organ_labels(fine, fine.grid)
    overlay_lesions(labels, fine, fine.grid, {1, 4}, [0.5] * 17)
    assert (labels[36:38, 20:22, 42:44] == 105).all()


def test_segments_measure_the_map_they_describe(make_fine: Any):
    fine = make_fine()
    labels = organ_labels(fine, fine.grid)
    hu = np.ascontiguousarray(fine.hu_kji)
    for segment in segments_of(labels, hu, fine.grid):
        mask = labels == segment.label
        assert segment.volume_ml == pytest.approx(mask.sum() * 0.064)
        assert segment.mean_hu == pytest.approx(hu[mask].mean())
        assert segment.truncated == (segment.name in ("vertebrae", "spinal_cord"))
        where = np.argwhere(mask)[:, ::-1] * 4.0 + fine.grid.ijk_to_ras[:3, 3]
        assert np.allclose(segment.center_ras_mm, where.mean(0))
        assert np.allclose(segment.box_ras_mm[0], where.min(0) - 2) and np.allclose(segment.box_ras_mm[1], where.max(0) + 2)
        assert segment.code.meaning and len(segment.color) == 3


def test_a_scan_without_any_organ_gives_an_empty_map(make_fine: Any):
    fine = make_fine()
    fine.organs_xyz[:] = 0
    labels = organ_labels(fine, fine.grid)
    assert not labels.any() and segments_of(labels, np.ascontiguousarray(fine.hu_kji), fine.grid) == ()


def test_an_organ_includes_the_lesions_in_it(make_fine: Any):
    fine = make_fine({"liver_lesion": [((36, 42), (20, 26), (12, 18))], "pleural_effusion": [((0, 4), (0, 4), (0, 4))]})
    fine.hu_xyz[36:42, 20:26, 12:18] = 10
    organs = organ_labels(fine, fine.grid)
    shown = overlay_lesions(organs.copy(), fine, fine.grid, {5, 11}, [0.5] * 17)
    hu = np.ascontiguousarray(fine.hu_kji)
    segments = {s.name: s for s in segments_of(shown, hu, fine.grid, organs_kji=organs)}
    liver, alone = segments["liver"], {s.name: s for s in segments_of(organs, hu, fine.grid)}["liver"]
    assert liver == alone and liver.volume_ml == pytest.approx(24 * 24 * 22 * 0.064)
    assert liver.mean_hu == pytest.approx(hu[organs == 4].mean()) and liver.mean_hu < 110
    assert (shown == 4).sum() == 24 * 24 * 22 - 216
    assert segments["liver_lesion"].volume_ml == pytest.approx(216 * 0.064) and segments["liver_lesion"].mean_hu == 10
    assert segments["pleural_effusion"].volume_ml == pytest.approx(64 * 0.064), "what lies outside every organ is measured too"


def test_an_organ_that_a_lesion_covers_wholly_keeps_its_measurements(make_fine: Any):
    fine = make_fine({"renal_cyst": [((36, 42), (4, 12), (4, 20))]})
    organs = organ_labels(fine, fine.grid)
    shown = overlay_lesions(organs.copy(), fine, fine.grid, {12}, [0.5] * 17)
    kidney = {s.name: s for s in segments_of(shown, np.ascontiguousarray(fine.hu_kji), fine.grid, organs_kji=organs)}["kidney_right"]
    assert not (shown == kidney.label).any() and kidney.volume_ml == pytest.approx(6 * 8 * 16 * 0.064)
