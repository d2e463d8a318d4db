"""One step in pieces equals the step as a whole: micro-batches, cached gradients, several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from Testing.engine import gradient_driver
from Testing.engine.gradient_driver import gradients
from VelvetMedLib.engine.processes import Processes

LOCAL_ONLY = ["itc=none", "mm=false", "vis=false"]


@pytest.fixture(scope="module")
def whole(studies_folder: Path, studies_store: Path, opened: Any) -> Any:
    """`whole(*settings)` -> gradients and losses of the step in one process and one batch."""

    @cache
    def made(*assignments: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        return gradients(studies_folder, studies_store, list(assignments), Processes("cpu"))

    return made


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1e-3
        assert float((found[name] - gradient).abs().max()) < 1e-9 * scale, name


def test_every_parameter_of_the_full_recipe_gets_a_gradient(whole: Any) -> None:
    found, losses = whole()
    assert len(losses) == 9 and all(value > 0 for value in losses.values())
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert sum(bool(gradient.abs().sum() > 0) for gradient in found.values()) > 0.9 * len(found)


def test_cached_gradients_equal_the_whole_batch(whole: Any, studies_folder: Path, studies_store: Path) -> None:
    settings = ["loop.batch=6", "loop.micro_batches=3", "loop.cached_gradients=true"]
    found, losses = gradients(studies_folder, studies_store, settings, Processes("cpu"))
    assert_equal(found, whole()[0])
    assert losses == pytest.approx(whole()[1], rel=1e-5)


def test_micro_batches_without_contrast_equal_the_whole_batch_with_unequal_counts(
    whole: Any, studies_folder: Path, studies_store: Path
) -> None:
    settings = [*LOCAL_ONLY, "loop.batch=6", "loop.micro_batches=3"]
    found, losses = gradients(studies_folder, studies_store, settings, Processes("cpu"))
    assert_equal(found, whole(*LOCAL_ONLY)[0])
    assert losses == pytest.approx(whole(*LOCAL_ONLY)[1], rel=1e-5)


def test_micro_batches_with_contrast_but_no_cache_are_not_the_whole_batch(whole: Any, studies_folder: Path, studies_store: Path) -> None:
    settings = ["loop.inexact_contrast=true", "loop.batch=6", "loop.micro_batches=3"]
    _, losses = gradients(studies_folder, studies_store, settings, Processes("cpu"))
    assert losses["report_contrast_loss"] != pytest.approx(whole()[1]["report_contrast_loss"], rel=1e-2)
    assert losses["masked_language_text_loss"] == pytest.approx(whole()[1]["masked_language_text_loss"], rel=1e-5)


def together(count: int, arguments: list[str]) -> None:
    """Start `count` processes of the driver as torchrun would, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, gradient_driver.__file__, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]
    for process in started:
        _, said = process.communicate(timeout=1200)
        assert process.returncode == 0, said.decode("utf-8")[-2000:]


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (2, []),
        pytest.param(2, ["loop.batch=6", "loop.micro_batches=2", "loop.cached_gradients=true"], marks=pytest.mark.slow),
        pytest.param(4, [], marks=pytest.mark.slow),
    ],
    ids=["two", "two with cached gradients", "four"],
)
def test_several_processes_give_the_gradients_of_one(
    whole: Any, studies_folder: Path, studies_store: Path, tmp_path: Path, count: int, settings: list[str]
) -> None:
    together(count, [str(studies_folder), str(studies_store), str(tmp_path / "g.safetensors"), *settings])
    assert_equal(load_file(tmp_path / "g.safetensors"), whole()[0])
    assert json.loads((tmp_path / "g.json").read_text(encoding="utf-8")) == pytest.approx(whole()[1], rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        pytest.param(["loop.recompute_activations=true"], marks=pytest.mark.slow),
        pytest.param(["loop.micro_batches=2", "loop.cached_gradients=true"], marks=pytest.mark.slow),
    ],
    ids=["plain", "recomputed activations", "cached gradients"],
)
def test_processes_that_share_the_weights_out_give_the_gradients_of_one(
    whole: Any, studies_folder: Path, studies_store: Path, tmp_path: Path, settings: list[str]
) -> None:
    settings = ["loop.parallel=fsdp", "loop.batch=4", *settings]
    together(2, [str(studies_folder), str(studies_store), str(tmp_path / "g.safetensors"), *settings])
    wanted = whole("loop.parallel=fsdp", "loop.batch=4")
    assert_equal(load_file(tmp_path / "g.safetensors"), wanted[0])
    assert json.loads((tmp_path / "g.json").read_text(encoding="utf-8")) == pytest.approx(wanted[1], rel=1e-5)
