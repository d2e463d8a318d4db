"""Where the body is in a stored study: found once, kept beside its arrays for every later crop."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.ct.body_cells import BodyCells, body_cells, cell_step
from VelvetMedLib.engine.store import StoredStudy
from VelvetMedLib.shapes import IntTriple, Triple

BODY_FILE = "body.npy"


def body_of(entry: StoredStudy, spacing_mm: Triple) -> BodyCells:
    """Body cells of the stored fine view, whose spacing is `spacing_mm`. Raises StoreFault where that cannot be read.

    The file is no part of the store's contract: without it, or where it does not fit, the cells are found again; where it cannot
    be written, they are found again each time.
    """
    hu = entry.fine()
    step = cell_step(spacing_mm)
    shape: IntTriple = (int(hu.shape[0]), int(hu.shape[1]), int(hu.shape[2]))
    path = entry.folder / BODY_FILE
    cells = _kept(path, tuple(-(-n // s) for n, s in zip(shape, step, strict=True)))
    if cells is not None:
        return BodyCells(cells, step, shape)
    found = body_cells(hu, spacing_mm)
    _keep(path, found.cells)
    return found


def _kept(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    try:
        cells: NDArray[np.bool_] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return cells if cells.dtype == np.bool_ and cells.shape == shape else None


def _keep(path: Path, cells: NDArray[np.bool_]) -> None:
    """Written aside and renamed: other processes and threads may find the same at the same time."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with aside.open("wb") as stream:
            np.save(stream, cells, allow_pickle=False)
        os.replace(aside, path)
    except OSError:
        try:
            aside.unlink(missing_ok=True)
        except OSError:
            return
