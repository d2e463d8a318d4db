"""Intervals by bootstrap over cases: a measure is a function of how often each case is drawn, so that one set of draws serves all.

Two bundles measured on the same cases are compared with the same draws (paired bootstrap): see `comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights: TypeAlias = NDArray[np.float64]
"""[draws, cases]: how often each case was drawn."""
Measure: TypeAlias = Callable[[Weights], NDArray[np.float64]]
"""From weights to one value per draw, NaN where a draw has none."""

DRAWS = 1000
SHARE = 0.95
LEAST_DEFINED = 0.5
"""A measure that fewer of the draws define has no interval: what is left of them would be a selection."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measure on the cases as they are, with its 95 % percentile interval. None: not defined on these cases."""

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.3f}" + ("" if self.low is None else f" ({self.low:.3f}–{self.high:.3f})")


def resamples(groups: Sequence[Hashable], *, draws: int = DRAWS, seed: int | tuple[int, ...] = 0) -> Weights:
    """Draws with replacement. Cases of one group (twins, series of one patient) are drawn together: they are not independent."""
    numbers = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    of = np.array([numbers[group] for group in groups], np.int64)
    counts = np.random.default_rng(seed).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=draws)
    return counts[:, of].astype(np.float64)


def estimate(measure: Measure, weights: Weights) -> Estimate:
    """The measure with every case once, and its interval over the draws."""
    value = measure(np.ones((1, weights.shape[1])))[0]
    if not np.isfinite(value):
        return Estimate(value=None, low=None, high=None)
    values = measure(weights)
    values = values[np.isfinite(values)]
    if len(values) < LEAST_DEFINED * len(weights):
        return Estimate(value=float(value), low=None, high=None)
    low, high = np.quantile(values, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Estimate(value=float(value), low=float(low), high=float(high))


def ratio(part: ArrayLike, whole: ArrayLike) -> Measure:
    """Sum of `part` over sum of `whole`, both [cases]: a mean, a share, a precision, an F1."""
    above, below = np.asarray(part, np.float64), np.asarray(whole, np.float64)

    def measure(weights: Weights) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: NDArray[np.float64] = np.where(weights @ below > 0, (weights @ above) / (weights @ below), np.nan)
        return found

    return measure


def mean(values: ArrayLike) -> Measure:
    """Mean over the cases that have a value (NaN: none)."""
    array = np.asarray(values, np.float64)
    known = np.isfinite(array)
    return ratio(np.where(known, array, 0.0), known)


def mean_of(measures: Sequence[Measure]) -> Measure:
    """Mean of several measures in each draw, of those that the draw defines."""

    def measure(weights: Weights) -> NDArray[np.float64]:
        values = np.stack([one(weights) for one in measures]) if measures else np.full((1, len(weights)), np.nan)
        known = np.isfinite(values)
        return np.where(known.any(axis=0), np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)

    return measure
