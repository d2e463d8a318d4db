"""After a person has edited segments, what is measured follows the new voxels and the model's verdict stays what it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.case import measure
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.revision import DRAWN, ERASED, _against_the_model, share_xyz, with_labels

THRESHOLDS = (0.5,) * 17
OBLIQUE = np.array([[1.9, -0.4, 0.0, -110.0], [0.4, 1.9, 0.0, -95.0], [0.0, 0.0, 2.5, -135.0], [0.0, 0.0, 0.0, 1.0]])


def twin_share(mask_kji: np.ndarray, grid: Grid, fine_grid: Grid) -> np.ndarray:
    """Slow and obvious: each scan voxel drops its volume into the fine cell that holds its centre, cut into 27 parts."""
    result = np.zeros(fine_grid.shape_kji[::-1])
    k, j, i = np.nonzero(mask_kji)
    steps = (-1 / 3, 0.0, 1 / 3)
    for a in steps:
        for b in steps:
            for c in steps:
                ras = np.stack([i + a, j + b, k + c, np.ones(len(i))]).T @ grid.ijk_to_ras.T
                cell = np.rint(ras @ fine_grid.ras_to_ijk.T).astype(int)[:, :3]
                np.add.at(result, tuple(cell.T), 1 / 27)
    return result * grid.voxel_volume_ml / fine_grid.voxel_volume_ml


def test_the_share_of_a_fine_cell_agrees_with_counting_parts_of_voxels_on_an_oblique_grid() -> None:
    grid = Grid((60, 70, 70), OBLIQUE)
    fine = Grid((40, 50, 50), np.array([[4.0, 0, 0, -130], [0, 4, 0, -120], [0, 0, 4, -150], [0, 0, 0, 1]]))
    k, j, i = np.indices(grid.shape_kji)
    mask = (k - 30) ** 2 * 1.5 + (j - 35) ** 2 + (i - 35) ** 2 < 14**2
    share, expected = share_xyz(mask, grid, fine), twin_share(mask, grid, fine)
    # The fast way blurs by a cell's width; volumes agree, and so does what is inside and what is outside.
    assert share.sum() == pytest.approx(expected.sum(), rel=0.02)
    assert ((share >= 0.5) == (expected >= 0.5)).mean() > 0.997 and share.max() <= 1.0


def test_an_empty_mask_gives_no_share() -> None:
    grid = Grid((4, 5, 6), np.eye(4))
    assert not share_xyz(np.zeros((4, 5, 6), bool), grid, grid).any()


def labels_on_a_finer_grid(fine: Any, factor: int = 2) -> tuple[np.ndarray, Grid]:
    """The fine part's organs, voxels halved: a scan's grid of the same place."""
    labels = fine.organs_kji.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    affine = fine.grid.ijk_to_ras.copy()
    affine[:3, :3] /= factor
    affine[:3, 3] -= np.diag(fine.grid.ijk_to_ras)[:3] * (factor - 1) / (2 * factor)
    return labels, Grid(labels.shape, affine)


def test_labels_that_were_not_edited_stay_as_the_model_made_them(make_fine: Any) -> None:
    fine = make_fine()
    labels, grid = labels_on_a_finer_grid(fine)
    same = with_labels(fine, np.zeros_like(labels), grid, [], THRESHOLDS)
    assert np.array_equal(same.organs_xyz, fine.organs_xyz) and same.lesions == fine.lesions


def test_an_organ_edited_to_what_it_was_measures_the_same(make_fine: Any) -> None:
    fine = make_fine()
    labels, grid = labels_on_a_finer_grid(fine)
    spleen = ontology().structure("spleen").label
    again = with_labels(fine, labels, grid, [spleen, 250], THRESHOLDS)
    before, after = Evidence(fine, THRESHOLDS), Evidence(again, THRESHOLDS)
    assert after.volume_ml("spleen") == pytest.approx(before.volume_ml("spleen"), rel=0.02)


def test_a_taller_spleen_becomes_a_longer_measurement(make_fine: Any) -> None:
    fine = make_fine()
    labels, grid = labels_on_a_finer_grid(fine)
    spleen = ontology().structure("spleen")
    box = measure.index_box(labels == spleen.label)
    assert box is not None
    labels[box[0].start : box[0].stop + 20, box[1], box[2]] = spleen.label  # 40 mm taller
    changed = with_labels(fine, labels, grid, [spleen.label], THRESHOLDS)
    finding = ontology().finding("splenomegaly")
    taller = (Evidence(changed, THRESHOLDS).measure(finding).value or 0) - (Evidence(fine, THRESHOLDS).measure(finding).value or 0)
    assert taller == pytest.approx(40.0, abs=4.1)


def drawn_nodule(fine: Any) -> tuple[Any, np.ndarray]:
    """A box of 16 mm in the right upper lobe, drawn by a person on a finer grid."""
    labels, grid = labels_on_a_finer_grid(fine)
    labels[110:118, 40:48, 80:88] = 101
    return with_labels(fine, labels, grid, [101], THRESHOLDS), labels


def test_a_lesion_that_a_person_draws_is_found_measured_and_placed(make_fine: Any) -> None:
    changed, _ = drawn_nodule(make_fine())
    measured = Evidence(changed, THRESHOLDS).measure(ontology().finding("lung_nodule"))
    assert measured.site == "lung_upper_lobe_right" and measured.side == "right" and measured.count == 1
    assert measured.value == pytest.approx(16.0, abs=7.0) and measured.link is not None


def test_a_drawn_lesion_that_the_model_calls_absent_is_uncertain_with_the_reason(make_fine: Any) -> None:
    from VelvetMedLib.case import CaseFinding

    changed, labels = drawn_nodule(make_fine())
    told = CaseFinding(name="lung_nodule", display="lung nodule", state="absent", probability=0.03)
    after = _against_the_model(told, Evidence(changed, THRESHOLDS), labels, [101])
    assert (after.state, after.reason, after.probability) == ("uncertain", DRAWN, 0.03) and after.size_mm and after.link is not None
    assert _against_the_model(told, Evidence(changed, THRESHOLDS), labels, [4]) is told


def test_an_erased_lesion_that_the_model_calls_present_is_uncertain_and_has_no_place(make_fine: Any) -> None:
    from VelvetMedLib.case import CaseFinding

    fine = make_fine(lesions={"lung_nodule": [((40, 44), (20, 24), (54, 58))]})
    labels, grid = labels_on_a_finer_grid(fine)
    changed = with_labels(fine, labels, grid, [101], THRESHOLDS)
    assert fine.lesions and not changed.lesions
    told = CaseFinding(name="lung_nodule", display="lung nodule", state="present", probability=0.9, size_mm=16.0, side="right")
    after = _against_the_model(told, Evidence(changed, THRESHOLDS), labels, [101])
    assert (after.state, after.reason, after.size_mm, after.link) == ("uncertain", ERASED, None, None)
    unseen = replace(told, state="not_assessed", probability=None)
    assert _against_the_model(unseen, Evidence(changed, THRESHOLDS), labels, [101]) is unseen


def test_the_whole_revision_runs_from_one_encoding_and_keeps_every_probability(body: Any, random_bundle: Any) -> None:
    from VelvetMedLib.tasks import encode, find, revise

    before = find(encode(body, random_bundle), random_bundle)
    labels = np.zeros(body.voxels_kji.shape, np.uint8)
    labels[20:30, 15:25, 15:25] = 101
    stages: list[str] = []
    done = revise(body, labels, [101], random_bundle, progress=lambda fraction, stage, left: stages.append(stage))
    assert [f.name for f in done.findings] == [f.name for f in before] and "fine" not in stages and "measure" in stages
    shared = [
        (a.probability, b.probability) for a, b in zip(before, done.findings, strict=True) if "not_assessed" not in (a.state, b.state)
    ]
    assert all(a == b for a, b in shared) and done.report.sections
