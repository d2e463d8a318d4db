"""Datasets: manifest, prepared store, synthetic cohort, public-dataset readers, and the sample scan."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from VelvetMedLib.cohorts.making import make_cohort
    from VelvetMedLib.cohorts.options import CohortOptions
    from VelvetMedLib.cohorts.store import Cohort, CohortCase, load_case, read_cohort
    from VelvetMedLib.cohorts.synthetic import SyntheticCase, make_case

_PUBLIC = {
    "Cohort": "store", "CohortCase": "store", "CohortOptions": "options", "SyntheticCase": "synthetic", "load_case": "store",
    "make_case": "synthetic", "make_cohort": "making", "read_cohort": "store",
}  # fmt: skip

__all__ = ["Cohort", "CohortCase", "CohortOptions", "SyntheticCase", "load_case", "make_case", "make_cohort", "read_cohort"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
