"""From a volume node to voxels and their place in the world: HU array (k, j, i) and IJK to RAS matrix in mm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from VelvetMedLib.case.sources import is_uid
from VelvetMedLib.errors import ScanError

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Affine, ArrayKJI

MOST_INSTANCES = 100_000


def read_volume_node(node: Any) -> tuple[ArrayKJI, Affine]:
    """Voxels as int16 or float32 and the matrix, with every parent transform hardened; the node itself is not touched.

    Raises ScanError for anything that is not one scalar volume of one time point.
    """
    _refuse_what_is_not_one_volume(node)
    copy = _hardened(node) if node.GetParentTransformNode() is not None else node
    matrix = vtk.vtkMatrix4x4()
    copy.GetIJKToRASMatrix(matrix)
    return as_hounsfield(slicer.util.arrayFromVolume(copy)), np.array(slicer.util.arrayFromVTKMatrix(matrix))


def as_hounsfield(voxels_kji: ArrayKJI) -> ArrayKJI:
    """The smallest of the two types the library takes that holds the values; always a copy, as VTK owns the original."""
    if voxels_kji.dtype.kind in "iub":
        limits = np.iinfo(np.int16)
        fits = voxels_kji.dtype.itemsize == 1 or voxels_kji.dtype == np.int16
        if fits or (voxels_kji.min() >= limits.min and voxels_kji.max() <= limits.max):
            return voxels_kji.astype(np.int16)
    return voxels_kji.astype(np.float32)


def instance_uids(node: Any) -> tuple[str, ...]:
    """UIDs of the DICOM instances that a volume was loaded from; empty for any other. Nothing else of the DICOM is looked at."""
    text = node.GetAttribute("DICOM.instanceUIDs") or ""
    return tuple(uid for uid in text.split()[:MOST_INSTANCES] if is_uid(uid))


def _hardened(node: Any) -> Any:
    """A copy outside the scene, sharing the voxels, to which the parent transform is applied (resampled if it bends)."""
    parent = node.GetParentTransformNode()
    copy = slicer.vtkMRMLScalarVolumeNode()
    copy.CopyOrientation(node)
    copy.SetAndObserveImageData(node.GetImageData())
    if parent.IsTransformToWorldLinear():
        matrix = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(matrix)
        copy.ApplyTransformMatrix(matrix)
    else:
        to_world = vtk.vtkGeneralTransform()
        parent.GetTransformToWorld(to_world)
        copy.ApplyTransform(to_world)
    return copy


def _refuse_what_is_not_one_volume(node: Any) -> None:
    if node is None:
        raise ScanError(_("No volume is chosen."), found=_("nothing"), expected=_("a CT volume"), next_step=_("Load a CT and choose it."))
    kind = _unsuitable_kind(node)
    if kind:
        raise ScanError(
            _("This volume cannot be analysed."), found=kind, expected=_("one scalar CT volume"), next_step=_("Choose a scalar CT volume.")
        )
    if node.GetImageData() is None or 0 in node.GetImageData().GetDimensions():
        raise ScanError(
            _("This volume is empty."),
            found=_("a volume node without voxels"),
            expected=_("a CT volume with voxels"),
            next_step=_("Load the scan again."),
        )


def _unsuitable_kind(node: Any) -> str:
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("a label map")
    if node.IsA("vtkMRMLSequenceNode") or _is_sequence_frame(node):
        return _("a sequence of volumes over time (4D)")
    if node.IsA("vtkMRMLVectorVolumeNode") or node.IsA("vtkMRMLTensorVolumeNode") or node.IsA("vtkMRMLMultiVolumeNode"):
        return _("a volume with several values in each voxel")
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return _("something that is not a volume")
    image = node.GetImageData()
    if image is not None and image.GetNumberOfScalarComponents() != 1:
        return _("a volume with several values in each voxel")
    return ""


def _is_sequence_frame(node: Any) -> bool:
    scene = node.GetScene()
    if scene is None:
        return False
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    return any(scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode").IsProxyNodeID(node.GetID()) for n in range(count))
