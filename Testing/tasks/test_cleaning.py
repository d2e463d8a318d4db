"""Cleaning: each rule does what it says and no more, in the patient's millimetres on every grid, and can be switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib import tasks
from VelvetMedLib.case import measure
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.class_maps import ClassMaps
from VelvetMedLib.tasks.cleaning import HOMES, MOST_TURNS, RULES, SIDED, SOLID, clean
from VelvetMedLib.tasks.segmentation import organ_labels
from VelvetMedLib.tasks.verification import DOUBTED

HALF = (0.5,) * 17
LEFT, RIGHT = ontology().structure("kidney_left").label, ontology().structure("kidney_right").label
LIVER, RIBS = ontology().structure("liver").label, ontology().structure("ribs").label


def painted(fine: Any, *boxes: tuple[int, tuple[slice, ...]], second: int = 0) -> np.ndarray:
    """Probabilities [33, X, Y, Z] of the made-up body with more boxes of labels; `second` is next most probable everywhere."""
    labels = fine.organs_xyz.copy()
    for label, box in boxes:
        labels[box] = label
    maps = np.zeros((33, *labels.shape), np.uint8)
    maps[second] = 40
    np.put_along_axis(maps, labels[None].astype(np.int64), 200, 0)
    return maps


def cleaned(fine: Any, maps: np.ndarray) -> tuple[np.ndarray, dict[str, float], ClassMaps]:
    kept = ClassMaps.of(maps)
    labels, changed = clean(kept, fine.lesions_cxyz, fine.grid, HALF)
    assert np.array_equal(labels, kept.labels_xyz()), "the probabilities say what the labels say"
    return labels, changed, kept


def cube(x: int, y: int, z: int, n: int = 2) -> tuple[slice, ...]:
    return tuple(slice(c, c + n) for c in (x, y, z))


def test_a_body_in_order_is_left_as_it_is(make_fine: Any):
    fine = make_fine({"lung_nodule": [((40, 44), (20, 23), (54, 56))], "pleural_effusion": [((6, 24), (8, 12), (28, 40))]})
    before = fine.lesions_cxyz.copy()
    labels, changed, _ = cleaned(fine, painted(fine))
    assert np.array_equal(labels, fine.organs_xyz) and np.array_equal(fine.lesions_cxyz, before)
    assert changed == dict.fromkeys(RULES, 0.0)


@pytest.mark.parametrize(
    ("label", "size", "kept"),
    [(LIVER, 3, False), (RIBS, 1, False), (RIBS, 3, True)],
    ids=["of one piece in everybody", "under 0.3 ml", "of many pieces"],
)
def test_islands_go_to_the_next_most_probable_structure(make_fine: Any, label: int, size: int, kept: bool):
    fine = make_fine()
    island, mainland = cube(2, 2, 60, size), (slice(2, 20), slice(44, 48), slice(30, 36))
    maps = painted(fine, (RIBS, mainland), (label, island), second=17)
    labels, changed, _ = cleaned(fine, maps)
    assert (labels[island] == (label if kept else 17)).all() and (labels[mainland] == RIBS).all()
    assert changed["islands"] == pytest.approx(0.0 if kept else size**3 * 0.064, abs=1e-3)


def test_what_takes_an_island_over_is_no_island_either(make_fine: Any):
    """An island of the liver that would be the spleen's next, the stomach's then, and is nothing at last."""
    fine = make_fine()
    spleen, stomach = (ontology().structure(name).label for name in ("spleen", "stomach"))
    island = cube(6, 40, 58, 4)
    maps = painted(fine, (LIVER, island))
    maps[spleen][island], maps[stomach][island], maps[0][island] = 120, 90, 40
    labels, changed, _ = cleaned(fine, maps)
    assert (labels[island] == 0).all() and changed["islands"] == pytest.approx(4**3 * 0.064, abs=1e-3)


def test_an_island_that_is_nobodys_after_some_turns_becomes_background(make_fine: Any):
    fine = make_fine()
    island = cube(6, 40, 58, 4)
    maps = painted(fine, (LIVER, island))
    takers = [ontology().structure(name).label for name in SOLID if name != "liver"]
    assert len(takers) > MOST_TURNS
    for rank, label in enumerate(takers):
        maps[label][island] = 120 - rank
    labels, changed, kept = cleaned(fine, maps)
    assert (labels[island] == 0).all() and np.array_equal(kept.labels_xyz(), labels)
    assert changed["islands"] == pytest.approx(4**3 * 0.064, abs=1e-3)


def test_every_part_large_enough_stays_however_many_there_are(make_fine: Any):
    fine = make_fine()
    cubes = [cube(x, y, z, 2) for x in range(0, 58, 4) for y in (44, 47) for z in range(58, 68, 4)]
    labels, changed, _ = cleaned(fine, painted(fine, *((RIBS, box) for box in cubes)))
    assert len(cubes) > 64 and changed["islands"] == 0 and all((labels[box] == RIBS).all() for box in cubes)


def test_a_hole_is_filled_and_a_bay_or_another_structure_is_not(make_fine: Any):
    fine = make_fine()
    hole, bay, vessel = cube(40, 20, 12, 3), (slice(30, 36), slice(20, 24), slice(12, 16)), cube(46, 30, 20)
    labels, changed, _ = cleaned(fine, painted(fine, (0, hole), (0, bay), (24, vessel)))
    assert (labels[hole] == LIVER).all() and (labels[bay] == 0).all() and (labels[vessel] == 24).all()
    assert changed["holes"] == pytest.approx(27 * 0.064, abs=1e-3) and changed["islands"] == 0


def test_a_left_kidney_on_the_right_is_not_one_even_where_it_is_the_larger_part(make_fine: Any):
    fine = make_fine()
    right = (slice(36, 42), slice(4, 12), slice(4, 20))
    maps = painted(fine, (LEFT, right))
    maps[RIGHT][right] = 90
    labels, changed, _ = cleaned(fine, maps)
    assert (labels[right] == RIGHT).all() and (labels == LEFT).sum() == 6 * 7 * 16
    assert changed["sides"] == pytest.approx(6 * 8 * 16 * 0.064) and changed["islands"] == 0


def test_without_a_spine_in_view_no_side_is_wrong(make_fine: Any):
    fine = make_fine(without=("vertebrae", "spinal_cord"))
    right = (slice(36, 42), slice(4, 12), slice(4, 20))
    assert cleaned(fine, painted(fine, (LEFT, right), (0, (slice(16, 22), slice(4, 11), slice(4, 20)))))[1]["sides"] == 0


def test_a_lesion_far_from_its_organ_is_dropped_and_one_at_its_border_stays(make_fine: Any):
    at_liver, in_lung = ((54, 57), (20, 24), (12, 16)), ((10, 14), (20, 24), (54, 58))
    beside_ribs = ((2, 4), (40, 44), (60, 64))
    fine = make_fine({"liver_lesion": [at_liver, in_lung], "pleural_effusion": [beside_ribs], "renal_cyst": [in_lung]})
    _, changed, _ = cleaned(fine, painted(fine, (RIBS, (slice(2, 4), slice(45, 47), slice(58, 66)))))
    left = {lesion.name: int((fine.lesions_cxyz[lesion.channel] > 0).sum()) for lesion in ontology().lesions}
    assert left["liver_lesion"] == 3 * 4 * 4 and left["pleural_effusion"] == 2 * 4 * 4 and left["renal_cyst"] == 0
    assert changed["strays"] == pytest.approx(2 * 4**3 * 0.064, abs=1e-3)


def grids() -> dict[str, Grid]:
    flipped = np.diag([-2.0, 3.0, -2.5, 1.0])
    flipped[:3, 3] = [118.0, -100.0, 138.0]
    angle = np.deg2rad(25)
    oblique = np.eye(4)
    oblique[:3, :3] = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * 3.0
    oblique[:3, 3] = -oblique[:3, :3] @ (np.array([110, 110, 94]) - 1) / 2
    return {"flipped": Grid((111, 66, 119), flipped), "oblique": Grid((94, 110, 110), oblique)}


@pytest.mark.parametrize("grid", grids().values(), ids=grids().keys())
def test_what_was_cleaned_is_gone_at_its_millimetres_on_the_scans_own_grid(make_fine: Any, grid: Grid):
    """One stray of each organ rule: a liver's island, a hole in the liver, a left kidney on the right."""
    fine = make_fine()
    right, hole, island = (slice(36, 42), slice(4, 12), slice(4, 20)), cube(40, 20, 12, 4), cube(6, 40, 58, 4)
    maps = painted(fine, (LEFT, right), (0, hole), (LIVER, island), second=0)
    maps[RIGHT][right] = 90
    raw = ClassMaps.of(maps)
    found = organ_labels(replace(fine, organ_maps=raw, organs_xyz=raw.labels_xyz()), grid)
    labels, _, kept = cleaned(fine, maps)
    tidy = organ_labels(replace(fine, organ_maps=kept, organs_xyz=labels), grid)

    def label_at(map_kji: np.ndarray, box: tuple[slice, ...]) -> int:
        centre = np.array([(s.start + s.stop - 1) / 2 for s in box])
        ras = fine.grid.ijk_to_ras[:3, :3] @ centre + fine.grid.ijk_to_ras[:3, 3]
        i, j, k = np.rint((grid.ras_to_ijk @ np.append(ras, 1.0))[:3]).astype(int)
        return int(map_kji[k, j, i])

    assert [label_at(found, box) for box in (right, hole, island)] == [LEFT, 0, LIVER]
    assert [label_at(tidy, box) for box in (right, hole, island)] == [RIGHT, LIVER, 0]
    assert measure.centroid_ras(tidy == LEFT, grid)[0] < 0 < measure.centroid_ras(tidy == RIGHT, grid)[0]
    assert measure.volume_ml(tidy == LIVER, grid) == pytest.approx(24 * 24 * 22 * 0.064, rel=0.06)


def test_the_switch_leaves_the_networks_own_map_and_the_case_says_which_it_holds(body: Any, random_bundle: Any):
    tasks.forget_encodings()
    done = {on: tasks.run_analysis(body, random_bundle, parts=("segments",), cleaning=on) for on in (True, False)}
    raw = done[False].encoding.need_fine()
    assert np.array_equal(raw.organs_xyz, raw.organ_maps.labels_xyz()) and done[False].case.run["cleaned_ml"] is None
    changed = done[True].case.run["cleaned_ml"]
    assert set(changed) == {*RULES, DOUBTED} and changed["islands"] > 1, "a random network scatters its labels"
    assert not np.array_equal(done[True].segmentation_kji, done[False].segmentation_kji)
    assert tasks.encode(body, random_bundle) is done[True].encoding, "each is remembered apart"
    tasks.forget_encodings()


def test_every_rule_names_what_the_ontology_knows():
    table = ontology()
    assert {lesion.name for lesion in table.lesions} == set(HOMES)
    for name in (*SOLID, *SIDED, *(n for homes in HOMES.values() for n in homes)):
        assert table.structure(name).name == name
    assert all(table.structure(name).side in ("left", "right") for name in SIDED)
