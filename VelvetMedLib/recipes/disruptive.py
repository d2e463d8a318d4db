"""Disruptive restoration alone, on VELVET's Swin encoder: images without a word. The worked example of docs/extending.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from VelvetMedLib.ct.views import scaled
from VelvetMedLib.models.velvet import Level, VelvetModel
from VelvetMedLib.objectives.base import DISRUPTED_CHANNELS, IMAGE_DISRUPTED
from VelvetMedLib.objectives.disruptive_restoration import DisruptionSettings, DisruptiveRestoration, disrupt
from VelvetMedLib.recipes import velvet
from VelvetMedLib.recipes.base import MakeObjective, Recipe, Shapes
from VelvetMedLib.recipes.crops import allowed_starts, cut
from VelvetMedLib.recipes.inputs import InputMaker, Inputs, StudySource
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings, ReportSettings, ViewSettings


@dataclass(frozen=True, kw_only=True)
class DisruptiveRecipe(Recipe):
    """encoders: the VELVET recipe whose encoders, views, optimiser and loop are used; its objectives are not. weight: of the loss."""

    name: str = "disruptive"
    encoders: velvet.VelvetRecipe = field(default_factory=velvet.paper)
    disruption: DisruptionSettings = field(default_factory=DisruptionSettings)
    weight: float = 1.0

    @property
    def views(self) -> ViewSettings:  # type: ignore[override]
        return self.encoders.views

    @property
    def reports(self) -> ReportSettings:  # type: ignore[override]
        return self.encoders.reports

    @property
    def optimiser(self) -> OptimiserSettings:  # type: ignore[override]
        return self.encoders.optimiser

    @property
    def loop(self) -> LoopSettings:  # type: ignore[override]
        return self.encoders.loop

    @property
    def key(self) -> str:
        return f"disruptive_{self.encoders.vision_size}"

    @property
    def levels(self) -> tuple[Level, ...]:
        return ()

    @property
    def needs_reports(self) -> bool:
        return False

    @property
    def vector_width(self) -> int:
        return self.encoders.vector_width

    def shapes(self, vocab_size: int) -> Shapes:
        return self.encoders.shapes(vocab_size)

    def model(self, vocab_size: int) -> VelvetModel:
        return self.encoders.model(vocab_size)

    def makers(self, shapes: Shapes) -> dict[str, MakeObjective]:
        return {"disruptive_restoration": partial(DisruptiveRestoration, shapes.top_channels)}

    def loss_weights(self) -> dict[str, float]:
        return {"disruptive_restoration_loss": self.weight}

    def inputs(self) -> Mapping[str, InputMaker]:
        return {IMAGE_DISRUPTED: self.crop, DISRUPTED_CHANNELS: self.crop}

    def crop(self, study: StudySource) -> Inputs:
        """A crop at full resolution, clean and disrupted."""
        draw, side = study.draw("disrupted crop"), (study.views.local_voxels,) * 3
        hu = study.fine_hu()
        low, high = allowed_starts(hu.shape, side)
        clean = scaled(cut(hu, draw.integers(low, high + 1), side), study.views.hu_window)
        swin = self.encoders.swin()
        made = disrupt(clean, swin.embed_dim, swin.patch, self.disruption, draw)
        return {
            "images": {IMAGE_DISRUPTED: torch.from_numpy(made.voxels)[None, None]},
            "clean": {IMAGE_DISRUPTED: torch.from_numpy(np.ascontiguousarray(clean))[None, None]},
            "extras": {DISRUPTED_CHANNELS: torch.from_numpy(made.kept)[None]},
        }


def paper() -> DisruptiveRecipe:
    """On VELVET-Med's own encoder and optimiser; nothing of the source's numbers was known to us."""
    return DisruptiveRecipe()


def tiny() -> DisruptiveRecipe:
    """For two CPU cores."""
    return DisruptiveRecipe(encoders=velvet.tiny())


def micro() -> DisruptiveRecipe:
    """For tests."""
    return DisruptiveRecipe(encoders=velvet.micro())


PRESETS = {"paper": paper, "tiny": tiny, "micro": micro}
