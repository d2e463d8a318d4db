"""The study reader: joins global, region and lesion tokens of one scan into the memory that heads and decoder read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.attention import Attention, EncoderBlock
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.spacing import SpacingToken

KINDS = ("global", "spacing", "region", "lesion")
"""Order of the token kinds in the memory."""


@dataclass(frozen=True, kw_only=True)
class ReaderConfig(Settings):
    """Settings of `StudyReader`. region_features, lesion_features: raw numbers per region and lesion token.

    region_measures: how many of a region's last numbers are measurements (volume, HU, extent, place, overlaps), not learned features.
    top_channels: channels of the global encoder's top map. max_lesions: most lesion tokens per scan.
    projection_dim: length of the study and region vectors for retrieval.
    """

    top_channels: int
    width: int = 192
    layers: int = 2
    heads: int = 4
    ffn: int = 384
    region_features: int = 77
    region_measures: int = 29
    lesion_features: int = 108
    structures: int = 32
    max_lesions: int = 32
    projection_dim: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in (
            "top_channels",
            "width",
            "layers",
            "heads",
            "ffn",
            "region_features",
            "region_measures",
            "lesion_features",
            "structures",
            "projection_dim",
        ):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.region_measures <= self.region_features, "region_measures", f"at most region_features ({self.region_features})")
        self.require(self.max_lesions >= 0, "max_lesions", "0 or more")
        self.require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more, less than 1")


class ReaderOutput(NamedTuple):
    """memory [B, M, W] in the order of `KINDS`; memory_mask [B, M], True = valid; study [B, D], unit length;
    region_vectors [B, structures, D], unit length, zero where the region is masked."""

    memory: Tensor
    memory_mask: Tensor
    study: Tensor
    region_vectors: Tensor


class StudyReader(nn.Module):
    """Pre-norm transformer encoder over [top cells, spacing, regions, lesions].

    Each kind has a type embedding, each structure its own; top cells know where they lie through their centre in
    -1..1, so any grid will do. Raw region and lesion numbers are standardised by buffers that come with the weights.
    Lesion tokens are a set: their order carries nothing. study = unit(A mean(top) + B pool(memory)).
    """

    region_mean: Tensor
    region_scale: Tensor
    lesion_mean: Tensor
    lesion_scale: Tensor

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.top_in = nn.Linear(config.top_channels, width)
        self.cell_position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.spacing = SpacingToken(width)
        # Raw numbers differ by orders of magnitude (10 HU of fat in a liver, 300 HU between organs): each structure has its own scale.
        self.register_buffer("region_mean", torch.zeros(config.structures, config.region_features))
        self.register_buffer("region_scale", torch.ones(config.structures, config.region_features))
        self.register_buffer("lesion_mean", torch.zeros(config.lesion_features))
        self.register_buffer("lesion_scale", torch.ones(config.lesion_features))
        self.region_in = nn.Sequential(nn.Linear(config.region_features, width), nn.GELU(), nn.Linear(width, width))
        # A large spleen and a large aorta are different facts: each structure also reads its measurements by weights of its own.
        self.measure_in = nn.Parameter(torch.randn(config.structures, config.region_measures, width) * config.region_measures**-0.5)
        self.lesion_in = nn.Sequential(nn.Linear(config.lesion_features, width), nn.GELU(), nn.Linear(width, width))
        self.kind = nn.Embedding(len(KINDS), width)
        self.structure = nn.Embedding(config.structures, width)
        self.input_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(width, config.heads, config.ffn, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.pool_query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pool = Attention(width, config.heads)
        self.study_from_top = nn.Linear(config.top_channels, config.projection_dim)
        self.study_from_memory = nn.Linear(width, config.projection_dim)
        self.region_out = nn.Linear(width, config.projection_dim)
        nn.init.normal_(self.kind.weight, std=0.02)
        nn.init.normal_(self.structure.weight, std=0.02)

    def forward(
        self, top: Tensor, view_spacing_mm: Tensor, regions: Tensor, region_mask: Tensor, lesions: Tensor, lesion_mask: Tensor
    ) -> ReaderOutput:
        """Masks: True = valid.

        top: [B, top_channels, gx, gy, gz]; view_spacing_mm: [B, 3]; regions: [B, structures, region_features];
        region_mask: [B, structures]; lesions: [B, N, lesion_features], N from 0 to max_lesions; lesion_mask: [B, N].
        """
        if lesions.shape[1] > self.config.max_lesions:
            raise ValueError(f"{lesions.shape[1]} lesion tokens, at most {self.config.max_lesions} (max_lesions) are read")
        region_mask, lesion_mask = region_mask.bool(), lesion_mask.bool()
        cells = top.flatten(2).transpose(1, 2)
        # Numbers behind a mask may be anything, even NaN: they are replaced, not multiplied away.
        raw = standardised(regions, self.region_mean, self.region_scale, region_mask)
        measured = torch.einsum("bsf,sfw->bsw", raw[..., -self.config.region_measures :], self.measure_in)
        parts = [
            self.top_in(cells) + self.cell_position(_cell_centres(top)),
            self.spacing(view_spacing_mm),
            self.region_in(raw) + measured + self.structure.weight,
            self.lesion_in(standardised(lesions, self.lesion_mean, self.lesion_scale, lesion_mask)),
        ]
        x = torch.cat([part + self.kind.weight[kind] for kind, part in enumerate(parts)], dim=1)
        always = torch.ones(len(top), cells.shape[1] + 1, dtype=torch.bool, device=top.device)
        mask = torch.cat([always, region_mask, lesion_mask], dim=1)
        x = self.dropout(self.input_norm(x))
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        memory = self.norm(x)
        pooled = self.pool(self.pool_query.expand(len(top), -1, -1), memory, mask[:, None, None, :])[:, 0]
        study = self.study_from_top(cells.mean(dim=1)) + self.study_from_memory(pooled)
        first = cells.shape[1] + 1
        region = self.region_out(memory[:, first : first + self.config.structures])
        unit_regions = functional.normalize(region.float(), dim=-1) * region_mask[..., None]
        return ReaderOutput(memory, mask, functional.normalize(study.float(), dim=-1), unit_regions)


def standardised(raw: Tensor, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
    """(raw - mean) * scale, limited to +-6 so that one wild number of a strange scan cannot drown the others; 0 behind the mask."""
    return ((raw - mean) * scale).clamp(-6.0, 6.0).masked_fill(~mask[..., None], 0.0)


def _cell_centres(top: Tensor) -> Tensor:
    """Centres of the cells of [B, C, gx, gy, gz] in -1..1, row-major as `flatten` orders them: [gx * gy * gz, 3]."""
    axes = [(torch.arange(n, device=top.device, dtype=torch.float32) + 0.5) * (2.0 / n) - 1.0 for n in top.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


@dataclass(frozen=True, kw_only=True)
class FindingsHeadConfig(Settings):
    """Settings of `FindingsHead`. findings: number of findings, in the bundle's order."""

    findings: int = 21
    width: int = 192
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("findings", "width", "heads"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more, less than 1")


class FindingsHead(nn.Module):
    """One learned query per finding reads the memory by cross-attention; one linear read-out per finding gives its logit."""

    def __init__(self, config: FindingsHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.randn(config.findings, config.width) * 0.02)
        self.attention = Attention(config.width, config.heads, dropout=config.dropout)
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.Sequential(nn.Linear(config.width, config.width), nn.GELU(), nn.Dropout(config.dropout))
        self.weight = nn.Parameter(torch.randn(config.findings, config.width) * config.width**-0.5)
        self.bias = nn.Parameter(torch.zeros(config.findings))

    def forward(self, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """memory: [B, M, W]; memory_mask: [B, M], True = valid. Returns logits [B, findings]."""
        query = self.query.expand(len(memory), -1, -1)
        read = self.attention(query, memory, memory_mask.bool()[:, None, None, :])
        return (self.hidden(self.norm(query + read)) * self.weight).sum(dim=-1) + self.bias
