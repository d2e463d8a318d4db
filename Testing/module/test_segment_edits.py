"""Segments that a person edits: which ones they were, what they measure now, on real segmentation nodes of slicer-core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

OBLIQUE = np.array([[-0.7518, -0.3078, 0, 11], [-0.2736, 0.8457, 0, -22], [0, 0, 2.5, 33], [0, 0, 0, 1.0]])
SHAPE = (20, 30, 25)


@pytest.fixture
def inserted(ct: Any, make_case: Callable[..., Path]) -> tuple[Any, Any]:
    """(case, segmentation node) of the small finished Case in the scene."""
    from VelvetMedCore.results import insert_case
    from VelvetMedLib.case import read_case

    folder = make_case()
    case = read_case(folder)
    return case, insert_case(case, folder, ct).segmentation


def paint(node: Any, segment_id: str, change: Callable[[np.ndarray], None]) -> None:
    """What the Segment Editor does at the end of a stroke: the shared label map is written and one event is sent."""
    from vtk.util import numpy_support

    image = node.GetBinaryLabelmapInternalRepresentation(segment_id)
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    change(values)
    image.GetPointData().GetScalars().Modified()
    image.Modified()
    node.GetSegmentation().InvokeEvent(node.GetSegmentation().SourceRepresentationModified)


def value_of(node: Any, segment_id: str) -> int:
    return int(node.GetSegmentation().GetSegment(segment_id).GetLabelValue())


def watched(node: Any) -> tuple[Any, list[frozenset[str]]]:
    from VelvetMedCore.segment_watch import SegmentWatch

    told: list[frozenset[str]] = []
    return SegmentWatch(node, told.append), told


def test_a_stroke_on_the_shared_label_map_names_the_segments_it_touched_and_no_other(inserted: Any) -> None:
    _, node = inserted
    watch, told = watched(node)
    spleen = value_of(node, "spleen")

    def stroke(values: np.ndarray) -> None:
        k, j, i = np.argwhere(values == spleen)[0]
        values[k, j, i] = 0

    paint(node, "spleen", stroke)
    assert told == [frozenset({"spleen"})]
    liver = value_of(node, "liver")

    def over(values: np.ndarray) -> None:
        values[tuple(np.argwhere(values == liver)[0])] = spleen

    paint(node, "spleen", over)
    assert told[1:] == [frozenset({"spleen", "liver"})]
    watch.stop()


def test_events_without_a_changed_voxel_name_nothing(inserted: Any) -> None:
    _, node = inserted
    watch, told = watched(node)
    paint(node, "liver", lambda values: None)
    node.GetSegmentation().GetSegment("liver").SetName("Leber")
    for _ in range(5):
        node.GetSegmentation().InvokeEvent(node.GetSegmentation().SourceRepresentationModified)
    assert told == []
    watch.stop()


def test_a_segment_that_slicer_moves_to_a_layer_of_its_own_is_named_alone(inserted: Any, ct: Any) -> None:
    import slicer

    _, node = inserted
    watch, told = watched(node)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "spleen", ct)
    mask[0, 0, 0] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "spleen", ct)
    assert frozenset().union(*told) == {"spleen"}
    watch.stop()


def test_added_and_removed_segments_are_named_and_nothing_after_stop(inserted: Any) -> None:
    _, node = inserted
    watch, told = watched(node)
    node.GetSegmentation().RemoveSegment("lung_nodule")
    assert told == [frozenset({"lung_nodule"})]
    node.GetSegmentation().AddEmptySegment("mine", "Mine")
    assert len(told) == 1  # no voxel yet
    watch.stop()
    paint(node, "liver", lambda values: values.fill(0))
    assert len(told) == 1


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)], ids=["as stored", "k turned", "i and j turned"])
def test_a_mask_on_the_scans_grid_equals_slicers_own_resampling(inserted: Any, labels: np.ndarray, flip: tuple[int, ...]) -> None:
    from VelvetMedCore.segment_figures import _resampled, label_map_on, mask_on

    _, node = inserted
    turn = np.diag([*flip[::-1], 1.0])
    turn[:3, 3] = [(n - 1) * (sign < 0) for n, sign in zip(SHAPE[::-1], flip[::-1], strict=True)]
    matrix = OBLIQUE @ turn
    expected = labels[:: flip[0], :: flip[1], :: flip[2]]
    for label, name in ((4, "liver"), (1, "spleen"), (101, "lung_nodule")):
        mask = mask_on(node, name, SHAPE, matrix)
        assert np.array_equal(mask, expected == label) and np.array_equal(mask, _resampled(node, name, SHAPE, matrix)), name
    numbers = {"liver": 4, "spleen": 1, "lung_nodule": 101}
    assert np.array_equal(label_map_on(node, numbers, SHAPE, matrix), expected)


def test_on_another_lattice_and_under_a_transform_slicer_resamples(inserted: Any, labels: np.ndarray) -> None:
    import slicer
    import vtk

    from VelvetMedCore.segment_figures import label_map_on, mask_on

    _, node = inserted
    half = OBLIQUE.copy()
    half[:3, :3] = OBLIQUE[:3, :3] / 2
    mask = mask_on(node, "liver", (40, 60, 50), half)
    assert mask.sum() == pytest.approx(8 * (labels == 4).sum(), rel=0.15)
    move = vtk.vtkMatrix4x4()
    move.SetElement(2, 3, 2.5)  # one slice up
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(move)
    node.SetAndObserveTransformNodeID(transform.GetID())
    moved = mask_on(node, "spleen", SHAPE, OBLIQUE)
    assert np.array_equal(moved[1:], (labels == 1)[:-1])
    assert np.array_equal(label_map_on(node, {"spleen": 1}, SHAPE, OBLIQUE) == 1, moved)


def test_a_segment_that_is_not_there_has_an_empty_mask(inserted: Any) -> None:
    from VelvetMedCore.segment_figures import mask_on

    assert not mask_on(inserted[1], "heart", SHAPE, OBLIQUE).any()


def test_fresh_figures_equal_those_of_an_analysis_of_the_same_voxels(inserted: Any, ct: Any, labels: np.ndarray) -> None:
    import slicer

    from VelvetMedCore.segment_figures import remeasured
    from VelvetMedLib.case.editing import mark_edited
    from VelvetMedLib.ct import Grid
    from VelvetMedLib.tasks.segmentation import segments_of

    case, node = inserted
    voxels = slicer.util.arrayFromVolume(ct)
    organs = labels.copy()
    value, nodule = value_of(node, "liver"), value_of(node, "lung_nodule")

    def grow(values: np.ndarray) -> None:
        values[4:12, 5:20, 3:14] = value
        values[6:8, 8:10, 5:7] = nodule  # a lesion inside the liver, shown over it

    paint(node, "liver", grow)
    organs[4:12, 5:20, 3:14] = 4
    shown = organs.copy()
    shown[labels == 101], shown[6:8, 8:10, 5:7] = 101, 101
    after, sent, edited = remeasured(mark_edited(case, ["liver", "lung_nodule"]), node, voxels, OBLIQUE)
    expected = {s.name: s for s in segments_of(shown, voxels, Grid(SHAPE, OBLIQUE), organs_kji=organs)}
    for name in ("liver", "lung_nodule"):
        fresh = next(s for s in after.segments if s.name == name)
        twin = expected[name]
        assert fresh.volume_ml == pytest.approx(twin.volume_ml) and fresh.mean_hu == pytest.approx(twin.mean_hu), name
        assert np.allclose(fresh.center_ras_mm, twin.center_ras_mm) and np.allclose(fresh.box_ras_mm, twin.box_ras_mm)
        assert fresh.edited and not fresh.stale and fresh.truncated == twin.truncated
    assert edited == (4, 101) and set(np.unique(sent)) == {0, 4, 101}
    assert next(s for s in after.segments if s.name == "spleen") == next(s for s in case.segments if s.name == "spleen")


def test_a_segment_of_a_persons_own_gets_figures_and_one_without_voxels_leaves(inserted: Any, ct: Any) -> None:
    import slicer

    from VelvetMedCore.segment_figures import remeasured, unmeasured
    from VelvetMedLib.case.editing import mark_edited

    case, node = inserted
    segmentation = node.GetSegmentation()
    segmentation.AddEmptySegment("mine", "Port")
    assert unmeasured(case, node) == ()
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "mine", ct)
    segmentation.RemoveSegment("spleen")
    assert unmeasured(case, node) == ("mine",)
    after, _, edited = remeasured(mark_edited(case, ["spleen"]), node, slicer.util.arrayFromVolume(ct), OBLIQUE)
    names = {s.name: s for s in after.segments}
    assert "spleen" not in names and names["mine"].display == "Port" and names["mine"].label == 200 and names["mine"].code.value == ""
    assert names["mine"].volume_ml == pytest.approx(8 * abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000) and edited == (1, 200)


def test_the_table_node_keeps_the_figures_with_their_marks_over_saving(inserted: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    from VelvetMedCore.parameters import parameter_node
    from VelvetMedCore.segment_figures import COLUMNS, TABLE_ROLE, keep_table
    from VelvetMedLib.case.editing import mark_edited

    case, _ = inserted
    keep_table(case)
    keep_table(mark_edited(case, ["liver"]))
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    table = parameter_node().GetNodeReference(TABLE_ROLE)
    assert [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())] == list(COLUMNS)
    rows = {table.GetCellText(row, 0): [table.GetCellText(row, n) for n in range(1, 5)] for row in range(table.GetNumberOfRows())}
    assert "out of date" in rows["liver"][3] and "cut off" in rows["liver"][3] and rows["spleen"][3] == ""
    assert rows["liver"][2] == "10200004" and "Research use only" in table.GetDescription()
    first = table.GetID()
    assert keep_table(replace(case, segments=()), new=True).GetID() != first
