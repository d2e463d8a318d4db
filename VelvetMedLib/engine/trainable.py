"""What the trainer drives: a module with settings that leaves the gradients of a step on its parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.objectives.base import LossTerm, Terms, normalised
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings


@dataclass
class StepSums:
    """What one step gave on this process: sums of losses, counts over all processes, metrics, and non-finite micro-batches."""

    totals: dict[str, float]
    sums: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    broken: list[int] = field(default_factory=list)

    def add(self, micro: int, terms: Terms, share: float) -> None:
        """share: of this process's micro-batches; metrics are averaged over them."""
        for name, term in terms.losses.items():
            value = float(term.total.detach())
            if not math.isfinite(value) and micro not in self.broken:
                self.broken.append(micro)
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, metric in terms.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + share * float(metric)


class Trainable(nn.Module, ABC):
    """Everything that is trained and saved, and the law of one step.

    A subclass says what its losses are (`forward`) and how many items each sums (`counts`); the rest of a step is here.
    What it learns from comes as batches of its own kind, made by a `Loader`; a batch needs nothing but `to(device)`.
    """

    def __init__(self, optimiser: OptimiserSettings, loop: LoopSettings, weights: Mapping[str, float] | None = None) -> None:
        """weights: loss name -> weight; 1 where a loss is not named."""
        super().__init__()
        self.optimiser, self.loop, self.weights = optimiser, loop, dict(weights or {})
        self.facts: dict[str, Any] = {}
        """JSON-ready: what is needed to use the weights. Stands in every checkpoint."""

    @abstractmethod
    def counts(self, batch: Any, ctx: Context) -> dict[str, float]:
        """Loss name -> items of `batch` that it sums, known from the batch alone (methods.md 1.4)."""

    @abstractmethod
    def forward(self, batch: Any, ctx: Context) -> Terms:
        """Sums of the losses of one micro-batch, run under autocast; losses take themselves out of it."""

    def gradients(self, batches: Sequence[Any], ctx: Context, processes: Processes, seed: int) -> StepSums:
        """Leaves on every parameter the gradient of the step's loss over all processes and micro-batches."""
        result = StepSums(totals_of([self.counts(batch, ctx) for batch in batches], processes))
        self.accumulate(batches, ctx, processes, seed, result)
        processes.sum_gradients(self.parameters())
        return result

    def accumulate(self, batches: Sequence[Any], ctx: Context, processes: Processes, seed: int, result: StepSums) -> None:
        """One backward pass after the other; each micro-batch draws its dropout from a key of its own, so that a step can be replayed."""
        for micro, batch in enumerate(batches):
            seed_torch(seed, "forward", ctx.step, ctx.rank, micro)
            with autocast(processes.device, self.loop.precision):
                terms = self(batch, ctx)
                loss = normalised(terms.losses, result.totals, world_size=1, weights=self.weights)
            loss.backward()  # type: ignore[no-untyped-call]
            result.add(micro, terms, 1.0 / len(batches))


def of_items(mean: Tensor, items: int) -> LossTerm:
    """A loss that cannot be divided among its items, such as soft Dice over a batch, as if each item had it."""
    return LossTerm(mean * items, float(items))


def totals_of(counts: Iterable[Mapping[str, float]], processes: Processes) -> dict[str, float]:
    """n_tot of methods.md 1.4: counts of every loss over micro-batches and processes, known before the first backward."""
    own: dict[str, float] = {}
    for part in counts:
        for name, number in part.items():
            own[name] = own.get(name, 0.0) + number
    names = sorted(own)
    return dict(zip(names, processes.sum([own[name] for name in names]), strict=True))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 for the networks, or nothing; losses take themselves out of it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def gradients_of(module: nn.Module) -> list[Tensor]:
    """All gradients that are there."""
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
