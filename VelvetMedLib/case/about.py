"""What a question is put to, where it is not the whole scan: one segment, or a box of any orientation in RAS mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case.geometry import BoxRAS, affine_of
from VelvetMedLib.case.records import Record
from VelvetMedLib.shapes import Affine, IntTriple, Triple

_Row = tuple[float, float, float, float]
_SAMPLES = 24


@dataclass(frozen=True, kw_only=True)
class About(Record):
    """Either a segment by its name, or a box: the 4x4 matrix that takes the cube from -1 to 1 on every axis to the box in RAS mm.

    A matrix holds any box that a region of interest can be, turned, mirrored or moved by a transform.
    """

    segment: str | None = None
    box_to_ras: tuple[_Row, _Row, _Row, _Row] | None = None

    def check(self) -> None:
        if (self.segment is None) == (self.box_to_ras is None):
            raise ValueError("About: either a segment or a box")
        if self.box_to_ras is not None:
            affine_of(self.matrix)

    @classmethod
    def between(cls, first: Triple, second: Triple) -> About:
        """The box with these two opposite corners, its edges along R, A and S. Raises ValueError where it is flat."""
        a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
        matrix = np.diag([*np.abs(b - a) / 2, 1.0])
        matrix[:3, 3] = (a + b) / 2
        return cls(box_to_ras=matrix.tolist())

    @property
    def matrix(self) -> Affine:
        """The box's matrix. Raises ValueError for a segment."""
        if self.box_to_ras is None:
            raise ValueError("a segment has no box of its own")
        return np.array(self.box_to_ras, np.float64)

    @property
    def size_mm(self) -> Triple:
        """Lengths of the box's three edges."""
        a, b, c = 2.0 * np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def center_ras_mm(self) -> Triple:
        r, a, s = self.matrix[:3, 3]
        return float(r), float(a), float(s)

    @property
    def volume_ml(self) -> float:
        return 8.0 * abs(float(np.linalg.det(self.matrix[:3, :3]))) / 1000.0

    @property
    def bounds_ras_mm(self) -> BoxRAS:
        """Lowest and highest corner of the smallest box along R, A and S around it."""
        reach = np.abs(self.matrix[:3, :3]).sum(axis=1)
        low, high = self.matrix[:3, 3] - reach, self.matrix[:3, 3] + reach
        return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))

    def holds(self, points_ras: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points [..., 3] in RAS mm lie in the box."""
        inverse = np.linalg.inv(self.matrix)
        inside: NDArray[np.bool_] = (np.abs(points_ras @ inverse[:3, :3].T + inverse[:3, 3]) <= 1.0).all(axis=-1)
        return inside

    def share_in(self, shape_kji: IntTriple, ijk_to_ras: Affine) -> float:
        """How much of the box lies in a scan, 0 to 1, from 24 samples along each edge; the scan ends at its voxels' outer faces."""
        along = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * 2.0 - 1.0
        cube = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1).reshape(-1, 3)
        to_ijk = np.linalg.inv(affine_of(ijk_to_ras)) @ self.matrix
        ijk = cube @ to_ijk[:3, :3].T + to_ijk[:3, 3]
        return float(((ijk >= -0.5) & (ijk <= np.array(shape_kji[::-1]) - 0.5)).all(axis=1).mean())

    def __str__(self) -> str:
        if self.box_to_ras is None:
            return str(self.segment).replace("_", " ")
        size = " × ".join(f"{edge:.0f}" for edge in self.size_mm)
        return f"box of {size} mm at RAS ({', '.join(f'{x:.0f}' for x in self.center_ras_mm)}) mm"
