"""COLIPRI's image encoder on a CPU: ours in half precision against the public package, in one run, as one JSON line.

`python benchmarks/colipri_encode.py [--size quick|block|released]`. Same weights, same input. quick: released widths and heads,
2 of 16 blocks, 1,728 of 13,824 cells; block: one block at the released number of cells; released: all of it (minutes per forward
on two cores, and 3 GB). Parity comes first: in float32, and of the half-precision output against the package's float32 (cosine of
the pooled and of every cell's vector). Beside the ratio stand the rates of a matrix product here, and the share of our time that
is attention. Needs the extra [colipri].
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.common.measuring import alternating, facts, peak_in_child, print_peak
from VelvetMedLib.bundle.config import CropViewConfig
from VelvetMedLib.models import attention_blocks
from VelvetMedLib.models.colipri import ColipriConfig, ColipriModel
from VelvetMedLib.models.primus import PrimusConfig
from VelvetMedLib.tasks.crop import encode_features

SIZES = {"quick": (PrimusConfig(depth=2), 96), "block": (PrimusConfig(depth=1), 192), "released": (PrimusConfig(), 192)}
LIMIT, LEAST_COSINE, GATE, AIM = 1e-4, 0.999, 0.8, 0.5
CPU = torch.device("cpu")


def models(size: str) -> tuple[Any, ColipriModel, Tensor]:
    """(the package's model, ours with the same weights, one image)."""
    from Testing.plugins.colipri_package import their_model, their_state

    image, side = SIZES[size]
    config = ColipriConfig(image=image, text=None)
    theirs = their_model(config, side)
    with torch.device("meta"):
        ours = ColipriModel(config)
    ours.load_state_dict(their_state(theirs), assign=True)
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return theirs, ours.eval(), x


def ways(theirs: Any, ours: ColipriModel, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Features of one image by each way; only what is asked for is held in memory."""
    settings = CropViewConfig(window_voxels=x.shape[-1])

    def package(quick: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=quick):
            return theirs.encode_image(x).float()

    return {
        "package_fp32": lambda: package(False),
        "package_bf16": lambda: package(True),
        "ours_fp32": lambda: encode_features(ours, x, settings, "fp32"),
        "ours_bf16": lambda: encode_features(ours, x, settings, "bf16"),
    }


def parity(calls: dict[str, Callable[[], Tensor]], ours: ColipriModel) -> dict[str, Any]:
    """Differences of ours in float32, and cosines of ours in half precision, both to the package in float32."""
    found = {name: calls[name]() for name in ("package_fp32", "ours_fp32", "ours_bf16")}
    pooled = {name: ours.pooled(f)[0] for name, f in found.items()}
    dense = {name: ours.dense(f)[0].flatten(1) for name, f in found.items()}
    error = max(float((maps["ours_fp32"] - maps["package_fp32"]).abs().max()) for maps in (pooled, dense))
    whole = float(pooled["ours_bf16"] @ pooled["package_fp32"])
    cells = (dense["ours_bf16"] * dense["package_fp32"]).sum(dim=0)
    return {
        "metric": "float32: largest difference of pooled and dense unit vectors; half precision: least cosine to the package's float32",
        "fp32": error, "fp32_limit": LIMIT, "bf16_pooled_cosine": round(whole, 6), "bf16_cells_least_cosine": round(float(cells.min()), 6),
        "bf16_cells_mean_cosine": round(float(cells.mean()), 6), "bf16_limit": LEAST_COSINE,
        "ok": error <= LIMIT and whole >= LEAST_COSINE and float(cells.min()) >= LEAST_COSINE,
    }  # fmt: skip


def operations(config: PrimusConfig, side: int) -> dict[str, float]:
    """Floating-point operations of one forward by count: matrix products of the linear maps, and of attention."""
    cells = (side // config.patch) ** 3
    linear = 2 * cells * config.depth * (4 * config.width**2 + 3 * config.width * config.ffn)
    return {"linear": linear + 2 * cells * config.width * config.patch**3, "attention": 4 * cells**2 * config.width * config.depth}


def product_rate(dtype: torch.dtype, rows: int = 2048) -> float:
    """GFLOP/s of processor time of the encoder's own kind of matrix product, best of five."""
    a, b = torch.randn(rows, 864).to(dtype), torch.randn(864, 2304).to(dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(6))
    return round(2 * rows * 864 * 2304 / best / 1e9, 1)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def attention_seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Processor seconds of one call, and of those the ones inside attention."""
    plain, inside = attention_blocks.attention_by_blocks, 0.0

    def timed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal inside
        started = time.process_time()
        out = plain(q, k, v)
        inside += time.process_time() - started
        return out

    attention_blocks.attention_by_blocks = timed
    try:
        return _seconds(call), inside
    finally:
        attention_blocks.attention_by_blocks = plain


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-memory", action="store_true", help="leave out peak memory, which takes a process per way")
    parser.add_argument("--brief", action="store_true", help="leave out the package in bf16 and ours in fp32")
    parser.add_argument("--only", choices=("package_fp32", "package_bf16", "ours_fp32", "ours_bf16"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if importlib.util.find_spec("colipri") is None:
        print(json.dumps({"name": "colipri_encode", "skipped": "the package colipri is not installed: pip install -e '.[colipri]'"}))
        return
    theirs, ours, x = models(options.size)
    calls = ways(theirs, ours, x)
    if options.only:
        if options.only.startswith("ours"):
            del theirs, calls["package_fp32"], calls["package_bf16"]
        print_peak(calls[options.only], CPU)
        return
    same = parity(calls, ours)
    if options.brief:
        del calls["package_bf16"], calls["ours_fp32"]
    times = alternating(calls, options.repeats, CPU)
    config, side = SIZES[options.size]
    counted = operations(config, side)
    total, inside = attention_seconds(calls["ours_bf16"])
    rates = {"fp32": product_rate(torch.float32), "bf16": product_rate(torch.bfloat16)}
    arguments = ["--size", options.size, "--threads", str(options.threads)]
    for name in () if options.without_memory else times:
        times[name] |= peak_in_child(__file__, name, arguments)
    # Processor time: what else runs on the machine does not enter it.
    base, best = times["package_fp32"]["processor_s"], times["ours_bf16"]["processor_s"]
    achieved = sum(counted.values()) / best / 1e9
    line = facts("colipri_encode", CPU) | {
        "size": options.size,
        "reference": times["package_fp32"], "reference_bf16": times.get("package_bf16"), "ours_fp32": times.get("ours_fp32"),
        "ours": times["ours_bf16"],
        "ratio": round(best / base, 3), "ratio_wall": round(times["ours_bf16"]["median_s"] / times["package_fp32"]["median_s"], 3),
        "ratio_to_package_bf16": None if options.brief else round(best / times["package_bf16"]["processor_s"], 3), "gate": GATE, "aim": AIM,
        "operations": counted,
        "product_gflops": rates, "ours_gflops": round(achieved, 1), "share_of_bf16_product_rate": round(achieved / rates["bf16"], 3),
        "attention_share_of_time": round(inside / total, 3),
        "attention_gflops": round(counted["attention"] / inside / 1e9, 1),
        "rest_gflops": round(counted["linear"] / (total - inside) / 1e9, 1),
        "parity": same, "excluded": ["imports", "loading of weights", "pre-processing"],
    }  # fmt: skip
    print(json.dumps(line))
    if not same["ok"]:
        sys.exit("the outputs differ: no time is worth anything")


if __name__ == "__main__":
    main()
