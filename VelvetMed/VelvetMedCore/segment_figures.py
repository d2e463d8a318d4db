"""Figures of segments from the scene: masks on the scan's grid, volume and mean HU, and the table node that keeps them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk

from VelvetMedCore.parameters import parameter_node
from VelvetMedCore.segment_watch import Layer, layers
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.case import Case, Segment, measure
from VelvetMedLib.ct import Grid
from VelvetMedLib.reports import Code, ontology

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Affine, ArrayKJI, LabelsKJI

TABLE_ROLE = "volumes"
COLUMNS = ("Segment", "Volume (ml)", "Mean HU", "SNOMED CT", "Remark")
FIRST_LESION_LABEL = 101
FIRST_OWN_LABEL = 200
"""Labels of segments that a person has added, in the Case."""


def label_map_on(node: Any, labels: Mapping[str, int], shape_kji: tuple[int, ...], ijk_to_ras: Affine) -> LabelsKJI:
    """Segments as one uint8 label map on a grid, by id; where layers overlap the later one wins. 0 outside."""
    result = np.zeros(shape_kji, np.uint8)
    for part in layers(node):
        wanted = {value: labels[name] for value, name in part.ids.items() if name in labels}
        placed = _placed(part, shape_kji, ijk_to_ras) if node.GetParentTransformNode() is None else None
        if not wanted:
            continue
        if placed is None:
            for value, name in part.ids.items():
                if value in wanted:
                    result[_resampled(node, name, shape_kji, ijk_to_ras)] = wanted[value]
            continue
        place, view = placed
        table = np.zeros(max(int(view.max(initial=0)), *wanted) + 1, np.uint8)
        for value, label in wanted.items():
            table[value] = label
        found = table[view]
        np.copyto(result[place], found, where=found > 0)
    return result


def mask_on(node: Any, segment_id: str, shape_kji: tuple[int, ...], ijk_to_ras: Affine) -> ArrayKJI:
    """One segment as a bool array on a grid, whatever lies over it; False outside."""
    mask = np.zeros(shape_kji, bool)
    part = next((layer for layer in layers(node) if segment_id in layer.ids.values()), None)
    if part is None:
        return mask
    placed = _placed(part, shape_kji, ijk_to_ras) if node.GetParentTransformNode() is None else None
    if placed is None:
        return _resampled(node, segment_id, shape_kji, ijk_to_ras)
    place, view = placed
    mask[place] = view == next(v for v, name in part.ids.items() if name == segment_id)
    return mask


def _placed(part: Layer, shape_kji: tuple[int, ...], ijk_to_ras: Affine) -> tuple[tuple[slice, ...], ArrayKJI] | None:
    """Where a layer lies on a grid, and its voxels as they run there. None where the two lattices differ by more than flips."""
    to_grid = np.linalg.inv(ijk_to_ras) @ part.ijk_to_ras
    turn, shift = np.sign(np.diag(to_grid)[:3]), np.rint(to_grid[:3, 3])
    if not (np.allclose(to_grid[:3, :3], np.diag(turn), atol=1e-4) and np.allclose(to_grid[:3, 3], shift, atol=1e-2)):
        return None
    place, source = [], []
    for axis in (2, 1, 0):  # k, j, i
        sign, count, size = int(turn[axis]), part.array_kji.shape[2 - axis], shape_kji[2 - axis]
        first = int(shift[axis]) + sign * part.first_ijk[axis]
        low, high = (first, first + count) if sign > 0 else (first - count + 1, first + 1)
        start, stop = max(low, 0), max(min(high, size), max(low, 0))
        place.append(slice(start, stop))
        source.append(slice(start - low, stop - low) if sign > 0 else slice(high - stop, high - start))
    view = part.array_kji[tuple(source)][tuple(slice(None, None, int(turn[axis])) for axis in (2, 1, 0))]
    return tuple(place), view


def _resampled(node: Any, segment_id: str, shape_kji: tuple[int, ...], ijk_to_ras: Affine) -> ArrayKJI:
    scene = slicer.mrmlScene
    reference = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    out = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    try:
        for volume in (reference, out):
            volume.SetHideFromEditors(True)
        slicer.util.updateVolumeFromArray(reference, np.zeros(shape_kji, np.uint8))
        reference.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras))
        wanted = vtk.vtkStringArray()
        wanted.InsertNextValue(segment_id)
        logic = slicer.modules.segmentations.logic()
        if not logic.ExportSegmentsToLabelmapNode(node, wanted, out, reference):
            raise RuntimeError("a segment could not be brought onto the scan's grid")
        return _padded(out, shape_kji, ijk_to_ras)
    finally:
        for volume in (out, reference):
            scene.RemoveNode(volume)


def _padded(label_map: Any, shape_kji: tuple[int, ...], ijk_to_ras: Affine) -> ArrayKJI:
    """An exported label map, which may be cut to what is in it, on the whole grid."""
    array = slicer.util.arrayFromVolume(label_map) > 0
    matrix = vtk.vtkMatrix4x4()
    label_map.GetIJKToRASMatrix(matrix)
    shift = np.rint((np.linalg.inv(ijk_to_ras) @ slicer.util.arrayFromVTKMatrix(matrix))[:3, 3]).astype(int)
    whole = np.zeros(shape_kji, bool)
    k, j, i = (slice(max(s, 0), min(s + n, size)) for s, n, size in zip(shift[::-1], array.shape, shape_kji, strict=True))
    part = tuple(slice(p.start - s, p.stop - s) for p, s in zip((k, j, i), shift[::-1], strict=True))
    whole[k, j, i] = array[part]
    return whole


def unmeasured(case: Case, node: Any) -> tuple[str, ...]:
    """Ids of segments of the node, with voxels, that the case has no figures of: a person has added them."""
    known = {segment.name for segment in case.segments}
    return tuple(
        name for part in layers(node) for value, name in part.ids.items() if name not in known and bool((part.array_kji == value).any())
    )


def remeasured(case: Case, node: Any, voxels_kji: ArrayKJI, ijk_to_ras: Affine) -> tuple[Case, LabelsKJI, tuple[int, ...]]:
    """The case with fresh figures of every stale or added segment; their labels on the scan's grid; and which labels these are.

    voxels_kji: HU. As in an analysis an organ includes the lesions in it. A segment without voxels leaves the case.
    """
    grid = Grid((voxels_kji.shape[0], voxels_kji.shape[1], voxels_kji.shape[2]), np.asarray(ijk_to_ras, np.float64))
    present = set(node.GetSegmentation().GetSegmentIDs())
    segments = {s.name: s for s in case.segments}
    added = unmeasured(case, node)
    for name in added:
        segments[name] = _added(node, name, segments.values())
    todo = sorted((s for s in segments.values() if s.stale or s.name in added), key=lambda s: s.label)  # organs, then lesions
    shown = label_map_on(node, {s.name: s.label for s in segments.values()}, voxels_kji.shape, ijk_to_ras) if todo else None
    labels_kji = np.zeros(voxels_kji.shape, np.uint8)
    for segment in todo:
        mask = mask_on(node, segment.name, voxels_kji.shape, ijk_to_ras) if segment.name in present else np.zeros((1, 1, 1), bool)
        if not mask.any():
            del segments[segment.name]
            continue
        if segment.kind == "organ" and shown is not None:
            _include_lesions(mask, shown, segment.label)
        segments[segment.name] = measured(segment, mask, voxels_kji, grid)
        labels_kji[mask] = segment.label
    return replace(case, segments=tuple(segments.values())), labels_kji, tuple(s.label for s in todo)


def _include_lesions(mask_kji: ArrayKJI, shown_kji: LabelsKJI, label: int) -> None:
    """Adds to an organ's mask the lesions that lie in it: the label map shows them over it, so their neighbours must tell.

    A lesion belongs to the organ that most of the organ voxels at its surface belong to.
    """
    lesions = (shown_kji >= FIRST_LESION_LABEL) & (shown_kji < FIRST_OWN_LABEL)
    box = measure.index_box(lesions)
    if box is None:
        return
    wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    crop, owned = shown_kji[wide], mask_kji[wide]
    for component in measure.each_component(lesions[wide]):
        place = measure.index_box(component)
        assert place is not None
        around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in place)
        inside = np.zeros(crop[around].shape, bool)
        inside[tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(place, around, strict=True))] = component[place]
        near = np.zeros_like(inside)
        for axis in range(3):
            for step in (1, -1):
                near |= np.roll(inside, step, axis)
        counts = np.bincount(crop[around][near & ~inside], minlength=256)[1:FIRST_LESION_LABEL]
        if counts.any() and int(counts.argmax()) + 1 == label:
            owned[around][inside] = True


def measured(segment: Segment, mask_kji: ArrayKJI, voxels_kji: ArrayKJI, grid: Grid) -> Segment:
    """A segment with the figures of a mask that is not empty."""
    box = measure.index_box(mask_kji)
    center, corners = measure.centroid_ras(mask_kji, grid), measure.box_ras(mask_kji, grid)
    if box is None or center is None or corners is None:
        raise ValueError("an empty mask has no figures")
    return replace(
        segment,
        volume_ml=measure.volume_ml(mask_kji[box], grid),
        mean_hu=measure.mean_hu(voxels_kji[box], mask_kji[box]),
        truncated=any(s.start == 0 or s.stop == n for s, n in zip(box, mask_kji.shape, strict=True)),
        center_ras_mm=center,
        box_ras_mm=corners,
        edited=True,
        stale=False,
    )


def _added(node: Any, name: str, taken: Collection[Segment]) -> Segment:
    """A segment that the model did not make, before it is measured."""
    segment = node.GetSegmentation().GetSegment(name)
    color = tuple(round(255 * channel) for channel in segment.GetColor())
    known = {entry.name: entry for entry in (*ontology().structures, *ontology().lesions)}
    labels = {other.label for other in taken}
    entry = known.get(name)  # a segment of ours that had no voxels, painted by a person
    label = entry.label if entry is not None else next(n for n in range(FIRST_OWN_LABEL, 256) if n not in labels)
    code = entry.code if entry is not None else Code(scheme="", value="", meaning="")
    lesion = entry is not None and any(entry is x for x in ontology().lesions)
    nowhere = (0.0, 0.0, 0.0)
    return Segment(
        label=label,
        name=name,
        display=entry.display if entry is not None else segment.GetName(),
        code=code,
        color=color,
        kind="lesion" if lesion else "organ",
        volume_ml=0.0,
        center_ras_mm=nowhere,
        box_ras_mm=(nowhere, nowhere),
    )


def keep_table(case: Case, *, new: bool = False) -> Any:
    """Writes the figures of the segments into their table node and returns it; `new` leaves an earlier analysis its own table."""
    holder = parameter_node()
    node = holder.GetNodeReference(TABLE_ROLE)
    if node is None or new:
        scene = slicer.mrmlScene
        node = scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName("VelvetMed volumes"))
        node.SetAttribute("VelvetMed.Role", TABLE_ROLE)
        node.SetDescription(RESEARCH_USE_ONLY)
        holder.SetNodeReferenceID(TABLE_ROLE, node.GetID())
    node.RemoveAllColumns()
    rows = [
        (s.display, f"{s.volume_ml:.2f}", "" if s.mean_hu is None else f"{s.mean_hu:.1f}", s.code.value, remark(s)) for s in case.segments
    ]
    for column, title in enumerate(COLUMNS):
        values = vtk.vtkStringArray()
        values.SetName(title)
        for row in rows:
            values.InsertNextValue(row[column])
        node.AddColumn(values)
    return node


def remark(segment: Segment) -> str:
    """What must stand beside a figure, for the table node: not translated, as it is data."""
    parts = (("out of date", segment.stale), ("edited", segment.edited), ("cut off by the field of view", segment.truncated))
    return "; ".join(word for word, holds in parts if holds)
