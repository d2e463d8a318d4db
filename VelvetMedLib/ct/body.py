"""The box of the patient's body in a scan, without the table and the air around it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.ct.geometry import ras_grid
from VelvetMedLib.ct.resample import resample_array
from VelvetMedLib.ct.volume import Volume

BODY_ABOVE_HU = -400.0
_COARSE_MM = 5.0


def body_box(volume: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lowest, highest) R, A, S in mm of the largest connected tissue, found on a 5 mm grid; the whole scan when there is none.

    An opening by one coarse voxel removes the table top, which is thinner than 15 mm, and what joins it to the skin.
    The box is one coarse voxel generous and never larger than the scan.
    """
    low, high = volume.grid.box_ras()
    step = max(_COARSE_MM, float((high - low).max()) / 400)
    grid = ras_grid(volume.grid, (step, step, step))
    coarse = resample_array(volume.voxels_kji, volume.grid, grid, outside=-1024.0, antialias=False)
    tissue = sitk.GetImageFromArray((coarse > BODY_ABOVE_HU).astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(tissue, [1, 1, 1])
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    body = sitk.GetArrayViewFromImage(parts) == 1
    if not body.any():
        return low, high
    where = np.argwhere(body)[:, ::-1]
    first = (grid.ijk_to_ras[:3, :3] @ (where.min(axis=0) - 1.5)) + grid.ijk_to_ras[:3, 3]
    last = (grid.ijk_to_ras[:3, :3] @ (where.max(axis=0) + 1.5)) + grid.ijk_to_ras[:3, 3]
    return np.maximum(first, low), np.minimum(last, high)
