"""What the reader reads of encoded cases, batched; and what the finished model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo.encodings import EncodedCase
from VelvetMedLib.models.velvet import VelvetModel


def stack(cases: Sequence[EncodedCase], name: str) -> Tensor:
    """One array of each case, as float32 [B, ...]."""
    return torch.from_numpy(np.stack([getattr(case, name) for case in cases])).float()


def lesion_batch(cases: Sequence[EncodedCase], width: int) -> tuple[Tensor, Tensor]:
    """Lesion tokens padded to the longest of the batch, and their mask."""
    longest = max(1, max(len(case.lesions) for case in cases))
    tokens, mask = torch.zeros(len(cases), longest, width), torch.zeros(len(cases), longest, dtype=torch.bool)
    for row, case in enumerate(cases):
        tokens[row, : len(case.lesions)] = torch.from_numpy(case.lesions)
        mask[row, : len(case.lesions)] = True
    return tokens, mask


def reader_input(cases: Sequence[EncodedCase], lesion_features: int) -> tuple[Tensor, ...]:
    """The six arguments of `StudyReader.forward` for a batch."""
    regions_valid = torch.from_numpy(np.stack([case.region_mask for case in cases]))
    lesions, lesion_mask = lesion_batch(cases, lesion_features)
    return stack(cases, "top"), stack(cases, "view_spacing_mm"), stack(cases, "regions"), regions_valid, lesions, lesion_mask


@torch.no_grad()
def keep_top_maps(model: VelvetModel, cases: Sequence[EncodedCase], *, batch: int = 16) -> None:
    """Encode every global view once with the finished image encoder; `case.top` is what the reader reads."""
    model.swin.eval()
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = model.encode_global(stack(part, "global_view")[:, None], stack(part, "view_spacing_mm"))
        for case, top in zip(part, maps.top.float().numpy(), strict=True):
            case.top = top


def inverse_spread(value: NDArray[np.float64]) -> Tensor:
    """1 / value. What never varies carries nothing; its scale must not blow up rounding noise: 0."""
    return torch.from_numpy(np.where(value > 1e-4, 1 / np.maximum(value, 1e-4), 0.0)).float()


def fit_standardisation(model: VelvetModel, cases: Sequence[EncodedCase]) -> None:
    """Mean and inverse spread of the raw tokens over the training cases, into the reader's buffers."""
    assert model.reader is not None
    regions = np.stack([case.regions for case in cases]).astype(np.float64)
    mask = np.stack([case.region_mask for case in cases])[..., None]
    count = np.maximum(mask.sum(0), 1)
    mean = (regions * mask).sum(0) / count
    spread = np.sqrt(((regions - mean) ** 2 * mask).sum(0) / count)
    lesions = np.concatenate([case.lesions for case in cases if len(case.lesions)]).astype(np.float64)

    model.reader.region_mean.copy_(torch.from_numpy(mean).float())
    model.reader.region_scale.copy_(inverse_spread(spread))
    model.reader.lesion_mean.copy_(torch.from_numpy(lesions.mean(0)).float())
    model.reader.lesion_scale.copy_(inverse_spread(lesions.std(0)))


@dataclass(frozen=True)
class Reading:
    """Outputs of the finished model on kept tokens. finding_logits [N, F]; study [N, D]; verified: of each case's parts, [parts, kinds]."""

    finding_logits: NDArray[np.float64]
    study: NDArray[np.float32]
    verified: tuple[NDArray[np.float32], ...]


@torch.no_grad()
def read_all(model: VelvetModel, cases: Sequence[EncodedCase], *, batch: int = 64) -> Reading:
    assert model.reader is not None and model.findings is not None and model.verifier is not None
    model.eval()
    logits, study = [], []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        read = model.reader(*reader_input(part, model.reader.config.lesion_features))
        logits.append(model.findings(read.memory, read.memory_mask).double().numpy())
        study.append(read.study.float().numpy())
    verified = tuple(model.verifier(torch.from_numpy(case.lesions)).numpy() for case in cases)
    return Reading(np.concatenate(logits), np.concatenate(study), verified)
