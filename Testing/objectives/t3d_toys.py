"""T3D's small model in double precision with open gates, and the eight studies of `toys` as crops, the same in each process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from Testing.objectives import toys
from VelvetMedLib.models.swin import SwinConfig
from VelvetMedLib.models.t3d import T3dConfig, T3dModel
from VelvetMedLib.models.text_informed import TextInformedConfig
from VelvetMedLib.models.tribert import TriBertConfig
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B, TEXT_CLEAN, Objective, StudyBatch
from VelvetMedLib.objectives.disruption import disrupted
from VelvetMedLib.objectives.groups import study_key
from VelvetMedLib.objectives.report_contrast import ReportContrast
from VelvetMedLib.objectives.sentence_subsets import drawn_subset, whole_report
from VelvetMedLib.objectives.text_informed_contrast import (
    TextInformedContrast,
    TextInformedContrastSettings,
    VisualOnlyContrast,
    told,
)
from VelvetMedLib.objectives.text_informed_restoration import ASKED, IMAGE_CORRUPT_A, TextInformedRestoration
from VelvetMedLib.objectives.view_clusters import ViewClusters, ViewClustersSettings

SHAPE = (64, 32, 32)
"""Two cells of the top map: the mean over tokens is more than one of them."""
MANY_VIEWS = (IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B)


def model(*, dropout: float = 0.0, seed: int = 0, gate: float = 0.8) -> T3dModel:
    torch.manual_seed(seed)
    swin = SwinConfig(embed_dim=2, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    text = TriBertConfig(
        vocab_size=toys.tokenizer().vocab_size, width=12, heads=3, ffn=16, text_layers=1, fusion_layers=0, positions=512, dropout=dropout
    )
    informed = TextInformedConfig(channels=32, text_width=12, heads=2, ffn_ratio=1, projection_dim=6)
    made = T3dModel(T3dConfig(swin=swin, tribert=text, text_informed=informed, aligned_dim=6)).double()
    with torch.no_grad():
        made.text_informed.null_token.mul_(50)
        for p in [*made.tribert.parameters(), *made.text_informed.parameters()]:
            if p.ndim > 1:
                p.mul_(4)
        for p in (made.text_informed.cross_gate, made.text_informed.ffn_gate):
            p.fill_(gate)
    return made.train(dropout > 0)


def objectives(chunk_anchors: int = 2, most_negatives: int = 3) -> nn.ModuleDict:
    """Every objective of T3D-style training, option `tma` included, in double precision."""
    torch.manual_seed(1)
    settings = TextInformedContrastSettings(most_negatives=most_negatives, chunk_anchors=chunk_anchors)
    found: dict[str, Objective] = {
        "contrast": TextInformedContrast(settings, views=MANY_VIEWS),
        "visual": VisualOnlyContrast(settings),
        "restoration": TextInformedRestoration(32),
        "aligned": ReportContrast(),
        "clusters": ViewClusters(6, MANY_VIEWS, ViewClustersSettings(prototypes=5)),
    }
    return nn.ModuleDict(found).double()


def batch(items: Sequence[int] = range(8), *, one_group: bool = False) -> StudyBatch:
    """The batch of these studies; a study's tensors do not depend on which others are with it. View B of study 2 reads nothing."""
    layouts = [toys.tokenizer().layout([toys.REPORTS[i]], 512) for i in items]
    clean = toys.tokenizer().layout([toys.REPORTS[i] for i in items], 512)
    draws = [np.random.default_rng([3, i]) for i in items]
    crops = {view: [draw.random(SHAPE, dtype=np.float32) for draw in draws] for view in MANY_VIEWS}
    corrupt = [disrupted(crop, draw) for crop, draw in zip(crops[IMAGE_LOCAL_A], draws, strict=True)]
    body = [draw.random(SHAPE) < 0.2 + 0.1 * i for i, draw in zip(items, draws, strict=True)]

    def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)[:, None]).double()

    extras: dict[str, Tensor] = {told(IMAGE_GLOBAL): whole_report(clean)}
    for n, view in enumerate((IMAGE_LOCAL_A, IMAGE_LOCAL_B)):
        kept = torch.zeros(clean.ids.shape, dtype=torch.bool)
        for row, (i, layout) in enumerate(zip(items, layouts, strict=True)):
            if (i, view) != (2, IMAGE_LOCAL_B):
                kept[row, : layout.ids.shape[1]] = drawn_subset(layout, np.random.default_rng([5 + n, i]))[0]
        extras[told(view)] = kept
    extras[ASKED] = stacked([d.masked & b for d, b in zip(corrupt, body, strict=True)]).bool()
    return StudyBatch(
        study=torch.tensor([study_key(toys.STUDIES[i]) for i in items]),
        group=torch.zeros(len(items), dtype=torch.long) if one_group else toys.groups()[list(items)],
        images={view: stacked(crops[view]) for view in MANY_VIEWS} | {IMAGE_CORRUPT_A: stacked([d.voxels for d in corrupt])},
        view_spacing_mm=torch.tensor([[3.0 + i, 4.0, 5.0] for i in items]),
        texts={TEXT_CLEAN: clean},
        clean={IMAGE_CORRUPT_A: stacked(crops[IMAGE_LOCAL_A])},
        extras=extras,
    )
