"""What every recipe is to the engine: settings, views, encoders, objectives and the inputs these ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from torch import nn

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.velvet import Level
from VelvetMedLib.objectives.base import Objective
from VelvetMedLib.recipes.inputs import InputMaker
from VelvetMedLib.recipes.parts import LoopSettings, OptimiserSettings, ReportSettings, ViewSettings

MakeObjective: TypeAlias = Callable[[], Objective]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What heads of objectives must fit, whichever encoders they stand on.

    vocab_size: rows of the text encoder's table. text_width: of its states. top_channels: of the coarsest image map.
    cell_channels: of the map whose cells a writer reads (`encoding.image_cells`). kept_channels, patch: of the states of cells that
    are encoded without the others, and the side of a cell in voxels; 0 where the encoder cannot leave cells out.
    """

    vocab_size: int
    text_width: int
    top_channels: int
    cell_channels: int
    kept_channels: int = 0
    patch: int = 0


@dataclass(frozen=True, kw_only=True)
class Companions:
    """Scans that go along with a step's pairs of scan and report, and need no report of their own (methods.md 3.6).

    keys: feature keys made from them; in a batch these have rows of their own. per_pair: scans for each pair of a step.
    paired_too: the scans of pairs are among those drawn from.
    """

    keys: frozenset[str]
    per_pair: float = 1.0
    paired_too: bool = True

    def of(self, batch: int) -> int:
        """Scans that go along with `batch` pairs, at least one."""
        return max(1, round(self.per_pair * batch))


class Recipe(Settings, ABC):
    """Base of the frozen dataclasses that describe one pre-training; the engine reads nothing else of them.

    The dataclass holds these fields, and its own beside them. All are plain settings, so that dotted names, the run's
    record and the comparison on resuming work without a word here.
    """

    name: str
    views: ViewSettings
    reports: ReportSettings
    optimiser: OptimiserSettings
    loop: LoopSettings

    @property
    @abstractmethod
    def key(self) -> str:
        """A short name of this setting, for records."""

    @property
    @abstractmethod
    def levels(self) -> tuple[Level, ...]:
        """Levels at which image and text end in one space; with "report" a run validates by retrieval."""

    @property
    @abstractmethod
    def vector_width(self) -> int:
        """Length of the common vectors at the report level."""

    @property
    def tokens_for_sentences(self) -> bool:
        """Whether text is laid out with [SEN_i] before each sentence, or as a plain BERT reads it."""
        return False

    @property
    def needs_reports(self) -> bool:
        """Whether any objective reads a report; else a scan without one is a study like any other."""
        return True

    @abstractmethod
    def shapes(self, vocab_size: int) -> Shapes:
        """What heads must fit on this recipe's encoders."""

    @abstractmethod
    def model(self, vocab_size: int) -> nn.Module:
        """New encoders, untrained; `objectives.encoding.encode` knows their type."""

    @abstractmethod
    def makers(self, shapes: Shapes) -> dict[str, MakeObjective]:
        """Name -> maker of a new objective, in the order in which a step runs them. Its losses are named `<name>_loss` or
        begin with `<name>_`. Built on `shapes` and not on the recipe's own encoders, so that recipes can be mixed."""

    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Loss name -> weight; 1 where a loss is not named."""

    def objectives(self, vocab_size: int) -> dict[str, Objective]:
        """Name -> objective, new and untrained."""
        return {name: make() for name, make in self.makers(self.shapes(vocab_size)).items()}

    def inputs(self) -> Mapping[str, InputMaker]:
        """Feature key -> what makes its input, for keys that the engine does not know or that this recipe makes differently."""
        return {}

    def companions(self) -> Companions | None:
        """Scans that go along with the pairs of a step; None = there are none."""
        return None

    def learning_rate_factors(self) -> Mapping[str, float]:
        """Beginning of a parameter's name ("model.text." ...) -> factor on the learning rate; the longest that fits counts."""
        return {}

    def with_(self, **changes: Any) -> Self:
        """A copy with some settings changed."""
        return replace(self, **changes)  # type: ignore[type-var]
