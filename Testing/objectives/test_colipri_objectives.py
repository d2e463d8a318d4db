"""The losses of COLIPRI-style training: each equals a slow twin written for reading, and its edges hold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from Testing.objectives import colipri_toys, toys
from VelvetMedLib.models.aligned_colipri import AlignedColipri, CellFeatures, KeptFeatures
from VelvetMedLib.models.primus import grid_cells
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, NOT_ASKED, TEXT_CLEAN, StudyBatch, TextFeatures, normalised
from VelvetMedLib.objectives.cached import cached_backward, joined_batch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.objectives.masked_image import IMAGE_MAE, KEPT, PADDING, MaskedImage, MaskedImageSettings, asked_cells
from VelvetMedLib.objectives.opposite_sentences import ASKED, TEXT_OPPOSITE, OppositeSentences
from VelvetMedLib.objectives.report_generation import TEXT_CAUSAL, ReportGeneration, ReportGenerationSettings
from VelvetMedLib.objectives.sigmoid_contrast import SigmoidContrast

CTX = Context(seed=1, step=2)


@pytest.fixture
def model() -> AlignedColipri:
    return colipri_toys.model()


@pytest.fixture
def objectives() -> Any:
    return colipri_toys.objectives()


def features_of(model: Any, batch: StudyBatch, *objectives: Any) -> Any:
    return encode(model, batch, needed_keys(objectives))


def value(x: Any) -> float:
    """A tensor of one number, with or without a graph."""
    return float(x.detach() if isinstance(x, Tensor) else x)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def test_the_sigmoid_contrast_is_the_sum_over_pairs_of_a_double_loop(model: AlignedColipri, objectives: Any) -> None:
    batch, contrast = colipri_toys.batch(), objectives["sigmoid"]
    features = features_of(model, batch, contrast)
    term = contrast(model, features, batch, CTX).losses["sigmoid_contrast_loss"]
    total = 0.0
    for i in range(8):
        for j in range(8):
            cosine = value(features[IMAGE_GLOBAL].pooled[i] @ unit(features[TEXT_CLEAN].states[j, 0]))
            z = 1.0 if batch.group[i] == batch.group[j] else -1.0
            total += math.log(1 + math.exp(-z * (math.exp(value(model.logit_scale)) * cosine + value(contrast.bias))))
    assert value(term.total) == pytest.approx(total, rel=1e-9) and term.count == 8
    assert contrast.counts(batch, CTX) == {"sigmoid_contrast_loss": 8.0}
    assert len({int(g) for g in batch.group}) < 8, "some studies must share a group for the sign to matter"


def test_a_bias_of_minus_ten_makes_the_first_step_of_a_sigmoid_contrast_cost_ten_a_study(model: AlignedColipri) -> None:
    assert SigmoidContrast().bias.item() == -10.0
    batch = colipri_toys.batch([0, 1])
    with torch.no_grad():
        model.logit_scale.fill_(0.0)
    contrast = SigmoidContrast().double()
    term = contrast(model, features_of(model, batch, contrast), batch, CTX).losses["sigmoid_contrast_loss"]
    assert value(term.total) / term.count == pytest.approx(10.0, abs=1.1)


def test_opposite_sentences_equal_a_loop_over_studies_and_their_pairs(model: AlignedColipri, objectives: Any) -> None:
    batch, objective = colipri_toys.batch(), objectives["opposite"]
    features = features_of(model, batch, objective)
    term = objective(model, features, batch, CTX).losses["opposite_sentences_loss"]
    states, total, studies = features[TEXT_OPPOSITE].states[:, 0], 0.0, 0
    for i, pairs in enumerate(colipri_toys.OPPOSITES):
        each = []
        for k in range(len(pairs)):
            true = unit(states[i * 4 + k])
            false = unit(states[i * 4 + 2 + k])
            gap = value((features[IMAGE_GLOBAL].pooled[i] * (true - false)).sum()) / 0.07
            each.append(math.log(1 + math.exp(-gap)))
        if each:
            studies += 1
            total += sum(each) / len(each)
    assert value(term.total) == pytest.approx(total, rel=1e-9) and term.count == studies == 5
    assert objective.counts(batch, CTX) == {"opposite_sentences_loss": 5.0}


def test_the_rows_of_opposite_texts_say_what_the_toys_say() -> None:
    batch, tokenizer = colipri_toys.batch([0, 1]), toys.tokenizer()
    said = [
        tokenizer.decode(row[mask].tolist())
        for row, mask in zip(batch.texts[TEXT_OPPOSITE].ids, batch.texts[TEXT_OPPOSITE].pad_mask, strict=True)
    ]
    assert said[:4] == ["No effusion.", "Small nodule.", "Effusion.", "No nodule."]
    assert said[4:] == ["Nodules.", "", "No nodules.", ""]


def test_studies_without_a_pair_leave_the_gradient_of_the_others_alone_and_alone_give_a_zero_that_can_go_back(
    model: AlignedColipri, objectives: Any
) -> None:
    objective = objectives["opposite"]

    def gradient(items: list[int]) -> tuple[float, Tensor]:
        batch = colipri_toys.batch(items)
        term = objective(model, features_of(model, batch, objective), batch, CTX).losses["opposite_sentences_loss"]
        grads = torch.autograd.grad(term.total, list(model.parameters()), allow_unused=True)
        return term.count, torch.cat([g.flatten() for g in grads if g is not None])

    (count, alone), (with_empty, beside) = gradient([0, 1]), gradient([0, 2, 1, 3])
    assert count == with_empty == 2 and torch.allclose(alone, beside, atol=1e-10)
    nobody, nothing = gradient([2, 3])
    assert nobody == 0 and not nothing.any() and bool(nothing.isfinite().all())


def test_report_generation_equals_one_pass_per_token_over_what_stands_before_it(model: AlignedColipri, objectives: Any) -> None:
    batch, objective = colipri_toys.batch(), objectives["generation"]
    features = features_of(model, batch, objective)
    term = objective(model, features, batch, CTX).losses["report_generation_loss"]
    ids, cells = batch.extras[TEXT_CAUSAL], features[IMAGE_GLOBAL].cells
    total, count = 0.0, 0
    tokenizer = toys.tokenizer()
    for i in range(8):
        # Cells in cubes of two: 4x4x4 -> 2x2x2, at most the eight that the toy's writer reads.
        memory = torch.stack(
            [
                cells[i, :, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2].mean(dim=(1, 2, 3))
                for x in (0, 1)
                for y in (0, 1)
                for z in (0, 1)
            ]
        )[None]
        text = [int(n) for n in ids[i] if int(n) != tokenizer.pad_id]
        front = 1 + len(tokenizer.encode("findings :"))
        for place in range(front, len(text)):
            logits = objective.decoder(torch.tensor([text[:place]]), memory, torch.ones(1, 8, dtype=torch.bool))[0, -1]
            total -= value(logits.log_softmax(-1)[text[place]])
            count += 1
    assert value(term.total) == pytest.approx(total, rel=1e-8) and term.count == count
    assert objective.counts(batch, CTX) == {"report_generation_loss": value(count)}


def test_padding_behind_a_report_changes_nothing_of_its_loss(model: AlignedColipri, objectives: Any) -> None:
    objective = objectives["generation"]
    each = []
    for items in ([2], [2, 5]):  # study 2 says one word, study 5 many
        batch = colipri_toys.batch(items)
        labels = batch.labels[TEXT_CAUSAL].clone()
        labels[1:] = NOT_ASKED
        batch = replace(batch, labels={TEXT_CAUSAL: labels})
        each.append(value(objective(model, features_of(model, batch, objective), batch, CTX).losses["report_generation_loss"].total))
    assert each[0] == pytest.approx(each[1], rel=1e-10)


def test_the_writers_gradient_reaches_the_image_encoder_and_an_odd_grid_is_averaged_whole(model: AlignedColipri, objectives: Any) -> None:
    batch, objective = colipri_toys.batch([0, 1]), objectives["generation"]
    term = objective(model, features_of(model, batch, objective), batch, CTX).losses["report_generation_loss"]
    term.total.backward()
    assert model.image_encoder.backbone.down_projection.proj.weight.grad.abs().sum() > 0
    cells = torch.arange(27.0).view(1, 1, 3, 3, 3)
    memory = objective.memory(cells)
    assert memory.shape == (1, 8, 1) and value(memory[0, -1, 0]) == 26.0, "the last cell stands alone in its cube"
    assert value(memory[0, 0, 0]) == value(cells[0, 0, :2, :2, :2].mean())


def test_masked_images_equal_a_loop_over_cells_and_ask_only_for_cells_that_are_neither_seen_nor_padding(
    model: AlignedColipri, objectives: Any
) -> None:
    batch, objective = colipri_toys.batch(), objectives["masked"]
    features = features_of(model, batch, objective)
    term = objective(model, features, batch, CTX).losses["masked_image_loss"]
    kept, padding, states = batch.extras[KEPT], batch.extras[PADDING], features[IMAGE_MAE].states
    p, decoder = colipri_toys.PATCH, objective.decoder
    places = grid_cells((4, 4, 4))
    total, count = 0.0, 0
    for i in range(8):
        inside = kept[i].tolist()
        whole = torch.stack([states[i, inside.index(n)] if n in inside else decoder.gap for n in range(64)])[None]
        told = decoder.outlet(decoder.blocks(decoder.inlet(whole), _rotary(places)))[0]
        for n in range(64):
            if n in inside or padding[i, n]:
                continue
            x, y, z = (p * places[n]).tolist()
            true = batch.images[IMAGE_MAE][i, 0, x : x + p, y : y + p, z : z + p].flatten()
            total += value((told[n] - true).square().sum()) / p**3
            count += 1
    assert value(term.total) == pytest.approx(total, rel=1e-9) and term.count == count
    assert objective.counts(batch, CTX) == {"masked_image_loss": value(count)}
    assert int(asked_cells(kept, padding).sum()) == count


def _rotary(places: Tensor) -> Any:
    from VelvetMedLib.models.primus import rotary

    return rotary(places, 6, dtype=torch.float64)


def test_nothing_of_a_masked_cell_reaches_the_encoder_and_no_gradient_comes_back_from_it(model: AlignedColipri, objectives: Any) -> None:
    batch, objective = colipri_toys.batch([0]), objectives["masked"]
    image = batch.images[IMAGE_MAE].clone().requires_grad_()
    states = model.kept_features(image, batch.extras[KEPT]).states
    (gradient,) = torch.autograd.grad(states.square().sum(), image)
    seen = torch.zeros(64, dtype=torch.bool)
    seen[batch.extras[KEPT][0]] = True
    by_cell = gradient.view(4, 4, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(64, 64).abs().sum(dim=1) > 0
    assert torch.equal(by_cell, seen) and int(seen.sum()) == 16, "exactly a quarter of the cells, and these alone"
    spoiled = image.detach().clone()
    spoiled.view(4, 4, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5)[~seen.view(4, 4, 4)] = 1e6
    assert torch.equal(model.kept_features(spoiled, batch.extras[KEPT]).states, states.detach())
    assert objective.counts(batch, CTX)["masked_image_loss"] == 48.0


def test_normalised_targets_have_mean_zero_and_unit_spread_and_a_flat_patch_is_no_nan() -> None:
    objective = MaskedImage(colipri_toys.WIDTH, 4, MaskedImageSettings(normalised=True, width=12, depth=1, heads=2, ffn=16)).double()
    with torch.no_grad():
        objective.decoder.outlet.weight.zero_()
    batch = colipri_toys.batch([0])
    features = {IMAGE_MAE: KeptFeatures(torch.zeros(1, 16, colipri_toys.WIDTH, dtype=torch.float64))}
    term = objective(None, features, batch, CTX).losses["masked_image_loss"]
    assert value(term.total) / term.count == pytest.approx(1.0, rel=1e-4), "zero told of unit-spread patches: an error of one"
    flat = replace(batch, images={IMAGE_MAE: torch.full_like(batch.images[IMAGE_MAE], 3.0)})
    assert value(objective(None, features, flat, CTX).losses["masked_image_loss"].total) == pytest.approx(0.0, abs=1e-6)


def test_a_batch_all_of_padding_asks_for_nothing_and_its_zero_can_go_back(model: AlignedColipri, objectives: Any) -> None:
    batch, objective = colipri_toys.batch([0]), objectives["masked"]
    batch = replace(batch, extras=batch.extras | {PADDING: torch.ones(1, 64, dtype=torch.bool)})
    term = objective(model, features_of(model, batch, objective), batch, CTX).losses["masked_image_loss"]
    assert term.count == 0 and value(term.total) == 0.0
    term.total.backward()


def test_masked_scans_may_be_more_or_fewer_than_the_pairs(model: AlignedColipri, objectives: Any) -> None:
    for scans in ([0], [3, 4, 5, 6]):
        batch = colipri_toys.batch([0, 1], scans=scans)
        features = encode(model, batch, needed_keys(objectives.values()))
        losses = {n: t for o in objectives.values() for n, t in o(model, features, batch, CTX).losses.items()}
        counts = {n: c for o in objectives.values() for n, c in o.counts(batch, CTX).items()}
        assert {n: t.count for n, t in losses.items()} == counts


def test_cached_gradients_keep_vectors_only_and_equal_the_plain_batch() -> None:
    model, objectives = colipri_toys.model(), colipri_toys.objectives()
    ours = [*objectives.values()]
    across, local = [o for o in ours if o.across], [o for o in ours if not o.across]
    shares = [[0, 1, 2], [3, 4], [5], [6, 7]]
    batches = [colipri_toys.batch(items) for items in shares]
    parameters = [*model.parameters(), *objectives.parameters()]
    whole = colipri_toys.batch()
    totals = {n: c for o in ours for n, c in o.counts(whole, CTX).items()}
    features = encode(model, whole, needed_keys(ours))
    normalised({n: t for o in ours for n, t in o(model, features, whole, CTX).losses.items()}, totals, world_size=1).backward()
    wanted = [p.grad.clone() for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    seen: list[Any] = []

    def across_loss(given: Any, batch: StudyBatch) -> Tensor:
        seen.append(given[IMAGE_GLOBAL])
        return normalised({n: t for o in across for n, t in o(model, given, batch, CTX).losses.items()}, totals, world_size=1)

    def local_loss(given: Any, batch: StudyBatch) -> Tensor:
        return normalised({n: t for o in local for n, t in o(model, given, batch, CTX).losses.items()}, totals, world_size=1)

    across_keys = needed_keys(across)
    cached_backward(
        batches,
        encode=lambda batch, keys: encode(model, batch, keys),
        across_keys=across_keys,
        across_loss=across_loss,
        local_keys=tuple(k for k in needed_keys(local) if k not in across_keys),
        local_loss=local_loss,
    )
    assert isinstance(seen[0], CellFeatures) and seen[0].pooled.shape == (8, colipri_toys.WIDTH)
    assert seen[0].cells is None, "cells do not wait for the whole batch"
    found = [p.grad for p in parameters if p.grad is not None]
    assert len(found) == len(wanted) and all(torch.allclose(a, b, rtol=1e-7, atol=1e-10) for a, b in zip(found, wanted, strict=True))
    assert joined_batch(batches, across_keys).texts.keys() == {TEXT_CLEAN}


def test_four_reports_are_learnt_by_heart_and_written_from_the_scan_alone() -> None:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    tokenizer = toys.tokenizer()
    settings = ReportGenerationSettings(layers=1, width=32, heads=2, ffn=64, dropout=0.0, tokens=24, memory_cells=8)
    objective = ReportGeneration(tokenizer.vocab_size, 6, settings)
    items = [0, 1, 2, 6]
    batch = colipri_toys.batch(items)
    cells = torch.from_numpy(draw.standard_normal((4, 6, 2, 2, 2))).float()
    optimiser = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    first = None
    for _ in range(120):
        term = objective(None, {IMAGE_GLOBAL: CellFeatures(torch.zeros(4, 6), cells)}, batch, CTX).losses["report_generation_loss"]
        loss = term.total / term.count
        first = first or value(loss)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert value(loss) < 0.1 * value(first or 0)
    front = torch.tensor([[tokenizer.id("[REPORT]"), *tokenizer.encode("findings :")]] * 4)
    written = objective.eval().write(cells, front, tokenizer.id("[EOS]"))
    said = [tokenizer.decode(row) for row in written.ids.tolist()]
    assert said == [" ".join(toys.REPORTS[i]) for i in items]


def test_a_handful_of_scans_is_aligned_told_apart_and_filled_in() -> None:
    """The whole step on the toy: contrast finds each report, opposites are told apart, masked cells get nearer."""
    model, objectives = colipri_toys.model().float(), colipri_toys.objectives().float()
    batch = colipri_toys.batch([0, 1, 5, 7])
    batch = replace(batch, images={k: v.float() for k, v in batch.images.items()})
    # Smooth pictures: of noise nothing could be told.
    smooth = functional.interpolate(batch.images[IMAGE_MAE][..., ::8, ::8, ::8], (16, 16, 16), mode="trilinear")
    batch = replace(batch, images=batch.images | {IMAGE_MAE: smooth})
    module = nn.ModuleList([model, objectives])
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    figures: list[dict[str, float]] = []
    for _ in range(60):
        features = encode(model, batch, needed_keys(objectives.values()))
        terms = [o(model, features, batch, CTX) for o in objectives.values()]
        losses = {n: t for term in terms for n, t in term.losses.items()}
        figures.append(
            {n: value(t.total) / t.count for n, t in losses.items()} | {n: value(m) for term in terms for n, m in term.metrics.items()}
        )
        optimiser.zero_grad()
        sum(t.total / t.count for t in losses.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    first, last = figures[0], figures[-1]
    assert last["report_contrast_loss"] < 0.5 * first["report_contrast_loss"] and last["report_contrast/image_to_text_r1"] == 1
    assert last["opposite_sentences_loss"] < 0.5 * first["opposite_sentences_loss"] and last["opposite_sentences/right"] == 1
    assert last["report_generation_loss"] < 0.6 * first["report_generation_loss"]
    assert last["masked_image_loss"] < 0.6 * first["masked_image_loss"]


def test_a_text_is_one_state_whatever_padding_stands_behind_it(model: AlignedColipri) -> None:
    alone, beside = colipri_toys.batch([2]).texts[TEXT_CLEAN], colipri_toys.batch([2, 5]).texts[TEXT_CLEAN]
    assert beside.ids.shape[1] > alone.ids.shape[1]
    states = TextFeatures(model.text_state(alone)).states
    assert states.shape == (1, 1, colipri_toys.WIDTH) and torch.allclose(states[0], model.text_state(beside)[0], atol=1e-12)
    with pytest.raises(ValueError, match="whole texts"):
        model.project_text(states, alone, ["word"])


def test_released_names_are_all_but_the_learned_scale_which_becomes_the_temperature(model: AlignedColipri) -> None:
    found = model.released_tensors()
    assert "logit_scale" not in found and found.keys() == {k for k in model.state_dict() if k != "logit_scale"}
    assert value(found["softmax_temperature"]) == pytest.approx(0.07, rel=1e-5)


def test_an_objective_names_the_extras_it_reads() -> None:
    assert OppositeSentences.reads == {ASKED} and MaskedImage.reads == {KEPT, PADDING} and ReportGeneration.reads == {TEXT_CAUSAL}
