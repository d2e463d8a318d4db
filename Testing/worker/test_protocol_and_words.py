"""The parts of the worker that need no process: messages, words for deaths, paths removed, the private folder."""

from __future__ import annotations

import io
import json
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from VelvetMedLib.errors import Cancelled, WorkerError
from VelvetMedLib.worker.handlers import read_volume
from VelvetMedLib.worker.private import PrivateFolder, remove_stale
from VelvetMedLib.worker.protocol import Reply, Request, decode_reply, decode_request
from VelvetMedLib.worker.server import Context, describe, serve
from VelvetMedLib.worker.wording import exit_error, is_out_of_memory, without_paths

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=8), plain, max_size=5))
def test_whatever_goes_into_a_message_comes_out_of_its_one_line(params):
    line = Request(id=7, verb="analyze", params=params).encode()
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode_request(line) == Request(id=7, verb="analyze", params=params)


@given(st.binary(max_size=60))
def test_any_bytes_are_either_a_message_or_an_error_in_four_parts(line):
    for decode in (decode_request, decode_reply):
        try:
            decode(line)
        except WorkerError as problem:
            assert all(problem.as_dict().values())


@pytest.mark.parametrize(
    "line", [b"[1]", b'{"id": true, "verb": "hello"}', b'{"id": 1}', b'{"id": 1, "verb": "a", "params": 3}', b"\xff", b"[" * 9000]
)
def test_malformed_requests_are_refused(line):
    with pytest.raises(WorkerError):
        decode_request(line)


def test_numpy_numbers_travel_and_nan_does_not():
    line = Reply(kind="result", id=1, data={"a": np.float32(0.5), "b": np.arange(3), "c": np.bool_(True)}).encode()
    assert json.loads(line)["data"] == {"a": 0.5, "b": [0, 1, 2], "c": True}
    with pytest.raises(ValueError, match="JSON"):
        Reply(kind="result", id=1, data={"a": float("nan")}).encode()


@pytest.mark.parametrize(
    "text",
    [
        "No such file or directory: '/data/Doe Jane/ct 1.nii.gz'",
        "cannot open /data/Doe Jane/ct.nii.gz now",
        "cannot open /data/Doe Jane/ct of Doe.nii.gz now",
        r"failed: C:\Scans\Doe Jane\ct.nii",
        r"failed: \\server\share\Doe\ct.nii, line 3",
        "file:///data/Doe/scan.dcm is bad",
        "in ~/Doe/scan.dcm",
        "in ../Doe/scan.dcm",
        'File "/data/Doe/code.py", line 3, in main',
    ],
)
def test_no_path_and_no_name_in_it_survives(text):
    cleaned = without_paths(text)
    assert "Doe" not in cleaned and "[path]" in cleaned


def test_words_around_a_path_survive():
    assert without_paths('File "/data/x/code.py", line 3, in main') == 'File "[path]", line 3, in main'
    assert without_paths("2 of 3 tiles done (66 %)") == "2 of 3 tiles done (66 %)"


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, ["ModuleNotFoundError: No module named 'tokenizers.models'"], "missing_package"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory."], "out_of_memory"),
        (1, ["MemoryError"], "out_of_memory"),
        (-9, [], "killed"),
        (-11, ["Fatal Python error: Segmentation fault"], "killed"),
        (3, ["whatever"], "crashed"),
        (None, [], "crashed"),
    ],
)
def test_every_way_to_end_has_its_own_words(code, stderr, reason):
    found, problem = exit_error(code, stderr)
    assert found == reason
    assert all(problem.as_dict().values())


def test_out_of_memory_is_recognised_in_torchs_and_the_systems_words():
    assert is_out_of_memory("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert not is_out_of_memory("memory of the scan")


def test_describe_keeps_a_users_error_and_hides_everything_else(capsys, tmp_path):
    assert describe(Cancelled()) == Cancelled().as_dict()
    try:
        raise RuntimeError(f"bad {tmp_path}/Doe.nii")
    except RuntimeError as problem:
        words = describe(problem)
    printed = capsys.readouterr().err
    assert words["code"] == "internal" and str(tmp_path) not in str(words) + printed
    assert "test_protocol_and_words.py" in printed


def _conversation(handlers, *requests):
    stdout = io.BytesIO()
    serve(handlers, io.BytesIO(b"".join(requests)), stdout)
    return [decode_reply(line) for line in stdout.getvalue().splitlines()]


def test_a_line_that_is_no_message_is_answered_and_the_next_one_served():
    replies = _conversation({"hello": lambda params, context: {"x": 1}}, b"nonsense\n", Request(id=2, verb="nothing").encode())
    assert [(reply.kind, reply.id) for reply in replies] == [("error", None), ("ready", None), ("error", 2)] or [
        (reply.kind, reply.id) for reply in replies
    ] == [("ready", None), ("error", None), ("error", 2)]


def test_a_handler_that_cannot_be_understood_ends_in_an_error_not_in_silence():
    def handler(params, context):
        return {"thing": object()}

    read_end, write_end = os.pipe()
    stdout = io.BytesIO()
    with os.fdopen(read_end, "rb") as stdin, os.fdopen(write_end, "wb") as requests:
        thread = threading.Thread(target=serve, args=({"hello": handler}, stdin, stdout))
        thread.start()
        requests.write(Request(id=1, verb="hello").encode())
        requests.flush()
        end = time.monotonic() + 5
        while b'"error"' not in stdout.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        requests.close()
        thread.join(5)
        time.sleep(0.01)  # The reading thread has seen the end before its stream is closed.
    assert decode_reply(stdout.getvalue().splitlines()[-1]).data["code"] == "internal"


def test_progress_estimates_the_time_left_and_a_stop_is_raised_at_the_next_report():
    sent = []
    context = Context(1, sent.append)
    time.sleep(0.02)
    context.progress(0.5, "half")
    assert 0 <= sent[0].data["seconds_left"] < 5
    context.progress(0.6, "named", 12.34)
    assert sent[1].data["seconds_left"] == 12.3
    context.request_stop()
    with pytest.raises(Cancelled):
        context.progress(0.7, "named")


def test_the_private_folder_goes_with_everything_in_it(tmp_path):
    folder = PrivateFolder(tmp_path)
    path = folder.save_array(np.zeros((2, 3, 4), np.float32)[:, ::-1])
    assert np.load(path, allow_pickle=False).shape == (2, 3, 4)
    folder.remove()
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_arrays_of_objects_never_reach_the_disk(tmp_path):
    folder = PrivateFolder(tmp_path)
    with pytest.raises(TypeError):
        folder.save_array(np.array([{}], dtype=object))
    folder.remove()


def test_a_folder_left_by_a_crash_is_removed_at_the_next_start_and_one_in_use_is_not(tmp_path):
    alive = PrivateFolder(tmp_path)
    left = tmp_path / "velvetmed-worker-left"
    left.mkdir(mode=0o700)
    (left / "in-use").write_bytes(b"")
    (left / "000001.npy").write_bytes(b"voxels")
    for folder in (alive.path, left):
        os.utime(folder, (time.time() - 3600, time.time() - 3600))
    remove_stale(tmp_path)
    assert not left.exists()
    assert alive.path.exists()
    alive.remove()


def test_voxels_that_cannot_be_read_are_an_error_in_four_parts_and_are_deleted(tmp_path):
    path = tmp_path / "1.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(WorkerError) as caught:
        read_volume({"npy": str(path), "ijk_to_ras": np.eye(4).tolist()})
    assert str(tmp_path) not in str(caught.value)
    assert not path.exists()
    with pytest.raises(WorkerError):
        read_volume({})
