"""Files from the analysis in the scene: the report, the segments, the Case folder. Written whole or not at all, under neutral names."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from VelvetMedCore.segment_figures import label_map_on
from VelvetMedCore.volumes import instance_uids, read_volume_node
from VelvetMedLib import ct
from VelvetMedLib.case import Case, report_markdown, write_case
from VelvetMedLib.case.sources import write_sources
from VelvetMedLib.errors import CaseError, ScanError

REPORT, SEGMENTS, CASE = "report.md", "segments.seg.nrrd", "case"
ENCODING = "encoding.safetensors"


def save_report(case: Case, folder: Path) -> Path:
    """The draft as Markdown, disclaimer first, with what a person changed. Raises CaseError where the folder cannot be written."""
    path = _in(folder) / REPORT
    with _Part(path) as part:
        part.write_text(report_markdown(case), encoding="utf-8")
    return path


def save_segments(segmentation_node: Any, folder: Path) -> Path:
    """The segmentation as Slicer writes it: names, colours, terminology and our tags in the header. Raises CaseError."""
    path = _in(folder) / SEGMENTS
    if segmentation_node is None:
        raise _nothing(_("segments"))
    storage = slicer.vtkMRMLSegmentationStorageNode()  # of its own: the node keeps the file it belongs to
    with _Part(path) as part:
        storage.SetFileName(str(part))
        storage.SetScene(slicer.mrmlScene)
        if not storage.WriteData(segmentation_node):
            raise OSError("the segments could not be written")
    return path


def save_case(case: Case, segmentation_node: Any, volume_node: Any, folder: Path, *, encoding: Path | None = None) -> Path:
    """The Case folder with the segments as they are now, edits and marks included; with the voxels where the scan is in the scene.

    encoding: the session's Case folder, whose encoding goes along if it is there. Raises CaseError, ScanError.
    """
    path = _in(folder) / CASE
    volume = _volume(volume_node) if volume_node is not None else None
    # After a reload Slicer may have turned the axes: voxels and labels are written as they lie now, and described so.
    grid = ct.Grid(case.input.shape_kji, np.asarray(case.input.ijk_to_ras, np.float64)) if volume is None else volume.grid
    sha256 = case.input.sha256 if volume is None else volume.sha256()
    same = sha256 == case.input.sha256
    placed = {"shape_kji": grid.shape_kji, "ijk_to_ras": grid.ijk_to_ras.tolist(), "spacing_mm": grid.spacing_mm, "sha256": sha256}
    labels = {segment.name: segment.label for segment in case.segments}
    kept = label_map_on(segmentation_node, labels, grid.shape_kji, grid.ijk_to_ras) if segmentation_node is not None else None
    stored = encoding / ENCODING if same and encoding is not None and (encoding / ENCODING).is_file() else None
    described = replace(case, input=replace(case.input, **placed))
    write_case(path, described, segmentation_kji=kept, grid=grid, volume=volume, encoding_path=stored)
    if volume_node is not None and (uids := instance_uids(volume_node)):
        write_sources(path, uids)
    return path


def _volume(node: Any) -> ct.Volume:
    """As the analysis took it in; a scan that it would refuse is kept as it is, since it is in the scene with its segments."""
    voxels_kji, ijk_to_ras = read_volume_node(node)
    try:
        return ct.from_array(voxels_kji, ijk_to_ras)
    except ScanError:
        return ct.Volume(voxels_kji, ijk_to_ras)


class _Part:
    """A temporary file beside the wanted one, with the same ending, that takes its place when all went well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = Path(tempfile.mkdtemp(prefix=".velvetmed-", dir=path.parent))

    def __enter__(self) -> Path:
        return self._folder / self._path.name

    def __exit__(self, kind: Any, *_rest: Any) -> None:
        try:
            if kind is None:
                os.replace(self._folder / self._path.name, self._path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        if kind is not None and issubclass(kind, OSError):
            raise _unwritable() from None


def _in(folder: Path) -> Path:
    if not str(folder) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise _unwritable()
    return folder


def _unwritable() -> CaseError:
    return CaseError(
        _("The files could not be written."),
        found=_("no folder that can be written to"),
        expected=_("a folder with free space, in which you may write"),
        next_step=_("Choose another folder."),
    )


def _nothing(what: str) -> CaseError:
    return CaseError(
        _("There is nothing to save."),
        found=_("no {what} in the scene").format(what=what),
        expected=_("a finished analysis"),
        next_step=_("Press Apply first."),
    )
