"""A small COLIPRI-style model in double precision and eight studies for it, the same in each process of a test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from Testing.objectives import toys
from VelvetMedLib.models.aligned_colipri import AlignedColipri
from VelvetMedLib.models.bert import BertConfig
from VelvetMedLib.models.colipri import ColipriConfig
from VelvetMedLib.models.primus import PrimusConfig
from VelvetMedLib.objectives import encoding_colipri as encoding_colipri
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN, Objective, StudyBatch
from VelvetMedLib.objectives.groups import study_key
from VelvetMedLib.objectives.masked_image import IMAGE_MAE, KEPT, PADDING, MaskedImage, MaskedImageSettings
from VelvetMedLib.objectives.opposite_sentences import ASKED, TEXT_OPPOSITE, OppositeSentences
from VelvetMedLib.objectives.report_contrast import ReportContrast, ReportContrastSettings
from VelvetMedLib.objectives.report_generation import TEXT_CAUSAL, ReportGeneration, ReportGenerationSettings
from VelvetMedLib.objectives.sigmoid_contrast import SigmoidContrast, SigmoidContrastSettings
from VelvetMedLib.recipes.colipri_inputs import causal, drawn_cells
from VelvetMedLib.recipes.layouts import lay_out
from VelvetMedLib.recipes.parts import ReportSettings

SIDE, PATCH, WIDTH, PAIRS = 16, 4, 12, 2
CELLS = (SIDE // PATCH) ** 3
OPPOSITES: list[list[tuple[str, str]]] = [
    [("No effusion.", "Effusion."), ("Small nodule.", "No nodule.")],
    [("Nodules.", "No nodules.")],
    [],
    [],
    [("No effusion.", "Effusion.")],
    [("No nodules.", "Nodules."), ("No effusion.", "Small effusion.")],
    [],
    [("Ground-glass.", "No ground-glass.")],
]


def model(*, dropout: float = 0.0, seed: int = 0) -> AlignedColipri:
    torch.manual_seed(seed)
    image = PrimusConfig(width=WIDTH, depth=2, heads=2, ffn=16, patch=PATCH, drop_path=0.0)
    text = BertConfig(vocab_size=toys.tokenizer().vocab_size, width=WIDTH, depth=1, heads=2, ffn=16, positions=64, dropout=dropout)
    made = AlignedColipri(ColipriConfig(image=image, text=text, projection_dim=WIDTH, pool_heads=2)).double()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(5)  # far from the small start, so that images and texts differ
    return made.train(dropout > 0)


def objectives() -> nn.ModuleDict:
    """Every objective of the recipe and of its options, in double precision."""
    torch.manual_seed(1)
    writer = ReportGenerationSettings(layers=1, width=WIDTH, heads=2, ffn=16, dropout=0.0, tokens=24, memory_cells=8)
    masking = MaskedImageSettings(width=12, depth=1, heads=2, ffn=16)
    found: dict[str, Objective] = {
        "infonce": ReportContrast(ReportContrastSettings(label_smoothing=0.0)),
        "sigmoid": SigmoidContrast(SigmoidContrastSettings(start_bias=-1.0)),
        "generation": ReportGeneration(toys.tokenizer().vocab_size, WIDTH, writer),
        "opposite": OppositeSentences(),
        "masked": MaskedImage(WIDTH, PATCH, masking),
    }
    made = nn.ModuleDict(found).double()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.mul_(5)
    return made


def padding_of(item: int) -> NDArray[np.bool_]:
    """Cells outside the scan; of study 6 more than half."""
    cells = np.zeros((SIDE // PATCH,) * 3, bool)
    cells[: item % 3] = True
    if item == 6:
        cells[1:] = True
    return cells.ravel()


@cache
def _voxels(item: int, purpose: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([4, item, purpose]).standard_normal((1, 1, SIDE, SIDE, SIDE)))


def batch(items: Sequence[int] = range(8), *, one_group: bool = False, scans: Sequence[int] | None = None) -> StudyBatch:
    """The pairs of these studies, and masked scans of `scans` (None: of the studies themselves)."""
    along = list(items if scans is None else scans)
    tokenizer, settings = toys.tokenizer(), ReportSettings(max_tokens=64)
    written = [causal(tokenizer, "findings", toys.REPORTS[i] or ["No."], 24) for i in items]
    rows = []
    for i in items:
        pairs = OPPOSITES[i]
        empty: list[list[str]] = [[]] * (PAIRS - len(pairs))
        rows += [*([t] for t, _ in pairs), *empty, *([o] for _, o in pairs), *empty]
    kept = [drawn_cells(padding_of(i), CELLS // 4, np.random.default_rng([5, i])) for i in along]

    def layout(texts: list[list[str]]) -> Any:
        from VelvetMedLib.objectives.base import joined_layout

        return joined_layout([lay_out(tokenizer, text, settings, sentence_tokens=False, draw=None) for text in texts])

    def padded(values: list[Tensor], filler: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=filler)

    return StudyBatch(
        study=torch.tensor([study_key(toys.STUDIES[i]) for i in items]),
        group=torch.zeros(len(items), dtype=torch.long) if one_group else toys.groups()[list(items)],
        images={
            IMAGE_GLOBAL: torch.cat([_voxels(i, 0) for i in items]),
            IMAGE_MAE: torch.cat([_voxels(i, 1) for i in along]),
        },
        texts={TEXT_CLEAN: layout([toys.REPORTS[i] for i in items]), TEXT_OPPOSITE: layout(rows)},
        labels={TEXT_CAUSAL: padded([labels for _, labels in written], -100)},
        extras={
            TEXT_CAUSAL: padded([ids for ids, _ in written], 0),
            ASKED: torch.tensor([[n < len(OPPOSITES[i]) for n in range(PAIRS)] for i in items]),
            KEPT: torch.from_numpy(np.stack(kept)),
            PADDING: torch.from_numpy(np.stack([padding_of(i) for i in along])),
        },
    )
