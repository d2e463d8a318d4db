"""Report-level contrast against loops over numbers, and its groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from Testing.objectives import slow, toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.contrast import group_targets
from VelvetMedLib.objectives.report_contrast import ReportContrast, ReportContrastSettings


def numbers(model: VelvetModel, name: str) -> tuple[np.ndarray, np.ndarray]:
    layer = dict(model.named_modules())[name]
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
def test_the_loss_is_that_of_loops_over_rows_and_columns(model: VelvetModel, smoothing: float) -> None:
    batch = toys.batch()
    features = toys.random_features(batch)
    image, text = numbers(model, "image_projection.report"), numbers(model, "text_projection.report")
    v = [slow.unit(slow.linear(slow.mean_cell(top.detach().numpy()), *image)) for top in features[IMAGE_GLOBAL].top]
    t = [slow.unit(slow.linear(states[0].detach().numpy(), *text)) for states in features[TEXT_CLEAN].states]
    scale = min(100.0, np.exp(float(model.logit_scale.detach())))
    logits = np.array([[scale * float(np.dot(a, b)) for b in t] for a in v])
    want, count = slow.contrast(logits, batch.group.tolist(), [True] * 8, smoothing)
    terms = ReportContrast(ReportContrastSettings(label_smoothing=smoothing))(model, features, batch, Context())
    term = terms.losses["report_contrast_loss"]
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10) and term.count == count == 8
    groups = batch.group.tolist()
    right = np.mean([groups[int(np.argmax(row))] == g for row, g in zip(logits, groups, strict=True)])
    assert float(terms.metrics["report_contrast/image_to_text_r1"]) == pytest.approx(right)


def test_targets_sum_to_one_and_equal_reports_share_the_mass() -> None:
    groups = torch.tensor([1, 2, 1, 3])
    targets = group_targets(groups, groups, smoothing=0.1, like=torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(targets.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert targets[0].tolist() == pytest.approx([0.45 + 0.025, 0.025, 0.45 + 0.025, 0.025])
    kept = torch.tensor([True, False, True, True])
    partly = group_targets(groups[kept], groups, kept, like=targets)
    assert partly.tolist() == [[0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]


def test_swapping_the_texts_of_two_studies_with_one_report_changes_nothing(model: VelvetModel) -> None:
    batch = toys.batch()
    features = toys.random_features(batch)
    objective, ctx = ReportContrast(), Context()
    before = objective(model, features, batch, ctx).losses["report_contrast_loss"].total
    order = torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])  # 0 and 4 have the same report
    swapped = features | {TEXT_CLEAN: features[TEXT_CLEAN]._replace(states=features[TEXT_CLEAN].states[order])}
    assert torch.allclose(objective(model, swapped, batch, ctx).losses["report_contrast_loss"].total, before)
    apart = replace(batch, group=torch.arange(8))
    assert not torch.allclose(objective(model, swapped, apart, ctx).losses["report_contrast_loss"].total, before)


@pytest.mark.parametrize("start", [-3.0, 9.0])
def test_the_scale_is_kept_between_one_and_a_hundred(model: VelvetModel, start: float) -> None:
    batch = toys.batch()
    with torch.no_grad():
        model.logit_scale.fill_(start)
    scale = float(ReportContrast()(model, toys.random_features(batch), batch, Context()).metrics["report_contrast/scale"])
    assert scale == pytest.approx(1.0 if start < 0 else 100.0)


def test_a_batch_of_one_and_a_batch_of_one_group_give_finite_losses_and_gradients(model: VelvetModel) -> None:
    for batch in (toys.batch([0]), toys.batch([0, 1, 2], one_group=True)):
        features = toys.random_features(batch)
        term = ReportContrast()(model, features, batch, Context()).losses["report_contrast_loss"]
        term.total.backward()
        assert torch.isfinite(term.total) and torch.isfinite(features[IMAGE_GLOBAL].top.grad).all()


def test_under_autocast_the_loss_is_computed_in_full_precision() -> None:
    model = toys.model().float()
    batch = toys.batch()
    features = {k: type(f)(*(x.detach().float() for x in f)) for k, f in toys.random_features(batch).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = ReportContrast()(model, features, batch, Context()).losses["report_contrast_loss"].total
    plain = ReportContrast()(model, features, batch, Context()).losses["report_contrast_loss"].total
    # The projections round to bf16; what follows must not round again, and stays float32.
    assert total.dtype == torch.float32 and float(total.detach()) == pytest.approx(float(plain.detach()), rel=0.02)
