"""Fully sharded data parallel: between uses, each process holds its share of weights, gradients, moments and average (torch's FSDP2).

A unit's weights are gathered when its forward or backward pass begins and dropped when it ends; its gradients are summed over
processes and cut up as soon as they are there. What follows from the engine's way of taking a step:

* Units are modules that are only ever used by calling them, never by reading their weights: the blocks of encoders and decoders, and
  the large parts outside of blocks that `LARGE` names. The rest stays whole, and `Processes.sum_gradients` sums it.
* There is no unit around all units: a step calls parts of the learner in several passes (cached gradients, objectives), never
  the learner itself, and a root that is not called first would leave its units' weights in pieces.
* Losses are sums, so gradients are summed, not averaged; several passes in one step add up in the shards.
* Every process must call every unit equally often. Objectives keep that ("the work is the same on every process"), given equal
  parts of the batch; validation, which has unequal parts, holds all weights for its duration (`held_together`).

Gradients are those of one process up to the rounding of sums in another order; a resumed run goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from VelvetMedLib.engine.optimiser import gradient_norm
from VelvetMedLib.engine.processes import Processes, is_shard
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.decoder import CausalDecoder
from VelvetMedLib.models.heads import RestorationDecoder, WordHead
from VelvetMedLib.models.swin import PatchMerging
from VelvetMedLib.models.tribert import TriBert

LARGE = (PatchMerging, RestorationDecoder, WordHead)
"""Parts outside of blocks that hold much and are only called, and so does the table of words of a TriBERT. Other models read such
weights directly, and keep them whole."""


def units_of(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> module that is sharded as one: blocks (entries of the innermost lists), then large layers outside of them."""
    units: dict[str, nn.Module] = {}

    def visit(name: str, part: nn.Module, *, unit: bool) -> None:
        if isinstance(part, CausalDecoder):
            return  # It uses parts of its blocks by themselves, and its table of words for what comes out.
        if unit and not any(isinstance(inner, nn.ModuleList) for inner in part.modules()):
            units[name] = part
            return
        for child, inner in part.named_children():
            large = isinstance(inner, LARGE) or (isinstance(part, TriBert) and child == "token")
            visit(f"{name}.{child}" if name else child, inner, unit=large or isinstance(part, nn.ModuleList))

    visit("", module, unit=False)
    return {name: unit for name, unit in units.items() if any(p.requires_grad for p in unit.parameters())}


def shard(module: nn.Module, processes: Processes, *, studies: int, micro_batches: int = 1) -> list[str]:
    """Cut the units' weights up among the processes, starting from those of the first; returns the names of the units.

    studies, micro_batches: of a step. Raises TrainingError where a part of the batch would be smaller than another.
    """
    if studies % (processes.world_size * micro_batches):
        raise TrainingError(
            "The batch cannot be divided into equal parts.",
            found=f"loop.batch={studies} for {processes.world_size} processes with {micro_batches} micro-batches each",
            expected="a multiple of both together: with sharded weights every process must do the same work",
            next_step="Change loop.batch, or use loop.parallel=ddp, which takes unequal parts.",
        )
    try:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        FSDPModule.set_force_sum_reduction_for_comms  # noqa: B018
    except (ImportError, AttributeError):
        raise TrainingError(
            "This PyTorch cannot share weights out as this training needs it.",
            found=f"torch {torch.__version__}",
            expected="a newer one for loop.parallel=fsdp (tested with 2.13)",
            next_step="Install a newer torch, or use loop.parallel=sharded (optimiser state only) or ddp.",
        ) from None
    processes.same_start([p.data for p in module.parameters()])
    units = units_of(module)
    for unit in units.values():
        # None would let a unit without another around it keep its weights after the forward pass.
        cut = cast(Any, fully_shard(unit, mesh=processes.mesh(), reshard_after_forward=True))
        cut.set_gradient_divide_factor(1.0)
        # A plain sum: gloo knows no other, and there is nothing to divide by.
        cut.set_force_sum_reduction_for_comms(True)
    return list(units)


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Shards joined, everything else as it is; every process must call it with the same names, one that does not `keep` for the others."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = cast(Any, tensor).full_tensor().cpu() if is_shard(tensor) else tensor
        if keep:
            out[name] = full
    return out


def cut_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `whole`: this process's share of each tensor that is a shard in `like`. No message is sent."""
    return {name: _cut(tensor, like[name]) if name in like and is_shard(like[name]) else tensor for name, tensor in tensors.items()}


def _cut(tensor: Tensor, like: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    if is_shard(tensor):
        return tensor
    of = cast(Any, like)
    return cast(Tensor, distribute_tensor(tensor.to(of.device), of.device_mesh, of.placements, src_data_rank=None))


def norm_with_shards(gradients: Sequence[Tensor], processes: Processes) -> Tensor:
    """`gradient_norm` of gradients of which some are shards; the same number on every process."""
    mine = [cast(Any, gradient).to_local() for gradient in gradients if is_shard(gradient)]
    if not mine:
        return gradient_norm(gradients)
    squares = processes.sum([float(gradient_norm(mine)) ** 2])[0]
    rest = float(gradient_norm([gradient for gradient in gradients if not is_shard(gradient)])) ** 2
    return torch.tensor((squares + rest) ** 0.5)


@contextmanager
def held_together(module: nn.Module) -> Iterator[None]:
    """All weights whole on every process inside the block, so that processes may call units unequally often; no gradients."""
    units = [cast(Any, unit) for unit in _sharded(module)]
    for unit in units:
        unit.set_reshard_after_forward(False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True)


def _sharded(module: nn.Module) -> Iterable[nn.Module]:
    return [part for part in module.modules() if hasattr(part, "unshard") and hasattr(part, "reshard")]
