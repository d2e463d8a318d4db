"""A pre-training without any head: scans and texts in one space, searched and shown; what it cannot do is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib import tasks
from VelvetMedLib.bundle.config import FindingEntry
from VelvetMedLib.ct import write_nifti
from VelvetMedLib.errors import BundleError, IndexMismatchError
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.abilities import has_heads, stages_of
from VelvetMedLib.tasks.encoding import load_encoding, save_encoding
from VelvetMedLib.tasks.text_vectors import text_vectors
from VelvetMedLib.tasks.views import fine_view, global_view
from VelvetMedLib.tasks.zero_shot import load_prompts, scores


@pytest.fixture(scope="module")
def encoding(body: Any, pretrained_bundle: Any) -> Any:
    return tasks.encode(body, pretrained_bundle)


def test_the_scan_becomes_its_global_view_and_the_vector_of_its_top_map(body: Any, encoding: Any, pretrained_bundle: Any) -> None:
    assert encoding.fine is None and encoding.reading is None and encoding.crop is None
    settings = pretrained_bundle.config.views
    view = fine_view(body, settings.fine.spacing_mm)
    seen = global_view(view, shape=settings.global_.shape_voxels, window=settings.global_.hu_window)
    with torch.inference_mode():
        top = pretrained_bundle.model.swin(torch.from_numpy(seen.voxels_xyz)[None, None])[4][0]
        projected = pretrained_bundle.model.image_projection["report"](top.flatten(1).mean(1))
    expected = (projected / projected.norm()).numpy()
    np.testing.assert_allclose(encoding.study_vector, expected, atol=1e-5)
    assert encoding.global_.picture.shape == (96, 96) and encoding.global_.picture.max() > 100


def test_it_survives_its_file_and_is_not_made_twice(
    encoding: Any, body: Any, pretrained_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = load_encoding(save_encoding(tmp_path / "encoding.safetensors", encoding))
    assert np.array_equal(back.study_vector, encoding.study_vector) and back.encoding_key == encoding.encoding_key
    for name in ("bottom", "middle", "top", "picture"):
        assert np.array_equal(getattr(back.global_, name), getattr(encoding.global_, name))
    assert back.fine is None and back.global_.view_spacing_mm == encoding.global_.view_spacing_mm
    monkeypatch.setattr(pretrained_bundle.model, "encode_global", None)
    assert tasks.encode(body, pretrained_bundle).global_ is not None


def test_an_analysis_makes_a_case_of_findings_alone_and_says_what_is_missing(body: Any, pretrained_bundle: Any, tmp_path: Path) -> None:
    said: list[float] = []
    case = tasks.analyze(body, pretrained_bundle, out=tmp_path / "case", progress=lambda done, *_: said.append(done))
    assert not case.segments and case.report is None and len(case.findings) == 21 and said[-1] == 1.0
    assert sum("The model in use has no" in warning for warning in case.warnings) == 2
    stored = tasks.case_encoding(tmp_path / "case", pretrained_bundle, required=True)
    for phrase, level in (("nodule", "word"), ("There is fluid in the pleural space on the left.", "sentence")):
        found = tasks.ground(stored, phrase, pretrained_bundle)
        assert found.source == "similarity" and found.level == level and found.heat_kji.max() == 1
    assert tasks.ask(tmp_path / "case", "Is there a lung nodule?", pretrained_bundle).answer


def test_findings_are_told_by_opposite_prompts_and_no_uncalibrated_score_clears(encoding: Any, pretrained_bundle: Any) -> None:
    scale = float(pretrained_bundle.model.contrast_scale())
    for score in scores(encoding, pretrained_bundle, ["pleural_effusion", "liver_lesion"]):
        pair = [[text] for text in load_prompts("1").of(score.finding)[0]]
        yes, no = (float(v @ encoding.study_vector) for v in text_vectors(pair, pretrained_bundle))
        assert score.score == pytest.approx(1 / (1 + np.exp(-scale * (yes - no))), abs=1e-4)
    used = replace(pretrained_bundle.config, findings=tuple(FindingEntry(name=f.name, threshold_present=0.5) for f in ontology().findings))
    states = {f.state for f in tasks.find(encoding, replace(pretrained_bundle, config=used))}
    assert states <= {"uncertain", "not_assessed"} and "uncertain" in states


def test_a_folder_of_scans_is_indexed_and_searched_by_scan_and_by_words(
    make_body: Callable[..., Any], pretrained_bundle: Any, tmp_path: Path
) -> None:
    volumes = [make_body(seed=seed) for seed in (1, 2)] + [make_body((40, 40, 60), 4.0, 3)]
    (tmp_path / "scans").mkdir()
    for n, volume in enumerate(volumes):
        write_nifti(tmp_path / "scans" / f"s{n}.nii.gz", volume.voxels_kji, volume.ijk_to_ras)
    made = tasks.index_folder(tmp_path / "scans", tmp_path / "index", pretrained_bundle)
    assert made.count == 3 and not made.skipped
    index = tasks.Index(tmp_path / "index", pretrained_bundle)
    vectors = [tasks.encode(v, pretrained_bundle).study_vector for v in volumes]
    hits = tasks.search(index, volume=volumes[0], count=3)
    order = [n for n in np.argsort([-(v @ vectors[0]) for v in vectors]) if n != 0]
    assert [h.number - 1 for h in hits] == order and all(hit.picture for hit in hits)
    said = text_vectors([["pleural effusion"]], pretrained_bundle)[0]
    by_words = tasks.search(index, text="pleural effusion", count=3)
    assert [h.number - 1 for h in by_words] == list(np.argsort([-(v @ said) for v in vectors]))
    with pytest.raises(BundleError, match="vectors of organs"):
        tasks.search(index, volume=volumes[0], region="liver")


def test_what_needs_trained_heads_is_refused_in_words(body: Any, pretrained_bundle: Any, random_bundle: Any) -> None:
    for part in ("fine", "reader"):
        with pytest.raises(BundleError, match="cannot make"):
            tasks.encode(body, pretrained_bundle, needs={part})
    with pytest.raises(BundleError, match="cannot make"):
        tasks.revise(body, np.zeros(body.shape_kji, np.uint8), [1], pretrained_bundle)
    assert has_heads(random_bundle) and not has_heads(pretrained_bundle)
    shares = {"prepare": 0.2, "fine": 0.5, "global": 0.1, "report": 0.2}
    assert stages_of(pretrained_bundle, shares) == {"prepare": 0.2, "global": 0.1} and stages_of(random_bundle, shares) == shares


def test_a_folder_of_which_nothing_can_be_read_says_why(pretrained_bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(IndexMismatchError, match="nothing to index") as caught:
        tasks.index_folder(tmp_path / "scans", tmp_path / "index", pretrained_bundle)
    assert "entry 1: " in caught.value.found
