"""The whole job on a small scan: one Case, the same in physical space however the scan lies, and nothing half-made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib import DRAFT_DISCLAIMER, tasks
from VelvetMedLib.case import read_case, read_segmentation
from VelvetMedLib.ct import from_array
from VelvetMedLib.errors import BundleError, Cancelled, CaseError, UsageError
from VelvetMedLib.tasks.analysis import ENCODING_FILE
from VelvetMedLib.tasks.encoding import load_encoding
from VelvetMedLib.tasks.grounding import cell_grid


@pytest.fixture(scope="module")
def case_folder(tmp_path_factory: pytest.TempPathFactory, body: Any, random_bundle: Any) -> Path:
    out = tmp_path_factory.mktemp("cases") / "case"
    tasks.forget_encodings()
    tasks.analyze(body, random_bundle, out=out)
    return out


@pytest.fixture
def copy(case_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(case_folder, tmp_path / "case"))


def test_the_case_holds_what_the_issue_names(case_folder: Path, body: Any, random_bundle: Any):
    data = json.loads((case_folder / "case.json").read_text("utf-8"))
    assert {"label", "name", "code", "color", "volume_ml"} <= set(data["segments"][0])
    assert {"name", "state", "probability", "side", "site", "size_mm", "link"} <= set(data["findings"][0])
    assert {"text", "state", "support", "link"} <= set(data["report"]["sections"][0]["sentences"][0])
    assert data["model"]["sha256"] == random_bundle.sha256 and data["input"]["sha256"] == body.sha256()
    assert {"prepare", "fine", "global", "findings", "segmentation", "report"} <= set(data["timings"])
    assert {p.name for p in case_folder.iterdir()} == {"case.json", "segmentation.nii.gz", "report.md", "ct.nii.gz", "encoding.safetensors"}
    assert (case_folder / "report.md").read_text("utf-8").lstrip("> *").startswith(DRAFT_DISCLAIMER)


def test_the_segmentation_lies_on_the_scans_own_grid_and_its_volumes_are_those_of_the_case(case_folder: Path, body: Any):
    labels, grid = read_segmentation(case_folder)
    assert grid.equals(body.grid)
    case = read_case(case_folder)
    assert {s.label for s in case.segments} >= set(np.unique(labels)) - {0}
    shown_ml = {s.label: float((labels == s.label).sum() * 0.125) for s in case.segments}
    organs, lesions = ([s for s in case.segments if s.kind == kind] for kind in ("organ", "lesion"))
    assert lesions and all(s.volume_ml == pytest.approx(shown_ml[s.label]) for s in lesions)
    # An organ includes what the map shows as a lesion in it.
    hidden_ml = [s.volume_ml - shown_ml[s.label] for s in organs]
    assert min(hidden_ml) >= -1e-6 and 0 < sum(hidden_ml) <= sum(s.volume_ml for s in lesions) + 1e-6


@pytest.mark.parametrize("kind", ["left-handed", "permuted", "oblique"])
def test_the_same_scan_lying_otherwise_gives_the_same_result_in_millimetres(body: Any, random_bundle: Any, case_folder: Path, kind: str):
    plain = read_segmentation(case_folder)
    if kind == "left-handed":
        affine = np.array(body.ijk_to_ras)
        affine[:3, 3] += affine[:3, 2] * (body.shape_kji[0] - 1)
        affine[:3, 2] *= -1
        volume = from_array(np.ascontiguousarray(body.voxels_kji[::-1]), affine)
    elif kind == "permuted":
        affine = np.array(body.ijk_to_ras)[:, [2, 0, 1, 3]]
        volume = from_array(np.ascontiguousarray(body.voxels_kji.transpose(1, 2, 0)), affine)
    else:
        from VelvetMedLib.ct import Grid, resample

        angle = np.deg2rad(12)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        affine = np.eye(4)
        affine[:3, :3] = turn * 5.0
        shape = (50, 60, 66)
        affine[:3, 3] = np.mean(body.grid.corners_ras(), 0) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
        volume = resample(body, Grid(shape, affine), antialias=False)
    done = tasks.run_analysis(volume, random_bundle)
    index = np.argwhere(plain[0] >= 0)[::37]
    ras = index[:, ::-1] @ plain[1].ijk_to_ras[:3, :3].T + plain[1].ijk_to_ras[:3, 3]
    there = np.rint((ras - volume.ijk_to_ras[:3, 3]) @ np.linalg.inv(volume.ijk_to_ras[:3, :3]).T).astype(int)
    inside = np.all((there >= 0) & (there < np.array(volume.shape_kji[::-1])), 1)
    mine = done.segmentation_kji[tuple(there[inside][:, ::-1].T)]
    theirs = plain[0][tuple(index[inside].T)]
    if kind == "oblique":
        # A random network turns a little noise of interpolation into other labels; what is air must stay air.
        assert inside.mean() > 0.95 and ((mine > 0) == (theirs > 0)).mean() > 0.7
    else:
        assert (mine == theirs).mean() > 0.999
        first = {s.name: s for s in read_case(case_folder).segments}
        for segment in done.case.segments:
            assert segment.volume_ml == pytest.approx(first[segment.name].volume_ml, rel=0.01)
            assert np.allclose(segment.center_ras_mm, first[segment.name].center_ras_mm, atol=1.0)


def test_without_image_and_encoding_the_case_still_answers(body: Any, random_bundle: Any, tmp_path: Path):
    tasks.analyze(body, random_bundle, out=tmp_path / "case", keep_image=False, keep_encoding=False)
    assert {p.name for p in (tmp_path / "case").iterdir()} == {"case.json", "segmentation.nii.gz", "report.md"}
    assert tasks.ask(tmp_path / "case", "Is there a lung nodule?", random_bundle).answer
    with pytest.raises(CaseError, match="no encoding"):
        tasks.case_encoding(tmp_path / "case", random_bundle, required=True)


def test_a_cancelled_analysis_leaves_nothing(body: Any, random_bundle: Any, tmp_path: Path):
    def cancel() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        tasks.analyze(body, random_bundle, out=tmp_path / "case", cancel=cancel)
    assert not list(tmp_path.iterdir())


def test_the_answer_is_kept_in_the_case(copy: Path, random_bundle: Any):
    first = tasks.ask(copy, "Is there a pleural effusion?", random_bundle)
    tasks.ask(copy, "What are the findings?", random_bundle)
    case = read_case(copy)
    assert [a.question for a in case.answers] == ["Is there a pleural effusion?", "What are the findings?"]
    assert case.answers[0] == first
    state = next(f.state for f in case.findings if f.name == "pleural_effusion")
    word = {"present": "Yes", "absent": "No.", "uncertain": "Uncertain", "not_assessed": "This question cannot"}[state]
    assert first.answer.startswith(word)


def test_a_case_of_another_model_or_scan_is_refused(copy: Path, random_bundle: Any):
    other = replace(
        random_bundle, config=replace(random_bundle.config, views=replace(random_bundle.config.views, fine=_other_fine(random_bundle)))
    )
    with pytest.raises(CaseError, match="another model"):
        tasks.ask(copy, "Is there a lung nodule?", other)
    case = json.loads((copy / "case.json").read_text("utf-8"))
    case["input"]["sha256"] = "0" * 64
    (copy / "case.json").write_text(json.dumps(case), encoding="utf-8")
    with pytest.raises(CaseError, match="another scan"):
        tasks.ask(copy, "Is there a lung nodule?", random_bundle)


def _other_fine(bundle: Any) -> Any:
    return replace(bundle.config.views.fine, spacing_mm=(5.0, 5.0, 5.0))


def test_a_phrase_is_shown_inside_the_scan(copy: Path, body: Any, random_bundle: Any):
    encoding = load_encoding(copy / ENCODING_FILE)
    for phrase, source in (("pleural effusion", "lesions"), ("something in the chest", "similarity")):
        found = tasks.ground(encoding, phrase, random_bundle)
        heat = found.on(body.grid)
        assert found.source == source and heat.shape == body.shape_kji and heat.min() >= 0 and heat.max() <= 1.0001
        low, high = body.grid.box_ras()
        assert np.all(np.array(found.peak_ras_mm) > low) and np.all(np.array(found.peak_ras_mm) < high)
    with pytest.raises(UsageError, match="no words"):
        tasks.ground(encoding, " - ", random_bundle)


def test_a_bundle_whose_sentences_were_never_aligned_places_no_free_phrase(copy: Path, random_bundle: Any):
    unaligned = replace(random_bundle, config=replace(random_bundle.config, aligned_levels=("report",)))
    encoding = load_encoding(copy / ENCODING_FILE)
    with pytest.raises(BundleError, match="cannot place this phrase"):
        tasks.ground(encoding, "something in the chest", unaligned)
    assert tasks.ground(encoding, "pleural effusion", unaligned).source == "lesions"


@pytest.mark.parametrize("level", ["bottom", "middle"])
def test_the_cells_of_a_level_tile_the_body_box(copy: Path, random_bundle: Any, level: str):
    encoding = load_encoding(copy / ENCODING_FILE)
    seen = encoding.need_global()
    counts = getattr(seen, level).shape[:0:-1]
    low, high = cell_grid(seen, counts, random_bundle.config.views.global_.shape_voxels).box_ras()
    assert np.allclose(low, encoding.need_fine().body_box_ras[0], atol=1e-6)
    assert np.allclose(high, encoding.need_fine().body_box_ras[1], atol=1e-6)


def test_a_folder_is_indexed_and_searched_by_text_case_and_scan(
    case_folder: Path, body: Any, make_body: Any, random_bundle: Any, tmp_path: Path
):
    from VelvetMedLib.ct import write_nifti

    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copytree(case_folder, folder / "a_case")
    other = make_body((44, 40, 44), 5.0, 4)
    write_nifti(folder / "b.nii.gz", other.voxels_kji, other.ijk_to_ras)
    (folder / "c.nii.gz").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("ignored")
    done = tasks.index_folder(folder, tmp_path / "index", random_bundle)
    assert done.count == 2 and len(done.skipped) == 1 and done.skipped[0].startswith("entry 3:")
    with tasks.Index(tmp_path / "index", random_bundle) as index:
        hits = tasks.search(index, text="Pleural effusion on the left.")
        assert len(hits) == 2 and {h.id for h in hits} == {read_case(case_folder).id, "scan-2"}
        by_case = tasks.search(index, case=folder / "a_case")
        assert [h.id for h in by_case] == ["scan-2"]
        by_scan = tasks.search(index, volume=other)
        assert [h.id for h in by_scan] == [read_case(case_folder).id]
        with pytest.raises(UsageError, match="one query"):
            tasks.search(index)


def test_a_scan_whose_licence_asks_for_it_is_named_in_the_case_and_on_its_page(
    body: Any, random_bundle: Any, case_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from VelvetMedLib.case import attribution
    from VelvetMedLib.exports.pages import case_page
    from VelvetMedLib.exports.view import case_view

    assert "attribution" not in read_case(case_folder).run
    found = attribution.values_sha256(body.voxels_kji)
    sizes = tuple(sorted(body.shape_kji))
    monkeypatch.setattr(attribution, "KNOWN_SCANS", (attribution.KnownScan(sizes, found, "Scan by the tests, CC BY 3.0."),))
    case = tasks.run_analysis(body, random_bundle).case
    assert case.run["attribution"] == "Scan by the tests, CC BY 3.0."
    assert case.model.training_data == random_bundle.config.training_data
    page = case_page(case_view(case), None, None)
    assert "Scan by the tests, CC BY 3.0." in page and "none: random weights for tests" in page
