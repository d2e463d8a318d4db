"""A CT volume: voxels in Hounsfield units, where they lie in the patient, and what was noticed while reading them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from VelvetMedLib.ct.geometry import LPS_TO_RAS, Grid
from VelvetMedLib.shapes import Affine, ArrayKJI, IntTriple, Triple

if TYPE_CHECKING:
    import SimpleITK as sitk

AIR_HU = -1024
"""The lowest value kept: anything below is the scanner's filling outside its circle, not a measurement."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A checked CT volume. Treat `voxels_kji` as read-only: `sha256` is computed once.

    voxels_kji: int16 or float32, indexed (k, j, i), in HU, at least -1024. ijk_to_ras: 4x4, mm, axes at right angles (any handedness).
    provenance: technical facts about the source; never a name, identifier, date or path. warnings: sentences for the user.
    """

    voxels_kji: ArrayKJI
    ijk_to_ras: Affine
    unit: str = "HU"
    provenance: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine without the voxels."""
        k, j, i = self.voxels_kji.shape
        return Grid((k, j, i), self.ijk_to_ras)

    @property
    def spacing_mm(self) -> Triple:
        """Distance between voxel centres along i, j, k."""
        return self.grid.spacing_mm

    @property
    def shape_kji(self) -> IntTriple:
        """Number of voxels along k, j, i."""
        return self.grid.shape_kji

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        digest.update(f"{self.voxels_kji.dtype.str}{self.shape_kji}{self.unit}".encode())
        digest.update(np.ascontiguousarray(self.ijk_to_ras, dtype="<f8").tobytes())
        digest.update(np.ascontiguousarray(self.voxels_kji).data)
        return digest.hexdigest()

    def sha256(self) -> str:
        """Hash over type, shape, unit, affine and voxels (cached): the identity of this input, which names no patient."""
        return self._sha256


@dataclass(frozen=True, eq=False)
class Header:
    """What a scan's headers say, read without its voxels."""

    shape_kji: IntTriple
    ijk_to_ras: Affine
    modality: str | None
    source: str
    warnings: tuple[str, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine; the same grid that `read` gives."""
        return Grid(self.shape_kji, self.ijk_to_ras)

    @property
    def spacing_mm(self) -> Triple:
        """Distance between voxel centres along i, j, k."""
        return self.grid.spacing_mm


def to_sitk(voxels: Volume | ArrayKJI, grid: Grid | Affine | None = None) -> sitk.Image:
    """A SimpleITK image (LPS) of a Volume, or of a (k, j, i) array with its grid or 4x4 ijk-to-RAS matrix."""
    import SimpleITK as sitk

    if isinstance(voxels, Volume):
        array, matrix = voxels.voxels_kji, voxels.ijk_to_ras
    elif grid is None:
        raise ValueError("an array needs its grid or its ijk_to_ras matrix")
    else:
        array, matrix = voxels, grid.ijk_to_ras if isinstance(grid, Grid) else np.asarray(grid, dtype=np.float64)
    lps = LPS_TO_RAS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(x) for x in lps[:3, 3]])
    image.SetDirection([float(x) for x in (lps[:3, :3] / spacing).ravel()])
    return image


def sitk_grid(size_ijk: tuple[int, ...], spacing: tuple[float, ...], origin: tuple[float, ...], direction: tuple[float, ...]) -> Grid:
    """The Grid of a 3D SimpleITK image or reader, given its four geometry fields (LPS)."""
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(direction, dtype=np.float64).reshape(3, 3) * np.asarray(spacing, dtype=np.float64)
    lps[:3, 3] = origin
    return Grid((size_ijk[2], size_ijk[1], size_ijk[0]), LPS_TO_RAS @ lps)


def from_sitk(image: sitk.Image, *, provenance: dict[str, Any] | None = None) -> Volume:
    """A checked Volume of a SimpleITK image in HU; raises ScanError as `from_array` does."""
    import SimpleITK as sitk

    from VelvetMedLib.ct import checks

    checks.refuse_components(image.GetNumberOfComponentsPerPixel())
    checks.refuse_dimensions(tuple(reversed(image.GetSize())))
    grid = sitk_grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return checks.checked_volume(sitk.GetArrayFromImage(image), grid.ijk_to_ras, provenance={"source": "array", **(provenance or {})})
