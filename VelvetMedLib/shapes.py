"""Shape and geometry aliases used in every signature. Axis order and unit are part of the name.

Arrays: `*_kji` are numpy arrays indexed (k, j, i) as in SimpleITK and Slicer. Tensors are `[B, C, X, Y, Z]`
with X to the right, Y to anterior, Z to superior (RAS). Matrices are 4x4 float64, in mm, column vectors.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

ArrayKJI: TypeAlias = NDArray[Any]
"""A scalar volume indexed (k, j, i)."""
LabelsKJI: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""A label map indexed (k, j, i)."""
Affine: TypeAlias = NDArray[np.float64]
"""4x4 matrix from voxel indices (i, j, k) to RAS millimetres."""
Triple: TypeAlias = tuple[float, float, float]
IntTriple: TypeAlias = tuple[int, int, int]
FourNumbers: TypeAlias = tuple[float, float, float, float]
