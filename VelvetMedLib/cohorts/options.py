"""Options of a synthetic cohort, and the independent random streams that every case draws from."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from VelvetMedLib.errors import CohortError
from VelvetMedLib.shapes import IntTriple

VIEWS = ("chest_abdomen", "chest", "abdomen", "slab")
PHASES = ("native", "arterial", "portal", "delayed")
RENDER_MODES = ("scan", "synthetic", "mixed")


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """How the cases of a cohort are drawn.

    spacing_mm: isotropic voxel size. largest_shape_ijk: the grid of an uncropped case; cropped views are smaller.
    normal_fraction: share of cases drawn with no finding at all. affected_probability: chance that a finding is drawn
    as affected in the others; about three quarters of these measure as present, since sizes run across the thresholds.
    view_weights, mode_weights: relative, in the order of `VIEWS` and `RENDER_MODES`.
    twin_fraction: share of cases that are a copy of the case before with one finding changed.
    """

    spacing_mm: float = 4.0
    largest_shape_ijk: IntTriple = (96, 80, 96)
    normal_fraction: float = 0.2
    affected_probability: float = 0.31
    view_weights: tuple[float, float, float, float] = (0.4, 0.25, 0.22, 0.13)
    mode_weights: tuple[float, float, float] = (0.3, 0.3, 0.4)
    twin_fraction: float = 0.0
    reports: bool = True

    def __post_init__(self) -> None:
        probabilities = {name: getattr(self, name) for name in ("normal_fraction", "affected_probability", "twin_fraction")}
        for name, value in probabilities.items():
            if not 0.0 <= value <= 1.0:
                raise _wrong(name, f"{value}", "a number from 0 to 1")
        if not 1.0 <= self.spacing_mm <= 12.0:
            raise _wrong("spacing_mm", f"{self.spacing_mm}", "a voxel size from 1 to 12 mm")
        if len(self.largest_shape_ijk) != 3 or min(self.largest_shape_ijk) < 16 or max(self.largest_shape_ijk) > 512:
            raise _wrong("largest_shape_ijk", f"{self.largest_shape_ijk}", "three voxel counts from 16 to 512")
        for name, names in (("view_weights", VIEWS), ("mode_weights", RENDER_MODES)):
            weights = getattr(self, name)
            if len(weights) != len(names) or min(weights) < 0 or sum(weights) <= 0:
                raise _wrong(name, f"{weights}", f"{len(names)} weights, none negative, not all zero, for {', '.join(names)}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def _wrong(name: str, found: str, expected: str) -> CohortError:
    return CohortError(
        f"The cohort option {name} cannot be used.", found=found, expected=expected, next_step="Change this option and start again."
    )


def stream(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The generator for one purpose of one case: streams of different purposes never share a draw.

    So a change in how one thing is drawn moves nothing else, and no finding can leak into noise, pose or wording.
    """
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode("ascii")), index)))
