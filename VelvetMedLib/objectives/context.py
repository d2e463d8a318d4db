"""What a step lends to its objectives: the other processes' tensors, and noise that no process can change."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Context:
    """One process alone. `ProcessGroupContext` is the same for many.

    seed: of the run; step: the optimiser step, the same on every process and for every micro-batch of the step.
    """

    seed: int = 0
    step: int = 0
    rank: int = 0
    world_size: int = 1

    def gather(self, x: Tensor) -> Tensor:
        """x: [B, ...] of each process, joined along dimension 0 in rank order; what comes back in backward is summed over ranks.

        Sizes may differ between ranks: along dimension 0 rows are joined, in every other dimension smaller tensors are
        filled with zeros behind. Every process must call it equally often and in the same order, and must send a
        gradient back through it whenever another does: an objective without valid rows returns a zero that still
        depends on what it gathered.
        """
        return x

    def gather_no_grad(self, x: Tensor) -> Tensor:
        """As `gather`, for any kind of number, without gradient."""
        return x.detach()

    def first_row(self, rows: int) -> int:
        """Where this process's `rows` rows begin in a gathered tensor."""
        return 0

    def uniform(self, purpose: str, left: Tensor, right: Tensor) -> Tensor:
        """float64 noise in (0, 1), keyed by (seed, step, purpose, ordered pair of studies); left, right: int64, broadcast.

        It knows neither rank nor place in the batch, so that the number of processes cannot change a draw (methods.md 1.4).
        """
        key = _key_of(self.seed, self.step, purpose)
        bits = _mixed(_mixed(_mixed(torch.full_like(left, key)) ^ left) + right)
        return (((bits >> 11) & _LOW_53).double() + 0.5) * 2.0**-53


@dataclass(frozen=True, kw_only=True)
class ProcessGroupContext(Context):
    """Many processes of one `torch.distributed` group (None: the default group)."""

    group: Any = None

    @classmethod
    def current(cls, *, seed: int, step: int, group: Any = None) -> ProcessGroupContext:
        """Rank and number of processes read from the initialised group."""
        return cls(seed=seed, step=step, rank=dist.get_rank(group), world_size=dist.get_world_size(group), group=group)

    def gather(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Gather.apply(x, self))

    def gather_no_grad(self, x: Tensor) -> Tensor:
        x = x.detach()
        if x.dtype == torch.bool:
            return self.gather_no_grad(x.to(torch.uint8)).bool()
        return _gathered(x, self._shapes(x), self.group)

    def first_row(self, rows: int) -> int:
        counts = self.gather_no_grad(torch.tensor([rows], device=self._device()))
        return int(counts[: self.rank].sum())

    def _shapes(self, x: Tensor) -> list[list[int]]:
        mine = torch.tensor(x.shape, dtype=torch.long, device=x.device)
        shapes = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(shapes, mine, group=self.group)
        return [shape.tolist() for shape in shapes]

    def _device(self) -> torch.device:
        """Where the group's collectives want their tensors."""
        return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self.group) == "nccl" else torch.device("cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, context: ProcessGroupContext) -> Tensor:
        ctx.context, ctx.shapes = context, context._shapes(x)
        return _gathered(x, ctx.shapes, context.group)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        context: ProcessGroupContext = ctx.context
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=context.group)
        first = sum(shape[0] for shape in ctx.shapes[: context.rank])
        mine = ctx.shapes[context.rank]
        return grad[(slice(first, first + mine[0]), *(slice(0, size) for size in mine[1:]))], None


def _gathered(x: Tensor, shapes: list[list[int]], group: Any) -> Tensor:
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    behind = [pad for have, want in zip(reversed(x.shape), reversed(largest), strict=True) for pad in (0, want - have)]
    padded = functional.pad(x, behind).contiguous()
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])


_LOW_53 = (1 << 53) - 1


def _key_of(*parts: int | str) -> int:
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on int64, whose products wrap; `>>` is made logical by the masks."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >= 1 << 63 else bits
