"""From anatomy to Hounsfield units, and from clean HU to what a scanner would have stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.anatomy import sample_linear, upsample
from VelvetMedLib.cohorts.atlas import Atlas, Field
from VelvetMedLib.cohorts.canvas import Canvas, label
from VelvetMedLib.cohorts.options import RENDER_MODES, CohortOptions
from VelvetMedLib.cohorts.tissues import LIVER_SPLEEN_ASSESSED, TissueHu, draw_tissues

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What turns clean HU into stored HU. blur_mm: Gaussian sigma. thickness: slices averaged. noise_grain: 0 white, else mm."""

    mode: str
    residual_share: float
    blur_mm: float
    noise_hu: float
    noise_grain_mm: float
    thickness: int
    offset_hu: float
    gain: float

    def as_dict(self) -> dict[str, Any]:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def draw_scanner(options: CohortOptions, rng: np.random.Generator) -> Scanner:
    """Nuisances of one case, all from the rendering stream."""
    weights = np.asarray(options.mode_weights, float)
    mode = RENDER_MODES[int(rng.choice(len(RENDER_MODES), p=weights / weights.sum()))]
    share = {"scan": rng.uniform(0.85, 1.1), "synthetic": 0.0, "mixed": rng.uniform(0.5, 1.2)}[mode]
    return Scanner(
        mode=mode,
        residual_share=float(share),
        blur_mm=float(rng.choice((0.0, 1.0)) * rng.uniform(0.8, 3.2)),
        noise_hu=float(np.exp(rng.uniform(np.log(2.0), np.log(45.0)))),
        noise_grain_mm=float(rng.choice((0.0, 1.0)) * rng.uniform(5.0, 11.0)),
        thickness=int(rng.choice((1, 2, 3), p=(0.7, 0.24, 0.06))),
        offset_hu=float(rng.normal(0, 5)),
        gain=float(np.clip(rng.normal(1, 0.015), 0.95, 1.05)),
    )


def draw_case_tissues(atlas: Atlas, scanner: Scanner, rng: np.random.Generator) -> TissueHu:
    """Tissue means for this case; in "scan" mode those of the scan itself (an arterial phase) with a little jitter."""
    drawn = draw_tissues(atlas.tissues, rng)
    if scanner.mode != "scan":
        return drawn
    counts = np.bincount(atlas.cells.ravel(), minlength=len(atlas.cell_part)).astype(np.float64)
    tissue = atlas.cell_tissue
    size = len(atlas.tissues)
    total = np.maximum(np.bincount(tissue, counts[: len(tissue)], minlength=size), 1)
    mean = np.bincount(tissue, counts[: len(tissue)] * atlas.cell_hu, minlength=size) / total
    jitter = rng.normal(0, 6, size)
    jitter[atlas.tissue("air")] = 0
    return TissueHu("arterial", (mean + jitter).astype(np.float32), drawn.texture_hu)


def set_liver(tissues: TissueHu, names: tuple[str, ...], difference_hu: float) -> TissueHu:
    """Liver at a given distance from the spleen, in the phases where that distance means anything."""
    if tissues.phase not in LIVER_SPLEEN_ASSESSED:
        return tissues
    mean = tissues.mean_hu.copy()
    mean[names.index("liver")] = mean[names.index("spleen")] + np.float32(difference_hu)
    return TissueHu(tissues.phase, mean, tissues.texture_hu)


def clean_hu(atlas: Atlas, index: Field, tissue_map: NDArray[np.uint8], tissues: TissueHu, scanner: Scanner, rng: np.random.Generator) -> Floats:
    """HU before lesions and scanner: the atlas painted with this case's means, brought to the case's grid, plus texture."""
    low = max(int(np.floor(index[0].min())) - 1, 0)
    high = min(int(np.ceil(index[0].max())) + 2, atlas.cells.shape[0])
    low, high = min(low, atlas.cells.shape[0] - 2), max(high, 2)
    cell_hu = tissues.mean_hu[atlas.cell_tissue]
    if scanner.mode == "scan":
        shift = tissues.mean_hu[atlas.cell_tissue] - _tissue_means(atlas)[atlas.cell_tissue]
        cell_hu = atlas.cell_hu + shift
    painted = cell_hu.astype(np.float32).take(atlas.cells[low:high])
    if scanner.residual_share > 0:
        painted += atlas.residual_hu[low:high] * np.float32(scanner.residual_share)
    moved = index.copy()
    moved[0] -= np.float32(low)
    hu = sample_linear(painted, moved)
    amplitude = tissues.texture_hu.take(tissue_map) * np.float32(1.0 if scanner.mode == "synthetic" else 0.35)
    fine = rng.standard_normal(hu.shape, dtype=np.float32)
    coarse = upsample(
        rng.standard_normal(tuple(n // 2 + 2 for n in hu.shape), dtype=np.float32), rng.uniform(0, 0.5, 3).astype(np.float32), 0.5, hu.shape
    )
    share = np.float32(rng.uniform(0.2, 0.7))
    fine *= share
    coarse *= np.float32(1.5) * (1 - share)
    fine += coarse
    fine *= amplitude
    hu += fine
    return hu


_MEANS: dict[int, Floats] = {}


def _tissue_means(atlas: Atlas) -> Floats:
    """Mean HU per tissue over the whole atlas (cached: it never changes)."""
    if id(atlas) not in _MEANS:
        counts = np.bincount(atlas.cells.ravel(), minlength=len(atlas.cell_part))[: len(atlas.cell_part)].astype(np.float64)
        size = len(atlas.tissues)
        total = np.maximum(np.bincount(atlas.cell_tissue, counts, minlength=size), 1)
        _MEANS[id(atlas)] = (np.bincount(atlas.cell_tissue, counts * atlas.cell_hu, minlength=size) / total).astype(np.float32)
    return _MEANS[id(atlas)]


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
        s, a, _ = canvas.coordinates(where)
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
    """Table, pad and, in some, arms beside the trunk and a gallbladder: things that are there but have no label (arms: humerus)."""
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


def _smooth_axis(array: Floats, axis: int, kernel: NDArray[np.float32]) -> Floats:
    view = np.moveaxis(array, axis, 0)
    reach = len(kernel) // 2
    out = view * kernel[reach]
    for step in range(1, reach + 1):
        weight = kernel[reach + step]
        out[step:] += weight * view[:-step]
        out[:step] += weight * view[:1]
        out[:-step] += weight * view[step:]
        out[-step:] += weight * view[-1:]
    return np.moveaxis(out, 0, axis)


def smooth(array: Floats, sigma_voxels: float) -> Floats:
    """Gaussian blur along three axes; edges repeat."""
    if sigma_voxels < 0.15:
        return array
    reach = max(1, int(np.ceil(2.5 * sigma_voxels)))
    x = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (x / sigma_voxels) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in range(3):
        array = _smooth_axis(array, axis, kernel)
    return array


def scan(hu: Floats, scanner: Scanner, step_mm: float, rng: np.random.Generator) -> Floats:
    """Blur, thick slices, noise, offset and gain of HU. Everything that was painted goes through it alike."""
    out = smooth(hu, scanner.blur_mm / step_mm)
    if scanner.thickness > 1:
        groups = [out[n : n + scanner.thickness].mean(axis=0) for n in range(0, out.shape[0], scanner.thickness)]
        out = np.stack(groups).repeat(scanner.thickness, axis=0)[: out.shape[0]]
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    if scanner.noise_grain_mm > 0:
        sigma = scanner.noise_grain_mm / step_mm / 2.4
        noise = smooth(noise, sigma)
        noise *= np.float32(1.0 / max(float(noise.std()), 1e-3))
    noise *= np.float32(scanner.noise_hu)
    out = out * np.float32(scanner.gain) + np.float32(scanner.offset_hu)
    out += noise
    return np.clip(out, -1024, 3071)
