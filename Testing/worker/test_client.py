"""The worker seen from the client: answers, cancelling, deaths, the private folder."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from VelvetMedLib.errors import Cancelled, ScanError, WorkerError
from VelvetMedLib.worker.client import WorkerClient, server_argv

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are tested where they exist")

ECHO_WORKER = Path(__file__).with_name("echo_worker.py")


def test_the_worker_says_ready_with_its_versions_before_anything_else(client, until):
    client.start()
    (event,) = until(client, "ready")
    assert event.data["protocol"] == 1
    assert event.data["version"]


def test_a_request_starts_the_worker_and_is_answered_with_its_own_parameters_in_any_script(client):
    params = {"style": "кратко", "text": 'Pleuraerguß links · 胸水 · \u2028 "quoted"\n'}
    answer = client.wait(client.request("hello", params), 20)
    assert answer["params"] == params
    assert answer["pid"] == client.pid


def test_prints_of_python_and_of_c_code_do_not_corrupt_the_protocol(client):
    assert client.wait(client.request("load"), 20) == {"said": "ü → 肝臓"}
    assert client.wait(client.request("hello"), 20)["pid"] == client.pid


def test_progress_carries_fraction_stage_and_seconds_left_and_never_goes_back(client, tmp_path):
    seen = []
    client.wait(client.request("analyze", {"steps": 40, "out": str(tmp_path / "done")}), 20, on_progress=seen.append)
    fractions = [event.data["fraction"] for event in seen if event.kind == "progress"]
    assert len(fractions) > 3 and fractions == sorted(fractions)
    assert seen[-1].data["stage"] == "counting"
    assert seen[-1].data["seconds_left"] >= 0


def test_cancel_of_a_listening_worker_takes_effect_within_a_second_and_keeps_the_process(client, tmp_path, until):
    number = client.request("analyze", {"out": str(tmp_path / "half")})
    until(client, "progress")
    pid, pressed = client.pid, time.monotonic()
    client.cancel(number)
    (error,) = [event for event in until(client, "error") if event.kind == "error"]
    assert time.monotonic() - pressed < 1.0
    assert (error.request_id, error.data["code"]) == (number, "cancelled")
    assert client.wait(client.request("hello"), 10)["pid"] == pid
    assert not (tmp_path / "half").exists()


def test_cancel_of_a_deaf_worker_kills_it_and_its_children_within_a_second_and_the_next_request_starts_a_fresh_one(
    client, tmp_path, until, gone
):
    number = client.request("segment", {"out": str(tmp_path / "half")})
    grandchild = next(int(event.data["stage"]) for event in until(client, "progress") if event.kind == "progress")
    pid, pressed = client.pid, time.monotonic()
    client.cancel(number)
    events = until(client, "exit")
    assert time.monotonic() - pressed < 1.0
    assert [(event.request_id, event.data["code"]) for event in events if event.kind == "error"] == [(number, "cancelled")]
    (end,) = [event for event in events if event.kind == "exit"]
    assert end.data["expected_exit"] and end.data["reason"] == "cancelled"
    assert client.wait(client.request("hello"), 10)["pid"] != pid
    assert gone(pid) and gone(grandchild)
    assert not (tmp_path / "half").exists()


def test_a_request_that_waits_behind_a_cancelled_one_is_told_so_when_the_worker_had_to_be_killed(client, tmp_path, until):
    first = client.request("segment", {"out": str(tmp_path / "half")})
    second = client.request("hello")
    until(client, "progress")
    client.cancel(first)
    errors = {event.request_id: event.data for event in until(client, "exit") if event.kind == "error"}
    assert errors[first]["code"] == "cancelled"
    assert errors[second]["code"] == "worker" and "cancelled" in errors[second]["what"]


def test_a_request_cancelled_before_its_turn_never_runs_and_the_one_before_it_goes_on(client, tmp_path, until):
    first = client.request("analyze", {"steps": 70, "out": str(tmp_path / "first")})
    second = client.request("analyze", {"steps": 1, "out": str(tmp_path / "second")})
    until(client, "progress")
    client.cancel(second)
    assert client.wait(first, 20) == {"out": "done"}
    with pytest.raises(Cancelled):
        client.wait(second, 20)
    assert client.wait(client.request("hello"), 20)["pid"]
    assert not (tmp_path / "second").exists()


def test_a_killed_worker_is_reported_in_words_and_the_next_request_starts_a_fresh_one(client, tmp_path, until):
    number = client.request("analyze", {"out": str(tmp_path / "half")})
    until(client, "progress")
    pid = client.pid
    os.kill(pid, signal.SIGKILL)
    events = until(client, "exit")
    (end,) = [event for event in events if event.kind == "exit"]
    assert end.data["reason"] == "killed" and not end.data["expected_exit"]
    assert "killed" in end.data["what"] and "memory" in end.data["next_step"]
    assert [event.request_id for event in events if event.kind == "error"] == [number]
    assert client.wait(client.request("hello"), 10)["pid"] != pid
    assert not (tmp_path / "half").exists()


def test_children_of_a_worker_that_was_killed_from_outside_do_not_outlive_it(client, tmp_path, until, gone):
    client.request("segment", {"out": str(tmp_path / "half")})
    grandchild = next(int(event.data["stage"]) for event in until(client, "progress") if event.kind == "progress")
    os.kill(client.pid, signal.SIGKILL)
    until(client, "exit")
    assert gone(grandchild)


def test_a_crash_carries_the_last_lines_of_stderr_without_any_path(client, tmp_path, until):
    secret = tmp_path / "Doe^Jane 1970" / "ct scan.nii.gz"
    client.request("findings", {"path": str(secret), "code": 5})
    (end,) = [event for event in until(client, "exit") if event.kind == "exit"]
    assert end.data["reason"] == "crashed" and "5" in end.data["found"]
    assert any("cannot open [path] now" in line for line in end.data["stderr"])
    assert "Doe" not in str(end.data) and str(tmp_path) not in str(end.data)


def test_a_missing_package_is_named(tmp_path, until):
    with WorkerClient([sys.executable, "-c", "import a_package_nobody_has"], dict(os.environ), workdir=tmp_path) as client:
        client.start()
        (end,) = until(client, "exit")
    assert end.data["reason"] == "missing_package"
    assert "a_package_nobody_has" in end.data["what"]


def test_an_interpreter_that_cannot_be_started_is_an_error_in_four_parts_without_its_path(tmp_path):
    client = WorkerClient([str(tmp_path / "no-python-here")], dict(os.environ), workdir=tmp_path)
    with pytest.raises(WorkerError) as caught:
        client.request("hello")
    assert all(caught.value.as_dict().values())
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("memory", "memory", "out of memory"),
        ("import", "missing_package", "torch"),
        ("nan", "internal", "did not expect"),
        ("exit", "internal", "did not expect"),
        ("other", "internal", "did not expect"),
    ],
)
def test_an_unexpected_error_of_a_handler_becomes_four_parts_without_traceback_or_path_and_the_worker_lives_on(
    client, until, tmp_path, kind, code, words
):
    client.request("report", {"kind": kind, "path": str(tmp_path / "Doe Jane.nii")})
    (error,) = [event for event in until(client, "error") if event.kind == "error"]
    assert error.data["code"] == code and words in error.data["what"]
    assert set(error.data) >= {"what", "found", "expected", "next_step"}
    assert "Traceback" not in str(error.data) and "Jane" not in str(error.data) and str(tmp_path) not in str(error.data)
    assert client.wait(client.request("hello"), 10)["pid"] == client.pid


def test_a_users_error_is_raised_again_as_the_same_class(client):
    with pytest.raises(ScanError) as caught:
        client.wait(client.request("report", {"kind": "scan"}), 10)
    assert caught.value.found == "MR"


def test_an_unknown_request_is_refused_before_it_is_sent(client):
    with pytest.raises(WorkerError):
        client.request("format_disk")
    assert not client.running


def test_waiting_has_an_end(client, tmp_path):
    with pytest.raises(WorkerError, match="in time"):
        client.wait(client.request("analyze", {"out": str(tmp_path / "half")}), 0.3)


def test_waiting_for_one_request_leaves_the_events_of_others_for_poll(client):
    first, second = client.request("hello"), client.request("hello")
    client.wait(second, 10)
    assert first in [event.request_id for event in client.poll() if event.kind == "result"]


def test_voxels_arrive_unchanged_are_deleted_once_read_and_their_folder_is_closed_to_others(client, tmp_path):
    voxels = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)[::-1, :, ::2]
    params = client.put_volume(voxels, np.diag([1.0, 1.0, 2.5, 1.0]))
    (folder,) = tmp_path.glob("velvetmed-worker-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    answer = client.wait(client.request("encode", {"volume": params}), 10)
    assert answer == {"shape": [6, 5, 2], "sum": int(voxels.sum()), "dtype": "int16", "still_on_disk": False, "k": 2.5}
    client.close()
    assert not folder.exists()


def test_a_full_size_scan_is_handed_over_in_a_second(client):
    voxels = np.zeros((133, 512, 512), dtype=np.int16)
    client.start()
    started = time.monotonic()
    params = client.put_volume(voxels, np.eye(4))
    number = client.request("encode", {"volume": params})
    handed_over = time.monotonic() - started
    client.wait(number, 20)
    assert handed_over <= 1.0


def test_voxels_of_a_request_that_died_are_deleted_too(client, until, tmp_path):
    params = client.put_volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
    client.request("findings", {"volume": params})
    until(client, "exit")
    assert not Path(params["npy"]).exists()


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros((2, 2, 2), dtype=object), np.zeros((2, 2, 2), dtype=complex)])
def test_arrays_that_are_not_scalar_volumes_are_refused(client, array):
    with pytest.raises(WorkerError):
        client.put_volume(array, np.eye(4))


def test_a_request_and_a_poll_never_wait_for_a_busy_worker(client, tmp_path):
    client.start()
    client.request("segment", {"out": str(tmp_path / "half")})
    started = time.monotonic()
    for _ in range(50):
        client.request("hello", {"text": "x" * 20_000})
        client.poll()
    assert time.monotonic() - started < 0.5
    client.kill()


def test_killing_ends_running_requests_and_the_next_request_works(client, tmp_path, until):
    number = client.request("segment", {"out": str(tmp_path / "half")})
    until(client, "progress")
    client.kill()
    assert [event.data["code"] for event in client.poll() if event.request_id == number] == ["cancelled"]
    assert client.wait(client.request("hello"), 10)["pid"]


def test_closing_ends_the_process_quietly_and_the_client_can_be_used_again(client, gone):
    pid = client.wait(client.request("hello"), 10)["pid"]
    client.close()
    assert gone(pid, 0.5)
    (end,) = [event for event in client.poll() if event.kind == "exit"]
    assert end.data["expected_exit"] and end.data["exit_code"] == 0
    assert client.wait(client.request("hello"), 10)["pid"] != pid


def test_a_forgotten_client_leaves_neither_process_nor_folder(tmp_path, gone):
    client = WorkerClient([sys.executable, str(ECHO_WORKER)], dict(os.environ), workdir=tmp_path)
    pid = client.wait(client.request("hello"), 10)["pid"]
    client.put_volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
    del client
    gc.collect()
    assert gone(pid)
    assert not list(tmp_path.iterdir())


def test_a_program_that_exits_or_is_killed_takes_its_worker_with_it(tmp_path, gone):
    program = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from VelvetMedLib.worker.client import WorkerClient\n"
        "c = WorkerClient([sys.executable, sys.argv[2]], dict(os.environ), workdir=sys.argv[3])\n"
        "n = c.request('segment', {'out': sys.argv[3] + '/half'})\n"
        "while not any(e.kind == 'progress' and print(e.data['stage'], c.pid, flush=True) is None for e in c.poll()): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9) if sys.argv[4] == 'kill' else sys.exit(0)\n"
    )
    root = Path(__file__).resolve().parents[2]
    for how in ("exit", "kill"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(root), str(ECHO_WORKER), str(tmp_path), how],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        grandchild, worker = (int(word) for word in done.stdout.split())
        assert gone(worker) and gone(grandchild), how
    assert not (tmp_path / "half").exists()


def test_the_real_worker_starts_by_file_name_in_a_python_that_knows_nothing_of_the_library(tmp_path, repository, until):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"PYTHONNOUSERSITE": "1"}
    with WorkerClient(server_argv(sys.executable, repository), clean, workdir=tmp_path) as client:
        answer = client.wait(client.request("hello"), 20)
    assert answer["protocol"] == 1 and answer["versions"]["velvetmed"]
