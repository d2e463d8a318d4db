"""A made-up study for dry runs: noise and nonsense words in the sizes of a recipe, so that its own makers can be timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.engine.data import joined_studies
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.models.text import ReportTokenizer, special_tokens
from VelvetMedLib.objectives.base import StudyBatch
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.inputs import InputMaker, TitledSentences
from VelvetMedLib.recipes.parts import ReportSettings, ViewSettings
from VelvetMedLib.reports import ontology

SENTENCES, WORDS = 15, 12
"""Of a made-up report; together with [SEN_i] about 200 tokens."""


class MadeUpStudy:
    """Implements `recipes.inputs.StudySource`."""

    def __init__(self, recipe: Recipe, vocab_size: int, number: int) -> None:
        self.name, self.group, self.evaluation = f"made up {number}", number, False
        self.views: ViewSettings = recipe.views
        self.reports: ReportSettings = recipe.reports
        self.tokens_for_sentences = recipe.tokens_for_sentences
        self.tokenizer = nonsense_tokenizer(vocab_size)
        self._words = ["small", "nodule", "in", "the", "left", "lung", *(f"w{n}" for n in range(20))]

    def draw(self, purpose: str) -> np.random.Generator:
        return generator(0, self.name, purpose)

    def fine_hu(self) -> NDArray[np.int16]:
        """A body that fills a crop."""
        side = self.views.local_voxels
        return self.draw("voxels").integers(-1000, 400, (side, side, side), dtype=np.int16)

    def body(self) -> BodyCells:
        return BodyCells(np.ones((1, 1, 1), bool), (self.views.local_voxels,) * 3, (self.views.local_voxels,) * 3)

    def global_view(self) -> NDArray[np.float32]:
        side = self.views.global_voxels
        return self.draw("global view").random((side, side, side), dtype=np.float32)

    def sentences(self) -> list[str]:
        draw = self.draw("words")
        named = ["There is a small lung nodule.", "No pleural effusion."]
        return [*named, *(" ".join(draw.choice(self._words, WORDS)) + "." for _ in range(SENTENCES - len(named)))]

    def sections(self) -> TitledSentences:
        listed = self.sentences()
        return [("Findings", listed[:-2]), ("Impression", listed[-2:])]

    def other_fine_hu(self, draw: np.random.Generator) -> NDArray[np.int16] | None:
        return self.fine_hu()


def add_inputs(batch: StudyBatch, makers: Sequence[InputMaker], sources: Sequence[MadeUpStudy]) -> None:
    """Put what the makers give for the studies into the batch."""
    rows = []
    for source in sources:
        one = StudyBatch(study=batch.study[:1], group=batch.group[:1])
        for make in makers:
            for field, values in make(source).items():
                getattr(one, field).update(values)
        rows.append(one)
    made = joined_studies(rows)
    for field in ("images", "texts", "labels", "clean", "quarter_turns", "extras"):
        getattr(batch, field).update(getattr(made, field))


@cache
def nonsense_tokenizer(vocab_size: int) -> ReportTokenizer:
    """A tokenizer with as many rows as the recipe's own will have."""
    specials = special_tokens(ontology())
    filler = [f"filler{n}" for n in range(max(0, vocab_size - len(specials) - 27))]
    words = ["small", "nodule", "in", "the", "left", "lung", *(f"w{n}" for n in range(20)), "."]
    made: Any = Tokenizer(WordPiece({token: n for n, token in enumerate([*specials, *words, *filler])}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(specials)
    return ReportTokenizer(json.dumps(json.loads(made.to_str())))
