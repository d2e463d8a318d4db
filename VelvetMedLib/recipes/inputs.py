"""The contract between a recipe and the data: what a maker of encoder inputs may ask of one study, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.recipes.parts import ReportSettings, ViewSettings

TitledSentences: TypeAlias = Sequence[tuple[str, Sequence[str]]]
"""A report as (title of the section, its sentences), in order."""
Inputs: TypeAlias = dict[str, dict[str, Any]]
"""Field of `StudyBatch` ("images", "texts", "labels", "clean", "quarter_turns", "extras") -> key -> the input of ONE study,
tensors [1, ...] or a `TextLayout` of one row. Studies are joined by the engine: further dimensions are filled up behind, ids and
masks with 0, labels with `NOT_ASKED`, extras with 0."""


class StudySource(Protocol):
    """One study in one epoch, as a maker sees it. Arrays and text may be missing on disk: what is raised then goes through."""

    @property
    def name(self) -> str:
        """The study's id."""

    @property
    def group(self) -> int:
        """Its group over the whole cohort (methods.md 1.4)."""

    @property
    def evaluation(self) -> bool:
        """In evaluation nothing is drawn: a maker takes what is central, first or whole."""

    @property
    def views(self) -> ViewSettings:
        """The recipe's views."""

    @property
    def reports(self) -> ReportSettings:
        """What the recipe reads of a report."""

    @property
    def tokenizer(self) -> ReportTokenizer:
        """The run's tokenizer."""

    @property
    def tokens_for_sentences(self) -> bool:
        """The recipe's layout of text."""

    def draw(self, purpose: str) -> np.random.Generator:
        """Keyed by (seed, epoch, study, purpose): the same numbers whichever process and batch asks."""

    def fine_hu(self) -> NDArray[np.int16]:
        """HU [X, Y, Z] of the body region at `views.fine_spacing_mm`, axes to the right, front and head. Do not write into it."""

    def body(self) -> BodyCells:
        """Where in `fine_hu` the body is."""

    def global_view(self) -> NDArray[np.float32]:
        """The body region squeezed to `views.global_voxels`, 0 to 1 of the window."""

    def sections(self) -> TitledSentences:
        """The version of the report that this epoch reads, whole: every section, sentences in order. Empty for a scan without one."""

    def sentences(self) -> list[str]:
        """Of that version, the sentences of the sections that `reports` chooses; at least one."""

    def other_fine_hu(self, draw: np.random.Generator) -> NDArray[np.int16] | None:
        """`fine_hu` of a study of another group, drawn from the whole split; None where there is none."""


InputMaker: TypeAlias = Callable[[StudySource], Inputs]
"""May be named for several keys; it is then called once for all of them."""
