"""What the worker does for each request: thin, the work is in `tasks`; heavy imports happen inside the functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from VelvetMedLib.errors import WorkerError
from VelvetMedLib.shapes import Affine, ArrayKJI


def read_volume(params: dict[str, Any]) -> tuple[ArrayKJI, Affine]:
    """The voxels that the client handed over: read whole, then deleted. Returns ([k, j, i], 4x4 in mm)."""
    try:
        path = Path(params["npy"])
        ijk_to_ras = np.asarray(params["ijk_to_ras"], dtype=np.float64)
        try:
            voxels_kji = np.load(path, mmap_mode=None, allow_pickle=False)
        finally:
            path.unlink(missing_ok=True)
    except (KeyError, TypeError, ValueError, OSError) as problem:
        raise _unreadable(type(problem).__name__) from None
    if voxels_kji.ndim != 3 or ijk_to_ras.shape != (4, 4):
        raise _unreadable(f"{voxels_kji.ndim} axes and a matrix of shape {ijk_to_ras.shape}")
    return voxels_kji, ijk_to_ras


def _unreadable(found: str) -> WorkerError:
    return WorkerError(
        "The worker could not read the voxels handed to it.",
        found=found,
        expected="one array of three axes with its 4x4 matrix",
        next_step="Start the run again; if it happens again, check the free space of the temporary folder.",
    )
