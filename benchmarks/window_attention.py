"""Window attention in training: our Swin encoder against MONAI's SwinTransformer, forward and backward, in one run, as one JSON line.

`python benchmarks/window_attention.py [--size quick|paper] [--precision fp32|bf16] [--recompute]`. quick: widths, heads and window of
the published encoder, two blocks per stage, 64^3 voxels; paper: all its blocks at 96^3 (for a GPU, or many minutes and gigabytes).
Parity comes first: same weights, outputs and gradients compared. Timed are the whole encoder, and one attention module of the
first stage by itself. MONAI's own fused path runs only with gradients off, so training takes its plain path.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from VelvetMedLib.models.swin import SwinConfig, SwinEncoder

SIZES = {
    "quick": (SwinConfig(embed_dim=48, depths=(2, 2, 2, 2), heads=(4, 8, 16, 32), window=7, legacy_relative_index=True), 64),
    "paper": (SwinConfig(embed_dim=48, depths=(2, 8, 8, 8), heads=(4, 8, 16, 32), window=7, legacy_relative_index=True), 96),
}
OUTPUT_LIMIT, GRADIENT_LIMIT = 1e-4, 1e-3
"""Largest difference allowed, relative to the largest value of the same tensor, in float32."""
GPU_GATE = 1.5


def encoders(config: SwinConfig, device: torch.device, *, recompute: bool) -> tuple[nn.Module, nn.Module]:
    """(MONAI's, ours) with the same weights."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    torch.manual_seed(0)
    ours = SwinEncoder(config)
    ours.recompute_activations = recompute
    theirs = SwinTransformer(
        in_chans=config.in_channels,
        embed_dim=config.embed_dim,
        window_size=(config.window,) * 3,
        patch_size=(config.patch,) * 3,
        depths=config.depths,
        num_heads=config.heads,
        use_checkpoint=recompute,
        downsample="merging",
    )
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return theirs.to(device), ours.to(device)


def ways(config: SwinConfig, side: int, device: torch.device, precision: str, *, recompute: bool) -> dict[str, Callable[[], Any]]:
    """Every way that is timed: one forward and one backward pass each."""
    theirs, ours = encoders(config, device, recompute=recompute)
    x = torch.rand(1, 1, side, side, side, device=device)
    cells = side // config.patch
    windows = -((-cells // config.window) ** 3)
    n = config.window**3
    tokens = torch.randn(windows, n, config.embed_dim, device=device)
    their_attention = theirs.layers1[0].blocks[0].attn  # type: ignore[index, union-attr]
    our_attention = ours.layers1[0].blocks[0].attn  # type: ignore[index, union-attr]

    def step(network: nn.Module, forward: Callable[[], list[Tensor]]) -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = forward()
        sum(out.float().square().mean() for out in outputs).backward()  # type: ignore[union-attr]
        if device.type == "cuda":
            torch.cuda.synchronize()

    window = (config.window,) * 3
    return {
        "monai_encoder": lambda: step(theirs, lambda: theirs(x)),
        "ours_encoder": lambda: step(ours, lambda: ours(x)),
        "monai_attention": lambda: step(theirs, lambda: [their_attention(tokens, None)]),
        "ours_attention": lambda: step(ours, lambda: [our_attention(tokens[None], window, None)[0]]),
    }


def parity(config: SwinConfig, device: torch.device) -> dict[str, Any]:
    """Largest relative difference of outputs and gradients, in float32 on a smaller volume of odd windows."""
    theirs, ours = encoders(config, device, recompute=False)
    x = torch.rand(1, 1, 64, 64, 32, device=device)
    a, b = ours(x), theirs(x)
    weights = [torch.randn_like(m) for m in a]
    for maps in (a, b):
        sum((m * w).sum() for m, w in zip(maps, weights, strict=True)).backward()  # type: ignore[union-attr]
    outputs = max(float(((m - n).abs().max() / n.abs().max()).detach()) for m, n in zip(a, b, strict=True))
    other = dict(theirs.named_parameters())
    gradients = max(
        float((p.grad - other[name].grad).abs().max() / (other[name].grad.abs().max() + 1e-3))  # type: ignore[operator, union-attr]
        for name, p in ours.named_parameters()
    )
    ok = outputs <= OUTPUT_LIMIT and gradients <= GRADIENT_LIMIT
    return {
        "metric": "max difference relative to the largest value, outputs and gradients", "outputs": outputs, "outputs_limit": OUTPUT_LIMIT,
        "gradients": gradients, "gradients_limit": GRADIENT_LIMIT, "ok": ok,
    }  # fmt: skip


def clock(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall seconds, processor seconds of all threads) of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def peak_mb(way: str, arguments: list[str]) -> dict[str, float | None]:
    """Peak memory of one way alone, in a child process: of the process, and of a GPU's allocator."""
    done = subprocess.run([sys.executable, __file__, *arguments, "--only", way], capture_output=True, text=True, check=True)
    peak: dict[str, float | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return peak


def only(call: Callable[[], Any], device: torch.device) -> None:
    """Child process: run one way once and print its peak memory."""
    call()
    # Not getrusage: on Linux a child starts with its parent's peak.
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    rss = next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmHWM")), None)
    gpu = round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.type == "cuda" else None
    print(json.dumps({"peak_rss_mb": rss, "peak_gpu_mb": gpu}))


def main() -> int:
    """Print the JSON line; exit code 1 when parity fails or, on a GPU, the gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="quick")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing on both sides")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config, side = SIZES[args.size]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if args.only:
        only(ways(config, side, device, args.precision, recompute=args.recompute)[args.only], device)
        return 0
    checked = parity(config, device)
    calls = ways(config, side, device, args.precision, recompute=args.recompute)
    cold = {name: clock(call) for name, call in calls.items()}
    both: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            both[name].append(clock(call))
    shared = ["--size", args.size, "--precision", args.precision, "--threads", str(args.threads), "--device", args.device]
    shared += ["--recompute"] if args.recompute else []
    memory = {name: peak_mb(name, shared) if name.endswith("encoder") else {} for name in calls}
    rows = {
        name: {
            "name": name, "median_s": round(statistics.median(w for w, _ in t), 4), "min_s": round(min(w for w, _ in t), 4),
            "max_s": round(max(w for w, _ in t), 4), "n": len(t), "first_s": round(cold[name][0], 4),
            "processor_s": round(statistics.median(p for _, p in t), 4), **memory[name],
        }
        for name, t in both.items()
    }  # fmt: skip

    def ratio(part: str, what: str) -> float:
        return round(rows[f"monai_{part}"][what] / rows[f"ours_{part}"][what], 2)

    ratios = {
        f"{word}monai_over_ours_{part}": ratio(part, what)
        for part in ("encoder", "attention")
        for word, what in (("", "median_s"), ("processor_", "processor_s"))
    }
    gates = {f"encoder >= {GPU_GATE} on a GPU": ratios["monai_over_ours_encoder"] >= GPU_GATE} if device.type == "cuda" else {}
    import monai

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    line = {
        "name": "window_attention",
        "commit": commit.stdout.strip() or None,
        "machine": {
            "cpu": f"{os.cpu_count()} cores, {platform.machine()}",
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
            "load": load,
        },
        "versions": {"torch": torch.__version__, "monai": monai.__version__},
        "input_sha256": [hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()],
        "input": {"size": args.size, "voxels": [side] * 3, "precision": args.precision, "recompute": args.recompute, **config.to_dict()},
        "threads": args.threads,
        "reference": rows["monai_encoder"],
        "ours": rows["ours_encoder"],
        "attention_alone": {"reference": rows["monai_attention"], "ours": rows["ours_attention"]},
        "ratio": ratios["monai_over_ours_encoder"],
        "ratios": ratios,
        "parity": checked,
        "gates": gates,
        "loaded": bool(load is not None and load > (os.cpu_count() or 1)),
        "excluded": ["imports", "weight loading"],
    }
    print(json.dumps(line))
    return 0 if checked["ok"] and (all(gates.values()) or line["loaded"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
