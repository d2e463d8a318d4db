"""Region and lesion tokens: what the reader, the findings head and the decoder know of the fine view.

One function each, used by training and by the product, so that a network never meets another arithmetic than the
one it was trained on. Everything is pooled with counts (bincount), not with a loop over voxels.

Region token, 77 numbers per structure: 48 pooled features; log volume, mean HU, HU spread, extent x3, centre in the
body box x3, touches the border, present, share below -950 HU; share overlapped by each of the 17 lesion channels.
Lesion token, 108 numbers per component: 48 pooled features; channel one-hot 17; centre in the body box x3, extent x3,
log volume, highest and mean probability, mean HU, touches the border; share inside each of the 32 structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.shapes import Affine, IntTriple, Triple

STRUCTURES = 32
CHANNELS = 17
FEATURES = 48
REGION_SIZE = FEATURES + 12 + CHANNELS
LESION_SIZE = FEATURES + CHANNELS + 11 + STRUCTURES
LOG_ML, HIGHEST = 6, 7
"""Among the scalars of a lesion token, behind features and channel: log(1 + ml), highest probability."""
SUREST = 8.0
"""Logit of the verifier beyond which nothing is surer."""
MOST_LESIONS = 32
DEFAULT_THRESHOLD = 0.5
EMPHYSEMA_HU = -950.0


@dataclass(frozen=True, kw_only=True)
class LesionMeta:
    """Where one lesion token comes from. Boxes are half-open voxel ranges; `seed_xyz` is its most probable voxel."""

    channel: int
    voxels: int
    volume_ml: float
    center_ras_mm: Triple
    box_ras_mm: tuple[Triple, Triple]
    first_xyz: IntTriple
    stop_xyz: IntTriple
    seed_xyz: IntTriple
    max_prob: float
    mean_prob: float
    mean_hu: float
    touches_border: bool
    structure: int
    """Label of the structure that holds most of it, 0 if none."""
    trust: float | None = None
    """How far the bundle's verifier believes that it is of its kind, 0 to 1; None where nothing looked twice."""

    @property
    def box_xyz(self) -> tuple[slice, ...]:
        """Its box in the arrays of the fine grid."""
        return tuple(slice(a, b) for a, b in zip(self.first_xyz, self.stop_xyz, strict=True))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LesionMeta:
        tuples = {name: tuple(data[name]) for name in ("center_ras_mm", "first_xyz", "stop_xyz", "seed_xyz")}
        low, high = data["box_ras_mm"]
        return cls(**{**data, **tuples, "box_ras_mm": (tuple(low), tuple(high))})


@dataclass(frozen=True)
class FineMaps:
    """What the fine sweep leaves behind, all (x, y, z) ordered on one axis-aligned RAS grid.

    organs_xyz: uint8 labels 0..32. lesions_cxyz: [17, X, Y, Z], uint8 with 255 = probability 1 (floats are quantised).
    features_cxyz: [48, ceil(X/2), ceil(Y/2), ceil(Z/2)], pooled over 2x2x2 cells. hu_xyz: HU of the same cells.
    in_view: bool [X+2, Y+2, Z+2] as in `views.FineView`; None means that the grid ends where the scan ends.
    """

    organs_xyz: NDArray[np.uint8]
    lesions_cxyz: NDArray[Any]
    features_cxyz: NDArray[np.float32]
    hu_xyz: NDArray[Any]
    ijk_to_ras: Affine
    body_box_ras: tuple[Any, Any]
    in_view: NDArray[np.bool_] | None = None

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        return np.diag(self.ijk_to_ras)[:3]

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000.0

    def to_body(self, points_ras: NDArray[Any]) -> NDArray[np.float64]:
        """Points in mm to 0..1 within the body box."""
        low, high = (np.asarray(corner, np.float64) for corner in self.body_box_ras)
        return (points_ras - low) / np.maximum(high - low, 1.0)


def quantised(probabilities: NDArray[Any]) -> NDArray[np.uint8]:
    """Probabilities 0..1 as uint8 0..255, the form in which they are kept and pooled everywhere."""
    if probabilities.dtype == np.uint8:
        return probabilities
    return (probabilities * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)


def threshold_bytes(thresholds: Sequence[float] | None) -> NDArray[np.uint8]:
    """Per channel, the lowest quantised value that counts as lesion; never 0."""
    values = np.full(CHANNELS, DEFAULT_THRESHOLD) if thresholds is None else np.asarray(thresholds, np.float64)
    if values.shape != (CHANNELS,):
        raise ValueError(f"{CHANNELS} lesion thresholds expected, got {values.shape}")
    return np.clip(np.ceil(values * 255.0 - 1e-9), 1, 255).astype(np.uint8)


def border_shell(shape: Sequence[int], in_view: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Cells at the edge of the field of view: inside it, with a face neighbour outside. bool [X, Y, Z]."""
    if in_view is None or in_view.all():
        shell = np.zeros(tuple(shape), bool)
        if in_view is None:
            for axis in range(3):
                view = np.moveaxis(shell, axis, 0)
                view[0] = view[-1] = True
        return shell
    core = (slice(1, -1),) * 3
    surrounded = np.ones(tuple(shape), bool)
    for axis in range(3):
        for part in (slice(None, -2), slice(2, None)):
            surrounded &= in_view[tuple(part if a == axis else slice(1, -1) for a in range(3))]
    return in_view[core] & ~surrounded


def _half_index(shape: Sequence[int]) -> tuple[tuple[int, int, int], list[NDArray[np.int32]]]:
    halves = [(n + 1) // 2 for n in shape]
    return (halves[0], halves[1], halves[2]), [np.arange(n, dtype=np.int32) // 2 for n in shape]


def _pooled_features(
    features_cxyz: NDArray[np.float32], labels: NDArray[np.int64], cell: NDArray[np.int32], bins: int
) -> NDArray[np.float32]:
    """Sum of the feature vector of each voxel's cell, by label: [bins, features]. labels, cell: one entry per voxel."""
    features = features_cxyz.reshape(len(features_cxyz), -1)
    cells = features.shape[1]
    counts = np.bincount(labels * cells + cell, minlength=bins * cells)
    filled = np.flatnonzero(counts)
    # Few of the label-cell pairs hold a voxel; they come sorted by label, so that each label is one run of columns.
    weighted = features[:, filled % cells] * counts[filled].astype(np.float32)
    owners, first = np.unique(filled // cells, return_index=True)
    sums = np.zeros((bins, len(features)), np.float32)
    if len(owners):
        sums[owners] = np.add.reduceat(weighted, first, axis=1).T
    return sums


def region_tokens(maps: FineMaps, thresholds: Sequence[float] | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tokens [32, 77] in label order and a mask [32], True where the structure has at least one voxel."""
    organs = maps.organs_xyz
    shape = organs.shape
    inside = np.flatnonzero(organs)
    labels = organs.ravel()[inside].astype(np.int64)
    x, rest = np.divmod(inside.astype(np.int32), np.int32(shape[1] * shape[2]))
    y, z = np.divmod(rest, np.int32(shape[2]))
    bins = STRUCTURES + 1
    voxels = np.bincount(labels, minlength=bins)[1:].astype(np.float64)
    some = np.maximum(voxels, 1.0)
    mask = voxels > 0

    halves, _ = _half_index(shape)
    cell = ((x >> 1) * np.int32(halves[1]) + (y >> 1)) * np.int32(halves[2]) + (z >> 1)
    pooled = _pooled_features(maps.features_cxyz, labels, cell, bins)[1:] / some[:, None].astype(np.float32)

    hu = np.asarray(maps.hu_xyz).ravel()[inside].astype(np.float64)
    mean = np.bincount(labels, hu, minlength=bins)[1:] / some
    square = np.bincount(labels, hu * hu, minlength=bins)[1:] / some
    spread = np.sqrt(np.maximum(square - mean**2, 0.0))
    low_hu = np.bincount(labels[hu < EMPHYSEMA_HU], minlength=bins)[1:] / some

    extent, centre = np.zeros((STRUCTURES, 3)), np.zeros((STRUCTURES, 3))
    for axis, index in enumerate((x, y, z)):
        count = shape[axis]
        table = np.bincount(labels * count + index, minlength=bins * count).reshape(bins, count)[1:]
        filled = table > 0
        extent[:, axis] = np.where(mask, count - filled[:, ::-1].argmax(1) - filled.argmax(1), 0)
        centre[:, axis] = table @ np.arange(count) / some
    extent *= maps.spacing_mm
    centre = maps.to_body(centre * maps.spacing_mm + maps.ijk_to_ras[:3, 3])

    shell = border_shell(shape, maps.in_view)
    touches = np.bincount(organs[shell], minlength=bins)[1:bins] > 0

    overlap = np.zeros((STRUCTURES, CHANNELS))
    lesions, lowest = quantised(maps.lesions_cxyz), threshold_bytes(thresholds)
    for channel in range(CHANNELS):
        hit = lesions[channel] >= lowest[channel]
        overlap[:, channel] = np.bincount(organs[hit], minlength=bins)[1:bins] / some

    scalars = np.stack(
        [np.log1p(voxels * maps.voxel_ml), mean / 1000.0, spread / 1000.0, *(extent.T / 100.0), *centre.T, touches, mask, low_hu], 1
    )
    tokens = np.concatenate([pooled, scalars, overlap], 1).astype(np.float32)
    tokens[~mask] = 0.0
    return tokens, mask


def components(
    hit: NDArray[np.bool_], least_voxels: int = 1, most: int = MOST_LESIONS
) -> list[tuple[tuple[slice, ...], NDArray[np.bool_]]]:
    """Connected parts (26 neighbours) of a mask, largest first: (slices of the whole array, mask inside them).

    Equal sizes keep the order of their first voxel, so the result does not depend on the platform.
    """
    reach = []
    for axis in range(3):
        filled = np.flatnonzero(hit.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(filled) == 0:
            return []
        reach.append(slice(int(filled[0]), int(filled[-1]) + 1))
    image = sitk.GetImageFromArray(hit[tuple(reach)].astype(np.uint8))
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(image, True))
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:most]
    chosen = [int(n) for n in order if sizes[n] >= least_voxels]
    if not chosen:
        return []
    # Noise can have thousands of components: number the chosen ones 1.. and forget the rest before measuring boxes.
    table = np.zeros(len(sizes) + 1, np.uint16)
    table[np.array(chosen) + 1] = np.arange(1, len(chosen) + 1)
    ranked = table[labels]
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.ComputePerimeterOff()
    shapes.ComputeFeretDiameterOff()
    shapes.Execute(sitk.GetImageFromArray(ranked))
    parts = []
    for rank in range(1, len(chosen) + 1):
        box = shapes.GetBoundingBox(rank)
        # SimpleITK counts its axes from the fastest one: box is (last axis, middle, first, sizes in the same order).
        local = tuple(slice(box[2 - a], box[2 - a] + box[5 - a]) for a in range(3))
        whole = tuple(slice(reach[a].start + local[a].start, reach[a].start + local[a].stop) for a in range(3))
        parts.append((whole, ranked[local] == rank))
    return parts


def _pool_features(features: NDArray[np.float32], box: tuple[slice, ...], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean feature over the voxels of a component; features live on cells of 2x2x2 voxels."""
    starts = [s.start // 2 for s in box]
    stops = [(s.stop - 1) // 2 + 1 for s in box]
    padded = np.zeros([2 * (b - a) for a, b in zip(starts, stops, strict=True)], np.float32)
    offsets = [s.start - 2 * a for s, a in zip(box, starts, strict=True)]
    padded[tuple(slice(o, o + n) for o, n in zip(offsets, mask.shape, strict=True))] = mask
    cx, cy, cz = (n // 2 for n in padded.shape)
    weights = padded.reshape(cx, 2, cy, 2, cz, 2).sum((1, 3, 5))
    part = features[(slice(None), *(slice(a, b) for a, b in zip(starts, stops, strict=True)))]
    pooled = part.reshape(part.shape[0], -1) @ weights.ravel() / weights.sum()
    return np.asarray(pooled, np.float32)


def _describe(
    maps: FineMaps, channel: int, probability: NDArray[np.uint8], shell: NDArray[np.bool_], box: tuple[slice, ...], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], LesionMeta]:
    count = int(mask.sum())
    spacing, origin = maps.spacing_mm, maps.ijk_to_ras[:3, 3]
    first = np.array([s.start for s in box])
    stop = np.array([s.stop for s in box])
    centre = np.array([mask.sum(axis=tuple(b for b in range(3) if b != a)) @ np.arange(mask.shape[a]) for a in range(3)]) / count
    centre_ras = (centre + first) * spacing + origin
    values = probability[box][mask].astype(np.float32) / 255.0
    seed = np.unravel_index(int(np.where(mask, probability[box], 0).argmax()), mask.shape)
    mean_hu = float(np.asarray(maps.hu_xyz[box])[mask].astype(np.float64).mean())
    touches = bool((shell[box] & mask).any())
    inside = np.bincount(maps.organs_xyz[box][mask], minlength=STRUCTURES + 1)[1 : STRUCTURES + 1] / count
    extent = (stop - first) * spacing
    volume_ml = count * maps.voxel_ml
    kind = np.zeros(CHANNELS)
    kind[channel] = 1.0
    scalars = [
        *maps.to_body(centre_ras), *(extent / 100.0), np.log1p(volume_ml), values.max(), values.mean(), mean_hu / 1000.0, touches,
    ]  # fmt: skip
    token = np.concatenate([_pool_features(maps.features_cxyz, box, mask), kind, scalars, inside]).astype(np.float32)
    low, high = (first - 0.5) * spacing + origin, (stop - 0.5) * spacing + origin
    meta = LesionMeta(
        channel=channel,
        voxels=count,
        volume_ml=volume_ml,
        center_ras_mm=_triple(centre_ras),
        box_ras_mm=(_triple(low), _triple(high)),
        first_xyz=_int_triple(first),
        stop_xyz=_int_triple(stop),
        seed_xyz=_int_triple(first + np.array(seed)),
        max_prob=float(values.max()),
        mean_prob=float(values.mean()),
        mean_hu=mean_hu,
        touches_border=touches,
        structure=int(inside.argmax()) + 1 if inside.any() else 0,
    )
    return token, meta


def _triple(values: NDArray[Any]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _int_triple(values: NDArray[Any]) -> IntTriple:
    return int(values[0]), int(values[1]), int(values[2])


def lesion_summary(tokens: NDArray[np.float32], verified: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """[17, 3]: what the lesion tokens [N, 108] and the verifier's logits [N, 17] show of each kind.

    The highest logit among all parts, whatever the map takes them for, within +-8; log(1 + ml) of the part that has it; log(1 + the
    number of parts that is to be expected). -8 and zeros where the map shows nothing. Without a verifier: the highest probability of the
    channel, log(1 + ml) of its largest part, the number of its parts.
    """
    summary = np.zeros((CHANNELS, 3))
    kind, scalars = tokens[:, FEATURES : FEATURES + CHANNELS], tokens[:, FEATURES + CHANNELS :]
    if verified is not None:
        summary[:, 0] = -SUREST
        if len(tokens):
            sure = np.clip(verified.astype(np.float64), -SUREST, SUREST)
            summary[:, 0] = sure.max(0)
            summary[:, 1] = scalars[sure.argmax(0), LOG_ML]
            summary[:, 2] = np.log1p((1 / (1 + np.exp(-sure))).sum(0))
        return summary
    for channel in range(CHANNELS):
        own = scalars[kind[:, channel] > 0]
        if len(own):
            summary[channel] = own[:, HIGHEST].max(), own[:, LOG_ML].max(), len(own)
    return summary


def part_mask(lesion_xyz: NDArray[np.uint8], meta: LesionMeta, lowest: int) -> NDArray[np.bool_]:
    """The voxels of one part within its box. lesion_xyz: the map of its channel; lowest: value that counts as lesion."""
    hit = lesion_xyz[meta.box_xyz] >= lowest
    seed = tuple(s - a for s, a in zip(meta.seed_xyz, meta.first_xyz, strict=True))
    mask = np.zeros(hit.shape, bool)
    for place, part in components(hit):
        local = tuple(s - p.start for s, p in zip(seed, place, strict=True))
        if all(0 <= n < size for n, size in zip(local, part.shape, strict=True)) and part[local]:
            mask[place] = part
            break
    return mask


def lesion_tokens(
    maps: FineMaps, thresholds: Sequence[float] | None = None, *, least_voxels: int = 1, most: int = MOST_LESIONS
) -> tuple[NDArray[np.float32], tuple[LesionMeta, ...]]:
    """Tokens [N, 108] of at most `most` lesion components, and where each comes from.

    The largest component of every channel comes first, then the second largest of every channel, and so on, within
    a round by volume: a crowd of one kind cannot push out the only specimen of another.
    """
    lesions, lowest = quantised(maps.lesions_cxyz), threshold_bytes(thresholds)
    found: list[tuple[int, int, int, tuple[slice, ...], NDArray[np.bool_]]] = []
    for channel in range(CHANNELS):
        hit = lesions[channel] >= lowest[channel]
        if hit.any():
            parts = components(hit, least_voxels, most)
            found += [(rank, -int(mask.sum()), channel, box, mask) for rank, (box, mask) in enumerate(parts)]
    found.sort(key=lambda part: part[:3])
    if not found:
        return np.zeros((0, LESION_SIZE), np.float32), ()
    shell = border_shell(maps.organs_xyz.shape, maps.in_view)
    described = [_describe(maps, channel, lesions[channel], shell, box, mask) for _, _, channel, box, mask in found[:most]]
    return np.stack([token for token, _ in described]), tuple(meta for _, meta in described)
