"""What a training changes, in one module, and the gradients of one step over micro-batches and processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import Features, Objective, StudyBatch, Terms, normalised
from VelvetMedLib.objectives.cached import cached_backward, joined_batch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.recipes.velvet import VelvetRecipe


class Learner(nn.Module):
    """The encoders of a recipe and the heads of its objectives: everything that is trained and saved."""

    def __init__(self, recipe: VelvetRecipe, vocab_size: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = VelvetModel(recipe.model_config(vocab_size))
        self.model.swin.recompute_activations = recipe.loop.recompute_activations
        self.objectives = nn.ModuleDict(recipe.objectives(vocab_size))
        self.weights = recipe.loss_weights()
        self.keys = needed_keys(self.listed().values())

    def listed(self) -> dict[str, Objective]:
        """Name -> objective."""
        return {name: objective for name, objective in self.objectives.items() if isinstance(objective, Objective)}

    def part(self, *, across: bool) -> list[Objective]:
        """The objectives that compare studies with one another, or the others."""
        return [objective for objective in self.listed().values() if objective.across is across]

    def forward(self, batch: StudyBatch, ctx: Context) -> Terms:
        """Encode each feature once, then run every objective."""
        return self.terms(encode(self.model, batch, self.keys), batch, ctx, self.listed().values())

    def terms(self, features: Features, batch: StudyBatch, ctx: Context, objectives: Iterable[Objective]) -> Terms:
        """Losses and metrics of some objectives."""
        done = [objective(self.model, features, batch, ctx) for objective in objectives]
        return Terms(
            {name: term for terms in done for name, term in terms.losses.items()},
            {name: value for terms in done for name, value in terms.metrics.items()},
        )


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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 for the encoders, or nothing; losses take themselves out of it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def total_counts(learner: Learner, batches: Sequence[StudyBatch], ctx: Context, processes: Processes) -> dict[str, float]:
    """n_tot of methods.md 1.4: counts of every loss over micro-batches and processes, known before the first backward."""
    counts: dict[str, float] = {}

    def count(objectives: Iterable[Objective], batch: StudyBatch) -> None:
        for objective in objectives:
            for name, number in objective.counts(batch, ctx).items():
                counts[name] = counts.get(name, 0.0) + number

    if learner.recipe.loop.cached_gradients:
        # Which rows a contrast keeps is a matter of the whole effective batch.
        count(learner.part(across=True), joined_batch(batches, needed_keys(learner.part(across=True))))
    for batch in batches:
        count(learner.part(across=False) if learner.recipe.loop.cached_gradients else learner.listed().values(), batch)
    names = sorted(counts)
    return dict(zip(names, processes.sum([counts[name] for name in names]), strict=True))


def step_gradients(learner: Learner, batches: Sequence[StudyBatch], ctx: Context, processes: Processes, seed: int) -> StepSums:
    """Leaves on every parameter the gradient of the step's loss over all processes and micro-batches.

    Each micro-batch draws its dropout from a key of its own, so that a step can be replayed and resumed.
    """
    settings = learner.recipe.loop
    result = StepSums(total_counts(learner, batches, ctx, processes))
    if settings.cached_gradients:
        _cached_gradients(learner, batches, ctx, processes, seed, result)
    else:
        for micro, batch in enumerate(batches):
            seed_torch(seed, "forward", ctx.step, ctx.rank, micro)
            with autocast(processes.device, settings.precision):
                terms = learner(batch, ctx)
                loss = normalised(terms.losses, result.totals, world_size=1, weights=learner.weights)
            loss.backward()
            result.add(micro, terms, 1.0 / len(batches))
    processes.sum_gradients(learner.parameters())
    return result


def _cached_gradients(
    learner: Learner, batches: Sequence[StudyBatch], ctx: Context, processes: Processes, seed: int, result: StepSums
) -> None:
    """The micro-batches as one batch (methods.md 2.4e): contrast once on kept features, the rest in the second pass."""
    precision = learner.recipe.loop.precision
    across, local = learner.part(across=True), learner.part(across=False)
    across_keys = needed_keys(across)
    local_keys = tuple(key for key in needed_keys(local) if key not in across_keys)
    micro = iter(range(len(batches)))

    def encoded(batch: StudyBatch, keys: Sequence[str]) -> Features:
        with autocast(processes.device, precision):
            return encode(learner.model, batch, keys)

    def loss(objectives: Sequence[Objective], features: Features, batch: StudyBatch, number: int, share: float) -> Tensor:
        with autocast(processes.device, precision):
            terms = learner.terms(features, batch, ctx, objectives)
        result.add(number, terms, share)
        return normalised(terms.losses, result.totals, world_size=1, weights=learner.weights)

    seed_torch(seed, "forward", ctx.step, ctx.rank, 0)
    cached_backward(
        batches,
        encode=encoded,
        across_keys=across_keys,
        across_loss=lambda features, batch: loss(across, features, batch, 0, 1.0),
        local_keys=local_keys,
        local_loss=(lambda features, batch: loss(local, features, batch, next(micro), 1.0 / len(batches))) if local else None,
        leaf_dtype=torch.bfloat16 if precision == "bf16" else None,
    )


def gradients_of(module: nn.Module) -> list[Tensor]:
    """All gradients that are there."""
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
