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
from VelvetMedLib.tasks.encoding import FinePart
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.tokens import threshold_bytes

SLAB_VOXELS = 6_000_000
FIRST_LESION = 101
Box = tuple[slice, slice, slice]


def _win_box(bytes_xyz: NDArray[np.uint8], least: int) -> Box | None:
    """(x, y, z) box, one cell generous, of the cells with at least `least`."""
    hit = bytes_xyz >= least
    box = []
    for axis in range(3):
        filled = np.flatnonzero(hit.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(filled) == 0:
            return None
        box.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2))
    return box[0], box[1], box[2]


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
    """Quantised probabilities of a box of fine cells on a box of `grid`, linear; 0 outside. (k, j, i)."""
    part = bytes_xyz[tuple(slice(s.start, min(s.stop, n)) for s, n in zip(source, bytes_xyz.shape, strict=True))]
    inner = tuple(slice(s.start, s.start + n) for s, n in zip(source, part.shape, strict=True))
    from_grid = _sub_grid(fine, inner)  # type: ignore[arg-type]
    return resample_array(part.transpose(2, 1, 0), from_grid, _sub_grid(grid, target), outside=0.0, antialias=False)


def _clip_box(box: Box, k: slice) -> Box | None:
    start, stop = max(box[2].start, k.start), min(box[2].stop, k.stop)
    return (box[0], box[1], slice(start, stop)) if stop > start else None


def _within(box: Box, around: Box) -> tuple[slice, slice, slice]:
    """(k, j, i) slices of `box` in an array that covers `around`."""
    i, j, k = (slice(b.start - a.start, b.stop - a.start) for b, a in zip(box, around, strict=True))
    return k, j, i


def organ_labels(fine: FinePart, grid: Grid, run: Run | None = None) -> NDArray[np.uint8]:
    """Organ labels 0..32 on `grid`. Without stored probabilities (an encoding read from disk) the labels themselves are interpolated."""
    run = run or Run()
    labels = np.zeros(grid.shape_kji, np.uint8)
    classes: list[tuple[int, NDArray[np.uint8], Box, Box]] = []
    for label in range(1, 33):
        source = fine.organ_bytes[label] if fine.organ_bytes is not None else np.where(fine.organs_xyz == label, np.uint8(255), np.uint8(0))
        # The largest of 33 probabilities is at least 1/33, and a linear mean cannot exceed its largest corner.
        box = _win_box(source, 7)
        target = None if box is None else _seen_from(grid, fine.grid, box)
        if box is not None and target is not None and (fine.organs_xyz == label).any():
            classes.append((label, source, box, target))
    if not classes:
        return labels
    union = tuple(slice(min(c[3][a].start for c in classes), max(c[3][a].stop for c in classes)) for a in range(3))
    background = fine.organ_bytes[0] if fine.organ_bytes is not None else np.where(fine.organs_xyz == 0, np.uint8(255), np.uint8(0))
    everything = tuple(slice(0, n) for n in background.shape)
    thickness = max(1, SLAB_VOXELS // max(1, (union[0].stop - union[0].start) * (union[1].stop - union[1].start)))
    for start in range(union[2].start, union[2].stop, thickness):
        run.step((start - union[2].start) / (union[2].stop - union[2].start))
        slab: Box = (union[0], union[1], slice(start, min(start + thickness, union[2].stop)))
        best = _interpolated(background, fine.grid, everything, grid, slab)  # type: ignore[arg-type]
        chosen = np.zeros(best.shape, np.uint8)
        for label, source, box, target in classes:
            here = _clip_box(target, slab[2])
            if here is None:
                continue
            value = _interpolated(source, fine.grid, box, grid, here)
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
        box = _win_box(source, int(lowest[channel]))
        target = None if box is None else _seen_from(grid, fine.grid, box)
        if box is None or target is None:
            continue
        above = _interpolated(source, fine.grid, box, grid, target) - lowest[channel]
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


def _label_boxes(labels_kji: LabelsKJI) -> dict[int, tuple[slice, slice, slice]]:
    """Tight (k, j, i) box of every label, found from one table of labels per axis."""
    tables = []
    for axis in range(3):
        moved = np.moveaxis(labels_kji, axis, 0)
        tables.append(np.stack([np.bincount(plane.ravel(), minlength=256) > 0 for plane in moved], 1))
    boxes = {}
    for label in np.flatnonzero(tables[0].any(1)):
        if label == 0:
            continue
        ends = [np.flatnonzero(table[label]) for table in tables]
        k, j, i = (slice(int(e[0]), int(e[-1]) + 1) for e in ends)
        boxes[int(label)] = (k, j, i)
    return boxes
