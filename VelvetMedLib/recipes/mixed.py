"""Recipes mixed: one recipe's encoders, views and objectives, and some objectives of another beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.velvet import Level
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B, TEXT_CLEAN, TEXT_MASKED_MM, TEXT_MASKED_UNI
from VelvetMedLib.recipes.base import Companions, MakeObjective, Recipe, Shapes
from VelvetMedLib.recipes.inputs import InputMaker
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings, ReportSettings, ViewSettings

SHARED_KEYS = frozenset({IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B, TEXT_CLEAN, TEXT_MASKED_MM, TEXT_MASKED_UNI})
"""Features that recipes have in common: a mixed recipe makes them as its base does."""


@dataclass(frozen=True, kw_only=True)
class MixedRecipe(Recipe):
    """base: gives encoders, views, text, optimiser and loop. other: gives the objectives named in `take`, with their weights and
    the inputs that only they read. shared: of the inputs that both make, those that are made as `other` makes them. By dotted
    name both can be changed: `base.itc=top`, `other.writer.layers=2`."""

    base: Recipe
    other: Recipe
    take: tuple[str, ...]
    shared: tuple[str, ...] = ()
    name: str = "mixed"

    def __post_init__(self) -> None:
        shapes = self.base.shapes(vocab_size=1)
        there, own = self.other.makers(shapes), self.base.makers(shapes)
        made = self.other.inputs()
        self.require(set(self.shared) <= set(made), "shared", "keys that the other recipe makes: " + ", ".join(made))
        unknown = [name for name in self.take if name not in there]
        twice = [name for name in self.take if name in own]
        if unknown or twice or not self.take:
            raise UsageError(
                "These recipes cannot be mixed so.",
                found="objectives: " + (", ".join(unknown or twice) or "none"),
                expected="one or more of: " + ", ".join(name for name in there if name not in own),
                next_step="Take an objective that the other recipe has and the base has not.",
            )

    @property
    def views(self) -> ViewSettings:  # type: ignore[override]
        return self.base.views

    @property
    def reports(self) -> ReportSettings:  # type: ignore[override]
        return self.base.reports

    @property
    def optimiser(self) -> OptimiserSettings:  # type: ignore[override]
        return self.base.optimiser

    @property
    def loop(self) -> LoopSettings:  # type: ignore[override]
        return self.base.loop

    @property
    def key(self) -> str:
        return f"{self.base.name}_{self.base.key}_with_{self.other.name}_{'_'.join(self.take)}"

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.base.levels

    @property
    def vector_width(self) -> int:
        return self.base.vector_width

    @property
    def tokens_for_sentences(self) -> bool:
        return self.base.tokens_for_sentences

    def shapes(self, vocab_size: int) -> Shapes:
        return self.base.shapes(vocab_size)

    def model(self, vocab_size: int) -> nn.Module:
        return self.base.model(vocab_size)

    def makers(self, shapes: Shapes) -> dict[str, MakeObjective]:
        there = self.other.makers(shapes)
        return self.base.makers(shapes) | {name: there[name] for name in self.take}

    def loss_weights(self) -> dict[str, float]:
        def taken(loss: str) -> bool:
            return any(loss == f"{name}_loss" or loss.startswith(f"{name}_") for name in self.take)

        return {loss: weight for loss, weight in self.other.loss_weights().items() if taken(loss)} | self.base.loss_weights()

    def inputs(self) -> Mapping[str, InputMaker]:
        theirs = self.other.inputs()
        beside = {key: maker for key, maker in theirs.items() if key not in SHARED_KEYS}
        return beside | dict(self.base.inputs()) | {key: theirs[key] for key in self.shared}

    def companions(self) -> Companions | None:
        along = self.other.companions()
        read = {key for make in (self.other.makers(self.shapes(1))[name] for name in self.take) for key in _keys(make)}
        return self.base.companions() or (along if along is not None and along.keys & read else None)

    def learning_rate_factors(self) -> Mapping[str, float]:
        return self.base.learning_rate_factors()


def _keys(make: MakeObjective) -> frozenset[str]:
    made = make()
    return made.needs | made.reads


def mixed(base: Recipe, other: Recipe, *take: str) -> MixedRecipe:
    """`mixed(velvet.tiny(), colipri.tiny(), "report_generation")`: VELVET's hierarchy, and a writer that reads its image cells."""
    return MixedRecipe(base=base, other=other, take=take)
