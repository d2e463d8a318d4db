"""Which studies a step sees, the schedule, decay groups, the moving average, keyed randomness."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from VelvetMedLib.engine.optimiser import (
    MovingAverage,
    decays,
    gradient_norm,
    learning_rate,
    make_optimiser,
    optimiser_tensors,
    restore_optimiser,
    scale_gradients,
)
from VelvetMedLib.engine.randomness import capture, generator, key_bits, restore, seed_torch
from VelvetMedLib.engine.sampler import StepSampler, part_of
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.recipes.parts import OptimiserSettings
from VelvetMedLib.recipes.velvet import micro


def test_an_epoch_shows_every_study_at_most_once_and_the_order_changes() -> None:
    sampler = StepSampler([f"s{n}" for n in range(11)], 4, seed=3)
    epochs = [[name for step in range(2) for name in sampler.draw(2 * epoch + step)] for epoch in range(3)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] and [sampler.epoch_of(step) for step in (0, 1, 2, 5)] == [0, 0, 1, 2]


def test_a_step_depends_on_seed_and_step_alone_not_on_the_order_of_the_list() -> None:
    names = [f"s{n}" for n in range(9)]
    one, two = StepSampler(names, 3, seed=1), StepSampler(names[::-1], 3, seed=1)
    assert [one.draw(step) for step in range(9)] == [two.draw(step) for step in range(9)]
    assert one.draw(4) != StepSampler(names, 3, seed=2).draw(4)


def test_over_many_epochs_every_study_is_seen_about_equally_often() -> None:
    sampler = StepSampler([f"s{n}" for n in range(10)], 4, seed=0)
    seen = Counter(name for step in range(1000) for name in sampler.draw(step))
    assert set(seen) == set(sampler.items) and max(seen.values()) - min(seen.values()) < 80


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_processes_take_consecutive_parts_that_make_up_the_whole(parts: int) -> None:
    items = list("abcdefg")
    taken = [part_of(items, n, parts) for n in range(parts)]
    assert [x for part in taken for x in part] == items
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_fewer_studies_than_a_batch_are_refused() -> None:
    with pytest.raises(TrainingError, match="fewer training studies"):
        StepSampler(["a", "b"], 3, seed=0)


def test_the_rate_warms_up_and_falls_along_a_cosine_to_its_last_value() -> None:
    settings = OptimiserSettings(learning_rate=1.0, last_rate=0.1, warmup_share=0.1)
    rates = [learning_rate(step, 101, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert rates[10] == 1.0 and rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_norms_biases_and_the_scale_do_not_decay_and_weights_do() -> None:
    learner_parameters = dict(build().named_parameters())
    kept = {name for name, p in learner_parameters.items() if not decays(name, p)}
    assert "model.logit_scale" in kept
    assert any(name.endswith("norm1.weight") for name in kept) and any("bias" in name for name in kept)
    assert any(name.endswith("relative_position_bias_table") for name in kept)
    assert not any(name.endswith(("qkv.weight", "token.weight")) for name in kept)
    optimiser = make_optimiser(build(), OptimiserSettings(weight_decay=0.3))
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.3, 0.0]
    everything = make_optimiser(build(), OptimiserSettings(weight_decay=0.3, decay_all=True))
    assert [group["weight_decay"] for group in everything.param_groups] == [0.3]


def build() -> nn.Module:
    from VelvetMedLib.engine.learner import Learner

    seed_torch(0, "weights")
    return Learner(micro(), 300)


def test_clipping_scales_all_gradients_by_one_factor_to_the_given_norm() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    norm = gradient_norm(gradients)
    assert float(norm) == 5.0
    scale_gradients(gradients, norm, 1.0)
    assert float(gradient_norm(gradients)) == pytest.approx(1.0, rel=1e-5)
    before = [g.clone() for g in gradients]
    scale_gradients(gradients, gradient_norm(gradients), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients, strict=True))


def test_a_restored_optimiser_takes_the_same_step() -> None:
    def stepped(module: nn.Linear, optimiser: torch.optim.Optimizer, n: int) -> None:
        optimiser.zero_grad()
        (module(torch.full((2, 3), float(n))) ** 2).sum().backward()
        optimiser.step()

    settings = OptimiserSettings(learning_rate=0.1)
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimiser = make_optimiser(module, settings)
    stepped(module, optimiser, 1)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    moments = {name: value.clone() for name, value in optimiser_tensors(module, optimiser).items()}
    stepped(module, optimiser, 2)

    other = nn.Linear(3, 2)
    fresh = make_optimiser(other, settings)
    other.load_state_dict(weights)
    restore_optimiser(other, fresh, moments)
    stepped(other, fresh, 2)
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, other.bias)


def test_the_moving_average_follows_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = MovingAverage(module, 0.5)
    slow = module.weight.item()
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        slow = decay * slow + (1 - decay) * module.weight.item()
        average.update(module, step)
    assert float(average.tensors["weight"]) == pytest.approx(slow, rel=1e-6)


def test_keys_of_different_kind_or_order_give_different_draws() -> None:
    keys = [(1, "a"), ("1", "a"), (1, "b"), ("a", 1), (1, "a", 0), (11, "a")]
    assert len({key_bits(*key) for key in keys}) == len(keys)
    assert generator(1, "x").random() == generator(1, "x").random() != generator(2, "x").random()


def test_the_state_of_every_global_generator_comes_back() -> None:
    tensors, facts = capture()
    first = (random.random(), np.random.random(), float(torch.rand(())))
    restore(tensors, facts)
    assert (random.random(), np.random.random(), float(torch.rand(()))) == first
