"""What one worker keeps and refuses, without a process: the model in use, the device, and heat-maps on their own grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib import tasks
from VelvetMedLib.case import read_case
from VelvetMedLib.errors import WorkerError
from VelvetMedLib.worker.handlers import Session


class Quiet:
    """A context that nobody cancels."""

    def progress(self, fraction: float, stage: str, seconds_left: float | None = None) -> None:
        """Says nothing."""

    def cancel(self) -> None:
        """Nobody asks to stop."""


def test_a_model_that_is_named_again_is_not_loaded_again(random_bundle_folder: Path) -> None:
    session = Session()
    first = session.bundle({"bundle": str(random_bundle_folder), "device": "cpu"})
    assert session.bundle({"bundle": str(random_bundle_folder), "device": "cpu"}) is first
    assert session.bundle({"bundle": str(random_bundle_folder)}) is first


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu"])
def test_a_device_that_is_not_there_is_refused_in_words_before_the_model_is_loaded(
    random_bundle_folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WorkerError) as caught:
        Session().bundle({"bundle": str(random_bundle_folder), "device": device})
    assert device in caught.value.found and "CPU" in caught.value.next_step


def test_a_heat_map_has_one_peak_on_either_grid_and_the_answer_tells_whether_anything_is_marked(
    body: Any, random_bundle: Any, random_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import SimpleITK as sitk

    tasks.analyze(body, random_bundle, out=tmp_path / "case")
    name = next(f for f in read_case(tmp_path / "case").findings if f.name == "pleural_effusion")
    params = {"case": str(tmp_path / "case"), "phrase": name.display, "bundle": str(random_bundle_folder)}
    session = Session()
    answers = {}
    for scan_grid in (True, False):
        out = tmp_path / f"{scan_grid}.nii.gz"
        answers[scan_grid] = session.ground(params | {"out": str(out), "scan_grid": scan_grid}, Quiet())
    assert answers[True]["peak_ras_mm"] == answers[False]["peak_ras_mm"]
    image = sitk.ReadImage(str(tmp_path / "False.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    k, j, i = (int(n) for n in np.unravel_index(array.argmax(), array.shape))
    peak_lps = image.TransformIndexToPhysicalPoint((i, j, k))
    assert np.allclose(np.array(peak_lps) * (-1, -1, 1), answers[False]["peak_ras_mm"], atol=1e-3)
    assert sitk.ReadImage(str(tmp_path / "True.nii.gz")).GetSize() == body.voxels_kji.shape[::-1]
    plain = tasks.ground
    for threshold in (0.0, 1.01):  # every probability reaches the one, none the other
        monkeypatch.setattr(tasks, "ground", lambda *given, t=threshold: replace(plain(*given), threshold=t))
        assert session.ground(params, Quiet())["marked"] is (threshold == 0.0)
