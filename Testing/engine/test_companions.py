"""Scans that go along with the pairs of a step: their own epochs, shared out like the pairs, drawn the same whoever asks."""

from __future__ import annotations

from typing import Any

import pytest

from VelvetMedLib.engine.loader import Loader
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.recipes.base import Companions

PAIRS = [f"p{n}" for n in range(10)]
SCANS = [f"s{n}" for n in range(7)]


class Names:
    """Instead of batches: what was asked for."""

    def batch(self, names: list[str], epoch: int, companions: list[str], companion_epoch: int) -> Any:
        return names, epoch, companions, companion_epoch


def asked(*, processes: int, micro: int, first: int = 0, last: int = 6) -> list[list[tuple[list[str], int, list[str], int]]]:
    """Per step, what all processes and micro-batches asked for, in order."""
    steps: list[list[Any]] = [[] for _ in range(first, last)]
    for rank in range(processes):
        loader = Loader(
            Names(),
            StepSampler(PAIRS, 4, 1),
            first_step=first,
            last_step=last,
            micro_batches=micro,
            rank=rank,
            world_size=processes,
            companions=StepSampler(SCANS, 3, 2),
        )
        for step, batches in zip(steps, loader.steps(), strict=True):
            step += batches
        loader.close()
    return steps


def together(steps: list[list[tuple[list[str], int, list[str], int]]]) -> list[tuple[list[str], list[str], int]]:
    return [([n for part in step for n in part[0]], [n for part in step for n in part[2]], step[0][3]) for step in steps]


@pytest.mark.parametrize(("processes", "micro"), [(2, 1), (1, 2), (3, 1)])
def test_processes_and_micro_batches_share_out_pairs_and_scans_of_the_same_step(processes: int, micro: int) -> None:
    assert together(asked(processes=processes, micro=micro)) == together(asked(processes=1, micro=1))


def test_scans_have_epochs_of_their_own_and_a_run_taken_up_again_sees_the_same() -> None:
    whole = together(asked(processes=1, micro=1))
    assert [epoch for _, _, epoch in whole] == [0, 0, 1, 1, 2, 2]
    first_epoch = whole[0][1] + whole[1][1]
    assert len(set(first_epoch)) == 6, "nobody twice before everybody was there"
    assert together(asked(processes=1, micro=1, first=3)) == whole[3:]


def test_the_stated_ratio_gives_the_scans_of_a_step() -> None:
    along = Companions(keys=frozenset({"image.mae"}), per_pair=1.5)
    assert along.of(8) == 12 and Companions(keys=frozenset(), per_pair=0.01).of(8) == 1
