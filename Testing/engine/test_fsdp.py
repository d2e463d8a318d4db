"""Fully sharded training without other processes: what becomes a unit, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from VelvetMedLib.engine.fsdp import cut_like, held_together, norm_with_shards, shard, units_of, whole
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.optimiser import gradient_norm
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.decoder import CausalDecoder, DecoderConfig
from VelvetMedLib.recipes.velvet import micro


def test_units_are_blocks_and_large_layers_and_no_parameter_is_in_two_of_them() -> None:
    learner = Learner(micro().with_(text_size="tiny"), 2400)
    units = units_of(learner)
    blocks = {"model.tribert.text_layers.2", "model.tribert.fusion_layers.0", "model.swin.layers4.0.blocks.0"}
    assert blocks | {"model.tribert.token", "model.swin.layers2.0.downsample", "objectives.masked_language_mm.head"} <= set(units)
    held = [id(p) for unit in units.values() for p in unit.parameters()]
    assert len(held) == len(set(held))
    total = sum(p.numel() for p in learner.parameters())
    assert sum(p.numel() for unit in units.values() for p in unit.parameters()) > 0.95 * total
    # A number that is used without calling its module must stay whole.
    inside = {id(p) for unit in units.values() for p in unit.parameters()}
    assert id(learner.model.logit_scale) not in inside


def test_a_network_that_uses_its_blocks_in_pieces_stays_whole() -> None:
    decoder = CausalDecoder(DecoderConfig(vocab_size=300, width=32, layers=2, heads=2, ffn=64, positions=16))
    assert not units_of(torch.nn.ModuleDict({"writer": decoder}))


def test_unequal_parts_are_refused_before_anything_is_cut() -> None:
    learner = Learner(micro(), 300)
    before = {name: type(p) for name, p in learner.named_parameters()}
    group: Any = SimpleNamespace(world_size=2, device=torch.device("cpu"), same_start=lambda _: None)
    with pytest.raises(TrainingError, match="equal parts") as caught:
        shard(learner, group, studies=6, micro_batches=2)
    assert "loop.batch=6 for 2 processes with 2 micro-batches" in caught.value.found
    assert before == {name: type(p) for name, p in learner.named_parameters()}


def test_where_nothing_is_sharded_tensors_and_norms_are_those_of_one_process() -> None:
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    tensors = dict(layer.named_parameters())
    assert whole(tensors) == tensors and whole(tensors, keep=False) == {}
    assert cut_like(tensors, tensors) == tensors
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert torch.equal(norm_with_shards(gradients, Processes("cpu")), gradient_norm(gradients))
    with held_together(layer):
        assert layer.weight is tensors["weight"]
