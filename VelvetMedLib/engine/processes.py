"""One process or many: joining torchrun's group, and the few sums and messages that processes exchange outside of losses.

Every process holds the model; gradients are summed once, after the last backward pass of a step. That is exact with
cached gradients and accumulation alike, where a wrapper that reduces during backward would have to be held back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from VelvetMedLib.objectives.context import Context, ProcessGroupContext

BUCKET_ELEMENTS = 1 << 23
PAUSE_SECONDS = 0.5
LONGEST_WAIT = timedelta(hours=12)
"""A process waits so long for another: one may be validating or preparing the store."""


class Processes:
    """This process among its group. `alone` when it was not started by torchrun."""

    def __init__(self, device: str | None = None) -> None:
        self.launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device is None:
            device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.launched and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        self._mesh: Any = None
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def context(self, seed: int, step: int) -> Context:
        """What objectives get of the other processes at a step."""
        if self.world_size == 1:
            return Context(seed=seed, step=step)
        return ProcessGroupContext.current(seed=seed, step=step)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element by element over processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def any(self, flag: bool) -> bool:
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            self.sum([0.0])

    def gather_objects(self, mine: Any) -> list[Any]:
        """JSON-like objects of all processes, in rank order."""
        if self.world_size == 1:
            return [mine]
        out: list[Any] = [None] * self.world_size
        dist.all_gather_object(out, mine)
        return out

    def gather_rows(self, rows: Tensor) -> Tensor:
        """[N_r, ...] of each process joined in rank order, without gradient; N_r may be 0."""
        return self.context(0, 0).gather_no_grad(rows)

    def same_start(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the tensors of the first. Shards are passed over: they were cut from equal tensors."""
        if self.world_size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    if not is_shard(tensor):
                        dist.broadcast(tensor, src=0)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over processes, in pieces of some megabytes.

        A parameter without gradient here counts as zero; one without gradient anywhere keeps none, as on one process. Shards of
        parameters (`fsdp`) are passed over: their gradients are summed already.
        """
        if self.world_size == 1:
            return
        listed = [parameter for parameter in parameters if not is_shard(parameter)]
        somewhere = torch.tensor([float(parameter.grad is not None) for parameter in listed], device=self.device)
        dist.all_reduce(somewhere)
        piece: list[Tensor] = []
        size = 0
        for parameter, holders in zip(listed, somewhere.tolist(), strict=True):
            if not holders:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if piece and (size + parameter.numel() > BUCKET_ELEMENTS or parameter.grad.dtype != piece[0].dtype):
                _sum_piece(piece)
                piece, size = [], 0
            piece.append(parameter.grad)
            size += parameter.numel()
        if piece:
            _sum_piece(piece)

    def mesh(self) -> Any:
        """All processes in one row, as torch's sharding wants them told."""
        if self._mesh is None:
            from torch.distributed.device_mesh import init_device_mesh

            self._mesh = init_device_mesh(self.device.type, (self.world_size,))
        return self._mesh

    def close(self) -> None:
        if self.launched and dist.is_initialized():
            dist.destroy_process_group()
            if self._mesh is not None:
                # Torch keeps the group of a mesh for ever, so its threads live on. One that is still letting go of the last message's
                # tensor when the interpreter ends aborts the process (seen once in some twenty ends on a starved machine).
                time.sleep(PAUSE_SECONDS)


def is_shard(tensor: Tensor) -> bool:
    """Whether this is torch's DTensor, without importing what it needs."""
    return hasattr(tensor, "full_tensor")


def _sum_piece(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
