"""A finished Case becomes nodes of the real scene, in the right place, and survives saving and reloading."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

OBLIQUE = np.array([[-0.7518, -0.3078, 0, 11], [-0.2736, 0.8457, 0, -22], [0, 0, 2.5, 33], [0, 0, 0, 1.0]])


def insert(folder: Path, volume: Any = None) -> Any:
    from VelvetMedCore.results import insert_case
    from VelvetMedLib.case import read_case

    return insert_case(read_case(folder), folder, volume)


def centre_of_segment(node: Any, segment_id: str) -> np.ndarray:
    return np.array(node.GetSegmentCenterRAS(segment_id))


def test_segments_have_ids_names_colours_and_codes_of_ours_in_one_layer(ct: Any, make_case: Callable[..., Path]) -> None:
    import vtk

    from VelvetMedLib.reports import ontology

    segmentation = insert(make_case(), ct).segmentation.GetSegmentation()
    assert list(segmentation.GetSegmentIDs()) == ["spleen", "liver", "lung_nodule"] and segmentation.GetNumberOfLayers() == 1
    for structure in (ontology().structure("spleen"), ontology().structure("liver")):
        segment = segmentation.GetSegment(structure.name)
        assert segment.GetName() == structure.display
        assert np.allclose(segment.GetColor(), np.array(structure.color) / 255, atol=1e-6)
        assert f"~SCT^{structure.code.value}^{structure.code.meaning}~" in segment.GetTerminology()
    label = vtk.reference("")
    assert segmentation.GetSegment("lung_nodule").GetTag("VelvetMed.Label", label) and str(label) == "101"


def test_every_voxel_of_every_segment_is_where_the_case_says(ct: Any, make_case: Callable[..., Path], labels: np.ndarray) -> None:
    import slicer

    node = insert(make_case(), ct).segmentation
    for label, name in ((4, "liver"), (1, "spleen"), (101, "lung_nodule")):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, name, ct)
        assert np.array_equal(mask > 0, labels == label), name


def test_a_left_handed_oblique_grid_keeps_its_millimetres(scene: Any, make_case: Callable[..., Path], labels: np.ndarray) -> None:
    node = insert(make_case()).segmentation
    indices = np.argwhere(labels == 101)[:, ::-1]
    expected = (indices @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]).mean(0)
    assert np.allclose(centre_of_segment(node, "lung_nodule"), expected, atol=1.3)


def test_the_segments_of_a_transformed_volume_lie_in_the_world_and_not_under_its_transform(ct: Any, make_case: Callable[..., Path]) -> None:
    import slicer

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    assert insert(make_case(), ct).segmentation.GetParentTransformNode() is None


def test_a_case_without_any_segment_still_gives_its_nodes(ct: Any, make_case: Callable[..., Path], labels: np.ndarray) -> None:
    nodes = insert(make_case(labels=np.zeros_like(labels), segments=()), ct)
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 0 and nodes.findings is not None


def test_the_findings_table_has_one_row_a_finding_with_place_and_size(ct: Any, make_case: Callable[..., Path]) -> None:
    from VelvetMedCore.results import FINDING_COLUMNS

    table = insert(make_case(), ct).findings
    titles = [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())]
    assert titles == list(FINDING_COLUMNS) and table.GetNumberOfRows() == 21
    row = [table.GetCellText(0, n) for n in range(6)]
    assert row == ["lung nodule", "present", "0.91", "left", "lung upper lobe left", "7"]
    assert "Research use only" in table.GetDescription()


def test_the_report_node_begins_with_the_disclaimer(ct: Any, make_case: Callable[..., Path]) -> None:
    from VelvetMedLib import DRAFT_DISCLAIMER

    text = insert(make_case(), ct).report.GetText()
    assert DRAFT_DISCLAIMER in "\n".join(text.splitlines()[:4])
    assert text.index(DRAFT_DISCLAIMER) < text.index("A nodule of 7 mm")


def test_the_volumes_name_is_written_to_no_other_node(ct: Any, make_case: Callable[..., Path]) -> None:
    import slicer

    insert(make_case(), ct)
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    names = [node.GetName() or "" for node in nodes if node.GetID() != ct.GetID()]
    ours = [name for name in names if "VelvetMed" in name]
    assert len(ours) >= 4 and not any("DOE" in name for name in ours)


def test_when_one_node_cannot_be_made_none_is_left(ct: Any, make_case: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    from VelvetMedCore import results

    folder = make_case()
    before = slicer.mrmlScene.GetNumberOfNodes()
    monkeypatch.setattr(results, "report_markdown", lambda case: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        insert(folder, ct)
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_everything_survives_saving_and_reloading_the_scene(
    host: Any, logic: Any, ct: Any, make_case: Callable[..., Path], labels: np.ndarray, tmp_path: Path
) -> None:
    import slicer

    from VelvetMedCore.logic import Update, _Job

    logic._finished = _Job(request_id=1, verb="analyze", volume_id=ct.GetID())
    logic.insert_result(Update(kind="result", folder=make_case()))
    before = logic.case()
    report = logic.nodes().report.GetText()
    codes = [logic.nodes().segmentation.GetSegmentation().GetSegment(s.name).GetTerminology() for s in before.segments]
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    assert logic.case() is None
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    nodes = logic.nodes()
    assert logic.case() == before
    assert nodes.report.GetText() == report and nodes.findings.GetNumberOfRows() == 21
    segmentation = nodes.segmentation.GetSegmentation()
    assert [segmentation.GetSegment(s.name).GetTerminology() for s in before.segments] == codes
    for label, name in ((4, "liver"), (1, "spleen"), (101, "lung_nodule")):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, name, slicer.util.getNode("DOE^JOHN 1950"))
        # The left-handed volume comes back with its K axis turned round; in millimetres nothing has moved.
        assert np.array_equal(mask[::-1] > 0, labels == label), name


def test_an_analysis_of_another_version_is_refused_in_words_and_its_nodes_stay(logic: Any, ct: Any, make_case: Callable[..., Path]) -> None:
    from VelvetMedCore.logic import Update, _Job
    from VelvetMedLib.errors import CaseError

    logic._finished = _Job(request_id=1, verb="analyze", volume_id=ct.GetID())
    nodes = logic.insert_result(Update(kind="result", folder=make_case()))
    nodes.case.SetText(re.sub(r'"schema_version":\d+', '"schema_version":99', nodes.case.GetText()))
    with pytest.raises(CaseError):
        logic.case()
    nodes.case.SetText("not JSON at all")
    with pytest.raises(CaseError):
        logic.case()
    assert logic.nodes().report is not None


def test_a_large_result_is_in_the_scene_within_a_second(scene: Any, make_case: Callable[..., Path]) -> None:
    labels_kji = np.zeros((133, 512, 512), np.uint8)
    for label in range(1, 25):
        labels_kji[5 * label : 5 * label + 5, 150:350, 160:300] = label
    folder = make_case(labels=labels_kji)
    start = time.process_time()  # of this process alone: the other tests' share of the machine does not count
    nodes = insert(folder)
    took_s = time.process_time() - start
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 24
    print(f"{took_s:.2f} s of CPU")
    assert took_s < 1.5, f"{took_s:.2f} s"  # the aim is 1 s on an ordinary machine
