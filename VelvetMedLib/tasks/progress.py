"""Progress, cancelling and timings of one run, behind one small object that every stage shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

ProgressCallback: TypeAlias = Callable[[float, str, float | None], None]
"""Called with (fraction 0..1, stage, seconds left or None)."""
CancelCallback: TypeAlias = Callable[[], None]
"""Raises `errors.Cancelled` when the user asked for it; called between tiles, layers and tokens."""


class Run:
    """One run of the analysis. weights: share of the whole time that each stage is expected to take.

    timings: seconds by stage. warnings: sentences that the result must carry.
    """

    def __init__(
        self, progress: ProgressCallback | None = None, cancel: CancelCallback | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        self._progress = progress
        self._cancel = cancel
        self._weights = dict(weights or {})
        self._total = sum(self._weights.values()) or 1.0
        self._before = 0.0
        self._stage: str | None = None
        self._began = time.perf_counter()
        self.timings: dict[str, float] = {}
        self.warnings: list[str] = []

    def check(self) -> None:
        """Raise Cancelled if the user asked for it."""
        if self._cancel is not None:
            self._cancel()

    def step(self, fraction: float) -> None:
        """Say how far the current stage is (0..1); honours a cancel first."""
        self.check()
        if self._progress is None or self._stage is None:
            return
        weight = self._weights.get(self._stage, 0.0)
        done = min((self._before + weight * min(max(fraction, 0.0), 1.0)) / self._total, 1.0)
        elapsed = time.perf_counter() - self._began
        left = elapsed * (1.0 - done) / done if done > 0.05 else None
        self._progress(done, self._stage, left)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage. A stage inside another is timed but does not move the outer one's bar."""
        outer, self._stage = self._stage, self._stage or name
        started = time.perf_counter()
        if outer is None:
            self.step(0.0)
        try:
            yield
        finally:
            self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - started, 4)
            self._stage = outer
        if outer is None:
            self._before += self._weights.get(name, 0.0)
            self.check()
