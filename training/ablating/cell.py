"""One cell: pre-train, measure, fine-tune on a few labelled scans; it goes on where it was stopped, and is written whole or not at all."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from finetuning.encoders import SCRATCH as RANDOM_START
from finetuning.encoders import encoder_start
from finetuning.running import finetune_segmentation
from finetuning.tasks import SegmentationTask
from pretraining.run import Options, open_data, pretrain

from ablating.bench import RESULT, Bench
from ablating.grid import Cell
from ablating.labels import lesion_figures, lesion_task, organ_figures, organ_task, segmentation_settings
from ablating.measure import measured, trained
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.runfolder import code_state
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.segmentation import StructureScore
from VelvetMedLib.files import read_json, write_json

SPENT = "spent.json"
DONE, SET_ASIDE, STOPPED = "done", "set aside", "stopped"
WRITTEN_EVERY_S = 10.0

Facts: TypeAlias = dict[str, Any]


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


class _Stopped(Exception):
    """A training ended in order before its time; what it had is saved."""


def run_cell(cell: Cell, bench: Bench, processes: Processes, say: Callable[[str], None]) -> str:
    """DONE, SET_ASIDE when its sitting was over or the cell that it goes on from is not done, STOPPED on request. A finished cell is
    left as it is. Raises TrainingError where the weights to go on from are not here."""
    if bench.result(cell) is not None:
        return DONE
    if cell.reused is not None and bench.result(cell.reused) is None:
        return SET_ASIDE
    folder = bench.folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(folder / SPENT, 60 * bench.settings.sitting_minutes)
    try:
        facts, figures = _Sitting(cell, bench, processes, watch, say).computed()
    except _Stopped:
        return SET_ASIDE if watch.over else STOPPED
    facts |= {
        "figures": figures,
        "seconds": {name: round(value, 1) for name, value in watch.spent.items()},
        "threads": torch.get_num_threads(),
        "commits": commits_of(folder, bench.source),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(folder / RESULT, facts)
    return DONE


@dataclass(frozen=True)
class _Sitting:
    """The stages of one cell; each raises `_Stopped`, and goes on where it was when it is called again."""

    cell: Cell
    bench: Bench
    processes: Processes
    watch: Watch
    say: Callable[[str], None]

    def computed(self) -> tuple[Facts, Facts]:
        """(what the cell is, its figures)."""
        cell, bench = self.cell, self.bench
        work = bench.work(cell)
        facts: Facts = {"cell": cell.name, "row": cell.row, "pairs": cell.pairs, "seed": cell.seed, "steps": work.steps}
        facts |= {"step_flops": work.step_flops} if work.step_flops else {}
        run = bench.folder(cell.reused or cell) / "pretraining" if cell.pairs else None
        if cell.reused is not None:
            told, figures = self.taken(cell.reused, run)
        else:
            told, figures = self.pretrained(run, work.steps) if run is not None else ({}, {})
            if bench.settings.segmentation_volumes:
                figures["segmentation"] = organ_figures(self.fine_tuned("segmentation", organ_task(bench), run))
        if cell.whole and bench.settings.segmentation_volumes:
            figures["lesions"] = lesion_figures(self.fine_tuned("lesions", lesion_task(bench), run))
        return facts | told, figures

    def taken(self, other: Cell, run: Path | None) -> tuple[Facts, Facts]:
        """What another cell was and found; its weights must be here."""
        found = self.bench.result(other)
        assert found is not None
        if run is not None and not run.is_dir():
            raise TrainingError(
                f"The weights of {other.name} are not here.",
                found="its figures alone, landed from another folder",
                expected="its folder with the checkpoints of the pre-training",
                next_step="Copy the cell's folder into cells of --out, or leave --docs out to compute it again.",
            )
        kept = {name: found[name] for name in ("key", "recipe", "best_step") if name in found}
        return kept | {"reuses": other.name}, dict(found["figures"])

    def pretrained(self, run: Path, steps: int) -> tuple[Facts, Facts]:
        """Pre-trains, and measures the best weights."""
        cell, bench = self.cell, self.bench
        recipe = bench.recipe(cell)
        options = Options(
            run=run,
            steps=steps,
            seed=cell.seed,
            manifest=bench.manifests[cell.pairs],
            store=bench.out / "prepared",
            workers=bench.workers,
            bundle=False,
        )
        with self.watch.stage("pretraining"):
            if pretrain(recipe, options, self.processes, source=bench.source, after_step=self.watch.tick):
                raise _Stopped
        path = bench.folder(cell) / "measured.json"
        kept = read_json(path)
        if kept is None:
            with self.watch.stage("measuring"):
                data = open_data(recipe, options, self.processes)
                learner, best_step = trained(recipe, data.tokenizer.vocab_size, run)
                kept = {"best_step": best_step, "figures": measured(learner, data, bench.cohort, self.processes, cell.seed)}
                write_json(path, kept)
        return {"key": recipe.key, "recipe": recipe.to_dict(), "best_step": kept["best_step"]}, dict(kept["figures"])

    def fine_tuned(self, name: str, task: SegmentationTask, run: Path | None) -> Sequence[StructureScore]:
        """Scores on the held-out scans. run: the pre-training's, None = random start."""
        bench = self.bench
        with self.watch.stage(name):
            outcome = finetune_segmentation(
                task,
                encoder_start(str(run) if run is not None else RANDOM_START, scratch=bench.base.swin()),
                segmentation_settings(bench.base),
                run=bench.folder(self.cell) / name,
                steps=bench.settings.segmentation_steps,
                seed=self.cell.seed,
                store=bench.out / "prepared_labels",
                processes=bench.workers,
                device=str(self.processes.device),
                say=self.say,
                after_step=self.watch.tick,
            )
        if outcome.code:
            raise _Stopped
        return outcome.scores


def commits_of(folder: Path, source: Path) -> list[str]:
    """Code states that the cell was computed with, oldest first; "+n" where n tracked files had been changed."""
    states = []
    for path in sorted(folder.glob("*/starts.jsonl")):
        states += [json.loads(line).get("code", {}) for line in path.read_text(encoding="utf-8").splitlines()]
    states.append(code_state(source))
    names = [state["commit"][:10] + (f"+{state['changed_files']}" if state["changed_files"] else "") for state in states if state]
    return list(dict.fromkeys(names))
