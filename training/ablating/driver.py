"""From the words of the line to cells that run one after another: the plan first, the pilot before the grid, the table after each cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ablating.bench import Bench
from ablating.cell import DONE, SET_ASIDE, STOPPED, run_cell
from ablating.data import fingerprint, write_data
from ablating.grid import FREE, AblationSettings, Cell, chosen_cells, grid_cells, pilot_cells
from ablating.measure import OWN, stands_clear
from ablating.plan import costs, plan_lines, timings
from ablating.table import TABLE, landed, publish
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.runfolder import RunFolder
from VelvetMedLib.engine.trainer import STOPPED as EXIT_STOPPED
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import read_json, write_json
from VelvetMedLib.recipes.velvet import VelvetRecipe

TIMINGS = "timings.json"


def drive(
    base: VelvetRecipe,
    settings: AblationSettings,
    *,
    cohort: Path,
    out: Path,
    source: Path,
    only: Sequence[str] = (),
    plan: bool = False,
    pilot: bool = False,
    anyway: bool = False,
    docs: Path | None = None,
    workers: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> int:
    """Exit code: 0 all asked cells are done, 1 the pilot failed, `trainer.STOPPED` when some wait for another call.

    base: the preset with the changes that hold for every row. Raises TrainingError or UsageError.
    """
    cells = chosen_cells(settings, only, pilot=pilot)
    folder = RunFolder(out)
    try:
        shared = made_with(base, settings)
        folder.check(shared)
        manifests = write_data(cohort, out / "data", settings)
        shared["data"] = fingerprint(cohort, out / "data")
        bench = Bench(
            base=base,
            settings=settings,
            cohort=cohort,
            out=out,
            manifests=manifests,
            source=source,
            workers=workers,
            landed=landed(docs, shared),
        )
        processes = Processes(device)
        _say_plan(cells, bench, processes, say)
        if plan:
            return 0
        folders = [out, *([docs] if docs is not None else [])]

        def show() -> None:
            results = [result for result in (bench.result(cell) for cell in grid_cells(settings)) if result is not None]
            publish(results, len(grid_cells(settings)), folders, shared)

        show()
        return _run_all(cells, bench, processes, pilot=pilot, anyway=anyway, show=show, say=say)
    finally:
        folder.close()


def made_with(base: VelvetRecipe, settings: AblationSettings) -> dict[str, Any]:
    """What all cells of a grid have in common."""
    return {"recipe": base.to_dict(), "ablation": {k: v for k, v in settings.to_dict().items() if k not in FREE}}


def _say_plan(cells: Sequence[Cell], bench: Bench, processes: Processes, say: Callable[[str], None]) -> None:
    threads = torch.get_num_threads()
    path = bench.out / TIMINGS
    where = {"threads": threads, "device": str(processes.device)}
    stored = read_json(path) or {}
    known = stored.get("rows", {}) if stored.get("where") == where else {}
    say(f"timing a few steps of each row on {processes.device}, {threads} threads; kept in {TIMINGS}")
    rows = timings(cells, bench, processes, known)
    write_json(path, {"where": where, "rows": {name: timing.to_dict() for name, timing in rows.items()}})
    done = [cell.name for cell in cells if bench.result(cell) is not None]
    for line in plan_lines(costs(cells, rows, bench), done, bench.settings, threads):
        say(line)


def _run_all(
    cells: Sequence[Cell],
    bench: Bench,
    processes: Processes,
    *,
    pilot: bool,
    anyway: bool,
    show: Callable[[], None],
    say: Callable[[str], None],
) -> int:
    pilots = pilot_cells(bench.settings)
    waiting = []
    for cell in cells:
        if cell not in pilots and not anyway and not _passed(bench):
            missing = [p.name for p in pilots if bench.result(p) is None]
            if missing and any(name in waiting for name in missing):
                say("The pilot is not finished: call the same line again before anything else of the grid is run.")
                return EXIT_STOPPED
            _refuse(bench, missing)
        if pilot and _passed(bench) and bench.result(cell) is None:
            say(f"{cell.name} is not needed: a pilot stands above chance already.")
            continue
        say(f"== {cell.name}")
        before = bench.result(cell)
        how = run_cell(cell, bench, processes, say)
        if how == STOPPED:
            say("Stopped on request; everything is saved. Call the same line again to go on.")
            return EXIT_STOPPED
        if how == SET_ASIDE:
            waiting.append(cell.name)
            minutes = f"after {bench.settings.sitting_minutes:g} minutes"
            why = f"with {cell.reused.name}" if cell.reused is not None and cell.reused.name in waiting else minutes
            say(f"{cell.name} is set aside {why}; it goes on when the line is called again.")
        if how == DONE:
            if before is None:
                show()
            if cell in pilots:
                say(_verdict(cell, bench))
    if pilot and not waiting and all(bench.result(cell) is not None for cell in pilots) and not _passed(bench):
        _refuse(bench, [])
    say(f"The table is {TABLE} in the output folder.")
    return EXIT_STOPPED if waiting else 0


def _passed(bench: Bench) -> bool:
    """Whether one of the two ends stands clearly above chance."""
    results = [bench.result(cell) for cell in pilot_cells(bench.settings)]
    return any(stands_clear(r["figures"], bench.settings.above_chance) for r in results if r is not None)


def _verdict(cell: Cell, bench: Bench) -> str:
    result = bench.result(cell)
    assert result is not None
    own = result["figures"]["retrieval"][OWN]
    clear = stands_clear(result["figures"], bench.settings.above_chance)
    return (
        f"pilot {cell.name}: R@10 {own['R@10']:.3f} (95 % interval {own['R@10 low']:.3f} to {own['R@10 high']:.3f}), chance "
        f"{own['chance R@10']:.3f}, record oracle {own['oracle R@10']:.3f}: "
        + ("clearly above chance" if clear else f"NOT clearly above chance (wanted: more than {bench.settings.above_chance:g} x chance)")
    )


def _refuse(bench: Bench, missing: Sequence[str]) -> None:
    """The grid would compare noise with noise: TrainingError that says what to change."""
    if missing:
        raise TrainingError(
            "The pilot has not been run.",
            found="no finished " + ", ".join(missing),
            expected="plain CLIP or everything measured first, one seed",
            next_step="Call the line with --pilot, or with --anyway to run without one.",
        )
    verdicts = "; ".join(_verdict(cell, bench) for cell in pilot_cells(bench.settings) if bench.result(cell) is not None)
    raise TrainingError(
        "No pilot stands clearly above chance: the grid would compare noise with noise.",
        found=verdicts,
        expected=f"a lower end of the interval of R@10 above {bench.settings.above_chance:g} times chance",
        next_step="Change one thing and use a new --out: more --steps, more --pairs, a larger batch or learning rate "
        "(--set loop.batch=32, --set optimiser.learning_rate=1e-3), a larger encoder, an easier cohort. --anyway runs it as it is.",
    )
