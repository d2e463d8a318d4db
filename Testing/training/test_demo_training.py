"""The plain training of the demo model: losses against slow twins, splits, calibration, the line's surface."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import demo_model
from demo.calibrate import calibrate, fit_evidence, least_trust
from demo.data import between, crop, nearest, split_of
from demo.encodings import cell_shares
from demo.fine import sampled_rows, unpack_bits
from demo.losses import cells_term, findings_term, organ_loss, prompt_term
from demo.organ_offsets import best_offsets, margin_counts, tried
from demo.texts import groups_of_texts, pack_rows
from rare_labels import rare_labels_loss
from scipy.ndimage import map_coordinates

from VelvetMedLib.evaluation.retrieval import recall_at
from VelvetMedLib.tasks.views import GlobalView


def slow_organ_loss(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cross_entropy = -np.mean([np.log(probability[n, label]) for n, label in enumerate(labels)])
    dice = []
    for c in range(1, logits.shape[1]):
        own = labels == c
        if own.any():
            hit = (weight * probability[:, c])[own].sum()
            dice.append((2 * hit + 1) / ((weight * probability[:, c]).sum() + weight[own].sum() + 1))
    return float(cross_entropy + (1 - np.mean(dice) if dice else 0))


def test_a_zoomed_crop_is_trilinear_in_hu_and_nearest_in_labels_with_air_around() -> None:
    draw = np.random.default_rng(0)
    hu = draw.normal(0, 300, (9, 8, 7)).astype(np.int16)
    place = [start + step * np.arange(n) for start, step, n in ((-2.3, 1.2, 10), (0.4, 0.8, 6), (3.0, 1.0, 8))]
    points = np.stack(np.meshgrid(*place, indexing="ij"))
    around = np.pad(hu.astype(np.float32), 9, constant_values=-1024)
    assert between(hu, place, -1024) == pytest.approx(map_coordinates(around, points + 9, order=1), abs=1e-2)
    assert np.array_equal(nearest(hu, place, -1024), around[tuple(np.floor(points + 9.5).astype(int))])


def test_organ_offsets_are_the_tried_ones_of_best_dice_each_for_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (9, 8, 7), generator=draw).numpy().astype(np.uint8)
    labels[labels == 3] = 0  # a structure that never occurs
    told = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 4).permute(3, 0, 1, 2)
    logits = torch.randn(4, 9, 8, 7, generator=draw) + 1.5 * told
    kept = torch.tensor([0.0, 0.6, -0.4, 0.2])
    chosen = best_offsets(margin_counts(logits, labels, kept))
    assert chosen[0] == chosen[3] == 0

    def dice(structure: int, offset: float) -> float:
        moved = kept.clone()
        moved[structure] = offset
        predicted = (logits + moved[:, None, None, None]).argmax(0).numpy() == structure
        return float(2 * (predicted & (labels == structure)).sum() / max(1, predicted.sum() + (labels == structure).sum()))

    for structure in (1, 2):
        by_hand = [dice(structure, float(x)) for x in tried()]
        assert dice(structure, float(chosen[structure])) == max(by_hand) > dice(structure, float(kept[structure]))


def test_organ_loss_equals_the_slow_definition_in_float64() -> None:
    draw = np.random.default_rng(0)
    logits, labels, weight = draw.normal(size=(50, 5)), draw.integers(0, 4, 50), draw.uniform(1, 8, 50)
    fast = organ_loss(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weight))
    assert float(fast) == pytest.approx(slow_organ_loss(logits, labels, weight), abs=1e-10)


def test_organ_loss_of_a_crop_without_organs_is_the_cross_entropy() -> None:
    logits = np.random.default_rng(1).normal(size=(20, 3))
    labels = np.zeros(20, np.int64)
    fast = organ_loss(torch.from_numpy(logits), torch.from_numpy(labels), torch.ones(20, dtype=torch.float64))
    assert float(fast) == pytest.approx(slow_organ_loss(logits, labels, np.ones(20)), abs=1e-10)


def test_the_loss_of_rare_labels_equals_the_slow_definition_in_float64() -> None:
    draw = np.random.default_rng(2)
    logits, targets, weight = draw.normal(size=(40, 3)), (draw.random((40, 3)) < 0.2).astype(float), draw.uniform(1, 3, 40)
    targets[:, 2] = 0
    p = 1 / (1 + np.exp(-logits))
    entropy = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    focal = (weight[:, None] * (p - targets) ** 2 * entropy).sum() / (targets.sum() + 200)
    dice = [
        (2 * (p[:, c] * targets[:, c]).sum() + 1) / ((weight * p[:, c] ** 2).sum() + targets[:, c].sum() + 1)
        for c in range(3)
        if targets[:, c].any()
    ]
    fast = rare_labels_loss(torch.from_numpy(logits), torch.from_numpy(targets), torch.from_numpy(weight))
    assert float(fast) == pytest.approx(focal + np.mean([1 - d for d in dice]), abs=1e-10)


def test_sampling_keeps_every_lesion_voxel_exactly_once_and_every_voxel_of_a_rare_class() -> None:
    bits = torch.zeros(8000, dtype=torch.int32)
    bits[::37] = 4
    labels = torch.zeros(8000, dtype=torch.int64)
    labels[:40] = 1
    drawn, rest, stands_for = sampled_rows(
        labels, bits, torch.tensor([0.25, 1.0]), torch.rand(8000, generator=torch.Generator().manual_seed(0))
    )
    both = torch.cat([drawn, rest])
    assert len(both.unique()) == len(both)
    assert set((bits != 0).nonzero()[:, 0].tolist()) <= set(both.tolist())
    assert set(range(40)) <= set(drawn.tolist())
    assert stands_for[labels[drawn] == 1].unique().tolist() == [1.0]
    # The drawn voxels stand for as many as there are.
    assert float(stands_for.sum()) == pytest.approx(8000, rel=0.05)


def test_cell_shares_count_what_each_cell_of_the_global_view_holds() -> None:
    seen = GlobalView(np.zeros((16, 16, 16), np.float32), (2.0, 2.0, 2.0), np.diag([2.0, 2.0, 2.0, 1.0]))
    organs, bits = np.zeros((40, 32, 16), np.uint8), np.zeros((40, 32, 16), np.uint32)
    organs[:8], organs[33:] = 3, 5  # the grid reaches beyond the view at its far x end
    bits[2:4, 4:8, 8:12] = 1 << 6
    shares = cell_shares(seen, np.diag([1.0, 1.0, 1.0, 1.0]), organs, bits)
    assert shares.shape == (49, 8, 8, 8)
    slow = np.zeros((8, 8, 8, 2))
    for x, y, z in np.ndindex(organs.shape):
        # Cell n of two voxels of 2 mm reaches from 4n - 1 to 4n + 3 mm: the first voxel's centre lies at 0.
        cell = ((np.array([x, y, z]) + 1) // 4).tolist()
        if max(cell) < 8:
            slow[(*cell, 0)] += 1
            slow[(*cell, 1)] += organs[x, y, z] == 3
    np.testing.assert_allclose(shares[2], slow[..., 1] / np.maximum(slow[..., 0], 1), atol=1e-3)
    assert shares[32 + 6].sum() > 0 and shares[4].sum() == 0


def test_cells_loss_equals_the_slow_definition() -> None:
    draw = np.random.default_rng(5)
    logits, shares = draw.normal(size=(2, 3, 2, 2, 2)), draw.random((2, 3, 2, 2, 2))
    p = 1 / (1 + np.exp(-logits))
    slow = -(shares * np.log(p) + (1 - shares) * np.log(1 - p)).sum()
    term = cells_term(torch.from_numpy(logits), torch.from_numpy(shares))
    assert float(term.total) == pytest.approx(slow, abs=1e-10) and term.count == 16


def test_bits_unpack_to_one_column_per_channel() -> None:
    assert unpack_bits(torch.tensor([0b101, 0b010], dtype=torch.int32), 3).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_reports_that_read_the_same_are_one_group_whatever_their_case_and_spacing() -> None:
    first, second, third = groups_of_texts([["No nodule.", "Normal  liver."], ["No mass."], ["no nodule. normal liver."]]).tolist()
    assert first == third != second


def test_prompt_loss_prefers_the_sentence_that_is_true() -> None:
    study = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # affirmed lies with study 0, denied with study 1
    true = torch.tensor([[1.0], [0.0]])
    right, wrong = (prompt_term(study, text, torch.tensor(1.0), t, torch.ones(1)) for t in (true, 1 - true))
    assert right.count == wrong.count == 2
    assert float(right.total) / 2 == pytest.approx(np.log1p(np.exp(-1.0)), abs=1e-6)
    assert float(wrong.total) / 2 == pytest.approx(np.log1p(np.exp(1.0)), abs=1e-6)


def test_unknown_findings_have_no_part_in_the_loss() -> None:
    logits, targets = torch.tensor([[2.0, -9.0]]), torch.tensor([[1.0, float("nan")]])
    term = findings_term(logits, targets, torch.ones(2))
    assert term.count == 1 and float(term.total) == pytest.approx(float(np.log1p(np.exp(-2.0))), abs=1e-6)


def test_decoder_targets_begin_behind_the_prompt_and_end_with_the_end_token() -> None:
    ids, targets = pack_rows([([5, 6], [7, 8]), ([5], [9])], end=2, pad=0, longest=10)
    assert ids.tolist() == [[5, 6, 7, 8, 2], [5, 9, 2, 0, 0]]
    assert targets.tolist() == [[-100, 7, 8, 2, -100], [9, 2, -100, -100, -100]]


def test_twins_stay_in_one_split_and_every_split_is_filled() -> None:
    groups = [f"g{n // 2}" for n in range(100)]
    splits = split_of(groups)
    assert {splits[g] for g in groups} == {"train", "val", "test"}
    assert sum(splits[g] == "test" for g in groups) == 12


def test_a_crop_beyond_the_array_is_filled() -> None:
    array = np.arange(8).reshape(2, 2, 2)
    result = crop(array, np.array([-1, 0, 1]), (3, 2, 2), -5)
    assert result.shape == (3, 2, 2)
    assert (result[0] == -5).all() and (result[:, :, 1] == -5).all()
    assert (result[1:, :, 0] == array[:, :, 1]).all()


def test_a_finding_at_chance_is_not_assessed_and_says_so() -> None:
    draw = np.random.default_rng(0)
    result = calibrate(draw.normal(size=200), (np.arange(200) % 2).astype(float))
    assert not result.assessed
    assert "chance" in result.reason


def test_too_few_cases_are_said_to_be_too_few() -> None:
    truth = np.array([1.0] * 3 + [0.0] * 60)
    assert "too few" in calibrate(truth * 4, truth).reason


def test_a_finding_is_called_in_few_of_the_cases_without_it_however_weak_it_is() -> None:
    draw = np.random.default_rng(3)
    truth = (np.arange(300) % 4 == 0).astype(float)
    for shift in (0.0, 0.7, 3.0):
        logit = draw.normal(size=300) + shift * truth
        result = calibrate(logit, truth)
        called = 1 / (1 + np.exp(-(result.slope * logit + result.bias))) >= result.present
        assert called[truth == 0].mean() <= 0.05
        assert shift < 3 or called[truth == 1].mean() > 0.8


def test_a_finding_that_is_told_gets_ordered_thresholds_and_ignores_unknown_states() -> None:
    draw = np.random.default_rng(0)
    truth = (draw.random(300) < 0.3).astype(float)
    logit = truth * 3 + draw.normal(size=300)
    truth[:20] = np.nan
    result = calibrate(logit, truth)
    assert result.assessed and 0 < result.absent <= result.present < 1
    assert result.positives + result.negatives == 280


def test_a_logit_that_ranks_the_wrong_way_is_not_used_and_moves_no_probability_from_the_prevalence() -> None:
    draw = np.random.default_rng(0)
    truth = (draw.random(300) < 0.3).astype(float)
    result = calibrate(draw.normal(size=300) - 2 * truth, truth)
    assert not result.assessed and result.prevalence == pytest.approx(truth.mean())
    assert result.probability(np.array([-8.0, 0.0, 8.0])) == pytest.approx(truth.mean(), abs=0.01)


def test_evidence_counts_where_it_ranks_unseen_cases_better_and_nowhere_else() -> None:
    draw = np.random.default_rng(4)
    truth = (np.arange(400) % 4 == 0).astype(float)
    logit = draw.normal(size=400) + 0.5 * truth
    telling, idle = draw.normal(size=(400, 3)), draw.normal(size=(400, 3))
    telling[:, 0] += 2 * truth
    truth[::10] = np.nan
    known = np.isfinite(truth)
    weights, score = fit_evidence(logit, telling, truth)
    assert weights is not None and weights[1] > 5 * max(map(abs, weights[2:])) and weights[0] > 0
    # Each score comes from weights that never met its case: near the final sum, and never on it.
    final = np.column_stack([logit, telling]) @ np.array(weights)
    assert np.corrcoef(score[known], final[known])[0, 1] > 0.9 and not np.isclose(score[known], final[known]).any()
    assert calibrate(score, truth).auroc > calibrate(logit, truth).auroc + 0.1
    for summary, target in ((idle, truth), (np.zeros((400, 3)), truth), (telling, np.where(known, 0.0, np.nan))):
        none, same = fit_evidence(logit, summary, target)
        assert none is None and np.array_equal(same, logit)


def test_a_head_that_ranks_the_wrong_way_beside_the_map_weighs_nothing() -> None:
    draw = np.random.default_rng(6)
    truth = (np.arange(300) % 3 == 0).astype(float)
    telling = draw.normal(size=(300, 3))
    telling[:, 0] += 2 * truth
    weights, score = fit_evidence(draw.normal(size=300) - truth, telling, truth)
    assert weights is not None and weights[0] == 0 and weights[1] > 0.5 and calibrate(score, truth).auroc > 0.85


def test_the_trust_that_is_asked_for_is_that_of_best_f1_over_parts_and_none_where_dropping_costs() -> None:
    trust = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2, 0.1, 0.1])
    true = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    least = least_trust(trust, true)
    assert 0.3 < least <= 0.6
    slow = {t: 2 * (true & (trust >= t)).sum() / ((trust >= t).sum() + true.sum()) for t in np.arange(0, 1, 0.05)}
    assert slow[min(slow, key=lambda t: abs(t - least))] == max(slow.values())
    assert least_trust(trust, np.ones(8, bool)) == 0 and least_trust(trust, np.zeros(8, bool)) == 0
    assert least_trust(np.zeros(0), np.zeros(0, bool)) == 0


def test_equal_scores_share_the_credit_of_recall() -> None:
    assert recall_at(np.zeros((4, 4)), np.eye(4, dtype=bool), (1, 4)) == {"R@1": 0.25, "R@4": 1.0}
    assert recall_at(np.eye(3), np.eye(3, dtype=bool), (1,)) == {"R@1": 1.0}


def test_the_line_keeps_its_options_and_their_values() -> None:
    options = vars(demo_model.parser().parse_args(["--cohort", "C", "--run", "R", "--out", "O"]))
    counts = set(demo_model.COUNTS)
    assert all(options[name] is None for name in counts)
    numbers = {name: value for name, value in options.items() if isinstance(value, int | float | str) and not isinstance(value, bool)}
    assert numbers == {"spacing_mm": 4.0, "processes": 2, "seed": 1, "until": "all"}
    assert set(options) - set(numbers) - counts == {"cohort", "run", "out", "proxy", "traceback"}
