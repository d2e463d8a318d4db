"""COLIPRI's image encoder on a CPU: ours in half precision against the public package, in one run, as one JSON line.

`python benchmarks/colipri_encode.py [--size quick|deep|block|released]`. Same weights, same input; every forward in a process of its
own, the ways taking turns. quick: released widths and heads, 2 of 16 blocks, 1,728 of 13,824 cells; deep: all blocks on as many
cells, for what rounding does on the whole way; block: one block at the released number of cells; released: all of it (minutes per
forward on two cores, and 2.5 GB). Parity comes with it: in float32, and of the half-precision output against the package's float32
(cosine of the pooled and of every cell's vector). Ratios are of processor time, into which nothing enters that else runs on the
machine. Beside them stand the rates of a matrix product here, and where our time goes. Needs the extra [colipri].
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.common.measuring import clock, facts, peak_of
from VelvetMedLib.bundle.config import CropViewConfig
from VelvetMedLib.models import primus_bf16
from VelvetMedLib.models.colipri import ColipriConfig, ColipriModel
from VelvetMedLib.models.primus import PrimusConfig
from VelvetMedLib.tasks.crop import encode_features

SIZES = {
    "quick": (PrimusConfig(depth=2), 96),
    "deep": (PrimusConfig(), 96),
    "block": (PrimusConfig(depth=1), 192),
    "released": (PrimusConfig(), 192),
}
LIMIT, LEAST_COSINE, GATE, AIM = 1e-4, 0.999, 0.8, 0.5
WAYS = ("package_fp32", "ours_bf16", "package_bf16", "ours_fp32")
CPU = torch.device("cpu")


def models(size: str) -> tuple[Any, ColipriModel, Tensor]:
    """(the package's model, ours with the same weights, one image)."""
    from Testing.plugins.colipri_package import their_model, their_state

    image, side = SIZES[size]
    config = ColipriConfig(image=image, text=None)
    theirs = their_model(config, side, sharp=False)
    with torch.device("meta"):
        ours = ColipriModel(config)
    ours.load_state_dict(their_state(theirs), assign=True)
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return theirs, ours.eval(), x


def run_one(way: str, size: str, out: Path, *, warm_up: bool) -> None:
    """In a child process: features of the image into `out`, and one JSON line on the forward's time and memory."""
    theirs, ours, x = models(size)
    who, precision = way.split("_")
    if who == "package":
        del ours

        def call() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return theirs.encode_image(x).float()
    else:
        del theirs

        def call() -> Tensor:
            return encode_features(ours, x, CropViewConfig(window_voxels=x.shape[-1]), precision)

    if warm_up:
        call()
    spent = {"attention_s": timed(primus_bf16, "mix"), "linear_s": timed(primus_bf16.Bf16, "__call__")}
    found: list[Tensor] = []
    times: list[tuple[float, float]] = []
    memory = peak_of(lambda: times.append(clock(lambda: found.append(call()), CPU)), CPU)
    save_file({"features": found[0].contiguous()}, out)
    (wall, processor), inside = times[0], {name: round(seconds(), 4) for name, seconds in spent.items()}
    print(json.dumps({"wall_s": round(wall, 4), "processor_s": round(processor, 4)} | memory | (inside if way == "ours_bf16" else {})))


def timed(owner: Any, name: str) -> Callable[[], float]:
    """From now on adds up the processor seconds spent in owner.name; returns what tells them."""
    plain, total = getattr(owner, name), 0.0

    def watched(*words: Any, **named: Any) -> Any:
        nonlocal total
        started = time.process_time()
        out = plain(*words, **named)
        total += time.process_time() - started
        return out

    setattr(owner, name, watched)
    return lambda: total


def in_turns(ways: list[str], options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Way -> medians over `repeats` processes; features of each way in `folder`."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way in ways:
            words = ["--size", options.size, "--threads", str(options.threads), "--only", way, "--features", str(folder / way)]
            done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
            runs[way].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(way, runs[way][-1], file=sys.stderr)
    return {
        way: {name: round(statistics.median(run[name] for run in found), 4) for name in found[0]}
        | {"name": way, "n": len(found), "least_processor_s": min(run["processor_s"] for run in found)}
        for way, found in runs.items()
    }


def parity(ours: ColipriModel, folder: Path) -> dict[str, Any]:
    """Differences of ours in float32 (where it was run), and cosines of ours in half precision, both to the package in float32."""
    found = {path.name: load_file(path)["features"] for path in folder.iterdir()}
    pooled = {name: ours.pooled(f)[0] for name, f in found.items()}
    dense = {name: ours.dense(f)[0].flatten(1) for name, f in found.items()}
    error = None
    if "ours_fp32" in found:
        error = max(float((maps["ours_fp32"] - maps["package_fp32"]).abs().max()) for maps in (pooled, dense))
    whole = float(pooled["ours_bf16"] @ pooled["package_fp32"])
    cells = (dense["ours_bf16"] * dense["package_fp32"]).sum(dim=0)
    return {
        "metric": "float32: largest difference of pooled and dense unit vectors; half precision: least cosine to the package's float32",
        "fp32": error, "fp32_limit": LIMIT, "bf16_pooled_cosine": round(whole, 6), "bf16_cells_least_cosine": round(float(cells.min()), 6),
        "bf16_cells_mean_cosine": round(float(cells.mean()), 6), "bf16_limit": LEAST_COSINE,
        "ok": (error is None or error <= LIMIT) and whole >= LEAST_COSINE and float(cells.min()) >= LEAST_COSINE,
    }  # fmt: skip


def operations(config: PrimusConfig, side: int) -> dict[str, float]:
    """Floating-point operations of one forward by count: matrix products of the linear maps, and of attention."""
    cells = (side // config.patch) ** 3
    linear = 2 * cells * config.depth * (4 * config.width**2 + 3 * config.width * config.ffn)
    return {"linear": linear + 2 * cells * config.width * config.patch**3, "attention": 4 * cells**2 * config.width * config.depth}


def product_rate(dtype: torch.dtype, rows: int = 2048) -> float:
    """GFLOP/s of processor time of the encoder's own kind of matrix product, best of six."""
    a, b = torch.randn(rows, 864).to(dtype), torch.randn(864, 2304).to(dtype)
    best = min(clock(lambda: a @ b, CPU)[1] for _ in range(6))
    return round(2 * rows * 864 * 2304 / best / 1e9, 1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--brief", action="store_true", help="leave out the package in bf16 and ours in fp32")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--features", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if importlib.util.find_spec("colipri") is None:
        print(json.dumps({"name": "colipri_encode", "skipped": "the package colipri is not installed: pip install -e '.[colipri]'"}))
        return
    if options.only:
        # Beside minutes a first call's extra work is nothing.
        run_one(options.only, options.size, options.features, warm_up=options.size == "quick")
        return
    line = facts("colipri_encode", CPU) | {"size": options.size}
    with tempfile.TemporaryDirectory() as folder:
        found = in_turns([way for way in WAYS if not options.brief or way in WAYS[:2]], options, Path(folder))
        same = parity(models(options.size)[1], Path(folder))
    config, side = SIZES[options.size]
    counted, rates = operations(config, side), {"fp32": product_rate(torch.float32), "bf16": product_rate(torch.bfloat16)}
    theirs, ours = found["package_fp32"], found["ours_bf16"]
    spent = ours["processor_s"]
    achieved = sum(counted.values()) / spent / 1e9
    line |= {
        "reference": theirs, "ours": ours, "others": [found[way] for way in WAYS[2:] if way in found],
        "ratio": round(spent / theirs["processor_s"], 3), "gate": GATE, "aim": AIM,
        "ratio_wall": round(ours["wall_s"] / theirs["wall_s"], 3), "ratio_memory": round(ours["peak_mb"] / theirs["peak_mb"], 3),
        "operations": counted, "product_gflops": rates,
        "package_gflops": round(sum(counted.values()) / theirs["processor_s"] / 1e9, 1),
        "ours_gflops": round(achieved, 1), "share_of_bf16_product_rate": round(achieved / rates["bf16"], 3),
        "time_goes": {
            "attention": round(ours["attention_s"] / spent, 3), "linear maps": round(ours["linear_s"] / spent, 3),
            "norms, rotations, gates, rounding": round(1 - (ours["attention_s"] + ours["linear_s"]) / spent, 3),
        },
        "attention_gflops": round(counted["attention"] / ours["attention_s"] / 1e9, 1),
        "linear_gflops": round(counted["linear"] / ours["linear_s"] / 1e9, 1),
        "parity": same, "excluded": ["imports", "loading of weights", "pre-processing"],
    }  # fmt: skip
    print(json.dumps(line))
    if not same["ok"]:
        sys.exit("the outputs differ: no time is worth anything")


if __name__ == "__main__":
    main()
