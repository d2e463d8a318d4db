"""What all cells of a grid are made with, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretraining.plan import vocabulary

from ablating.computing import Work, equal_work
from ablating.grid import WHOLE, AblationSettings, Cell, recipe_of
from VelvetMedLib.files import read_json
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.velvet import VelvetRecipe

RESULT = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """base: the preset with the changes of the line, whose encoder, views and loop every row has; manifests: by number of pairs;
    landed: cells that were finished elsewhere, by name."""

    base: VelvetRecipe
    settings: AblationSettings
    cohort: Path
    out: Path
    manifests: dict[int, Path]
    source: Path
    workers: int = 1
    landed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def recipe(self, cell: Cell) -> Recipe:
        return recipe_of(cell.row, self.base)

    @property
    def vocab_size(self) -> int:
        """About as many as the cells' own tokenizers have; for what is timed or counted on made-up studies."""
        return vocabulary(self.base, None)

    def work(self, cell: Cell) -> Work:
        """Of the cell's pre-training: equal steps among the parts; a whole recipe computes what `WHOLE` computes."""
        found = self.result(cell)
        if found is not None:
            return Work(found["steps"], found.get("step_flops", 0))
        if not (cell.whole and cell.pairs):
            return Work(self.settings.steps)
        return equal_work(self.recipe(cell), recipe_of(WHOLE, self.base), self.settings.steps, self.vocab_size)

    def result(self, cell: Cell) -> Mapping[str, Any] | None:
        """The cell's JSON; None where it is not finished."""
        return read_json(self.folder(cell) / RESULT) or self.landed.get(cell.name)
