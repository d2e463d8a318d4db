"""What a segmentation fine-tuning gives the engine's trainer: a network with Dice and cross-entropy on crops, and its validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rare_labels import RARE_START, rare_labels_loss
from torch import Tensor, nn

from finetuning.batches import CropBatch, windowed
from finetuning.coding import Coded, Coding
from finetuning.settings import DataSettings, SegmentationSettings
from finetuning.store import StoredCase
from finetuning.tasks import SegmentationTask
from VelvetMedLib.engine.trainable import Trainable, autocast, of_items
from VelvetMedLib.engine.trainer import Selection
from VelvetMedLib.evaluation.segmentation import dice_by_label
from VelvetMedLib.models.image_encoders import Segmenter, find_encoder
from VelvetMedLib.objectives.base import Terms, in_full_precision
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings

LOSS = "dice_ce_loss"
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def dice_ce_loss() -> Loss:
    """Soft Dice over all classes plus cross-entropy, as published: logits [B, C, X, Y, Z] against classes [B, 1, X, Y, Z]."""
    from monai.losses import DiceCELoss

    loss: Loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return loss


def overlapping_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """For structures that may share a voxel, lesions most of all (`rare_labels`); logits and targets [B, structures, X, Y, Z]."""
    by_voxel = (maps.movedim(1, -1).flatten(0, -2) for maps in (logits, targets))
    return rare_labels_loss(*by_voxel)


class SegmentationStage(Trainable):
    """The network that is fine-tuned; its checkpoints say what is needed to use it."""

    def __init__(self, network: Segmenter, settings: SegmentationSettings, loop: LoopSettings, task: SegmentationTask) -> None:
        """loop: in place of that of the settings."""
        super().__init__(settings.optimiser, loop)
        self.network, self.coding = network, task.coding
        self.loss = dice_ce_loss() if self.coding.exclusive else overlapping_loss
        if not self.coding.exclusive:
            nn.init.constant_(network.class_bias, RARE_START)
        network.encoder.recompute_activations = loop.recompute_activations
        encoder = find_encoder(self)
        assert encoder is not None
        self.facts = {
            "network": network.config.to_dict(),
            "classes": [*(["background"] if self.coding.exclusive else []), *task.names],
            "exclusive": self.coding.exclusive,
            "data": settings.data.to_dict(),
            "image_encoder": encoder.to_dict(),
        }

    def counts(self, batch: CropBatch, ctx: Context) -> dict[str, float]:
        return {LOSS: float(len(batch))}

    def forward(self, batch: CropBatch, ctx: Context) -> Terms:
        logits = self.network(batch.images)
        with in_full_precision(logits):
            return Terms({LOSS: of_items(self.loss(logits.float(), self.coding.targets(batch.labels)), len(batch))})


def by_dice(val: Sequence[StoredCase], settings: SegmentationSettings, task: SegmentationTask, device: torch.device) -> Selection:
    """The best weights have the highest mean, over structures, of the mean Dice over validation cases, on the learning grid."""
    coding = task.coding

    def validate(stage: SegmentationStage) -> dict[str, float]:
        by_structure: dict[str, list[float]] = {name: [] for name in task.names}
        for case in val:
            found = predict(stage.network, case, settings, coding, device)
            for (layer, number), (truth, _) in zip(coding.layers(found), coding.layers(np.asarray(case.labels_xyz)), strict=True):
                for value, dice in dice_by_label(layer, truth, number).items():
                    if dice is not None:
                        by_structure[task.names[number[value] - 1]].append(dice)
        stage.train()
        means = {name: float(np.mean(values)) for name, values in by_structure.items() if values}
        return {"dice": float(np.mean(list(means.values()))) if means else 0.0, **{f"dice/{name}": mean for name, mean in means.items()}}

    return Selection(validate, ("dice",))


def predict(network: nn.Module, case: StoredCase, settings: SegmentationSettings, coding: Coding, device: torch.device) -> Coded:
    """Structures (x, y, z) of a stored case by overlapping windows, logits averaged with Gaussian weights."""
    return predict_array(network, np.asarray(case.hu_xyz), settings.data, settings.loop, coding, device)


@torch.no_grad()
def predict_array(
    network: nn.Module, hu_xyz: NDArray[Any], data: DataSettings, loop: LoopSettings, coding: Coding, device: torch.device
) -> Coded:
    """Structures of HU (x, y, z) on the learning grid."""
    from monai.inferers import sliding_window_inference

    network.eval()
    image = torch.from_numpy(windowed(hu_xyz, data))[None, None]
    with autocast(device, loop.precision):
        # The sum of windows can be larger than a device's memory: it is kept on the CPU.
        logits: Any = sliding_window_inference(
            image, data.patch_voxels, 1, network, overlap=data.overlap, mode="gaussian", sw_device=device, device="cpu"
        )
    return coding.found(logits[0])
