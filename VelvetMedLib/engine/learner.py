"""What a training changes, in one module, and the gradients of one step over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.trainable import StepSums, Trainable, autocast, totals_of
from VelvetMedLib.models.image_encoders import find_encoder
from VelvetMedLib.objectives.base import Features, Objective, StudyBatch, Terms, normalised
from VelvetMedLib.objectives.cached import cached_backward, joined_batch
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.recipes.base import Recipe


class Learner(Trainable):
    """The encoders of a recipe and the heads of its objectives: everything that is trained and saved.

    keys: of the features that are encoded in a step; made: names of all inputs that a batch must hold.
    """

    def __init__(self, recipe: Recipe, vocab_size: int) -> None:
        super().__init__(recipe.optimiser, recipe.loop, recipe.loss_weights())
        self.recipe = recipe
        self.rate_factors = dict(recipe.learning_rate_factors())
        self.model = recipe.model(vocab_size)
        if (encoder := find_encoder(self)) is not None:
            self.facts["image_encoder"] = encoder.to_dict()
        self.objectives = nn.ModuleDict(recipe.objectives(vocab_size))
        self.keys = needed_keys(self.listed().values())
        self.made = (*self.keys, *sorted({name for objective in self.listed().values() for name in objective.reads}))

    def listed(self) -> dict[str, Objective]:
        """Name -> objective."""
        return {name: objective for name, objective in self.objectives.items() if isinstance(objective, Objective)}

    def part(self, *, across: bool) -> list[Objective]:
        """The objectives that compare studies with one another, or the others."""
        return [objective for objective in self.listed().values() if objective.across is across]

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        """Counts of the losses of all objectives."""
        return counts_of(self.listed().values(), batch, ctx)

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

    def gradients(self, batches: Sequence[StudyBatch], ctx: Context, processes: Processes, seed: int) -> StepSums:
        """As of every trainable; with cached gradients the micro-batches count as one batch."""
        if not self.loop.cached_gradients:
            return super().gradients(batches, ctx, processes, seed)
        across, local = self.part(across=True), self.part(across=False)
        # Which rows a contrast keeps is a matter of the whole effective batch.
        counts = [counts_of(across, joined_batch(batches, needed_keys(across)), ctx)]
        counts += [counts_of(local, batch, ctx) for batch in batches]
        result = StepSums(totals_of(counts, processes))
        _cached_gradients(self, batches, ctx, processes, seed, result)
        processes.sum_gradients(self.parameters())
        return result


def counts_of(objectives: Iterable[Objective], batch: StudyBatch, ctx: Context) -> dict[str, float]:
    """Loss name -> items of the batch that it sums."""
    return {name: number for objective in objectives for name, number in objective.counts(batch, ctx).items()}


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
