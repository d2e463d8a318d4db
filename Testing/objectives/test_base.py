"""The contract: counts before forward, sums until the engine divides, accumulation, one encoding per key."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from Testing.objectives import toys
from VelvetMedLib.models.text import TextLayout
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN, TEXT_MASKED_MM, TEXT_MASKED_UNI, LossTerm, joined_layout, normalised
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.objectives.masking import MaskingRule

NAMES = list(toys.objectives())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("items", [range(8), [3], [0, 4], [1, 3, 5]], ids=str)
def test_counts_from_the_batch_are_those_of_forward_and_names_end_in_loss(model: VelvetModel, name: str, items: list[int]) -> None:
    batch, objective, ctx = toys.batch(items), toys.objectives()[name], Context()
    terms = objective(model, toys.random_features(batch), batch, ctx)
    counts = objective.counts(batch, ctx)
    assert counts == {key: term.count for key, term in terms.losses.items()}
    assert all(key.endswith("_loss") for key in counts) and all(isinstance(c, float) for c in counts.values())
    assert all(term.total.ndim == 0 and torch.isfinite(term.total) for term in terms.losses.values())
    assert all(not m.requires_grad and torch.isfinite(m) for m in terms.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_reads_only_what_it_needs_and_sends_gradient_to_all_of_it(model: VelvetModel, name: str) -> None:
    batch, objective = toys.batch(), toys.objectives()[name]
    features = toys.random_features(batch)
    only = {key: features[key] for key in objective.needs}
    terms = objective(model, only, batch, Context()).losses
    sum(term.total for term in terms.values()).backward()
    for key in objective.needs:
        assert any(x.grad is not None and x.grad.any() for x in features[key] if x.is_floating_point()), key


@pytest.mark.parametrize("name", ["mm", "text", "rotation", "restoration"])
def test_accumulated_micro_batches_equal_one_batch_for_terms_without_negatives(model: VelvetModel, name: str) -> None:
    objective, ctx = toys.objectives()[name], Context()
    assert not objective.across
    parameters = [*objective.parameters(), *model.parameters()]
    gradients = []
    for split in ([range(8)], [range(3), range(3, 8)]):
        batches = [toys.batch(items) for items in split]
        counts = [objective.counts(batch, ctx) for batch in batches]
        totals = {key: sum(c[key] for c in counts) for key in counts[0]}
        for batch in batches:
            terms = objective(model, encode(model, batch, objective.needs), batch, ctx).losses
            normalised(terms, totals, world_size=1).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    for whole, split_up in zip(*gradients, strict=True):
        assert (whole is None) == (split_up is None)
        assert whole is None or torch.allclose(whole, split_up, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_takes_sixty_sentences_a_full_sequence_one_word_and_nothing(model: VelvetModel, name: str) -> None:
    tokenizer = toys.tokenizer()
    reports = [["Small nodule in the left lung."] * 60, ["no " * 197, "no " * 197, "no " * 114], ["Effusion"], []]
    clean = tokenizer.layout(reports, 512)
    assert clean.ids.shape == (4, 512) and clean.sentence_mask.sum(dim=1).tolist() == [50, 3, 1, 0]
    masked = MaskingRule.of(tokenizer).masked(clean, [np.random.default_rng(n) for n in range(4)])
    batch = replace(
        toys.batch(range(4)),
        texts={TEXT_CLEAN: clean, TEXT_MASKED_MM: masked[0], TEXT_MASKED_UNI: masked[0]},
        labels={TEXT_MASKED_MM: masked[1], TEXT_MASKED_UNI: masked[1]},
    )
    features, objective = toys.random_features(batch), toys.objectives()[name]
    for term in objective(model, features, batch, Context()).losses.values():
        term.total.backward()
        assert torch.isfinite(term.total) and term.count > 0
    grads = [x.grad for feature in features.values() for x in feature if x.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("name", NAMES)
def test_under_bf16_autocast_losses_are_float32_and_near_those_without(name: str) -> None:
    model, objective = toys.model().float(), toys.objectives()[name].float()
    batch, totals = toys.batch(), []
    batch = replace(batch, images={k: v.float() for k, v in batch.images.items()}, clean={k: v.float() for k, v in batch.clean.items()})
    for half in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            terms = objective(model, encode(model, batch, sorted(objective.needs)), batch, Context()).losses
        (term,) = terms.values()
        assert term.total.dtype == torch.float32
        term.total.backward()
        totals.append(float(term.total.detach()))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert totals[0] == pytest.approx(totals[1], rel=0.1)


def test_terms_are_weighted_divided_by_the_count_of_all_and_times_the_processes() -> None:
    losses = {"a_loss": LossTerm(torch.tensor(6.0), 2.0), "b_loss": LossTerm(torch.tensor(5.0), 0.0)}
    totals = {"a_loss": 12.0, "b_loss": 0.0}
    assert float(normalised(losses, totals, world_size=4)) == pytest.approx(4 * 6 / 12 + 4 * 5)
    assert float(normalised(losses, totals, world_size=1, weights={"a_loss": 0.5, "b_loss": 0.0})) == pytest.approx(0.25)


def test_each_key_is_encoded_once_and_equals_encoding_it_alone(model: VelvetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = toys.batch([0, 1])
    keys = needed_keys(toys.objectives().values())
    assert len(keys) == len(set(keys)) == 6 and set(keys[:4]) == {IMAGE_GLOBAL, TEXT_CLEAN, "image.local_a", "image.local_b"}
    volumes, texts = [], []
    swin, text = model.swin.forward, model.tribert.text
    monkeypatch.setattr(model.swin, "forward", lambda x: volumes.append(len(x)) or swin(x))
    monkeypatch.setattr(model.tribert, "text", lambda *a: texts.append(len(a[0])) or text(*a))
    features = encode(model, batch, keys)
    assert sum(volumes) == 3 * 2 and texts == [2, 2, 2]
    for key in keys:
        for whole, alone in zip(features[key], encode(model, batch, [key])[key], strict=True):
            assert torch.allclose(whole, alone, rtol=1e-9, atol=1e-12)


def test_a_global_view_without_its_spacing_is_refused(model: VelvetModel) -> None:
    with pytest.raises(ValueError, match="view_spacing_mm"):
        encode(model, replace(toys.batch([0]), view_spacing_mm=None), [IMAGE_GLOBAL])


def test_joined_layouts_read_as_if_they_had_been_laid_out_together() -> None:
    tokenizer = toys.tokenizer()
    together = tokenizer.layout(toys.REPORTS, 512)
    joined = joined_layout([tokenizer.layout(toys.REPORTS[:3], 512), tokenizer.layout(toys.REPORTS[3:], 512)])
    for f in fields(TextLayout):
        a, b = getattr(together, f.name), getattr(joined, f.name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b) or (f.name == "ids" and torch.equal(a * together.pad_mask, b * joined.pad_mask))
