"""Crops of labelled scans as training batches; what a case shows depends on seed, epoch and case alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from demo.data import crop
from numpy.typing import NDArray
from torch import Tensor

from finetuning.augment import FlipPlan, augmented
from finetuning.coding import Coded
from finetuning.settings import AugmentSettings, DataSettings
from finetuning.store import AIR_HU, StoredCase
from VelvetMedLib.engine.randomness import generator


@dataclass(frozen=True)
class CropBatch:
    """images [B, 1, X, Y, Z], windowed HU in 0..1 before the shift; labels [B, 1, X, Y, Z] int64, as the task's `Coding` says."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: Any) -> CropBatch:
        return CropBatch(self.images.to(device), self.labels.to(device))


class CropMaker:
    """Makes a batch of the named cases, `crops_per_volume` crops of each."""

    def __init__(self, cases: Sequence[StoredCase], data: DataSettings, augment: AugmentSettings, plan: FlipPlan, seed: int) -> None:
        self.cases = {case.name: case for case in cases}
        self.data, self.augment, self.plan, self.seed = data, augment, plan, seed

    def batch(self, names: Sequence[str], epoch: int) -> CropBatch:
        """Crops of each named case in order."""
        images, labels = [], []
        for name in names:
            for number in range(self.data.crops_per_volume):
                draw = generator(self.seed, "crop", epoch, name, number)
                image, coded = augmented(*self.cut(self.cases[name], draw), self.plan, self.augment, draw)
                images.append(torch.from_numpy(image))
                labels.append(torch.from_numpy(coded.astype(np.int64)))
        return CropBatch(torch.stack(images)[:, None], torch.stack(labels)[:, None])

    def cut(self, case: StoredCase, draw: np.random.Generator) -> tuple[NDArray[np.float32], Coded]:
        """One crop around a drawn voxel, moved inside the scan where it fits there; beyond the scan lies air."""
        shape = np.array(self.data.patch_voxels)
        centre = np.array(np.unravel_index(drawn_point(case, self.data, draw), case.hu_xyz.shape))
        room = np.array(case.hu_xyz.shape) - shape
        # A scan smaller than the crop lies anywhere in it.
        start = np.where(room >= 0, np.clip(centre - shape // 2, 0, np.maximum(room, 0)), draw.integers(np.minimum(room, 0), 1))
        hu = crop(case.hu_xyz, start, self.data.patch_voxels, AIR_HU)
        return windowed(hu, self.data), crop(case.labels_xyz, start, self.data.patch_voxels, 0)


def drawn_point(case: StoredCase, data: DataSettings, draw: np.random.Generator) -> int:
    """Flat index of a voxel to centre on: of a structure with `positive_share`, else of the background inside the body."""
    positive, chosen, place = draw.random(), draw.random(), draw.random()
    present = sorted(n for n in case.points if n > 0)
    if present and (positive < data.positive_share or 0 not in case.points):
        weights = np.array([1.0 if data.by_structure else case.counts[n] for n in present])
        edges = np.cumsum(weights / weights.sum())
        points = case.points[present[min(int(np.searchsorted(edges, chosen, side="right")), len(present) - 1)]]
    else:
        points = case.points[0]
    return int(points[int(place * len(points))])


def windowed(hu: NDArray[Any], data: DataSettings) -> NDArray[np.float32]:
    """hu_min..hu_max to 0..1, clipped."""
    scaled = (hu.astype(np.float32) - np.float32(data.hu_min)) / np.float32(data.hu_max - data.hu_min)
    return np.clip(scaled, 0.0, 1.0, out=scaled)
