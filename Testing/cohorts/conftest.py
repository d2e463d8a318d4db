"""Cases and a small cohort that the cohort tests share; made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from VelvetMedLib.cohorts import Cohort, CohortOptions, SyntheticCase, make_case, make_cohort

SEEDS = tuple(range(300, 314))
SMALL = CohortOptions(spacing_mm=6.0, largest_shape_ijk=(64, 54, 64), twin_fraction=0.3)


@pytest.fixture(scope="session")
def cases() -> list[SyntheticCase]:
    """Cases at the default 4 mm grid, as they are before writing."""
    return [make_case(seed) for seed in SEEDS]


@pytest.fixture(scope="session")
def small_options() -> CohortOptions:
    return SMALL


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Seven small cases on disk, twins among them, made by one process."""
    return make_cohort(tmp_path_factory.mktemp("cohort") / "one", 7, 11, 1, SMALL, sheet=False)


@pytest.fixture(scope="session")
def cohort_folder(cohort: Cohort) -> Path:
    return cohort.folder
