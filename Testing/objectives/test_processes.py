"""Many processes give the loss and the gradient of one, for every objective, also with unequal counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from Testing.objectives.world import SEED, STEP, terms_and_gradients
from VelvetMedLib.objectives.context import Context

TERMS = {"toys": 9, "colipri_toys": 5, "t3d_toys": 6, "disruptive_toys": 1}
"""Losses of each set of toys."""

# A starved machine starts a process slowly; what a healthy one needs is seconds.
pytestmark = pytest.mark.timeout(600)


def run(folder: Path, world_size: int, scenarios: list[dict[str, Any]], repository: Path) -> None:
    """Starts the processes and compares each scenario with one process that holds all studies."""
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "Testing.objectives.world", str(folder), str(rank), str(world_size)],
            cwd=repository,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        said = [child.communicate(timeout=500)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert all(child.returncode == 0 for child in children), "\n".join(text[-2000:] for text in said)
    results = json.loads((folder / "results.json").read_text())
    for n, scenario in enumerate(scenarios):
        everyone = [item for share in scenario["shares"] for item in share]
        of = scenario.get("of", "toys")
        alone = terms_and_gradients([everyone], 0, Context(seed=SEED, step=STEP), one_group=scenario["one_group"], of=of)
        assert alone.keys() == results[n].keys() and len(alone) == TERMS[of]
        for name, (value, gradient) in alone.items():
            assert results[n][name] == pytest.approx(value, rel=1e-9, abs=1e-12), (scenario, name)
            together = torch.from_numpy(np.fromfile(folder / f"{n}_{name}.f64"))
            assert torch.allclose(together, gradient, rtol=1e-7, atol=1e-10), (scenario, name)
            assert gradient.any() or value == 0, (scenario, name)


def test_two_processes_of_four_studies_equal_one_of_eight_for_every_objective(tmp_path: Path, repository: Path) -> None:
    # Study 3 has no sentence, reports and masks are of unequal length; then unequal shares; then no legal negative at all.
    scenarios = [
        {"shares": [[0, 1, 2, 3], [4, 5, 6, 7]], "one_group": False},
        {"shares": [[3], [0, 4, 5, 7, 6]], "one_group": False},
        {"shares": [[0, 1], [2, 3]], "one_group": True},
    ]
    run(tmp_path, 2, scenarios, repository)


def test_two_processes_equal_one_for_every_objective_of_colipri_style_training(tmp_path: Path, repository: Path) -> None:
    # Studies without opposites, a scan all of padding but a few cells, unequal shares; then no legal negative at all.
    scenarios = [
        {"shares": [[0, 1, 2, 3], [4, 5, 6, 7]], "one_group": False, "of": "colipri_toys"},
        {"shares": [[2], [0, 6, 4, 5, 7]], "one_group": False, "of": "colipri_toys"},
        {"shares": [[0, 1], [2, 3]], "one_group": True, "of": "colipri_toys"},
    ]
    run(tmp_path, 2, scenarios, repository)


def test_two_processes_equal_one_for_disruptive_restoration(tmp_path: Path, repository: Path) -> None:
    scenarios = [{"shares": [[0, 1, 2], [3]], "one_group": False, "of": "disruptive_toys"}]
    run(tmp_path, 2, scenarios, repository)


@pytest.mark.slow
def test_two_processes_equal_one_for_every_objective_of_t3d_style_training(tmp_path: Path, repository: Path) -> None:
    # Studies 0 and 4, 5 and 7 are one group; view B of study 2 reads nothing; the voxels asked for differ by study.
    scenarios = [
        {"shares": [[0, 1, 2, 3], [4, 5, 6, 7]], "one_group": False, "of": "t3d_toys"},
        {"shares": [[2], [0, 4, 5, 7, 6]], "one_group": False, "of": "t3d_toys"},
        {"shares": [[0, 1], [2, 3]], "one_group": True, "of": "t3d_toys"},
    ]
    run(tmp_path, 2, scenarios, repository)


@pytest.mark.slow
def test_four_processes_of_two_studies_equal_one_of_eight_for_every_objective(tmp_path: Path, repository: Path) -> None:
    scenarios = [
        {"shares": [[0, 1], [2, 3], [4, 5], [6, 7]], "one_group": False},
        {"shares": [[3], [0, 1, 2], [7, 6], [4]], "one_group": False},
        {"shares": [[0], [1], [2], [3]], "one_group": True},
    ]
    run(tmp_path, 4, scenarios, repository)
