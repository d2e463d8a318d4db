"""Builds the label-and-tissue atlas of the synthetic cohort from the sample scan; the patient's own nodule is painted out.

Run once by a maintainer: `python training/make_atlas.py --ct CT --mask MASK --structures CSV --out VelvetMedLib/assets/atlas`.
The scan ends at mid-kidney. Below its last slice the lowest 60 mm are unfolded downwards (mirror, then repeat), which closes
the kidneys and carries spine, great vessels, muscles and skin on; what must not repeat is relabelled as bowel or muscle,
and a plain pelvis is added, so that a network also meets bones and muscles that have no label.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

SPACING_MM = 3.0
EXTENSION_MM = 195.0
NODULE_RAS = (-56.4, -86.5, -116.0)
NODULE_RADII_MM = (21.0, 24.0, 19.0)
RESIDUAL_STEP_HU = 6
BOX_LO = (-201.0, -141.0)  # right, anterior
BOX_HI = (198.0, 120.0)

TISSUES = (
    "air", "skin", "fat_subcutaneous", "fat_visceral", "muscle", "muscle_fat", "soft", "vessel_other", "bone_other_cortical",
    "bone_other_marrow", "lung", "lung_dense", "lung_vessel", "airway", "airway_wall", "heart_blood", "myocardium", "heart_fat",
    "aorta_blood", "aorta_wall", "supraaortic", "vena_cava_superior", "brachiocephalic_vein", "vena_cava_inferior", "portal_vein",
    "pulmonary_vein", "liver", "liver_vessel", "spleen", "renal_cortex", "renal_medulla", "renal_sinus", "pancreas", "pancreas_fat",
    "adrenal", "stomach_wall", "stomach_gas", "stomach_content", "bowel_wall", "bowel_gas", "bowel_content", "esophagus",
    "esophagus_gas", "thyroid", "spinal_cord", "vertebra_cortical", "vertebra_trabecular", "rib_cortical", "rib_marrow",
    "cartilage", "sternum", "shoulder_cortical", "shoulder_marrow", "bladder",
)  # fmt: skip
T = {name: index for index, name in enumerate(TISSUES)}
BOWEL, AORTA, IVC, LIVER, LOWER_LEFT = 18, 52, 63, 5, 11
RIBS = range(92, 116)
VERTEBRAE = range(27, 51)

# HU steps inside one labelled part: (upper bound, tissue); the last has no bound.
SPLITS: dict[int, tuple[tuple[float, str], ...]] = {
    1: ((9999, "spleen"),), 5: ((95, "liver"), (9999, "liver_vessel")),
    6: ((-250, "stomach_gas"), (45, "stomach_content"), (9999, "stomach_wall")),
    7: ((0, "pancreas_fat"), (9999, "pancreas")), 8: ((9999, "adrenal"),), 9: ((9999, "adrenal"),),
    15: ((-200, "esophagus_gas"), (9999, "esophagus")), 16: ((-400, "airway"), (9999, "airway_wall")), 17: ((9999, "thyroid"),),
    BOWEL: ((-250, "bowel_gas"), (20, "bowel_content"), (9999, "bowel_wall")),
    51: ((30, "heart_fat"), (240, "myocardium"), (9999, "heart_blood")), AORTA: ((200, "aorta_wall"), (9999, "aorta_blood")),
    62: ((9999, "vena_cava_superior"),), 59: ((9999, "brachiocephalic_vein"),), IVC: ((9999, "vena_cava_inferior"),),
    54: ((9999, "supraaortic"),), 64: ((9999, "portal_vein"),), 53: ((9999, "pulmonary_vein"),), 79: ((9999, "spinal_cord"),),
    118: ((9999, "cartilage"),), 116: ((9999, "sternum"),),
    86: ((-15, "muscle_fat"), (9999, "muscle")), 88: ((-15, "muscle_fat"), (9999, "muscle")),
    2: ((20, "renal_sinus"), (185, "renal_medulla"), (9999, "renal_cortex")),
    10: ((-780, "lung"), (-520, "lung_dense"), (9999, "lung_vessel")),
    29: ((340, "vertebra_trabecular"), (9999, "vertebra_cortical")), 92: ((300, "rib_marrow"), (9999, "rib_cortical")),
    69: ((300, "shoulder_marrow"), (9999, "shoulder_cortical")),
}  # fmt: skip
SAME_SPLIT = {3: 2, 11: 10, 12: 10, 13: 10, 14: 10, 60: 59, 87: 86, 89: 88} | dict.fromkeys(range(55, 59), 54)
SAME_SPLIT |= dict.fromkeys(VERTEBRAE, 29) | dict.fromkeys(range(70, 75), 69)
MERGED_PARTS = {19: BOWEL, 20: BOWEL, 23: 3, 24: 2, 61: 51} | dict.fromkeys(RIBS, 92) | dict.fromkeys(range(55, 59), 54) | {60: 59}
MERGED_PARTS |= dict.fromkeys(range(70, 75), 69)

Array = NDArray[np.float32]
Labels = NDArray[np.uint8]


def _to_grid(path: Path, size: tuple[int, ...], origin_lps: tuple[float, float, float], labels: bool) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    reference = sitk.Image(size, sitk.sitkUInt8)
    reference.SetSpacing((SPACING_MM,) * 3)
    reference.SetOrigin(origin_lps)
    reference.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # i to the right, j to anterior, k to superior
    if labels:
        return sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    image = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), sitk.sitkFloat32, -1024.0, 1600.0)
    smooth = sitk.SmoothingRecursiveGaussian(image, (1.1, 1.1, 0.6))
    return sitk.GetArrayFromImage(sitk.Resample(smooth, reference, sitk.Transform(), sitk.sitkLinear, -1024.0))


def _largest(mask: np.ndarray) -> np.ndarray:
    components = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8))))
    return sitk.GetArrayFromImage(components) == 1


def _morph(mask: np.ndarray, radius: int, how: str) -> np.ndarray:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    if how == "erode":
        return sitk.GetArrayFromImage(sitk.BinaryErode(image, [radius] * 3)) > 0
    if how == "dilate":
        return sitk.GetArrayFromImage(sitk.BinaryDilate(image, [radius] * 3)) > 0
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(image)) > 0


def _fill_by_slice(mask: np.ndarray) -> np.ndarray:
    """Fills holes slice by slice, so that lungs open at the top do not count as outside."""
    out = np.empty_like(mask)
    for k, plane in enumerate(mask):
        out[k] = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(plane.astype(np.uint8)))) > 0
    return out


def _coordinates(shape: tuple[int, ...], lo: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RAS mm as three arrays that broadcast to (k, j, i): right, anterior, superior."""
    k, j, i = (np.arange(n, dtype=np.float32) * SPACING_MM for n in shape)
    return (lo[0] + i)[None, None, :], (lo[1] + j)[None, :, None], (lo[2] + k)[:, None, None]


def paint_out_nodule(hu: Array, parts: Labels, lo: tuple[float, float, float]) -> Array:
    """Replaces the nodule by lung copied from the same lobe; the edge of the copy fades over 6 mm."""
    right, anterior, superior = _coordinates(hu.shape, lo)
    radius = np.sqrt(
        sum(((c - centre) / r) ** 2 for c, centre, r in zip((right, anterior, superior), NODULE_RAS, NODULE_RADII_MM, strict=True))
    )
    region = np.argwhere((radius < 1.0) & (parts == LOWER_LEFT))
    lobe = parts == LOWER_LEFT
    best: tuple[float, tuple[int, int, int]] | None = None
    for shift in [(dk, dj, di) for dk in range(-26, 27, 2) for dj in range(-14, 19, 2) for di in range(-10, 11, 2)]:
        if abs(shift[0]) < 15 and abs(shift[1]) < 16:
            continue  # the copy must not reach into the nodule itself
        moved = region + shift
        if (moved < 0).any() or (moved >= hu.shape).any():
            continue
        at = tuple(moved.T)
        missing = 1.0 - float(lobe[at].mean())
        dense = float((hu[at] > -500).mean())
        score = 20 * missing + dense + abs(float(np.median(hu[at])) + 860) / 500
        if best is None or score < best[0]:
            best = (score, shift)
    if best is None:
        raise RuntimeError("no place in the lobe to copy lung from")
    moved = region + best[1]
    values = np.where(lobe[tuple(moved.T)], hu[tuple(moved.T)], -865.0)
    fade = np.clip((1.0 - radius[tuple(region.T)]) * 20.0 / 4.0, 0.0, 1.0)
    out = hu.copy()
    there = tuple(region.T)
    keep = np.minimum(hu[there], -700.0)  # in the fading rim dense voxels still belong to the nodule's spicules
    out[there] = fade * values + (1.0 - fade) * keep
    return out


def classify(hu: Array, parts: Labels, superior: np.ndarray) -> tuple[Labels, np.ndarray]:
    """Tissue of each voxel, and the body mask (table and air excluded)."""
    body = _fill_by_slice(_largest((hu > -350) | (parts > 0)))
    body = _morph(_largest(_morph(body, 1, "erode")), 1, "dilate") & body
    tissue = np.full(hu.shape, T["soft"], np.uint8)
    other = parts == 0
    tissue[other & (hu > 150)] = T["vessel_other"]
    tissue[other & (hu < -25)] = T["fat_visceral"]
    tissue[other & (hu < -300)] = T["airway"]
    for part in np.unique(parts[parts > 0]):
        where = parts == part
        values = hu[where]
        steps = SPLITS[SAME_SPLIT.get(int(part), int(part))]
        tissue[where] = np.array([T[name] for _, name in steps], np.uint8)[np.searchsorted([bound for bound, _ in steps[:-1]], values)]
    # muscle: unlabelled soft tissue outside the rib cage and the abdominal cavity is body-wall muscle, inside it stays "soft"
    inner = _fill_by_slice(_morph((tissue != T["fat_visceral"]) & body & _morph(body, 2, "erode"), 4, "dilate"))
    inner = _morph(inner, 4, "erode") & body
    tissue[body & ~inner & (tissue == T["fat_visceral"])] = T["fat_subcutaneous"]
    lungs = np.isin(parts, (10, 11, 12, 13, 14))
    cage = _fill_by_slice(_morph(lungs | np.isin(parts, (5, 1, 6, 18, 51, 2, 3)), 5, "dilate"))
    tissue[other & (tissue == T["soft"]) & ~_morph(cage, 4, "erode")] = T["muscle"]
    tissue[(tissue == T["soft"]) & (np.broadcast_to(superior, hu.shape) > -60)] = T["muscle"]
    rim = body & ~_morph(body, 1, "erode")
    tissue[rim & other & (hu > -300)] = T["skin"]
    tissue[~body] = T["air"]
    return tissue, body


def add_shoulder_caps(tissue: Labels, parts: Labels, hu: Array, lo: tuple[float, float, float], rng: np.random.Generator) -> None:
    """Rounds off the shoulders that the scan's field of view cut."""
    right, anterior, superior = _coordinates(hu.shape, lo)
    for side, edge in ((1, 160.0), (-1, -162.0)):
        r = np.sqrt(((right - side * 128) / 58) ** 2 + ((anterior + 24) / 46) ** 2 + ((superior + 18) / 52) ** 2)
        place = (r < 1) & (tissue == T["air"]) & (side * right > side * edge - 14)
        tissue[place & (r >= 0.94)] = T["skin"]
        tissue[place & (r < 0.94)] = T["fat_subcutaneous"]
        tissue[place & (r < 0.82)] = T["muscle"]
        parts[place] = 0
        level = np.where(r < 0.82, 50.0, -100.0)
        hu[place] = (level + rng.normal(0, 12, hu.shape))[place]


def extend_down(tissue: Labels, parts: Labels, hu: Array, lo_s: float, rng: np.random.Generator) -> tuple[Labels, Labels, Array]:
    """Unfolds the lowest 60 mm downwards (mirror, then again in order) and relabels what must not come twice."""
    steps = int(EXTENSION_MM / SPACING_MM)
    fold = int(60 / SPACING_MM)
    depth = np.arange(1, steps + 1)
    phase = depth % (2 * fold)
    source = np.where(phase <= fold, phase, 2 * fold - phase)
    new_tissue, new_parts, new_hu = tissue[source].copy(), parts[source].copy(), hu[source].copy()
    depth_mm = (depth * SPACING_MM)[:, None, None] + np.zeros(new_hu.shape, np.float32)
    kidney = np.isin(new_parts, (2, 3))
    gone = np.isin(new_parts, (LIVER, 6, 7, 8, 9, 64, 10, 11, 12, 13, 14, 1)) | (kidney & (depth_mm > 63))
    new_parts[gone] = BOWEL
    smooth = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(rng.normal(0, 1, new_hu.shape)), 2.6)
    gut = sitk.GetArrayFromImage(smooth)
    gut /= gut.std()
    new_tissue[gone] = np.where(gut > 0.9, T["fat_visceral"], np.where(gut < -0.9, T["bowel_content"], T["bowel_wall"]))[gone]
    new_parts[gone & (gut > 0.9)] = 0
    new_hu[gone] = (np.where(gut > 0.9, -100.0, np.where(gut < -0.9, 5.0, 45.0)) + rng.normal(0, 14, gut.shape))[gone]
    walls = (new_parts == 92) | (new_parts == 118)
    new_parts[walls] = 0
    new_tissue[walls] = T["muscle"]
    new_hu[walls] = (50 + rng.normal(0, 14, gut.shape))[walls]
    for part, below, tissue_name in ((AORTA, 62, "vessel_other"), (IVC, 75, "vessel_other")):
        there = (new_parts == part) & (depth_mm > below)
        new_parts[there] = 0
        new_tissue[there] = T[tissue_name]
    bone = np.isin(new_parts, tuple(VERTEBRAE))
    level = np.zeros_like(new_parts)
    level[:fold] = np.array([0] * 29 + [29, 28, 27], np.uint8)[np.minimum(new_parts[:fold], 31)]  # L3 ends, L2 serves as L4, L1 as L5
    level[fold : 2 * fold] = np.where(new_parts[fold : 2 * fold] == 31, 27, 0)
    new_parts[bone] = level[bone]
    sacrum = bone & (level == 0)
    new_tissue[sacrum] = np.where(new_hu[sacrum] > 340, T["bone_other_cortical"], T["bone_other_marrow"])
    return new_tissue[::-1], new_parts[::-1], new_hu[::-1]


def add_pelvis(tissue: Labels, parts: Labels, hu: Array, lo: tuple[float, float, float], top_s: float, rng: np.random.Generator) -> None:
    """A plain pelvis: iliac wings, hip joints, gluteal muscle, bladder; bones and muscles here have no label."""
    right, anterior, superior = _coordinates(hu.shape, lo)
    depth = top_s - superior
    inside = _morph(tissue != T["air"], 4, "erode") & ~np.isin(parts, tuple(VERTEBRAE)) & (depth > 0)
    t = np.clip((depth - 72) / 100, 0, 1)
    t3 = np.broadcast_to(t, hu.shape)
    low = (depth > 72) & (depth < 195)
    for side in (1, -1):
        x = side * (right + 18)  # the spine of this patient lies 18 mm to the left here
        distance = np.full(hu.shape, 999.0, np.float32)
        for u in np.linspace(0, 1, 30):
            px = 30 * (1 - u) ** 2 + 2 * u * (1 - u) * 100 + u**2 * (112 - 20 * t)
            pa = -62 * (1 - u) ** 2 - 2 * u * (1 - u) * 48 + u**2 * (46 - 50 * t)
            np.minimum(distance, np.hypot(x - px, anterior - pa), out=distance, where=np.broadcast_to(np.asarray(low), hu.shape))
        wing = inside & low & (distance < 7) & (t3 > 0.02)
        head = inside & (np.sqrt((x - 84) ** 2 + (anterior + 2) ** 2 + (depth - 176) ** 2) < 25)
        gluteal = inside & low & (x > 42) & (anterior < -8) & (distance > 6) & (distance < 30) & ~wing
        tissue[gluteal] = T["muscle"]
        tissue[wing | head] = T["bone_other_marrow"]
        tissue[wing & (distance > 3.2)] = T["bone_other_cortical"]
        parts[gluteal | wing | head] = 0
        hu[gluteal] = (48 + rng.normal(0, 16, hu.shape))[gluteal]
        hu[wing | head] = (220 + rng.normal(0, 60, hu.shape))[wing | head]
        hu[wing & (distance > 3.2)] = 520
    bladder = inside & ((((right + 18) / 42) ** 2 + ((anterior - 30) / 36) ** 2 + ((depth - 172) / 32) ** 2) < 1)
    tissue[bladder], parts[bladder], hu[bladder] = T["bladder"], 0, 8.0


def build(ct: Path, mask: Path, names: dict[int, str]) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """All arrays of the atlas and its table."""
    rng = np.random.default_rng(1)
    size = tuple(round((hi - lo) / SPACING_MM) + 1 for lo, hi in zip((*BOX_LO, -340.0), (*BOX_HI, -10.0), strict=True))
    lo = (*BOX_LO, -340.0)
    origin = (-lo[0], -lo[1], lo[2])
    hu = _to_grid(ct, size, origin, labels=False)
    parts = _to_grid(mask, size, origin, labels=True)
    for old, new in MERGED_PARTS.items():
        parts[parts == old] = new
    hu = paint_out_nodule(hu, parts, lo)
    _, _, superior = _coordinates(hu.shape, lo)
    tissue, _ = classify(hu, parts, superior)
    parts[tissue == T["air"]] = 0
    add_shoulder_caps(tissue, parts, hu, lo, rng)
    below = extend_down(tissue, parts, hu, lo[2], rng)
    tissue, parts, hu = np.concatenate((below[0], tissue)), np.concatenate((below[1], parts)), np.concatenate((below[2], hu))
    lo = (lo[0], lo[1], lo[2] - below[0].shape[0] * SPACING_MM)
    add_pelvis(tissue, parts, hu, lo, -340.0, rng)
    tissue[(parts > 0) & (tissue == T["air"])] = T["soft"]

    pairs, inverse = np.unique(parts.astype(np.int32) * 256 + tissue, return_inverse=True)
    if len(pairs) > 255:
        raise RuntimeError(f"{len(pairs)} cells do not fit in one byte")
    cells = inverse.reshape(parts.shape).astype(np.uint8)
    order = np.argsort(inverse.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(inverse.ravel()))
    # Medians: an organ's rim is mixed with its neighbours, and a mean would put the organ's own density off.
    middle = np.array([np.median(values) for values in np.split(hu.ravel()[order], ends[:-1])])
    middle[pairs % 256 == T["air"]] = -1000.0
    residual = np.round((hu - middle[cells]) / RESIDUAL_STEP_HU)
    residual[tissue == T["air"]] = 0
    arrays = {
        "cells": cells,
        "residual": np.clip(residual, -127, 127).astype(np.int8),
        "cell_part": (pairs // 256).astype(np.uint8),
        "cell_tissue": (pairs % 256).astype(np.uint8),
        "cell_hu": middle.astype(np.float32),
    }
    table = {
        "version": 1, "spacing_mm": SPACING_MM, "origin_ras_mm": list(lo), "residual_step_hu": RESIDUAL_STEP_HU,
        "scan_bottom_s_mm": -340.0, "tissues": list(TISSUES), "parts": {str(n): names[n] for n in np.unique(parts).tolist() if n},
        "painted_out": {"what": "lung nodule", "center_ras_mm": NODULE_RAS, "radii_mm": NODULE_RADII_MM},
    }  # fmt: skip
    return arrays, table


def read_names(structures: Path) -> dict[int, str]:
    """Structure names by id from the sample's csv."""
    with open(structures, encoding="utf-8", newline="") as file:
        return {int(row["id"]): row["structure"] for row in csv.DictReader(file)}


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A deflated .npz with fixed dates, so that the same input gives the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("ct", "mask", "structures", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    arrays, table = build(options.ct, options.mask, read_names(options.structures))
    options.out.mkdir(parents=True, exist_ok=True)
    save_npz(options.out / "atlas.npz", arrays)
    (options.out / "atlas.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{arrays['cells'].shape} voxels, {len(arrays['cell_part'])} cells, {(options.out / 'atlas.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
