"""From a volume node to voxels and their place: real MRML nodes, every geometry compared in millimetres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gui


def world(matrix: np.ndarray, ijk: tuple[float, float, float]) -> np.ndarray:
    return (matrix @ np.array([*ijk, 1.0]))[:3]


def test_a_left_handed_file_keeps_its_millimetres_although_slicer_flips_it(scene: Any, tmp_path: Path) -> None:
    import nibabel as nib
    import slicer

    from VelvetMedCore.volumes import read_volume_node

    affine = np.array([[-0.7518, -0.3078, 0, 11], [-0.2736, 0.8457, 0, -22], [0, 0, 2.5, 33], [0, 0, 0, 1.0]])
    data = np.zeros((12, 10, 8), np.int16)
    data[3, 4, 2] = 700
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "ct.nii.gz")
    voxels_kji, matrix = read_volume_node(slicer.util.loadVolume(str(tmp_path / "ct.nii.gz")))
    assert np.linalg.det(affine[:3, :3]) < 0 < np.linalg.det(matrix[:3, :3])
    k, j, i = np.argwhere(voxels_kji == 700)[0]
    assert np.allclose(world(matrix, (i, j, k)), world(affine, (3, 4, 2)), atol=1e-3)


def test_a_linear_transform_is_hardened_and_the_node_stays_as_it_was(ct: Any) -> None:
    import slicer
    import vtk

    from VelvetMedCore.volumes import read_volume_node

    before, matrix_before = read_volume_node(ct)
    move = vtk.vtkTransform()
    move.RotateZ(30)
    move.Translate(10, -5, 3)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(move.GetMatrix())
    ct.SetAndObserveTransformNodeID(transform.GetID())
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    voxels_kji, matrix = read_volume_node(ct)
    expected = slicer.util.arrayFromVTKMatrix(move.GetMatrix()) @ matrix_before
    assert np.allclose(matrix, expected, atol=1e-6) and np.array_equal(voxels_kji, before)
    assert ct.GetParentTransformNode() is transform and slicer.mrmlScene.GetNumberOfNodes() == nodes
    own = vtk.vtkMatrix4x4()
    ct.GetIJKToRASMatrix(own)
    assert np.allclose(slicer.util.arrayFromVTKMatrix(own), matrix_before)


def test_a_bending_transform_is_hardened_by_resampling(scene: Any) -> None:
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    from VelvetMedCore.volumes import read_volume_node

    voxels = np.full((20, 20, 20), -1000, np.int16)
    voxels[10, 10, 10] = 1000
    node = slicer.util.addVolumeFromArray(voxels, np.eye(4))
    field = vtk.vtkImageData()
    field.SetDimensions(5, 5, 5)
    field.SetOrigin(-20, -20, -20)
    field.SetSpacing(15, 15, 15)
    field.AllocateScalars(vtk.VTK_DOUBLE, 3)
    vtk_to_numpy(field.GetPointData().GetScalars())[:] = (4.0, 0.0, 0.0)
    grid = vtk.vtkGridTransform() if not hasattr(slicer, "vtkOrientedGridTransform") else slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(field)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    transform.SetAndObserveTransformToParent(grid)
    node.SetAndObserveTransformNodeID(transform.GetID())
    moved, matrix = read_volume_node(node)
    k, j, i = np.unravel_index(moved.argmax(), moved.shape)
    assert np.allclose(world(matrix, (i, j, k)), (14, 10, 10), atol=1.0)
    assert voxels[10, 10, 10] == slicer.util.arrayFromVolume(node)[10, 10, 10]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.int16, np.int16), (np.uint8, np.int16), (np.int32, np.int16), (np.uint16, np.int16), (np.float64, np.float32)],
)
def test_values_arrive_in_the_smallest_type_that_holds_them(scene: Any, dtype: type, expected: type) -> None:
    import slicer

    from VelvetMedCore.volumes import read_volume_node

    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    voxels_kji, _ = read_volume_node(slicer.util.addVolumeFromArray(array))
    assert voxels_kji.dtype == expected and np.array_equal(voxels_kji, array)


def test_whole_numbers_beyond_int16_become_float(scene: Any) -> None:
    import slicer

    from VelvetMedCore.volumes import read_volume_node

    voxels_kji, _ = read_volume_node(slicer.util.addVolumeFromArray(np.full((3, 4, 5), 70000, np.int32)))
    assert voxels_kji.dtype == np.float32 and voxels_kji[0, 0, 0] == 70000


def test_the_voxels_are_a_copy_that_outlives_the_node(ct: Any) -> None:
    import slicer

    from VelvetMedCore.volumes import read_volume_node

    voxels_kji, _ = read_volume_node(ct)
    expected = slicer.util.arrayFromVolume(ct).copy()
    slicer.util.arrayFromVolume(ct)[:] = 0
    assert np.array_equal(voxels_kji, expected)


def found(node: Any) -> str:
    from VelvetMedCore.volumes import read_volume_node
    from VelvetMedLib.errors import ScanError

    with pytest.raises(ScanError) as caught:
        read_volume_node(node)
    error = caught.value
    assert all((error.what, error.found, error.expected, error.next_step))
    return error.found


def test_what_is_not_one_scalar_volume_is_refused_in_words(scene: Any) -> None:
    import slicer

    add = slicer.util.addVolumeFromArray
    assert found(None) == "nothing"
    assert found(add(np.zeros((3, 4, 5), np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode")) == "a label map"
    assert "several values" in found(add(np.zeros((3, 4, 5, 3), np.uint8), nodeClassName="vtkMRMLVectorVolumeNode"))
    assert "without voxels" in found(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
    assert "not a volume" in found(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode"))


def test_a_frame_of_a_4d_sequence_is_refused_in_words(ct: Any) -> None:
    import slicer

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode")
    sequence.SetDataNodeAtValue(ct, "0")
    assert "4D" in found(sequence)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.AddSynchronizedSequenceNode(sequence)
    browser.AddProxyNode(ct, sequence, False)
    assert "4D" in found(ct)
