"""Two crops of one study at full resolution: where they lie, and how each is changed (methods.md 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from VelvetMedLib.ct.body_cells import BodyCells
from VelvetMedLib.ct.views import scaled
from VelvetMedLib.models.config import Settings
from VelvetMedLib.objectives.disruption import blurred
from VelvetMedLib.shapes import IntTriple

OUTSIDE_HU = -1024
TRIES = 300
"""Places looked at before the best of them is taken."""

Start = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CropSettings(Settings):
    """Where crops are taken. least_body: smallest share of body in a crop. least_iou: of two crops of one study, 0 = overlap is free."""

    least_body: float = 0.3
    least_iou: float = 0.0

    def __post_init__(self) -> None:
        self.require(0 <= self.least_body <= 1, "least_body", "0 to 1")
        self.require(0 <= self.least_iou < 1, "least_iou", "0 or more, less than 1")


@dataclass(frozen=True, kw_only=True)
class CropChanges(Settings):
    """How a crop is changed; never mirrored, since reports name sides. All numbers are ours; the source gives none.

    contrast: largest relative change of the intensities around their middle; brightness: largest shift, in units of the window;
    noise: largest standard deviation, likewise; blur_chance, blur: of a Gaussian of up to so many voxels;
    turn_chance, turn_degrees: of a rotation about a random axis by up to so many degrees.
    """

    contrast: float = 0.1
    brightness: float = 0.05
    noise: float = 0.03
    blur_chance: float = 0.3
    blur: float = 1.0
    turn_chance: float = 0.5
    turn_degrees: float = 10.0

    def __post_init__(self) -> None:
        for name in ("contrast", "blur_chance", "turn_chance"):
            self.require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        for name in ("brightness", "noise", "blur"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(0 <= self.turn_degrees <= 10, "turn_degrees", "0 to 10: the crop is cut that much larger")


def allowed_starts(volume: Sequence[int], size: IntTriple) -> tuple[Start, Start]:
    """Lowest and highest start (both included) along each axis at which crop and volume cover one another: no needless air."""
    slack = np.asarray(volume, np.int64) - size
    return np.minimum(slack, 0), np.maximum(slack, 0)


def draw_start(body: BodyCells, size: IntTriple, draw: np.random.Generator, settings: CropSettings, *, near: Start | None = None) -> Start:
    """A start uniform over the allowed ones whose crop has `least_body` of body, and `least_iou` with the crop at `near`.

    By rejection, so every such place is as likely as any other. Where none of `TRIES` places has enough, the one with the most
    body is taken (of those that overlap enough, if any does).
    """
    low, high = allowed_starts(body.shape, size)
    if near is not None and settings.least_iou > 0:
        # IoU m of two equal boxes needs a common part of 2m / (1 + m) of a box: further apart there is nothing to find.
        reach = np.floor(np.array(size) * (1 - 2 * settings.least_iou / (1 + settings.least_iou))).astype(np.int64)
        low, high = np.maximum(low, near - reach), np.minimum(high, near + reach)
    best, most = None, (False, -1.0)
    for _ in range(TRIES):
        start: Start = draw.integers(low, high + 1)
        close = near is None or iou(start, near, size) >= settings.least_iou
        share = body.share(start.tolist(), size)
        if close and share >= settings.least_body:
            return start
        if best is None or (close, share) > most:
            best, most = start, (close, share)
    assert best is not None
    return best


def central_start(body: BodyCells, size: IntTriple) -> Start:
    """The start that centres the crop on the middle of the body: what evaluation takes. Kept within the allowed ones."""
    where = np.argwhere(body.cells)
    middle = (where.min(axis=0) + where.max(axis=0) + 1) * np.array(body.step) / 2
    low, high = allowed_starts(body.shape, size)
    start: Start = np.clip(np.floor(middle - np.array(size) / 2).astype(np.int64), low, high)
    return start


def tile_starts(body: BodyCells, size: IntTriple, least_body: float) -> list[Start]:
    """Starts of evenly spread crops that cover the volume, of which those with enough body stay; without any, the central one."""
    low, high = allowed_starts(body.shape, size)
    axes = []
    for a, b, n, whole in zip(low, high, size, body.shape, strict=True):
        count = max(1, -(-whole // n))
        axes.append(np.rint(np.linspace(a, b, count)).astype(np.int64) if count > 1 else np.array([(a + b) // 2]))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    kept = [start for start in grid if body.share(start.tolist(), size) >= least_body]
    return kept or [central_start(body, size)]


def iou(one: Start, other: Start, size: IntTriple) -> float:
    """Common part of two boxes of one size, by their union."""
    common = float(np.prod(np.maximum(np.array(size) - np.abs(one - other), 0)))
    return common / (2 * float(np.prod(size)) - common)


def cut(hu_xyz: NDArray[np.int16], start: Start, size: IntTriple) -> NDArray[np.int16]:
    """The box [start, start + size); beyond the volume it is air outside the scanner's circle."""
    result = np.full(size, OUTSIDE_HU, np.int16)
    low, high = np.maximum(start, 0), np.minimum(start + size, hu_xyz.shape)
    if np.all(high > low):
        source = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        result[tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))] = hu_xyz[source]
    return result


def changed_crop(
    hu_xyz: NDArray[np.int16],
    start: Start,
    size: IntTriple,
    window: tuple[float, float],
    draw: np.random.Generator,
    settings: CropChanges,
) -> NDArray[np.float32]:
    """A changed crop, float32 0..1 of the window. Every number is drawn whether it is used or not."""
    turns, blurs = draw.random() < settings.turn_chance, draw.random() < settings.blur_chance
    axis, degrees = draw.standard_normal(3), float(draw.uniform(-settings.turn_degrees, settings.turn_degrees))
    sigma = float(draw.uniform(0.25, 1.0)) * settings.blur
    gain, shift = 1 + float(draw.uniform(-1, 1)) * settings.contrast, float(draw.uniform(-1, 1)) * settings.brightness
    spread = float(draw.uniform(0, 1)) * settings.noise
    voxels = turned_crop(hu_xyz, start, size, axis, degrees) if turns and degrees else cut(hu_xyz, start, size)
    crop = scaled(voxels, window)
    if blurs and sigma > 0:
        crop = blurred(crop, sigma)
    crop = (crop - np.float32(0.5)) * np.float32(gain) + np.float32(0.5 + shift)
    if spread > 0:
        crop += np.float32(spread) * draw.standard_normal(crop.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(crop, 0, 1), np.float32)


def turned_crop(hu_xyz: NDArray[np.int16], start: Start, size: IntTriple, axis: NDArray[np.float64], degrees: float) -> NDArray[np.float32]:
    """The crop as seen after a turn of the volume about the crop's centre, trilinear; the corners come from beyond the crop."""
    margin = np.ceil(np.array(size).max() * np.sin(np.radians(abs(degrees)))).astype(int) + 2
    larger = tuple(int(n + 2 * margin) for n in size)
    around = cut(hu_xyz, start - margin, (larger[0], larger[1], larger[2]))
    # SimpleITK's first index is the array's last axis: the array goes in as [z, y, x], so that its x is ours.
    image = sitk.GetImageFromArray(np.ascontiguousarray(around.transpose(2, 1, 0)).astype(np.float32))
    centre = [margin + (n - 1) / 2 for n in size]
    turn = sitk.VersorTransform((axis / np.linalg.norm(axis)).tolist(), float(np.radians(degrees)), centre)
    reference = sitk.Image(list(size), sitk.sitkFloat32)
    reference.SetOrigin([float(margin)] * 3)
    found = sitk.Resample(image, reference, turn, sitk.sitkLinear, float(OUTSIDE_HU))
    return np.ascontiguousarray(sitk.GetArrayFromImage(found).transpose(2, 1, 0))
