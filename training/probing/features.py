"""Study vectors of a T3D-style training: crops that cover the body, each pooled with and without text, their mean and maximum.

Without text: the mean of X, the encoder's own tokens. With text: the mean of X'' after the blocks have read the clinical question
("Is there a lung nodule?") and, where the report has one, the history it was asked with (methods.md 4.6). A sentence that
mentions any finding is never read: it may state the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from VelvetMedLib.ct.views import scaled
from VelvetMedLib.engine.data import BatchMaker
from VelvetMedLib.engine.source import EVALUATION, SourceOfOne
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.models.text_informed import cells
from VelvetMedLib.objectives.sentence_subsets import whole_report
from VelvetMedLib.recipes.crops import cut, tile_starts
from VelvetMedLib.recipes.inputs import StudySource, TitledSentences
from VelvetMedLib.recipes.t3d import T3dRecipe
from VelvetMedLib.reports import FindingRecord, is_irrelevant, suggested_questions
from VelvetMedLib.reports.parse import find_findings

POOLS = ("mean", "max")
HISTORY_WORDS = ("history", "indication", "clinical", "question", "information")
AT_ONCE = 8
"""Crops that go through the encoder together."""

Vectors = dict[str, NDArray[np.float32]]
"""How crops are pooled -> [N, C]."""


@dataclass(frozen=True)
class StudyVectors:
    """without_text: pool -> [N, C]; with_text: finding -> pool -> [N, C]; crops: how many each study had."""

    without_text: Vectors
    with_text: Mapping[str, Vectors]
    crops: list[int]


def question_of(finding: str) -> str:
    """The clinical question after a finding, the same for every study."""
    return suggested_questions([FindingRecord(name=finding, state="uncertain")])[1]


def history_of(sections: TitledSentences) -> list[str]:
    """What was known before the scan: sentences of sections on history or indication that mention no finding in any state."""
    return [
        sentence
        for title, sentences in sections
        if is_irrelevant(title) and any(word in title.lower() for word in HISTORY_WORDS)
        for sentence in sentences
        if not find_findings(sentence)
    ]


@torch.no_grad()
def study_vectors(
    model: T3dModel, recipe: T3dRecipe, maker: BatchMaker, names: Sequence[str], findings: Sequence[str], device: torch.device
) -> StudyVectors:
    """Of each study in the order of `names`, in full precision. maker: of the split the names are in."""
    model.eval()
    plain: dict[str, list[Tensor]] = {pool: [] for pool in POOLS}
    informed: dict[str, dict[str, list[Tensor]]] = {finding: {pool: [] for pool in POOLS} for finding in findings}
    counts = []
    for name in names:
        source = SourceOfOne(maker, maker.by_name[name], EVALUATION)
        tokens = _crop_tokens(model, recipe, source, device)
        counts.append(len(tokens))
        _pool(plain, tokens)
        if not findings:
            continue
        states, kept = _texts(model, source, findings, device)
        for row, finding in enumerate(findings):
            # One text for all crops of the study: its tokens are repeated, not encoded again.
            text, read = states[row : row + 1].expand(len(tokens), -1, -1), kept[row : row + 1].expand(len(tokens), -1)
            _pool(informed[finding], model.text_informed(tokens, text, read))
    return StudyVectors(_arrays(plain), {finding: _arrays(found) for finding, found in informed.items()}, counts)


def _crop_tokens(model: T3dModel, recipe: T3dRecipe, source: StudySource, device: torch.device) -> Tensor:
    """[crops, N, C] of the crops that cover the body."""
    side = source.views.local_voxels
    size, hu = (side, side, side), source.fine_hu()
    starts = tile_starts(source.body(), size, recipe.crops.least_body)
    voxels = torch.from_numpy(np.stack([scaled(cut(hu, start, size), source.views.hu_window) for start in starts])[:, None])
    return torch.cat([cells(model.swin(part.to(device))[-1]) for part in voxels.split(AT_ONCE)])


def _texts(model: T3dModel, source: StudySource, findings: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """States [findings, L, W] and which tokens may be read [findings, L]: history first, the question last."""
    history = history_of(source.sections())
    texts = [[*history, question_of(finding)] for finding in findings]
    layout = source.tokenizer.layout(texts, source.reports.max_tokens).to(device)
    return model.tribert.text(layout.ids, layout.type_ids, layout.pad_mask), whole_report(layout)


def _pool(into: dict[str, list[Tensor]], tokens: Tensor) -> None:
    pooled = tokens.float().mean(dim=1)
    into["mean"].append(pooled.mean(dim=0).cpu())
    into["max"].append(pooled.amax(dim=0).cpu())


def _arrays(found: Mapping[str, list[Tensor]]) -> Vectors:
    return {pool: torch.stack(rows).numpy() for pool, rows in found.items()}
