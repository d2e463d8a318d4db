"""The local score and its contrast against triple loops, its properties as analysed, and every awkward report."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from Testing.objectives import slow, toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.local_contrast import LocalContrast, LocalContrastSettings, attention_peak, local_attention, local_scores

VARIANTS: list[dict[str, Any]] = [
    {"agg": "sum"},
    {"agg": "mean"},
    {"agg": "sum", "skip_text_softmax": True},
    {"agg": "mean", "local_tau": 0.1},
    {"agg": "mean", "tau1": 9.0, "tau2": 2.0},
]


def unit_vectors(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(made, dim=-1)


def mask_of(sizes: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(sizes)[:, None]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_scores_are_those_of_a_triple_loop(variant: dict[str, Any]) -> None:
    v, t, sizes = unit_vectors(3, 10, 5), unit_vectors(4, 6, 5, seed=1), [6, 1, 3, 2]
    got = local_scores(v, t * mask_of(sizes, 6)[..., None], mask_of(sizes, 6), LocalContrastSettings(**variant, chunk_texts=3))
    for i, j in itertools.product(range(3), range(4)):
        want = slow.local_score(list(v[i].numpy()), list(t[j, : sizes[j]].numpy()), **variant)
        assert float(got[i, j]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7])
def test_chunked_with_recompute_equals_all_at_once_in_value_and_gradient(variant: dict[str, Any], chunk: int) -> None:
    mask = mask_of([6, 1, 0, 2], 6)
    grad = torch.randn(3, 4, dtype=torch.float64)
    results = []
    for chunk_texts in (0, chunk):
        v, t = unit_vectors(3, 10, 5).requires_grad_(), unit_vectors(4, 6, 5, seed=1).requires_grad_()
        scores = local_scores(v, t, mask, LocalContrastSettings(**variant, chunk_texts=chunk_texts))
        results.append((scores.detach(), *torch.autograd.grad(scores, (v, t), grad)))
    for whole, chunked in zip(*results, strict=True):
        assert torch.allclose(whole, chunked, rtol=1e-12, atol=1e-14)


def test_the_recomputed_gradient_is_that_of_finite_differences() -> None:
    v, t = unit_vectors(2, 4, 3).requires_grad_(), unit_vectors(2, 3, 3, seed=1).requires_grad_()
    settings = LocalContrastSettings(chunk_texts=1)
    assert torch.autograd.gradcheck(lambda a, b: local_scores(a, b, mask_of([3, 2], 3), settings), (v, t))


def test_without_chunks_every_block_is_kept_and_with_chunks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(chunk: int) -> int:
        biggest = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal biggest
            biggest = max(biggest, x.numel())
            return x

        v, t = unit_vectors(4, 50, 5).requires_grad_(), unit_vectors(6, 20, 5).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            local_scores(v, t, mask_of([20] * 6, 20), LocalContrastSettings(chunk_texts=chunk))
        return biggest

    assert kept(0) >= 4 * 6 * 50 * 20 and kept(2) <= 4 * 50 * 5


def test_a_text_of_one_unit_attends_evenly_whatever_the_cells() -> None:
    a = torch.randn(3, 12, 1, dtype=torch.float64)
    w = local_attention(a, torch.ones(1, 1, dtype=torch.bool), LocalContrastSettings())
    assert torch.allclose(w, torch.full_like(w, 1 / 12))


@pytest.mark.parametrize(
    ("units", "change", "times", "share"),
    [
        (40, {}, 1.17, None),
        (150, {}, 1.05, None),
        (40, {"skip_text_softmax": True}, 53.0, 0.031),
        (40, {"local_tau": 0.1}, None, 0.93),
    ],
)
def test_one_perfect_cell_among_1728_gets_the_weight_that_was_analysed(
    units: int, change: dict[str, Any], times: float | None, share: float | None
) -> None:
    a = torch.zeros(1728, units, dtype=torch.float64)
    a[5, 3] = 1.0
    w = local_attention(a, torch.ones(1, units, dtype=torch.bool), LocalContrastSettings(**change))[5, 3]
    if times is not None:
        assert float(w * 1728) == pytest.approx(times, rel=0.01)
    if share is not None:
        assert float(w) == pytest.approx(share, rel=0.02)


def test_the_logged_peak_is_that_of_the_matching_pairs() -> None:
    cells, units = torch.zeros(1, 1728, 2, dtype=torch.float64), torch.zeros(1, 40, 2, dtype=torch.float64)
    cells[0, 5] = units[0, 3] = torch.tensor([1.0, 0.0])
    peak = attention_peak(cells, units, torch.arange(40)[None, :] == 3, LocalContrastSettings(skip_text_softmax=True))
    assert float(peak) == pytest.approx(53, rel=0.01)
    assert float(attention_peak(cells, units, torch.zeros(1, 40, dtype=torch.bool), LocalContrastSettings())) == 1


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padding_of_units_changes_no_score_and_gets_no_gradient(variant: dict[str, Any]) -> None:
    v, t = unit_vectors(3, 10, 5), unit_vectors(2, 4, 5, seed=1)
    settings = LocalContrastSettings(**variant, chunk_texts=1)
    plain = local_scores(v, t, mask_of([4, 2], 4), settings)
    wide = torch.cat([t, unit_vectors(2, 7, 5, seed=2)], dim=1).requires_grad_()
    padded = local_scores(v, wide, mask_of([4, 2], 11), settings)
    assert torch.allclose(plain, padded, rtol=1e-13)
    (grad,) = torch.autograd.grad(padded.sum(), wide)
    assert not grad[~mask_of([4, 2], 11)].any()


def test_repeating_every_unit_changes_nothing_with_mean_and_without_the_text_softmax() -> None:
    v, t = unit_vectors(3, 10, 5), unit_vectors(2, 4, 5, seed=1)
    mask = torch.ones(2, 4, dtype=torch.bool)
    twice = torch.cat([t, t], dim=1)
    mean = LocalContrastSettings(agg="mean", skip_text_softmax=True)
    assert torch.allclose(local_scores(v, t, mask, mean), local_scores(v, twice, mask.repeat(1, 2), mean), rtol=1e-12)
    total = replace(mean, agg="sum")
    gain = 10 * (local_scores(v, twice, mask.repeat(1, 2), total) - local_scores(v, t, mask, total))
    assert torch.allclose(gain, torch.full_like(gain, 10 * np.log(2))), "agg sum favours long reports by tau3 log K"


def read_out_by_loop(states: np.ndarray, words: list[list[int]], sentence_of: list[int], heads: list[int], level: str) -> list[np.ndarray]:
    """Units of one report from its token states; words: token places of each word; heads: places of [SEN_i]."""
    entries = [sum(states[p] for p in places) for places in words]
    if level == "word":
        return entries
    return [
        np.mean([states[head], *(e for e, s in zip(entries, sentence_of, strict=True) if s == i)], axis=0)
        for i, head in enumerate(heads, start=1)
    ]


def units_of(report: list[str], states: np.ndarray, level: str) -> list[np.ndarray]:
    """Walks the report as the layout describes it: [CLS], then per sentence [SEN_i] and its pieces, ## pieces joined to the word before."""
    tokenizer = toys.tokenizer()
    names = {tokenizer.id(t): t for t in toys.WORDS}
    place, words, sentence_of, heads = 1, [], [], []
    for number, sentence in enumerate(report, start=1):
        heads.append(place)
        place += 1
        for n, piece in enumerate(tokenizer.encode(sentence)):
            if n and names[piece].startswith("##"):
                words[-1].append(place)
            else:
                words.append([place])
                sentence_of.append(number)
            place += 1
    return read_out_by_loop(states, words, sentence_of, heads, level)


@pytest.mark.parametrize("empty_has_a_mate", [False, True])
@pytest.mark.parametrize(("level", "agg"), [("sentence", "sum"), ("word", "mean")])
def test_the_loss_is_that_of_loops_from_features_to_cross_entropy(model: VelvetModel, level: Any, agg: str, empty_has_a_mate: bool) -> None:
    batch = toys.batch()
    if empty_has_a_mate:  # the report of study 3 came out empty, that of another series of the study did not: 3 is left out all the same
        groups = batch.group.clone()
        groups[3] = groups[1]
        batch = replace(batch, group=groups)
    features = toys.random_features(batch)
    image, text = model.image_projection[level], model.text_projection[level]

    def projected(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
        return slow.unit(slow.linear(x, layer.weight.detach().numpy(), layer.bias.detach().numpy()))

    maps = features[IMAGE_GLOBAL].middle if level == "sentence" else features[IMAGE_GLOBAL].bottom
    v = [[projected(c, image) for c in slow.cells(m.detach().numpy())] for m in maps]
    t = [
        [projected(u, text) for u in units_of(report, states.detach().numpy(), level)]
        for report, states in zip(toys.REPORTS, features[TEXT_CLEAN].states, strict=True)
    ]
    assert [len(units) for units in t][2:4] == [1, 0], "one word and no sentence are in the batch"
    kept = [bool(units) for units in t]
    logits = np.array([[10 * slow.local_score(a, b, agg=agg) if b else np.nan for b in t] for a in v])
    want, count = slow.contrast(logits, batch.group.tolist(), kept, 0.0)
    term = LocalContrast(level, LocalContrastSettings(agg=agg))(model, features, batch, Context()).losses[f"{level}_contrast_loss"]
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10) and term.count == count == 7


def test_a_report_without_units_gets_no_gradient_on_its_image_and_leaves_the_others_as_they_are() -> None:
    model = toys.model()
    objective, ctx = LocalContrast("sentence"), Context()
    batch = toys.batch()
    features = toys.random_features(batch)
    term = objective(model, features, batch, ctx).losses["sentence_contrast_loss"]
    (grad,) = torch.autograd.grad(term.total, features[IMAGE_GLOBAL].middle)
    assert not grad[3].any() and all(grad[i].any() for i in range(8) if i != 3)
    others = [i for i in range(8) if i != 3]
    less = toys.batch(others)
    fewer = {
        IMAGE_GLOBAL: type(features[IMAGE_GLOBAL])(*(x[others] for x in features[IMAGE_GLOBAL])),
        TEXT_CLEAN: type(features[TEXT_CLEAN])(features[TEXT_CLEAN].states[others]),
    }
    assert torch.allclose(objective(model, fewer, less, ctx).losses["sentence_contrast_loss"].total, term.total)


def test_a_batch_without_any_sentence_counts_nothing_and_sends_zero_gradients() -> None:
    model = toys.model()
    batch = toys.batch([3, 3])
    features = toys.random_features(batch)
    term = LocalContrast("word")(model, features, batch, Context()).losses["word_contrast_loss"]
    assert term.count == 0 and float(term.total.detach()) == 0
    (grad,) = torch.autograd.grad(term.total, features[IMAGE_GLOBAL].bottom)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_sixty_sentences_and_a_full_sequence_keep_what_fits_and_stay_finite() -> None:
    model = toys.model()
    tokenizer = toys.tokenizer()
    layout = tokenizer.layout([["Small nodule in the left lung."] * 60, ["No effusion."] * 60, ["no " * 190] * 3], 512)
    assert layout.sentence_mask.sum(dim=1).tolist() == [50, 50, 2] and 380 < layout.ids.shape[1] <= 512
    exact = tokenizer.layout([["no " * 197, "no " * 197, "no " * 114], ["Effusion"]], 512)
    assert exact.pad_mask.sum(dim=1).tolist() == [512, 3]
    for made in (layout, exact):
        batch = replace(toys.batch(range(len(made.ids))), texts={TEXT_CLEAN: made})
        features = toys.random_features(batch)
        for level in ("sentence", "word"):
            term = LocalContrast(level)(model, features, batch, Context()).losses[f"{level}_contrast_loss"]
            grad = torch.autograd.grad(term.total, features[TEXT_CLEAN].states, retain_graph=True)[0]
            assert torch.isfinite(term.total) and torch.isfinite(grad).all() and term.count == len(made.ids)
