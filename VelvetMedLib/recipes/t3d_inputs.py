"""What T3D-style training reads of a study: crops at full resolution, one of them disrupted, and what each view is told of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.ct.views import scaled
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import TextLayout
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B, TEXT_CLEAN
from VelvetMedLib.objectives.disruption import disrupted
from VelvetMedLib.objectives.sentence_subsets import drawn_subset, whole_report
from VelvetMedLib.objectives.text_informed_contrast import told
from VelvetMedLib.objectives.text_informed_restoration import ASKED, IMAGE_CORRUPT_A
from VelvetMedLib.recipes.crops import CropChanges, CropSettings, Start, central_start, changed_crop, cut, draw_start, tile_starts
from VelvetMedLib.recipes.inputs import Inputs, StudySource
from VelvetMedLib.recipes.layouts import lay_out
from VelvetMedLib.shapes import IntTriple

CROPS = (IMAGE_LOCAL_A, IMAGE_LOCAL_B, *(f"image.local_{letter}" for letter in "cdefgh"))


@dataclass(frozen=True, kw_only=True)
class TextPartSettings(Settings):
    """What a view is told of its report. least_share, most_share: of the sentences, drawn for each crop.

    dropout: chance that a view is told nothing, so that the encoder alone stays useful.
    """

    least_share: float = 0.5
    most_share: float = 1.0
    dropout: float = 0.2

    def __post_init__(self) -> None:
        self.require(0 < self.least_share <= 1, "least_share", "more than 0, at most 1")
        self.require(self.least_share <= self.most_share <= 1, "most_share", "least_share to 1")
        self.require(0 <= self.dropout <= 1, "dropout", "0 to 1")


@dataclass(frozen=True, kw_only=True)
class DisruptionSettings(Settings):
    """How crop A is made hard to see. block: side of a masked block in voxels; share: of the blocks that are masked.

    degrade: chance of one of noise (its standard deviation), blur (range of sigma in voxels), shuffling inside cubes of
    shuffle_block voxels, or half the resolution and back.
    """

    block: int = 16
    share: float = 0.6
    degrade: float = 0.5
    noise: float = 0.1
    blur: tuple[float, float] = (1.0, 2.0)
    shuffle_block: int = 8

    def __post_init__(self) -> None:
        for name in ("block", "shuffle_block"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(0 < self.share < 1, "share", "more than 0, less than 1")
        self.require(0 <= self.degrade <= 1, "degrade", "0 to 1")
        self.require(self.noise >= 0, "noise", "0 or more")
        self.require(0 < self.blur[0] <= self.blur[1], "blur", "two widths above 0, the smaller one first")


@dataclass(frozen=True, kw_only=True)
class T3dInputs:
    """An `InputMaker` for all keys of the recipe but the global view. crops: feature keys, crop A first.

    Every draw has a purpose of its own, so that one more crop or another setting moves none of the others.
    """

    crops: tuple[str, ...]
    corrupt: bool = False
    with_global: bool = False
    places: CropSettings = field(default_factory=CropSettings)
    changes: CropChanges = field(default_factory=CropChanges)
    text: TextPartSettings = field(default_factory=TextPartSettings)
    disruption: DisruptionSettings = field(default_factory=DisruptionSettings)

    @property
    def keys(self) -> tuple[str, ...]:
        """The feature keys that this makes."""
        return (*self.crops, TEXT_CLEAN, *([IMAGE_CORRUPT_A] if self.corrupt else []))

    def __call__(self, study: StudySource) -> Inputs:
        layout = self._layout(study)
        body, side = study.body(), study.views.local_voxels
        size = (side, side, side)
        starts = self._starts(study, body, size)
        made: dict[str, dict[str, Any]] = {"images": {}, "texts": {TEXT_CLEAN: layout}, "clean": {}, "extras": {}}
        hu = study.fine_hu()
        for view, start in zip(self.crops, starts, strict=True):
            if study.evaluation:
                image = scaled(cut(hu, start, size), study.views.hu_window)
            else:
                image = changed_crop(hu, start, size, study.views.hu_window, study.draw(view), self.changes)
            made["images"][view] = _row(image)
            made["extras"][told(view)] = self._told(study, layout, view)
        if self.with_global:
            made["extras"][told(IMAGE_GLOBAL)] = self._told(study, layout, IMAGE_GLOBAL)
        if self.corrupt:
            clean = scaled(cut(hu, starts[0], size), study.views.hu_window)
            draw = np.random.default_rng(0) if study.evaluation else study.draw(IMAGE_CORRUPT_A)
            bad = disrupted(clean, draw, **vars(self.disruption))
            made["images"][IMAGE_CORRUPT_A], made["clean"][IMAGE_CORRUPT_A] = _row(bad.voxels), _row(clean)
            made["extras"][ASKED] = _row(bad.masked & body.voxels(starts[0].tolist(), size))
        return made

    def _layout(self, study: StudySource) -> TextLayout:
        draw = None if study.evaluation else study.draw("sentences")
        return lay_out(study.tokenizer, study.sentences(), study.reports, sentence_tokens=study.tokens_for_sentences, draw=draw)

    def _starts(self, study: StudySource, body: BodyCells, size: IntTriple) -> list[Start]:
        """Where the crops lie: drawn, the later ones near the first if asked for; in evaluation the middle, then even steps."""
        if study.evaluation:
            tiles, count = tile_starts(body, size, self.places.least_body), len(self.crops) - 1
            return [central_start(body, size), *(tiles[n * len(tiles) // count] for n in range(count))]
        starts: list[Start] = []
        for view in self.crops:
            near = starts[0] if starts else None
            starts.append(draw_start(body, size, study.draw(f"place of {view}"), self.places, near=near))
        return starts

    def _told(self, study: StudySource, layout: TextLayout, view: str) -> Tensor:
        """A crop is told a part, the global view the whole; both nothing now and then. In evaluation all are told the whole."""
        if study.evaluation:
            return whole_report(layout)
        settings, least, most = self.text, self.text.least_share, self.text.most_share
        if view == IMAGE_GLOBAL:
            least = most = 1.0
        return drawn_subset(layout, study.draw(f"told {view}"), least_share=least, most_share=most, nothing=settings.dropout)


def _row(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)[None, None]
