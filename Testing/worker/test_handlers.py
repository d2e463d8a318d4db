"""The real worker with a random bundle: every request, the kept model, cancelling, errors in four parts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.errors import BundleError, CaseError, ScanError, UsageError, WorkerError
from VelvetMedLib.worker.client import WorkerClient, server_argv
from VelvetMedLib.worker.handlers import make_handlers
from VelvetMedLib.worker.protocol import UNANSWERED, VERBS


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerClient]:
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with WorkerClient(server_argv(sys.executable, root), env, workdir=tmp_path_factory.mktemp("private")) as client:
        yield client


@pytest.fixture(scope="module")
def analysed(
    worker: WorkerClient, body: Any, random_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A Case made by the worker, and what the worker said."""
    out = tmp_path_factory.mktemp("case") / "case"
    params = {"volume": worker.put_volume(body.voxels_kji, body.ijk_to_ras), "bundle": str(random_bundle_folder), "out": str(out)}
    return out, worker.wait(worker.request("analyze", params), 120)


def test_every_answered_verb_of_the_protocol_has_a_handler_and_no_other():
    assert set(make_handlers()) == set(VERBS) - UNANSWERED


def test_hello_names_versions_without_importing_torch(worker):
    answer = worker.wait(worker.request("hello"), 60)
    assert answer["versions"]["torch"] and answer["missing"] == []


def test_analyze_writes_the_case_and_says_where_and_how_long(analysed):
    out, answer = analysed
    case = json.loads((out / "case.json").read_text(encoding="utf-8"))
    assert answer["case"] == str(out)
    assert answer["id"] == case["id"]
    assert answer["timings"] and len(case["findings"]) == 21


def test_a_question_to_the_case_needs_no_bundle_named_while_its_model_is_in_use(worker, analysed):
    out, _ = analysed
    answer = worker.wait(worker.request("ask", {"case": str(out), "question": "Is there a pleural effusion?"}), 60)
    assert answer["answer"] and 0 <= answer["confidence"] <= 1


def test_a_question_can_be_put_to_a_segment_or_a_box(worker, analysed):
    out, _ = analysed
    case = json.loads((out / "case.json").read_text(encoding="utf-8"))
    segment = case["segments"][0]
    about = {"segment": segment["name"], "box_to_ras": None}
    answer = worker.wait(worker.request("ask", {"case": str(out), "question": "How large is it?", "about": about}), 60)
    assert answer["about"] == about and f"{segment['volume_ml']:.0f} ml" in answer["answer"] and answer["link"]["label"] == segment["label"]
    far = np.diag([5.0, 5.0, 5.0, 1.0])
    far[:3, 3] = 900.0
    params = {"case": str(out), "question": "mean HU?", "about": {"box_to_ras": far.tolist()}}
    assert worker.wait(worker.request("ask", params), 60)["unanswered"] == "out_of_view"
    with pytest.raises(WorkerError, match="cannot be read"):
        worker.wait(worker.request("ask", {**params, "about": {"box_to_ras": np.zeros((4, 4)).tolist()}}), 60)


def test_a_phrase_is_grounded_and_its_heat_map_lies_on_the_scans_grid(worker, analysed, tmp_path):
    from VelvetMedLib.ct import read_header

    out, _ = analysed
    answer = worker.wait(worker.request("ground", {"case": str(out), "phrase": "the liver", "out": str(tmp_path / "heat.nii.gz")}), 60)
    assert len(answer["peak_ras_mm"]) == 3
    assert read_header(tmp_path / "heat.nii.gz").shape_kji == read_header(out / "ct.nii.gz").shape_kji


def test_segments_findings_and_report_of_a_case_come_one_by_one(worker, analysed):
    out, _ = analysed
    case = json.loads((out / "case.json").read_text(encoding="utf-8"))
    for verb, key in (("segment", "segments"), ("findings", "findings"), ("report", "report")):
        assert worker.wait(worker.request(verb, {"case": str(out)}), 60)[key] == case[key]


def test_a_draft_comes_in_the_form_and_by_the_writer_that_the_request_names(worker, body, random_bundle_folder):
    params = {"bundle": str(random_bundle_folder), "writer": "composer", "sections": ["lungs", "impression"], "style": "terse"}
    counts = {}
    for length in ("full", "brief"):
        volume = worker.put_volume(body.voxels_kji, body.ijk_to_ras)
        draft = worker.wait(worker.request("report", {**params, "volume": volume, "length": length}), 120)["report"]
        assert [s["title"] for s in draft["sections"]] == ["Lungs", "Impression"] and draft["style"] == "terse"
        counts[length] = len(draft["sections"][0]["sentences"])
    assert counts["brief"] <= counts["full"]
    with pytest.raises(UsageError, match="no such writer"):
        volume = worker.put_volume(body.voxels_kji, body.ijk_to_ras)
        worker.wait(worker.request("report", {**params, "volume": volume, "writer": "nobody"}), 60)


def test_a_folder_is_indexed_and_searched_by_text_and_by_case(worker, analysed, random_bundle_folder, tmp_path):
    out, _ = analysed
    named = {"bundle": str(random_bundle_folder)}
    made = worker.wait(worker.request("index", {"folder": str(out.parent), "out": str(tmp_path / "index"), **named}), 60)
    assert made == {"added": 1, "known": 0, "count": 1, "skipped": []}
    hits = worker.wait(worker.request("similar", {"index": str(tmp_path / "index"), "text": "pleural effusion", **named}), 60)["hits"]
    assert len(hits) == 1
    own = worker.wait(worker.request("similar", {"index": str(tmp_path / "index"), "case": str(out), **named}), 60)
    assert own == {"hits": [], "count": 1}


def test_an_indexed_scan_is_opened_without_its_name_and_edited_segments_are_looked_at_again(
    worker, analysed, body, random_bundle_folder, tmp_path
):
    out, _ = analysed
    named = {"bundle": str(random_bundle_folder)}
    index = str(tmp_path / "index")
    worker.wait(worker.request("index", {"folder": str(out.parent), "out": index, "keep_places": True, **named}), 120)
    found = worker.wait(worker.request("similar", {"index": index, "text": "pleural effusion", **named}), 60)
    assert found["count"] == 1 and found["hits"][0]["number"] == 1 and found["hits"][0]["picture"]
    opened = worker.wait(worker.request("similar", {"index": index, "open": 1, "out": str(tmp_path / "scan.npy"), **named}), 60)
    assert np.array_equal(np.load(opened["npy"]), body.voxels_kji) and np.allclose(opened["ijk_to_ras"], body.ijk_to_ras)
    labels = np.zeros(body.voxels_kji.shape, np.uint8)
    labels[20:30, 15:25, 15:25] = 101
    params = {
        "volume": worker.put_volume(body.voxels_kji, body.ijk_to_ras),
        "labels": worker.put_volume(labels, body.ijk_to_ras),
        "edited": [101],
        **named,
    }
    again = worker.wait(worker.request("report", params), 120)
    assert len(again["findings"]) == 21 and again["report"]["sections"]
    assert not Path(params["labels"]["npy"]).exists() and not Path(params["volume"]["npy"]).exists()
    wrong = {
        **params,
        "volume": worker.put_volume(body.voxels_kji, body.ijk_to_ras),
        "labels": worker.put_volume(labels[1:], body.ijk_to_ras),
    }
    with pytest.raises(WorkerError, match="could not read the voxels"):
        worker.wait(worker.request("report", wrong), 60)


def test_a_cancelled_analysis_leaves_nothing_behind_and_the_worker_goes_on(worker, make_body, random_bundle_folder, tmp_path):
    scan = make_body((96, 96, 96), 5.0)
    params = {
        "volume": worker.put_volume(scan.voxels_kji, scan.ijk_to_ras),
        "bundle": str(random_bundle_folder),
        "out": str(tmp_path / "case"),
    }
    number = worker.request("analyze", params)
    end = time.monotonic() + 30
    while not any(event.kind == "progress" for event in worker.poll()):
        assert time.monotonic() < end
        time.sleep(0.005)
    worker.cancel(number)
    pressed, seen = time.monotonic(), []
    while not any(event.request_id == number for event in seen):
        seen += [event for event in worker.poll() if event.kind in ("error", "result")]
        assert time.monotonic() - pressed < 5
        time.sleep(0.005)
    assert time.monotonic() - pressed < 1.0
    assert seen[0].data["code"] == "cancelled"
    worker.wait(worker.request("hello"), 60)
    time.sleep(0.2)
    assert not list(tmp_path.iterdir())


def test_users_errors_come_back_as_their_own_classes(worker, body, tmp_path, random_bundle_folder):
    with pytest.raises(BundleError):
        worker.wait(worker.request("load", {"bundle": str(tmp_path / "nothing")}), 60)
    with pytest.raises(CaseError):
        worker.wait(worker.request("ask", {"case": str(tmp_path / "nothing"), "question": "?"}), 60)
    flat = {"volume": worker.put_volume(np.full((40, 40, 40), np.nan, np.float32), np.eye(4)), "bundle": str(random_bundle_folder)}
    with pytest.raises(ScanError):
        worker.wait(worker.request("analyze", {**flat, "out": str(tmp_path / "case")}), 60)
    with pytest.raises(WorkerError, match="not complete"):
        worker.wait(worker.request("analyze", flat), 60)
    assert not (tmp_path / "case").exists()
