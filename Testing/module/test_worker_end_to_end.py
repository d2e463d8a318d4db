"""The module with the real worker and a tiny random model: one press, real processes, real nodes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.gui, pytest.mark.timeout(600)]


@pytest.fixture
def real_logic(scene: Any, monkeypatch: pytest.MonkeyPatch, host: Any) -> Any:
    """The module's own logic; the worker runs in this environment's Python."""
    from VelvetMedCore.logic import VelvetMedLogic

    host.app.startup_environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logic = VelvetMedLogic()
    logic.settings.own_python = sys.executable
    yield logic
    logic.stop()


@pytest.fixture
def body_node(scene: Any, body: Any) -> Any:
    """The small body, turned into a left-handed oblique node under a transform."""
    import slicer
    import vtk

    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = body.voxels_kji.shape[2] - 1
    node = slicer.util.addVolumeFromArray(np.ascontiguousarray(body.voxels_kji[:, :, ::-1]), body.ijk_to_ras @ flip, "body")
    move = vtk.vtkTransform()
    move.RotateZ(10)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(move.GetMatrix())
    node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def test_one_press_gives_segments_findings_report_and_answers_in_the_right_place(
    real_logic: Any, body_node: Any, random_bundle_folder: Path
) -> None:
    import slicer

    from VelvetMedCore.drafting import DraftForm

    form = DraftForm(style="terse", length="brief", sections="lungs impression", writer="composer", against="flagged")
    real_logic.start_analysis(body_node, model=str(random_bundle_folder), form=form)
    updates = real_logic.wait(280)
    assert updates[-1].kind == "result" and any(update.kind == "progress" and update.stage for update in updates)
    # The Case tells the form that was asked for, so that Recompute asks for the same.
    assert real_logic.draft_params() == form.request(real_logic.settings)
    assert [section.title for section in real_logic.case().report.sections] == ["Lungs", "Impression"]
    case, nodes = real_logic.case(), real_logic.nodes()
    assert len(case.findings) == 21 and nodes.findings.GetNumberOfRows() == 21
    assert "not for clinical use" in nodes.report.GetText()
    hardened = slicer.mrmlScene.AddNode(slicer.vtkMRMLScalarVolumeNode())
    hardened.Copy(body_node)
    hardened.HardenTransform()
    voxel_ml = abs(np.linalg.det(slicer.util.arrayFromVTKMatrix(ijk_to_ras(hardened))[:3, :3])) / 1000
    shown_ml = {
        segment.name: (slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment.name, hardened) > 0).sum() * voxel_ml
        for segment in case.segments
    }
    lesions_ml = sum(shown_ml[segment.name] for segment in case.segments if segment.kind == "lesion")
    for segment in case.segments:
        # An organ's figure includes the lesions in it, which are drawn over it in the one label map.
        most = shown_ml[segment.name] + (lesions_ml if segment.kind == "organ" else 0.0)
        assert 0.98 * shown_ml[segment.name] - 0.2 <= segment.volume_ml <= 1.02 * most + 0.2, segment.name
    worker = real_logic._worker.pid
    real_logic.start_question("Is there a pleural effusion?")
    answer = real_logic.wait(120)[-1].answer
    assert answer.answer and real_logic.case().answers[0] == answer
    assert_a_heat_map_has_its_peak_where_the_worker_says(real_logic)
    assert real_logic._worker.pid == worker  # one worker, one model in it, for everything


def assert_a_heat_map_has_its_peak_where_the_worker_says(logic: Any) -> None:
    import slicer

    from VelvetMedCore.overlays import add_heatmap

    out = logic.case_folder() / "heatmaps" / "pleural_effusion.nii.gz"
    out.parent.mkdir(exist_ok=True)
    params = {"case": str(out.parent.parent), "phrase": "pleural effusion", "out": str(out), "scan_grid": False, **logic.model_params()}
    logic.start_request("ground", params, name="heatmap")
    (done,) = [update for update in logic.wait(120) if update.kind == "done"]
    node = add_heatmap(out, case_id="c", finding="pleural_effusion", title="pleural effusion")
    array = slicer.util.arrayFromVolume(node)
    k, j, i = np.unravel_index(array.argmax(), array.shape)
    peak = slicer.util.arrayFromVTKMatrix(ijk_to_ras(node)) @ np.array([i, j, k, 1.0])
    assert np.allclose(peak[:3], done.data["peak_ras_mm"], atol=0.01)


def ijk_to_ras(node: Any) -> Any:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def test_cancel_ends_a_real_run_within_a_second_and_the_next_press_works(
    real_logic: Any, body_node: Any, random_bundle_folder: Path, scene: Any
) -> None:
    before = scene.GetNumberOfNodes()
    real_logic.start_analysis(body_node, model=str(random_bundle_folder))
    deadline = time.monotonic() + 60
    while not real_logic.poll() and time.monotonic() < deadline:
        time.sleep(0.02)
    start = time.monotonic()
    real_logic.cancel()
    kinds: list[str] = []
    while real_logic.busy and time.monotonic() - start < 5:
        kinds += [update.kind for update in real_logic.poll()]
        time.sleep(0.01)
    took_s = time.monotonic() - start
    assert kinds[-1] == "cancelled" and took_s < 2.0, f"{took_s:.2f} s"  # 1 s on a free machine
    assert scene.GetNumberOfNodes() == before
    real_logic.start_analysis(body_node, model=str(random_bundle_folder))
    assert real_logic.busy


def test_a_python_without_the_packages_is_explained_in_words(real_logic: Any, ct: Any, tmp_path: Path, host: Any) -> None:
    from VelvetMedLib.errors import VelvetMedError

    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n", encoding="utf-8")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    real_logic.settings.own_python = str(script)
    real_logic.start_analysis(ct, model="demo")
    with pytest.raises(VelvetMedError) as caught:
        real_logic.wait(280)
    assert caught.value.next_step and "Traceback" not in str(caught.value)


def test_a_bundle_that_is_not_there_is_refused_by_the_worker_in_words(real_logic: Any, body_node: Any, tmp_path: Path) -> None:
    from VelvetMedLib.errors import BundleError

    real_logic.start_analysis(body_node, model=str(tmp_path / "nothing here"))
    with pytest.raises(BundleError):
        real_logic.wait(280)
