"""Written reports against records: counts of single reports by hand, sums against a slow recount, empty and normal ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from VelvetMedLib.evaluation.reports import Rates, all_normal, contradicted, count, score_records, score_reports
from VelvetMedLib.reports import FindingRecord, ontology, parse_report, render, write_report


def record(name: str, state: str = "present", **rest: object) -> FindingRecord:
    return FindingRecord(name=name, state=state, **rest)  # type: ignore[arg-type]


NODULE = record("lung_nodule", side="left", site="lung_upper_lobe_left", size_mm=10.0, count=1)


def test_a_report_that_says_the_record_is_right_in_everything() -> None:
    truth = [NODULE, record("pleural_effusion", "absent")]
    score = score_reports(["There is a 10 mm nodule in the left upper lobe. No pleural effusion."], [truth])
    assert score.presence.f1 == score.with_side.f1 == score.with_size.f1 == score.accuracy == 1.0
    assert score.contradiction_rate == 0.0 and score.counts.itself == 0 and score.hallucinations_per_normal is None


@pytest.mark.parametrize(
    ("said", "side", "size", "opposite"),
    [
        ("A 12 mm nodule in the left upper lobe.", 1, 1, 0),  # a fifth more is within the tolerance
        ("A 13 mm nodule in the left upper lobe.", 1, 0, 0),
        ("A nodule in the left lung.", 1, 0, 0),
        ("A 10 mm nodule in the right lung.", 0, 1, 1),
        ("Bilateral nodules up to 10 mm.", 0, 1, 0),
        ("A 10 mm lung nodule.", 0, 1, 0),
    ],
)
def test_a_hit_with_a_wrong_side_or_size_counts_without_them_only(said: str, side: int, size: int, opposite: int) -> None:
    score = score_reports([said], [[NODULE]])
    assert score.presence.hits == 1
    assert (score.with_side.hits, score.with_size.hits, score.counts.opposite) == (side, size, opposite)


def test_what_the_record_is_unsure_of_or_could_not_see_is_neither_hit_nor_miss() -> None:
    truth = [record("emphysema", "uncertain"), record("renal_cyst", "not_assessed"), record("cardiomegaly", "absent")]
    counts = count([record("emphysema"), record("renal_cyst"), record("cardiomegaly", "absent")], truth)
    assert (counts.said, counts.truth, counts.known, counts.right, counts.normal) == (0, 0, 1, 1, 0)


def test_a_finding_affirmed_on_a_normal_scan_is_invented_even_where_nothing_could_be_seen() -> None:
    normal = [record("emphysema", "absent"), record("renal_cyst", "not_assessed")]
    ill = [record("emphysema")]
    texts = ["Emphysema. Renal cyst on the left.", "No emphysema.", "Emphysema."]
    score = score_reports(texts, [normal, normal, ill])
    assert score.hallucinations_per_normal == 1.0 and score.counts.normal == 2


def test_an_empty_report_affirms_nothing() -> None:
    score = score_reports([""], [[NODULE, record("emphysema", "absent")]])
    assert score.presence == Rates(hits=0, said=0, truth=1)
    assert score.presence.precision is None and score.presence.f1 == 0.0 and score.accuracy == 0.0
    assert score.contradiction_rate is None
    assert score_reports([], []).presence.f1 is None


def test_denying_everything_is_right_about_the_absent_and_contradicts_the_present() -> None:
    truth = [[NODULE, record("emphysema", "absent"), record("cardiomegaly", "absent")], [record("emphysema", "absent")]]
    score = all_normal(truth)
    assert score.accuracy == 0.75 and score.contradiction_rate == 0.25 and score.presence.recall == 0.0
    assert score.hallucinations_per_normal == 0.0


def test_a_finding_affirmed_in_one_sentence_and_denied_in_another_is_a_contradiction_in_itself() -> None:
    text = "Findings: There is a pleural effusion on the left. Emphysema.\nImpression: No pleural effusion. Emphysema."
    assert contradicted(text) == ["pleural_effusion"]
    assert score_reports([text], [[record("pleural_effusion", side="left")]]).counts.itself == 1


@pytest.mark.parametrize(
    ("text", "itself"),
    [
        ("Pleural effusion on the left. No pleural effusion.", True),
        ("Bilateral pleural effusion. No pleural effusion on the right.", True),
        ("Nodule in the left upper lobe. No nodule in the left lung.", True),
        ("Nodule in the left upper lobe. No nodule in the right lung.", False),
        ("Nodule in the left upper lobe. No nodule in the left lower lobe.", False),
        ("There is a pleural effusion. No pleural effusion on the right.", False),
    ],
)
def test_a_denial_contradicts_only_what_is_affirmed_at_its_place(text: str, itself: bool) -> None:
    assert bool(contradicted(text)) is itself


def test_sums_over_many_reports_equal_a_slow_recount(random_records: Callable[[np.random.Generator], Sequence[FindingRecord]]) -> None:
    rng = np.random.default_rng(3)
    records = [random_records(rng) for _ in range(12)]
    texts = [render(write_report(random_records(rng), style="narrative", rng=rng), "narrative") for _ in records]
    score = score_reports(texts, records)
    hits = said = truth = right = known = 0
    for text, true in zip(texts, records, strict=True):
        states = {r.name: r.state for r in parse_report(text)}
        for r in true:
            if r.state in ("present", "absent"):
                known += 1
                right += states[r.name] == r.state
                truth += r.state == "present"
                said += states[r.name] == "present"
                hits += r.state == states[r.name] == "present"
    assert score.presence == Rates(hits=hits, said=said, truth=truth)
    assert score.accuracy == right / known and 0 < hits < said
    assert sum(rates.hits for rates in score.by_finding.values()) == hits
    assert list(score.by_finding) == list(ontology().finding_names)


def test_reports_written_from_the_records_score_full_marks(
    random_records: Callable[[np.random.Generator], Sequence[FindingRecord]],
) -> None:
    rng = np.random.default_rng(4)
    records = [random_records(rng) for _ in range(10)]
    score = score_reports([render(write_report(r, style="structured", rng=rng), "structured") for r in records], records)
    assert score.presence.precision == 1.0 and score.counts.opposite == 0 and score.counts.itself == 0
    assert score.presence.recall is not None and score.presence.recall > 0.95  # a lone mass is not called a nodule as well


def test_reports_and_scans_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="1 reports for 2 scans"):
        score_records([[]], [[], []])
