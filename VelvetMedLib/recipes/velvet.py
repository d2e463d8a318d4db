"""VELVET-Med (arXiv 2508.12108): which encoders, views and objectives, and every switch of its ablation grid, as plain settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.models.tribert import TriBertConfig
from VelvetMedLib.models.velvet import LEVELS, Level, ModelConfig, VelvetModel
from VelvetMedLib.objectives.local_contrast import LocalContrast, LocalContrastSettings
from VelvetMedLib.objectives.masked_language import MaskedLanguage
from VelvetMedLib.objectives.match import Match, MatchSettings
from VelvetMedLib.objectives.report_contrast import ReportContrast, ReportContrastSettings
from VelvetMedLib.objectives.vision_self_supervision import Restoration, Rotation, ViewContrast, ViewContrastSettings
from VelvetMedLib.recipes.base import MakeObjective, Recipe, Shapes
from VelvetMedLib.recipes.parts import LoopSettings, LossWeights, OptimiserSettings, ReportSettings, ViewSettings

VISION: dict[str, SwinConfig] = {
    "Sv": SwinConfig(embed_dim=48, depths=(2, 8, 8, 8), heads=(4, 8, 16, 32), window=7),
    "Tv": SwinConfig(embed_dim=48, depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=7),
    "Bv": SwinConfig(embed_dim=96, depths=(2, 8, 8, 8), heads=(4, 8, 16, 32), window=7),
    "tiny": SwinConfig(embed_dim=16, depths=(1, 2, 2, 2), heads=(2, 4, 8, 16), window=4),
    "lean": SwinConfig(embed_dim=16, depths=(0, 2, 2, 2), heads=(1, 2, 4, 8), window=4),
    "micro": SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), window=2),
}
"""Vision encoders by the suffix of the published configurations; "tiny" for two CPU cores, "lean" the same without attention at the
first and dearest resolution, "micro" for tests."""
VISION |= {f"{name}-monai": replace(size, legacy_relative_index=True) for name, size in VISION.items()} | {
    f"{name}-legacy": replace(size, legacy_relative_index=True, legacy_merging=True) for name, size in VISION.items()
}
"""The same to start from MONAI's weights: "-monai" reads shrunk windows as MONAI does, "-legacy" also merges as before January 2025."""


@dataclass(frozen=True, kw_only=True)
class TextSize(Settings):
    """Numbers of TriBERT that a size name stands for."""

    width: int
    heads: int
    ffn: int
    text_layers: int
    fusion_layers: int
    dropout: float = 0.1


TEXT: dict[str, TextSize] = {
    "Bt": TextSize(width=768, heads=12, ffn=3072, text_layers=12, fusion_layers=6),
    "St": TextSize(width=768, heads=12, ffn=3072, text_layers=6, fusion_layers=6),
    "MLt": TextSize(width=384, heads=12, ffn=1536, text_layers=6, fusion_layers=2),
    "tiny": TextSize(width=192, heads=4, ffn=512, text_layers=3, fusion_layers=1),
    "micro": TextSize(width=32, heads=2, ffn=64, text_layers=1, fusion_layers=1),
}
"""Text encoders by the suffix of the published configurations. Bt, St: 12 and 6 text layers, 6 fusion layers. MLt: as MiniLM."""

ITC: dict[str, tuple[Level, ...]] = {
    "none": (),
    "top": ("report",),
    "topmid": ("report", "sentence"),
    "topbot": ("report", "word"),
    "all": LEVELS,
}
"""Levels of image-text contrast by the name of the published configurations."""


@dataclass(frozen=True, kw_only=True)
class Weights(LossWeights):
    """Weight of each loss in the sum (all 1 in the published setting); the names are those of the losses without `_loss`."""

    report_contrast: float = 1.0
    sentence_contrast: float = 1.0
    word_contrast: float = 1.0
    match: float = 1.0
    masked_language_mm: float = 1.0
    masked_language_text: float = 1.0
    view_contrast: float = 1.0
    rotation: float = 1.0
    restoration: float = 1.0


@dataclass(frozen=True, kw_only=True)
class VelvetRecipe(Recipe):
    """Every number of a VELVET-Med pre-training (methods.md 2).

    vision_size, text_size: names in `VISION` and `TEXT`; text_dropout: None = the size's own. projection_dim: of the common
    spaces. itc: levels of contrast. mm: matching and masked language with the image. vis: rotation, restoration and two-view
    contrast of crops. txt: masked language without the image. agg: how word and sentence scores are summed, "sum" as
    published or "mean". local_attention: "published", "skip_text_softmax" or "local_tau" (with that temperature).
    label_smoothing: of the report level. sentence_tokens: [SEN_i] before each sentence. spacing_token: the millimetres of
    the global view as one more visual token. word_merge: how a word's pieces become one.
    """

    name: str = "velvet"
    vision_size: str = "Sv"
    text_size: str = "Bt"
    text_dropout: float | None = None
    projection_dim: int = 512
    itc: str = "all"
    mm: bool = True
    vis: bool = True
    txt: bool = True
    agg: str = "sum"
    local_attention: str = "published"
    local_tau: float = 0.1
    label_smoothing: float = 0.1
    sentence_tokens: bool = True
    spacing_token: bool = True
    word_merge: str = "sum"
    weights: Weights = field(default_factory=Weights)
    views: ViewSettings = field(default_factory=ViewSettings)
    reports: ReportSettings = field(default_factory=ReportSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        for name, choices in (("vision_size", VISION), ("text_size", TEXT), ("itc", ITC)):
            self.require(getattr(self, name) in choices, name, "one of " + ", ".join(choices))
        self.require(self.agg in ("sum", "mean"), "agg", '"sum" or "mean"')
        kinds = ("published", "skip_text_softmax", "local_tau")
        self.require(self.local_attention in kinds, "local_attention", " or ".join(f'"{k}"' for k in kinds))
        self.require(self.local_tau > 0, "local_tau", "more than 0")
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more, less than 1")
        self.require(self.word_merge in ("sum", "mean"), "word_merge", '"sum" or "mean"')
        self.require(self.itc != "none" or self.mm or self.vis or self.txt, "itc", "contrast, or one of mm, vis and txt")
        self.require(not self.mm or "report" in self.levels, "mm", "an itc with the report level: matching draws its negatives from it")
        exact = self.loop.micro_batches == 1 or self.loop.cached_gradients or self.loop.inexact_contrast
        self.require(
            exact or not (self.levels or self.vis),
            "loop",
            "loop.cached_gradients=true: contrast sees the whole batch; or loop.inexact_contrast=true: it need not",
        )

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels at which image and text are aligned."""
        return ITC[self.itc]

    @property
    def key(self) -> str:
        """The name that the published configurations would give this setting."""
        parts = ["visiontext" if self.itc != "none" else "uni", *([f"{self.itc}itc"] if self.itc != "none" else [])]
        parts += [name for on, name in ((self.mm, "mmssl"), (self.vis, "visssl"), (self.txt, "txtssl")) if on]
        return "_".join([*parts, self.text_size + self.vision_size])

    def swin(self) -> SwinConfig:
        return VISION[self.vision_size]

    def tribert(self, vocab_size: int) -> TriBertConfig:
        """Fusion layers are there only for what fuses."""
        size, swin = TEXT[self.text_size], self.swin()
        return TriBertConfig(
            vocab_size=vocab_size,
            width=size.width,
            heads=size.heads,
            ffn=size.ffn,
            text_layers=size.text_layers,
            fusion_layers=size.fusion_layers if self.mm else 0,
            positions=self.reports.max_tokens,
            max_sentences=self.reports.max_sentences,
            visual_width=swin.widths[4],
            dropout=size.dropout if self.text_dropout is None else self.text_dropout,
            word_merge=self.word_merge,
        )

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The architecture of the encoders, as a bundle stores it."""
        return ModelConfig(
            swin=self.swin(),
            tribert=self.tribert(vocab_size),
            projection_dim=self.projection_dim,
            spacing_token=self.spacing_token,
        )

    @property
    def vector_width(self) -> int:
        return self.projection_dim

    @property
    def tokens_for_sentences(self) -> bool:
        return self.sentence_tokens

    def shapes(self, vocab_size: int) -> Shapes:
        """A writer reads the middle map: fine enough for places, coarse enough for attention."""
        widths = self.swin().widths
        text_width = TEXT[self.text_size].width
        return Shapes(vocab_size=vocab_size, text_width=text_width, top_channels=widths[4], cell_channels=widths[3])

    def model(self, vocab_size: int) -> VelvetModel:
        made = VelvetModel(self.model_config(vocab_size))
        made.swin.recompute_activations = made.tribert.recompute_activations = self.loop.recompute_activations
        return made

    def makers(self, shapes: Shapes) -> dict[str, MakeObjective]:
        made: dict[str, MakeObjective] = {}
        text_width, channels, vocab_size = shapes.text_width, shapes.top_channels, shapes.vocab_size
        local = LocalContrastSettings(
            agg=self.agg,
            skip_text_softmax=self.local_attention == "skip_text_softmax",
            local_tau=self.local_tau if self.local_attention == "local_tau" else 0.0,
        )
        if "report" in self.levels:
            made["report_contrast"] = partial(ReportContrast, ReportContrastSettings(label_smoothing=self.label_smoothing))
        if "sentence" in self.levels:
            made["sentence_contrast"] = partial(LocalContrast, "sentence", local)
        if "word" in self.levels:
            made["word_contrast"] = partial(LocalContrast, "word", local)
        if self.mm:
            # With cached gradients all pieces' pairs are fused in one go: keep a piece's worth at a time, or memory grows with them.
            loop = self.loop
            rows = max(1, 3 * loop.batch // loop.micro_batches) if loop.cached_gradients else 0
            made["match"] = partial(Match, text_width, MatchSettings(chunk_rows=rows))
            made["masked_language_mm"] = partial(MaskedLanguage, text_width, vocab_size, multi_modal=True)
        if self.txt:
            made["masked_language_text"] = partial(MaskedLanguage, text_width, vocab_size, multi_modal=False)
        if self.vis:
            made["view_contrast"] = partial(ViewContrast, channels, ViewContrastSettings(width=self.projection_dim))
            made["rotation"] = partial(Rotation, channels)
            made["restoration"] = partial(Restoration, channels)
        return made

    def loss_weights(self) -> dict[str, float]:
        return {f"{name}_loss": float(value) for name, value in self.weights.to_dict().items()}


def paper() -> VelvetRecipe:
    """The published configuration: everything on, Bt and Sv, 96 voxels, AdamW at 2e-5 with betas 0.9 and 0.98, batch 10.

    The batch was 10 per process; ours counts all processes together, so N of them want loop.batch=10*N. Ours where the
    published code slips (methods.md 2.5 and methods.md 2.8): no decay on norms, biases and the scale, warm-up of 2 %, clipping at 1.
    """
    return VelvetRecipe(loop=LoopSettings(batch=10, recompute_activations=True, readers=4))


def tiny() -> VelvetRecipe:
    """For two CPU cores: 64-voxel global views and 32-voxel crops at 4 mm, small encoders, mean aggregation."""
    return VelvetRecipe(
        vision_size="tiny",
        text_size="tiny",
        projection_dim=128,
        agg="mean",
        views=ViewSettings(global_voxels=64, local_voxels=32, fine_spacing_mm=(4.0, 4.0, 4.0)),
        reports=ReportSettings(max_tokens=256),
        optimiser=OptimiserSettings(learning_rate=5e-4, last_rate=5e-6, weight_decay=0.02, warmup_share=0.05),
        loop=LoopSettings(batch=16, readers=1, save_every=50, validate_every=100),
    )


def lean() -> VelvetRecipe:
    """`tiny` with a vision encoder whose blocks begin at half its resolution: more steps in the same hours, for the ablation."""
    return tiny().with_(vision_size="lean")


def micro() -> VelvetRecipe:
    """For tests: a step takes a fraction of a second on one thread. Nothing can be learnt from it but whether the engine works."""
    return VelvetRecipe(
        vision_size="micro",
        text_size="micro",
        projection_dim=16,
        agg="mean",
        views=ViewSettings(global_voxels=32, local_voxels=32, fine_spacing_mm=(12.0, 12.0, 12.0)),
        reports=ReportSettings(max_tokens=64, max_sentences=12),
        optimiser=OptimiserSettings(learning_rate=1e-3, last_rate=1e-5, warmup_share=0.1),
        loop=LoopSettings(batch=4, precision="fp32", save_every=2, validate_every=4, log_every=1),
    )


PRESETS = {"paper": paper, "tiny": tiny, "lean": lean, "micro": micro}
