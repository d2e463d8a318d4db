"""From anatomy to Hounsfield units, and from clean HU to what a scanner would have stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib.cohorts.anatomy import sample_linear, upsample
from VelvetMedLib.cohorts.atlas import Atlas, Field
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
    size = len(atlas.tissues)
    jitter = rng.normal(0, 6, size)
    jitter[atlas.tissue("air")] = 0
    return TissueHu("arterial", (_tissue_means(atlas) + jitter).astype(np.float32), drawn.texture_hu)


def set_liver(tissues: TissueHu, names: tuple[str, ...], difference_hu: float) -> TissueHu:
    """Liver at a given distance from the spleen, in the phases where that distance means anything."""
    if tissues.phase not in LIVER_SPLEEN_ASSESSED:
        return tissues
    mean = tissues.mean_hu.copy()
    mean[names.index("liver")] = mean[names.index("spleen")] + np.float32(difference_hu)
    return TissueHu(tissues.phase, mean, tissues.texture_hu)


def clean_hu(
    atlas: Atlas, index: Field, tissue_map: NDArray[np.uint8], tissues: TissueHu, scanner: Scanner, rng: np.random.Generator
) -> Floats:
    """HU before lesions and scanner: the atlas painted with this case's means, brought to the case's grid, plus texture."""
    low = max(int(np.floor(index[0].min())) - 1, 0)
    high = min(int(np.ceil(index[0].max())) + 2, atlas.cells.shape[0])
    low, high = min(low, atlas.cells.shape[0] - 2), max(high, 2)
    cell_hu = tissues.mean_hu[atlas.cell_tissue]
    if scanner.mode == "scan":
        shift = (tissues.mean_hu - _tissue_means(atlas))[atlas.cell_tissue]
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


@lru_cache(maxsize=2)
def _tissue_means(atlas: Atlas) -> Floats:
    """HU per tissue of the scan itself: the mean of its cells' medians, weighted by their size."""
    cells = len(atlas.cell_part)
    counts = np.bincount(atlas.cells.ravel(), minlength=cells)[:cells].astype(np.float64)
    size = len(atlas.tissues)
    total = np.maximum(np.bincount(atlas.cell_tissue, counts, minlength=size), 1)
    means: Floats = (np.bincount(atlas.cell_tissue, counts * atlas.cell_hu, minlength=size) / total).astype(np.float32)
    return means


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
