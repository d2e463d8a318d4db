"""A CT volume: read, check, orient, resample, write. Standard library, numpy and SimpleITK (pydicom inside functions)."""

from VelvetMedLib.ct.body import body_box
from VelvetMedLib.ct.dicom import list_series
from VelvetMedLib.ct.dicom_series import SeriesInfo
from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.ct.geometry import ras_grid as _ras_grid_of_grid
from VelvetMedLib.ct.nifti_write import write_nifti
from VelvetMedLib.ct.reading import from_array, read, read_header, read_labels
from VelvetMedLib.ct.resample import resample, resample_labels
from VelvetMedLib.ct.volume import AIR_HU, Header, Volume, from_sitk, to_sitk
from VelvetMedLib.shapes import Triple

__all__ = [
    "AIR_HU",
    "Grid",
    "Header",
    "SeriesInfo",
    "Volume",
    "body_box",
    "from_array",
    "from_sitk",
    "list_series",
    "ras_grid",
    "read",
    "read_header",
    "read_labels",
    "resample",
    "resample_labels",
    "to_sitk",
    "write_nifti",
]


def ras_grid(grid_or_volume: Grid | Volume, spacing_mm: Triple, *, box_ras: tuple[object, object] | None = None) -> Grid:
    """The axis-aligned RAS grid at `spacing_mm` (i, j, k) that covers a grid or volume, or the box (lo, hi) in RAS mm."""
    grid = grid_or_volume.grid if isinstance(grid_or_volume, Volume) else grid_or_volume
    return _ras_grid_of_grid(grid, spacing_mm, box_ras=box_ras)
