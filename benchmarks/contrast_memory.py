"""Memory of cached-gradient contrast: micro-batches of 2 that count as one batch of 16, in one run, as one JSON line.

`python benchmarks/contrast_memory.py [--size quick|paper] [--side N] [--losses contrast|all]`. quick: the tiny preset at 64^3; paper: the
published encoders at 96^3 (for a GPU; on a CPU with much patience, and the plain batch of 16 left out). Compared with a plain step
of 2 and with the plain batch of 16, each in a process of its own. Gradients come first: cached against plain, float32, dropout off.
"own_mb" is the peak of the step over what was in use before it (weights, gradients and inputs of the batch are there already).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.measuring import alternating, facts, gradients, largest_difference, peak_in_child, print_peak
from pretraining.plan import made_up_batch, vocabulary

from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.objectives.base import StudyBatch
from VelvetMedLib.recipes.velvet import VelvetRecipe, paper, tiny

MICRO, EFFECTIVE = 2, 16
WAYS = {"plain_2": (MICRO, 1), "cached_16": (EFFECTIVE, EFFECTIVE // MICRO), "plain_16": (EFFECTIVE, 1)}
"""Way -> (studies of the step, micro-batches)."""
GRADIENT_LIMIT = 1e-4
LIMIT = 1.3


def recipe_of(size: str, way: str, side: int | None, precision: str, losses: str) -> VelvetRecipe:
    """Contrast at all levels, or every loss of the paper."""
    base = {"quick": tiny, "paper": paper}[size]()
    studies, pieces = WAYS[way]
    views = base.views if side is None else replace(base.views, global_voxels=side, local_voxels=min(side, base.views.local_voxels))
    loop = replace(
        base.loop, batch=studies, micro_batches=pieces, cached_gradients=pieces > 1, precision=precision, recompute_activations=False
    )
    everything = losses == "all"
    return base.with_(views=views, loop=loop, text_dropout=0.0, mm=everything, vis=everything, txt=everything)


def prepared(recipe: VelvetRecipe, device: torch.device) -> tuple[Learner, list[StudyBatch]]:
    """The same weights in every process; a batch of the same studies, whole or in pieces."""
    torch.manual_seed(0)
    vocab_size = vocabulary(recipe, None)
    learner = Learner(recipe, vocab_size).to(device).train()
    whole = made_up_batch(recipe, vocab_size, recipe.loop.batch, learner.keys)
    size = recipe.loop.batch // recipe.loop.micro_batches
    return learner, [_rows(whole, slice(first, first + size)).to(device) for first in range(0, recipe.loop.batch, size)]


def _rows(batch: StudyBatch, rows: slice) -> StudyBatch:
    def cut(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value[rows] for key, value in values.items()}

    texts = {
        key: replace(layout, **{name: getattr(layout, name)[rows] for name in type(layout).__dataclass_fields__})
        for key, layout in batch.texts.items()
    }
    assert batch.view_spacing_mm is not None
    return StudyBatch(
        study=batch.study[rows],
        group=batch.group[rows],
        view_spacing_mm=batch.view_spacing_mm[rows],
        images=cut(batch.images),
        texts=texts,
        labels=cut(batch.labels),
        clean=cut(batch.clean),
        quarter_turns=cut(batch.quarter_turns),
    )


def a_step(learner: Learner, batches: list[StudyBatch], processes: Processes) -> Callable[[], None]:
    """Gradients are kept between steps and set to zero, as memory in use before the step."""
    for p in learner.parameters():
        p.grad = torch.zeros_like(p)

    def step() -> None:
        learner.zero_grad(set_to_none=False)
        learner.gradients(batches, processes.context(0, 0), processes, 0)

    return step


def parity(size: str, side: int, losses: str, processes: Processes) -> dict[str, Any]:
    """Gradients of the cached step against the plain batch of 16."""
    found = {}
    for way in ("cached_16", "plain_16"):
        learner, batches = prepared(recipe_of(size, way, side, "fp32", losses), processes.device)
        a_step(learner, batches, processes)()
        found[way] = gradients(learner)
        del learner, batches
    difference = largest_difference(found["cached_16"], found["plain_16"])
    return {
        "metric": "largest difference of a gradient, relative to the largest gradient", "voxels": side, "value": difference,
        "limit": GRADIENT_LIMIT, "ok": difference <= GRADIENT_LIMIT,
    }  # fmt: skip


def main() -> int:
    """Print the JSON line; exit code 1 when gradients differ or the memory is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("quick", "paper"), default="quick")
    parser.add_argument("--side", type=int, help="voxels of the global view, a multiple of 32 (default: the preset's)")
    parser.add_argument("--losses", choices=("contrast", "all"), default="contrast")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--parity-side", type=int, default=32, help="voxels for the comparison of gradients (default: 32)")
    parser.add_argument("--repeats", type=int, default=1, help="of the times; memory is measured once (default: 1)")
    parser.add_argument("--without-plain-16", action="store_true", help="where the plain batch of 16 does not fit")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=tuple(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    processes = Processes(args.device)
    if args.only:
        step = a_step(*prepared(recipe_of(args.size, args.only, args.side, args.precision, args.losses), processes.device), processes)
        print_peak(step, processes.device)
        return 0
    head = facts("contrast_memory", processes.device)
    checked = parity(args.size, args.parity_side, args.losses, processes)
    ways = [way for way in WAYS if way != "plain_16" or not args.without_plain_16]
    recipes = {way: recipe_of(args.size, way, args.side, args.precision, args.losses) for way in ways}
    shared = ["--size", args.size, "--losses", args.losses, "--precision", args.precision, "--threads", str(args.threads)]
    shared += ["--device", args.device, "--side", str(recipes["cached_16"].views.global_voxels)]
    memory = {way: peak_in_child(__file__, way, shared) for way in ways}
    calls = {way: a_step(*prepared(recipes[way], processes.device), processes) for way in ways}
    rows = alternating(calls, args.repeats, processes.device)
    for way in ways:
        rows[way] |= memory[way]
        peak, before = memory[way]["peak_mb"], memory[way]["before_mb"]
        rows[way]["own_mb"] = None if peak is None else round(peak - before, 1)

    def ratio(first: str, second: str, what: str) -> float | None:
        one, two = (rows[way].get(what) if way in rows else None for way in (first, second))
        return round(one / two, 3) if one and two else None

    ratios = {
        f"{what}: {first} over {second}": ratio(first, second, what)
        for what in ("peak_mb", "own_mb", "median_s")
        for first, second in (("cached_16", "plain_2"), ("plain_16", "plain_2"), ("cached_16", "plain_16"))
    }
    gated = ratios["own_mb: cached_16 over plain_2"]
    line = {
        **head,
        "input_sha256": [hashlib.sha256(json.dumps(recipes["cached_16"].to_dict(), sort_keys=True).encode()).hexdigest()],
        "input": {
            "preset": {"quick": "tiny", "paper": "paper"}[args.size],
            "voxels": recipes["cached_16"].views.global_voxels,
            "micro_batch": MICRO,
            "effective": EFFECTIVE,
            "losses": args.losses,
            "precision": args.precision,
            "dropout": 0.0,
        },
        "reference": rows["plain_2"],
        "second_reference": rows.get("plain_16"),
        "ours": rows["cached_16"],
        "ratio": gated,
        "ratios": ratios,
        "parity": checked,
        "gates": {f"own memory, cached_16 over plain_2 <= {LIMIT}": None if gated is None else gated <= LIMIT},
        "excluded": ["imports", "reading of scans", "optimiser"],
    }
    print(json.dumps(line))
    return 0 if checked["ok"] and gated is not None and gated <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
