"""What benchmarks of training steps share: clocks, peak memory of a child process, comparison of gradients, facts on the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def clock(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """(wall seconds, processor seconds of all threads) of one call, the device's work included."""
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    call()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - processor


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternating(
    calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, *, warm_up: bool = True
) -> dict[str, dict[str, Any]]:
    """Name -> times of `repeats` rounds in which the calls take turns, after one round that counts as the first run.

    Without warm_up the first run is counted: for calls of minutes, beside which a start is nothing.
    """
    cold = {name: clock(call, device) for name, call in calls.items()} if warm_up else {}
    both: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            both[name].append(clock(call, device))
    return {
        name: {
            "name": name, "median_s": round(statistics.median(w for w, _ in t), 4), "min_s": round(min(w for w, _ in t), 4),
            "max_s": round(max(w for w, _ in t), 4), "n": len(t), "first_s": round(cold.get(name, t[0])[0], 4),
            "processor_s": round(statistics.median(p for _, p in t), 4),
        }
        for name, t in both.items()
    }  # fmt: skip


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients that are there, by name."""
    return {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Over all parameters: largest absolute difference relative to the largest value of all gradients together."""
    if ours.keys() != theirs.keys():
        return float("inf")
    scale = max(float(g.abs().max()) for g in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / scale


def status_mb(field: str) -> float | None:
    """A field of this process's status in MB, such as VmHWM (peak) or VmRSS (now); None where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(field)), None)


def peak_of(call: Callable[[], Any], device: torch.device) -> dict[str, float | None]:
    """In a process of its own: run once; the memory before and at the peak of it."""
    peak_reset = Path("/proc/self/clear_refs")
    try:
        # Importing may have peaked higher than the step: 5 sets the peak back to what is in use now.
        peak_reset.write_text("5")
    except OSError:
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
        call()
        torch.cuda.synchronize(device)
        peak: float | None = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        before = status_mb("VmRSS") or 0.0
        call()
        peak = status_mb("VmHWM")
    return {"before_mb": round(before, 1), "peak_mb": None if peak is None else round(peak, 1)}


def print_peak(call: Callable[[], Any], device: torch.device) -> None:
    """`peak_of` as one JSON line."""
    print(json.dumps(peak_of(call, device)))


def peak_in_child(script: str, way: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What `print_peak` prints for one way in a process of its own."""
    done = subprocess.run([sys.executable, script, *arguments, "--only", way], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def facts(name: str, device: torch.device) -> dict[str, Any]:
    """Head of the JSON line."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "name": name,
        "commit": commit.stdout.strip() or None,
        "machine": {
            "cpu": f"{os.cpu_count()} cores, {platform.machine()}",
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
            "load": load,
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "loaded": bool(load is not None and load > (os.cpu_count() or 1)),
    }
