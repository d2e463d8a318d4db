"""Heat-maps, callipers, windows and the crosshair in a real scene: every place compared in millimetres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

COARSE = np.array([[-3.9, -0.8, 0.0, 40.0], [-0.8, 3.9, 0.0, -30.0], [0.0, 0.0, 4.0, 20.0], [0.0, 0.0, 0.0, 1.0]])
"""A left-handed oblique grid of about 4 mm, unlike the scan's."""


def write_heat(path: Path) -> tuple[Path, np.ndarray]:
    """A heat-map with its peak at voxel (i 3, j 4, k 2); returns the peak in RAS mm."""
    from VelvetMedLib.ct import write_nifti

    heat = np.zeros((6, 8, 7), np.float32)
    heat[2, 4, 3], heat[2, 4, 4] = 0.9, 0.5
    write_nifti(path, heat, COARSE)
    return path, (COARSE @ np.array([3.0, 4.0, 2.0, 1.0]))[:3]


def peak_ras(node: Any) -> np.ndarray:
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    array = slicer.util.arrayFromVolume(node)
    k, j, i = np.unravel_index(array.argmax(), array.shape)
    return (slicer.util.arrayFromVTKMatrix(matrix) @ np.array([i, j, k, 1.0]))[:3]


def composite() -> Any:
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")


def test_a_heat_map_of_another_grid_has_its_peak_where_the_worker_said(scene: Any, tmp_path: Path) -> None:
    from VelvetMedCore.overlays import add_heatmap, find_heatmap

    path, expected = write_heat(tmp_path / "heat.nii.gz")
    node = add_heatmap(path, case_id="c1", finding="lung_nodule", title="lung nodule")
    assert np.allclose(peak_ras(node), expected, atol=1e-3)
    assert find_heatmap("c1", "lung_nodule") is node and find_heatmap("c2", "lung_nodule") is None
    assert "Research use only" in node.GetDescription() and node.GetDisplayNode().GetApplyThreshold()


def test_a_heat_map_survives_saving_and_reloading_with_its_place(scene: Any, host: Any, tmp_path: Path) -> None:
    import slicer

    from VelvetMedCore.overlays import add_heatmap, find_heatmap

    path, expected = write_heat(tmp_path / "heat.nii.gz")
    add_heatmap(path, case_id="c1", finding="lung_nodule", title="lung nodule")
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    again = find_heatmap("c1", "lung_nodule")
    assert again is not None and np.allclose(peak_ras(again), expected, atol=1e-3)


def test_a_heat_map_lies_over_every_slice_view_and_goes_without_a_trace(scene: Any, ct: Any, tmp_path: Path) -> None:
    from VelvetMedCore.overlays import OPACITY, add_heatmap, show_over

    views = [composite(), composite()]
    for view in views:
        view.SetBackgroundVolumeID(ct.GetID())
    path, _ = write_heat(tmp_path / "heat.nii.gz")
    node = add_heatmap(path, case_id="c1", finding="lung_nodule", title="lung nodule")
    show_over(node)
    assert all((view.GetForegroundVolumeID(), view.GetForegroundOpacity()) == (node.GetID(), OPACITY) for view in views)
    assert all(view.GetBackgroundVolumeID() == ct.GetID() for view in views)
    show_over(None)
    assert all(view.GetForegroundVolumeID() is None for view in views)


def test_a_foreground_of_the_users_own_is_left_alone(scene: Any, ct: Any) -> None:
    from VelvetMedCore.overlays import show_over

    view = composite()
    view.SetForegroundVolumeID(ct.GetID())
    show_over(None)
    assert view.GetForegroundVolumeID() == ct.GetID()


def test_a_heat_map_that_cannot_be_read_is_said_in_four_parts_and_adds_nothing(scene: Any, tmp_path: Path) -> None:
    from VelvetMedCore.overlays import add_heatmap
    from VelvetMedLib.errors import CaseError

    before = scene.GetNumberOfNodes()
    (tmp_path / "cut.nii.gz").write_bytes(b"no image")
    with pytest.raises(CaseError) as caught:
        add_heatmap(tmp_path / "cut.nii.gz", case_id="c", finding="f", title="t")
    assert caught.value.next_step and scene.GetNumberOfNodes() == before


def test_callipers_of_a_segment_are_those_of_its_voxels_and_lie_in_it(
    logic: Any, ct: Any, make_case: Callable[..., Path], labels: Any
) -> None:
    import slicer
    import vtk

    from VelvetMedCore.callipers import callipers
    from VelvetMedCore.overlays import add_axes, lesion_callipers
    from VelvetMedCore.results import insert_case
    from VelvetMedLib.case import read_case

    folder = make_case()
    case = read_case(folder)
    nodes = insert_case(case, folder, ct)
    nodule = next(s for s in case.segments if s.name == "lung_nodule")
    found = lesion_callipers(nodes.segmentation, "lung_nodule", nodule.center_ras_mm)
    expected = callipers(labels == 101, np.array(case.input.ijk_to_ras))
    assert found is not None and expected is not None
    assert (found.long_mm, found.short_mm) == (pytest.approx(expected.long_mm, abs=1e-3), pytest.approx(expected.short_mm, abs=1e-3))
    middle = np.mean(found.long_ras_mm, axis=0)
    assert np.linalg.norm(middle - np.array(nodule.center_ras_mm)) < 3
    long, short = add_axes(found, case_id=case.id, finding="lung_nodule")
    ends = [long.GetNthControlPointPositionWorld(n) for n in range(2)]
    assert np.allclose(ends, found.long_ras_mm, atol=1e-6) and long.GetName() == "long axis"
    assert long.GetLineLengthWorld() == pytest.approx(found.long_mm)
    add_axes(found, case_id=case.id, finding="lung_nodule")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsLineNode") == 2 and short.GetScene() is None
    assert lesion_callipers(nodes.segmentation, "no such segment", nodule.center_ras_mm) is None
    move = vtk.vtkTransform()
    move.Translate(100, 0, 0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(move.GetMatrix())
    nodes.segmentation.SetAndObserveTransformNodeID(transform.GetID())
    moved = lesion_callipers(nodes.segmentation, "lung_nodule", tuple(np.array(nodule.center_ras_mm) + (100, 0, 0)))
    assert moved is not None and np.allclose(np.subtract(moved.long_ras_mm, found.long_ras_mm), (100, 0, 0), atol=1e-6)


def test_the_segment_under_a_point_is_named(logic: Any, ct: Any, make_case: Callable[..., Path]) -> None:
    from VelvetMedCore.navigation import segment_at
    from VelvetMedCore.results import insert_case
    from VelvetMedLib.case import read_case

    folder = make_case()
    case = read_case(folder)
    node = insert_case(case, folder, ct).segmentation
    for segment in case.segments:
        assert segment_at(node, segment.center_ras_mm) == segment.name
    assert segment_at(node, (900.0, 0.0, 0.0)) is None and segment_at(None, (0.0, 0.0, 0.0)) is None


def test_the_crosshair_tells_where_the_reader_is(scene: Any) -> None:
    from VelvetMedCore.navigation import crosshair_point, jump_to

    jump_to((12.5, -7.0, 33.0))
    assert crosshair_point() == (12.5, -7.0, 33.0)


def test_each_finding_has_the_window_in_which_it_is_read() -> None:
    from VelvetMedCore.windows import WINDOWS, fitting_window
    from VelvetMedLib.reports import ontology

    expected = {"lung_nodule": "lung", "pneumothorax": "lung", "pleural_effusion": "soft_tissue", "vertebral_compression": "bone"}
    assert {name: fitting_window(name) for name in expected} == expected
    assert all(fitting_window(finding.name) in WINDOWS for finding in ontology().findings) and fitting_window("?") == "soft_tissue"


def test_a_window_changes_the_display_and_not_the_voxels(ct: Any) -> None:
    import slicer

    from VelvetMedCore.windows import set_window

    before = slicer.util.arrayFromVolume(ct).copy()
    set_window(ct, "lung")
    display = ct.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (1500.0, -600.0, 0)
    set_window(ct, "no such window")
    set_window(None, "lung")
    assert display.GetWindow() == 1500.0 and np.array_equal(slicer.util.arrayFromVolume(ct), before)


def test_every_phrase_that_is_grounded_is_understood_as_its_own_finding() -> None:
    """The heat-map is asked for by the finding's display name: the library must read it as that finding, not as another."""
    from VelvetMedLib.reports import ontology
    from VelvetMedLib.reports.parse import find_findings

    for finding in ontology().findings:
        if finding.lesion is not None:
            assert next(iter(find_findings(finding.display)), None) == finding.name
