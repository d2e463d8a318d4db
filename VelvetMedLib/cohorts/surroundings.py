"""What varies around and inside a body without being a finding: gut contents, gallbladder, table, pad, arms."""

from __future__ import annotations

from typing import Any

import numpy as np

from VelvetMedLib.cohorts.canvas import Canvas, Floats, label
from VelvetMedLib.cohorts.tissues import TissueHu

GALLBLADDER_SAR = (-283.0, 50.0, 44.0)
"""Where a gallbladder would lie in the atlas: its patient has none."""


def refill_gut(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator) -> dict[str, Any]:
    """Redraws what stomach and bowel hold: gas in front, fluid, food, stool, sometimes oral contrast."""
    facts: dict[str, Any] = {}
    for name in ("stomach", "bowel"):
        gas, grain = float(rng.uniform(0, 0.55)), float(rng.uniform(14, 36))
        oral = float(rng.uniform(120, 420)) if rng.uniform() < 0.15 else float(rng.uniform(0, 45))
        redraw = rng.uniform() < 0.6
        seed = int(rng.integers(0, 2**31))
        facts[name] = {"redrawn": bool(redraw), "gas": round(gas, 3), "content_hu": round(oral, 1)}
        where = np.flatnonzero(canvas.organs == label(name))
        if not redraw or len(where) == 0:
            continue
        noise_rng = np.random.default_rng(seed)
        noise = canvas.noise(noise_rng, canvas.shape, grain).ravel()[where]
        _, a, _ = canvas.coordinates(where)
        height = (a - a.min()) / np.float32(max(float(np.ptp(a)), 1.0))
        score = height * np.float32(2.4 if name == "stomach" else 0.8) + noise
        names = canvas.tissue_names
        wall = canvas.tissue.ravel()[where] == names.index(f"{name}_wall")
        flat = canvas.hu.ravel()
        stool = np.float32(40.0 if name == "bowel" else 8.0) * noise_rng.standard_normal(len(where), dtype=np.float32)
        value = np.where(score > np.quantile(score, 1 - gas), np.float32(-930.0), np.float32(oral) + stool)
        edge = wall & (noise_rng.uniform(size=len(where)) < 0.5)
        flat[where] = np.where(edge, flat[where], value)
    return facts


def add_surroundings(canvas: Canvas, rng: np.random.Generator) -> dict[str, Any]:
    """Table, pad and, in some, arms beside the trunk. None of them has a label but the humerus."""
    body = canvas.tissue != 0
    facts: dict[str, Any] = {"table": bool(rng.uniform() < 0.85), "pad": bool(rng.uniform() < 0.4), "arms": bool(rng.uniform() < 0.2)}
    gap, curve, thick = float(rng.uniform(0, 14)), float(rng.uniform(0, 0.0011)), float(rng.uniform(4, 13))
    shell, core = float(rng.uniform(-250, 350)), float(rng.uniform(-980, -650))
    pad_hu, pad_mm = float(rng.uniform(-970, -820)), float(rng.uniform(8, 35))
    arm = {"hu": float(rng.uniform(40, 65)), "gap": float(rng.uniform(2, 22)), "radius": float(rng.uniform(32, 52))}
    arm["a"] = float(rng.uniform(-40, 20))
    texture_seed = int(rng.integers(0, 2**31))
    if not body.any():
        return facts
    s, a, r = canvas.axes()
    air = ~body
    rows = body.any(axis=(0, 2))
    back = float(canvas.first_sar[1]) + float(np.flatnonzero(rows)[0]) * canvas.step
    columns = np.flatnonzero(body.any(axis=(0, 1)))
    middle = float(canvas.first_sar[2]) + float(columns.mean()) * canvas.step
    surface = np.float32(back - gap - 2.0) + np.float32(curve) * (r - middle) ** 2
    depth = surface - a
    if facts["pad"]:
        place = air & (depth > -pad_mm) & (depth <= 0)
        canvas.hu[place] = pad_hu
    if facts["table"]:
        wide = np.abs(r - middle) < 235
        inner = air & (depth > 0) & (depth < thick * 4) & wide
        canvas.hu[inner] = core
        canvas.hu[air & wide & (depth > 0) & (depth < max(thick / 3, canvas.step))] = shell
        canvas.hu[air & wide & (depth > thick * 4) & (depth < thick * 4 + canvas.step)] = shell
    if facts["arms"]:
        texture = np.random.default_rng(texture_seed)
        for side in (1.0, -1.0):
            edge = columns[-1] if side > 0 else columns[0]
            x0 = float(canvas.first_sar[2]) + float(edge) * canvas.step + side * (arm["gap"] * 0.3 + arm["radius"] * 0.75)
            distance = np.sqrt((r - x0) ** 2 + ((a - arm["a"]) * 0.9) ** 2) + 0 * s
            place = air & (distance < arm["radius"])
            inner = place & (distance < arm["radius"] * 0.78)
            canvas.hu[place] = -100.0
            canvas.hu[inner] = arm["hu"] + 10 * texture.standard_normal(int(inner.sum()), dtype=np.float32)
            bone = place & (distance < 12)
            canvas.hu[bone] = 550.0
            canvas.hu[place & (distance < 7)] = 120.0
            canvas.organs[bone] = label("shoulder_girdle")
    return facts


def add_gallbladder(canvas: Canvas, center_sar: Floats, rng: np.random.Generator) -> dict[str, Any]:
    """In two of three bodies a gallbladder under the liver, sometimes with dense bile. It has no label."""
    there, radius, hu = rng.uniform() < 0.65, float(rng.uniform(9, 19)), float(rng.uniform(0, 22))
    dense = float(rng.uniform(40, 110))
    if rng.uniform() < 0.08:
        hu = dense
    blob = canvas.blob(rng, center_sar, (radius, radius * 0.95, radius * float(rng.uniform(1.3, 2.0))))
    facts = {"gallbladder": bool(there)}
    if not there or blob is None:
        return facts
    box, cover = blob
    cover = cover * ~canvas.mask([label(n) for n in ("ribs", "costal_cartilages", "vertebrae", "aorta", "inferior_vena_cava")])[box]
    cover = cover * (canvas.tissue[box] != 0)
    canvas.blend(box, cover, np.float32(hu) + canvas.noise(rng, cover.shape, 6.0) * np.float32(3.0))
    canvas.organs[box][cover >= 0.5] = 0
    return facts
