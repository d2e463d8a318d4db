"""Groups: who counts as whose positive."""

from __future__ import annotations

import itertools
import random

import pytest

from VelvetMedLib.objectives.groups import close_groups, normalised_report, report_hash, study_key


def connected(studies: list[str], reports: list[str]) -> list[set[int]]:
    """For each item all items it is linked with, found by walking until nothing is new."""
    reached = []
    for start in range(len(studies)):
        seen = {start}
        while True:
            more = {j for i in seen for j in range(len(studies)) if studies[i] == studies[j] or reports[i] == reports[j]}
            if more <= seen:
                break
            seen |= more
        reached.append(seen)
    return reached


def test_reports_that_differ_only_in_case_white_space_or_unicode_form_are_equal() -> None:
    assert normalised_report("  No\tEffusion.\n\nﬁne  5 ㎜ ") == "no effusion. fine 5 mm"
    assert report_hash("No effusion.") == report_hash("no  EFFUSION.\n") != report_hash("No effusions.")


def test_groups_are_closed_transitively_over_studies_and_reports() -> None:
    # a and b share a report, b and c a study: a and c are one group although they share nothing.
    got = close_groups(["a", "b", "b", "d"], ["r1", "r1", "r2", "r3"])
    assert got[0] == got[1] == got[2] != got[3]


def test_random_cohorts_give_the_groups_of_a_slow_walk_and_the_same_names_in_any_order() -> None:
    draw = random.Random(0)
    for _ in range(20):
        studies = [f"s{draw.randrange(9)}" for _ in range(12)]
        reports = [f"r{draw.randrange(12)}" for _ in range(12)]
        got, truth = close_groups(studies, reports), connected(studies, reports)
        assert all((got[i] == got[j]) == (j in truth[i]) for i, j in itertools.product(range(12), repeat=2))
        order = draw.sample(range(12), 12)
        again = close_groups([studies[i] for i in order], [reports[i] for i in order])
        assert [int(again[order.index(i)]) for i in range(12)] == got.tolist()


def test_a_study_and_a_report_of_the_same_name_are_not_confused() -> None:
    got = close_groups(["x", "y"], ["y", "x"])
    assert got[0] != got[1]


def test_study_keys_are_64_bit_fixed_for_ever_and_differ() -> None:
    assert study_key("study-1") == -4448762429035020990
    assert len({study_key(f"s{n}") for n in range(10_000)}) == 10_000


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="2 studies but 1 reports"):
        close_groups(["a", "b"], ["r"])
