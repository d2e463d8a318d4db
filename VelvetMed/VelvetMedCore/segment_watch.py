"""Tells which segments of a segmentation node were edited. A shared label map announces every segment; the voxels say which."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import vtk
from vtk.util import numpy_support

from VelvetMedLib.case.measure import index_box

if TYPE_CHECKING:
    from VelvetMedLib.shapes import Affine, ArrayKJI


@dataclass(frozen=True, eq=False)
class Layer:
    """One label map that segments share. array_kji: a view of its voxels. first_ijk: where its extent begins.
    ids: label value to segment id. image: the VTK object, kept so that the view stays valid."""

    image: Any
    array_kji: ArrayKJI
    first_ijk: tuple[int, int, int]
    ijk_to_ras: Affine
    ids: dict[int, str]


def layers(node: Any) -> Iterator[Layer]:
    """The label maps of a segmentation node, each once. ijk_to_ras counts i, j, k from the image's own zero, not its extent's."""
    segmentation = node.GetSegmentation()
    shared: list[tuple[Any, dict[int, str]]] = []
    for identifier in segmentation.GetSegmentIDs():
        image = node.GetBinaryLabelmapInternalRepresentation(identifier)
        if image is None or 0 in image.GetDimensions() or image.GetPointData().GetScalars() is None:
            continue
        ids = next((known for other, known in shared if other is image), None)
        if ids is None:
            ids = {}
            shared.append((image, ids))
        ids[int(segmentation.GetSegment(identifier).GetLabelValue())] = str(identifier)
    for image, ids in shared:
        values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        extent = image.GetExtent()
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        ijk_to_ras = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
        yield Layer(image, values.reshape(image.GetDimensions()[::-1]), (extent[0], extent[2], extent[4]), ijk_to_ras, ids)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A layer as it was."""

    image: Any
    time: int
    extent: tuple[int, ...]
    layer: Layer


class SegmentWatch:
    """Calls on_edited(ids) as soon as voxels of segments change, or segments come or go. `stop` ends it."""

    def __init__(self, node: Any, on_edited: Callable[[frozenset[str]], None]) -> None:
        self.node = node
        self._on_edited = on_edited
        self._seen = self._look()
        segmentation = node.GetSegmentation()
        events = (segmentation.SourceRepresentationModified, segmentation.SegmentAdded, segmentation.SegmentRemoved)
        self._observed = segmentation
        self._tags = [segmentation.AddObserver(event, self._on_event) for event in events]

    def stop(self) -> None:
        """No further calls. The node may be gone by now."""
        for tag in self._tags:
            self._observed.RemoveObserver(tag)
        self._tags = []
        self._seen = []

    def _look(self) -> list[_Seen]:
        """The voxels as they are, copied: what they will be compared with."""
        return [
            _Seen(part.image, int(part.image.GetMTime()), part.image.GetExtent(), replace(part, array_kji=part.array_kji.copy()))
            for part in layers(self.node)
        ]

    def _on_event(self, *_: Any) -> None:
        now = list(layers(self.node))
        same = len(now) == len(self._seen) and all(
            seen.image is part.image and seen.extent == part.image.GetExtent() and seen.layer.ids == part.ids
            for seen, part in zip(self._seen, now, strict=True)
        )
        if same and all(seen.time == part.image.GetMTime() for seen, part in zip(self._seen, now, strict=True)):
            return  # one stroke on a shared label map is announced once for every segment in it
        changed = self._compared(now) if same else self._by_prints(now)
        self._seen = self._look()
        if changed:
            self._on_edited(frozenset(changed))

    def _compared(self, now: list[Layer]) -> set[str]:
        changed: set[str] = set()
        for seen, part in zip(self._seen, now, strict=True):
            before, after = seen.layer.array_kji, part.array_kji
            differs = before != after
            if differs.any():
                values = {int(v) for array in (before, after) for v in np.unique(array[differs])}
                changed |= {part.ids[value] for value in values if value in part.ids}
        return changed

    def _by_prints(self, now: list[Layer]) -> set[str]:
        """Layers were split, joined or grown: segments are compared one by one, each by where its voxels lie."""
        before, after = _prints([seen.layer for seen in self._seen]), _prints(now)
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _prints(parts: list[Layer]) -> dict[str, tuple[Any, ...]]:
    """Per segment its tight box and a checksum of its voxels; segments without voxels are left out."""
    found: dict[str, tuple[Any, ...]] = {}
    for part in parts:
        for value, name in part.ids.items():
            mask = part.array_kji == value
            box = index_box(mask)
            if box is not None:
                first = tuple(s.start + f for s, f in zip(box, reversed(part.first_ijk), strict=True))
                crop = mask[box]
                found[name] = (first, crop.shape, zlib.crc32(np.packbits(crop).tobytes()), np.round(part.ijk_to_ras, 4).tobytes())
    return found
