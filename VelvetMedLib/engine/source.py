"""One study of the prepared store in one epoch, as the makers of a recipe see it (`recipes.inputs.StudySource`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.engine.body import body_of
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.engine.store import FULL_SCALE, StoredStudy
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.recipes.inputs import TitledSentences
from VelvetMedLib.recipes.parts import ReportSettings, ViewSettings

if TYPE_CHECKING:
    from VelvetMedLib.engine.data import BatchMaker

EVALUATION = -1
"""In place of an epoch: first version of the report, first sentences, nothing drawn."""


@dataclass(frozen=True)
class SourceOfOne:
    """`recipes.inputs.StudySource` over a batch maker."""

    maker: BatchMaker
    entry: StoredStudy
    epoch: int

    @property
    def name(self) -> str:
        return self.entry.study.study

    @property
    def group(self) -> int:
        return self.maker.groups[self.name]

    @property
    def evaluation(self) -> bool:
        return self.epoch == EVALUATION

    @property
    def views(self) -> ViewSettings:
        return self.maker.views

    @property
    def reports(self) -> ReportSettings:
        return self.maker.reports

    @property
    def tokenizer(self) -> ReportTokenizer:
        return self.maker.tokenizer

    @property
    def tokens_for_sentences(self) -> bool:
        return self.maker.sentence_tokens

    def draw(self, purpose: str) -> np.random.Generator:
        return generator(self.maker.seed, self.epoch, self.name, purpose)

    def fine_hu(self) -> NDArray[np.int16]:
        return self.entry.fine()

    def body(self) -> BodyCells:
        return body_of(self.entry, self.views.fine_spacing_mm)

    def global_view(self) -> NDArray[np.float32]:
        return self.entry.global_view().astype(np.float32) / np.float32(FULL_SCALE)

    def sections(self) -> TitledSentences:
        report = self.maker.version(self.name, self.epoch) if self.entry.study.reports else ()
        return [(section.title, section.sentences) for section in report]

    def sentences(self) -> list[str]:
        return self.maker.sentences(self.name, self.epoch)

    def other_fine_hu(self, draw: np.random.Generator) -> NDArray[np.int16] | None:
        other = self.maker.other(self.name, draw)
        return None if other is None else other.fine()
