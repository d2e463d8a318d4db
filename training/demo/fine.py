"""Stage 1: the fine network learns organs and lesions from crops of the synthetic cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rare_labels import rare_labels_loss
from torch import Tensor

from demo.data import PreparedCase, between, nearest
from demo.losses import organ_loss
from demo.stages import train_stage
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.engine.trainable import Trainable, of_items
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.fine import FineNet
from VelvetMedLib.objectives.base import Terms, in_full_precision
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings
from VelvetMedLib.shapes import IntTriple
from VelvetMedLib.tasks.views import windowed

AIR_HU = -1024


@dataclass(frozen=True, kw_only=True)
class FineSettings(Settings):
    """crop_voxels: (x, y, z). least_share: of the commonest class's voxels that the losses look at. windows_hu: of the `fine` view.

    zoom, axis_zoom: bodies are shown from 1/zoom to zoom times their size, each axis from 1/axis_zoom to axis_zoom times that.
    """

    steps: int
    crop_voxels: IntTriple = (80, 64, 64)
    lesion_weight: float = 0.4
    least_share: float = 0.12
    zoom: float = 1.15
    axis_zoom: float = 1.1
    windows_hu: tuple[tuple[float, float], ...] = ((-1000.0, 1000.0), (-160.0, 240.0))
    optimiser: OptimiserSettings = field(
        default_factory=lambda: OptimiserSettings(
            learning_rate=2.5e-3, last_rate=2.5e-5, beta2=0.999, weight_decay=1e-4, decay_all=True, warmup_share=1 / 30, clip_norm=5.0,
            average_decay=0.995,
        )
    )  # fmt: skip
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=2, save_every=100, log_every=25))


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """B crops. channels [B, W, X, Y, Z]; labels int64, bits int32 (bit c: lesion channel c) and chance (0..1, which voxels the
    losses look at) [B, X, Y, Z]."""

    channels: Tensor
    labels: Tensor
    bits: Tensor
    chance: Tensor

    def __len__(self) -> int:
        return len(self.channels)

    def to(self, device: Any) -> CropBatch:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class CropMaker:
    """Crops of the named cases; what a case shows depends on seed, epoch and case alone.

    Half of the crops are centred near a lesion voxel, each channel of the case being equally likely.
    """

    def __init__(self, cases: Sequence[PreparedCase], settings: FineSettings, seed: int) -> None:
        self.cases = {case.case_id: case for case in cases}
        self.settings, self.seed = settings, seed

    def batch(self, names: list[str], epoch: int) -> CropBatch:
        parts = [self.cut(self.cases[name], generator(self.seed, "crop", epoch, name)) for name in names]
        hu, labels, bits, chance = (np.stack(kind) for kind in zip(*parts, strict=True))
        return CropBatch(
            channels=torch.from_numpy(windowed(hu, self.settings.windows_hu)).transpose(0, 1),
            labels=torch.from_numpy(labels.astype(np.int64)),
            bits=torch.from_numpy(bits.astype(np.int32)),
            chance=torch.from_numpy(chance),
        )

    def cut(self, case: PreparedCase, draw: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(HU, organ labels, lesion bits, chance) of one crop."""
        shape = np.array(self.settings.crop_voxels)
        # Voxels of the case that one voxel of the crop spans: other people are of other sizes than those of the cohort.
        span = np.exp(draw.uniform(-1, 1) * np.log(self.settings.zoom) + draw.uniform(-1, 1, 3) * np.log(self.settings.axis_zoom))
        slack = np.rint(np.array(case.hu_xyz.shape) - shape * span).astype(np.int64)
        low, high = np.minimum(slack, 0), np.maximum(slack, 0)
        start = draw.integers(low, high + 1)
        if case.lesion_points and draw.random() < 0.5:
            channel = draw.choice(sorted(case.lesion_points))
            candidates = case.lesion_points[int(channel)]
            centre = candidates[int(draw.integers(len(candidates)))]
            jitter = draw.integers(-shape // 4, shape // 4 + 1)
            start = np.clip(np.rint(centre + (jitter - shape / 2) * span).astype(np.int64), low, high)
        place = [origin + (np.arange(n) + 0.5) * s - 0.5 for origin, n, s in zip(start, shape, span, strict=True)]
        hu = between(case.hu_xyz, place, AIR_HU)
        # Jitter wider than the spread between scanners, so that the offset of one study means nothing.
        hu = (hu - AIR_HU) * draw.uniform(0.97, 1.03) + AIR_HU + draw.normal(0, 8)
        if draw.random() < 0.3:
            hu += draw.normal(0, draw.uniform(4, 25), self.settings.crop_voxels).astype(np.float32)
        return (
            np.clip(hu, AIR_HU, 3071).astype(np.int16),
            nearest(case.organs_xyz, place, 0),
            nearest(case.lesion_bits_xyz, place, 0),
            draw.random(self.settings.crop_voxels, dtype=np.float32),
        )


class FineStage(Trainable):
    """What stage 1 trains."""

    def __init__(self, net: FineNet, shares: Tensor, settings: FineSettings) -> None:
        """shares: as `class_shares` gives them."""
        super().__init__(settings.optimiser, settings.loop, {"lesions_loss": settings.lesion_weight})
        self.net = net
        self.register_buffer("shares", shares, persistent=False)

    def counts(self, batch: CropBatch, ctx: Context) -> dict[str, float]:
        return dict.fromkeys(("organs_loss", "lesions_loss"), float(len(batch)))

    def forward(self, batch: CropBatch, ctx: Context) -> Terms:
        out = self.net(batch.channels)
        labels, bits = batch.labels.flatten(), batch.bits.flatten()
        with in_full_precision(batch.channels):
            drawn, rest, stands_for = sampled_rows(labels, bits, self.get_buffer("shares"), batch.chance.flatten())
            on_organs = organ_loss(voxel_rows(out.organ_logits)[drawn].float(), labels[drawn], stands_for)
            both = torch.cat([drawn, rest])
            # Every lesion voxel is looked at, so it stands for itself.
            weight = torch.cat([torch.where(bits[drawn] != 0, 1.0, stands_for), torch.ones_like(rest, dtype=torch.float32)])
            targets = unpack_bits(bits[both], out.lesion_logits.shape[1])
            on_lesions = rare_labels_loss(voxel_rows(out.lesion_logits)[both].float(), targets, weight)
        return Terms({"organs_loss": of_items(on_organs, len(batch)), "lesions_loss": of_items(on_lesions, len(batch))})


def voxel_rows(maps: Tensor) -> Tensor:
    """[B, C, X, Y, Z] to [B*X*Y*Z, C]: a view when the network works channels-last, which keeps the losses cheap."""
    return maps.permute(0, 2, 3, 4, 1).reshape(-1, maps.shape[1])


def class_shares(cases: Sequence[PreparedCase], classes: int, least: float) -> Tensor:
    """Share of each class's voxels that the losses look at: `least` of the commonest, all of the rarest, inverse root between.

    The losses at full resolution cost as much as the network, and a part of the voxels estimates them as well. Taking all
    of a small structure gives it the weight without which it stays unpredicted: soft Dice alone has no slope at zero.
    """
    count = np.zeros(classes)
    for case in cases:
        count += np.bincount(case.organs_xyz.ravel(), minlength=classes)
    return torch.from_numpy(np.clip(least * np.sqrt(count.max() / np.maximum(count, 1)), least, 1.0)).float()


def sampled_rows(labels: Tensor, bits: Tensor, shares: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for the losses: (indices drawn by class share, the other lesion voxels' indices, weights of the first).

    labels [N] int64, bits [N], chance [N] uniform in 0..1. A weight is the inverse of the share: how many voxels a drawn
    one stands for.
    """
    share = shares[labels]
    drawn = chance < share
    return drawn.nonzero()[:, 0], ((bits != 0) & ~drawn).nonzero()[:, 0], 1.0 / share[drawn]


def unpack_bits(bits: Tensor, channels: int) -> Tensor:
    """[N] int32 bit mask to [N, channels] float32 of zeros and ones."""
    return ((bits[:, None] >> torch.arange(channels, dtype=bits.dtype, device=bits.device)) & 1).float()


def train_fine(net: FineNet, cases: Sequence[PreparedCase], run: Path, settings: FineSettings, *, seed: int) -> float:
    """Train in place and leave the moving average in `net`. Returns the seconds spent, resumed parts included."""
    stage = FineStage(net, class_shares(cases[:64], net.config.organs, settings.least_share), settings)
    return train_stage(stage, CropMaker(cases, settings, seed), [case.case_id for case in cases], run, settings, seed=seed)
