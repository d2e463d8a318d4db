"""The trainer's law of a step holds for anything that names its losses and counts: here a line fitted to points, with no model of ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.loader import loaders
from VelvetMedLib.engine.log import read_log
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.trainable import Trainable, of_items
from VelvetMedLib.engine.trainer import Selection, Trainer
from VelvetMedLib.objectives.base import LossTerm, Terms
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings

LOOP = LoopSettings(batch=4, precision="fp32", save_every=3, validate_every=5, log_every=1)
OPTIMISER = OptimiserSettings(learning_rate=0.2, last_rate=0.01, weight_decay=0.0, clip_norm=0.0)
NAMES = [f"p{n}" for n in range(20)]


@dataclass(frozen=True)
class Points:
    """x, y [B]; y is NaN where it is not known."""

    x: Tensor
    y: Tensor

    def to(self, device: Any) -> Points:
        return Points(self.x.to(device), self.y.to(device))


class PointMaker:
    """y = 2 x + 1; every fourth point does not know its y."""

    def batch(self, names: list[str], epoch: int) -> Points:
        x = torch.tensor([generator("point", name, epoch).normal() for name in names])
        y = torch.where(torch.tensor([int(name[1:]) % 4 == 0 for name in names]), torch.nan, 2 * x + 1)
        return Points(x, y)


class Line(Trainable):
    def __init__(self, loop: LoopSettings = LOOP) -> None:
        super().__init__(OPTIMISER, loop, {"size_loss": 0.01})
        self.slope, self.offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.facts = {"what": "a line"}

    def counts(self, batch: Points, ctx: Context) -> dict[str, float]:
        return {"distance_loss": float(torch.isfinite(batch.y).sum()), "size_loss": float(len(batch.x))}

    def forward(self, batch: Points, ctx: Context) -> Terms:
        known = torch.isfinite(batch.y)
        missed = (self.slope * batch.x + self.offset - torch.nan_to_num(batch.y)).square()
        total = torch.where(known, missed, 0.0).sum()
        return Terms({"distance_loss": LossTerm(total, float(known.sum())), "size_loss": of_items(self.slope.square(), len(batch.x))})


def trainer(line: Line, run: Path, steps: int, **others: Any) -> Trainer:
    sampler = StepSampler(NAMES, line.loop.batch, 1)
    loader = loaders(PointMaker(), sampler, line.loop, steps=steps)
    run.mkdir(exist_ok=True)
    return Trainer(line, run=run, steps=steps, seed=1, make_loader=loader, processes=Processes("cpu"), **others)


def test_a_trainable_without_any_model_of_ours_is_trained_validated_and_kept_with_its_facts(tmp_path: Path) -> None:
    line = Line()
    select = Selection(lambda now: {"closeness": -float((now.slope.detach() - 2).abs())}, ("closeness",))
    assert trainer(line, tmp_path, 40, selection=select).run() == 0
    assert float(line.slope.detach()) == pytest.approx(2, abs=0.35) and float(line.offset.detach()) == pytest.approx(1, abs=0.35)
    best, last = Checkpoints(tmp_path).load_best(), Checkpoints(tmp_path).load()
    assert best is not None and last is not None and best.facts["what"] == last.facts["what"] == "a line"
    assert (tmp_path / "training_curves.png").is_file()
    losses = [record["losses"]["distance_loss"] for record in read_log(tmp_path) if "losses" in record]
    assert losses[-1] < 0.1 * losses[0]


def test_the_loss_in_the_log_is_the_weighted_sum_of_means_over_what_was_counted(tmp_path: Path) -> None:
    line = Line()
    with torch.no_grad():
        line.slope.fill_(3.0)
    trainer(line, tmp_path, 1).run()
    (record,) = [record for record in read_log(tmp_path) if "losses" in record]
    points = PointMaker().batch(StepSampler(NAMES, 4, 1).draw(0), 0)
    known = torch.isfinite(points.y)
    distance = float((3 * points.x - points.y)[known].square().mean())
    assert record["losses"] == pytest.approx({"distance_loss": distance, "size_loss": 9.0}, abs=1e-4)
    assert record["loss"] == pytest.approx(distance + 0.01 * 9.0, abs=1e-4)


def test_micro_batches_of_unequal_counts_give_the_gradient_of_the_whole_batch() -> None:
    maker, ctx, processes = PointMaker(), Context(seed=1, step=0), Processes("cpu")
    found = []
    for parts in ([NAMES[:7]], [NAMES[:2], NAMES[2:3], NAMES[3:7]], [["p0"], NAMES[1:7]]):
        line = Line(replace(LOOP, micro_batches=2)).double()
        with torch.no_grad():
            line.slope.fill_(0.7)
        batches = [maker.batch(names, 0) for names in parts]
        result = line.gradients([Points(b.x.double(), b.y.double()) for b in batches], ctx, processes, 1)
        assert result.totals == {"distance_loss": 5.0, "size_loss": 7.0} and not result.broken
        assert line.slope.grad is not None and line.offset.grad is not None
        found.append((float(line.slope.grad), float(line.offset.grad), result.sums["distance_loss"]))
    # "p0" and "p4" know no y: one micro-batch of the last split counts nothing.
    assert found[1] == pytest.approx(found[0], rel=1e-12) and found[2] == pytest.approx(found[0], rel=1e-12)
