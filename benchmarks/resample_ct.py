"""Resampling a CT to a coarser grid: ours against scipy's spline zoom (order 3 and 1) and bare SimpleITK, in one run, as one JSON line.

`python benchmarks/resample_ct.py [--full] [--scan FILE]`. Quick: 256 x 256 x 150 voxels; full: 512 x 512 x 300. Parity comes first:
without smoothing ours must equal scipy's order 1 on scipy's own grid. skimage's order 3, the usual default for such jobs,
is scipy's spline with wrapping around it, so scipy order 3 stands for it. Smoothed ours is timed as well: the others alias.
Every time is given on the wall and in processor seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from VelvetMedLib import ct

SHAPES = {"quick": ((150, 256, 256), (75, 128, 120)), "full": ((300, 512, 512), (250, 273, 273))}
LIMIT_HU = 1.0


def make_volume(shape_kji: tuple[int, int, int]) -> ct.Volume:
    """Body-like blobs with noise: int16, 0.7 x 0.7 x 1 mm."""
    rng = np.random.default_rng(0)
    k, j, i = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape_kji)]
    hu = np.where(i**2 + (1.3 * j) ** 2 < 0.8, 40.0, -1000.0) + 300 * np.sin(9 * i) * np.cos(7 * j) * np.sin(5 * k)
    hu = hu.astype(np.float32) + rng.normal(0, 20, shape_kji).astype(np.float32)
    return ct.Volume(np.clip(hu, -1024, 3071).astype(np.int16), np.diag([0.7, 0.7, 1.0, 1.0]))


def zoom_grid(volume: ct.Volume, shape_kji: tuple[int, int, int]) -> ct.Grid:
    """The grid of scipy.ndimage.zoom: first and last voxel centres stay where they are."""
    steps = [(n - 1) / (m - 1) for n, m in zip(reversed(volume.shape_kji), reversed(shape_kji), strict=True)]
    matrix = volume.ijk_to_ras @ np.diag([*steps, 1.0])
    return ct.Grid(shape_kji, matrix)


def ways(volume: ct.Volume, grid: ct.Grid) -> dict[str, Callable[[], Any]]:
    """Every way that is timed, each from the int16 array to an array on the coarse grid."""
    import SimpleITK as sitk
    from scipy import ndimage

    factors = [m / n for m, n in zip(grid.shape_kji, volume.shape_kji, strict=True)]

    def bare_sitk() -> Any:
        image = ct.to_sitk(volume)
        size = [int(n) for n in reversed(grid.shape_kji)]
        target = ct.to_sitk(np.zeros((1, 1, 1), np.int16), grid)
        out = sitk.Resample(
            image, size, sitk.Transform(), sitk.sitkLinear, target.GetOrigin(), target.GetSpacing(), target.GetDirection(), -1024.0
        )
        return sitk.GetArrayFromImage(out)

    return {
        "scipy_order3": lambda: ndimage.zoom(volume.voxels_kji.astype(np.float32), factors, order=3, mode="nearest"),
        "scipy_order1": lambda: ndimage.zoom(volume.voxels_kji.astype(np.float32), factors, order=1, mode="nearest"),
        "sitk_linear": bare_sitk,
        "ours_linear": lambda: ct.resample(volume, grid, antialias=False).voxels_kji,
        "ours_smoothed": lambda: ct.resample(volume, grid).voxels_kji,
    }


def clock(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall seconds, processor seconds of all threads) of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def label_dice(volume: ct.Volume, grid: ct.Grid) -> float:
    """Dice of our nearest labels and scipy's order 0, for tissue against the rest."""
    from scipy import ndimage

    labels = (volume.voxels_kji > -200).astype(np.uint8)
    factors = [m / n for m, n in zip(grid.shape_kji, volume.shape_kji, strict=True)]
    a = ct.resample_labels(labels, volume.grid, grid).astype(bool)
    b = ndimage.zoom(labels, factors, order=0, mode="nearest").astype(bool)
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def peak_rss_mb(way: str, arguments: list[str]) -> float | None:
    """Peak memory of one way alone in a child process (its input and imports included); None where the system does not tell."""
    done = subprocess.run([sys.executable, __file__, *arguments, "--only", way], capture_output=True, text=True, check=True)
    peak: float | None = json.loads(done.stdout)["peak_rss_mb"]
    return peak


def only(way: str, volume: ct.Volume, grid: ct.Grid) -> None:
    """Child process: run one way once and print its peak memory."""
    ways(volume, grid)[way]()
    # Not getrusage: on Linux a child starts with its parent's peak.
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    peak = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
    print(json.dumps({"peak_rss_mb": None if peak is None else round(peak, 1)}))


def main() -> int:
    """Print the JSON line; exit code 1 when parity fails or a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="512 x 512 x 300 voxels")
    parser.add_argument("--scan", type=Path, help="a real CT instead of the synthetic volume")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--npy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()

    import scipy
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(args.threads)
    if args.only:
        volume = ct.Volume(np.load(args.npy, allow_pickle=False), np.diag([0.7, 0.7, 1.0, 1.0]))
        only(args.only, volume, zoom_grid(volume, tuple(args.to)))
        return 0
    shape, coarse = SHAPES["full" if args.full else "quick"]
    volume = ct.read(args.scan) if args.scan else make_volume(shape)
    if args.scan:
        coarse = tuple(max(8, n // 2) for n in volume.shape_kji)
    grid = zoom_grid(volume, coarse)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    calls = ways(volume, grid)
    inner = (slice(1, -1),) * 3
    # Zoomed positions at the border may fall a hair outside; the inside must agree.
    parity = float(np.abs(calls["scipy_order1"]()[inner] - calls["ours_linear"]()[inner]).max())
    dice = label_dice(volume, grid)
    cold = {name: clock(call) for name, call in calls.items()}
    both: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            both[name].append(clock(call))
    times = {name: [wall for wall, _ in pairs] for name, pairs in both.items()}
    processor = {name: statistics.median(p for _, p in pairs) for name, pairs in both.items()}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "voxels.npy", volume.voxels_kji)
        arguments = ["--threads", str(args.threads), "--npy", str(Path(folder) / "voxels.npy"), "--to", *map(str, coarse)]
        memory = {name: peak_rss_mb(name, arguments) for name in calls}
    rows = {
        name: {
            "name": name, "median_s": round(statistics.median(t), 4), "min_s": round(min(t), 4), "max_s": round(max(t), 4), "n": len(t),
            "first_s": round(cold[name][0], 4), "processor_s": round(processor[name], 4), "peak_rss_mb": memory[name],
        }
        for name, t in times.items()
    }  # fmt: skip
    middle = {name: statistics.median(t) for name, t in times.items()}
    ratios = {
        "scipy_order3_over_ours_linear": middle["scipy_order3"] / middle["ours_linear"],
        "scipy_order3_over_ours_smoothed": middle["scipy_order3"] / middle["ours_smoothed"],
        "scipy_order1_over_ours_linear": middle["scipy_order1"] / middle["ours_linear"],
        "ours_linear_over_sitk_linear": middle["ours_linear"] / middle["sitk_linear"],
        "processor_scipy_order3_over_ours_linear": processor["scipy_order3"] / processor["ours_linear"],
        "processor_ours_linear_over_sitk_linear": processor["ours_linear"] / processor["sitk_linear"],
    }
    ok = parity <= LIMIT_HU and dice >= 0.99
    gates = {
        "order3_over_ours >= 15": ratios["scipy_order3_over_ours_linear"] >= 15,
        "ours_over_sitk <= 1.2": ratios["ours_linear_over_sitk_linear"] <= 1.2,
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    line = {
        "name": "resample_ct",
        "commit": commit.stdout.strip() or None,
        "machine": {"cpu": f"{os.cpu_count()} cores, {platform.machine()}", "gpu": None, "load": load},
        "versions": {"SimpleITK": sitk.Version_VersionString(), "scipy": scipy.__version__, "numpy": np.__version__},
        "input_sha256": [hashlib.sha256(np.ascontiguousarray(volume.voxels_kji).data).hexdigest()],
        "input": {"shape_kji": list(volume.shape_kji), "to_shape_kji": list(coarse), "real": bool(args.scan)},
        "threads": args.threads,
        "reference": rows["scipy_order3"],
        "others": [rows["scipy_order1"], rows["sitk_linear"]],
        "ours": rows["ours_linear"],
        "ours_smoothed": rows["ours_smoothed"],
        "ratio": round(ratios["scipy_order3_over_ours_linear"], 2),
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
        "parity": {
            "metric": "max_abs_hu against scipy order 1",
            "value": round(parity, 3),
            "limit": LIMIT_HU,
            "dice": round(dice, 5),
            "ok": ok,
        },
        "gates": gates,
        "loaded": bool(load is not None and load > (os.cpu_count() or 1)),
        "excluded": ["imports"],
    }
    print(json.dumps(line))
    return 0 if ok and (all(gates.values()) or line["loaded"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
