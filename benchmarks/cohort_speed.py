"""Speed of the synthetic cohort: cases per second and core, at 64^3 and at the default grid, writing included. Prints one JSON line.

`python benchmarks/cohort_speed.py [--cases 24]`. Wall time is what a user waits on an idle machine; CPU time is steadier on a busy one.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from VelvetMedLib.cohorts import CohortOptions
from VelvetMedLib.cohorts.making import make_one, plan_cases

WANTED_PER_SECOND = 4.0
SETTINGS = {
    "64^3": CohortOptions(spacing_mm=6.0, largest_shape_ijk=(64, 64, 64), view_weights=(1.0, 0.0, 0.0, 0.0)),
    "default": CohortOptions(),
}


def measure(options: CohortOptions, cases: int) -> dict[str, Any]:
    """One process, one core: seconds per case after a warm-up of two."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_cases(cases + 2, 1, options)
        for planned in plan[:2]:
            make_one(planned, Path(folder), options)
        wall, cpu = time.perf_counter(), time.process_time()
        for planned in plan[2:]:
            make_one(planned, Path(folder), options)
        wall, cpu = (time.perf_counter() - wall) / cases, (time.process_time() - cpu) / cases
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.*")) / (cases + 2)
    return {
        "seconds_per_case_wall": round(wall, 3), "seconds_per_case_cpu": round(cpu, 3), "cases_per_second_and_core": round(1 / cpu, 2),
        "kilobytes_per_case": round(size / 1000),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=24)
    cases = parser.parse_args().cases
    results: dict[str, Any] = {name: measure(options, cases) for name, options in SETTINGS.items()}
    results["reached"] = results["64^3"]["cases_per_second_and_core"] >= WANTED_PER_SECOND
    print(json.dumps({"benchmark": "cohort_speed", "machine": platform.machine(), "cases": cases, **results}))


if __name__ == "__main__":
    main()
