"""Findings of liver and kidneys: focal liver lesions, renal cysts, kidney stones, hydronephrosis."""

from __future__ import annotations

import numpy as np

from VelvetMedLib.cohorts.canvas import Canvas, Floats, label, log_uniform
from VelvetMedLib.cohorts.tissues import TissueHu

KIDNEYS = ("kidney_right", "kidney_left")


def liver_lesion(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to six lesions of 5 to 70 mm: metastasis-like, cyst-like or enhancing; else shams at the liver's own density."""
    liver_label = label("liver")
    liver = canvas.organs == liver_label
    values = canvas.hu[liver]
    base = float(np.median(values)) if len(values) else 0.0
    count = 1 + min(int(rng.geometric(0.5)) - 1, 5)
    kind = rng.uniform()
    contrast = {0: -rng.uniform(18, 50), 1: None, 2: rng.uniform(18, 60)}[0 if kind < 0.55 else 1 if kind < 0.82 else 2]
    cyst = float(rng.uniform(0, 18))
    for _ in range(count):
        diameter = log_uniform(rng, 7.0, 70.0) if affected else log_uniform(rng, 5.0, 40.0)
        center = canvas.pick(rng, liver)
        ratio, lumps = rng.uniform(0.75, 1.0, 2), float(rng.uniform(0, 0.18))
        if (
            center is None
            or (blob := canvas.blob(rng, center, (diameter / 2, diameter / 2 * ratio[0], diameter / 2 * ratio[1]), lumps)) is None
        ):
            continue
        box, cover = blob
        cover = cover * liver[box]
        texture = canvas.noise(rng, cover.shape, 6.0) * np.float32(5.0)
        hu = base if not affected else cyst if contrast is None else base + contrast
        if not affected:
            canvas.blend(box, cover * np.float32(0.02), texture + np.float32(hu))
            continue
        canvas.blend(box, cover, texture + np.float32(hu))
        canvas.mark("liver_lesion", box, cover >= 0.5)


def _kidney(canvas: Canvas, rng: np.random.Generator) -> int:
    return label(KIDNEYS[int(rng.integers(0, 2))])


def renal_cyst(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to three cysts of 5 to 75 mm on the cortex, bulging into the fat around; else shams."""
    count = 1 + min(int(rng.geometric(0.6)) - 1, 2)
    hu = float(rng.uniform(-4, 20))
    for _ in range(count):
        kidney = _kidney(canvas, rng)
        mask = canvas.organs == kidney
        diameter = log_uniform(rng, 6.0, 75.0) if affected else log_uniform(rng, 5.0, 30.0)
        outward = float(rng.uniform(0.1, 0.5))
        center = canvas.pick(rng, mask)
        if center is None:
            continue
        s, a, r = (float(x.mean()) for x in canvas.coordinates(np.flatnonzero(mask)))
        away = center - np.array([s, a, r], np.float32)
        center = center + away / np.float32(max(float(np.sqrt((away**2).sum())), 1.0)) * np.float32(outward * diameter / 2)
        radius = diameter / 2
        blob = canvas.blob(rng, center, (radius, radius * rng.uniform(0.85, 1.0), radius * rng.uniform(0.85, 1.0)))
        if blob is None:
            continue
        box, cover = blob
        room = mask[box] | ((canvas.organs[box] == 0) & canvas.tissue_mask("fat_visceral", "soft", "renal_sinus")[box])
        cover = cover * room
        texture = canvas.noise(rng, cover.shape, 6.0) * np.float32(3.0)
        if not affected:
            canvas.blend(box, cover * mask[box] * np.float32(0.02), texture + np.float32(30.0))
            continue
        canvas.blend(box, cover, texture + np.float32(hu))
        inside = cover >= 0.5
        canvas.organs[box][inside] = kidney
        canvas.mark("renal_cyst", box, inside)


def _hilum(canvas: Canvas, kidney: int) -> Floats | None:
    """A point in the kidney's sinus: its centre, moved a little towards the spine."""
    where = np.flatnonzero(canvas.organs == kidney)
    if len(where) < 40:
        return None
    s, a, r = canvas.coordinates(where)
    medial = -1.0 if kidney == label("kidney_right") else 1.0
    return np.array([s.mean(), a.mean(), r.mean() + medial * 5.0], np.float32)


def hydronephrosis(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """A dilated pelvis with calyces, 2 to 100 ml of water density, in one kidney or both; else shams."""
    both, first = rng.uniform() < 0.15, int(rng.integers(0, 2))
    hu = float(rng.uniform(-2, 16))
    for n, name in enumerate(KIDNEYS):
        volume = log_uniform(rng, 4.5, 100.0) if affected else log_uniform(rng, 1.0, 10.0)
        spread = rng.uniform(-1, 1, (5, 3)) * np.array([1.5, 0.6, 0.5])
        kidney = label(name)
        center = _hilum(canvas, kidney)
        if center is None or (n != first and not both):
            continue
        radius = (3 * 0.55 * volume * 1000 / (4 * np.pi)) ** (1 / 3)
        pieces = [(center, (radius * 1.25, radius * 0.85, radius * 0.95))]
        pieces += [((center + (offset * radius).astype(np.float32)), (radius * 0.5,) * 3) for offset in spread]
        box = canvas.box(center, radius * 2.6 + 2 * canvas.step)
        if box is None:
            continue
        cover = np.zeros(canvas.shape, np.float32)
        for where, radii in pieces:
            blob = canvas.blob(rng, where.astype(np.float32), radii)
            if blob is not None:
                np.maximum(cover[blob[0]], blob[1], out=cover[blob[0]])
        room = (canvas.organs[box] == kidney) | (
            (canvas.organs[box] == 0) & canvas.tissue_mask("fat_visceral", "soft", "renal_sinus", "vessel_other")[box]
        )
        share = cover[box] * room
        texture = canvas.noise(rng, share.shape, 6.0) * np.float32(3.0)
        if not affected:
            canvas.blend(box, share * np.float32(0.02), texture + np.float32(25.0))
            continue
        canvas.blend(box, share, texture + np.float32(hu))
        inside = share >= 0.5
        canvas.organs[box][inside] = kidney
        canvas.mark("hydronephrosis", box, inside)


def kidney_stone(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to three stones of 2 to 18 mm near a kidney's centre; else shams."""
    count = 1 + min(int(rng.geometric(0.65)) - 1, 2)
    for _ in range(count):
        kidney = _kidney(canvas, rng)
        diameter = log_uniform(rng, 3.0, 18.0) if affected else log_uniform(rng, 2.0, 6.0)
        hu, offset = float(rng.uniform(350, 1300)), rng.normal(0, 1, 3) * np.array([12.0, 5.0, 4.0])
        center = _hilum(canvas, kidney)
        if center is None:
            continue
        center = center + offset.astype(np.float32)
        radius = diameter / 2
        blob = canvas.blob(rng, center, (radius, radius * rng.uniform(0.7, 1.0), radius * rng.uniform(0.7, 1.0)))
        if blob is None:
            continue
        box, cover = blob
        if not affected:
            canvas.blend(box, cover * np.float32(0.002), hu)
            continue
        before = canvas.hu[box].copy()
        canvas.blend(box, cover, hu)
        mask = canvas.hu[box] - before > 110.0
        canvas.organs[box][mask] = kidney
        canvas.mark("kidney_stone", box, mask)
