"""Disruptive restoration: the worked example of docs/extending.md, held to what every objective is held to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from Testing.objectives import disruptive_toys, toys
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.objectives.base import DISRUPTED_CHANNELS, IMAGE_DISRUPTED, LocalFeatures
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.disruptive_restoration import DisruptionSettings, DisruptiveRestoration, disrupt
from VelvetMedLib.objectives.encoding import encode, whole_blocks
from VelvetMedLib.recipes import RECIPES, disruptive, preset, velvet
from VelvetMedLib.recipes.mixed import mixed

CTX = Context(seed=1, step=2)


def test_the_loss_is_the_sum_over_voxels_of_a_loop_whose_embedding_is_masked_by_hand() -> None:
    model, objective = disruptive_toys.model(), disruptive_toys.objectives()["disruptive"]
    batch = disruptive_toys.batch([0, 1, 2])
    term = objective(model, encode(model, batch, (IMAGE_DISRUPTED,)), batch, CTX).losses["disruptive_restoration_loss"]
    total, kept = 0.0, batch.extras[DISRUPTED_CHANNELS]
    for i in range(3):

        def masked(_module: object, _inputs: object, embedded: torch.Tensor, i: int = i) -> torch.Tensor:
            out = embedded.clone()
            for c in range(4):
                for x, y, z in np.ndindex(16, 16, 16):
                    if not kept[i, c, x // 4, y // 4, z // 4]:
                        out[0, c, x, y, z] = 0
            return out

        handle = model.swin.patch_embed.register_forward_hook(masked)
        top = model.swin(batch.images[IMAGE_DISRUPTED][i : i + 1])[-1]
        handle.remove()
        total += float((objective.decoder(top) - batch.clean[IMAGE_DISRUPTED][i]).abs().sum().detach())
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-9)
    assert term.count == 3 * 32**3 == objective.counts(batch, CTX)["disruptive_restoration_loss"]


def test_exactly_the_asked_share_of_blocks_loses_each_channel_and_channels_differ() -> None:
    settings = DisruptionSettings(noise=0.0, coarse=0.0, masked=0.6, block_tokens=4)
    crop = np.random.default_rng(0).random((32, 32, 32), dtype=np.float32)
    made = disrupt(crop, 6, 2, settings, np.random.default_rng(1))
    assert made.kept.shape == (6, 4, 4, 4) and [int((~k).sum()) for k in made.kept] == [38] * 6
    assert len({k.tobytes() for k in made.kept}) == 6, "drawn anew for each channel: no token is taken away whole"
    assert np.array_equal(made.voxels, crop)
    worse = disrupt(crop, 6, 2, DisruptionSettings(noise=0.2, coarse=1.0), np.random.default_rng(1)).voxels
    assert worse.min() >= 0 and worse.max() <= 1 and np.abs(worse - crop).mean() > 0.1
    nothing = disrupt(crop, 6, 2, DisruptionSettings(masked=0.0), np.random.default_rng(1))
    assert nothing.kept.all()


def test_a_channel_that_is_kept_everywhere_changes_nothing_of_the_encoding() -> None:
    torch.manual_seed(0)
    swin = SwinEncoder(SwinConfig(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1)))
    x = torch.rand(1, 1, 32, 32, 32)
    kept = whole_blocks(torch.ones(1, 4, 4, 4, 4, dtype=torch.bool), swin.config, x)
    assert kept.shape == (1, 4, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(swin(x), swin(x, kept=kept), strict=True))
    assert not torch.equal(swin(x)[-1], swin(x, kept=torch.zeros_like(kept))[-1])


def test_a_handful_of_crops_is_restored() -> None:
    torch.manual_seed(0)
    objective = DisruptiveRestoration(16)
    draw = torch.Generator().manual_seed(0)
    batch = disruptive_toys.batch([0, 1])
    smooth = torch.rand(2, 1, 2, 2, 2, generator=draw).repeat_interleave(16, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    batch.clean[IMAGE_DISRUPTED] = smooth
    features = {IMAGE_DISRUPTED: LocalFeatures(torch.randn(2, 16, 1, 1, 1, generator=draw))}
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-2)
    losses = []
    for _ in range(80):
        term = objective(None, features, batch, CTX).losses["disruptive_restoration_loss"]
        optimiser.zero_grad()
        (term.total / term.count).backward()
        optimiser.step()
        losses.append(float(term.total.detach()) / term.count)
    assert losses[-1] < 0.2 * losses[0]


def test_it_is_a_recipe_of_its_own_and_one_line_puts_it_beside_velvets_objectives() -> None:
    assert "disruptive" in RECIPES
    alone = preset("disruptive", "micro")
    learner = Learner(alone, 300)
    assert learner.made == (IMAGE_DISRUPTED, DISRUPTED_CHANNELS) and not alone.needs_reports
    both = mixed(velvet.micro(), disruptive.micro(), "disruptive_restoration")
    assert [*Learner(both, 300).listed()][-1] == "disruptive_restoration" and len(both.makers(both.shapes(300))) == 10
    with pytest.raises(UsageError):
        DisruptionSettings(masked=1.5)


def test_the_toys_hold_more_than_one_study() -> None:
    assert len(disruptive_toys.batch()) == 8 and toys.SIDE == 32
