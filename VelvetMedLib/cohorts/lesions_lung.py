"""Findings inside the lungs: nodules, masses, consolidation, ground glass, emphysema, atelectasis.

Each painter draws from its finding's own stream. Where the finding is not drawn, the same strokes are made as shams with
a hundredth of a lesion's effect, far below the noise, so that no voxel is left unpainted only where nothing is wrong. Nothing
beyond a lesion's own voxels may depend on whether it is there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.canvas import LOBES, LOBES_LEFT, LOBES_RIGHT, Canvas, Floats, log_uniform
from VelvetMedLib.cohorts.tissues import TissueHu

SHAM_SHARE = 0.01


def _lung_hu(canvas: Canvas, tissues: TissueHu) -> float:
    return float(tissues.mean_hu[canvas.tissue_names.index("lung")])


def _round_lesion(
    canvas: Canvas, rng: np.random.Generator, diameter: float, hu: float, lumps: float, center: Floats | None, real: bool
) -> None:
    radius = diameter / 2
    radii = [radius * float(rng.uniform(0.72, 1.0)), radius * float(rng.uniform(0.72, 1.0)), radius]
    core = float(rng.uniform()) if diameter > 30 else 1.0
    grain = rng.standard_normal()
    if center is None:
        return
    blob = canvas.blob(rng, center, radii, lumps)
    if blob is None:
        return
    box, share = blob
    share = share * canvas.mask(LOBES)[box]
    texture = canvas.noise(rng, share.shape, 6.0) * np.float32(9.0 + 3.0 * abs(grain))
    value: Floats | float = texture + np.float32(hu)
    if not real:
        canvas.blend(box, share * np.float32(SHAM_SHARE), value)
        return
    if core < 0.3:  # a necrotic centre
        value = value - np.float32(28.0) * np.clip(share * 4 - 3, 0, 1)
    canvas.blend(box, share, value)
    canvas.mark("lung_nodule", box, share >= 0.5)


def lung_nodule(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to five nodules of 3 to 31 mm, solid, part-solid or calcified; else shams and, in some, one below the threshold."""
    lungs = canvas.mask(LOBES)
    count = 1 + min(int(rng.geometric(0.55)) - 1, 4)
    kind = rng.uniform()
    tiny = rng.uniform() < 0.15
    for n in range(count):
        diameter = log_uniform(rng, 4.0, 31.0)
        hu = float(rng.uniform(-30, 70) if kind < 0.75 else rng.uniform(-650, -300) if kind < 0.88 else rng.uniform(200, 600))
        center = canvas.pick(rng, lungs)
        real = affected
        if not affected:
            if tiny and n == 0:
                diameter, real = float(rng.uniform(2.0, 4.5)), True
            else:
                hu = _lung_hu(canvas, tissues)
        _round_lesion(canvas, rng, diameter, hu, float(rng.uniform(0.0, 0.22)), center, real)


def lung_mass(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One lump of 24 to 85 mm; else a sham of 10 to 30 mm."""
    center = canvas.pick(rng, canvas.mask(LOBES))
    diameter = log_uniform(rng, 29.0, 90.0) if affected else float(rng.uniform(8.0, 26.0))
    enhancement = 0.0 if tissues.phase == "native" else float(rng.uniform(5, 45))
    hu = float(rng.uniform(15, 50)) + enhancement if affected else _lung_hu(canvas, tissues)
    _round_lesion(canvas, rng, diameter, hu, float(rng.uniform(0.1, 0.3)), center, affected)


def _lobe_region(
    canvas: Canvas, rng: np.random.Generator, volume_ml: float, patchiness: float, labels: tuple[int, ...] = LOBES
) -> tuple[NDArray[np.intp], Floats]:
    """A region that grows from a random seed within one lung, with ragged edges; also how deep each voxel lies in it (0 to 1)."""
    seed = canvas.pick(rng, canvas.mask(labels))
    noise_seed = int(rng.integers(0, 2**31))
    if seed is None:
        return np.zeros(0, np.intp), np.zeros(0, np.float32)
    left = _is_left(canvas, seed)
    reach = max((volume_ml * 1000) ** (1 / 3) * (1.0 + patchiness), 25.0) * 1.2
    box = canvas.box(seed, reach)
    assert box is not None
    inside = np.zeros(canvas.shape, bool)
    inside[box] = canvas.mask(LOBES_LEFT if left else LOBES_RIGHT)[box]
    where = np.flatnonzero(inside)
    s, a, r = canvas.coordinates(where)
    shape = tuple(b.stop - b.start for b in box)
    noise = np.zeros(canvas.shape, np.float32)
    noise[box] = canvas.noise(np.random.default_rng(noise_seed), shape, 18.0)
    score = np.sqrt((s - seed[0]) ** 2 + (a - seed[1]) ** 2 + (r - seed[2]) ** 2)
    score = score + np.float32(patchiness * 9.0) * noise.ravel()[where]
    chosen = canvas.lowest(where, score, volume_ml)
    if len(chosen) == 0:
        return chosen, np.zeros(0, np.float32)
    lookup = np.zeros(canvas.hu.size, np.float32)
    lookup[where] = score
    values = lookup[chosen]
    depth = np.clip((values.max() - values) / np.float32(10.0) + np.float32(0.35), 0, 1)
    return chosen, depth.astype(np.float32)


def _is_left(canvas: Canvas, seed: Floats) -> bool:
    index = np.clip(np.rint((seed - canvas.first_sar) / canvas.step).astype(int), 0, np.array(canvas.shape) - 1)
    return int(canvas.organs[tuple(index)]) in LOBES_LEFT


def consolidation(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One or two ragged airspace regions of 2 to 400 ml with air bronchograms; else a sham."""
    for n in range(2):
        second = rng.uniform() > 0.3
        volume = log_uniform(rng, 4.0, 400.0) if affected else log_uniform(rng, 2.0, 60.0)
        if n == 1 and second:
            continue
        chosen, depth = _lobe_region(canvas, rng, volume, 1.0)
        enhancement = 0.0 if tissues.phase == "native" else float(rng.uniform(0, 50))
        hu = float(rng.uniform(-60, 35)) + enhancement
        texture = rng.standard_normal(len(chosen), dtype=np.float32)
        flat = canvas.hu.ravel()
        if not affected:
            _sham(flat, chosen, texture)
            continue
        airy = np.where(texture > 1.5, np.float32(-450.0), np.float32(0.0))  # bronchi that stay open
        flat[chosen] += np.clip(depth * 1.4, 0, 1) * (np.float32(hu) + 28 * texture + airy - flat[chosen])
        canvas.mark_flat("consolidation", chosen)


def _sham(flat: Floats, chosen: NDArray[np.intp], texture: Floats) -> None:
    """The stroke without its effect: voxels move by their own rounding only."""
    flat[chosen] += np.float32(0.05) * texture


def ground_glass_opacity(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """One to three hazy regions of 3 to 500 ml that leave the vessels visible; else shams."""
    count = int(rng.integers(1, 4))
    total = log_uniform(rng, 6.0, 600.0) if affected else log_uniform(rng, 4.0, 100.0)
    density = float(rng.uniform(130, 380))
    for _ in range(count):
        chosen, depth = _lobe_region(canvas, rng, total / count, 1.8)
        texture = rng.standard_normal(len(chosen), dtype=np.float32)
        flat = canvas.hu.ravel()
        if not affected:
            _sham(flat, chosen, texture)
            continue
        room = np.clip((np.float32(-100.0) - flat[chosen]) / np.float32(700.0), 0, 1)  # dense voxels gain little
        flat[chosen] += np.clip(depth * 1.5, 0, 1) * (np.float32(density) + 30 * texture) * room
        canvas.mark_flat("ground_glass_opacity", chosen)


def emphysema(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """Patches of destroyed lung, more in the upper lobes, taking 1 to 55 % of one or both lungs; else shams."""
    share = log_uniform(rng, 0.025, 0.6) if affected else log_uniform(rng, 0.01, 0.3)
    sides = ((LOBES_LEFT, LOBES_RIGHT), (LOBES_LEFT,), (LOBES_RIGHT,))[int(rng.choice(3, p=(0.7, 0.15, 0.15)))]
    grain = float(rng.uniform(14, 40))
    hu = float(rng.uniform(-995, -955))
    seed = int(rng.integers(0, 2**31))
    lungs = canvas.mask(LOBES)
    total_ml = float(lungs.sum()) * canvas.voxel_ml
    upper = float(rng.uniform(0, 0.012))
    noise = canvas.noise(np.random.default_rng(seed), canvas.shape, grain)
    flat = canvas.hu.ravel()
    for labels in sides:
        where = np.flatnonzero(canvas.mask(labels))
        if len(where) == 0:
            continue
        s, _, _ = canvas.coordinates(where)
        score = noise.ravel()[where] - np.float32(upper) * (s - s.mean())
        ml = min(share * total_ml / len(sides), 0.8 * len(where) * canvas.voxel_ml)
        chosen = canvas.lowest(where, score.astype(np.float32), ml)
        texture = rng.standard_normal(len(chosen), dtype=np.float32)
        if not affected:
            _sham(flat, chosen, texture)
            continue
        flat[chosen] += np.float32(0.85) * (np.minimum(np.float32(hu) + 6 * texture, flat[chosen]) - flat[chosen])
        canvas.mark_flat("emphysema", chosen)


def atelectasis(canvas: Canvas, tissues: TissueHu, rng: np.random.Generator, affected: bool) -> None:
    """A dense plate, or a dependent basal crescent, of 2 to 250 ml in one or both lungs; else shams."""
    both = rng.uniform() < 0.3
    first_left = rng.uniform() < 0.5
    volume = log_uniform(rng, 4.0, 280.0) if affected else log_uniform(rng, 2.0, 40.0)
    plate = rng.uniform() < 0.5
    normal = rng.standard_normal(3) * np.array([1.0, 0.5, 0.35])
    normal /= np.sqrt((normal**2).sum())
    enhancement = 0.0 if tissues.phase == "native" else float(rng.uniform(20, 70))
    hu = float(rng.uniform(20, 45)) + enhancement
    flat = canvas.hu.ravel()
    for left in (True, False):
        labels = LOBES_LEFT if left else LOBES_RIGHT
        seed = canvas.pick(rng, canvas.mask(labels))
        wave = int(rng.integers(0, 2**31))
        if seed is None or (left != first_left and not both):
            continue
        where = np.flatnonzero(canvas.mask(labels))
        s, a, r = canvas.coordinates(where)
        if plate:
            across = (s - seed[0]) * normal[0] + (a - seed[1]) * normal[1] + (r - seed[2]) * normal[2]
            along = np.sqrt((s - seed[0]) ** 2 + (a - seed[1]) ** 2 + (r - seed[2]) ** 2)
            score = np.abs(across) * np.float32(5.0) + along * np.float32(0.8)
        else:
            score = (a - a.min()) + np.float32(0.6) * (s - s.min()) + 4 * np.sin((r + np.float32(wave % 97)) / 9)
        chosen = canvas.lowest(where, score.astype(np.float32), min(volume, 0.35 * len(where) * canvas.voxel_ml))
        texture = rng.standard_normal(len(chosen), dtype=np.float32)
        if not affected:
            _sham(flat, chosen, texture)
            continue
        flat[chosen] += np.float32(0.93) * (np.float32(hu) + 8 * texture - flat[chosen])
        canvas.mark_flat("atelectasis", chosen)
