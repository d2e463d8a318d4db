"""The whole model of a bundle: global encoder, text encoder, their common spaces, and the heads that a bundle may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.decoder import CausalDecoder, DecoderConfig
from VelvetMedLib.models.fine import FineConfig, FineNet
from VelvetMedLib.models.heads import MatchHead
from VelvetMedLib.models.reader import FindingsHead, FindingsHeadConfig, ReaderConfig, StudyReader
from VelvetMedLib.models.spacing import SpacingToken
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.models.text import TextLayout
from VelvetMedLib.models.tribert import TriBert, TriBertConfig
from VelvetMedLib.models.verifier import LesionVerifier, LesionVerifierConfig

Level: TypeAlias = Literal["report", "sentence", "word"]
LEVELS: tuple[Level, ...] = ("report", "sentence", "word")
"""The three levels of text; their image levels are top, middle and bottom."""
MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Settings of `VelvetModel`: every architecture number of a bundle. None = the bundle has no such part.

    projection_dim: length of the common vectors of image and text at each level (512 in the paper).
    spacing_token: give the millimetres of the global view to the fusion layers as one more visual token.
    match: a trained head tells whether a text and a scan belong together (`objectives.match` trains it).
    """

    swin: SwinConfig = field(default_factory=SwinConfig)
    tribert: TriBertConfig
    projection_dim: int = 128
    spacing_token: bool = True
    fine: FineConfig | None = None
    reader: ReaderConfig | None = None
    findings: FindingsHeadConfig | None = None
    decoder: DecoderConfig | None = None
    verifier: LesionVerifierConfig | None = None
    match: bool = False

    def __post_init__(self) -> None:
        top = self.swin.widths[4]
        self.require(self.projection_dim >= 1, "projection_dim", "at least 1")
        self.require(self.tribert.visual_width in (0, top), "tribert", f"visual_width {top}, the channels of the top map (or 0)")
        if self.reader is not None:
            self.require(self.reader.top_channels == top, "reader", f"top_channels {top}, the channels of the top map")
            self.require(
                self.reader.projection_dim == self.projection_dim, "reader", f"projection_dim {self.projection_dim}, as the text's"
            )
        if self.findings is not None:
            self.require(self.reader is not None and self.findings.width == self.reader.width, "findings", "a reader of the same width")
        if self.decoder is not None:
            memory = self.decoder.memory_width or self.decoder.width
            self.require(self.reader is not None and memory == self.reader.width, "decoder", "a reader as wide as the decoder's memory")
            same = self.decoder.vocab_size == self.tribert.vocab_size
            self.require(same, "decoder", f"vocab_size {self.tribert.vocab_size}, as the text encoder's")
        if self.verifier is not None:
            same = self.fine is not None and self.verifier.lesions == self.fine.lesions
            self.require(same, "verifier", "as many kinds as the fine network's lesion channels")
        self.require(not self.match or self.tribert.fusion_layers > 0, "match", "False, or a tribert with fusion layers")


class GlobalFeatures(NamedTuple):
    """Maps of the global view, channels normalised: bottom [B, 4e, X/8 ...], middle [B, 8e, X/16 ...], top [B, 16e, X/32 ...]
    at patch 2 and embed_dim e; view_spacing_mm [B, 3]."""

    bottom: Tensor
    middle: Tensor
    top: Tensor
    view_spacing_mm: Tensor

    def of(self, level: Level) -> Tensor:
        """The map that answers to a level of text."""
        return {"report": self.top, "sentence": self.middle, "word": self.bottom}[level]


class VelvetModel(nn.Module):
    """VELVET-Med's encoders (methods.md 2) beside the product's own readers of fine, region and lesion tokens.

    logit_scale is the log of the contrastive scale; logits = exp(logit_scale) * cosine.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths, text_width, shared = config.swin.widths, config.tribert.width, config.projection_dim
        image_widths = {"report": widths[4], "sentence": widths[3], "word": widths[2]}
        self.swin = SwinEncoder(config.swin)
        self.tribert = TriBert(config.tribert)
        self.image_projection = nn.ModuleDict({level: nn.Linear(image_widths[level], shared) for level in LEVELS})
        self.text_projection = nn.ModuleDict({level: nn.Linear(text_width, shared) for level in LEVELS})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.visual_adapter = nn.Sequential(nn.Linear(widths[4], text_width), nn.LayerNorm(text_width))
        self.spacing_token = SpacingToken(text_width) if config.spacing_token else None
        self.fine = FineNet(config.fine) if config.fine is not None else None
        self.reader = StudyReader(config.reader) if config.reader is not None else None
        self.findings = FindingsHead(config.findings) if config.findings is not None else None
        self.decoder = CausalDecoder(config.decoder) if config.decoder is not None else None
        self.verifier = LesionVerifier(config.verifier) if config.verifier is not None else None
        self.match = MatchHead(text_width) if config.match else None

    def encode_global(self, x: Tensor, view_spacing_mm: Tensor) -> GlobalFeatures:
        """x: [B, 1, X, Y, Z] global view; view_spacing_mm: [B, 3], box side / voxels per axis (x, y, z)."""
        _, _, bottom, middle, top = self.swin(x)
        return GlobalFeatures(bottom, middle, top, view_spacing_mm)

    def project_image(self, features: GlobalFeatures, levels: Sequence[Level] = LEVELS) -> dict[str, Tensor]:
        """Unit vectors in the common spaces, float32: "report" [B, D] from the mean of the top map, "sentence" [B, M, D]
        and "word" [B, M', D] from every cell of the middle and bottom maps, cells row-major (first axis slowest)."""
        out: dict[str, Tensor] = {}
        for level in levels:
            cells = features.of(level).flatten(2).transpose(1, 2)
            out[level] = _unit(self.image_projection[level](cells.mean(dim=1) if level == "report" else cells))
        return out

    def project_text(self, states: Tensor, layout: TextLayout, levels: Sequence[Level] = LEVELS) -> dict[str, Tensor]:
        """Unit vectors from the states of the last text layer [B, L, W]: "report" [B, D], "sentence" [B, S, D],
        "word" [B, N, D], with "sentence_mask" [B, S] and "word_mask" [B, N]; vectors behind a mask are zero."""
        if tuple(levels) == ("report",):  # the state of [CLS] is its entry: nothing to merge
            return {"report": _unit(self.text_projection["report"](states[:, 0]))}
        read = self.tribert.read_out(states, layout)
        units = {"sentence": (read.sentences, read.sentence_mask), "word": (read.words, read.word_mask)}
        out: dict[str, Tensor] = {}
        for level in levels:
            if level == "report":
                out[level] = _unit(self.text_projection[level](read.report))
            else:
                vectors, mask = units[level]
                out |= {level: _unit(self.text_projection[level](vectors)) * mask[..., None], f"{level}_mask": mask}
        return out

    def embed_text(self, layout: TextLayout) -> Tensor:
        """Report-level unit vectors [B, D] of laid-out texts; comparable with the reader's `study` and `project_image`'s "report"."""
        return self.project_text(self.tribert.text(layout.ids, layout.type_ids, layout.pad_mask), layout, ["report"])["report"]

    def visual_tokens(self, features: GlobalFeatures) -> Tensor:
        """Tokens for `tribert.fuse`: the cells of the top map through the adapter, then the spacing token: [B, V, text width]."""
        tokens = self.visual_adapter(features.top.flatten(2).transpose(1, 2))
        if self.spacing_token is None:
            return tokens
        return torch.cat([tokens, self.spacing_token(features.view_spacing_mm).to(tokens.dtype)], dim=1)

    def contrast_scale(self) -> Tensor:
        """exp(logit_scale), kept within 1 to 100."""
        return self.logit_scale.clamp(0.0, MAX_LOG_SCALE).exp()


def _unit(x: Tensor) -> Tensor:
    """In float32, or in float64 where the model is."""
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
