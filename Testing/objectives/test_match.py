"""Match: which negatives may be drawn, how often, the same for everyone; and the loss pair by pair."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from Testing.objectives import slow, toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN, StudyBatch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.match import Match, MatchSettings, Negatives, draw_negatives, gumbel_choice


def draw(batch: StudyBatch, *, step: int = 0, scale: float = 3.0, seed: int = 0) -> Negatives:
    """Negatives for vectors that belong to the items and not to their places."""
    order = {int(s): n for n, s in enumerate(sorted(set(batch.study.tolist())))}
    pool = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = torch.nn.functional.normalize(pool, dim=-1)
    places = torch.tensor([order[int(s)] for s in batch.study])
    return draw_negatives(unit[places], unit[places + 10], torch.tensor(scale), batch, Context(step=step), MatchSettings())


def items(count: int, groups: list[int] | None = None) -> StudyBatch:
    made = torch.arange(100, 100 + count)
    return StudyBatch(study=made, group=made if groups is None else torch.tensor(groups))


def test_a_negative_is_never_the_true_partner_nor_of_its_group() -> None:
    for step in range(200):
        batch = items(6, [1, 1, 2, 3, 3, 3])
        drawn = draw(batch, step=step, scale=100.0)
        for places in (drawn.images, drawn.texts):
            assert (batch.group[places] != batch.group).all() and drawn.legal.all()


def test_duplicate_reports_of_different_studies_are_no_negatives_of_each_other() -> None:
    batch = toys.batch()
    assert batch.group[0] == batch.group[4] and batch.study[0] != batch.study[4]
    seen = {tuple(pair) for step in range(100) for places in draw(batch, step=step)[:2] for pair in enumerate(places.tolist())}
    assert not seen & {(0, 4), (4, 0), (5, 7), (7, 5), *((i, i) for i in range(8))}
    # 5 and 7 are two series of one study: they share their noise, so here, where their vectors are equal, the first stands for both.
    assert {j for i, j in seen if i == 0} == {1, 2, 3, 5, 6}


def test_the_draw_of_a_study_is_the_same_in_any_order_and_fresh_each_step() -> None:
    batch = items(8)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    moved = replace(batch, study=batch.study[order], group=batch.group[order])
    for step in range(20):
        here, there = draw(batch, step=step), draw(moved, step=step)
        for a, b in ((here.images, there.images), (here.texts, there.texts)):
            assert torch.equal(batch.study[a][order], moved.study[b])
    assert len({tuple(draw(batch, step=step).images.tolist()) for step in range(20)}) > 10
    assert not torch.equal(draw(batch).images, draw(batch).texts)


def test_columns_are_drawn_in_proportion_to_their_weight_and_illegal_ones_never() -> None:
    weights = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0], dtype=torch.float64) + 1e-4
    legal = torch.tensor([True, True, False, True, True])
    u = torch.rand(40_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = torch.bincount(gumbel_choice(weights.expand(40_000, 5), legal.expand(40_000, 5), u), minlength=5) / 40_000
    want = weights * legal / (weights * legal).sum()
    assert torch.allclose(got.double(), want, atol=0.01) and got[2] == 0


def test_draws_follow_the_softmax_of_the_report_logits_plus_epsilon() -> None:
    draw_image = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    image = torch.nn.functional.normalize(draw_image, dim=-1)
    text, batch, scale = image.flip(0).contiguous(), items(4), 4.0
    counts_images, counts_texts = torch.zeros(4, 4), torch.zeros(4, 4)
    for step in range(3000):
        drawn = draw_negatives(image, text, torch.tensor(scale), batch, Context(step=step), MatchSettings())
        counts_images[torch.arange(4), drawn.images] += 1
        counts_texts[torch.arange(4), drawn.texts] += 1
    for counts, anchors, candidates in ((counts_images, text, image), (counts_texts, image, text)):
        for i in range(4):
            p = [v + 1e-4 for v in slow.softmax([scale * float(anchors[i] @ c) for c in candidates])]
            p[i] = 0.0
            assert counts[i].tolist() == pytest.approx([3000 * v / sum(p) for v in p], abs=120)


def test_weights_that_are_all_zero_but_for_epsilon_still_give_a_legal_draw() -> None:
    drawn = draw(items(4), scale=1e4)
    assert (drawn.images != torch.arange(4)).all() and (drawn.texts != torch.arange(4)).all()


@pytest.mark.parametrize(
    "batch", [toys.batch([0]), toys.batch([0, 4]), toys.batch([0, 1, 2], one_group=True)], ids=["one", "copies", "group"]
)
def test_without_a_legal_negative_only_the_positive_rows_count(model: VelvetModel, batch: StudyBatch) -> None:
    features = toys.random_features(batch)
    objective = toys.objectives()["match"]
    term = objective(model, features, batch, Context()).losses["match_loss"]
    assert term.count == len(batch) == objective.counts(batch, Context())["match_loss"]
    want = sum(pair_loss(model, objective, features, batch, i, i, 1) for i in range(len(batch)))
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10)


def pair_loss(model: VelvetModel, objective: Match, features: dict, batch: StudyBatch, text: int, image: int, answer: int) -> float:
    """One pair by itself, un-padded, through the fusion layers; head and cross-entropy by hand."""
    layout = batch.texts[TEXT_CLEAN]
    length = int(layout.pad_mask[text].sum())
    one = features[IMAGE_GLOBAL]
    visual = model.visual_tokens(type(one)(*(x[image : image + 1] for x in one)))
    states = features[TEXT_CLEAN].states[text : text + 1, :length]
    fused = model.tribert.fuse(states, layout.type_ids[text : text + 1, :length], layout.pad_mask[text : text + 1, :length], visual)
    head = objective.head.linear
    logits = slow.linear(fused[0, 0].detach().numpy(), head.weight.detach().numpy(), head.bias.detach().numpy())
    return slow.cross_entropy(list(logits), answer)


@pytest.mark.parametrize("chunk_rows", [0, 5])
def test_the_loss_is_the_sum_over_pairs_run_one_by_one(model: VelvetModel, chunk_rows: int) -> None:
    batch = toys.batch()
    features = toys.random_features(batch)
    objective = toys.objectives(chunk_rows=chunk_rows)["match"]
    ctx = Context(seed=5, step=6)
    image = model.project_image(features[IMAGE_GLOBAL], ["report"])["report"]
    text = model.project_text(features[TEXT_CLEAN].states, batch.texts[TEXT_CLEAN], ["report"])["report"]
    drawn = draw_negatives(image, text, model.contrast_scale(), batch, ctx, MatchSettings())
    want = 0.0
    for i in range(8):
        want += pair_loss(model, objective, features, batch, i, i, 1)
        want += pair_loss(model, objective, features, batch, i, int(drawn.images[i]), 0)
        want += pair_loss(model, objective, features, batch, int(drawn.texts[i]), i, 0)
    term = objective(model, features, batch, ctx).losses["match_loss"]
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10) and term.count == 24


def test_gradient_reaches_the_partners_that_were_drawn_and_does_not_choose_them(model: VelvetModel) -> None:
    batch = toys.batch()
    features = toys.random_features(batch)
    objective = toys.objectives()["match"]

    def gradient(made: Match) -> list[Tensor]:
        total = made(model, features, batch, Context()).losses["match_loss"].total
        return list(torch.autograd.grad(total, (features[IMAGE_GLOBAL].top, features[TEXT_CLEAN].states), retain_graph=True))

    for grad in gradient(objective):
        assert all(grad[i].any() for i in range(8))
    total = objective(model, features, batch, Context()).losses["match_loss"].total
    unused = torch.autograd.grad(total, [model.logit_scale, *model.text_projection.parameters()], allow_unused=True)
    assert all(grad is None for grad in unused), "the draw is made without gradient"


def test_fusing_in_chunks_gives_the_gradients_of_all_at_once_also_with_dropout() -> None:
    batch = toys.batch()
    results = []
    for chunk_rows in (0, 7, 7):
        model, objective = toys.model(dropout=0.3 if chunk_rows else 0.0), toys.objectives(chunk_rows=chunk_rows)["match"]
        features = toys.random_features(batch)
        torch.manual_seed(3)
        objective(model, features, batch, Context()).losses["match_loss"].total.backward()
        results.append([features[TEXT_CLEAN].states.grad, *(p.grad for p in objective.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True)), "dropout is replayed in the second run of a chunk"
    model, objective = toys.model(), toys.objectives(chunk_rows=7)["match"]
    features = toys.random_features(batch)
    objective(model, features, batch, Context()).losses["match_loss"].total.backward()
    for a, b in zip(results[0], [features[TEXT_CLEAN].states.grad, *(p.grad for p in objective.parameters())], strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_counts_follow_from_the_groups_alone() -> None:
    objective = toys.objectives()["match"]
    for groups in itertools.product([0, 1], repeat=3):
        batch = items(3, list(groups))
        want = 3 + 2 * sum(any(g != h for h in groups) for g in groups)
        assert objective.counts(batch, Context()) == {"match_loss": float(want)}
