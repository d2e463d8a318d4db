"""Fixtures for every room that needs findings: random records that obey the ontology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.reports import FindingRecord, State, ontology

RecordMaker = Callable[[str, State, np.random.Generator], FindingRecord]


def _value(name: str, state: State, rng: np.random.Generator) -> float:
    m = ontology().finding(name).measure
    if m.absent_above is not None and m.present_until is not None:
        low, high = (-60.0, m.present_until) if state == "present" else (m.present_until, m.absent_above)
    else:
        assert m.absent_below is not None and m.present_from is not None
        top = {"cardiothoracic_ratio": 0.75, "height_loss_fraction": 0.6, "lung_fraction": 0.5}.get(m.quantity, 2.5 * m.present_from)
        low, high = (m.present_from, top) if state == "present" else (m.absent_below, m.present_from)
    return float(rng.uniform(low, high))


@pytest.fixture
def make_record() -> RecordMaker:
    """make_record(name, state, rng): a record with every attribute that the finding can have."""

    def make(name: str, state: State, rng: np.random.Generator) -> FindingRecord:
        finding = ontology().finding(name)
        if state not in ("present", "uncertain"):
            return FindingRecord(name=name, state=state)
        value = _value(name, state, rng)
        sites = finding.sites or (("T7", "T12", "L1", "L4") if name == "vertebral_compression" else ())
        site = str(rng.choice(sites)) if sites else None
        side: Any = None
        if finding.sided:
            side = "both" if rng.random() < 0.25 else ontology().site_side(site) or str(rng.choice(["left", "right"]))
        count = int(rng.integers(2 if side == "both" else 1, 5)) if finding.countable else None
        return FindingRecord(
            name=name,
            state=state,
            side=side,
            site=site,
            size_mm=value if finding.sized else None,
            count=count,
            density_hu=float(rng.uniform(-600, 60)),
            severity=finding.severity_of(value) if state == "present" else None,
            value=value,
        )

    return make


@pytest.fixture
def random_records(make_record: RecordMaker) -> Callable[[np.random.Generator], list[FindingRecord]]:
    """random_records(rng): all 21 findings in random states, mostly absent."""

    def make(rng: np.random.Generator) -> list[FindingRecord]:
        states: list[State] = ["present", "absent", "uncertain", "not_assessed"]
        return [make_record(f.name, states[int(rng.choice(4, p=[0.22, 0.5, 0.08, 0.2]))], rng) for f in ontology().findings]

    return make
