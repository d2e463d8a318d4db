"""Which studies a step sees: a pure function of seed and step, so that there is no position to lose."""

from __future__ import annotations

from collections.abc import Sequence

from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.errors import TrainingError


class StepSampler:
    """Each epoch is a new order of all items; a step takes the next `batch` of them, and an epoch's incomplete rest is left out.

    items: the names of what can be drawn. batch: items of a whole step, all processes and micro-batches together.
    """

    def __init__(self, items: Sequence[str], batch: int, seed: int) -> None:
        if len(items) < batch:
            raise TrainingError(
                "There are fewer training studies than one step needs.",
                found=f"{len(items)} usable studies, {batch} per step",
                expected="at least as many studies as the batch of a step",
                next_step="Give a larger cohort, or make the batch smaller (for example loop.batch=4).",
            )
        self.items, self.batch, self.seed = sorted(items), batch, seed

    @property
    def steps_per_epoch(self) -> int:
        return len(self.items) // self.batch

    def epoch_of(self, step: int) -> int:
        """Epoch that a step (both from 0) belongs to."""
        return step // self.steps_per_epoch

    def draw(self, step: int) -> list[str]:
        """The items of step `step` in their order; processes take consecutive equal parts of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = generator(self.seed, "order", epoch).permutation(len(self.items))
        return [self.items[int(n)] for n in order[place * self.batch : (place + 1) * self.batch]]


def part_of(items: Sequence[str], index: int, parts: int) -> list[str]:
    """Part `index` of `parts` consecutive parts whose sizes differ by at most one, the larger ones first."""
    size, rest = divmod(len(items), parts)
    start = index * size + min(index, rest)
    return list(items[start : start + size + (1 if index < rest else 0)])
