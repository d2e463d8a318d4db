"""The grid: rows of VELVET-Med's parts and of whole recipes, by plain settings; a cell is a row at a number of pairs and a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ablating.styles import colipri_style, t3d_style
from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.config import Settings
from VelvetMedLib.recipes.base import Recipe
from VelvetMedLib.recipes.overrides import overridden
from VelvetMedLib.recipes.velvet import VelvetRecipe

SCRATCH = "scratch"
"""The row without pre-training: segmentation from a random start, nothing else."""
ENDS = ("clip", "everything")
"""The two ends of the grid: one of them must stand clearly above chance before the rest is worth its hours."""
WHOLE = "everything"
"""The row whose computing the other recipes are given."""


def _as_set(base: VelvetRecipe) -> Recipe:
    return base


@dataclass(frozen=True)
class Row:
    """settings: dotted names and values, among the parts the same switches named in every row; make: the recipe of the preset with
    these settings. reuses: the row whose cell is this one's pre-training and first figures; nothing of it is computed again."""

    name: str
    says: str
    settings: tuple[str, ...] = ()
    make: Callable[[VelvetRecipe], Recipe] = _as_set
    reuses: str = ""


def _row(name: str, says: str, *, itc: str = "all", extra: str = "", agg: str = "mean", attention: str = "published") -> Row:
    switches = [f"{part}={str(part in extra.split()).lower()}" for part in ("mm", "vis", "txt")]
    more = ["sentence_tokens=true", "label_smoothing=0.1"]
    return Row(name, says, (f"itc={itc}", *switches, f"agg={agg}", f"local_attention={attention}", *more))


CLIP = ("itc=top", "mm=false", "vis=false", "txt=false", "sentence_tokens=false", "label_smoothing=0")

PARTS: tuple[Row, ...] = (
    Row("clip", "plain CLIP: a BERT of the same size, no sentence tokens, no smoothing", CLIP),
    _row("everything", "all levels + matching and masked language + volume + text self-supervision", extra="mm vis txt"),
    _row("report", "report-level contrast alone", itc="top"),
    _row("sentence", "report + sentence level", itc="topmid"),
    _row("word_sum", "report + word level, scores summed over words (as published)", itc="topbot", agg="sum"),
    _row("word_mean", "report + word level, scores averaged over words", itc="topbot"),
    _row("word_sharp", "report + word level, averaged, sharpened local attention", itc="topbot", attention="local_tau"),
    _row("all_levels", "report + sentence + word level"),
    _row("matching", "all levels + matching and masked language with the image", extra="mm"),
    _row("volume", "all levels + volume self-supervision", extra="vis"),
    _row("text", "all levels + text self-supervision", extra="txt"),
)
"""VELVET-Med's parts, at equal steps."""

RECIPES: tuple[Row, ...] = (
    Row("velvet", "VELVET-Med: the row `everything`", reuses=WHOLE),
    Row(
        "colipri",
        "COLIPRI style: contrast with its text practice, report generation, opposite sentences; no masked images",
        CLIP,
        colipri_style,
    ),
    Row("t3d", "T3D style: contrast of crops that read their report, visual contrast, restoration", make=t3d_style),
    Row("random", "no pre-training: the row `scratch`", reuses=SCRATCH),
)
"""Whole recipes on one encoder, at equal computing."""

BY_NAME = {row.name: row for row in (*PARTS, *RECIPES, Row(SCRATCH, "no pre-training: random start"))}


@dataclass(frozen=True)
class Cell:
    """One training and its measurements. pairs: studies that it learns from; 0 where there is no pre-training."""

    row: str
    pairs: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-{self.pairs}-s{self.seed}"

    @property
    def whole(self) -> bool:
        """Whether it stands for a whole recipe, and is measured as such."""
        return BY_NAME[self.row] in RECIPES

    @property
    def trains(self) -> bool:
        """Whether it has a pre-training of its own."""
        return self.pairs > 0 and self.reused is None

    @property
    def reused(self) -> Cell | None:
        """The cell that this one goes on from."""
        other = BY_NAME[self.row].reuses
        return replace(self, row=other) if other else None


LARGE = (
    "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right",
    "heart", "aorta", "liver", "spleen", "stomach", "kidney_left", "kidney_right",
)  # fmt: skip
"""Structures of the fine-tuning: those that a few hundred steps on two cores can begin to tell apart."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings(Settings):
    """What all cells have in common.

    steps: optimiser steps of every pre-training but those of other recipes, which compute as much in steps of their own.
    pairs: studies of the main part of the grid; fewer_pairs: of the second part, for the two ends (0 = left out). seeds: of
    the two ends at `pairs`; the other rows have one. val, test: studies held out for choosing the best weights and for
    measuring. segmentation_volumes: labelled scans of the fine-tuning (0 = no segmentation); segmentation_steps,
    segmentation_val, segmentation_test: its steps and scans; segmentation_structures: what it learns, all else is
    background. sitting_minutes: a cell that works longer is set aside, saved, and goes on when the line is called again.
    data_seed: draws the studies.
    above_chance: in a pilot the lower end of the interval of R@10 must reach this many times chance.
    """

    steps: int = 600
    pairs: int = 400
    fewer_pairs: int = 200
    seeds: int = 3
    val: int = 100
    test: int = 200
    segmentation_volumes: int = 10
    segmentation_steps: int = 400
    segmentation_val: int = 4
    segmentation_test: int = 20
    segmentation_structures: tuple[str, ...] = LARGE
    sitting_minutes: float = 40.0
    data_seed: int = 1
    above_chance: float = 1.5

    def __post_init__(self) -> None:
        for name in ("steps", "pairs", "seeds", "segmentation_steps", "segmentation_val", "segmentation_test"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("val", "test"):
            self.require(getattr(self, name) >= 2, name, "at least 2: something to retrieve among")
        self.require(0 <= self.fewer_pairs < self.pairs, "fewer_pairs", f"less than pairs ({self.pairs}); 0 = left out")
        fewest = self.fewer_pairs or self.pairs
        self.require(0 <= self.segmentation_volumes <= fewest, "segmentation_volumes", f"0 (no segmentation) to {fewest}, the fewest pairs")
        self.require(self.sitting_minutes > 0, "sitting_minutes", "more than 0")
        self.require(self.above_chance >= 1, "above_chance", "1 or more")


FREE = ("sitting_minutes", "above_chance", "seeds")
"""Settings that move no figure of a cell: they may change between two calls of the line."""


def recipe_of(row: str, base: VelvetRecipe) -> Recipe:
    """The row's recipe, from `base` with the row's own settings."""
    chosen = BY_NAME[BY_NAME[row].reuses or row]
    return chosen.make(overridden(base, chosen.settings))


def refuse_switches(changes: Sequence[str]) -> None:
    """What a row decides cannot be set for all rows: UsageError."""
    decided = {setting.split("=")[0] for row in PARTS for setting in row.settings}
    own = [change for change in changes if change.split("=")[0].strip() in decided]
    if own:
        raise UsageError(
            "This setting is what the rows of the ablation differ in.",
            found=", ".join(own),
            expected="a setting other than " + ", ".join(sorted(decided)),
            next_step="Leave it out, or train one recipe with pretrain.py.",
        )


def pilot_cells(settings: AblationSettings) -> list[Cell]:
    """The two ends with the first seed; they are cells of the grid, so that nothing is computed twice."""
    return [Cell(row, settings.pairs, 1) for row in ENDS]


def grid_cells(settings: AblationSettings) -> list[Cell]:
    """All cells in the order in which they run: the pilots, one seed of every part, more seeds and fewer pairs for the two ends, then
    one seed of every recipe."""
    cells = pilot_cells(settings)
    if settings.segmentation_volumes:
        cells += [Cell(SCRATCH, 0, seed) for seed in range(1, settings.seeds + 1)]
    cells += [Cell(row.name, settings.pairs, 1) for row in PARTS if row.name not in ENDS]
    cells += [Cell(row, settings.pairs, seed) for seed in range(2, settings.seeds + 1) for row in ENDS]
    if settings.fewer_pairs:
        cells += [Cell(row, settings.fewer_pairs, 1) for row in ENDS]
    wanted = [row for row in RECIPES if row.reuses != SCRATCH or settings.segmentation_volumes]
    return cells + [Cell(row.name, 0 if row.reuses == SCRATCH else settings.pairs, 1) for row in wanted]


def chosen_cells(settings: AblationSettings, only: Sequence[str], *, pilot: bool) -> list[Cell]:
    """The cells of the line, each after the one that it goes on from. only: rows, or whole names of cells; empty = all. Raises
    UsageError for a word that names none."""
    cells = pilot_cells(settings) if pilot else grid_cells(settings)
    unknown = [word for word in only if not any(word in (cell.row, cell.name) for cell in cells)]
    if unknown:
        raise UsageError(
            "There is no row or cell of this name.",
            found=", ".join(unknown),
            expected="one of: " + ", ".join(dict.fromkeys([*(c.row for c in cells), *(c.name for c in cells)])),
            next_step="Correct --only.",
        )
    asked = [cell for cell in cells if not only or cell.row in only or cell.name in only]
    return list(dict.fromkeys(cell for one in asked for cell in (one.reused, one) if cell is not None))
