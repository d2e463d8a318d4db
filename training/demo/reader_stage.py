"""Stage 5: everything that reads tokens, on kept encodings: findings, opposite prompts, contrast with reports, writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.encodings import EncodedCase
from demo.losses import findings_term, known_findings, prompt_term, said_term, target_tokens, words_term
from demo.reading import fit_standardisation, reader_input
from demo.stages import TRANSFORMERS, train_stage
from demo.text_stage import ReadingHead
from demo.texts import Packs, TextSettings, TextSource, finding_targets, groups_of_texts, positive_weight, records_by_state
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import Terms
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.report_contrast import ReportContrastSettings, report_terms
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings

LOST_LESIONS = 0.03
"""Share of the lesion tokens left out: a lesion that the fine network missed must not bring the reader down."""


@dataclass(frozen=True, kw_only=True)
class ReaderSettings(Settings):
    """findings_weight, reading_weight: of the findings head's loss, and of what studies and reports say in their common space, beside
    those of prompts, contrast and writing."""

    steps: int
    findings_weight: float = 2.0
    reading_weight: float = 1.0
    contrast: ReportContrastSettings = field(default_factory=ReportContrastSettings)
    text: TextSettings = field(default_factory=TextSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: replace(TRANSFORMERS, warmup_share=0.1))
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=32, save_every=50, log_every=10))


@dataclass(frozen=True, kw_only=True)
class ReaderBatch:
    """read: arguments of the reader. group: int64 [B], equal where reports read the same. findings [B, F] as in
    `texts.finding_targets`. rows: of the decoder."""

    read: tuple[Tensor, ...]
    group: Tensor
    report: TextLayout
    findings: Tensor
    rows: Packs

    def __len__(self) -> int:
        return len(self.group)

    def to(self, device: Any) -> ReaderBatch:
        return replace(
            self,
            read=tuple(tensor.to(device) for tensor in self.read),
            group=self.group.to(device),
            report=self.report.to(device),
            findings=self.findings.to(device),
            rows=[(owner.to(device), ids.to(device), targets.to(device)) for owner, ids, targets in self.rows],
        )


class ReaderMaker:
    """Kept tokens and texts of the named cases; what a case shows depends on seed, epoch and case alone."""

    def __init__(self, cases: Sequence[EncodedCase], source: TextSource, seed: int, *, lesion_features: int, positions: int) -> None:
        """lesion_features: width of a lesion token; positions: of the decoder."""
        self.cases = {case.case_id: case for case in cases}
        self.source, self.seed, self.lesion_features, self.positions = source, seed, lesion_features, positions

    def batch(self, names: list[str], epoch: int) -> ReaderBatch:
        cases = [self.cases[name] for name in names]
        *others, lesion_mask = reader_input(cases, self.lesion_features)
        reports, rows = [], []
        for place, case in enumerate(cases):
            draw = generator(self.seed, "reader", epoch, case.case_id)
            reports.append(self.source.report(case, draw))
            rows.append(self.source.decoder_rows(case, draw))
            seen = draw.random(len(case.lesions)) >= LOST_LESIONS
            lesion_mask[place, : len(case.lesions)] &= torch.from_numpy(np.asarray(seen))
        return ReaderBatch(
            read=(*others, lesion_mask),
            group=groups_of_texts(reports),
            report=self.source.tokenizer.layout(reports, self.source.settings.tokens),
            findings=finding_targets(cases),
            rows=self.source.packed(rows, self.positions),
        )


class ReaderStage(Trainable):
    """What stage 5 trains; the image encoders are finished."""

    def __init__(
        self, model: VelvetModel, head: ReadingHead, cases: Sequence[EncodedCase], source: TextSource, settings: ReaderSettings
    ) -> None:
        """head: of the text stage; used for training only. cases: all that are learnt from; their records word the prompts."""
        assert model.reader is not None and model.findings is not None and model.decoder is not None
        reading = dict.fromkeys(("study_reading_loss", "report_reading_loss"), settings.reading_weight)
        super().__init__(settings.optimiser, settings.loop, {"findings_loss": settings.findings_weight} | reading)
        # Not registered as a whole: only the parts below are trained and saved.
        object.__setattr__(self, "model", model)
        self.reader, self.findings, self.decoder = model.reader, model.findings, model.decoder
        self.tribert, self.text_projection, self.logit_scale = model.tribert, model.text_projection, model.logit_scale
        self.head = head
        self.source, self.known, self.smoothing = source, records_by_state(cases), settings.contrast.label_smoothing
        self.register_buffer("weight", positive_weight(cases), persistent=False)

    def counts(self, batch: ReaderBatch, ctx: Context) -> dict[str, float]:
        known = known_findings(batch.findings)
        return {
            "findings_loss": known,
            "prompt_loss": known,
            "study_reading_loss": float(batch.findings.numel()),
            "report_reading_loss": float(batch.findings.numel()),
            "report_contrast_loss": float(len(batch)),
            "writing_loss": target_tokens(batch.rows),
        }

    def forward(self, batch: ReaderBatch, ctx: Context) -> Terms:
        model: VelvetModel = self.model  # type: ignore[assignment]
        weight = self.get_buffer("weight")
        read = self.reader(*batch.read)
        # Drawn by step and not by case: all studies of a step, on whatever process, are held against the same sentences.
        sentences = self.source.prompts(self.known, generator(ctx.seed, "prompts", ctx.step))
        prompts = model.embed_text(self.source.tokenizer.layout(sentences, self.source.settings.tokens).to(batch.group.device))
        scale = model.contrast_scale()
        report = model.embed_text(batch.report)
        contrast = report_terms(read.study, report, scale, batch.group, ctx, smoothing=self.smoothing)
        losses = {
            "findings_loss": findings_term(self.findings(read.memory, read.memory_mask).float(), batch.findings, weight),
            "prompt_loss": prompt_term(read.study, prompts, scale, batch.findings, weight),
            # One reading of both: what a study shows lies where a report that says so lies.
            "study_reading_loss": said_term(self.head(read.study).float(), batch.findings, weight),
            "report_reading_loss": said_term(self.head(report).float(), batch.findings, weight),
            "writing_loss": words_term(self.decoder, read.memory, read.memory_mask, batch.rows),
        }
        return Terms(losses | contrast.losses, contrast.metrics)


def train_reader(
    model: VelvetModel,
    head: ReadingHead,
    cases: Sequence[EncodedCase],
    tokenizer: ReportTokenizer,
    run: Path,
    settings: ReaderSettings,
    *,
    seed: int,
) -> float:
    """Train reader, findings head, text encoder and decoder in place; head: of the text stage. Returns the seconds of all starts."""
    assert model.fine is not None and model.reader is not None and model.decoder is not None
    fit_standardisation(model, cases)
    source = TextSource(tokenizer, settings.text)
    stage = ReaderStage(model, head, cases, source, settings)
    maker = ReaderMaker(
        cases, source, seed, lesion_features=model.reader.config.lesion_features, positions=model.decoder.config.positions
    )  # fmt: skip
    earlier = {"fine": model.fine, "text": model.tribert, "global": model.swin}
    return train_stage(stage, maker, [case.case_id for case in cases], run, settings, seed=seed, stands_on=earlier)
