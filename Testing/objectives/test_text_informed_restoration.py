"""Text-informed restoration and view clusters against loops; what is counted, what the diagnostic compares, what is balanced."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from Testing.objectives import slow, slow_text_informed, t3d_toys
from VelvetMedLib.models.text_informed import as_map, cells
from VelvetMedLib.objectives.base import TEXT_CLEAN, TextFeatures
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode
from VelvetMedLib.objectives.sentence_subsets import whole_report
from VelvetMedLib.objectives.text_informed_restoration import (
    ASKED,
    IMAGE_CORRUPT_A,
    TextInformedRestoration,
    TextInformedRestorationSettings,
    swapped_places,
)
from VelvetMedLib.objectives.view_clusters import balanced

KEYS = (IMAGE_CORRUPT_A, TEXT_CLEAN)
LOSS, REST = "text_informed_restoration_loss", "text_informed_restoration_rest_loss"


def test_restoration_is_a_loop_over_voxels_of_what_the_decoder_makes_of_tokens_that_have_read_the_whole_report() -> None:
    model, batch, objective = t3d_toys.model(), t3d_toys.batch([0, 3, 5]), t3d_toys.objectives()["restoration"]
    with torch.no_grad():
        features = encode(model, batch, KEYS)
        terms = objective(model, features, batch, Context()).losses
    told = whole_report(batch.texts[TEXT_CLEAN])
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for i in range(3):
        top, states = features[IMAGE_CORRUPT_A].top[i], features[TEXT_CLEAN].states[i]
        read = slow_text_informed.informed(list(cells(top[None])[0].numpy()), list(states.numpy()), told[i].tolist(), model.text_informed)
        with torch.no_grad():  # the decoder is torch's transposed convolutions; `test_vision_self_supervision` has them in loops
            restored = objective.decoder(as_map(torch.from_numpy(np.stack(read))[None], top.shape[1:]))[0, 0].numpy()
        clean, asked = batch.clean[IMAGE_CORRUPT_A][i, 0].numpy(), batch.extras[ASKED][i, 0].numpy()
        for kind in (True, False):
            sums[kind] += math.fsum(np.abs(restored - clean)[asked == kind].tolist())
            counts[kind] += int((asked == kind).sum())
    for name, kind in ((LOSS, True), (REST, False)):
        assert float(terms[name].total) == pytest.approx(sums[kind], rel=1e-9) and terms[name].count == counts[kind] > 0
    assert objective.counts(batch, Context()) == {LOSS: counts[True], REST: counts[False]}


def test_each_voxel_is_asked_for_in_one_term_and_weighs_one() -> None:
    model, batch, objective = t3d_toys.model(), t3d_toys.batch([1]), t3d_toys.objectives()["restoration"]
    with torch.no_grad():
        features, asked = encode(model, batch, KEYS), batch.extras[ASKED]
        before = objective(model, features, batch, Context()).losses
        for where, moved, still in ((asked, LOSS, REST), (~asked, REST, LOSS)):
            lifted = replace(batch, clean={IMAGE_CORRUPT_A: batch.clean[IMAGE_CORRUPT_A] + 1e6 * where})
            after = objective(model, features, lifted, Context()).losses
            assert float(after[moved].total - before[moved].total) == pytest.approx(1e6 * int(where.sum()), rel=1e-4)
            assert torch.equal(after[still].total, before[still].total)


def test_without_a_voxel_to_ask_for_there_is_no_nan() -> None:
    model, objective = t3d_toys.model(), t3d_toys.objectives()["restoration"]
    batch = t3d_toys.batch([1])
    batch.extras[ASKED] = torch.zeros_like(batch.extras[ASKED])
    term = objective(model, encode(model, batch, KEYS), batch, Context(step=9)).losses[LOSS]
    term.total.backward()
    assert float(term.total.detach()) == 0 == term.count
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_with_the_gate_closed_the_report_does_not_change_what_is_restored() -> None:
    model, batch, objective = t3d_toys.model(gate=0.0), t3d_toys.batch([0, 1]), t3d_toys.objectives()["restoration"]
    with torch.no_grad():
        features = encode(model, batch, KEYS)
        other = features | {TEXT_CLEAN: TextFeatures(torch.randn_like(features[TEXT_CLEAN].states))}
        a, b = (objective(model, f, batch, Context(step=9)) for f in (features, other))
    assert torch.equal(a.losses[LOSS].total, b.losses[LOSS].total)
    assert len({float(value) for value in a.metrics.values()}) == 1 and len(a.metrics) == 3


def test_the_diagnostic_says_what_the_true_a_swapped_and_no_report_give_and_only_now_and_then() -> None:
    model, batch = t3d_toys.model(), t3d_toys.batch([0, 4, 1])
    torch.manual_seed(2)
    objective = TextInformedRestoration(32, TextInformedRestorationSettings(diagnose_every=4)).double()
    with torch.no_grad():
        features = encode(model, batch, KEYS)
        found = objective(model, features, batch, Context(step=3))
        assert not objective(model, features, batch, Context(step=4)).metrics
        asked = float(batch.extras[ASKED].sum())
        # Studies 0 and 4 have one report: the next one of another group is study 1 for both, and study 0 for study 1.
        swapped = features | {TEXT_CLEAN: TextFeatures(features[TEXT_CLEAN].states[[2, 2, 0]])}
        layout = batch.texts[TEXT_CLEAN]
        moved = replace(batch, texts={TEXT_CLEAN: type(layout)(**{n: getattr(layout, n)[[2, 2, 0]] for n in vars(layout)})})
        want = float(objective(model, swapped, moved, Context(step=4)).losses[LOSS].total) / asked
    names = [f"text_informed_restoration/{kind}_report" for kind in ("true", "swapped", "null")]
    true, other, null = (float(found.metrics[name]) for name in names)
    assert true == pytest.approx(float(found.losses[LOSS].total) / asked) and other == pytest.approx(want)
    assert len({round(true, 9), round(other, 9), round(null, 9)}) == 3


def test_a_swapped_report_is_of_another_group_and_without_one_there_is_no_such_figure() -> None:
    batch = t3d_toys.batch()
    places = swapped_places(batch, Context())
    assert (batch.group[places] != batch.group).all()
    model, alone, objective = t3d_toys.model(), t3d_toys.batch([2]), t3d_toys.objectives()["restoration"]
    with torch.no_grad():
        metrics = objective(model, encode(model, alone, KEYS), alone, Context(step=9)).metrics
    assert set(metrics) == {"text_informed_restoration/true_report", "text_informed_restoration/null_report"}


def slow_sinkhorn(scores: np.ndarray, rounds: int) -> np.ndarray:
    mass = np.exp(scores - scores.max())
    mass /= mass.sum()
    n, p = mass.shape
    for _ in range(rounds):
        for c in range(p):
            mass[:, c] *= 1 / p / mass[:, c].sum()
        for r in range(n):
            mass[r] *= 1 / n / mass[r].sum()
    return mass * n


def test_clusters_are_a_loop_over_pairs_of_views_with_balanced_targets() -> None:
    model, batch, objective = t3d_toys.model(), t3d_toys.batch([0, 1, 2, 4]), t3d_toys.objectives()["clusters"]
    views = objective.views
    with torch.no_grad():
        features = encode(model, batch, views)
        term = objective(model, features, batch, Context()).losses["view_clusters_loss"]
    centres = [slow.unit(c) for c in objective.prototypes.detach().numpy()]
    scores = np.array(
        [
            [
                [float(np.dot(slow_text_informed.projected(list(x), model.text_informed), c)) for c in centres]
                for x in cells(features[view].top).numpy()
            ]
            for view in views
        ]
    )  # [V, B, P]
    flat = scores.transpose(1, 0, 2).reshape(-1, len(centres))
    shares = slow_sinkhorn(flat / 0.05, 3).reshape(4, len(views), -1)
    want = 0.0
    for i in range(4):
        for u in range(len(views)):
            for v in range(len(views)):
                if u != v:
                    logs = slow.log_softmax([s / 0.1 for s in scores[v, i]])
                    want -= sum(q * logp for q, logp in zip(shares[i, u], logs, strict=True))
    assert float(term.total) == pytest.approx(want, rel=1e-8) and term.count == 4 * 3 * 2


def test_assignments_sum_to_one_and_fill_the_clusters_evenly_whatever_the_scores() -> None:
    scores = torch.randn(40, 5, dtype=torch.float64) * 3 + torch.tensor([0.0, 0, 0, 0, 30.0])
    shares = balanced(scores, 200)
    assert torch.allclose(shares.sum(dim=1), torch.ones(40).double()) and torch.allclose(shares.sum(dim=0), torch.full((5,), 8.0).double())
    assert torch.isfinite(balanced(scores * 1000, 3)).all()


def test_texts_do_not_reach_the_clusters() -> None:
    objective = t3d_toys.objectives()["clusters"]
    assert TEXT_CLEAN not in objective.needs
