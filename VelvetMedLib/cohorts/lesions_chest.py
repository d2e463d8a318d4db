"""Findings around the lungs: pleural fluid and air, pericardial fluid, coronary calcium, lymph nodes, hiatal hernia."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.cohorts.canvas import LOBES_LEFT, LOBES_RIGHT, Canvas, Floats, Mask, label, log_uniform
from VelvetMedLib.cohorts.tissues import TissueHu

_BONES = ("vertebrae", "ribs", "sternum", "costal_cartilages", "shoulder_girdle", "spinal_cord")


def _sides(rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    return ((LOBES_LEFT,), (LOBES_RIGHT,), (LOBES_LEFT, LOBES_RIGHT))[int(rng.choice(3, p=(0.35, 0.35, 0.3)))]


def _cavity_part(
    canvas: Canvas, rng: np.random.Generator, labels: tuple[int, ...], volume: float, dependent: bool, most: float
) -> NDArray[np.intp]:
    """The lowest (fluid) or highest (air) part of a pleural cavity in a patient on the back, with a slightly uneven surface."""
    where = np.flatnonzero(canvas.mask(labels))
    tilt, wave = float(rng.uniform(0.1, 0.5)), float(rng.uniform(0, 60))
    if len(where) == 0:
        return where
    s, a, r = canvas.coordinates(where)
    sign = np.float32(1.0 if dependent else -1.0)
    middle = r.mean()
    rise = np.abs(r - middle) * np.float32(0.18)  # a meniscus: fluid climbs at the walls
    score = sign * a + sign * np.float32(tilt) * s - rise + 2.5 * np.sin((r + np.float32(wave)) / 13)
    return canvas.lowest(where, score.astype(np.float32), min(volume, most * len(where) * canvas.voxel_ml))


def pleural_effusion(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """8 to 1,500 ml of fluid at the back and base of one or both cavities; it is no longer lung. Else shams."""
    sides = _sides(rng)
    hu = float(rng.uniform(-2, 28))
    flat = canvas.hu.ravel()
    for labels in sides:
        volume = log_uniform(rng, 18.0, 1500.0) if affected else log_uniform(rng, 8.0, 60.0)
        chosen = _cavity_part(canvas, rng, labels, volume, True, 0.6)
        texture = rng.standard_normal(len(chosen), dtype=np.float32)
        if not affected:
            flat[chosen] += np.float32(0.05) * texture
            continue
        flat[chosen] = np.float32(hu) + 5 * texture
        canvas.organs.ravel()[chosen] = 0
        canvas.mark_flat("pleural_effusion", chosen)


def pneumothorax(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """8 to 1,500 ml of free air at the front of one cavity (rarely both): no vessels, no lung. Else shams."""
    sides = _sides(rng)[: 1 if rng.uniform() < 0.85 else 2]
    flat = canvas.hu.ravel()
    for labels in sides:
        volume = log_uniform(rng, 18.0, 1500.0) if affected else log_uniform(rng, 8.0, 60.0)
        chosen = _cavity_part(canvas, rng, labels, volume, False, 0.5)
        texture = rng.standard_normal(len(chosen), dtype=np.float32)
        if not affected:
            flat[chosen] += np.float32(0.05) * texture
            continue
        flat[chosen] = np.float32(-1000.0) + 3 * texture
        canvas.organs.ravel()[chosen] = 0
        canvas.mark_flat("pneumothorax", chosen)


def _outside_distance(canvas: Canvas, mask: Mask, reach_mm: float) -> tuple[tuple[slice, slice, slice], Floats] | None:
    """Distance to a mask in mm around it (negative inside), in a box that reaches `reach_mm` further."""
    if not mask.any():
        return None
    box = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(n for n in range(3) if n != axis)))
        pad = int(np.ceil(reach_mm / canvas.step))
        box.append(slice(max(int(line[0]) - pad, 0), min(int(line[-1]) + pad + 1, canvas.shape[axis])))
    crop = (box[0], box[1], box[2])
    image = sitk.GetImageFromArray(mask[crop].astype(np.uint8))
    image.SetSpacing((canvas.step,) * 3)
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return crop, sitk.GetArrayFromImage(distance)


def pericardial_effusion(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """A shell of 12 to 450 ml of fluid around the heart, thicker below and behind; it is neither heart nor lung. Else a sham."""
    volume = log_uniform(rng, 24.0, 450.0) if affected else log_uniform(rng, 8.0, 40.0)
    hu, lean = float(rng.uniform(0, 25)), rng.uniform(0.2, 0.5, 2)
    heart = canvas.mask((label("heart"),))
    found = _outside_distance(canvas, heart, 48.0)
    if found is None:
        return
    box, distance = found
    blocked = canvas.mask([label(n) for n in (*_BONES, "aorta", "heart", "liver", "stomach", "spleen", "trachea", "superior_vena_cava",
                                              "inferior_vena_cava", "esophagus")])[box]  # fmt: skip
    blocked = blocked | (canvas.lesions[box] > 0) | canvas.tissue_mask("air", "skin", "fat_subcutaneous", "muscle")[box]
    s, a, _ = canvas.axes(box)
    k, j, i = (np.mean(x) for x in np.nonzero(heart[box]))
    middle = canvas.first_sar + (np.array([k + box[0].start, j + box[1].start, i + box[2].start], np.float32)) * np.float32(canvas.step)
    # Above the heart lie the great vessels, which the pericardium does not follow far.
    stretch = 1.0 + lean[0] * (s - middle[0]) / 45 + lean[1] * (a - middle[1]) / 60 + np.maximum((s - middle[0] - 30) / 12, 0)
    score = np.where(blocked, np.float32(1e6), distance * np.maximum(stretch, 0.35).astype(np.float32))
    where = np.flatnonzero(score < 40.0)
    chosen = canvas.lowest(where, score.ravel()[where], volume)
    texture = rng.standard_normal(len(chosen), dtype=np.float32)
    at = np.unravel_index(chosen, distance.shape)
    full = np.ravel_multi_index((at[0] + box[0].start, at[1] + box[1].start, at[2] + box[2].start), canvas.shape)
    flat = canvas.hu.ravel()
    if not affected:
        flat[full] += np.float32(0.05) * texture
        return
    flat[full] = np.float32(hu) + 6 * texture
    canvas.organs.ravel()[full] = 0
    canvas.mark_flat("pericardial_effusion", full)


def coronary_calcification(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to nine bright specks on the upper front surface of the heart, 0.03 to 3 ml together; else shams. One instance in all."""
    total = log_uniform(rng, 0.06, 3.0) if affected else log_uniform(rng, 0.03, 0.5)
    count = int(rng.integers(1, 10))
    hu = float(rng.uniform(350, 1100))
    heart = canvas.mask((label("heart"),))
    shell = np.zeros(canvas.shape, bool)
    inner = heart[1:-1, 1:-1, 1:-1]
    covered = heart[2:, 1:-1, 1:-1] & heart[:-2, 1:-1, 1:-1] & heart[1:-1, 2:, 1:-1] & heart[1:-1, :-2, 1:-1]
    shell[1:-1, 1:-1, 1:-1] = inner & ~(covered & heart[1:-1, 1:-1, 2:] & heart[1:-1, 1:-1, :-2])
    where = np.flatnonzero(shell)
    if len(where):
        s, a, _ = canvas.coordinates(where)
        upper = (s > np.quantile(s, 0.45)) & (a > np.quantile(a, 0.35))
        shell = np.zeros(canvas.shape, bool)
        shell.ravel()[where[upper]] = True
    specks = np.zeros(canvas.shape, bool)
    for share in rng.dirichlet(np.full(count, 2.0)):
        center = canvas.pick(rng, shell)
        radius = max((3 * total * share * 1000 / (4 * np.pi)) ** (1 / 3), 0.8)
        radii = (radius * 0.8, radius * 0.8, radius * 1.5)
        if center is None or (blob := canvas.blob(rng, center, radii)) is None:
            continue
        box, cover = blob
        if not affected:
            canvas.blend(box, cover * np.float32(0.01), float(canvas.hu[box].mean()))
            continue
        before = canvas.hu[box].copy()
        canvas.blend(box, cover, hu)
        specks[box] |= canvas.hu[box] - before > 110.0
    canvas.mark_flat("coronary_calcification", np.flatnonzero(specks))


def lymphadenopathy(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to four mediastinal nodes of 6 to 30 mm beside the trachea and its fork; else nodes below 8 mm and shams."""
    count = 1 + min(int(rng.geometric(0.5)) - 1, 3)
    enhancement = 0.0 if tissues.phase == "native" else float(rng.uniform(10, 60))
    hu = float(rng.uniform(25, 50)) + enhancement
    airway = canvas.mask((label("trachea"),))
    found = _outside_distance(canvas, airway, 34.0)
    host = np.zeros(canvas.shape, bool)
    if found is not None:
        box, distance = found
        free = (canvas.organs[box] == 0) & canvas.tissue_mask("soft", "fat_visceral", "vessel_other")[box] & (canvas.lesions[box] == 0)
        line = np.flatnonzero(airway.any(axis=(1, 2)))
        deep = np.arange(box[0].start, box[0].stop) < line[0] + 0.65 * (line[-1] - line[0])  # not up in the neck
        host[box] = free & (distance < 30.0) & (distance > 2.0) & deep[:, None, None]
    keep_out = canvas.mask([label(n) for n in ("trachea", "aorta", "esophagus", "superior_vena_cava", "heart", *_BONES)])
    for n in range(count):
        short = log_uniform(rng, 8.0, 32.0) if affected else float(rng.uniform(3.0, 8.0))
        seen = affected or (n == 0 and rng.uniform() < 0.4)
        center = canvas.pick(rng, host)
        radii = (short / 2 * rng.uniform(1.0, 1.3), short / 2, short / 2 * rng.uniform(1.0, 1.6))
        if center is None or (blob := canvas.blob(rng, center, radii, 0.08)) is None:
            continue
        box, cover = blob
        cover = cover * ~keep_out[box]
        texture = canvas.noise(rng, cover.shape, 6.0) * np.float32(7.0)
        if not seen:
            canvas.blend(box, cover * np.float32(0.02), canvas.hu[box] + texture)
            continue
        canvas.blend(box, cover, texture + np.float32(hu))
        mask = cover >= 0.5
        canvas.organs[box][mask] = 0
        canvas.mark("lymphadenopathy", box, mask)


def hiatal_hernia(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """6 to 300 ml of stomach around the lowest esophagus, above the diaphragm: wall, fluid below, gas in front. Else a sham."""
    volume = log_uniform(rng, 13.0, 320.0) if affected else log_uniform(rng, 4.0, 20.0)
    above, gas, ratio = float(rng.uniform(22, 42)), float(rng.uniform(0.0, 0.6)), rng.uniform(0.85, 1.2, 3)
    wall, fluid = float(rng.uniform(30, 70)), float(rng.uniform(0, 40))
    gullet = canvas.mask((label("esophagus"),))
    where = np.flatnonzero(gullet)
    if len(where) == 0:
        return
    s, a, r = canvas.coordinates(where)
    near = np.abs(s - (s.min() + above)) < 6
    if not near.any():
        return
    radius = (3 * volume * 1000 / (4 * np.pi)) ** (1 / 3)
    center = np.array([s.min() + above + 0.35 * radius, a[near].mean() + 0.25 * radius, r[near].mean() - 0.1 * radius], np.float32)
    blob = canvas.blob(rng, center, tuple(radius * ratio), 0.12)
    if blob is None:
        return
    box, cover = blob
    keep_out = canvas.mask([label(n) for n in (*_BONES, "aorta", "liver", "spleen", "inferior_vena_cava", "autochthon", "trachea")])
    cover = cover * ~(keep_out[box] | canvas.tissue_mask("air", "skin", "fat_subcutaneous", "muscle")[box])
    _, front, _ = canvas.axes(box)
    depth = np.clip((cover - 0.5) * 2, 0, 1) * (cover > 0.8)
    inner = np.where(front > center[1] + radius * (1 - 2 * gas), np.float32(-900.0), np.float32(fluid))
    value = np.where((depth > 0.95) & _surrounded(cover > 0.8), inner, np.float32(wall)) + 8 * canvas.noise(rng, cover.shape, 6.0)
    if not affected:
        canvas.blend(box, cover * np.float32(0.005), value)
        return
    canvas.blend(box, cover, value.astype(np.float32))
    mask = cover >= 0.5
    canvas.organs[box][mask] = label("stomach")
    canvas.mark("hiatal_hernia", box, mask)


def _surrounded(mask: Mask) -> Mask:
    """Voxels whose six neighbours are all in the mask."""
    out = mask.copy()
    for axis in range(3):
        view, src = np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0)
        view[1:] &= src[:-1]
        view[:-1] &= src[1:]
        view[0] = view[-1] = False
    return out
