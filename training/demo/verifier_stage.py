"""Between encodings and pre-training: a second look learns which parts of the lesion maps are what the maps take them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from demo.encodings import EncodedCase
from demo.reading import inverse_spread
from demo.stages import TRANSFORMERS, train_stage
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.models.verifier import LesionVerifier
from VelvetMedLib.objectives.base import LossTerm, Terms, in_full_precision
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings

TRUE_SHARE = 0.2
"""A part is of a kind when this share of its voxels truly is: what the map paints is often larger than what is there."""


@dataclass(frozen=True, kw_only=True)
class VerifierSettings(Settings):
    """A batch is of cases, each with all its parts: two dozen in the mean."""

    steps: int
    optimiser: OptimiserSettings = field(
        default_factory=lambda: replace(TRANSFORMERS, learning_rate=2e-3, last_rate=2e-5, weight_decay=0.05, warmup_share=0.1)
    )
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=16, save_every=500, log_every=250, precision="fp32"))


@dataclass(frozen=True, kw_only=True)
class PartBatch:
    """tokens [N, lesion_features]; true [N, kinds] of 0 and 1; cases: how many the N parts come from."""

    tokens: Tensor
    true: Tensor
    cases: int

    def __len__(self) -> int:
        return self.cases

    def to(self, device: Any) -> PartBatch:
        return replace(self, tokens=self.tokens.to(device), true=self.true.to(device))


def true_kinds(case: EncodedCase) -> Tensor:
    """[N, kinds] of 0 and 1 for the parts of a case."""
    return torch.from_numpy((case.part_true >= TRUE_SHARE * case.part_voxels[:, None]).astype(np.float32))


class PartMaker:
    """The parts of the named cases, as they were found: nothing is drawn."""

    def __init__(self, cases: Sequence[EncodedCase]) -> None:
        self.cases = {case.case_id: case for case in cases}

    def batch(self, names: list[str], epoch: int) -> PartBatch:
        cases = [self.cases[name] for name in names]
        tokens, true = torch.from_numpy(np.concatenate([case.lesions for case in cases])), torch.cat([true_kinds(case) for case in cases])
        return PartBatch(tokens=tokens, true=true, cases=len(cases))


class VerifierStage(Trainable):
    """What this stage trains."""

    def __init__(self, verifier: LesionVerifier, settings: VerifierSettings) -> None:
        super().__init__(settings.optimiser, settings.loop)
        self.verifier = verifier

    def counts(self, batch: PartBatch, ctx: Context) -> dict[str, float]:
        return {"parts_loss": float(batch.true.numel())}

    def forward(self, batch: PartBatch, ctx: Context) -> Terms:
        with in_full_precision(batch.tokens):
            loss = functional.binary_cross_entropy_with_logits(self.verifier(batch.tokens), batch.true, reduction="sum")
        return Terms({"parts_loss": LossTerm(loss, float(batch.true.numel()))})


def train_verifier(model: VelvetModel, cases: Sequence[EncodedCase], run: Path, settings: VerifierSettings, *, seed: int) -> float:
    """Train in place. Cases without any part are left out. Returns the seconds of all starts."""
    assert model.fine is not None and model.verifier is not None
    seed_torch(seed, "weights", "verifier")
    some = [case for case in cases if len(case.lesions)]
    every = np.concatenate([case.lesions for case in some]).astype(np.float64)
    model.verifier.mean.copy_(torch.from_numpy(every.mean(0)).float())
    model.verifier.scale.copy_(inverse_spread(every.std(0)))
    stage = VerifierStage(model.verifier, settings)
    names = [case.case_id for case in some]
    return train_stage(stage, PartMaker(some), names, run, settings, seed=seed, stands_on={"fine": model.fine})
