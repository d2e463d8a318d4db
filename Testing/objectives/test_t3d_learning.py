"""T3D's objectives together: cached gradients, and a handful of cases that they can learn by heart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from Testing.objectives import t3d_toys
from VelvetMedLib.objectives.base import normalised
from VelvetMedLib.objectives.cached import cached_backward, joined_batch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.objectives.text_informed_contrast import TextInformedContrast, TextInformedContrastSettings, VisualOnlyContrast, told
from VelvetMedLib.objectives.text_informed_restoration import ASKED, IMAGE_CORRUPT_A, TextInformedRestoration

SPLITS = [[0, 1, 2], [3, 4], [5], [6, 7]]
"""Unequal micro-batches, their reports of different lengths."""


def gradients(*, cached: bool, dropout: float) -> dict[str, torch.Tensor]:
    model, objectives, ctx = t3d_toys.model(dropout=dropout), t3d_toys.objectives(), Context(seed=1, step=9)
    across, local = ([o for o in objectives.values() if o.across is kind] for kind in (True, False))
    keys = needed_keys(across)
    rest = tuple(key for key in needed_keys([*across, *local]) if key not in keys)
    batches = [t3d_toys.batch(items) for items in SPLITS]
    whole = joined_batch(batches, keys)
    totals = {name: n for o in across for name, n in o.counts(whole, ctx).items()}
    for batch in batches:
        for name, n in local[0].counts(batch, ctx).items():
            totals[name] = totals.get(name, 0.0) + n

    def loss(chosen: list, features: dict, batch: object) -> torch.Tensor:
        return normalised({k: t for o in chosen for k, t in o(model, features, batch, ctx).losses.items()}, totals, world_size=1)

    torch.manual_seed(7)
    if cached:
        cached_backward(
            batches,
            encode=lambda batch, keys: encode(model, batch, keys),
            across_keys=keys,
            across_loss=lambda f, b: loss(across, f, b),
            local_keys=rest,
            local_loss=lambda f, b: loss(local, f, b),
        )
    else:
        batch = t3d_toys.batch([i for items in SPLITS for i in items])
        loss([*across, *local], encode(model, batch, (*keys, *rest)), batch).backward()
    named = [*model.named_parameters(), *objectives.named_parameters()]
    return {name: p.grad for name, p in named if p.grad is not None}


def test_cached_gradients_are_those_of_one_batch_as_large_as_all() -> None:
    plain, cached = gradients(cached=False, dropout=0.0), gradients(cached=True, dropout=0.0)
    assert plain.keys() == cached.keys()
    for name, grad in plain.items():
        assert torch.allclose(cached[name], grad, rtol=1e-8, atol=1e-11), name


def test_what_views_are_told_travels_with_their_keys_and_voxels_do_not() -> None:
    batches = [t3d_toys.batch(items) for items in SPLITS]
    joined = joined_batch(batches, needed_keys(o for o in t3d_toys.objectives().values() if o.across))
    whole = t3d_toys.batch([i for items in SPLITS for i in items])
    assert set(joined.extras) == {told(view) for view in t3d_toys.MANY_VIEWS} and ASKED in whole.extras
    for name, kept in joined.extras.items():
        assert torch.equal(kept, whole.extras[name]) and kept.dtype == torch.bool


@pytest.mark.timeout(600)
def test_a_handful_of_cases_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    batch = t3d_toys.batch([0, 1, 2, 6])
    # Crops of noise: which two belong together can only be learnt by heart. What is to be restored is one shade for each study.
    batch = replace(batch, images={key: image.float() for key, image in batch.images.items()})
    shades = torch.linspace(0.1, 0.9, 4)[:, None, None, None, None]
    batch.clean[IMAGE_CORRUPT_A] = shades.expand(batch.images[IMAGE_CORRUPT_A].shape)
    model = t3d_toys.model(gate=0.0).float()
    settings = TextInformedContrastSettings(most_negatives=3, chunk_anchors=0)
    objectives = torch.nn.ModuleList([TextInformedContrast(settings), VisualOnlyContrast(settings), TextInformedRestoration(32)])
    keys = needed_keys(objectives)
    optimiser = torch.optim.AdamW([*model.parameters(), *objectives.parameters()], lr=5e-3)
    seen = []
    for step in range(40):
        features = encode(model, batch, keys)
        losses = {k: t for o in objectives for k, t in o(model, features, batch, Context(step=step)).losses.items()}
        totals = {k: t.count for k, t in losses.items()}
        optimiser.zero_grad()
        normalised(losses, totals, world_size=1).backward()
        optimiser.step()
        seen.append({k: float(t.total.detach()) / t.count for k, t in losses.items()})
    first, last = seen[0], seen[-1]
    assert first["text_informed_contrast_loss"] > 0.5 * math.log(4) and first["visual_only_contrast_loss"] > 0.5 * math.log(4)
    assert last["text_informed_contrast_loss"] < 0.1 and last["visual_only_contrast_loss"] < 0.1
    assert last["text_informed_restoration_loss"] < 0.3 * first["text_informed_restoration_loss"]
    assert float(model.text_informed.gates().detach()) > 1e-3, "the gates have begun to open"
