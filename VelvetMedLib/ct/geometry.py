"""Where voxels lie: affines in RAS millimetres, grids, the box they cover, and straightening of sheared ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.shapes import Affine, IntTriple, Triple

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK, DICOM and NRRD point to the patient's left and back; Slicer, NIfTI and this library to right and front."""

AXIS_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
_REPAIR_BELOW_MM = 0.5


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in space: array shape (k, j, i) and the 4x4 matrix from (i, j, k) to RAS mm (voxel centres)."""

    shape_kji: IntTriple
    ijk_to_ras: Affine

    def __post_init__(self) -> None:
        matrix = np.array(self.ijk_to_ras, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"ijk_to_ras must be 4x4, got shape {matrix.shape}")
        matrix.flags.writeable = False
        object.__setattr__(self, "ijk_to_ras", matrix)
        k, j, i = (int(n) for n in self.shape_kji)
        object.__setattr__(self, "shape_kji", (k, j, i))

    @cached_property
    def spacing_mm(self) -> Triple:
        """Distance between neighbouring voxel centres along i, j, k."""
        i, j, k = np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @cached_property
    def ras_to_ijk(self) -> Affine:
        """The inverse of `ijk_to_ras`."""
        return np.asarray(np.linalg.inv(self.ijk_to_ras), dtype=np.float64)

    @property
    def axis_codes(self) -> str:
        """Nearest anatomical direction of i, j, k, such as "LPS": the letter towards which the index grows."""
        return axis_codes(self.ijk_to_ras)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.ijk_to_ras[:3, :3]))) / 1000.0

    def equals(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """True when both grids have one shape and every corner voxel lies within `tolerance_mm` of its twin."""
        if self.shape_kji != other.shape_kji:
            return False
        return bool(np.abs(self.corners_ras() - other.corners_ras()).max() <= tolerance_mm)

    def corners_ras(self, *, edges: bool = False) -> NDArray[np.float64]:
        """The eight corners [8, 3] in RAS mm: centres of the corner voxels, or with `edges` their outer corners."""
        low = -0.5 if edges else 0.0
        ends = [(low, n - 1.0 - low) for n in reversed(self.shape_kji)]
        ijk = np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]])
        return (ijk @ self.ijk_to_ras.T)[:, :3]

    def box_ras(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(lowest, highest) R, A, S in mm over the outer edges of all voxels."""
        corners = self.corners_ras(edges=True)
        return corners.min(axis=0), corners.max(axis=0)


def axis_codes(ijk_to_ras: Affine) -> str:
    """Nearest anatomical direction of each index axis, each body axis used once (largest cosines first)."""
    cosines = ijk_to_ras[:3, :3] / np.maximum(np.linalg.norm(ijk_to_ras[:3, :3], axis=0), 1e-12)
    letters = ["?", "?", "?"]
    left = np.abs(cosines)
    for _ in range(3):
        row, column = np.unravel_index(int(np.argmax(left)), left.shape)
        letters[column] = AXIS_LETTERS[row][int(cosines[row, column] > 0)]
        left[row, :] = -1.0
        left[:, column] = -1.0
    return "".join(letters)


def ras_grid(grid: Grid, spacing_mm: Triple, *, box_ras: tuple[object, object] | None = None) -> Grid:
    """The axis-aligned RAS grid (i to the right, j to anterior, k to superior) that covers `grid`, or `box_ras` = (lo, hi) in mm.

    `spacing_mm` is along i, j, k. The grid is centred on what it covers, so it overhangs by less than one voxel in all.
    """
    low, high = grid.box_ras() if box_ras is None else (np.asarray(b, dtype=np.float64) for b in box_ras)
    step = np.asarray(spacing_mm, dtype=np.float64)
    if step.shape != (3,) or not np.all(step > 0):
        raise ValueError(f"spacing_mm must be three positive numbers, got {spacing_mm!r}")
    if not np.all(high > low):
        raise ValueError(f"box_ras must have hi > lo on every axis, got {low.tolist()} and {high.tolist()}")
    count = np.maximum(np.ceil((high - low) / step - 1e-6), 1).astype(int)
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = (low + high) / 2 - (count - 1) / 2 * step
    return Grid((int(count[2]), int(count[1]), int(count[0])), matrix)


@dataclass(frozen=True)
class Straightened:
    """What became of a grid whose axes were not at right angles: the rectangular grid, how far off the old one was, and what is needed."""

    grid: Grid
    off_by_mm: float
    needs_resampling: bool


def straighten(grid: Grid) -> Straightened:
    """The rectangular grid nearest to a sheared one.

    Axis i keeps its direction, j is turned to be square to i, k square to both (so in-plane axes of a tilted gantry stay as they are).
    When no voxel moves by more than half a millimetre the matrix is simply replaced; otherwise the new grid covers the old one
    and the voxels must be resampled onto it.
    """
    axes = grid.ijk_to_ras[:3, :3]
    steps = np.linalg.norm(axes, axis=0)
    units, triangle = np.linalg.qr(axes)
    units = units * np.sign(np.diag(triangle))
    centre_ijk = np.array([(n - 1) / 2 for n in reversed(grid.shape_kji)])
    centre = grid.ijk_to_ras[:3, :3] @ centre_ijk + grid.ijk_to_ras[:3, 3]
    matrix = np.eye(4)
    matrix[:3, :3] = units * steps
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre_ijk
    repaired = Grid(grid.shape_kji, matrix)
    off_by_mm = float(np.linalg.norm(repaired.corners_ras() - grid.corners_ras(), axis=1).max())
    if off_by_mm < 1e-3:
        return Straightened(grid, off_by_mm, needs_resampling=False)
    if off_by_mm <= _REPAIR_BELOW_MM:
        return Straightened(repaired, off_by_mm, needs_resampling=False)
    # Along k the true step is what is left of it square to the plane: cos(tilt) times the step along the table.
    square_steps = np.abs(np.diag(triangle))
    frame = units * square_steps
    corners = np.linalg.solve(frame, (grid.corners_ras() - centre).T).T
    low, high = corners.min(axis=0), corners.max(axis=0)
    count = np.ceil(high - low - 1e-6).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3] = frame
    matrix[:3, 3] = centre + frame @ ((low + high) / 2 - (count - 1) / 2)
    return Straightened(Grid((int(count[2]), int(count[1]), int(count[0])), matrix), off_by_mm, needs_resampling=True)
