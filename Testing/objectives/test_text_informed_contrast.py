"""Text-informed contrast against loops over studies and views; which text candidates read; and that text cannot be told from noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from Testing.objectives import slow_text_informed as slow
from Testing.objectives import t3d_toys
from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.text_informed import TextInformed, TextInformedConfig, cells
from VelvetMedLib.objectives.base import IMAGE_LOCAL_A, IMAGE_LOCAL_B, TEXT_CLEAN, LocalFeatures, StudyBatch, TextFeatures
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode
from VelvetMedLib.objectives.text_informed_contrast import (
    TWO_CROPS,
    TextInformedContrast,
    TextInformedContrastSettings,
    VisualOnlyContrast,
    draw_candidates,
    told,
)

NAME = "text_informed_contrast_loss"


def settings(**changes: object) -> TextInformedContrastSettings:
    return replace(TextInformedContrastSettings(most_negatives=3), **changes)


def encoded(model: T3dModel, batch: StudyBatch, views: tuple[str, ...]) -> dict[str, tuple[torch.Tensor, ...]]:
    with torch.no_grad():
        return encode(model, batch, (*views, TEXT_CLEAN))


def term(model: T3dModel, batch: StudyBatch, objective: torch.nn.Module, views: tuple[str, ...] = TWO_CROPS) -> tuple[float, float]:
    found = next(iter(objective(model, encoded(model, batch, views), batch, Context(seed=1)).losses.values()))
    return float(found.total.detach()), found.count


def slow_contrast(model: T3dModel, batch: StudyBatch, views: tuple[str, ...], *, negatives: str, most: int = 3) -> tuple[float, int]:
    """The law of methods.md 4.3 in loops: `views` are compared, everything is computed anew for every pair."""
    features = encoded(model, batch, views)
    tokens = {v: [list(x) for x in cells(features[v].top).numpy()] for v in views}
    states, groups = features[TEXT_CLEAN].states.numpy(), batch.group.tolist()
    noise = Context(seed=1).uniform("text_informed.negatives", batch.study[:, None], batch.study[None, :])

    def z(view: str, image: int, text: int) -> slow.Array:
        if negatives == "none":
            return slow.projected(tokens[view][image], model.text_informed)
        kept = batch.extras[told(view)][text].tolist()
        return slow.projected(slow.informed(tokens[view][image], list(states[text]), kept, model.text_informed), model.text_informed)

    total, count = 0.0, 0
    for i in range(len(batch)):
        others = sorted((j for j in range(len(batch)) if groups[j] != groups[i]), key=lambda j: float(noise[i, j]))[:most]
        if not others:
            continue
        count += 1
        for v in views:
            positives = [z(u, i, i) for u in views if u != v]
            wrong = [z(u, j, j if negatives == "own_text" else i) for u in views if u != v for j in others]
            total += slow.one_anchor(z(v, i, i), positives, wrong, 0.1) / len(views)
    return total, count


@pytest.mark.parametrize("items", [range(8), [0, 4, 1], [5, 7, 2, 3]], ids=["eight", "two of one report", "two of one study"])
@pytest.mark.parametrize("negatives", ["anchor_text", "own_text"])
def test_contrast_of_two_crops_is_that_of_a_loop_over_studies_and_their_negatives(items: list[int], negatives: str) -> None:
    model, batch = t3d_toys.model(), t3d_toys.batch(items)
    want = slow_contrast(model, batch, TWO_CROPS, negatives=negatives)
    total, count = term(model, batch, TextInformedContrast(settings(negatives=negatives)))
    assert total == pytest.approx(want[0], rel=1e-9) and count == want[1] == len(items)


def test_with_more_views_all_views_of_the_study_are_positives() -> None:
    model, batch, views = t3d_toys.model(), t3d_toys.batch([0, 1, 2, 4]), t3d_toys.MANY_VIEWS
    want = slow_contrast(model, batch, views, negatives="anchor_text", most=2)
    total, count = term(model, batch, TextInformedContrast(settings(most_negatives=2), views=views), views)
    assert total == pytest.approx(want[0], rel=1e-9) and count == want[1]


def test_the_visual_only_term_is_the_same_loop_without_the_blocks() -> None:
    model, batch = t3d_toys.model(), t3d_toys.batch()
    want = slow_contrast(model, batch, TWO_CROPS, negatives="none")
    assert term(model, batch, VisualOnlyContrast(settings())) == pytest.approx(want, rel=1e-9)
    moved = replace(batch, extras={name: torch.zeros_like(kept) for name, kept in batch.extras.items()})
    assert term(model, moved, VisualOnlyContrast(settings())) == term(model, batch, VisualOnlyContrast(settings()))


@pytest.mark.parametrize("views", [TWO_CROPS, t3d_toys.MANY_VIEWS], ids=["two", "three"])
def test_any_chunk_size_gives_the_same_loss_and_gradient(views: tuple[str, ...]) -> None:
    found = []
    for chunk in (0, 1, 3, 100):
        model, batch = t3d_toys.model(), t3d_toys.batch()
        objective = TextInformedContrast(settings(chunk_anchors=chunk), views=views)
        loss = objective(model, encode(model, batch, (*views, TEXT_CLEAN)), batch, Context(seed=1)).losses[NAME].total
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for loss, grads in found[1:]:
        assert torch.allclose(loss, found[0][0], rtol=1e-12) and grads.keys() == found[0][1].keys()
        for name, grad in grads.items():
            assert torch.allclose(grad, found[0][1][name], rtol=1e-9, atol=1e-12), name
    assert any(name.startswith("tribert.") for name in found[0][1]) and any(name.startswith("swin.") for name in found[0][1])


def test_with_the_gate_closed_text_has_no_effect_on_loss_or_gradient() -> None:
    model, batch = t3d_toys.model(gate=0.0), t3d_toys.batch()
    features = encode(model, batch, (*TWO_CROPS, TEXT_CLEAN))
    features[TEXT_CLEAN].states.retain_grad()
    objective = TextInformedContrast(settings())
    loss = objective(model, features, batch, Context(seed=1)).losses[NAME].total
    loss.backward()
    assert not features[TEXT_CLEAN].states.grad.any()
    changed = features | {TEXT_CLEAN: TextFeatures(torch.randn_like(features[TEXT_CLEAN].states) * 100)}
    unread = replace(batch, extras={name: ~kept for name, kept in batch.extras.items()})
    assert torch.equal(objective(model, changed, unread, Context(seed=1)).losses[NAME].total, loss)


def test_with_the_gate_open_text_has_an_effect() -> None:
    model, batch = t3d_toys.model(), t3d_toys.batch()
    features, objective = encoded(model, batch, TWO_CROPS), TextInformedContrast(settings())
    changed = features | {TEXT_CLEAN: TextFeatures(features[TEXT_CLEAN].states.flip(0))}
    a, b = (objective(model, f, batch, Context(seed=1)).losses[NAME].total for f in (features, changed))
    assert abs(float((a - b).detach())) > 1e-3


class Watched(TextInformed):
    """Writes down what each call reads."""

    def forward(self, x: torch.Tensor, text: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        self.calls.append((x.shape[1], text.detach().clone(), kept.clone()))
        return super().forward(x, text, kept)


def watched_model() -> T3dModel:
    model = t3d_toys.model()
    block = Watched(model.text_informed.config).double()
    block.load_state_dict(model.text_informed.state_dict())
    block.calls = []
    model.text_informed = block
    return model


def test_positive_and_negatives_of_an_anchor_read_the_very_same_tokens() -> None:
    model, batch = watched_model(), t3d_toys.batch()
    features = encoded(model, batch, TWO_CROPS)
    with torch.no_grad():
        TextInformedContrast(settings(chunk_anchors=1))(model, features, batch, Context(seed=1))
    calls = model.text_informed.calls
    assert len(calls) == 2 * 8
    for n, (tokens, text, kept) in enumerate(calls):
        view, i = TWO_CROPS[n // 8], n % 8
        # One row holds the two tokens of the own crop and of each of three candidates: they cannot read different texts.
        assert tokens == 2 * 4 and len(text) == 1
        assert torch.equal(text[0], features[TEXT_CLEAN].states[i]) and torch.equal(kept[0], batch.extras[told(view)][i])


def test_where_the_null_token_was_drawn_positive_and_negatives_all_read_it_and_no_report() -> None:
    model, batch = t3d_toys.model(), t3d_toys.batch([2, 0, 1, 6])
    assert not batch.extras[told(IMAGE_LOCAL_B)][0].any() and batch.extras[told(IMAGE_LOCAL_A)][0].any()
    features, objective = encoded(model, batch, TWO_CROPS), TextInformedContrast(settings())
    drawn = draw_candidates(batch, Context(seed=1), 3)

    def vectors(states: torch.Tensor) -> torch.Tensor:
        read = features | {TEXT_CLEAN: TextFeatures(states)}
        return objective.vectors(IMAGE_LOCAL_B, model.text_informed, read, batch, drawn.places, Context(seed=1)).detach()

    states = features[TEXT_CLEAN].states
    base, moved = vectors(states), vectors(torch.randn_like(states))
    assert torch.equal(base[0], moved[0]) and not torch.allclose(base[1], moved[1])
    alone = model.text_informed.project(model.text_informed.without_text(cells(features[IMAGE_LOCAL_B].top)))
    assert torch.allclose(base[0], alone[drawn.places[0]], rtol=1e-10)


def test_group_members_are_never_candidates_and_every_other_study_can_be() -> None:
    batch = t3d_toys.batch()
    seen: set[tuple[int, int]] = set()
    for step in range(60):
        drawn = draw_candidates(batch, Context(seed=1, step=step), 3)
        assert torch.equal(drawn.places[:, 0], torch.arange(8)) and drawn.legal.all()
        assert all(len(set(row)) == 4 for row in drawn.places.tolist())
        seen |= {(i, j) for i, row in enumerate(drawn.places[:, 1:].tolist()) for j in row}
    groups = batch.group.tolist()
    assert {i for i, j in seen if groups[i] == groups[j]} == set()
    assert {(i, j) for i in range(8) for j in range(8) if groups[i] != groups[j]} == seen


def test_the_draw_of_a_study_is_the_same_in_any_order() -> None:
    batch = t3d_toys.batch([0, 1, 2, 3, 5, 6])
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    moved = replace(batch, study=batch.study[order], group=batch.group[order])
    here, there = draw_candidates(batch, Context(seed=4), 2), draw_candidates(moved, Context(seed=4), 2)
    assert torch.equal(batch.study[here.places][order], moved.study[there.places])


@pytest.mark.parametrize("batch", [t3d_toys.batch([1]), t3d_toys.batch([0, 1, 2], one_group=True)], ids=["one study", "one group"])
@pytest.mark.parametrize("make", [TextInformedContrast, VisualOnlyContrast])
def test_without_a_negative_there_is_no_term_and_no_nan(make: type, batch: StudyBatch) -> None:
    model, objective = t3d_toys.model(), make(settings())
    found = next(iter(objective(model, encode(model, batch, sorted(objective.needs)), batch, Context()).losses.values()))
    found.total.backward()
    assert float(found.total.detach()) == 0 and found.count == 0 == next(iter(objective.counts(batch, Context()).values()))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_settings_and_views_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="negatives"):
        settings(negatives="other")
    with pytest.raises(ValueError, match="two views"):
        TextInformedContrast(views=[IMAGE_LOCAL_A])


def trained_on_noise(negatives: str, steps: int = 240) -> tuple[float, float]:
    """Block and projection trained where a study's two images are noise without anything in common, its text always the same.

    Returns the mean contrast over the last third of the steps, and how far the gates have opened.
    """
    torch.manual_seed(0)
    studies, negative_count = 8, 7
    block = TextInformed(TextInformedConfig(channels=16, text_width=12, heads=2, ffn_ratio=2, projection_dim=8))

    class Encoders(torch.nn.Module):
        text_informed = block

    with torch.no_grad():
        for p in (block.cross_gate, block.ffn_gate):
            p.fill_(1.0)  # wide open: what could leak would leak at once
    texts = torch.randn(studies, 5, 12)
    kept = torch.ones(studies, 5, dtype=torch.bool)
    batch = StudyBatch(
        study=torch.arange(studies), group=torch.arange(studies), extras={told(view): kept for view in TWO_CROPS}
    )  # fmt: skip
    objective = TextInformedContrast(settings(negatives=negatives, most_negatives=negative_count, chunk_anchors=0))
    optimiser = torch.optim.AdamW(block.parameters(), lr=3e-3)
    seen = []
    for step in range(steps):
        features = {view: LocalFeatures(torch.randn(studies, 16, 2, 1, 1)) for view in TWO_CROPS}
        features[TEXT_CLEAN] = TextFeatures(texts)
        found = objective(Encoders(), features, batch, Context(step=step)).losses[NAME]
        optimiser.zero_grad()
        (found.total / found.count).backward()
        optimiser.step()
        seen.append(float(found.total.detach()) / found.count)
    last = seen[-steps // 3 :]
    return sum(last) / len(last), float(block.gates().detach())


def test_with_noise_images_training_leaves_the_contrast_at_chance() -> None:
    loss, gates = trained_on_noise("anchor_text")
    assert loss > math.log(8) - 0.03 and gates > 0.1


def test_candidates_that_read_their_own_text_are_told_by_it_even_from_noise() -> None:
    # What conditioning on the anchor's report prevents; and proof that the test above can fail.
    loss, _ = trained_on_noise("own_text")
    assert loss < 0.5 * math.log(8)
