"""A small model in double precision and eight studies with every awkward report, the same in each process of a test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from Testing.models.conftest import WORDS, build
from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.models.text import ReportTokenizer, special_tokens
from VelvetMedLib.models.tribert import TriBertConfig
from VelvetMedLib.models.velvet import GlobalFeatures, ModelConfig, VelvetModel
from VelvetMedLib.objectives.base import (
    IMAGE_GLOBAL,
    IMAGE_LOCAL_A,
    IMAGE_LOCAL_B,
    TEXT_CLEAN,
    TEXT_MASKED_MM,
    TEXT_MASKED_UNI,
    Feature,
    LocalFeatures,
    Objective,
    StudyBatch,
    TextFeatures,
)
from VelvetMedLib.objectives.corruption import corrupted_view
from VelvetMedLib.objectives.groups import close_groups, report_hash, study_key
from VelvetMedLib.objectives.local_contrast import LocalContrast, LocalContrastSettings
from VelvetMedLib.objectives.masked_language import MaskedLanguage
from VelvetMedLib.objectives.masking import MaskingRule
from VelvetMedLib.objectives.match import Match, MatchSettings
from VelvetMedLib.objectives.report_contrast import ReportContrast
from VelvetMedLib.objectives.vision_self_supervision import Restoration, Rotation, ViewContrast, ViewContrastSettings
from VelvetMedLib.reports import ontology

SIDE = 32
REPORTS: list[list[str]] = [
    ["No effusion.", "Small nodule in the left lung."],
    ["Ground-glass in the lung."],
    ["Effusion"],  # a sentence of one word
    [],  # no sentence at all
    ["No effusion.", "Small nodule in the left lung."],  # the report of study 0, of another study
    ["Nodules.", "5 mm nodule in the left lung.", "No effusion, no nodules."],
    ["Small effusion in the left lung of 5 mm."],
    ["Small nodules.", "Ground-glass nodules."],  # a second series of study 5
]
STUDIES = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s5"]


@cache
def tokenizer() -> ReportTokenizer:
    specials = special_tokens(ontology())
    return build({token: n for n, token in enumerate(specials + WORDS)}, specials)


def model(*, dropout: float = 0.0, seed: int = 0) -> VelvetModel:
    torch.manual_seed(seed)
    swin = SwinConfig(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    text = TriBertConfig(
        vocab_size=tokenizer().vocab_size, width=12, heads=3, ffn=16, text_layers=1, fusion_layers=1, positions=512, dropout=dropout
    )
    made = VelvetModel(ModelConfig(swin=swin, tribert=text, projection_dim=6)).double()
    with torch.no_grad():
        for p in made.tribert.parameters():
            if p.ndim > 1:
                p.mul_(1.5)  # further from the start, so that texts differ
    return made.train(dropout > 0)


def objectives(chunk_texts: int = 2, chunk_rows: int = 0) -> nn.ModuleDict:
    """Every objective of VELVET-Med, in double precision."""
    torch.manual_seed(1)
    width, channels, words = 12, 64, tokenizer().vocab_size
    found: dict[str, Objective] = {
        "report": ReportContrast(),
        "sentence": LocalContrast("sentence", LocalContrastSettings(agg="sum", chunk_texts=chunk_texts)),
        "word": LocalContrast("word", LocalContrastSettings(agg="mean", chunk_texts=chunk_texts)),
        "match": Match(width, MatchSettings(chunk_rows=chunk_rows)),
        "mm": MaskedLanguage(width, words, multi_modal=True),
        "text": MaskedLanguage(width, words, multi_modal=False),
        "view": ViewContrast(channels, ViewContrastSettings(width=7)),
        "rotation": Rotation(channels),
        "restoration": Restoration(channels),
    }
    made = nn.ModuleDict(found).double()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.mul_(10)
    return made


def groups(reports: Sequence[Sequence[str]] = REPORTS, studies: Sequence[str] = STUDIES) -> Tensor:
    return torch.from_numpy(
        close_groups(studies, [report_hash(f"{' '.join(r)}" or f"empty {s}") for r, s in zip(reports, studies, strict=True)])
    )


def batch(items: Sequence[int] = range(8), *, one_group: bool = False) -> StudyBatch:
    """The batch of these studies; a study's tensors do not depend on which others are with it."""
    rule = MaskingRule.of(tokenizer(), share=0.3)
    clean = tokenizer().layout([REPORTS[i] for i in items], 512)
    mm = rule.masked(clean, [np.random.default_rng([1, i]) for i in items])
    uni = rule.masked(clean, [np.random.default_rng([2, i]) for i in items])
    draws = [np.random.default_rng([3, i]) for i in items]
    crops = [draw.random((SIDE, SIDE, SIDE), dtype=np.float32) for draw in draws]
    views = {
        key: [corrupted_view(crop, crop[::-1].copy(), draw) for crop, draw in zip(crops, draws, strict=True)]
        for key in (IMAGE_LOCAL_A, IMAGE_LOCAL_B)
    }

    def stacked(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)[:, None]).double()

    return StudyBatch(
        study=torch.tensor([study_key(STUDIES[i]) for i in items]),
        group=torch.zeros(len(items), dtype=torch.long) if one_group else groups()[list(items)],
        images={IMAGE_GLOBAL: stacked(crops)} | {key: stacked([v.voxels for v in views[key]]) for key in views},
        view_spacing_mm=torch.tensor([[3.0 + i, 4.0, 5.0] for i in items]),
        texts={TEXT_CLEAN: clean, TEXT_MASKED_MM: mm[0], TEXT_MASKED_UNI: uni[0]},
        labels={TEXT_MASKED_MM: mm[1], TEXT_MASKED_UNI: uni[1]},
        clean={key: stacked([v.clean for v in views[key]]) for key in views},
        quarter_turns={key: torch.tensor([v.quarter_turns for v in views[key]]) for key in views},
    )


def random_features(made: StudyBatch, *, seed: int = 0, grid: int = 2) -> dict[str, Feature]:
    """Features of the right shapes without an encoder, with gradient; text states are those of nothing but noise."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    n = len(made)
    features: dict[str, Feature] = {
        IMAGE_GLOBAL: GlobalFeatures(
            noise(n, 16, grid * 2, grid, grid), noise(n, 32, grid, grid, grid), noise(n, 64, 2, 1, 1), torch.full((n, 3), 2.0)
        ),
        IMAGE_LOCAL_A: LocalFeatures(noise(n, 64, 1, 1, 1)),
        IMAGE_LOCAL_B: LocalFeatures(noise(n, 64, 1, 1, 1)),
    }
    for key, layout in made.texts.items():
        features[key] = TextFeatures(noise(*layout.ids.shape, 12))
    return features
