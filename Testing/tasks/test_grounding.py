"""A phrase is shown on the side and in the lobe that it names, an organ by its segment, words and sentences by the cosine map of
their level; all at their millimetres on the scan's own grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib import tasks
from VelvetMedLib.ct import Grid
from VelvetMedLib.ct.resample import resample
from VelvetMedLib.errors import BundleError, UsageError
from VelvetMedLib.reports import ontology
from VelvetMedLib.reports.sentences import split_sentences
from VelvetMedLib.tasks import ground
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.vqa import answer


def encoding_of(fine: Any) -> Encoding:
    return Encoding(volume_sha256="0" * 64, encoding_key="k", weights_sha256="0" * 64, scan_grid=fine.grid, fine=fine)


@pytest.fixture
def unaligned(random_bundle: Any) -> Any:
    """A bundle whose sentences and cells were never trained to agree, like the shipped one."""
    return replace(random_bundle, config=replace(random_bundle.config, aligned_levels=("report",)))


@pytest.fixture
def two_sides(make_fine: Any) -> Any:
    """Effusion on both sides, more certain on the right; a nodule in the right lower and one in the left upper lobe."""
    fine = make_fine(
        {
            "pleural_effusion": [((34, 54), (8, 12), (30, 40)), ((6, 24), (8, 12), (30, 40))],
            "lung_nodule": [((40, 44), (20, 24), (36, 40)), ((10, 13), (20, 23), (56, 59))],
        }
    )
    maps = fine.lesions_cxyz.copy()
    maps[:, 30:][maps[:, 30:] > 0] = 250
    return replace(fine, lesions_cxyz=maps)


@pytest.mark.parametrize(
    ("phrase", "right", "probability"),
    [
        ("pleural effusion", True, 250),
        ("left pleural effusion", False, 230),
        ("pleural effusion on the right", True, 250),
        ("bilateral pleural effusion", True, 250),
        ("nodule in the left upper lobe", False, 230),
        ("nodule in the right lower lobe", True, 250),
    ],
)
def test_a_finding_is_shown_on_the_side_that_the_phrase_names(two_sides: Any, unaligned: Any, phrase: str, right: bool, probability: int):
    found = ground(encoding_of(two_sides), phrase, unaligned)
    assert found.source == "lesions" and found.score == pytest.approx(probability / 255, abs=1e-4)
    assert (found.peak_ras_mm[0] > 0) is right
    assert found.threshold == unaligned.config.lesion_thresholds[ontology().lesion(ontology().finding(found.finding).lesion).channel]


def test_a_lobe_without_the_finding_shows_nothing(two_sides: Any, unaligned: Any):
    found = ground(encoding_of(two_sides), "nodule in the right upper lobe", unaligned)
    assert found.score < found.threshold and not found.heat_kji[:, :, :30].any()
    lower = ontology().structure("lung_lower_lobe_right").label
    assert not found.heat_kji[two_sides.organs_kji == lower].any()


def test_an_organ_is_shown_by_its_segment_where_similarity_was_never_learnt(two_sides: Any, unaligned: Any):
    found = ground(encoding_of(two_sides), "the liver", unaligned)
    liver = two_sides.organs_kji == ontology().structure("liver").label
    assert found.source == "segment" and found.threshold is None and np.array_equal(found.heat_kji > 0, liver)
    i, j, k = np.rint((np.array(found.peak_ras_mm) - found.grid.ijk_to_ras[:3, 3]) / 4).astype(int)
    assert liver[k, j, i]


def test_an_organ_that_the_scan_does_not_show_is_said_to_be_missing(make_fine: Any, unaligned: Any):
    with pytest.raises(UsageError, match="spleen was not found"):
        ground(encoding_of(make_fine(without=("spleen",))), "the spleen", unaligned)


@pytest.mark.parametrize("question", ["", "   ", " ?! "])
def test_an_empty_question_is_refused(question: str):
    with pytest.raises(UsageError, match="no question"):
        answer(question, (), ())


@pytest.fixture(scope="module")
def looked(body: Any, random_bundle: Any) -> Encoding:
    """The body after one global look: no organs, no lesions, no reader."""
    found = tasks.encode(body, random_bundle, needs={"global"})
    tasks.forget_encodings()
    return replace(found, fine=None, reading=None)


def slow_cosine(encoding: Encoding, sentences: list[str], bundle: Any, level: str) -> np.ndarray:
    """Mean over the units of a text of their cosine with each cell, cell by cell, [X, Y, Z]."""
    model, seen = bundle.model.double(), encoding.need_global()
    try:
        cells = {"sentence": seen.middle, "word": seen.bottom}[level]
        layout = bundle.tokenizer.layout([sentences], 160)
        with torch.no_grad():
            read = model.tribert.read_out(model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask), layout)
            units = model.text_projection[level]({"sentence": read.sentences, "word": read.words}[level])[0].numpy()
            out = np.zeros(cells.shape[1:])
            for cell in np.ndindex(*out.shape):
                v = model.image_projection[level](torch.from_numpy(cells[(slice(None), *cell)]).double()).numpy()
                out[cell] = np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u in units])
    finally:
        bundle.model.float()
    return out


@pytest.mark.parametrize(
    ("text", "aligned", "level"),
    [
        ("grey effusion", ("sentence", "word"), "word"),
        ("There is a grey area. The rest is clear.", ("sentence", "word"), "sentence"),
        ("something grey in the chest", ("word",), "word"),
        ("grey", ("report", "sentence"), "sentence"),
    ],
)
def test_few_words_are_placed_by_the_bottom_level_and_sentences_by_the_middle_one(
    looked: Encoding, random_bundle: Any, text: str, aligned: tuple[str, ...], level: str
):
    bundle = replace(random_bundle, config=replace(random_bundle.config, aligned_levels=aligned))
    found = ground(looked, text, bundle, by="similarity")
    slow = slow_cosine(looked, split_sentences(text), bundle, level)
    assert (found.source, found.level, found.structures) == ("similarity", level, ())
    assert found.heat_kji == pytest.approx(((slow - slow.min()) / (slow.max() - slow.min())).transpose(2, 1, 0), abs=1e-3)
    assert found.score == pytest.approx(slow.max(), abs=1e-4)
    x, y, z = np.unravel_index(slow.argmax(), slow.shape)
    assert found.peak_ras_mm == pytest.approx((found.grid.ijk_to_ras @ np.array([x, y, z, 1.0]))[:3])


def test_a_named_organ_keeps_the_similarity_to_its_segment_and_scores_what_it_has_there(
    looked: Encoding, make_fine: Any, random_bundle: Any
):
    fine = make_fine()
    whole = ground(looked, "the liver", random_bundle)
    found = ground(replace(looked, fine=fine), "the liver", random_bundle)
    liver = fine.organs_kji == ontology().structure("liver").label
    assert found.source == "similarity" and np.array_equal(found.heat_kji > 0, liver)
    i, j, k = np.rint((fine.grid.ras_to_ijk @ np.array([*found.peak_ras_mm, 1.0]))[:3]).astype(int)
    assert liver[k, j, i] and found.score < whole.score


def test_each_way_can_be_asked_for_alone_and_is_refused_where_it_is_missing(
    looked: Encoding, two_sides: Any, random_bundle: Any, unaligned: Any
):
    both = replace(looked, fine=two_sides)
    assert ground(both, "pleural effusion", random_bundle).source == "lesions"
    assert ground(both, "pleural effusion", random_bundle, by="similarity").source == "similarity"
    with pytest.raises(BundleError, match="cannot place"):
        ground(both, "something grey", random_bundle, by="lesions")
    with pytest.raises(BundleError, match="cannot place"):
        ground(looked, "pleural effusion", random_bundle, by="lesions")
    with pytest.raises(BundleError, match="cannot place"):
        ground(both, "pleural effusion", unaligned, by="similarity")


def turned(volume_grid: Grid, *, left_handed: bool) -> Grid:
    """An oblique grid of 6 x 5 x 7 mm around the same middle."""
    angle = np.deg2rad(25)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]) * [6.0, 5.0, 7.0]
    if left_handed:
        affine[:3, 1] *= -1
    low, high = volume_grid.box_ras()
    shape = (46, 44, 54)
    affine[:3, 3] = (low + high) / 2 - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return Grid(shape, affine)


@pytest.mark.parametrize("left_handed", [False, True])
def test_the_heat_map_lies_at_its_millimetres_on_an_oblique_scan(
    body: Any, two_sides: Any, random_bundle: Any, unaligned: Any, left_handed: bool
):
    grid = turned(body.grid, left_handed=left_handed)
    assert bool(np.linalg.det(grid.ijk_to_ras[:3, :3]) < 0) is left_handed
    scan = tasks.encode(resample(body, grid), random_bundle, needs={"global"})
    tasks.forget_encodings()
    for found in (ground(scan, "grey effusion", random_bundle), ground(encoding_of(two_sides), "left pleural effusion", unaligned)):
        heat = found.on(grid)
        k, j, i = np.unravel_index(heat.argmax(), heat.shape)
        peak = (grid.ijk_to_ras @ np.array([i, j, k, 1.0]))[:3]
        assert heat.shape == grid.shape_kji and heat.max() > 0.8 * found.heat_kji.max()
        i, j, k = np.rint((found.grid.ras_to_ijk @ np.array([*peak, 1.0]))[:3]).astype(int)
        if found.source == "similarity":
            assert np.unravel_index(found.heat_kji.argmax(), found.heat_kji.shape) == (k, j, i), "in the very cell of the peak"
        else:  # the effusion is evenly probable: any of its voxels is its peak
            assert found.heat_kji[k, j, i] > 0 and peak[0] < 0
