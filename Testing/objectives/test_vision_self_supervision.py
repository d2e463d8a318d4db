"""Volume self-supervision against loops: which views are compared, what is counted, what must be restored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from Testing.objectives import slow, toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_LOCAL_A, IMAGE_LOCAL_B, StudyBatch
from VelvetMedLib.objectives.context import Context

VIEWS = (IMAGE_LOCAL_A, IMAGE_LOCAL_B)


@pytest.mark.parametrize(
    "batch", [toys.batch(), replace(toys.batch(), group=torch.arange(8)), toys.batch([1])], ids=["groups", "apart", "one"]
)
def test_view_contrast_is_that_of_a_loop_over_pairs_of_views(model: VelvetModel, batch: StudyBatch) -> None:
    features, objective = toys.random_features(batch), toys.objectives()["view"]
    head = objective.head.linear
    a, b = (
        [
            slow.linear(slow.mean_cell(top.detach().numpy()), head.weight.detach().numpy(), head.bias.detach().numpy())
            for top in features[key].top
        ]
        for key in VIEWS
    )
    want, count = slow.nt_xent(a, b, batch.group.tolist(), 0.5)
    term = objective(model, features, batch, Context()).losses["view_contrast_loss"]
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10, abs=1e-12) and term.count == count


def test_a_batch_of_one_crop_has_nothing_to_tell_it_from(model: VelvetModel) -> None:
    batch = toys.batch([1])
    features = toys.random_features(batch)
    term = toys.objectives()["view"](model, features, batch, Context()).losses["view_contrast_loss"]
    term.total.backward()
    assert float(term.total.detach()) == 0 and torch.isfinite(features[IMAGE_LOCAL_A].top.grad).all()


def test_other_volumes_of_the_group_do_not_push_a_view_away(model: VelvetModel) -> None:
    batch = toys.batch([0, 1], one_group=True)
    features = toys.random_features(batch)
    term = toys.objectives()["view"](model, features, batch, Context()).losses["view_contrast_loss"]
    assert float(term.total.detach()) == 0 and term.count == 4


def test_rotation_is_cross_entropy_on_the_quarter_turns_of_both_views(model: VelvetModel) -> None:
    batch = toys.batch()
    features, objective = toys.random_features(batch), toys.objectives()["rotation"]
    head = objective.head.linear
    want = 0.0
    for key in VIEWS:
        for top, turns in zip(features[key].top, batch.quarter_turns[key].tolist(), strict=True):
            pooled = slow.mean_cell(top.detach().numpy())
            want += slow.cross_entropy(list(slow.linear(pooled, head.weight.detach().numpy(), head.bias.detach().numpy())), turns)
    term = objective(model, features, batch, Context()).losses["rotation_loss"]
    assert float(term.total.detach()) == pytest.approx(want, rel=1e-10) and term.count == 16


def transposed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A transposed convolution of side and stride 2 by loops: each cell paints a 2 x 2 x 2 block."""
    channels, gx, gy, gz = x.shape
    out = np.zeros((weight.shape[1], 2 * gx, 2 * gy, 2 * gz)) + bias[:, None, None, None]
    for i in range(gx):
        for j in range(gy):
            for k in range(gz):
                for c in range(channels):
                    out[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2] += x[c, i, j, k] * weight[c]
    return out


def test_restoration_is_the_mean_error_over_all_voxels_of_the_turned_uncut_views(model: VelvetModel) -> None:
    batch = toys.batch([0, 6])
    features, objective = toys.random_features(batch), toys.objectives()["restoration"]
    features = {key: type(features[key])(features[key].top[:, :, :1, :1, :1]) for key in VIEWS}
    want = 0.0
    for key in VIEWS:
        for top, clean in zip(features[key].top, batch.clean[key], strict=True):
            x = top.detach().numpy()
            for layer in list(objective.decoder.layers)[:2]:
                x = transposed(x, layer.weight.detach().numpy(), layer.bias.detach().numpy())
            with torch.no_grad():  # two layers by loops show the law; the last three are torch's own
                x = objective.decoder.layers[2:](torch.from_numpy(x)[None])[0].numpy()
            want += float(np.abs(x - clean.numpy()).sum())
    term = objective(model, features, batch, Context()).losses["restoration_loss"]
    assert term.count == 4 * 32**3 and float(term.total.detach()) == pytest.approx(want, rel=1e-10)


def test_what_was_cut_out_must_be_restored_as_much_as_what_was_not(model: VelvetModel) -> None:
    batch = toys.batch([0])
    features, objective = toys.random_features(batch), toys.objectives()["restoration"]
    before = objective(model, features, batch, Context()).losses["restoration_loss"].total
    cut = batch.images[IMAGE_LOCAL_A] != batch.clean[IMAGE_LOCAL_A]
    assert cut.any()
    for where in (cut, ~cut):
        lifted = batch.clean | {IMAGE_LOCAL_A: batch.clean[IMAGE_LOCAL_A] + 1e6 * where}
        after = objective(model, features, replace(batch, clean=lifted), Context()).losses["restoration_loss"].total
        assert float((after - before).detach()) == pytest.approx(1e6 * int(where.sum()), rel=1e-4)
