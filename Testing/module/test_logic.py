"""The logic with a fake worker: hand-over, progress, result, cancel, death, a closed scene, and questions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui


def test_apply_hands_over_the_voxels_their_place_and_nothing_about_the_patient(logic: Any, ct: Any, fake_worker: Any) -> None:
    import slicer

    logic.start_analysis(ct, model="demo")
    voxels_kji, matrix = fake_worker.volumes[0]
    assert np.array_equal(voxels_kji, slicer.util.arrayFromVolume(ct)) and matrix.shape == (4, 4)
    verb, params = fake_worker.requests[0]
    assert verb == "analyze" and params["bundle"] == "demo" and logic.busy
    assert "DOE" not in repr(params)


def test_progress_and_result_arrive_by_polling(logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> None:
    logic.start_analysis(ct, model="demo")
    fake_worker.say("progress", fraction=0.25, stage="fine view", seconds_left=12.0)
    (update,) = logic.poll()
    assert (update.kind, update.fraction, update.stage, update.seconds_left) == ("progress", 0.25, "fine view", 12.0)
    folder = make_case(Path(fake_worker.requests[0][1]["out"]))
    fake_worker.say("result", case=str(folder), timings={})
    (update,) = logic.poll()
    assert update.kind == "result" and not logic.busy
    nodes = logic.insert_result(update)
    assert logic.case().findings[0].name == "lung_nodule" and nodes.segmentation is logic.nodes().segmentation


def test_waiting_gives_a_script_the_whole_run(logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> None:
    logic.start_analysis(ct, model="demo")
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[0][1]["out"]))))
    assert [update.kind for update in logic.wait(5)] == ["result"] and logic.case() is not None


def test_waiting_too_long_stops_the_worker(logic: Any, ct: Any, fake_worker: Any) -> None:
    from VelvetMedLib.errors import WorkerError

    logic.start_analysis(ct, model="demo")
    with pytest.raises(WorkerError, match="in time"):
        logic.wait(0.05)
    assert fake_worker.killed == 1 and not logic.busy


def test_cancel_reaches_the_worker_and_leaves_the_scene_as_it_was(logic: Any, ct: Any, fake_worker: Any, scene: Any) -> None:
    from VelvetMedLib.errors import Cancelled

    before = scene.GetNumberOfNodes()
    logic.start_analysis(ct, model="demo")
    logic.cancel()
    assert fake_worker.cancelled == [1]
    fake_worker.say("error", **Cancelled().as_dict())
    (update,) = logic.poll()
    assert update.kind == "cancelled" and not logic.busy and scene.GetNumberOfNodes() == before


def test_a_worker_that_dies_is_reported_in_four_parts_with_its_last_lines(logic: Any, ct: Any, fake_worker: Any) -> None:
    from VelvetMedLib.worker.wording import exit_error

    logic.start_analysis(ct, model="demo")
    _, problem = exit_error(-9, [])
    fake_worker.say("error", **problem.as_dict(), stderr=["loading", "Killed"])
    fake_worker.events.append(type(fake_worker.events[0])("exit", None, {"reason": "killed"}))
    (update,) = logic.poll()
    assert update.kind == "failed" and "killed" in update.error.what
    assert update.error.__notes__ == ["loading\nKilled"]
    logic.start_analysis(ct, model="demo")  # the next press needs nothing special
    assert logic.busy


def test_an_event_of_an_earlier_request_is_dropped_with_a_line_in_the_log(
    logic: Any, ct: Any, fake_worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logic.start_analysis(ct, model="demo")
    fake_worker.events.append(type("E", (), {"kind": "result", "request_id": 77, "data": {}})())
    with caplog.at_level(logging.INFO, logger="VelvetMed"):
        assert logic.poll() == []
    assert "dropped" in caplog.text and logic.busy


def test_stopping_kills_the_worker_first_and_forgets_the_folders(logic: Any, ct: Any, fake_worker: Any) -> None:
    logic.start_analysis(ct, model="demo")
    folder = Path(fake_worker.requests[0][1]["out"]).parent
    assert folder.is_dir()
    logic.stop()
    assert (fake_worker.killed, fake_worker.closed) == (1, 1) and not logic.busy and not folder.exists()
    assert logic.poll() == []


def test_a_second_run_is_refused_while_one_is_going(logic: Any, ct: Any) -> None:
    from VelvetMedLib.errors import WorkerError

    logic.start_analysis(ct, model="demo")
    with pytest.raises(WorkerError, match="still going"):
        logic.start_analysis(ct, model="demo")


def test_a_volume_deleted_during_the_run_does_not_lose_the_result(
    logic: Any, ct: Any, fake_worker: Any, scene: Any, make_case: Callable[..., Path]
) -> None:
    logic.start_analysis(ct, model="demo")
    scene.RemoveNode(ct)
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[0][1]["out"]))))
    logic.wait(5)
    assert logic.nodes().segmentation is not None


def test_a_second_result_hides_the_first_and_keeps_it(logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> None:
    segmentations = []
    for number in range(2):
        logic.start_analysis(ct, model="demo")
        fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[number][1]["out"]))))
        logic.wait(5)
        segmentations.append(logic.nodes().segmentation)
    assert segmentations[0].GetScene() is not None and segmentations[0] is not segmentations[1]
    assert [node.GetDisplayNode().GetVisibility() for node in segmentations] == [0, 1]


def test_a_question_needs_an_analysis(logic: Any, ct: Any) -> None:
    from VelvetMedLib.errors import CaseError

    with pytest.raises(CaseError):
        logic.start_question("Is there a nodule?")


def test_the_instances_of_a_dicom_volume_go_into_the_private_file_and_nowhere_else(
    logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]
) -> None:
    from VelvetMedLib.case.sources import SOURCES, read_sources

    uids = "1.2.840.1.1 1.2.840.1.2"
    ct.SetAttribute("DICOM.instanceUIDs", f"{uids} DOE^JOHN")
    logic.start_analysis(ct, model="demo")
    assert "1.2.840" not in repr(fake_worker.requests)
    folder = make_case(Path(fake_worker.requests[0][1]["out"]))
    fake_worker.say("result", case=str(folder))
    logic.wait(5)
    assert read_sources(folder) == tuple(uids.split())
    others = [path for path in folder.rglob("*") if path.is_file() and path.name != SOURCES]
    assert others and not any(b"1.2.840" in path.read_bytes() for path in others)
    assert ct.GetAttribute("DICOM.instanceUIDs").startswith(uids) and "1.2.840" not in logic.nodes().case.GetText()
    assert not any("DOE" in path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.json"))


def test_a_volume_without_dicom_leaves_no_private_file(logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> None:
    from VelvetMedLib.case.sources import SOURCES

    logic.start_analysis(ct, model="demo")
    folder = make_case(Path(fake_worker.requests[0][1]["out"]))
    fake_worker.say("result", case=str(folder))
    logic.wait(5)
    assert not (folder / SOURCES).exists()


def test_a_reloaded_scene_can_be_asked_although_its_case_folder_is_gone(
    host: Any, logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path], tmp_path: Path
) -> None:
    import slicer

    from VelvetMedLib.case import read_case

    logic.start_analysis(ct, model="demo")
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[0][1]["out"]))))
    logic.wait(5)
    before = logic.case()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    host.close_scene()
    logic.stop()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    logic.start_question("Is there a nodule?")
    params = fake_worker.requests[-1][1]
    again = read_case(params["case"])
    assert again.findings == before.findings and again.report == before.report
    assert params["bundle"].endswith("demo")  # found by its name among the models of this computer


def test_an_answer_is_kept_with_the_scene(logic: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> None:
    logic.start_analysis(ct, model="demo")
    out = fake_worker.requests[0][1]["out"]
    fake_worker.say("result", case=str(make_case(Path(out))))
    logic.wait(5)
    logic.start_question("Is there a nodule?")
    assert fake_worker.requests[1] == ("ask", {"case": out, "question": "Is there a nodule?", "bundle": "demo", "device": "cpu"})
    fake_worker.say("result", answer="yes", confidence=0.9, link=None)
    (update,) = logic.poll()
    assert update.kind == "answer" and update.answer.answer == "yes"
    assert [(a.question, a.answer, a.confidence) for a in logic.case().answers] == [("Is there a nodule?", "yes", 0.9)]


def test_handing_over_a_whole_chest_takes_less_than_a_second(scene: Any, host: Any) -> None:
    import os
    import sys

    import slicer

    from VelvetMedCore.logic import VelvetMedLogic
    from VelvetMedLib.worker.client import WorkerClient

    sleeper = WorkerClient([sys.executable, "-c", "import sys; sys.stdin.read()"], dict(os.environ), workdir=slicer.app.temporaryPath)
    logic = VelvetMedLogic(connect=lambda: sleeper)
    node = slicer.util.addVolumeFromArray(np.zeros((133, 512, 512), np.int16))
    start = time.process_time()  # of this process alone: the other tests' share of the machine does not count
    logic.start_analysis(node, model="demo")
    took_s = time.process_time() - start
    logic.stop()
    print(f"{took_s:.2f} s of CPU")
    assert took_s < 1.5, f"{took_s:.2f} s"  # the aim is 1 s on an ordinary machine
