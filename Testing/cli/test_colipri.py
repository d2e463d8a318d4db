"""The command line around a published model: asked before fetching, added from a file, embedding, listed, shown and removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.plugins.colipri_bundles import tiny_source, write_released
from VelvetMedLib.bundle import published
from VelvetMedLib.bundle.download import Offer
from VelvetMedLib.cli import main
from VelvetMedLib.ct import write_nifti


@pytest.fixture
def added(colipri_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    weights = write_released(tmp_path / "files")
    assert main(["models", "add", "colipri", "--weights", str(weights), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["name"] == "colipri" and said["tensors"]["text_tensors"] > 0 and said["licence"].startswith("MIT")
    return colipri_home


@pytest.fixture
def scan(body: Any, tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, body.voxels_kji, body.ijk_to_ras)
    return path


def test_embed_writes_the_vector_of_the_scan_and_of_every_cell_with_its_place(
    added: Path, scan: Path, tmp_path: Path, body: Any, colipri_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from VelvetMedLib import tasks

    out = tmp_path / "vectors.npz"
    assert main(["embed", str(scan), "--bundle", "colipri", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == [4, 4, 4]
    with np.load(out, allow_pickle=False) as stored:
        part = tasks.encode(body, colipri_bundle).need_crop()
        assert stored["dense"].shape == (16, 4, 4, 4) and stored["embedding"].shape == (16,)
        assert stored["embedding"] @ part.embedding > 0.999
        np.testing.assert_allclose(stored["ijk_to_ras"], part.grid.ijk_to_ras, atol=1e-3)
    assert main(["embed", str(scan), "--bundle", "colipri", "--view", "windowed", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == [8, 8, 8]


def test_a_case_of_prompts_is_grounded_and_the_model_is_listed_shown_and_removed(
    added: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(scan), "--bundle", "colipri", "--out", str(tmp_path / "case")]) == 0
    assert "no draft report" in capsys.readouterr().out
    assert main(["ground", str(tmp_path / "case"), "lung nodule", "--bundle", "colipri"]) == 0
    assert "similarity" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    assert "colipri" in capsys.readouterr().out
    assert main(["models", "show", "colipri"]) == 0
    assert "which pair the weights were trained with is not known" in " ".join(capsys.readouterr().out.split())
    assert main(["models", "remove", "colipri"]) == 0
    assert not (added / "bundles" / "colipri").exists()


def test_without_yes_and_without_a_terminal_the_download_is_shown_and_not_made(
    colipri_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(published.SOURCES, "colipri", tiny_source("https://example.org"))
    monkeypatch.setattr("VelvetMedLib.bundle.download.offer", lambda url: Offer(url, 1_033_000_000, "ab" * 32, "tag"))
    monkeypatch.setattr("VelvetMedLib.bundle.download.fetch", lambda *words: pytest.fail("a byte was fetched without a yes"))
    assert main(["models", "add", "colipri"]) == 2
    shown = capsys.readouterr().err
    for word in ("1033.0 MB", "https://example.org/model.safetensors", "MIT", "ab" * 32, "--yes"):
        assert word in shown


def test_weights_for_a_name_that_nobody_published_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "add", "nonsense", "--weights", str(tmp_path / "x.safetensors")]) == 2
    assert "not known by name" in capsys.readouterr().err
