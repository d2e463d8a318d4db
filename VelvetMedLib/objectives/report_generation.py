"""Writing the report word by word from the scan: the image encoder learns what the words need (methods.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.decoder import CausalDecoder, DecoderConfig, Generation
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, NOT_ASKED, Features, LossTerm, Objective, StudyBatch, Terms, in_full_precision, wide
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import image_cells

TEXT_CAUSAL = "text.causal"
"""Extra, int64 [B, L]: the report as the writer reads it. Label, [B, L]: the id that must follow each, or `NOT_ASKED`."""


@dataclass(frozen=True, kw_only=True)
class ReportGenerationSettings(Settings):
    """The writer; all numbers are ours. tokens: longest text. memory_cells: image cells are averaged in cubes of two until there are
    at most so many."""

    layers: int = 6
    width: int = 768
    heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1
    tokens: int = 384
    memory_cells: int = 1728

    def __post_init__(self) -> None:
        self.require(self.tokens >= 8, "tokens", "at least 8")
        self.require(self.memory_cells >= 1, "memory_cells", "at least 1")
        self.decoder(1, 1)

    def decoder(self, vocab_size: int, channels: int) -> DecoderConfig:
        """The writer's network over image cells of `channels`."""
        return DecoderConfig(
            vocab_size=vocab_size,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            ffn=self.ffn,
            positions=self.tokens,
            memory_width=channels,
            dropout=self.dropout,
        )


class ReportGeneration(Objective):
    """-(1/T) sum_t log p(w_t | w_<t, image), T: asked tokens over all processes. Input tokens and image cells as keys and values.

    The gradient goes on into the image encoder: that is the point.
    """

    needs = frozenset({IMAGE_GLOBAL})
    reads = frozenset({TEXT_CAUSAL})

    def __init__(self, vocab_size: int, channels: int, settings: ReportGenerationSettings | None = None) -> None:
        """channels: of the image cells (`encoding.image_cells`)."""
        super().__init__()
        self.settings = settings or ReportGenerationSettings()
        self.decoder = CausalDecoder(self.settings.decoder(vocab_size, channels))

    def counts(self, batch: StudyBatch, ctx: Context) -> dict[str, float]:
        return {"report_generation_loss": float((batch.labels[TEXT_CAUSAL] != NOT_ASKED).sum())}

    def forward(self, model: Any, features: Features, batch: StudyBatch, ctx: Context) -> Terms:
        ids, labels = batch.extras[TEXT_CAUSAL], batch.labels[TEXT_CAUSAL]
        memory = self.memory(image_cells(features[IMAGE_GLOBAL]))
        asked = labels != NOT_ASKED
        logits, truth = self.decoder(ids, memory, _all(memory), asked), labels[asked]
        with in_full_precision(logits):
            total = functional.cross_entropy(wide(logits), truth, reduction="sum")
        right = (logits.detach().argmax(dim=-1) == truth).sum() / max(1, len(truth))
        return Terms({"report_generation_loss": LossTerm(total, float(len(truth)))}, {"report_generation/accuracy": right})

    def memory(self, cells: Tensor) -> Tensor:
        """[B, C, x, y, z] -> tokens [B, M, C], M at most `memory_cells`. A last odd layer of cells is averaged by itself."""
        while cells[0, 0].numel() > self.settings.memory_cells:
            cells = functional.avg_pool3d(cells, 2, ceil_mode=True, count_include_pad=False)
        return cells.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def write(self, cells: Tensor, beginning: Tensor, end_id: int, *, most: int | None = None) -> Generation:
        """The likeliest next token, one after another. cells: [B, C, x, y, z]; beginning: ids [B, P] that the text starts with."""
        memory = self.memory(cells)
        room = self.settings.tokens - beginning.shape[1]
        return self.decoder.generate(beginning, memory, _all(memory), min(most or room, room), end_id)


def _all(memory: Tensor) -> Tensor:
    return torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
