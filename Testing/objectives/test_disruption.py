"""Disrupted crops and sentence subsets: how much is masked, what each degradation does, and which tokens a view is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from Testing.objectives import toys
from VelvetMedLib.objectives.disruption import DEGRADATIONS, block_mask, blurred, coarse, disrupted, shuffled
from VelvetMedLib.objectives.sentence_subsets import drawn_subset, sentence_of_tokens, whole_report


def crop(seed: int = 0, shape: tuple[int, int, int] = (32, 32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 0.8 + 0.1


def test_three_fifths_of_the_blocks_are_air_and_nothing_else_is() -> None:
    made = disrupted(crop(shape=(64, 48, 32)), np.random.default_rng(0), block=16, degrade=0.0)
    blocks = made.masked.reshape(4, 16, 3, 16, 2, 16).transpose(0, 2, 4, 1, 3, 5).reshape(24, -1)
    assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all() and blocks.all(axis=1).sum() == round(0.6 * 24)
    assert (made.voxels[made.masked] == 0).all() and np.array_equal(made.voxels[~made.masked], crop(shape=(64, 48, 32))[~made.masked])


def test_blocks_that_do_not_fit_are_cut_at_the_far_faces() -> None:
    mask = block_mask((10, 8, 8), np.random.default_rng(1), block=8, share=0.5)
    assert mask.shape == (10, 8, 8) and {(bool(mask[:8].all()), bool(mask[8:].all())), (bool(mask[:8].any()), bool(mask[8:].any()))} <= {
        (True, False), (False, True),
    }  # fmt: skip


def test_half_of_the_crops_are_degraded_in_one_of_four_ways_and_all_are_masked_last() -> None:
    clean, degraded = crop(shape=(16, 16, 16)), 0
    for seed in range(400):
        made = disrupted(clean, np.random.default_rng(seed), block=8)
        degraded += not np.array_equal(made.voxels[~made.masked], clean[~made.masked])
        assert (made.voxels[made.masked] == 0).all() and made.voxels.min() >= 0 and made.voxels.max() <= 1
    assert 160 < degraded < 240 and len(DEGRADATIONS) == 4


def test_a_blur_is_a_gaussian_sum_over_neighbours() -> None:
    clean, sigma = crop(shape=(9, 7, 8)), 1.3
    reach = math.ceil(4 * sigma)
    weights = [math.exp(-0.5 * (o / sigma) ** 2) for o in range(-reach, reach + 1)]
    want = 0.0
    for a, wa in zip(range(-reach, reach + 1), weights, strict=True):
        for b, wb in zip(range(-reach, reach + 1), weights, strict=True):
            for c, wc in zip(range(-reach, reach + 1), weights, strict=True):
                at = (min(max(4 + a, 0), 8), min(max(1 + b, 0), 6), min(max(6 + c, 0), 7))
                want += wa * wb * wc * float(clean[at])
    assert blurred(clean, sigma)[4, 1, 6] == pytest.approx(want / sum(weights) ** 3, abs=1e-5)


def test_shuffling_moves_voxels_only_inside_their_cube() -> None:
    clean = crop(shape=(16, 8, 11))
    made = shuffled(clean, np.random.default_rng(0), 8)
    for low in (0, 8):
        before, after = clean[low : low + 8, :, :8], made[low : low + 8, :, :8]
        assert not np.array_equal(before, after) and np.array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
    assert np.array_equal(made[:, :, 8:], clean[:, :, 8:])


def test_half_the_resolution_and_back_gives_the_mean_of_each_cube_of_two() -> None:
    clean = crop(shape=(4, 6, 5))
    made = coarse(clean)
    assert made.shape == clean.shape
    assert np.allclose(made[2:4, 4:6, 0:2], clean[2:4, 4:6, 0:2].mean()) and np.allclose(made[0:2, 0:2, 4], clean[0:2, 0:2, 4].mean())


def layout(report: int) -> object:
    return toys.tokenizer().layout([toys.REPORTS[report]], 512)


def test_a_whole_report_is_every_token_of_its_sentences_and_not_the_state_that_has_read_it_all() -> None:
    made = toys.tokenizer().layout([toys.REPORTS[5], toys.REPORTS[3]], 512)
    told = whole_report(made)
    assert not told[:, 0].any() and torch.equal(told[0, 1:], made.pad_mask[0, 1:]) and not told[1].any()
    assert torch.equal(sentence_of_tokens(made)[0, 1:], made.type_ids[0, 1:])


def test_a_subset_is_whole_sentences_at_least_half_of_them() -> None:
    made, sizes = layout(5), set()
    sentences = sentence_of_tokens(made)[0]
    for seed in range(60):
        told = drawn_subset(made, np.random.default_rng(seed))[0]
        kept = {int(n) for n in sentences[told]}
        assert kept and all(bool(told[sentences == n].all()) == (n in kept) for n in (1, 2, 3)) and 0 not in kept
        sizes.add(len(kept))
    assert sizes == {2, 3}, "three sentences: 1.5 to 3 of them, rounded"


def test_text_dropout_tells_nothing_as_often_as_it_says_and_moves_no_other_draw() -> None:
    made = layout(5)
    drawn = [drawn_subset(made, np.random.default_rng(seed), nothing=0.2) for seed in range(500)]
    share = sum(not told.any() for told in drawn) / 500
    assert 0.14 < share < 0.26
    for seed, told in enumerate(drawn[:50]):
        assert not told.any() or torch.equal(told, drawn_subset(made, np.random.default_rng(seed)))
    assert not drawn_subset(layout(3), np.random.default_rng(0)).any(), "a report without sentences tells nothing"
