"""Batches read ahead by threads. Threads, not processes: arrays need no copy between them, and Slicer's Python has no pools."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, cast

from VelvetMedLib.engine.sampler import StepSampler, part_of
from VelvetMedLib.recipes.parts import LoopSettings

Batch: TypeAlias = Any
"""Whatever the trainable reads; all that the engine asks of it is `to(device)`. A pre-training's is `StudyBatch`."""


class MakesBatches(Protocol):
    def batch(self, names: list[str], epoch: int) -> Batch: ...


class MakesCompanions(Protocol):
    def batch(self, names: list[str], epoch: int, companions: list[str], companion_epoch: int) -> Batch: ...


class Loader:
    """This process's micro-batches of each step, in order. `waited` sums the seconds in which a step had to wait for data."""

    def __init__(
        self,
        maker: MakesBatches | MakesCompanions,
        sampler: StepSampler,
        *,
        first_step: int,
        last_step: int,
        micro_batches: int,
        rank: int = 0,
        world_size: int = 1,
        readers: int = 1,
        companions: StepSampler | None = None,
    ) -> None:
        """companions: draws the scans that go along with each step's studies."""
        self.maker, self.sampler, self.companions = maker, sampler, companions
        self.micro_batches, self.rank, self.world_size = micro_batches, rank, world_size
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._jobs = ((step, micro) for step in range(first_step, last_step) for micro in range(micro_batches))
        self._pending: deque[Future[Batch]] = deque()
        self._ahead = 2 * readers + micro_batches
        self._fill()

    def names(self, step: int, micro: int) -> list[str]:
        """Studies of one micro-batch of this process."""
        return self._part(self.sampler.draw(step), micro)

    def _part(self, items: list[str], micro: int) -> list[str]:
        return part_of(part_of(items, self.rank, self.world_size), micro, self.micro_batches)

    def _made(self, step: int, micro: int) -> Batch:
        names, epoch = self.names(step, micro), self.sampler.epoch_of(step)
        if self.companions is None:
            return cast(MakesBatches, self.maker).batch(names, epoch)
        along = self._part(self.companions.draw(step), micro)
        return cast(MakesCompanions, self.maker).batch(names, epoch, along, self.companions.epoch_of(step))

    def _fill(self) -> None:
        while len(self._pending) < self._ahead:
            job = next(self._jobs, None)
            if job is None:
                return
            step, micro = job
            self._pending.append(self._pool.submit(self._made, step, micro))

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step. An error of a reader is raised here."""
        while self._pending:
            batches = []
            for _ in range(self.micro_batches):
                began = time.perf_counter()
                batches.append(self._pending.popleft().result())
                self.waited += time.perf_counter() - began
                self._fill()
            yield batches

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def loaders(
    maker: MakesBatches | MakesCompanions,
    sampler: StepSampler,
    loop: LoopSettings,
    *,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    companions: StepSampler | None = None,
) -> Callable[[int], Loader]:
    """What the trainer asks for: from a first step to the loader of that step and those after, up to `steps`."""

    def loader(first_step: int) -> Loader:
        return Loader(
            maker,
            sampler,
            first_step=first_step,
            last_step=steps,
            micro_batches=loop.micro_batches,
            rank=rank,
            world_size=world_size,
            readers=loop.readers,
            companions=companions,
        )

    return loader
