"""Figures on findings: against scikit-learn on repeated cases, with ties, unknown truth, and classes that are missing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from VelvetMedLib.evaluation import findings
from VelvetMedLib.evaluation.findings import (
    KINDS,
    SIZES_MM,
    FindingTable,
    auroc,
    average_precision,
    calibration_error,
    calls,
    kind_of,
    measures,
    reliability,
    size_name,
)
from VelvetMedLib.reports import FindingRecord, ontology

ONCE = np.ones((1, 4))


def some_cases(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth with unknown cases, scores with ties, weights of one draw, and which cases that draw holds, unknown ones left out."""
    draw = np.random.default_rng(seed)
    truth = draw.choice([0.0, 1.0, np.nan], 30, p=[0.5, 0.4, 0.1])
    score = np.round(draw.random(30) * 6 + np.nan_to_num(truth)) / 7
    weights = draw.integers(0, 3, 30).astype(float)
    return truth, score, weights, np.repeat(np.arange(30), weights.astype(int))


@pytest.mark.parametrize(("fast", "slow"), [(auroc, roc_auc_score), (average_precision, average_precision_score)])
def test_ranking_equals_scikit_learn_on_the_drawn_cases(fast, slow) -> None:
    for seed in range(8):
        truth, score, weights, drawn = some_cases(seed)
        kept = drawn[np.isfinite(truth[drawn])]
        assert fast(truth, score)(weights[None])[0] == pytest.approx(slow(truth[kept], score[kept]))


def test_calls_equal_scikit_learn_on_the_drawn_cases() -> None:
    truth, score, weights, drawn = some_cases(3)
    called = score > 0.5
    kept = drawn[np.isfinite(truth[drawn])]
    found = {name: measure(weights[None])[0] for name, measure in calls(truth, called).items()}
    slow = {"precision": precision_score, "recall": recall_score, "F1": f1_score}
    assert found == pytest.approx({name: metric(truth[kept], called[kept]) for name, metric in slow.items()})


def test_the_calibration_error_equals_a_loop_over_bins() -> None:
    truth, probability, weights, drawn = some_cases(4)
    probability = probability.clip(0, 1)
    kept = drawn[np.isfinite(truth[drawn])]
    total = 0.0
    for low in range(10):
        inside = [n for n in kept if min(int(probability[n] * 10), 9) == low]
        if inside:
            total += len(inside) * abs(probability[inside].mean() - truth[inside].mean())
    assert calibration_error(truth, probability)(weights[None])[0] == pytest.approx(total / len(kept))


def test_perfect_certainty_is_calibrated_and_reversed_certainty_is_not() -> None:
    truth = np.array([0.0, 1.0, 1.0, 0.0])
    assert calibration_error(truth, truth)(ONCE)[0] == 0.0
    assert calibration_error(truth, 1 - truth)(ONCE)[0] == 1.0
    assert reliability(truth, truth) == [
        {"bin": 0, "probability": 0.0, "present": 0.0, "cases": 2},
        {"bin": 9, "probability": 1.0, "present": 1.0, "cases": 2},
    ]


@pytest.mark.parametrize("truth", [np.zeros(4), np.ones(4), np.full(4, np.nan)])
def test_without_both_classes_there_is_no_auroc(truth: np.ndarray) -> None:
    assert np.isnan(auroc(truth, np.arange(4.0))(ONCE)[0])


def test_without_positives_there_is_no_average_precision_and_without_scores_no_ranking() -> None:
    assert np.isnan(average_precision(np.zeros(4), np.arange(4.0))(ONCE)[0])
    assert np.isnan(auroc(np.array([0.0, 1, 0, 1]), np.full(4, np.nan))(ONCE)[0])


def test_equal_scores_rank_by_chance() -> None:
    assert auroc(np.array([0.0, 1, 0, 1]), np.ones(4))(ONCE)[0] == 0.5


def test_the_table_is_scored_by_finding_kind_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def records(state: str, size: float | None) -> list[FindingRecord]:
        return [
            FindingRecord(name="lung_nodule", state=state, size_mm=size),  # type: ignore[arg-type]
            FindingRecord(name="emphysema", state="uncertain"),
        ]

    truth = [records("present", 8.0), records("present", 15.0), records("absent", None), records("present", 20.0)]
    said = [records("absent", None), records("present", 9.0), records("absent", None), records("present", 30.0)]
    scores = [{"lung_nodule": p} for p in (0.3, 0.9, 0.4, 0.8)]
    monkeypatch.setattr(findings, "LEAST_POSITIVES", 1)
    table = FindingTable.of(truth, scores, said)
    found = {name: measure(ONCE)[0] for name, measure in measures(table).items()}
    assert found["findings/lung_nodule/AUROC"] == found["findings/focal/AUROC"] == pytest.approx(2 / 3)
    assert found["findings/all/recall"] == pytest.approx(2 / 3) and found["findings/all/precision"] == 1.0
    by_size = [{metric: found[f"findings/focal {size_name(*s)}/{metric}"] for metric in ("AUROC", "recall", "F1")} for s in SIZES_MM]
    one_of_two = {"AUROC": 1.0, "recall": 1.0, "F1": 1.0}
    assert by_size == [{"AUROC": 0.0, "recall": 0.0, "F1": 0.0}, one_of_two, one_of_two, one_of_two]
    assert np.isnan(found["findings/emphysema/F1"]) and np.isnan(found["findings/all/ECE"])
    assert table.counts()["lung_nodule"] == {"present": 3, "absent": 1}


def test_a_class_of_size_is_held_against_all_cases_without_the_finding() -> None:
    draw = np.random.default_rng(6)
    names = ontology().finding_names
    column = names.index("lung_nodule")
    truth, score = np.full((60, len(names)), np.nan), np.full((60, len(names)), np.nan)
    truth[:, column], score[:, column] = draw.random(60) < 0.5, draw.random(60)
    size = np.where(truth == 1.0, draw.uniform(4, 30, truth.shape), np.nan)
    table = FindingTable(names=names, truth=truth, score=score, probability=score, called=score > 0.6, size_mm=size)
    found = measures(table)
    for low, high in SIZES_MM:
        kept = [n for n in range(60) if truth[n, column] == 0 or low <= size[n, column] < high]
        y, s = truth[kept, column], score[kept, column]
        slow = {"AUROC": roc_auc_score(y, s), "AUPRC": average_precision_score(y, s), "F1": f1_score(y, s > 0.6)}
        assert {m: found[f"findings/focal {size_name(low, high)}/{m}"](np.ones((1, 60)))[0] for m in slow} == pytest.approx(slow)


def test_a_finding_with_too_few_cases_of_a_class_enters_no_mean() -> None:
    names = ("lung_nodule", "liver_lesion")
    truth = np.array([[1.0, 1]] * 5 + [[0, 0]] * 4 + [[0, np.nan]])
    score = np.column_stack([np.arange(10.0), -np.arange(10.0)])
    table = FindingTable(names=names, truth=truth, score=score, probability=score, called=score > 0, size_mm=np.full_like(score, np.nan))
    found = {name: measure(np.ones((1, 10)))[0] for name, measure in measures(table).items()}
    assert (found["findings/lung_nodule/AUROC"], found["findings/liver_lesion/AUROC"]) == (0.0, 1.0)
    assert found["findings/all/AUROC"] == found["findings/focal/AUROC"] == 0.0


def test_only_calibrated_findings_have_probabilities() -> None:
    truth = [[FindingRecord(name="emphysema", state="present"), FindingRecord(name="lung_mass", state="absent")]]
    table = FindingTable.of(truth, [{"emphysema": 0.7, "lung_mass": 0.9}], [[]], calibrated=["emphysema"])
    assert calibration_error(table.truth, table.probability)(np.ones((1, 1)))[0] == pytest.approx(0.3)


def test_every_finding_is_of_one_kind() -> None:
    kinds = {f.name: kind_of(f) for f in ontology().findings}
    assert set(kinds.values()) == set(KINDS)
    assert (kinds["lung_nodule"], kinds["consolidation"], kinds["splenomegaly"]) == ("focal", "diffuse", "measured organ")
