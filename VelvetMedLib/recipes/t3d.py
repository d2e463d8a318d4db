"""T3D-style training (arXiv 2312.01529): two full-resolution crops of a study that read its report, and the later multi-view form.

No code of the authors was found: the tasks are theirs, every formula and number here is ours (methods.md 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.models.t3d import T3dConfig, T3dModel
from VelvetMedLib.models.text_informed import TextInformedConfig
from VelvetMedLib.models.tribert import TriBertConfig
from VelvetMedLib.models.velvet import Level
from VelvetMedLib.objectives.base import IMAGE_GLOBAL
from VelvetMedLib.objectives.report_contrast import ReportContrast, ReportContrastSettings
from VelvetMedLib.objectives.text_informed_contrast import TextInformedContrast, TextInformedContrastSettings, VisualOnlyContrast
from VelvetMedLib.objectives.text_informed_restoration import TextInformedRestoration, TextInformedRestorationSettings
from VelvetMedLib.objectives.view_clusters import ViewClusters, ViewClustersSettings
from VelvetMedLib.recipes.base import MakeObjective, Recipe, Shapes
from VelvetMedLib.recipes.crops import CropChanges, CropSettings
from VelvetMedLib.recipes.inputs import InputMaker
from VelvetMedLib.recipes.parts import LoopSettings, LossWeights, OptimiserSettings, ReportSettings, ViewSettings
from VelvetMedLib.recipes.t3d_inputs import CROPS, DisruptionSettings, T3dInputs, TextPartSettings
from VelvetMedLib.recipes.velvet import TEXT, VISION


@dataclass(frozen=True, kw_only=True)
class T3dWeights(LossWeights):
    """Weight of each loss in the sum; the names are those of the losses without `_loss`. The last two are those of `tma`."""

    text_informed_contrast: float = 1.0
    visual_only_contrast: float = 0.5
    text_informed_restoration: float = 1.0
    text_informed_restoration_rest: float = 0.1
    report_contrast: float = 1.0
    view_clusters: float = 0.5


@dataclass(frozen=True, kw_only=True)
class T3dRecipe(Recipe):
    """Every number of a T3D-style pre-training (methods.md 4).

    vision_size, text_size: names in `recipes.velvet.VISION` and `TEXT`; the text encoder has no fusion layers. text_trainable:
    False = the text encoder stays as it begins and has no dropout, so begin with trained weights (`--text-from`).
    blocks, heads, projection_dim: of the text-informed part; blocks 2 as specified. visual_only: the contrast of crops that have
    read nothing. restoration: of a disrupted crop A. tma: the later version in place of both: a global view beside
    tma_crops crops, aligned with its report, all views positives of one another, and clusters of views.
    """

    name: str = "t3d_style"
    vision_size: str = "Sv"
    text_size: str = "Bt"
    text_trainable: bool = False
    blocks: int = 2
    heads: int = 8
    projection_dim: int = 256
    visual_only: bool = True
    restoration: bool = True
    tma: bool = False
    tma_crops: int = 4
    tma_clusters: bool = True
    label_smoothing: float = 0.1
    diagnose_every: int = 10
    contrast: TextInformedContrastSettings = field(default_factory=TextInformedContrastSettings)
    clusters: ViewClustersSettings = field(default_factory=ViewClustersSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    changes: CropChanges = field(default_factory=CropChanges)
    text: TextPartSettings = field(default_factory=TextPartSettings)
    disruption: DisruptionSettings = field(default_factory=DisruptionSettings)
    weights: T3dWeights = field(default_factory=T3dWeights)
    views: ViewSettings = field(default_factory=lambda: ViewSettings(fine_spacing_mm=(1.0, 1.0, 1.5)))
    reports: ReportSettings = field(default_factory=ReportSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        for name, choices in (("vision_size", VISION), ("text_size", TEXT)):
            self.require(getattr(self, name) in choices, name, "one of " + ", ".join(choices))
        for name in ("blocks", "heads", "projection_dim"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.swin().widths[4] % self.heads == 0, "heads", f"a divisor of {self.swin().widths[4]}, the channels of the top map")
        self.require(1 <= self.tma_crops <= len(CROPS), "tma_crops", f"1 to {len(CROPS)}")
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more, less than 1")
        self.require(self.diagnose_every >= 0, "diagnose_every", "0 (never) or more")
        exact = self.loop.micro_batches == 1 or self.loop.cached_gradients or self.loop.inexact_contrast
        self.require(
            exact,
            "loop",
            "loop.cached_gradients=true: contrast sees the whole batch; or loop.inexact_contrast=true: it need not",
        )

    @property
    def key(self) -> str:
        parts = ["t3d_style", "tma" if self.tma else "", "noclusters" if self.tma and not self.tma_clusters else ""]
        parts += ["" if self.tma or self.visual_only else "novisual", "" if self.tma or self.restoration else "norestoration"]
        parts += ["owntext" if self.contrast.negatives == "own_text" else "", self.text_size + self.vision_size]
        return "_".join(part for part in parts if part)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Only the later version has one space for scans and reports."""
        return ("report",) if self.tma else ()

    @property
    def vector_width(self) -> int:
        return self.projection_dim

    @property
    def tokens_for_sentences(self) -> bool:
        return True

    @property
    def crop_keys(self) -> tuple[str, ...]:
        """Feature keys of the crops of a study."""
        return CROPS[: self.tma_crops if self.tma else 2]

    @property
    def view_keys(self) -> tuple[str, ...]:
        """Feature keys of the views that are compared."""
        return (IMAGE_GLOBAL, *self.crop_keys) if self.tma else self.crop_keys

    def swin(self) -> SwinConfig:
        return VISION[self.vision_size]

    def model_config(self, vocab_size: int) -> T3dConfig:
        """The architecture of the encoders."""
        size, swin = TEXT[self.text_size], self.swin()
        text = TriBertConfig(
            vocab_size=vocab_size,
            width=size.width,
            heads=size.heads,
            ffn=size.ffn,
            text_layers=size.text_layers,
            fusion_layers=0,
            positions=self.reports.max_tokens,
            max_sentences=self.reports.max_sentences,
            visual_width=0,
            dropout=size.dropout if self.text_trainable else 0.0,
        )
        informed = TextInformedConfig(
            channels=swin.widths[4], text_width=size.width, heads=self.heads, blocks=self.blocks, projection_dim=self.projection_dim
        )
        return T3dConfig(swin=swin, tribert=text, text_informed=informed, aligned_dim=self.projection_dim if self.tma else 0)

    def shapes(self, vocab_size: int) -> Shapes:
        widths = self.swin().widths
        return Shapes(vocab_size=vocab_size, text_width=TEXT[self.text_size].width, top_channels=widths[4], cell_channels=widths[3])

    def model(self, vocab_size: int) -> T3dModel:
        made = T3dModel(self.model_config(vocab_size))
        made.swin.recompute_activations = self.loop.recompute_activations
        made.tribert.recompute_activations = self.loop.recompute_activations and self.text_trainable
        made.tribert.requires_grad_(self.text_trainable)
        return made

    def makers(self, shapes: Shapes) -> dict[str, MakeObjective]:
        """These stand on `T3dModel.text_informed`: a recipe that mixes them in needs encoders that have it."""
        made: dict[str, MakeObjective] = {}
        if self.tma:
            made["report_contrast"] = partial(ReportContrast, ReportContrastSettings(label_smoothing=self.label_smoothing))
        made["text_informed_contrast"] = partial(TextInformedContrast, self.contrast, views=self.view_keys)
        if self.tma and self.tma_clusters:
            made["view_clusters"] = partial(ViewClusters, self.projection_dim, self.view_keys, self.clusters)
        if not self.tma and self.visual_only:
            made["visual_only_contrast"] = partial(VisualOnlyContrast, self.contrast, views=self.view_keys)
        if not self.tma and self.restoration:
            settings = TextInformedRestorationSettings(diagnose_every=self.diagnose_every)
            made["text_informed_restoration"] = partial(TextInformedRestoration, shapes.top_channels, settings)
        return made

    def loss_weights(self) -> dict[str, float]:
        return {f"{name}_loss": float(value) for name, value in self.weights.to_dict().items()}

    def inputs(self) -> Mapping[str, InputMaker]:
        maker = T3dInputs(
            crops=self.crop_keys,
            corrupt=self.restoration and not self.tma,
            with_global=self.tma,
            places=self.crops,
            changes=self.changes,
            text=self.text,
            disruption=self.disruption,
        )
        return dict.fromkeys(maker.keys, maker)

    def learning_rate_factors(self) -> Mapping[str, float]:
        """As methods.md 3.6: 1e-4 for the image encoder, a fifth of it for the text encoder, twice as much for what is new."""
        return {"model.": 2.0, "model.swin.": 1.0, "model.tribert.": 0.2, "objectives.": 2.0}


def paper() -> T3dRecipe:
    """Full size on GPUs: Sv and Bt, crops of 96 voxels at 1.0 x 1.0 x 1.5 mm, optimiser of methods.md 3.6. All numbers are ours.

    The text encoder is frozen: begin with trained weights. The warm-up of 2,000 steps of 3.6 is 2 % of 100,000 steps here.
    """
    return T3dRecipe(
        optimiser=OptimiserSettings(
            learning_rate=1e-4, last_rate=1e-6, beta2=0.95, weight_decay=0.05, warmup_share=0.02, average_decay=0.9995
        ),
        loop=LoopSettings(batch=32, recompute_activations=True, readers=8),
    )


def tiny() -> T3dRecipe:
    """For two CPU cores: crops of 64 voxels at 3 mm, small encoders; the text encoder learns too, since it begins with nothing."""
    return T3dRecipe(
        vision_size="tiny",
        text_size="tiny",
        text_trainable=True,
        projection_dim=128,
        tma_crops=2,
        clusters=ViewClustersSettings(prototypes=32),
        views=ViewSettings(global_voxels=64, local_voxels=64, fine_spacing_mm=(3.0, 3.0, 3.0)),
        reports=ReportSettings(max_tokens=256),
        optimiser=OptimiserSettings(learning_rate=5e-4, last_rate=5e-6, beta2=0.95, weight_decay=0.05, warmup_share=0.05),
        loop=LoopSettings(batch=8, readers=1, save_every=50, validate_every=100),
    )


def micro() -> T3dRecipe:
    """For tests: a step takes a fraction of a second on one thread. Nothing can be learnt from it but whether the engine works."""
    return T3dRecipe(
        vision_size="micro",
        text_size="micro",
        text_trainable=True,
        projection_dim=16,
        heads=4,
        tma_crops=2,
        diagnose_every=2,
        clusters=ViewClustersSettings(prototypes=6),
        crops=CropSettings(least_body=0.1),
        disruption=DisruptionSettings(block=8),
        views=ViewSettings(global_voxels=32, local_voxels=32, fine_spacing_mm=(12.0, 12.0, 12.0)),
        reports=ReportSettings(max_tokens=64, max_sentences=12),
        optimiser=OptimiserSettings(learning_rate=1e-3, last_rate=1e-5, warmup_share=0.1),
        loop=LoopSettings(batch=4, precision="fp32", save_every=2, validate_every=4, log_every=1),
    )


PRESETS = {"paper": paper, "tiny": tiny, "micro": micro}
