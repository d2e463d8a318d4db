"""Making a whole cohort: in parallel, resumable, and the same bytes whatever the number of processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cohorts.options import CohortOptions, stream
from VelvetMedLib.cohorts.store import (
    ATTRIBUTION,
    COHORT_VERSION,
    MANIFEST,
    RECORD,
    Cohort,
    case_record,
    read_cohort,
    write_case,
)
from VelvetMedLib.cohorts.synthetic import assessable_findings, make_case
from VelvetMedLib.ct import Volume
from VelvetMedLib.errors import CohortError
from VelvetMedLib.files import write_json

PLAN = "cohort.plan.json"
Progress = Callable[[float, str, float | None], None]


@dataclass(frozen=True)
class PlannedCase:
    """What one worker needs to know to make one case."""

    case_id: str
    seed: int
    twin_of: str | None


def plan_cases(cases: int, seed: int, options: CohortOptions) -> list[PlannedCase]:
    """Ids, seeds and twins. The plan of a longer cohort begins with that of a shorter one."""
    plan: list[PlannedCase] = []
    for n in range(cases):
        case_id = f"case_{n:06d}"
        before = plan[-1] if plan else None
        if before is not None and before.twin_of is None and stream(seed, "twin", n).uniform() < 2 * options.twin_fraction:
            # Every other case at most can be a twin, hence the factor of two (a half of the rest at the utmost).
            plan.append(PlannedCase(case_id, before.seed, before.case_id))
            continue
        own = int(np.random.SeedSequence(entropy=seed, spawn_key=(n,)).generate_state(1, np.uint64)[0] >> np.uint64(11))
        plan.append(PlannedCase(case_id, own, None))
    return plan


def make_one(planned: PlannedCase, out: Path, options: CohortOptions) -> dict[str, Any]:
    """Makes and writes one case unless it is there already; returns its line of the manifest."""
    folder = out / planned.case_id
    if not (folder / RECORD).exists():
        changed = None
        if planned.twin_of is not None:
            names = assessable_findings(planned.seed, options)
            changed = names[int(stream(planned.seed, "twin finding").integers(len(names)))]
        case = make_case(planned.seed, options, twin=changed)
        write_case(folder, case, case_record(case, case_id=planned.case_id, twin_of=planned.twin_of, reports=options.reports))
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return {
        "id": planned.case_id,
        "seed": planned.seed,
        "twin_of": planned.twin_of,
        "view": record["view"]["name"],
        "shape_ijk": record["view"]["shape_ijk"],
        "present": [f["name"] for f in record["findings"] if f["state"] == "present"],
    }


def make_cohort(
    out: Path | str,
    cases: int,
    seed: int,
    processes: int = 1,
    options: CohortOptions | None = None,
    *,
    progress: Progress | None = None,
    sheet: bool = True,
    cancel: Callable[[], None] | None = None,
) -> Cohort:
    """Makes `cases` cases in `out` and reads the cohort back. An interrupted run with the same seed and options is taken up.

    progress(fraction, stage, seconds_left). sheet: also draw contact_sheet.png (needs matplotlib; left out without it).
    Raises CohortError where the folder holds something else or the numbers make no sense.
    """
    out, options = Path(out), options or CohortOptions()
    if cases < 1 or processes < 1 or seed < 0:
        raise CohortError(
            "The cohort cannot be made.",
            found=f"cases {cases}, seed {seed}, processes {processes}",
            expected="at least one case, one process and a seed of 0 or more",
            next_step="Change these numbers and start again.",
        )
    plan = {"version": COHORT_VERSION, "seed": seed, "options": json.loads(json.dumps(options.as_dict()))}
    _claim(out, plan)
    entries: list[dict[str, Any]] = []
    for entry in _made(plan_cases(cases, seed, options), out, options, processes):
        entries.append(entry)
        if progress is not None:
            progress(len(entries) / cases, "making cases", None)
        if cancel is not None:
            cancel()
    manifest = {**plan, "disclaimer": RESEARCH_USE_ONLY, "attribution": ATTRIBUTION, "cases": entries}
    write_json(out / MANIFEST, manifest, indent=None)
    (out / PLAN).unlink(missing_ok=True)
    cohort = read_cohort(out)
    if sheet:
        from VelvetMedLib.cohorts.sheet import draw_sheet

        draw_sheet(cohort, real=_real_scan())
    return cohort


def _real_scan() -> Volume | None:
    """The sample scan for comparison, if it is already in the cache; nothing is fetched for a picture."""
    from VelvetMedLib.cohorts.sample import NIFTI_WHEEL, default_cache, get_sample, is_complete
    from VelvetMedLib.ct import read

    if not is_complete(NIFTI_WHEEL, default_cache() / "sample" / "lidc-idri-0001" / NIFTI_WHEEL.folder):
        return None
    return read(get_sample(dicom=False).ct)


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Makes sure that the folder is empty or holds an unfinished run of the same plan."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).exists():
        try:
            same = json.loads((out / PLAN).read_text(encoding="utf-8")) == plan
        except ValueError:
            same = False
        if same:
            return
        found = "an unfinished cohort with another seed or other options"
    elif (out / MANIFEST).exists():
        found = "a finished cohort"
    elif any(out.iterdir()):
        found = "other files"
    else:
        write_json(out / PLAN, plan, indent=None)
        return
    raise CohortError(
        "The cohort cannot be written into the given folder.",
        found=found,
        expected="an empty folder, a new one, or an unfinished run with the same seed and options",
        next_step="Choose another folder, or delete this one first.",
    )


def _start_worker() -> None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _made(plan: list[PlannedCase], out: Path, options: CohortOptions, processes: int) -> Iterator[dict[str, Any]]:
    make = partial(make_one, out=out, options=options)
    if processes == 1:
        yield from map(make, plan)
        return
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_start_worker) as pool:
        yield from pool.imap(make, plan, chunksize=4)
