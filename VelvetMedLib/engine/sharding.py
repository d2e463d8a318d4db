"""Sharded optimiser state: each process keeps AdamW's moments of its share of the parameters, updates these, and hands them round.

That is stage 1 of ZeRO (Rajbhandari et al. 2020): weights and gradients stay whole on every process, and the weights come
out bit for bit as without sharding. At this library's sizes activations fill the memory, not weights; where weights and
gradients must be divided too, `fsdp` does it, for messages in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from VelvetMedLib.engine.optimiser import optimiser_tensors
from VelvetMedLib.engine.processes import BUCKET_ELEMENTS, Processes

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def owners_of(module: nn.Module, world_size: int) -> dict[str, int]:
    """Parameter name -> the process that updates it; loads differ by less than the largest parameter."""
    load = [0] * world_size
    owners: dict[str, int] = {}
    for name, parameter in sorted(module.named_parameters(), key=lambda pair: (-pair[1].numel(), pair[0])):
        owner = load.index(min(load))
        owners[name] = owner
        load[owner] += parameter.numel()
    return owners


@torch.no_grad()
def hand_round(module: nn.Module, owners: Mapping[str, int], processes: Processes) -> None:
    """Every process gets every parameter as its owner has it."""
    parameters = dict(module.named_parameters())
    for rank in range(processes.world_size):
        piece: list[Tensor] = []
        size = 0
        for name, owner in owners.items():
            if owner == rank:
                piece.append(parameters[name])
                size += parameters[name].numel()
                if size > BUCKET_ELEMENTS:
                    _broadcast(piece, rank)
                    piece, size = [], 0
        if piece:
            _broadcast(piece, rank)


def all_moments(module: nn.Module, optimiser: torch.optim.Optimizer, owners: Mapping[str, int], processes: Processes) -> dict[str, Tensor]:
    """What `optimiser_tensors` gives where nothing is sharded; on the first process, {} on the others."""
    mine = optimiser_tensors(module, optimiser)
    held = {name for part in processes.gather_objects(sorted({key.rsplit("/", 1)[0] for key in mine})) for name in part}
    out: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if name not in held:
            continue
        for moment in MOMENTS:
            key = f"{name}/{moment}"
            like = torch.zeros((), device=processes.device) if moment == "step" else torch.zeros_like(parameter)
            value = mine[key].to(processes.device).clone() if key in mine else like
            dist.broadcast(value, src=owners[name])
            if processes.first:
                out[key] = value.cpu()
    return out


def _broadcast(tensors: list[Tensor], source: int) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.broadcast(flat, src=source)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
