"""NRRD volumes (.nrrd, .nhdr) through SimpleITK, with the faults that it would let pass caught first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from VelvetMedLib.ct import checks
from VelvetMedLib.ct.geometry import Grid
from VelvetMedLib.ct.volume import sitk_grid
from VelvetMedLib.shapes import ArrayKJI


def read_nrrd(path: Path, *, labels: bool = False) -> tuple[ArrayKJI, Grid]:
    """(stored values [k, j, i], grid). Raises ScanError."""
    import SimpleITK as sitk

    reader, grid = _header(path, labels)
    try:
        return sitk.GetArrayFromImage(_quietly(reader.Execute)), grid
    except RuntimeError:
        checks.refuse(
            "The NRRD file is damaged or incomplete.",
            found="a header without all of its voxels, or in an encoding that cannot be read",
            expected="a complete NRRD file (raw or gzip encoding)",
            next_step="Copy or export the scan again.",
        )


def read_nrrd_header(path: Path) -> Grid:
    """The grid alone; no voxels are read."""
    return _header(path, labels=False)[1]


def _header(path: Path, labels: bool) -> tuple[Any, Grid]:
    import SimpleITK as sitk

    fields = text_fields(path)
    if any(key.startswith(("Segment0_", "Segmentation_")) for key in fields) and not labels:
        checks.refuse(
            "The file is a segmentation, not a scan.",
            found="a .seg.nrrd file",
            next_step="Give the CT volume on which the segmentation was drawn.",
        )
    if "space" not in fields:
        checks.refuse(
            "The NRRD file does not say how the scan lies in the patient.",
            found="no 'space' field",
            expected="a space such as left-posterior-superior, without which left and right cannot be told",
            next_step="Export the scan again from a program that writes the patient space.",
        )
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        _quietly(reader.ReadImageInformation)
    except RuntimeError:
        checks.refuse(
            "The NRRD file's header cannot be read.",
            found="a header that is damaged or of an unknown version",
            expected="NRRD0001 to NRRD0005",
            next_step="Copy or export the scan again.",
        )
    checks.refuse_components(reader.GetNumberOfComponents())
    (checks.refuse_not_a_box if labels else checks.refuse_dimensions)(tuple(reversed(reader.GetSize())))
    return reader, sitk_grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def text_fields(path: Path) -> dict[str, str]:
    """The header's "field: value" and "key:=value" lines, up to the first empty one (at most 1 MB)."""
    with path.open("rb") as raw:
        lines = raw.read(2**20).split(b"\n")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        text = line.strip().decode("utf-8", "replace")
        if not text:
            break
        key, _, value = text.partition(":")
        if not text.startswith("#"):
            fields[key.strip()] = value.lstrip("=").strip()
    return fields


def _quietly(call: Any) -> Any:
    # ITK's warnings quote the path of the file on stderr.
    import SimpleITK as sitk

    was = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was)
