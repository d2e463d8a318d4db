"""A model that takes one crop, wherever no trained head is needed: vectors, findings from prompts, maps of phrases, search, a Case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib import tasks
from VelvetMedLib.case import read_case
from VelvetMedLib.ct import from_array, write_nifti
from VelvetMedLib.ct.crops import centre_crop
from VelvetMedLib.errors import BundleError, Cancelled, IndexMismatchError, UsageError
from VelvetMedLib.tasks.encoding import load_encoding, save_encoding
from VelvetMedLib.tasks.text_vectors import text_vectors
from VelvetMedLib.tasks.zero_shot import VARIANTS, find_by_prompts, load_prompts, score_of, scores


@pytest.fixture
def encoding(body: Any, colipri_bundle: Any) -> Any:
    return tasks.encode(body, colipri_bundle)


def slow_crop(body: Any, bundle: Any, orientation: str) -> torch.Tensor:
    """Features by hand: the view, its axes turned, the model."""
    view = centre_crop(body, 2.0, (32, 32, 32), (-1000.0, 1000.0))
    voxels = torch.from_numpy(view.voxels_xyz)
    x = voxels if orientation == "RAS" else voxels.permute(2, 1, 0)
    with torch.no_grad():
        return bundle.model.features(x[None, None].contiguous())


@pytest.mark.parametrize("orientation", ["RAS", "SAR"])
def test_vectors_are_those_of_the_model_on_the_view_and_cells_come_back_in_body_order(
    body: Any, colipri_bundles: Callable[..., Any], orientation: str
) -> None:
    bundle = colipri_bundles(orientation=orientation)
    part = tasks.encode(body, bundle).need_crop()
    features = slow_crop(body, bundle, orientation)
    with torch.no_grad():
        np.testing.assert_allclose(part.embedding, bundle.model.pooled(features)[0].numpy(), atol=1e-5)
        dense = bundle.model.dense(features)[0].numpy()
    wanted = dense if orientation == "RAS" else dense.transpose(0, 3, 2, 1)
    assert part.dense.dtype == np.float16 and part.dense.shape == (16, 4, 4, 4)
    np.testing.assert_allclose(part.dense, wanted, atol=2e-3)


def test_the_two_orientations_are_two_encodings(body: Any, colipri_bundles: Callable[..., Any]) -> None:
    first, second = (colipri_bundles(orientation=o) for o in ("RAS", "SAR"))
    assert first.encoding_key != second.encoding_key
    assert not np.allclose(tasks.encode(body, first).study_vector, tasks.encode(body, second).study_vector, atol=1e-3)


def test_a_scan_stored_in_another_order_gives_the_same_vectors(body: Any, colipri_bundle: Any) -> None:
    matrix = body.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, 2] * (body.shape_kji[0] - 1)
    matrix[:3, 2] *= -1
    flipped = from_array(np.ascontiguousarray(body.voxels_kji[::-1]), matrix)
    first, second = (tasks.encode(v, colipri_bundle).need_crop() for v in (body, flipped))
    np.testing.assert_allclose(first.embedding, second.embedding, atol=1e-5)
    assert first.grid.equals(second.grid)


def test_the_windowed_view_is_finer_and_another_encoding_of_the_same_scan(body: Any, colipri_bundle: Any) -> None:
    part = tasks.encode(body, colipri_bundle, needs={"windowed"}).need_crop()
    assert part.view == "windowed" and part.dense.shape == (16, 8, 8, 8) and np.allclose(part.grid.spacing_mm, 8.0)
    view = centre_crop(body, 1.0, (64, 64, 64), (-1000.0, 1000.0))
    with torch.no_grad():
        features = colipri_bundle.model.features_by_windows(torch.from_numpy(view.voxels_xyz)[None, None], 32)
        np.testing.assert_allclose(part.embedding, colipri_bundle.model.pooled(features)[0].numpy(), atol=1e-5)
    assert tasks.encode(body, colipri_bundle).need_crop().view == "crop"


def test_the_second_call_runs_no_encoder(body: Any, colipri_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tasks.encode(body, colipri_bundle)
    monkeypatch.setattr(type(colipri_bundle.model), "features", None)
    assert tasks.encode(body, colipri_bundle).crop is first.crop


def test_a_cancel_is_honoured_between_blocks(make_body: Callable[..., Any], colipri_bundle: Any) -> None:
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) > 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        tasks.encode(make_body(seed=91), colipri_bundle, cancel=cancel)


def test_half_precision_gives_nearly_the_same_vectors(body: Any, colipri_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("VELVETMED_PRECISION", precision)
        tasks.forget_encodings()
        found.append(tasks.encode(body, colipri_bundle))
    tasks.forget_encodings()
    assert [e.precision for e in found] == ["fp32", "bf16"]
    first, second = (e.need_crop() for e in found)
    assert first.embedding @ second.embedding >= 0.999
    assert np.einsum("cxyz,cxyz->xyz", first.dense.astype(np.float32), second.dense.astype(np.float32)).min() >= 0.998


def test_an_encoding_survives_its_file(encoding: Any, tmp_path: Path) -> None:
    back = load_encoding(save_encoding(tmp_path / "encoding.safetensors", encoding))
    first, second = encoding.need_crop(), back.need_crop()
    np.testing.assert_array_equal(first.dense, second.dense)
    np.testing.assert_array_equal(first.embedding, second.embedding)
    np.testing.assert_array_equal(first.picture, second.picture)
    assert first.grid.equals(second.grid) and first.covered == second.covered and first.view == second.view
    assert (back.volume_sha256, back.encoding_key, back.precision) == (encoding.volume_sha256, encoding.encoding_key, encoding.precision)


@pytest.mark.parametrize("heads", [False, True])
def test_progress_ends_near_one_for_either_kind_of_model(
    make_body: Callable[..., Any], colipri_bundle: Any, random_bundle: Any, heads: bool
) -> None:
    seen: list[float] = []
    tasks.encode(make_body(seed=92), random_bundle if heads else colipri_bundle, progress=lambda fraction, *_: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] > 0.9


# findings from prompts


def test_prompts_exist_for_every_finding_and_the_first_pair_is_the_published_form() -> None:
    prompts = load_prompts("1")
    assert prompts.of("lung_nodule")[0] == ("Lung nodules present", "No lung nodules present")
    from VelvetMedLib.reports import ontology

    assert set(prompts.words) == set(ontology().finding_names)
    assert len(prompts.pairs) >= 3 and all(p.count("{}") == n.count("{}") == 1 for p, n in prompts.pairs)


def test_scores_follow_their_named_formula(encoding: Any, colipri_bundle: Any) -> None:
    prompts, names = load_prompts("1"), ["pleural_effusion", "lung_nodule"]
    for variant in VARIANTS:
        for found in scores(encoding, colipri_bundle, names, variant=variant):
            pairs = prompts.of(found.finding)
            cosines = [[float(text_vectors([[t]], colipri_bundle)[0] @ encoding.study_vector) for t in pair] for pair in pairs]
            difference = np.array([p - n for p, n in cosines])
            wanted = {
                "pair_softmax": 1 / (1 + np.exp(-difference[0] / 0.07)),
                "sigmoid_difference": 1 / (1 + np.exp(-difference[0])),
                "template_mean": np.mean(1 / (1 + np.exp(-difference / 0.07))),
            }[variant]
            assert found.score == pytest.approx(wanted, abs=1e-4) and found.variant == variant and found.prompts == "1"


def test_opposite_prompts_share_one_soft_max() -> None:
    pair = [(0.31, 0.27)]
    assert score_of(pair, "pair_softmax", 0.07) + score_of([(0.27, 0.31)], "pair_softmax", 0.07) == pytest.approx(1.0)
    assert score_of([(1.0, -1.0)], "pair_softmax", 1e-4) == pytest.approx(1.0)
    assert score_of([(-1.0, 1.0)], "pair_softmax", 1e-4) == pytest.approx(0.0)


def test_an_unknown_score_is_refused_by_name(encoding: Any, colipri_bundle: Any) -> None:
    with pytest.raises(UsageError, match="not known"):
        scores(encoding, colipri_bundle, variant="vibes")


def test_an_uncalibrated_model_may_draw_attention_but_never_clears(encoding: Any, colipri_bundle: Any) -> None:
    findings = find_by_prompts(encoding, colipri_bundle)
    by_name = {s.finding: s.score for s in scores(encoding, colipri_bundle)}
    assert {f.state for f in findings} <= {"uncertain", "not_assessed"}
    for finding in findings:
        assert (finding.state == "uncertain") == (by_name[finding.name] >= 0.65) and finding.probability is None
        assert "pair_softmax" in finding.reason and "not calibrated" in finding.reason


def test_a_calibrated_bundle_gives_states_and_probabilities(encoding: Any, colipri_bundle: Any) -> None:
    from dataclasses import replace

    config = colipri_bundle.config
    measured = replace(colipri_bundle, config=replace(config, zero_shot=replace(config.zero_shot, calibrated=True)))
    findings = tasks.find(encoding, measured)
    by_name = {s.finding: s.score for s in scores(encoding, measured)}
    for finding in findings:
        score = by_name[finding.name]
        assert finding.probability == pytest.approx(score, abs=1e-3)
        assert finding.state == ("present" if score >= 0.65 else "absent" if score < 0.35 else "uncertain")


def test_an_image_half_assesses_nothing_and_refuses_words(body: Any, colipri_bundles: Callable[..., Any]) -> None:
    bundle = colipri_bundles(text=False)
    encoding = tasks.encode(body, bundle)
    assert {f.state for f in tasks.find(encoding, bundle)} == {"not_assessed"}
    with pytest.raises(BundleError, match="cannot read text"):
        tasks.ground(encoding, "effusion", bundle)


# maps, search, Case


def test_a_phrase_is_shown_where_its_cells_are_most_like_it(encoding: Any, colipri_bundle: Any) -> None:
    found = tasks.ground(encoding, "pleural effusion on the left", colipri_bundle)
    part = encoding.need_crop()
    cosine = np.einsum("cxyz,c->xyz", part.dense.astype(np.float32), text_vectors([["pleural effusion on the left"]], colipri_bundle)[0])
    x, y, z = np.unravel_index(int(cosine.argmax()), cosine.shape)
    point = (part.grid.ijk_to_ras @ np.array([x, y, z, 1.0]))[:3]
    np.testing.assert_allclose(found.peak_ras_mm, point, atol=1e-6)
    assert found.source == "similarity" and found.score == pytest.approx(float(cosine.max()), abs=1e-3)
    on_scan = found.on(encoding.scan_grid)
    assert on_scan.shape == encoding.scan_grid.shape_kji and 0.5 < on_scan.max() <= 1.0


def test_padding_beside_a_small_scan_is_never_the_peak(make_body: Callable[..., Any], colipri_bundle: Any) -> None:
    small = make_body((8, 8, 40), 4.0, 3)
    part = tasks.encode(small, colipri_bundle).need_crop()
    assert part.covered[2][1] - part.covered[2][0] < 4
    for phrase in ("nodule", "effusion", "no mass", "liver"):
        heat = tasks.ground(tasks.encode(small, colipri_bundle), phrase, colipri_bundle).heat_kji
        outside = np.ones(heat.shape, bool)
        (x0, x1), (y0, y1), (z0, z1) = part.covered
        outside[z0:z1, y0:y1, x0:x1] = False
        assert heat[outside].max(initial=0.0) == 0.0


def test_a_folder_of_scans_is_indexed_and_searched_by_scan_and_by_words(
    make_body: Callable[..., Any], colipri_bundle: Any, colipri_bundles: Callable[..., Any], tmp_path: Path
) -> None:
    volumes = [make_body(seed=seed) for seed in (1, 2)] + [make_body((40, 40, 60), 4.0, 3)]
    (tmp_path / "scans").mkdir()
    for n, volume in enumerate(volumes):
        write_nifti(tmp_path / "scans" / f"s{n}.nii.gz", volume.voxels_kji, volume.ijk_to_ras)
    made = tasks.index_folder(tmp_path / "scans", tmp_path / "index", colipri_bundle)
    assert made.count == 3 and not made.skipped
    index = tasks.Index(tmp_path / "index", colipri_bundle)
    hits = tasks.search(index, volume=make_body(seed=1), count=3)
    vectors = [tasks.encode(v, colipri_bundle).study_vector for v in volumes]
    assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True) and len(hits) == 2
    said = text_vectors([["pleural effusion"]], colipri_bundle)[0]
    by_words = tasks.search(index, text="pleural effusion", count=3)
    assert [h.number - 1 for h in by_words] == list(np.argsort([-(v @ said) for v in vectors]))
    assert all(hit.picture and hit.region is None for hit in by_words)
    with pytest.raises(BundleError, match="vectors of organs"):
        tasks.search(index, volume=volumes[0], region="liver")
    with pytest.raises(IndexMismatchError):
        tasks.Index(tmp_path / "index", colipri_bundles(orientation="SAR"))


def test_an_analysis_makes_a_case_of_findings_alone_and_says_what_is_missing(body: Any, colipri_bundle: Any, tmp_path: Path) -> None:
    case = tasks.analyze(body, colipri_bundle, out=tmp_path / "case")
    assert not case.segments and case.report is None and len(case.findings) == 21
    assert sum("The model in use has no" in warning for warning in case.warnings) == 2
    stored = tasks.case_encoding(tmp_path / "case", colipri_bundle, required=True)
    assert tasks.ground(stored, "lung nodule", colipri_bundle).source == "similarity"
    hit = tasks.ask(tmp_path / "case", "Is there a lung nodule?", colipri_bundle)
    assert hit.answer and read_case(tmp_path / "case").answers


def test_what_needs_trained_heads_is_refused_in_words(body: Any, colipri_bundle: Any) -> None:
    with pytest.raises(BundleError, match="cannot make"):
        tasks.encode(body, colipri_bundle, needs={"fine"})
    with pytest.raises(BundleError, match="cannot make"):
        tasks.revise(body, np.zeros(body.shape_kji, np.uint8), [1], colipri_bundle)


def test_a_bundle_with_heads_has_no_crop_and_says_so(body: Any, random_bundle: Any) -> None:
    with pytest.raises(BundleError, match="no such view"):
        tasks.encode(body, random_bundle, needs={"windowed"})
