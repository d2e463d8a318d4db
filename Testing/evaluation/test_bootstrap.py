"""The bootstrap: against drawing cases one by one, groups drawn together, and what is not defined."""

from __future__ import annotations

import numpy as np
import pytest

from VelvetMedLib.evaluation.bootstrap import estimate, mean, mean_of, ratio, resamples


def test_weights_give_what_a_list_of_drawn_cases_gives() -> None:
    values = np.array([1.0, np.nan, 4.0, 2.0])
    weights = np.array([[2.0, 1.0, 0.0, 1.0]])
    drawn = np.repeat(values, weights[0].astype(int))
    assert mean(values)(weights)[0] == pytest.approx(np.nanmean(drawn))
    assert ratio([1, 0, 3, 1], [2, 1, 3, 4])(weights)[0] == pytest.approx((1 + 1 + 0 + 1) / (2 + 2 + 1 + 4))


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    draw = np.random.default_rng(5)
    values = draw.normal(size=40)
    found = estimate(mean(values), resamples(range(40), draws=4000, seed=1))
    means = [values[draw.integers(40, size=40)].mean() for _ in range(4000)]
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


def test_cases_of_one_group_are_drawn_together() -> None:
    weights = resamples(["a", "a", "b", "c"], draws=50)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()
    assert (resamples(["a", "b"], draws=5, seed=3) == resamples(["a", "b"], draws=5, seed=3)).all()


def test_what_is_not_defined_has_no_value_and_a_rarely_defined_figure_no_interval() -> None:
    weights = resamples(range(12))
    assert estimate(ratio([0] * 12, [0] * 12), weights).value is None
    rare = np.zeros(12)
    rare[0] = 1.0  # in about 64 % of the draws: an interval
    assert estimate(ratio(rare, rare), weights).low == 1.0

    def seldom(drawn: np.ndarray) -> np.ndarray:
        return np.where(drawn[:, 0] == 1.0, 1.0, np.nan)  # in about 38 % of the draws

    assert estimate(seldom, weights).value == 1.0 and estimate(seldom, weights).low is None


def test_a_mean_of_figures_takes_those_that_a_draw_defines() -> None:
    both = mean_of([ratio([1, 0], [1, 0]), ratio([0, 0], [0, 1])])
    assert both(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx([0.5, 1.0, np.nan], nan_ok=True)
