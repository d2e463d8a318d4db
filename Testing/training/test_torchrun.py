"""pretrain.py under the real torchrun: two processes train as one would, write once, stop in order when asked, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pretrain
import pytest
import torch

from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.log import read_log

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="torchrun is stopped by a POSIX signal")]

ROOT = Path(pretrain.__file__).resolve().parents[1]
STEPS = 8


def line(folder: Path, run: Path) -> list[str]:
    """Without dropout, which draws by process: then two processes and one do the same sums."""
    return [
        "velvet", "--preset", "micro", "--manifest", str(folder / "studies.jsonl"), "--tokenizer", str(folder / "tokenizer.json"),
        "--run", str(run), "--store", str(folder / "store"), "--steps", str(STEPS), "--seed", "3", "--device", "cpu",
        "--set", "text_dropout=0",
    ]  # fmt: skip


def torchrun(words: list[str]) -> subprocess.Popen[str]:
    """As the README writes it; --standalone finds a free port. The two dashes keep torchrun from reading --run as its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", "training/pretrain.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=250)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate(timeout=40)
        pytest.fail(f"torchrun did not end: {err[-3000:]}")
    return process.returncode, out, err


def losses(run: Path) -> list[dict[str, Any]]:
    return [record["losses"] for record in read_log(run) if "losses" in record]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_of_torchrun_train_stop_and_go_on_as_one_process_and_only_the_first_writes(
    studies_folder: Path, tmp_path: Path, parallel: str
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert pretrain.main(line(studies_folder, tmp_path / "one")) == 0
    finally:
        torch.set_num_threads(threads)
    two = tmp_path / "two"
    words = [*line(studies_folder, two), "--set", f"loop.parallel={parallel}"]

    # A cluster asks a job to stop: torchrun hands it on, and both processes end after the same step.
    process = torchrun(words)
    for _ in range(2400):
        if process.poll() is not None or ((two / "log.jsonl").exists() and losses(two)):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, said, complaints = ended(process)
    assert code != 0, said
    kept = Checkpoints(two).load()
    assert kept is not None and 1 <= kept.step < STEPS, complaints[-3000:]
    assert "Stopped on request" in said + complaints

    code, said, complaints = ended(torchrun(words))
    assert code == 0, complaints[-3000:]
    assert f"Going on from step {kept.step}." in said + complaints
    # One process writes: every step once, one line for each start, no file of the second process.
    assert [record["step"] for record in read_log(two) if "losses" in record] == list(range(1, STEPS + 1))
    starts = [json.loads(text) for text in (two / "starts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(entry["processes"], entry["resumed"]) for entry in starts] == [(2, False), (2, True)]
    assert said.count("studies to learn from") == 1 and said.count("written") == 1
    assert {path.name for path in two.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}

    # The whole batch in one process gives the same losses, all nine, step by step; rounding grows a little with each update.
    first, second = losses(tmp_path / "one"), losses(two)
    assert len(first) == len(second) == STEPS and len(first[0]) == 9
    for step, (alone, together) in enumerate(zip(first, second, strict=True)):
        assert together == pytest.approx(alone, rel=1e-5 if step == 0 else 2e-2), step
