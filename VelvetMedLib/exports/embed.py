"""The scan and its segments made small enough for one page: one isotropic RAS grid, int16 and uint8, gzip, base64."""

from __future__ import annotations

import base64
import gzip
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from VelvetMedLib import ct
from VelvetMedLib.shapes import Affine, ArrayKJI, LabelsKJI

FINEST_MM = 1.5
MAX_VOXELS = 4_200_000
MAX_ENCODED_BYTES = 7_500_000
AIR_HU = -1024


@dataclass(frozen=True, kw_only=True)
class PageImages:
    """What a page carries of the scan. `has_ct` is False where the Case was written without its image."""

    ct_kji: ArrayKJI
    labels_kji: LabelsKJI | None
    ijk_to_ras: Affine
    spacing_mm: float
    ct_base64: str
    labels_base64: str | None
    has_ct: bool


def page_images(
    volume: ct.Volume | None, labels_kji: LabelsKJI | None, labels_grid: ct.Grid | None, *, max_encoded_bytes: int = MAX_ENCODED_BYTES
) -> PageImages | None:
    """Brings scan and segments onto one grid, the finest that keeps the encoded scan within `max_encoded_bytes`.

    None where there is neither a scan nor a segmentation. The scan is low-pass filtered before it is thinned out, so that
    fine structures do not turn into false edges; segments are nearest-neighbour, so that no label is invented.
    """
    source = volume.grid if volume is not None else labels_grid
    if source is None:
        return None
    spacing_mm = first_spacing_mm(source)
    while True:
        grid = ct.ras_grid(source, (spacing_mm, spacing_mm, spacing_mm))
        voxels = _hounsfield(volume, grid)
        encoded = _nifti_base64(voxels, grid.ijk_to_ras)
        if len(encoded) <= max_encoded_bytes:
            break
        spacing_mm *= 1.02 * (len(encoded) / max_encoded_bytes) ** (1 / 3)
    labels = None
    if labels_kji is not None and labels_grid is not None:
        labels = np.ascontiguousarray(ct.resample_labels(labels_kji, labels_grid, grid)).astype(np.uint8, copy=False)
    return PageImages(
        ct_kji=voxels,
        labels_kji=labels,
        ijk_to_ras=grid.ijk_to_ras,
        spacing_mm=spacing_mm,
        ct_base64=encoded,
        labels_base64=None if labels is None else _nifti_base64(labels, grid.ijk_to_ras),
        has_ct=volume is not None,
    )


def first_spacing_mm(grid: ct.Grid) -> float:
    """Isotropic spacing that spends at most `MAX_VOXELS` on the field of view, and is not finer than the scan itself."""
    volume_mm3 = float(np.prod(grid.shape_kji)) * abs(float(np.linalg.det(grid.ijk_to_ras[:3, :3])))
    return max(FINEST_MM, min(float(s) for s in grid.spacing_mm), (volume_mm3 / MAX_VOXELS) ** (1 / 3))


def _hounsfield(volume: ct.Volume | None, grid: ct.Grid) -> ArrayKJI:
    if volume is None:
        return np.full(grid.shape_kji, AIR_HU, dtype=np.int16)
    thinned = ct.resample(volume, grid, outside_hu=float(AIR_HU), antialias=True)
    return np.clip(np.rint(thinned.voxels_kji), -1024, 3071).astype(np.int16)


def _nifti_base64(array_kji: ArrayKJI, ijk_to_ras: Affine) -> str:
    """A gzipped NIfTI file as text; no file name and no time inside, so that the same case gives the same page."""
    with tempfile.TemporaryDirectory(prefix="velvetmed-page-") as folder:
        path = Path(folder) / "image.nii"
        ct.write_nifti(path, array_kji, ijk_to_ras)
        return base64.b64encode(gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)).decode("ascii")
