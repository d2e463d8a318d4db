"""Similar scans by clicks: an index built with progress and cancel, hits with the reason and a picture, one opened side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNiAAAABgADNjd8qAAAAABJRU5ErkJggg=="
FROM_REPORT = {"source": "report", "picture": PICTURE, "region": {"organ": "liver", "similarity": 0.934}}
HITS: list[dict[str, Any]] = [
    {"number": 3, "similarity": 0.81, "present": ["lung_nodule", "emphysema"], "shared": ["lung_nodule"], **FROM_REPORT},
    {"number": 1, "similarity": 0.4, "present": [], "shared": [], "source": "model", "region": None, "picture": None},
]


@pytest.fixture
def similar(finished: Any, tmp_path: Path) -> Any:
    """The panel after an analysis, an index named."""
    panel = finished.panels.similar
    panel.ui.indexPath.currentPath = str(tmp_path / "index")
    return panel


def shown(panel: Any) -> str:
    return str(panel.ui.hitsView.plainText).replace("\xa0", " ")


def test_nothing_can_be_pressed_before_an_index_is_named(widget: Any, tmp_path: Path) -> None:
    ui = widget.panels.similar.ui
    ui.indexPath.currentPath = ""
    ui.queryEdit.text = "effusion"
    assert not any(button.enabled for button in (ui.buildButton, ui.byScanButton, ui.byTextButton))
    ui.indexPath.currentPath = str(tmp_path)
    assert ui.byTextButton.enabled and not ui.byScanButton.enabled and not ui.buildButton.enabled  # no scan is open, none is named
    ui.scansPath.currentPath = str(tmp_path)
    assert ui.buildButton.enabled


def test_an_index_is_built_with_progress_and_the_skipped_are_named_by_place(
    finished: Any, similar: Any, fake_worker: Any, tmp_path: Path
) -> None:
    from VelvetMedCore.settings import Settings

    similar.ui.scansPath.currentPath = str(tmp_path / "scans")
    similar.ui.buildButton.click()
    verb, params = fake_worker.requests[-1]
    assert verb == "index" and params["folder"] == str(tmp_path / "scans") and params["keep_places"] and "keep_text" not in params
    fake_worker.say("progress", fraction=0.25, stage="scan 2 of 8", seconds_left=100.0)
    finished.poll()
    assert similar.ui.progressBar.value == 250 and similar.ui.similarMessage.text == "Scan 2 of 8 - about 2 min left"
    assert not similar.ui.byScanButton.enabled and not finished.panels.ask.ui.askButton.enabled
    fake_worker.say("result", added=2, count=6, skipped=[f"entry {n}: It cannot be read." for n in range(1, 8)])
    finished.poll()
    text = similar.ui.similarMessage.text
    assert (
        text.startswith("Added: 2.\n6 scans are in the index.")
        and "7 could not be read" in text
        and "entry 1:" in text
        and text.endswith("…")
    )
    assert Settings().index_folder == str(tmp_path / "index") and not similar.ui.progressRow.visible


def test_cancel_stops_the_building_and_says_so(finished: Any, similar: Any, fake_worker: Any, tmp_path: Path) -> None:
    from VelvetMedLib.errors import Cancelled

    similar.ui.scansPath.currentPath = str(tmp_path)
    similar.ui.buildButton.click()
    similar.ui.cancelButton.click()
    assert fake_worker.cancelled == [len(fake_worker.requests)] and "Stopping" in similar.ui.similarMessage.text
    fake_worker.say("progress", fraction=0.5, stage="scan 1 of 1")
    fake_worker.say("error", **Cancelled().as_dict())
    finished.poll()
    assert "Scans that were added are kept" in similar.ui.similarMessage.text and similar.ui.buildButton.enabled


def test_a_search_by_the_open_scan_hands_its_voxels_over_and_leaves_itself_out(finished: Any, similar: Any, fake_worker: Any) -> None:
    similar.ui.byScanButton.click()
    verb, params = fake_worker.requests[-1]
    assert verb == "similar" and "npy" in params["volume"] and params["exclude"] == finished.logic.case().input.sha256
    assert "region" not in params


def test_one_organ_of_the_analysis_is_chosen_and_compared_alone(finished: Any, similar: Any, fake_worker: Any, host: Any) -> None:
    selector = similar.ui.regionSelector
    assert [selector.itemText(n) for n in range(selector.count)] == ["Whole scan", "Liver", "Spleen"] and selector.enabled
    selector.setCurrentIndex(2)
    finished.panels.change(lambda case: with_heart(case, [0.0, 0.0, 0.0]))
    assert selector.currentText == "Spleen" and similar.region == "spleen"
    similar.ui.byScanButton.click()
    assert fake_worker.requests[-1][1]["region"] == "spleen"
    fake_worker.say("result", hits=HITS, count=2)
    finished.poll()
    assert "Alike in the liver (0.93)" in shown(similar)
    similar.ui.queryEdit.text = "a nodule"
    similar.ui.byTextButton.click()
    assert "region" not in fake_worker.requests[-1][1]
    host.close_scene()
    assert selector.count == 1 and not selector.enabled and similar.region is None


def test_hits_say_why_with_pictures_and_neutral_names(finished: Any, similar: Any, fake_worker: Any) -> None:
    similar.ui.queryEdit.text = "a lung nodule"
    similar.ui.byTextButton.click()
    assert fake_worker.requests[-1][1]["text"] == "a lung nodule" and "volume" not in fake_worker.requests[-1][1]
    fake_worker.say("result", hits=HITS, count=12)
    finished.poll()
    text = shown(similar)
    assert "Scan 3 similarity 0.81" in text and "Both show: lung nodule" in text and "Also: emphysema" in text
    assert "No finding in common; alike as a whole." in text and "findings from its report" in text and "Research use only" in text
    assert "2 of 12 scans" in similar.ui.similarMessage.text
    assert "data:image/png;base64" in similar.ui.hitsView.toHtml()


def test_no_hit_is_said(finished: Any, similar: Any, fake_worker: Any) -> None:
    similar.ui.queryEdit.text = "x"
    similar.ui.byTextButton.click()
    fake_worker.say("result", hits=[], count=1)
    finished.poll()
    assert "No similar scan was found" in shown(similar)


def test_an_index_of_another_model_is_refused_in_words_on_the_panel(finished: Any, similar: Any, fake_worker: Any) -> None:
    from VelvetMedLib.errors import IndexMismatchError

    similar.ui.byScanButton.click()
    problem = IndexMismatchError("Another model.", found="a", expected="b", next_step="Build the index again.")
    fake_worker.say("error", **problem.as_dict())
    finished.poll()
    assert "Build the index again." in similar.ui.similarMessage.text and similar.ui.byScanButton.enabled


def views() -> dict[str, tuple[Any, Any]]:
    """The red and yellow views of Slicer's layouts, and the layout node."""
    import slicer

    scene = slicer.mrmlScene
    scene.AddNewNodeByClass("vtkMRMLLayoutNode").SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    made = {}
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal")):
        node, composite = scene.AddNewNodeByClass("vtkMRMLSliceNode"), scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
        for each in (node, composite):
            each.SetLayoutName(name)
        node.SetOrientation(orientation)
        made[name] = (node, composite)
    return made


def open_hit(finished: Any, similar: Any, fake_worker: Any, tmp_path: Path, centers: dict[str, Any]) -> None:
    import qt

    similar.ui.hitsView.anchorClicked.emit(qt.QUrl("open:3"))
    params = fake_worker.requests[-1][1]
    assert params["open"] == 3
    np.save(params["out"], np.full((4, 5, 6), 7, np.int16))
    fake_worker.say("result", number=3, npy=params["out"], ijk_to_ras=np.diag([2.0, 2, 3, 1]).tolist(), centers=centers)
    finished.poll()
    assert not Path(params["out"]).exists()


def test_a_hit_opens_side_by_side_laid_over_by_shared_organs_in_linked_views_and_closes_again(
    finished: Any, similar: Any, fake_worker: Any, tmp_path: Path, ct: Any
) -> None:
    import slicer

    from VelvetMedCore.parameters import parameter_node

    both = views()
    both["Yellow"][1].SetBackgroundVolumeID(ct.GetID())
    mine = {s.name: s.center_ras_mm for s in finished.logic.case().segments if not s.truncated and s.kind == "organ"}
    assert set(mine) == {"spleen"}
    open_hit(finished, similar, fake_worker, tmp_path, {"spleen": [0, 0, 0]})
    node = slicer.util.getNode("Similar scan 3")
    assert "too few organs in common" in similar.ui.similarMessage.text and node.GetParentTransformNode() is None
    other = {"spleen": [x - 10 for x in mine["spleen"]], "heart": [0, 0, 0]}
    finished.panels.change(lambda case: with_heart(case, [10, 10, 10]))
    open_hit(finished, similar, fake_worker, tmp_path, other)
    node = slicer.util.getNode("Similar scan 3")
    matrix = slicer.util.arrayFromTransformMatrix(node.GetParentTransformNode())
    assert np.allclose(matrix[:3, 3], 10) and slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
    assert both["Red"][1].GetBackgroundVolumeID() == ct.GetID() and both["Yellow"][1].GetBackgroundVolumeID() == node.GetID()
    assert all(composite.GetLinkedControl() and composite.GetHotLinkedControl() for _, composite in both.values())
    assert both["Yellow"][0].GetOrientation() == both["Red"][0].GetOrientation() == "Axial"
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    assert layout.GetViewArrangement() == slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView
    assert parameter_node().GetNodeReference("inputVolume") is ct and finished.logic.case_volume() is ct
    assert similar.ui.closeButton.isVisibleTo(similar.ui.root)
    similar.ui.closeButton.click()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1
    assert layout.GetViewArrangement() == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    assert both["Yellow"][0].GetOrientation() == "Sagittal" and both["Yellow"][1].GetBackgroundVolumeID() == ct.GetID()
    assert not both["Red"][1].GetLinkedControl() and not similar.ui.closeButton.visible


def with_heart(case: Any, center: list[float]) -> Any:
    from dataclasses import replace

    spleen = next(s for s in case.segments if s.name == "spleen")
    heart = replace(spleen, name="heart", label=18, display="heart", center_ras_mm=tuple(center))
    return replace(case, segments=(*case.segments, heart))


def test_without_views_the_two_volumes_are_in_the_scene_and_closing_is_harmless(
    finished: Any, similar: Any, fake_worker: Any, tmp_path: Path
) -> None:
    import slicer

    open_hit(finished, similar, fake_worker, tmp_path, {})
    assert slicer.util.getNode("Similar scan 3").GetImageData().GetDimensions() == (6, 5, 4)
    finished.panels.reviewing.close_beside()
    finished.panels.reviewing.close_beside()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1


def test_closing_the_scene_while_an_index_is_built_stops_it_and_clears_the_hits(
    finished: Any, similar: Any, fake_worker: Any, host: Any, tmp_path: Path
) -> None:
    similar.show_hits(HITS, 2)
    similar.ui.scansPath.currentPath = str(tmp_path)
    similar.ui.buildButton.click()
    host.close_scene()
    assert not finished.logic.busy and "Nothing was searched for yet" in shown(similar) and not similar.ui.progressRow.visible


def test_the_offset_is_the_median_over_shared_organs_and_needs_two() -> None:
    from VelvetMedCore.side_by_side import offset_mm

    mine = {"a": (0, 0, 0), "b": (1, 1, 1), "c": (5, 5, 5)}
    assert offset_mm(mine, {"a": (-1, -1, -1), "b": (0, 0, 0), "c": (100, 100, 100)}) == [1.0, 1.0, 1.0]
    assert offset_mm(mine, {"a": (0, 0, 0)}) is None
