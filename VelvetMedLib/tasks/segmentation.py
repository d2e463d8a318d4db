"""From the fine grid back to the scan's own grid: one label map of organs and lesions, and what each segment measures.

Probabilities are interpolated linearly, one class at a time inside the box where that class can win, with a running
maximum; slabs of slices bound the memory. This equals interpolating all classes at once and taking the largest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.case import Segment, measure
from VelvetMedLib.ct import Grid, Volume
from VelvetMedLib.ct.resample import resample_array
from VelvetMedLib.reports import ontology
from VelvetMedLib.shapes import ArrayKJI, LabelsKJI
from VelvetMedLib.tasks.class_maps import Box, ClassMaps, filled_box, widened
from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.tokens import threshold_bytes

SLAB_VOXELS = 6_000_000
FIRST_LESION = 101


def _sub_grid(grid: Grid, box_ijk: Box) -> Grid:
    """The part of a grid inside a box of (i, j, k) slices with whole ends."""
    affine = np.array(grid.ijk_to_ras)
    affine[:3, 3] += affine[:3, :3] @ np.array([s.start for s in box_ijk], np.float64)
    i, j, k = (s.stop - s.start for s in box_ijk)
    return Grid((k, j, i), affine)


def _seen_from(grid: Grid, fine: Grid, box_xyz: Box) -> Box | None:
    """(i, j, k) box of `grid` whose voxels can lie within a box of fine cells (half a cell generous)."""
    low = np.array([s.start - 0.5 for s in box_xyz])
    high = np.array([s.stop - 0.5 for s in box_xyz])
    corners = np.array([[x, y, z, 1.0] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    ijk = (grid.ras_to_ijk @ fine.ijk_to_ras @ corners.T)[:3]
    sizes = np.array(grid.shape_kji[::-1])
    first = np.clip(np.floor(ijk.min(1)), 0, sizes).astype(int)
    stop = np.clip(np.ceil(ijk.max(1)) + 1, 0, sizes).astype(int)
    if np.any(stop <= first):
        return None
    return slice(int(first[0]), int(stop[0])), slice(int(first[1]), int(stop[1])), slice(int(first[2]), int(stop[2]))


def _interpolated(bytes_xyz: NDArray[np.uint8], fine: Grid, source: Box, grid: Grid, target: Box) -> NDArray[np.float32]:
    """Quantised probabilities of a box of fine cells, `bytes_xyz`, on a box of `grid`, linear; 0 outside. (k, j, i)."""
    from_grid, to_grid = _sub_grid(fine, source), _sub_grid(grid, target)
    return resample_array(bytes_xyz.transpose(2, 1, 0), from_grid, to_grid, outside=0.0, antialias=False)


def _clip_box(box: Box, k: slice) -> Box | None:
    start, stop = max(box[2].start, k.start), min(box[2].stop, k.stop)
    return (box[0], box[1], slice(start, stop)) if stop > start else None


def _within(box: Box, around: Box) -> tuple[slice, slice, slice]:
    """(k, j, i) slices of `box` in an array that covers `around`."""
    i, j, k = (slice(b.start - a.start, b.stop - a.start) for b, a in zip(box, around, strict=True))
    return k, j, i


def organ_labels(fine: FinePart, grid: Grid, run: Run | None = None) -> NDArray[np.uint8]:
    """Organ labels on `grid`. Without probabilities (an encoding read from disk) the labels themselves are interpolated."""
    run = run or Run()
    labels = np.zeros(grid.shape_kji, np.uint8)
    maps = fine.organ_maps or ClassMaps.certain(fine.organs_xyz)
    # Further than a cell from all cells that it has won, a class wins nothing between cells either.
    boxes = {label: widened(box, maps.shape) for label, box in _label_boxes(fine.organs_xyz).items()}
    classes = [(label, target) for label, box in boxes.items() if (target := _seen_from(grid, fine.grid, box)) is not None]
    if not classes:
        return labels
    union = tuple(slice(min(c[1][a].start for c in classes), max(c[1][a].stop for c in classes)) for a in range(3))
    thickness = max(1, SLAB_VOXELS // max(1, (union[0].stop - union[0].start) * (union[1].stop - union[1].start)))
    for start in range(union[2].start, union[2].stop, thickness):
        run.step((start - union[2].start) / (union[2].stop - union[2].start))
        slab: Box = (union[0], union[1], slice(start, min(start + thickness, union[2].stop)))
        best = _interpolated(maps.parts[0], fine.grid, maps.boxes[0], grid, slab)
        chosen = np.zeros(best.shape, np.uint8)
        for label, target in classes:
            here = _clip_box(target, slab[2])
            if here is None:
                continue
            value = _interpolated(maps.parts[label], fine.grid, maps.boxes[label], grid, here)
            place = _within(here, slab)
            better = value > best[place]
            chosen[place][better] = label
            np.maximum(best[place], value, out=best[place])
        k, j, i = slab[2], slab[1], slab[0]
        labels[k, j, i] = chosen
    return labels


def overlay_lesions(
    labels_kji: NDArray[np.uint8], fine: FinePart, grid: Grid, channels: Collection[int], thresholds: Sequence[float]
) -> NDArray[np.uint8]:
    """Write lesion labels 101.. over organs where a channel's interpolated probability reaches its threshold.

    Where channels overlap, the one furthest above its threshold wins. Changes and returns `labels_kji`.
    """
    lowest = threshold_bytes(thresholds).astype(np.float32)
    margin: NDArray[np.float32] | None = None
    for channel in sorted(channels):
        source = fine.lesions_cxyz[channel]
        hit = filled_box(source >= lowest[channel])
        if hit is None:
            continue
        box = widened(hit, source.shape)
        target = _seen_from(grid, fine.grid, box)
        if target is None:
            continue
        above = _interpolated(source[box], fine.grid, box, grid, target) - lowest[channel]
        k, j, i = target[2], target[1], target[0]
        view, taken = labels_kji[k, j, i], None
        if margin is not None:
            taken = margin[k, j, i]
        hit = (above >= 0) if taken is None else (above >= 0) & (above >= taken)
        view[hit] = FIRST_LESION + channel
        if len(channels) > 1:
            margin = np.full(labels_kji.shape, -1, np.float16) if margin is None else margin  # type: ignore[assignment]
            assert margin is not None
            margin[k, j, i][hit] = above[hit]
    return labels_kji


def segments_of(
    labels_kji: LabelsKJI, volume: Volume | ArrayKJI, grid: Grid, *, organs_kji: LabelsKJI | None = None
) -> tuple[Segment, ...]:
    """Every organ and lesion as a Segment, measured on the scan's own grid; truncated where it meets the scan's border.

    labels_kji: the map to be shown, lesions over organs. organs_kji: the organ map beneath, by which organs are measured:
    an organ includes the lesions in it, though their voxels carry the lesion's label. Without it organs are measured as shown.
    """
    voxels = volume.voxels_kji if isinstance(volume, Volume) else volume
    table = ontology()
    shown = _label_boxes(labels_kji)
    organs = shown if organs_kji is None else _label_boxes(organs_kji)
    boxes = {n: box for n, box in organs.items() if n < FIRST_LESION} | {n: box for n, box in shown.items() if n >= FIRST_LESION}
    found = []
    for label, box in boxes.items():
        entry = table.by_label(label)
        i, j, k = box[2], box[1], box[0]
        mask = (labels_kji if organs_kji is None or label >= FIRST_LESION else organs_kji)[box] == label
        part = _sub_grid(grid, (i, j, k))
        centre, corners = measure.centroid_ras(mask, part), measure.box_ras(mask, part)
        assert centre is not None and corners is not None
        found.append(
            Segment(
                label=label,
                name=entry.name,
                display=entry.display,
                code=entry.code,
                color=entry.color,
                kind="lesion" if label >= FIRST_LESION else "organ",
                volume_ml=measure.volume_ml(mask, part),
                mean_hu=measure.mean_hu(voxels[box], mask),
                truncated=any(s.start == 0 or s.stop == n for s, n in zip(box, labels_kji.shape, strict=True)),
                center_ras_mm=centre,
                box_ras_mm=corners,
            )
        )
    return tuple(found)


def _label_boxes(labels: LabelsKJI) -> dict[int, tuple[slice, slice, slice]]:
    """Tight box of every label, in the array's order of axes, found from one table of labels per axis."""
    tables = []
    for axis in range(3):
        moved = np.moveaxis(labels, axis, 0)
        tables.append(np.stack([np.bincount(plane.ravel(), minlength=256) > 0 for plane in moved], 1))
    boxes = {}
    for label in np.flatnonzero(tables[0].any(1)):
        if label == 0:
            continue
        ends = [np.flatnonzero(table[label]) for table in tables]
        first, second, third = (slice(int(e[0]), int(e[-1]) + 1) for e in ends)
        boxes[int(label)] = (first, second, third)
    return boxes
