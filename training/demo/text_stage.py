"""Stage 3: the text encoder learns to read before any image is shown to it: which findings a text affirms, and which it denies.

Contrast with images did not teach it: after a whole training without this stage a regression on its vectors told the findings of held-out
reports apart with a mean AUROC of 0.76, where the parser, reading the same words, has 1.00. Single sentences are short and cost little;
reports are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo.losses import said_term
from demo.stages import TRANSFORMERS, train_stage
from demo.texts import HasFindings, TextSettings, TextSource, finding_targets, positive_weight
from VelvetMedLib.engine.randomness import generator, seed_torch
from VelvetMedLib.engine.trainable import Trainable
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.base import Terms
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings
from VelvetMedLib.reports import ontology


@dataclass(frozen=True, kw_only=True)
class ReadingSettings(Settings):
    """Every study of a batch gives one or two of its sentences; the first of every `whole_every` studies its whole report too."""

    steps: int
    whole_every: int = 8
    text: TextSettings = field(default_factory=TextSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: replace(TRANSFORMERS, warmup_share=0.05))
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(batch=128, save_every=50, log_every=10))


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Texts and what they say: 1 affirmed, 0 denied, NaN neither; excerpts of all B studies, reports of some. said_* [N, F]."""

    excerpts: TextLayout
    said_in_excerpts: Tensor
    reports: TextLayout
    said_in_reports: Tensor

    def __len__(self) -> int:
        return len(self.said_in_excerpts)

    def to(self, device: Any) -> TextBatch:
        return TextBatch(
            excerpts=self.excerpts.to(device),
            said_in_excerpts=self.said_in_excerpts.to(device),
            reports=self.reports.to(device),
            said_in_reports=self.said_in_reports.to(device),
        )


class TextMaker:
    """Texts about the named cases; what a case says depends on seed, epoch and case alone."""

    def __init__(self, cases: Sequence[tuple[str, HasFindings]], source: TextSource, settings: ReadingSettings, seed: int) -> None:
        self.cases, self.source, self.settings, self.seed = dict(cases), source, settings, seed

    def batch(self, names: list[str], epoch: int) -> TextBatch:
        drawn = [(self.cases[name], generator(self.seed, "text", epoch, name)) for name in names]
        pairs = [self.source.excerpt(case, draw) for case, draw in drawn]
        whole = drawn[:: self.settings.whole_every]
        lay_out, tokens = self.source.tokenizer.layout, self.settings.text.tokens
        return TextBatch(
            excerpts=lay_out([sentences for sentences, _ in pairs], tokens),
            said_in_excerpts=torch.stack([said for _, said in pairs]),
            reports=lay_out([self.source.report(case, draw) for case, draw in whole], tokens),
            # A report that passes over a finding that was looked for denies it by that.
            said_in_reports=finding_targets([case for case, _ in whole]),
        )


class ReadingHead(nn.Module):
    """Unit vectors [N, D] of the space that texts and studies share to logits [N, 2 F]: each finding affirmed, each denied."""

    def __init__(self, width: int, scale: float = 14.0) -> None:
        super().__init__()
        self.said, self.scale = nn.Linear(width, 2 * len(ontology().findings)), scale

    def forward(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.said(vectors * self.scale)
        return logits


class TextStage(Trainable):
    """What stage 3 trains: the text encoder, its report-level projection, and a head that is used for training only."""

    def __init__(self, model: VelvetModel, weight: Tensor, settings: ReadingSettings) -> None:
        """weight: of the positive cases of each finding."""
        super().__init__(settings.optimiser, settings.loop)
        # Not registered as a whole: only the parts below are trained and saved.
        object.__setattr__(self, "model", model)
        self.tribert, self.text_projection = model.tribert, model.text_projection
        self.head = ReadingHead(model.config.projection_dim)
        self.register_buffer("weight", weight, persistent=False)

    def counts(self, batch: TextBatch, ctx: Context) -> dict[str, float]:
        return {"excerpt_loss": float(batch.said_in_excerpts.numel()), "report_loss": float(batch.said_in_reports.numel())}

    def forward(self, batch: TextBatch, ctx: Context) -> Terms:
        model: VelvetModel = self.model  # type: ignore[assignment]
        weight = self.get_buffer("weight")
        excerpts, reports = model.embed_text(batch.excerpts), model.embed_text(batch.reports)
        return Terms(
            {
                "excerpt_loss": said_term(self.head(excerpts).float(), batch.said_in_excerpts, weight),
                "report_loss": said_term(self.head(reports).float(), batch.said_in_reports, weight),
            }
        )


def train_text(
    model: VelvetModel,
    cases: Sequence[tuple[str, HasFindings]],
    tokenizer: ReportTokenizer,
    run: Path,
    settings: ReadingSettings,
    *,
    seed: int,
) -> tuple[ReadingHead, float]:
    """Train the text encoder in place. Returns the head, for the stage that reads studies, and the seconds spent, all starts."""
    seed_torch(seed, "weights", "text")
    stage = TextStage(model, positive_weight([case for _, case in cases]), settings)
    maker = TextMaker(cases, TextSource(tokenizer, settings.text), settings, seed)
    seconds = train_stage(stage, maker, [name for name, _ in cases], run, settings, seed=seed, stands_on={"velvet": model.tribert})
    return stage.head, seconds
