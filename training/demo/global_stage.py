"""Stage 4: contents of every cell, contrast with reports, and findings, all from the global encoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from demo.encodings import EncodedCase
from demo.losses import cells_term, findings_term, known_findings
from demo.reading import stack
from demo.stages import TRANSFORMERS, train_stage
from demo.texts import TextSettings, TextSource, finding_targets, groups_of_texts, positive_weight
from VelvetMedLib.engine.randomness import generator, seed_torch
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN, StudyBatch, Terms
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode
from VelvetMedLib.objectives.groups import study_key
from VelvetMedLib.objectives.report_contrast import ReportContrast, ReportContrastSettings
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings
from VelvetMedLib.reports import ontology


@dataclass(frozen=True, kw_only=True)
class GlobalSettings(Settings):
    """cells_weight, contrast_weight: of these losses beside that of findings."""

    steps: int
    cells_weight: float = 0.2
    contrast_weight: float = 0.5
    contrast: ReportContrastSettings = field(default_factory=ReportContrastSettings)
    text: TextSettings = field(default_factory=TextSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: replace(TRANSFORMERS, warmup_share=0.375))
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=16, save_every=20, log_every=10))


@dataclass(frozen=True, kw_only=True)
class GlobalBatch(StudyBatch):
    """findings [B, F] as in `texts.finding_targets`; cell_shares [B, S, 8, 8, 8] as in `EncodedCase`."""

    findings: Tensor
    cell_shares: Tensor

    def to(self, device: Any) -> Self:
        return replace(super().to(device), findings=self.findings.to(device), cell_shares=self.cell_shares.to(device))


class GlobalMaker:
    """Global views and reports of the named cases; what a case shows depends on seed, epoch and case alone."""

    def __init__(self, cases: Sequence[EncodedCase], source: TextSource, seed: int) -> None:
        self.cases = {case.case_id: case for case in cases}
        self.source, self.seed = source, seed

    def batch(self, names: list[str], epoch: int) -> GlobalBatch:
        cases = [self.cases[name] for name in names]
        views, reports = [], []
        for case in cases:
            draw = generator(self.seed, "global", epoch, case.case_id)
            # Contrast and brightness of one study must not identify it.
            view = case.global_view.astype(np.float32) * draw.uniform(0.9, 1.1) + draw.normal(0, 0.02)
            views.append(view.astype(np.float32))
            reports.append(self.source.report(case, draw))
        return GlobalBatch(
            study=torch.tensor([study_key(name) for name in names]),
            group=groups_of_texts(reports),
            images={IMAGE_GLOBAL: torch.from_numpy(np.stack(views))[:, None]},
            view_spacing_mm=stack(cases, "view_spacing_mm"),
            texts={TEXT_CLEAN: self.source.tokenizer.layout(reports, self.source.settings.tokens)},
            findings=finding_targets(cases),
            cell_shares=stack(cases, "cell_shares"),
        )


class GlobalStage(Trainable):
    """What stage 4 trains: the image encoder, the text encoder, their report-level projections and two auxiliary heads."""

    def __init__(self, model: VelvetModel, weight: Tensor, settings: GlobalSettings) -> None:
        """weight: of the positive cases of each finding."""
        weights = {"cells_loss": settings.cells_weight, "report_contrast_loss": settings.contrast_weight}
        super().__init__(settings.optimiser, settings.loop, weights)
        # Not registered as a whole: only the parts below are trained and saved.
        object.__setattr__(self, "model", model)
        self.swin, self.tribert = model.swin, model.tribert
        self.image_projection, self.text_projection = model.image_projection, model.text_projection
        self.logit_scale = model.logit_scale
        self.contrast = ReportContrast(settings.contrast)
        width = model.config.swin.embed_dim
        # Bottom, middle and top all vote: a small finding must not have to survive five halvings to be learnt from.
        self.auxiliary = nn.Linear(width * (4 + 8 + 16) * 2, len(ontology().findings))
        # What lies in each cell of the bottom map. Labels of whole studies alone left this encoder on its plateau.
        self.cells = nn.Conv3d(width * 4, len(ontology().structures) + len(ontology().lesions), 1)
        nn.init.constant_(self.cells.bias, -4.0)  # type: ignore[arg-type]
        self.register_buffer("weight", weight, persistent=False)

    def counts(self, batch: GlobalBatch, ctx: Context) -> dict[str, float]:
        own = {"cells_loss": float(batch.cell_shares[:, 0].numel()), "findings_loss": known_findings(batch.findings)}
        return own | self.contrast.counts(batch, ctx)

    def forward(self, batch: GlobalBatch, ctx: Context) -> Terms:
        model: VelvetModel = self.model  # type: ignore[assignment]
        features = encode(model, batch, (IMAGE_GLOBAL, TEXT_CLEAN))
        maps: Any = features[IMAGE_GLOBAL]
        levels = [level.flatten(2) for level in (maps.bottom, maps.middle, maps.top)]
        pooled = torch.cat([level.amax(2) for level in levels] + [level.mean(2) for level in levels], 1)
        contrast = self.contrast(model, features, batch, ctx)
        losses = {
            "cells_loss": cells_term(self.cells(maps.bottom).float(), batch.cell_shares),
            "findings_loss": findings_term(self.auxiliary(pooled).float(), batch.findings, self.get_buffer("weight")),
        }
        return Terms(losses | contrast.losses, contrast.metrics)


def train_global(
    model: VelvetModel, cases: Sequence[EncodedCase], tokenizer: ReportTokenizer, run: Path, settings: GlobalSettings, *, seed: int
) -> float:
    """Train the encoders in place and leave their moving average in `model`. Returns seconds spent, resumed parts included."""
    assert model.fine is not None
    seed_torch(seed, "weights", "global")
    stage = GlobalStage(model, positive_weight(cases), settings)
    maker = GlobalMaker(cases, TextSource(tokenizer, settings.text), seed)
    earlier = {"fine": model.fine, "velvet": model.swin, "text": model.tribert}
    return train_stage(stage, maker, [case.case_id for case in cases], run, settings, seed=seed, stands_on=earlier)
