"""A pre-training that is killed with SIGKILL anywhere, on one process or two, goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.log import read_log

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")

DRIVER = Path(__file__).with_name("pretrain_driver.py")
STEPS = 7


def words(folder: Path, run: Path) -> list[str]:
    return [
        "velvet", "--preset", "micro", "--manifest", str(folder / "studies.jsonl"), "--tokenizer", str(folder / "tokenizer.json"),
        "--run", str(run), "--store", str(folder / "store"), "--steps", str(STEPS), "--seed", "3", "--device", "cpu",
        "--set", "optimiser.average_decay=0.9", "--set", "loop.validate_every=3",
    ]  # fmt: skip


def start(where: str, line: list[str], *, count: int = 1) -> list[int]:
    """Run the line in `count` processes as torchrun would; all have the trap. Returns the exit codes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    each: list[dict[str, str]] = [{}]
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        each = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    command = [sys.executable, str(DRIVER), where, *line]
    running = [subprocess.Popen(command, env={**environment, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for own in each]
    codes = []
    for process in running:
        try:
            _, said = process.communicate(timeout=1200)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        codes.append(process.returncode)
        if process.returncode not in (0, 75, -signal.SIGKILL):
            # A process whose partner was killed ends with an error of its own; anything else is a failure to show.
            assert count > 1, said.decode("utf-8")[-3000:]
    return codes


def tensors(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    made = Checkpoints(run)
    found = made.load() if name == "last" else made.load_best()
    assert found is not None and (name == "best" or found.step == STEPS)
    return {f"{part}/{key}": value for part, values in found.parts.items() for key, value in values.items()}


def figures(run: Path) -> list[dict[str, Any]]:
    timing = {"seconds", "volumes_per_second", "waiting_share", "memory_mib"}
    return [{key: value for key, value in record.items() if key not in timing} for record in read_log(run)]


def assert_same_bits(one: Path, two: Path) -> None:
    for name in ("last", "best"):
        first, second = tensors(one, name), tensors(two, name)
        assert first.keys() == second.keys()
        assert not [key for key in first if not torch.equal(first[key], second[key])]
    assert figures(one) == figures(two)
    states = [json.loads((run / "checkpoints/last/state.json").read_text(encoding="utf-8"))["facts"]["random"] for run in (one, two)]
    assert states[0] == states[1]
    best = [json.loads((run / "checkpoints/best/state.json").read_text(encoding="utf-8"))["step"] for run in (one, two)]
    assert best[0] == best[1]


def test_killed_between_steps_and_inside_two_checkpoints_one_process_goes_on_bit_for_bit(studies_folder: Path, tmp_path: Path) -> None:
    line = words(studies_folder, tmp_path / "whole")
    assert start("none", line) == [0]
    broken = words(studies_folder, tmp_path / "broken")
    # Checkpoints fall on steps 2, 4, 6 and 7.
    for where in ("step:3", "write:1", "rename:1"):
        assert start(where, broken) == [-signal.SIGKILL], where
    assert start("none", broken) == [0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")
    starts = [json.loads(text) for text in (tmp_path / "broken/starts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["resumed"] for entry in starts] == [False, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step:1", "step:2", "step:4", "step:5", "step:6", "write:2", "write:4", "rename:2", "term:5"])
def test_killed_at_any_step_one_process_goes_on_bit_for_bit(studies_folder: Path, tmp_path: Path, where: str) -> None:
    assert start("none", words(studies_folder, tmp_path / "whole")) == [0]
    broken = words(studies_folder, tmp_path / "broken")
    assert start(where, broken) == [75 if where.startswith("term") else -signal.SIGKILL]
    assert start("none", broken) == [0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step:3", "step:4", "write:2", "rename:1", "term:3"])
def test_killed_on_two_processes_both_go_on_bit_for_bit(studies_folder: Path, tmp_path: Path, where: str) -> None:
    assert start("none", words(studies_folder, tmp_path / "whole"), count=2) == [0, 0]
    broken = words(studies_folder, tmp_path / "broken")
    codes = start(where, broken, count=2)
    assert codes[0] == (75 if where.startswith("term") else -signal.SIGKILL) and codes[1] != 0
    assert start("none", broken, count=2) == [0, 0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_a_run_begun_on_one_process_can_go_on_on_two(studies_folder: Path, tmp_path: Path) -> None:
    line = words(studies_folder, tmp_path / "whole") + ["--set", "text_dropout=0"]
    assert start("none", line) == [0]
    broken = words(studies_folder, tmp_path / "broken") + ["--set", "text_dropout=0"]
    assert start("step:5", broken) == [-signal.SIGKILL]
    assert start("none", broken, count=2) == [0, 0]
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "broken")
    close = [key for key in first if key.startswith("weights/") and not torch.allclose(first[key], second[key], atol=2e-3)]
    assert not close


@pytest.mark.slow
def test_sharded_optimiser_state_gives_the_same_bits_and_either_way_takes_up_the_others_run(studies_folder: Path, tmp_path: Path) -> None:
    sharded = ["--set", "loop.parallel=sharded"]
    assert start("none", words(studies_folder, tmp_path / "whole"), count=2) == [0, 0]
    assert start("none", words(studies_folder, tmp_path / "shards") + sharded, count=2) == [0, 0]
    assert_same_bits(tmp_path / "whole", tmp_path / "shards")
    broken = words(studies_folder, tmp_path / "broken")
    assert start("step:3", broken + sharded, count=2)[0] == -signal.SIGKILL
    assert start("step:5", broken, count=2)[0] == -signal.SIGKILL
    assert start("none", broken + sharded, count=2) == [0, 0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_that_share_the_weights_out_are_killed_and_go_on_bit_for_bit_and_other_ways_take_up_their_run(
    studies_folder: Path, tmp_path: Path
) -> None:
    shared_out = ["--set", "loop.parallel=fsdp"]
    assert start("none", words(studies_folder, tmp_path / "whole") + shared_out, count=2) == [0, 0]
    broken = words(studies_folder, tmp_path / "broken") + shared_out
    for where in ("step:3", "write:1", "rename:1"):
        assert start(where, broken, count=2)[0] == -signal.SIGKILL
    assert start("none", broken, count=2) == [0, 0]
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")
    # The checkpoint is whole: no number of processes and no way of sharing is written into it.
    plain = words(studies_folder, tmp_path / "plain")
    assert start("none", plain, count=2) == [0, 0]
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "plain")
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    far = [name for name in first if name.startswith("weights/") and not torch.allclose(first[name], second[name], atol=1e-3)]
    assert not far
    assert (tmp_path / "whole/bundle/bundle.json").is_file()
    mixed = words(studies_folder, tmp_path / "mixed")
    assert start("step:5", mixed + shared_out, count=2)[0] == -signal.SIGKILL
    assert start("none", mixed) == [0]
