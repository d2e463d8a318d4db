"""Retrieval figures: against slow definitions, with ties, groups and chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from VelvetMedLib.evaluation.records import facts_of, record_scores, record_word
from VelvetMedLib.evaluation.retrieval import (
    alikeness,
    by_words,
    chance,
    galleries,
    hit_chances,
    measures,
    median_rank,
    recall_at,
    retrieval,
    same_group,
)
from VelvetMedLib.reports import FindingRecord


def slow_hit_chance(values: np.ndarray, right: np.ndarray, k: int) -> float:
    """Average over every order of equal scores."""
    orders = [
        order for order in itertools.permutations(range(len(values))) if all(values[a] >= values[b] for a, b in itertools.pairwise(order))
    ]
    return float(np.mean([any(right[n] for n in order[:k]) for order in orders]))


WAYS = ("image_to_text", "text_to_image")


def test_recall_equals_the_average_over_all_orders_of_equal_scores() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        values = draw.integers(0, 3, 6).astype(float)
        right = draw.random(6) < 0.4
        for k in (1, 2, 4):
            fast = hit_chances(values[None], right[None], k)[0]
            assert fast == pytest.approx(slow_hit_chance(values, right, k))


def test_perfect_vectors_give_full_recall_and_rank_one() -> None:
    vectors = np.eye(6)
    figures = retrieval(vectors, vectors, list("abcdef"))
    assert figures["R@1"] == figures["image_to_text R@1"] == figures["text_to_image R@1"] == 1.0
    assert figures["image_to_text median rank"] == 1.0


def test_alikeness_is_the_mean_cosine_of_all_pairs_of_different_studies() -> None:
    vectors = np.random.default_rng(3).normal(0.4, 1, (7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    slow = np.mean([float(a @ b) for a, b in itertools.combinations(vectors, 2)])
    assert alikeness(vectors) == pytest.approx(slow)
    assert alikeness(np.repeat(vectors[:1], 4, axis=0)) == pytest.approx(1)


def test_a_constant_model_scores_chance() -> None:
    vectors = np.ones((20, 3))
    figures = retrieval(vectors, vectors, list(range(20)))
    assert figures["R@1"] == pytest.approx(1 / 20) and figures["R@10"] == pytest.approx(0.5)
    assert chance(same_group(range(20)))["R@5"] == pytest.approx(0.25)


def test_a_study_with_equal_facts_is_a_right_answer() -> None:
    scores = np.array([[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    assert recall_at(scores, same_group(["a", "a", "b"]), (1,))["R@1"] == 1.0
    assert recall_at(scores, same_group(["a", "c", "b"]), (1,))["R@1"] == pytest.approx(1 / 3)


def test_both_directions_are_reported_apart() -> None:
    images, texts = np.eye(3), np.eye(3)
    texts = np.stack([texts[0], texts[0] * 0.9, texts[2]])
    figures = retrieval(images, texts, [0, 1, 2])
    scores = images @ texts.T
    assert figures["image_to_text R@1"] == pytest.approx(recall_at(scores, np.eye(3, dtype=bool), (1,))["R@1"])
    assert figures["text_to_image R@1"] == pytest.approx(recall_at(scores.T, np.eye(3, dtype=bool), (1,))["R@1"])
    assert figures["image_to_text R@1"] != figures["text_to_image R@1"]
    assert figures["mean recall"] == pytest.approx(np.mean([figures[f"{way} R@{k}"] for way in WAYS for k in (1, 5, 10)]))


def test_the_median_rank_counts_from_one_and_ties_half() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [5.0, 5.0, 1.0], [9.0, 8.0, 7.0]])
    assert median_rank(scores, np.eye(3, dtype=bool)) == 1.5


def test_vectors_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        retrieval(np.eye(3), np.eye(2), [0, 1, 2])


def record(name: str, state: str, side: str | None = None) -> FindingRecord:
    return FindingRecord.from_dict({"name": name, "state": state, "side": side})


def test_records_that_a_report_cannot_tell_apart_have_one_word_and_full_overlap() -> None:
    one = [record("lung_nodule", "present", "left"), record("lung_mass", "absent")]
    same = list(reversed(one))
    other = [record("lung_nodule", "present", "right"), record("lung_mass", "absent")]
    assert record_word(one) == record_word(same) != record_word(other)
    scores = record_scores([facts_of(one), facts_of(same), facts_of(other)])
    assert scores[0, 1] == 1.0 and scores[0, 2] == 0.0


def test_two_studies_without_any_finding_overlap_fully() -> None:
    normal = [record("lung_nodule", "absent")]
    assert record_scores([facts_of(normal), facts_of(normal)]).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def _record(name: str, **rest: object) -> list[FindingRecord]:
    return [FindingRecord(name=name, state="present", **rest)]  # type: ignore[arg-type]


def test_measures_stand_beside_oracle_and_chance_in_galleries_of_one_view() -> None:
    records = [_record("emphysema"), _record("emphysema"), _record("lung_mass"), _record("renal_cyst"), _record("cardiomegaly")] * 2
    views = ["chest"] * 5 + ["slab"] * 5
    vectors = np.eye(10)
    wrong = np.roll(vectors, 1, axis=0)
    found = measures({"seen": vectors, "unseen": wrong.T}, records, views)
    once = {name: float(measure(np.ones((1, 10)))[0]) for name, measure in found.items()}
    assert once["retrieval/all/own report/seen/text to image R@1"] == 1.0
    assert once["retrieval/all/own report/unseen/text to image R@1"] == 0.0
    # Wrong by one place, but next to an emphysema lies another: an equal record is right.
    assert once["retrieval/all/equal record/unseen/text to image R@1"] == pytest.approx(0.2)
    # In each view two of five cannot be told apart: the oracle finds three for certain and two by halves.
    assert once["retrieval/only slab/own report/record oracle/image to text R@1"] == pytest.approx(4 / 5)
    assert once["retrieval/only slab/equal record/record oracle/image to text R@1"] == 1.0
    assert once["retrieval/only chest/own report/chance/text to image R@1"] == pytest.approx(1 / 5)
    assert "retrieval/only chest/own report/seen/text to image R@5" not in once  # the whole gallery


def test_a_figure_of_one_gallery_rests_on_its_own_studies() -> None:
    views = ["chest"] * 5 + ["slab"] * 5
    texts = np.concatenate([np.eye(10)[:5], np.roll(np.eye(10)[5:], 1, axis=0)])
    found = measures({"seen": texts.T}, [_record("emphysema")] * 10, views)
    name = "retrieval/only chest/own report/seen/image to text R@1"
    assert found[name](np.array([[1.0] * 5 + [7.0] * 5]))[0] == 1.0


def test_scores_by_words_are_those_of_the_search_and_where_it_weighs_statements_of_the_vectors_alone_too() -> None:
    draw = np.random.default_rng(1)
    kept, texts = draw.normal(size=(4, 6)), draw.normal(size=(4, 6))
    found = by_words(kept, {"seen": texts}, 2)
    for scan, text in itertools.product(range(4), range(4)):
        vectors, statements = kept[scan, :2] @ texts[text, :2], kept[scan, 2:] @ texts[text, 2:]
        assert found["seen, vectors alone"][scan, text] == pytest.approx(vectors)
        assert found["seen"][scan, text] == pytest.approx(vectors + statements)
    assert list(by_words(kept, {"seen": texts}, 6)) == ["seen"]


def test_a_gallery_too_small_to_tell_anything_is_left_out() -> None:
    assert list(galleries(["chest"] * 6 + ["slab"] * 4)) == ["all", "only chest"]
    assert list(galleries(["chest"] * 6)) == ["all"] and galleries(["chest"] * 4) == {}
