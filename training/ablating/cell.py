"""One cell: pre-train, measure, fine-tune on a few labelled scans; it goes on where it was stopped, and is written whole or not at all."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from finetuning.encoders import SCRATCH as RANDOM_START
from finetuning.encoders import encoder_start
from finetuning.running import finetune_segmentation
from finetuning.settings import SegmentationSettings
from finetuning.settings import tiny as tiny_segmentation
from finetuning.tasks import CaseFiles, Label, SegmentationTask
from pretraining.run import Options, open_data, pretrain

from ablating.grid import SCRATCH, AblationSettings, Cell, recipe_of
from ablating.measure import measured, trained
from VelvetMedLib.engine.files import read_json, write_json
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.runfolder import code_state
from VelvetMedLib.evaluation.segmentation import as_records, mean_dice, summarise
from VelvetMedLib.recipes.velvet import VelvetRecipe
from VelvetMedLib.reports import ontology

RESULT, SPENT = "cell.json", "spent.json"
DONE, SET_ASIDE, STOPPED = "done", "set aside", "stopped"
WRITTEN_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells are made with. base: the preset with the changes of the line; manifests: by number of pairs; landed: cells
    that were finished elsewhere, by name."""

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

    def recipe(self, cell: Cell) -> VelvetRecipe:
        return recipe_of(cell.row, self.base)

    def result(self, cell: Cell) -> Mapping[str, Any] | None:
        """The cell's JSON; None where it is not finished."""
        return read_json(self.folder(cell) / RESULT) or self.landed.get(cell.name)


class Watch:
    """Seconds that a cell has taken by stage, over all its sittings; written every few seconds, so that a kill loses little."""

    def __init__(self, path: Path, limit_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """limit_s: of one sitting; beyond it `tick` asks the running training for an orderly stop, as SIGTERM does."""
        self.path, self.limit_s, self.clock = path, limit_s, clock
        self.spent: dict[str, float] = {k: float(v) for k, v in (read_json(path) or {}).items()}
        self.over = False
        self._began = self._last = self._written = clock()
        self._stage = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage, self._last = name, self.clock()
        try:
            yield
        finally:
            self._add(write=True)

    def tick(self, _step: int = 0) -> None:
        """After every step."""
        self._add(write=self.clock() - self._written >= WRITTEN_EVERY_S)
        if self.clock() - self._began > self.limit_s and not self.over:
            self.over = True
            signal.raise_signal(signal.SIGTERM)

    def _add(self, *, write: bool) -> None:
        now = self.clock()
        self.spent[self._stage] = self.spent.get(self._stage, 0.0) + now - self._last
        self._last = now
        if write:
            write_json(self.path, self.spent)
            self._written = now


def run_cell(cell: Cell, bench: Bench, processes: Processes, say: Callable[[str], None]) -> str:
    """DONE, SET_ASIDE when its sitting was over, STOPPED on request. A finished cell is left as it is."""
    if bench.result(cell) is not None:
        return DONE
    folder = bench.folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(folder / SPENT, 60 * bench.settings.sitting_minutes)
    facts: dict[str, Any] = {"cell": cell.name, "row": cell.row, "pairs": cell.pairs, "seed": cell.seed, "steps": bench.settings.steps}
    figures: dict[str, Any] = {}
    if cell.row != SCRATCH:
        recipe = bench.recipe(cell)
        options = Options(
            run=folder / "pretraining",
            steps=bench.settings.steps,
            seed=cell.seed,
            manifest=bench.manifests[cell.pairs],
            store=bench.out / "prepared",
            workers=bench.workers,
            bundle=False,
        )
        with watch.stage("pretraining"):
            code = pretrain(recipe, options, processes, source=bench.source, after_step=watch.tick)
        if code:
            return SET_ASIDE if watch.over else STOPPED
        facts |= {"key": recipe.key, "recipe": recipe.to_dict()}
        kept = read_json(folder / "measured.json")
        if kept is None:
            with watch.stage("measuring"):
                data = open_data(recipe, options, processes)
                learner, best_step = trained(recipe, data.tokenizer.vocab_size, options.run)
                kept = {"best_step": best_step, "figures": measured(learner, data, bench.cohort, processes, cell.seed)}
                write_json(folder / "measured.json", kept)
        facts["best_step"] = kept["best_step"]
        figures |= kept["figures"]
    if bench.settings.segmentation_volumes:
        with watch.stage("segmentation"):
            outcome = finetune_segmentation(
                segmentation_task(bench),
                encoder_start(str(folder / "pretraining") if cell.row != SCRATCH else RANDOM_START, scratch=bench.base.swin()),
                segmentation_settings(bench.base, bench.settings),
                run=folder / "segmentation",
                steps=bench.settings.segmentation_steps,
                seed=cell.seed,
                store=bench.out / "prepared_labels",
                processes=bench.workers,
                device=str(processes.device),
                say=say,
                after_step=watch.tick,
            )
        if outcome.code:
            return SET_ASIDE if watch.over else STOPPED
        lines = summarise(outcome.scores)
        scans = len({score.case for score in outcome.scores})
        figures["segmentation"] = {"dice": mean_dice(outcome.scores), "scans": scans, "structures": as_records(lines)}
    facts |= {
        "figures": figures,
        "seconds": {name: round(value, 1) for name, value in watch.spent.items()},
        "threads": torch.get_num_threads(),
        "commits": commits_of(folder, bench.source),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(folder / RESULT, facts)
    return DONE


def commits_of(folder: Path, source: Path) -> list[str]:
    """Code states that the cell was computed with, oldest first; "+n" where n tracked files had been changed."""
    states = []
    for path in sorted(folder.glob("*/starts.jsonl")):
        states += [json.loads(line).get("code", {}) for line in path.read_text(encoding="utf-8").splitlines()]
    states.append(code_state(source))
    names = [state["commit"][:10] + (f"+{state['changed_files']}" if state["changed_files"] else "") for state in states if state]
    return list(dict.fromkeys(names))


def segmentation_task(bench: Bench) -> SegmentationTask:
    """The first labelled volumes of the training studies, which every cell has among its own, and held-out scans of the same splits."""
    drawn = json.loads((bench.out / "data" / "studies.json").read_text(encoding="utf-8"))
    settings = bench.settings
    most = {"train": settings.segmentation_volumes, "val": settings.segmentation_val, "test": settings.segmentation_test}
    cases = tuple(
        CaseFiles(
            name=study,
            image=bench.cohort / study / "ct.nii.gz",
            label=bench.cohort / study / "organs.nii.gz",
            group=study,
            split=split,
        )
        for split, count in most.items()
        for study in drawn[split][:count]
    )
    known = {structure.name: structure.label for structure in ontology().structures}
    labels = tuple(Label(name, known[name]) for name in settings.segmentation_structures)
    return SegmentationTask(kind="cohort", labels=labels, declared=tuple(known.values()), cases=cases)


def segmentation_settings(recipe: VelvetRecipe, settings: AblationSettings) -> SegmentationSettings:
    """The tiny fine-tuning on the recipe's grid, window and encoder; the same for every row."""
    views = recipe.views
    base = tiny_segmentation()
    return replace(
        base,
        swin=recipe.swin(),
        data=replace(
            base.data,
            spacing_mm=views.fine_spacing_mm,
            patch_voxels=(views.global_voxels,) * 3,
            hu_min=views.hu_min,
            hu_max=views.hu_max,
        ),
        loop=replace(base.loop, precision=recipe.loop.precision),
    )
