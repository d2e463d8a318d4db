"""Masked language: only what is asked counts, with and without the scan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from Testing.objectives import slow, toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, NOT_ASKED, TEXT_MASKED_MM, TEXT_MASKED_UNI
from VelvetMedLib.objectives.context import Context


@pytest.mark.parametrize(("name", "key"), [("mm", TEXT_MASKED_MM), ("text", TEXT_MASKED_UNI)])
def test_the_loss_is_the_sum_over_asked_positions_one_by_one(model: VelvetModel, name: str, key: str) -> None:
    batch, objective = toys.batch(), toys.objectives()[name]
    features = toys.random_features(batch)
    layout, labels = batch.texts[key], batch.labels[key]
    want, count = 0.0, 0
    for i in range(8):
        length = int(layout.pad_mask[i].sum())
        states = features[key].states[i : i + 1, :length]
        if name == "mm":
            visual = model.visual_tokens(type(features[IMAGE_GLOBAL])(*(x[i : i + 1] for x in features[IMAGE_GLOBAL])))
            states = model.tribert.fuse(states, layout.type_ids[i : i + 1, :length], layout.pad_mask[i : i + 1, :length], visual)
        for place in range(length):
            if int(labels[i, place]) != NOT_ASKED:
                logits = objective.head(states[0, place]).detach()
                want += slow.cross_entropy(logits.tolist(), int(labels[i, place]))
                count += 1
    term = objective(model, features, batch, Context()).losses[objective.loss_name]
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10) and term.count == count > 8


def test_states_of_positions_that_are_not_asked_get_no_gradient_without_vision(model: VelvetModel) -> None:
    batch, objective = toys.batch(), toys.objectives()["text"]
    features = toys.random_features(batch)
    total = objective(model, features, batch, Context()).losses["masked_language_text_loss"].total
    (grad,) = torch.autograd.grad(total, features[TEXT_MASKED_UNI].states)
    asked = batch.labels[TEXT_MASKED_UNI] != NOT_ASKED
    assert grad[asked].any(dim=-1).all() and not grad[~asked].any()


def test_the_scan_is_seen_with_vision_and_the_text_only_loss_does_not_need_it(model: VelvetModel) -> None:
    batch, objectives = toys.batch(), toys.objectives()
    features = toys.random_features(batch)
    total = objectives["mm"](model, features, batch, Context()).losses["masked_language_mm_loss"].total
    (grad,) = torch.autograd.grad(total, features[IMAGE_GLOBAL].top)
    asked = (batch.labels[TEXT_MASKED_MM] != NOT_ASKED).any(dim=1)
    assert all(bool(grad[i].any()) == bool(asked[i]) for i in range(8)) and not asked[3]
    assert objectives["text"].needs == {TEXT_MASKED_UNI} and objectives["mm"].needs == {TEXT_MASKED_MM, IMAGE_GLOBAL}
    only = {TEXT_MASKED_UNI: features[TEXT_MASKED_UNI]}
    assert objectives["text"](model, only, batch, Context()).losses["masked_language_text_loss"].count > 0


@pytest.mark.parametrize(("name", "key"), [("mm", TEXT_MASKED_MM), ("text", TEXT_MASKED_UNI)])
def test_nothing_asked_counts_nothing_and_sends_zero_gradients(model: VelvetModel, name: str, key: str) -> None:
    batch, objective = toys.batch([3]), toys.objectives()[name]
    batch = replace(batch, labels={key: torch.full_like(batch.labels[key], NOT_ASKED)})
    features = toys.random_features(batch)
    term = objective(model, features, batch, Context()).losses[objective.loss_name]
    term.total.backward()
    assert term.count == 0 and float(term.total.detach()) == 0
    assert not features[key].states.grad.any() and all(not p.grad.any() for p in objective.parameters())
