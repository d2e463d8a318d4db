"""Questions beyond findings: their truth is that of the cohort's label map, and they are understood as what they are."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.case import measure
from VelvetMedLib.cohorts import CohortCase, CohortOptions, load_case, make_cohort
from VelvetMedLib.evaluation.asking import CANNOT, questions_beside
from VelvetMedLib.reports import ontology, understand


@pytest.fixture(scope="module")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> list[CohortCase]:
    options = CohortOptions(spacing_mm=8.0, largest_shape_ijk=(48, 40, 48), normal_fraction=0.0)
    made = make_cohort(tmp_path_factory.mktemp("cohort") / "c", 5, 3, options=options, sheet=False)
    return [load_case(folder) for folder in made.case_folders]


def test_truths_come_from_the_label_map_and_questions_are_read_as_meant(small_cohort: list[CohortCase]) -> None:
    kinds = set()
    for case in small_cohort:
        for n in range(4):
            for q in questions_beside(case, np.random.default_rng(n)):
                kinds.add(q.kind)
                asked = understand(q.question)
                if q.kind == "volume":
                    mask = case.organs_kji == ontology().structure(str(q.finding)).label
                    assert q.answer == f"{measure.volume_ml(mask, case.volume.grid):.0f} ml" and not measure.touches_border(mask)
                if q.kind in ("volume", "density"):
                    assert asked.structures == (q.finding,), q.question
                elif q.kind == "compare":
                    assert asked.kind == "compare" and sorted(asked.structures) == sorted(str(q.finding).split()), q.question
                elif q.kind == "place":
                    assert (asked.finding, len(asked.structures)) == (q.finding, 1), q.question
                else:
                    assert q.answer == CANNOT and (asked.beyond is not None or not asked.understood), q.question
    assert {"volume", "density", "compare", "beyond"} <= kinds


def test_a_lobe_is_said_to_hold_what_lies_in_it(small_cohort: list[CohortCase]) -> None:
    names = {s.display: s.name for s in ontology().structures}
    seen = 0
    for case in small_cohort:
        homes = {i["id"]: i["structure"] for i in case.instances}
        for q in (q for q in questions_beside(case, np.random.default_rng(5)) if q.kind == "place"):
            lobe = names[next(display for display in names if display in q.question)]
            record = next(r for r in case.findings if r.name == q.finding)
            assert (lobe in {homes[n] for n in record.instance_ids}) == (q.answer == "yes")
            seen += 1
    assert seen
