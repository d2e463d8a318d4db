"""From tiles to labels on the scan's own grid: ours against MONAI's sliding window and an all-class export, as JSON lines.

`python benchmarks/segmentation_export.py [--size quick|full]`. full: 25 classes on a scan of 512 x 512 x 300 voxels and 117 classes on
256 x 256 x 150, from a grid half as fine; the reference needs 10 GB. The network is the same and nearly free: made-up organs
(ellipsoids) whose logits follow from the place alone, so that both ways average the same probabilities. The reference: MONAI's
`sliding_window_inference` with Gaussian weights, all classes brought to the scan's grid by torch, arg-max. Lesions and features of our
sweep are made as well, in small. Every run is a process of its own, the two ways taking turns; their labels are compared before any time.
"own_mb" is the peak over what was in use before, imports included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import SimpleITK as sitk
import torch
from common.measuring import clock, facts, print_peak

from VelvetMedLib.ct import Grid
from VelvetMedLib.tasks.segmentation import organ_labels
from VelvetMedLib.tasks.sweep import sweep
from VelvetMedLib.tasks.views import FineView, windowed

CASES = {
    "quick": {"25": (25, (256, 256, 150), 64), "117": (117, (128, 128, 76), 32)},
    "full": {"25": (25, (512, 512, 300), 64), "117": (117, (256, 256, 150), 64)},
}
"""Size -> name -> (classes, voxels of the scan along x, y, z, side of a tile)."""
OVERLAP = 0.25
INDEX_WINDOW = (0.0, float(2**24))
"""The made-up HU are the cells' own numbers: whole numbers that float32 holds exactly and by which a tile knows where it lies."""
LEAST_EQUAL, MOST_TIME, MOST_MEMORY = 0.999, 0.3, 0.1


class MadeUpOrgans(torch.nn.Module):
    """Ellipsoids of many sizes; logit 0 for the background, 20 (1 - d^2) for an organ, d = 1 at its surface."""

    def __init__(self, classes: int, shape: tuple[int, ...], layout: torch.memory_format) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        # Sides of 6 to 45 % of the scan's, most of them small: together the organs' boxes come to about their share in a chest scan.
        radii = rng.choice([0.03, 0.05, 0.08, 0.12, 0.22], (classes, 1), p=[0.3, 0.3, 0.2, 0.12, 0.08]) * rng.uniform(
            0.7, 1.3, (classes, 3)
        )
        centres = rng.uniform(radii, 1 - radii)
        self.terms = []
        for axis, n in enumerate(shape):
            place = (np.arange(n) + 0.5) / n
            term = -20 * ((place - centres[:, axis : axis + 1]) / radii[:, axis : axis + 1]) ** 2 + 20 / 3
            term[0] = 0
            self.terms.append(torch.from_numpy(term.astype(np.float32)))
        self.shape, self.layout = shape, layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, classes, X, Y, Z] for a tile of cell numbers, [1, 1, X, Y, Z]."""
        corner = np.unravel_index(round(float(x[0, 0, 0, 0, 0]) * INDEX_WINDOW[1]), self.shape)
        # Beside the scan the last cell goes on, as in any network something does.
        along = [
            term[:, torch.arange(c, c + n).clamp(max=size - 1)]
            for term, c, n, size in zip(self.terms, corner, x.shape[2:], self.shape, strict=True)
        ]
        if self.layout == torch.channels_last_3d:
            a, b, c = (term.T.contiguous() for term in along)  # else the sum would lie in the order of the transposed terms
            return (a[:, None, None] + b[None, :, None] + c[None, None])[None].movedim(-1, 1)
        a, b, c = along
        return (a[:, :, None, None] + b[:, None, :, None] + c[:, None, None])[None]


def prepared(classes: int, voxels: tuple[int, ...]) -> tuple[FineView, Grid]:
    """The fine view with cell numbers as HU, and the scan's grid, twice as fine over the same box."""
    shape = tuple(n // 2 for n in voxels)
    numbers = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    scan, fine = np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])
    fine[:3, 3] = 0.5
    view = FineView(numbers, Grid(shape[::-1], fine), (np.zeros(3), np.ones(3)), np.ones([n + 2 for n in shape], bool))
    return view, Grid(voxels[::-1], scan)


@torch.inference_mode()
def ours(view: FineView, grid: Grid, classes: int, tile: int) -> np.ndarray:
    """Labels [k, j, i]. Networks of ours give their channels last in memory."""
    organs = MadeUpOrgans(classes, view.hu_xyz.shape, torch.channels_last_3d)

    def network(x: torch.Tensor) -> Any:
        halves = [n // 2 for n in x.shape[2:]]
        return SimpleNamespace(organ_logits=organs(x), lesion_logits=x[:, :1] - 1, features=torch.zeros(1, 8, *halves))

    fine = SimpleNamespace(tile_voxels=(tile,) * 3, overlap=OVERLAP, hu_windows=(INDEX_WINDOW,))
    bundle = SimpleNamespace(model=SimpleNamespace(fine=network), config=SimpleNamespace(views=SimpleNamespace(fine=fine)), device="cpu")
    maps, _, _ = sweep(view, bundle)  # type: ignore[arg-type]
    part = SimpleNamespace(organ_maps=maps, organs_xyz=maps.labels_xyz(), grid=view.grid)
    return organ_labels(part, grid)  # type: ignore[arg-type]


@torch.inference_mode()
def by_monai(view: FineView, grid: Grid, classes: int, tile: int) -> np.ndarray:
    """Labels [k, j, i]. Networks as one writes them give their channels first in memory."""
    from monai.inferers import sliding_window_inference

    organs = MadeUpOrgans(classes, view.hu_xyz.shape, torch.contiguous_format)
    x = torch.from_numpy(windowed(view.hu_xyz, (INDEX_WINDOW,)))[None]
    mean = sliding_window_inference(x, (tile,) * 3, 1, lambda part: organs(part).softmax(1), overlap=OVERLAP, mode="gaussian")
    assert isinstance(mean, torch.Tensor)
    whole = torch.nn.functional.interpolate(mean, size=grid.shape_kji[::-1], mode="trilinear", align_corners=False)
    return whole[0].argmax(0).to(torch.uint8).numpy().transpose(2, 1, 0)


WAYS = {"ours": ours, "monai": by_monai}


def run_once(way: str, classes: int, voxels: tuple[int, ...], tile: int, labels: Path) -> None:
    """In a child process: one run; its labels go into a file, its memory and its times out as JSON lines."""
    if way == "monai":
        import monai.inferers  # noqa: F401  before the memory is measured
    call, found, times = partial(WAYS[way], *prepared(classes, voxels), classes, tile), [], []
    device = torch.device("cpu")
    print_peak(lambda: times.append(clock(lambda: found.append(call()), device)), device)
    print(json.dumps({"wall_s": round(times[0][0], 4), "processor_s": round(times[0][1], 4)}))
    np.save(labels, found[0])


def in_child(way: str, arguments: list[str], labels: Path) -> dict[str, float]:
    """What one run printed."""
    command = [sys.executable, __file__, *arguments, "--only", way, "--labels", str(labels)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, float] = {}
    for line in done.stdout.splitlines():
        row |= json.loads(line)
    return row


def parity(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Share of equal voxels, and of those that are an organ in either; the Dice of organs."""
    both, first, second = (np.bincount(labels.ravel(), minlength=256)[1:] for labels in (one[one == other], one, other))
    dice = (2 * both / np.maximum(first + second, 1))[first + second > 0]
    equal = float((one == other).mean())
    return {
        "metric": "share of equal voxels", "value": round(equal, 6), "limit": LEAST_EQUAL, "ok": equal >= LEAST_EQUAL,
        "of_organ_voxels": round(float(both.sum() / np.count_nonzero(one | other)), 6), "organs": len(dice),
        "mean_dice": round(float(dice.mean()), 5), "least_dice": round(float(dice.min()), 5),
    }  # fmt: skip


def measured(size: str, name: str, arguments: list[str], repeats: int) -> dict[str, Any]:
    """The JSON line of one case."""
    import monai as package

    classes, voxels, tile = CASES[size][name]
    head = facts("segmentation_export", torch.device("cpu"))
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        labels = {way: Path(folder) / f"{way}.npy" for way in WAYS}
        for _ in range(repeats):
            for way, path in labels.items():
                runs[way].append(in_child(way, [*arguments, "--case", name], path))
        checked = parity(*(np.load(path, allow_pickle=False) for path in labels.values()))
    rows = {
        way: {
            "name": way, "median_s": statistics.median(r["wall_s"] for r in found), "min_s": min(r["wall_s"] for r in found),
            "max_s": max(r["wall_s"] for r in found), "n": len(found), "processor_s": statistics.median(r["processor_s"] for r in found),
            "before_mb": found[0]["before_mb"], "peak_mb": max(r["peak_mb"] for r in found),
            "own_mb": round(max(r["peak_mb"] - r["before_mb"] for r in found), 1),
        }
        for way, found in runs.items()
    }  # fmt: skip
    ratios = {what: round(rows["ours"][what] / rows["monai"][what], 3) for what in ("median_s", "processor_s", "own_mb", "peak_mb")}
    gates = {f"time <= {MOST_TIME}": ratios["median_s"] <= MOST_TIME, f"memory <= {MOST_MEMORY}": ratios["own_mb"] <= MOST_MEMORY}
    return {
        **head,
        "versions": {**head["versions"], "monai": package.__version__, "SimpleITK": sitk.Version_VersionString()},
        "input_sha256": [hashlib.sha256(json.dumps([classes, voxels, tile]).encode()).hexdigest()],
        "input": {"classes": classes, "voxels": voxels, "fine_cells": [n // 2 for n in voxels], "tile": tile, "overlap": OVERLAP},
        "reference": rows["monai"],
        "ours": rows["ours"],
        "ratio": ratios["median_s"],
        "ratios": ratios,
        "parity": checked,
        "gates": gates if size == "full" else {},
        "computed": {"all-class float32 export of 117 classes at 512 x 512 x 300, GB": 36.8},
        "excluded": ["imports", "reading of the scan", "cleaning"],
    }


def main() -> int:
    """Print one JSON line for each case; exit code 1 when labels differ or, at full size, a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(CASES), default="quick")
    parser.add_argument("--case", choices=("25", "117"), help="number of classes (default: both)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(args.threads)
    if args.only:
        run_once(args.only, *CASES[args.size][args.case], args.labels)
        return 0
    good = True
    for name in [args.case] if args.case else CASES[args.size]:
        line = measured(args.size, name, ["--size", args.size, "--threads", str(args.threads)], args.repeats)
        print(json.dumps(line), flush=True)
        good &= line["parity"]["ok"] and (all(line["gates"].values()) or line["loaded"])
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
