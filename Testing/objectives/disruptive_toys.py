"""Disruptive restoration on the toys' Swin encoder: eight crops in double precision, the same in each process of a test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from Testing.objectives import toys
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import DISRUPTED_CHANNELS, IMAGE_DISRUPTED, StudyBatch
from VelvetMedLib.objectives.disruptive_restoration import DisruptionSettings, DisruptiveRestoration, disrupt
from VelvetMedLib.objectives.groups import study_key

SETTINGS = DisruptionSettings(masked=0.5, block_tokens=4)


def model(*, dropout: float = 0.0) -> VelvetModel:
    return toys.model(dropout=dropout)


def objectives() -> nn.ModuleDict:
    torch.manual_seed(1)
    return nn.ModuleDict({"disruptive": DisruptiveRestoration(64)}).double()


def batch(items: Sequence[int] = range(8), *, one_group: bool = False) -> StudyBatch:
    draws = [np.random.default_rng([6, i]) for i in items]
    crops = [draw.random((toys.SIDE,) * 3, dtype=np.float32) for draw in draws]
    made = [disrupt(crop, 4, 2, SETTINGS, draw) for crop, draw in zip(crops, draws, strict=True)]
    return StudyBatch(
        study=torch.tensor([study_key(toys.STUDIES[i]) for i in items]),
        group=torch.zeros(len(items), dtype=torch.long) if one_group else toys.groups()[list(items)],
        images={IMAGE_DISRUPTED: torch.from_numpy(np.stack([m.voxels for m in made])[:, None]).double()},
        clean={IMAGE_DISRUPTED: torch.from_numpy(np.stack(crops)[:, None]).double()},
        extras={DISRUPTED_CHANNELS: torch.from_numpy(np.stack([m.kept for m in made]))},
    )
