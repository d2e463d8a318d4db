"""What a segmentation fine-tuning gives the engine's trainer: a network with Dice and cross-entropy on crops, and its validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetuning.batches import CropBatch, windowed
from finetuning.settings import DataSettings, SegmentationSettings
from finetuning.store import StoredCase
from VelvetMedLib.engine.trainable import Trainable, autocast, of_items
from VelvetMedLib.engine.trainer import Selection
from VelvetMedLib.evaluation.segmentation import dice_by_label
from VelvetMedLib.models.image_encoders import Segmenter, find_encoder
from VelvetMedLib.objectives.base import Terms, in_full_precision
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings

LOSS = "dice_ce_loss"


def dice_ce_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """Soft Dice over all classes plus cross-entropy, as published: logits [B, C, X, Y, Z] against classes [B, 1, X, Y, Z]."""
    from monai.losses import DiceCELoss

    loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(to_onehot_y=True, softmax=True)
    return loss


class SegmentationStage(Trainable):
    """The network that is fine-tuned; its checkpoints say what is needed to use it."""

    def __init__(self, network: Segmenter, settings: SegmentationSettings, loop: LoopSettings, names: Sequence[str]) -> None:
        """loop: in place of that of the settings. names: of classes 1, 2, ..."""
        super().__init__(settings.optimiser, loop)
        self.network, self.loss = network, dice_ce_loss()
        network.encoder.recompute_activations = loop.recompute_activations
        encoder = find_encoder(self)
        assert encoder is not None
        self.facts = {
            "network": network.config.to_dict(),
            "classes": ["background", *names],
            "data": settings.data.to_dict(),
            "image_encoder": encoder.to_dict(),
        }

    def counts(self, batch: CropBatch, ctx: Context) -> dict[str, float]:
        return {LOSS: float(len(batch))}

    def forward(self, batch: CropBatch, ctx: Context) -> Terms:
        logits = self.network(batch.images)
        with in_full_precision(logits):
            return Terms({LOSS: of_items(self.loss(logits.float(), batch.labels), len(batch))})


def by_dice(val: Sequence[StoredCase], settings: SegmentationSettings, names: Sequence[str], device: torch.device) -> Selection:
    """The best weights have the highest mean, over structures, of the mean Dice over validation cases, on the learning grid."""

    def validate(stage: SegmentationStage) -> dict[str, float]:
        by_structure: dict[str, list[float]] = {name: [] for name in names}
        for case in val:
            found = predict(stage.network, case, settings, device)
            for n, dice in dice_by_label(found, np.asarray(case.labels_xyz), range(1, len(names) + 1)).items():
                if dice is not None:
                    by_structure[names[n - 1]].append(dice)
        stage.train()
        means = {name: float(np.mean(values)) for name, values in by_structure.items() if values}
        return {"dice": float(np.mean(list(means.values()))) if means else 0.0, **{f"dice/{name}": mean for name, mean in means.items()}}

    return Selection(validate, ("dice",))


@torch.no_grad()
def predict(network: nn.Module, case: StoredCase, settings: SegmentationSettings, device: torch.device) -> NDArray[np.uint8]:
    """Classes (x, y, z) of a stored case by overlapping windows, logits averaged with Gaussian weights."""
    return predict_array(network, np.asarray(case.hu_xyz), settings.data, settings.loop, device)


@torch.no_grad()
def predict_array(
    network: nn.Module, hu_xyz: NDArray[Any], data: DataSettings, loop: LoopSettings, device: torch.device
) -> NDArray[np.uint8]:
    """Classes of HU (x, y, z) on the learning grid."""
    from monai.inferers import sliding_window_inference

    network.eval()
    image = torch.from_numpy(windowed(hu_xyz, data))[None, None]
    with autocast(device, loop.precision):
        # The sum of windows can be larger than a device's memory: it is kept on the CPU.
        logits: Any = sliding_window_inference(
            image, data.patch_voxels, 1, network, overlap=data.overlap, mode="gaussian", sw_device=device, device="cpu"
        )
    return logits[0].argmax(0).to(torch.uint8).numpy()  # type: ignore[no-any-return]
