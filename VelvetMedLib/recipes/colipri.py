"""COLIPRI-style training (arXiv 2510.15042; methods.md 3.6): contrast, report generation, opposite sentences, masked images.

The paper's losses, weights, sizes of crops and schedule are not known to us: every number here that the released network does not
fix is OURS. A model trained with it is not COLIPRI and must not be called so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.aligned_colipri import AlignedColipri
from VelvetMedLib.models.bert import BertConfig
from VelvetMedLib.models.colipri import ColipriConfig
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.primus import PrimusConfig
from VelvetMedLib.models.velvet import Level
from VelvetMedLib.objectives import encoding_colipri as encoding_colipri  # registers the encoders
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
from VelvetMedLib.objectives.masked_image import IMAGE_MAE, KEPT, PADDING, MaskedImage, MaskedImageSettings
from VelvetMedLib.objectives.opposite_sentences import ASKED, TEXT_OPPOSITE, OppositeSentences, OppositeSentencesSettings
from VelvetMedLib.objectives.report_contrast import ReportContrast, ReportContrastSettings
from VelvetMedLib.objectives.report_generation import TEXT_CAUSAL, ReportGeneration, ReportGenerationSettings
from VelvetMedLib.objectives.sigmoid_contrast import SigmoidContrast, SigmoidContrastSettings
from VelvetMedLib.recipes.base import Companions, MakeObjective, Recipe, Shapes
from VelvetMedLib.recipes.colipri_inputs import ColipriInputs, CropChanges, PracticeSettings
from VelvetMedLib.recipes.inputs import InputMaker
from VelvetMedLib.recipes.parts import LoopSettings, LossWeights, OptimiserSettings, ReportSettings, ViewSettings

IMAGE: dict[str, PrimusConfig] = {
    "M": PrimusConfig.paper(),
    "tiny": PrimusConfig.tiny(),
    "micro": PrimusConfig(width=24, depth=1, heads=2, ffn=32, patch=8, drop_path=0.0),
}
"""Image encoders. M: as released; "tiny" for two CPU cores, "micro" for tests."""


@dataclass(frozen=True, kw_only=True)
class TextSize(Settings):
    """Numbers of the text encoder that a size name stands for; its width is that of the common space."""

    width: int
    depth: int
    heads: int
    ffn: int
    pool_heads: int
    dropout: float = 0.1


TEXT: dict[str, TextSize] = {
    "base": TextSize(width=768, depth=12, heads=12, ffn=3072, pool_heads=12),
    "tiny": TextSize(width=96, depth=3, heads=4, ffn=256, pool_heads=4),
    "micro": TextSize(width=24, depth=1, heads=2, ffn=32, pool_heads=2),
}

START_SCALES = {"infonce": 1 / 0.07, "sigmoid": 10.0, "none": 1 / 0.07}


@dataclass(frozen=True, kw_only=True)
class Weights(LossWeights):
    """Weight of each loss in the sum (ours)."""

    contrast: float = 1.0
    report_generation: float = 1.0
    opposite_sentences: float = 0.5
    masked_image: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ColipriRecipe(Recipe):
    """Every number of a COLIPRI-style pre-training.

    image_size, text_size: names in `IMAGE` and `TEXT`; drop_path, text_dropout: None = the size's own. contrast: "infonce",
    "sigmoid" or "none". generation, opposite_sentences, masked_image: whether these losses are used. writer, masking,
    practice, changes: their settings, those of the text and of the crop. scans_per_pair: of the masked-image loss, whose scans need no
    report; paired_scans_too: those of pairs are among them. text_rate, head_rate: factors on the learning rate of the text
    encoder and of everything that is neither encoder. The crop has `views.local_voxels` a side at `views.fine_spacing_mm`.
    """

    name: str = "colipri"
    image_size: str = "M"
    text_size: str = "base"
    drop_path: float | None = None
    text_dropout: float | None = None
    contrast: str = "infonce"
    generation: bool = True
    opposite_sentences: bool = True
    masked_image: bool = True
    start_bias: float = -10.0
    opposite_temperature: float = 0.07
    scans_per_pair: float = 1.0
    paired_scans_too: bool = False
    text_rate: float = 0.2
    head_rate: float = 2.0
    writer: ReportGenerationSettings = field(default_factory=ReportGenerationSettings)
    masking: MaskedImageSettings = field(default_factory=MaskedImageSettings)
    practice: PracticeSettings = field(default_factory=PracticeSettings)
    changes: CropChanges = field(default_factory=CropChanges)
    weights: Weights = field(default_factory=Weights)
    views: ViewSettings = field(default_factory=ViewSettings)
    reports: ReportSettings = field(default_factory=ReportSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        for name, choices in (("image_size", IMAGE), ("text_size", TEXT), ("contrast", START_SCALES)):
            self.require(getattr(self, name) in choices, name, "one of " + ", ".join(choices))
        anything = self.contrast != "none" or self.generation or self.opposite_sentences or self.masked_image
        self.require(anything, "contrast", "a contrast, or one of generation, opposite_sentences and masked_image")
        self.require(self.scans_per_pair > 0, "scans_per_pair", "more than 0")
        for name in ("text_rate", "head_rate"):
            self.require(getattr(self, name) > 0, name, "more than 0")
        patch = IMAGE[self.image_size].patch
        self.require(self.views.local_voxels % patch == 0, "views", f"local_voxels a multiple of {patch}, the side of a cell")
        exact = self.loop.micro_batches == 1 or self.loop.cached_gradients or self.loop.inexact_contrast
        self.require(
            exact or self.contrast == "none",
            "loop",
            "loop.cached_gradients=true: contrast sees the whole batch; or loop.inexact_contrast=true: it need not",
        )

    @property
    def levels(self) -> tuple[Level, ...]:
        return () if self.contrast == "none" else ("report",)

    @property
    def needs_reports(self) -> bool:
        return self.contrast != "none" or self.generation or self.opposite_sentences

    @property
    def key(self) -> str:
        """C: contrast, R: report generation, O: opposite sentences, M: masked images; the released model is called CRM."""
        letters = (("C", self.contrast != "none"), ("R", self.generation), ("O", self.opposite_sentences), ("M", self.masked_image))
        what = "".join(letter for letter, on in letters if on)
        return f"{what}{'_sigmoid' if self.contrast == 'sigmoid' else ''}_{self.text_size}_{self.image_size}"

    @property
    def vector_width(self) -> int:
        return TEXT[self.text_size].width

    def config(self, vocab_size: int) -> ColipriConfig:
        """The architecture of the encoders."""
        image, text = IMAGE[self.image_size], TEXT[self.text_size]
        if self.drop_path is not None:
            image = PrimusConfig.from_dict(image.to_dict() | {"drop_path": float(self.drop_path)})
        bert = BertConfig(
            vocab_size=vocab_size,
            width=text.width,
            depth=text.depth,
            heads=text.heads,
            ffn=text.ffn,
            positions=self.reports.max_tokens,
            dropout=text.dropout if self.text_dropout is None else self.text_dropout,
        )
        return ColipriConfig(image=image, text=bert, projection_dim=text.width, pool_heads=text.pool_heads)

    def shapes(self, vocab_size: int) -> Shapes:
        width, image = TEXT[self.text_size].width, IMAGE[self.image_size]
        return Shapes(
            vocab_size=vocab_size,
            text_width=width,
            top_channels=width,
            cell_channels=width,
            kept_channels=image.width,
            patch=image.patch,
        )

    def model(self, vocab_size: int) -> AlignedColipri:
        made = AlignedColipri(self.config(vocab_size), start_scale=START_SCALES[self.contrast])
        made.image_encoder.backbone.recompute_activations = self.loop.recompute_activations
        return made

    def makers(self, shapes: Shapes) -> dict[str, MakeObjective]:
        made: dict[str, MakeObjective] = {}
        if self.contrast == "infonce":
            made["report_contrast"] = partial(ReportContrast, ReportContrastSettings(label_smoothing=0.0))
        if self.contrast == "sigmoid":
            made["sigmoid_contrast"] = partial(SigmoidContrast, SigmoidContrastSettings(start_bias=self.start_bias))
        if self.generation:
            made["report_generation"] = partial(ReportGeneration, shapes.vocab_size, shapes.cell_channels, self.writer)
        if self.opposite_sentences:
            made["opposite_sentences"] = partial(OppositeSentences, OppositeSentencesSettings(temperature=self.opposite_temperature))
        if self.masked_image:
            made["masked_image"] = partial(self._masked_image, shapes)
        return made

    def _masked_image(self, shapes: Shapes) -> MaskedImage:
        if not shapes.kept_channels:
            raise UsageError(
                "These encoders cannot leave cells of an image out.",
                found="masked_image with an encoder of windows",
                expected="an encoder of single cells (Primus)",
                next_step="Mix another objective, or use the COLIPRI recipe's own encoders.",
            )
        return MaskedImage(shapes.kept_channels, shapes.patch, self.masking)

    def loss_weights(self) -> dict[str, float]:
        weights = {f"{name}_loss": float(value) for name, value in self.weights.to_dict().items()}
        contrast = weights.pop("contrast_loss")
        return {"report_contrast_loss": contrast, "sigmoid_contrast_loss": contrast} | weights

    def inputs(self) -> Mapping[str, InputMaker]:
        patch = IMAGE[self.image_size].patch
        make = ColipriInputs(self.changes, self.practice, self.masking, self.writer.tokens, patch)
        image, masked, causal, opposite = make.image, make.masked_image, make.causal_text, make.opposite_texts
        return {
            IMAGE_GLOBAL: image,
            TEXT_CLEAN: make.contrastive_text,
            TEXT_CAUSAL: causal,
            TEXT_OPPOSITE: opposite,
            ASKED: opposite,
            IMAGE_MAE: masked,
            KEPT: masked,
            PADDING: masked,
        }

    def companions(self) -> Companions | None:
        """Scans to mask go along with the pairs; where nothing reads a report every study is simply a scan."""
        if not (self.masked_image and self.needs_reports):
            return None
        return Companions(keys=frozenset({IMAGE_MAE, KEPT, PADDING}), per_pair=self.scans_per_pair, paired_too=self.paired_scans_too)

    def learning_rate_factors(self) -> Mapping[str, float]:
        heads = self.head_rate
        return {
            "model.image_encoder.backbone.": 1.0,
            "model.text_encoder.backbone.": self.text_rate,
            "": heads,
        }


def paper() -> ColipriRecipe:
    """The released network's sizes; all else is ours (methods.md 3.6). 160 voxels a side at 2 mm.

    An effective batch of 128 by cached gradients: 16 pieces of 8. Warm-up is meant to be 2,000 steps: 4 % of 50,000. For the last
    tenth of a training take 192 voxels a side: a second run with --run-from and views.local_voxels=192.
    """
    return ColipriRecipe(
        views=ViewSettings(global_voxels=32, local_voxels=160, fine_spacing_mm=(2.0, 2.0, 2.0)),
        reports=ReportSettings(max_tokens=512),
        optimiser=OptimiserSettings(
            learning_rate=1e-4, last_rate=1e-6, beta2=0.95, weight_decay=0.05, warmup_share=0.04, average_decay=0.9995
        ),
        loop=LoopSettings(batch=128, micro_batches=16, cached_gradients=True, recompute_activations=True, readers=8),
    )


def tiny() -> ColipriRecipe:
    """For two CPU cores: 64 voxels a side at 6 mm, small encoders and writer; the scans of pairs are also masked."""
    return ColipriRecipe(
        image_size="tiny",
        text_size="tiny",
        paired_scans_too=True,
        text_rate=1.0,
        head_rate=1.0,
        writer=ReportGenerationSettings(layers=2, width=96, heads=4, ffn=256, tokens=192, memory_cells=64),
        masking=MaskedImageSettings(width=48, depth=2, heads=2, ffn=128),
        changes=CropChanges(shift_voxels=3),
        views=ViewSettings(global_voxels=32, local_voxels=64, fine_spacing_mm=(6.0, 6.0, 6.0)),
        reports=ReportSettings(max_tokens=256),
        optimiser=OptimiserSettings(learning_rate=1e-3, last_rate=1e-5, beta2=0.95, weight_decay=0.05, warmup_share=0.05),
        loop=LoopSettings(batch=16, precision="fp32", readers=1, save_every=50, validate_every=100),
    )


def micro() -> ColipriRecipe:
    """For tests: a step takes a fraction of a second on one thread. Nothing can be learnt from it but whether the engine works."""
    return ColipriRecipe(
        image_size="micro",
        text_size="micro",
        paired_scans_too=True,
        text_rate=0.5,
        writer=ReportGenerationSettings(layers=1, width=24, heads=2, ffn=32, tokens=48, memory_cells=8),
        masking=MaskedImageSettings(width=24, depth=1, heads=2, ffn=32),
        changes=CropChanges(shift_voxels=2),
        views=ViewSettings(global_voxels=32, local_voxels=32, fine_spacing_mm=(12.0, 12.0, 12.0)),
        reports=ReportSettings(max_tokens=64, max_sentences=12),
        optimiser=OptimiserSettings(learning_rate=1e-3, last_rate=1e-5, warmup_share=0.1),
        loop=LoopSettings(batch=4, precision="fp32", save_every=2, validate_every=4, log_every=1),
    )


PRESETS = {"paper": paper, "tiny": tiny, "micro": micro}
