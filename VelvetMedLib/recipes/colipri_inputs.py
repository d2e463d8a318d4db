"""What COLIPRI-style training reads of a study: one crop, varied report text, the report to write, opposite sentences, masked cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from VelvetMedLib.ct.views import scaled
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, NOT_ASKED, TEXT_CLEAN, joined_layout
from VelvetMedLib.objectives.masked_image import IMAGE_MAE, KEPT, PADDING, MaskedImageSettings
from VelvetMedLib.objectives.opposite_sentences import ASKED, TEXT_OPPOSITE
from VelvetMedLib.objectives.report_generation import TEXT_CAUSAL
from VelvetMedLib.recipes.inputs import Inputs, StudySource
from VelvetMedLib.recipes.layouts import lay_out
from VelvetMedLib.reports.opposites import opposites, statements
from VelvetMedLib.reports.practice import BOTH, chosen_part, parts, short_prompt, shuffled

OUTSIDE_HU = -1024


@dataclass(frozen=True, kw_only=True)
class CropChanges(Settings):
    """How a crop is varied; never mirrored, since reports name sides. All numbers are ours (methods.md 3.6).

    shift_voxels: largest shift from the middle along each axis. scale: largest relative change of size. hu: largest shift of all
    intensities. noise_hu: largest standard deviation of added noise.
    """

    shift_voxels: int = 8
    scale: float = 0.1
    hu: float = 20.0
    noise_hu: float = 10.0

    def __post_init__(self) -> None:
        for name in ("shift_voxels", "hu", "noise_hu"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(0 <= self.scale < 0.5, "scale", "0 or more, less than 0.5")


@dataclass(frozen=True, kw_only=True)
class PracticeSettings(Settings):
    """How the contrastive text is varied; all numbers are ours (methods.md 3.6).

    section_shares: of findings, impression and both; shuffle: chance that the sentences change their order; short: chance that one to
    three sentences or a short phrase stand for the report. opposite_pairs: pairs of opposite sentences per study at most.
    """

    section_shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    shuffle: float = 0.5
    short: float = 0.3
    opposite_pairs: int = 4

    def __post_init__(self) -> None:
        positive = all(share >= 0 for share in self.section_shares) and sum(self.section_shares) > 0
        self.require(positive, "section_shares", "three shares of 0 or more, not all 0")
        for name in ("shuffle", "short"):
            self.require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.require(self.opposite_pairs >= 1, "opposite_pairs", "at least 1")


@dataclass(frozen=True)
class Crop:
    """voxels: float32 [X, Y, Z] in -1..1 of the window. inside: per axis, which cells of the grid touch the scan."""

    voxels: NDArray[np.float32]
    inside: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]

    def padding(self) -> NDArray[np.bool_]:
        """Cells that lie wholly outside the scan, row-major."""
        x, y, z = self.inside
        return ~(x[:, None, None] & y[None, :, None] & z[None, None, :]).ravel()


def cut(study: StudySource, purpose: str, changes: CropChanges, patch: int) -> Crop:
    """The middle of the body region, shifted and scaled a little; what lies outside the scan is air. In evaluation: the middle."""
    side = study.views.local_voxels
    hu = study.fine_hu()
    draw = None if study.evaluation else study.draw(purpose)
    shift, size = np.zeros(3, np.int64), np.full(3, side)
    if draw is not None:
        shift = draw.integers(-changes.shift_voxels, changes.shift_voxels + 1, 3)
        size[:] = max(2, round(side * (1 + draw.uniform(-changes.scale, changes.scale))))
    start = (np.array(hu.shape) - size) // 2 + shift
    box = np.full(tuple(size), OUTSIDE_HU, np.int16)
    low, high = np.maximum(start, 0), np.minimum(start + size, hu.shape)
    if np.all(high > low):
        box[_slices(low - start, high - start)] = hu[_slices(low, high)]
    voxels = box.astype(np.float32)
    if draw is not None:
        if size[0] != side:
            voxels = functional.interpolate(torch.from_numpy(voxels)[None, None], (side,) * 3, mode="trilinear", align_corners=False)[
                0, 0
            ].numpy()
        voxels += draw.uniform(-changes.hu, changes.hu)
        voxels += draw.uniform(0, changes.noise_hu) * draw.standard_normal(voxels.shape, np.float32)
    edges = np.arange(side // patch + 1) * patch / side  # of cells, as shares of the box
    inside = tuple(
        (edges[1:] * n > first) & (edges[:-1] * n < last) for n, first, last in zip(size, low - start, high - start, strict=True)
    )
    return Crop(2 * scaled(voxels, study.views.hu_window) - 1, (inside[0], inside[1], inside[2]))


def _slices(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def drawn_cells(padding: NDArray[np.bool_], count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """`count` cells, uniform over those that are not padding, in the order of their numbers; padding only where the others are too few."""
    noise = draw.random(len(padding))
    return np.sort(np.lexsort((noise, padding))[:count])


@dataclass(frozen=True)
class ColipriInputs:
    """Makers for the feature keys and extras of the COLIPRI-style objectives. patch: side of a cell in voxels."""

    changes: CropChanges
    practice: PracticeSettings
    masked: MaskedImageSettings
    tokens: int
    patch: int

    def image(self, study: StudySource) -> Inputs:
        """The scan of a pair."""
        return {"images": {IMAGE_GLOBAL: _tensor(cut(study, "crop", self.changes, self.patch).voxels)}}

    def masked_image(self, study: StudySource) -> Inputs:
        """A scan of which some cells are encoded; with or without a report."""
        crop = cut(study, "crop of cells", self.changes, self.patch)
        padding = crop.padding()
        kept = drawn_cells(padding, self.masked.kept_of(len(padding)), study.draw("kept cells"))
        extras = {KEPT: torch.from_numpy(kept)[None], PADDING: torch.from_numpy(padding)[None]}
        return {"images": {IMAGE_MAE: _tensor(crop.voxels)}, "extras": extras}

    def contrastive_text(self, study: StudySource) -> Inputs:
        """Some sections, some order, sometimes little of it. In evaluation the findings as they are."""
        draw = None if study.evaluation else study.draw("text of the contrast")
        sections = study.sections()
        sentences = self._sentences(study, draw)
        if draw is not None:
            short, mixed = draw.random() < self.practice.short, draw.random() < self.practice.shuffle
            if short:
                sentences = short_prompt(sections, sentences, draw)
            elif mixed:
                sentences = shuffled(sentences, draw)
        return {"texts": {TEXT_CLEAN: self._laid_out(study, sentences, draw)}}

    def causal_text(self, study: StudySource) -> Inputs:
        """The report to write, its sentences in order: `causal`."""
        draw = None if study.evaluation else study.draw("text to write")
        found = parts(study.sections())
        part = chosen_part(found, self.practice.section_shares, draw) if found else BOTH
        sentences = found.get(part) or study.sentences()
        ids, labels = causal(study.tokenizer, part, sentences, self.tokens)
        return {"extras": {TEXT_CAUSAL: ids[None]}, "labels": {TEXT_CAUSAL: labels[None]}}

    def opposite_texts(self, study: StudySource) -> Inputs:
        """Up to `opposite_pairs` statements of the report, each with its opposite."""
        most = self.practice.opposite_pairs
        draw = study.draw("opposite sentences")
        stated = statements(study.sections())
        chosen = [stated[int(n)] for n in draw.permutation(len(stated))[:most]]
        pairs = [opposites(statement, draw) for statement in chosen]
        true, opposite = [pair.true for pair in pairs], [pair.opposite for pair in pairs]
        empty = [""] * (most - len(pairs))
        rows = [self._laid_out(study, [text] if text else [], None) for text in (*true, *empty, *opposite, *empty)]
        asked = torch.arange(most)[None] < len(pairs)
        return {"texts": {TEXT_OPPOSITE: joined_layout(rows)}, "extras": {ASKED: asked}}

    def _sentences(self, study: StudySource, draw: np.random.Generator | None) -> list[str]:
        """Of the sections that the recipe's settings name, or else of a drawn part of the report."""
        if study.reports.report_fields:
            return study.sentences()
        found = parts(study.sections())
        return found[chosen_part(found, self.practice.section_shares, draw)] if found else study.sentences()

    def _laid_out(self, study: StudySource, sentences: list[str], draw: np.random.Generator | None) -> TextLayout:
        return lay_out(study.tokenizer, sentences, study.reports, sentence_tokens=study.tokens_for_sentences, draw=draw)


def causal(tokenizer: ReportTokenizer, part: str, sentences: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
    """(ids [L], labels [L]): [REPORT] <part> : text [EOS]; a label is the id that must follow its place, asked for from the text on.

    The name of the part stands in front in plain words (ours: no new special tokens, so every tokenizer will do). A text
    that does not fit ends with its last whole sentence and asks for no end.
    """
    front = beginning(tokenizer, part)
    ids, whole = list(front), True
    for sentence in sentences:
        pieces = tokenizer.encode(sentence)
        if len(ids) + len(pieces) + 1 > most:
            whole = False
            if len(ids) == len(front):
                ids += pieces[: most - len(ids)]
            break
        ids += pieces
    if whole:
        ids.append(tokenizer.id("[EOS]"))
    after = [*ids[1:], NOT_ASKED]
    labels = [n if place >= len(front) - 1 else NOT_ASKED for place, n in enumerate(after)]
    return torch.tensor(ids), torch.tensor(labels)


def beginning(tokenizer: ReportTokenizer, part: str) -> list[int]:
    """Ids that a report of this part starts with."""
    words = "findings and impression" if part == BOTH else part
    return [tokenizer.id("[REPORT]"), *tokenizer.encode(f"{words} :")]


def _tensor(voxels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None, None]
