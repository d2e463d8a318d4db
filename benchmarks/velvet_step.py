"""One VELVET-Med step of all objectives on shared encodings, against steps that encode anew, in one run, as one JSON line.

`python benchmarks/velvet_step.py [--size quick|paper] [--side N] [--batch N] [--precision fp32|bf16] [--once]`. quick: the tiny
preset. paper: the published encoders (Sv, Bt) at 96^3; on a CPU give --batch 2 --side 64 --parity-side 32 --once, or have an hour.
References: "by_objective", in which each of the nine objectives runs its own encoder passes; "by_loss", in which each of the
four losses of the paper (contrast at all levels; matching with masked language; volumes; text) does. Forward and backward, no optimiser.
Parity comes first: every loss and all gradients in float32. Dropout is off on all sides, so that parity can be exact.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.measuring import alternating, facts, gradients, largest_difference, peak_in_child, print_peak
from pretraining.plan import made_up_batch, vocabulary

from VelvetMedLib.engine.learner import Learner, autocast
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.objectives.base import StudyBatch, normalised
from VelvetMedLib.objectives.context import Context
from VelvetMedLib.objectives.encoding import encode, needed_keys
from VelvetMedLib.recipes.velvet import VelvetRecipe, paper, tiny

LOSSES = {
    "contrast": ("report_contrast", "sentence_contrast", "word_contrast"),
    "multi-modal": ("match", "masked_language_mm"),
    "volumes": ("view_contrast", "rotation", "restoration"),
    "text": ("masked_language_text",),
}
"""The four losses of the paper and the objectives in each."""
LOSS_LIMIT, GRADIENT_LIMIT = 1e-4, 1e-3
REQUIRED, AIM = 0.7, 0.6


def recipe_of(size: str, side: int | None, batch: int | None, precision: str, *, recompute: bool) -> VelvetRecipe:
    """All objectives; the local crops get the side of the global view at the paper's size."""
    base = {"quick": tiny, "paper": paper}[size]()
    views = base.views
    if side is not None:
        views = replace(views, global_voxels=side, local_voxels=min(side, views.local_voxels))
    loop = replace(base.loop, batch=batch or {"quick": 4, "paper": 10}[size], precision=precision, recompute_activations=recompute)
    return base.with_(views=views, loop=loop, text_dropout=0.0)


def groupings(learner: Learner) -> dict[str, list[list[str]]]:
    """Way -> which objectives share their encodings."""
    names = list(learner.listed())
    return {
        "shared": [names],
        "by_loss": [[name for name in part if name in names] for part in LOSSES.values()],
        "by_objective": [[name] for name in names],
    }


def step(learner: Learner, batch: StudyBatch, parts: Sequence[Sequence[str]], device: torch.device) -> dict[str, float]:
    """Gradients of the sum of all losses on the parameters; the losses by name. Each part encodes what it needs and goes back at once."""
    learner.zero_grad(set_to_none=True)
    ctx = Context(seed=0, step=0)
    listed = learner.listed()
    totals = {name: n for objective in listed.values() for name, n in objective.counts(batch, ctx).items()}
    losses: dict[str, float] = {}
    seed_torch(0, "step")
    for part in parts:
        chosen = [listed[name] for name in part]
        with autocast(device, learner.recipe.loop.precision):
            features = encode(learner.model, batch, needed_keys(chosen))
            terms = learner.terms(features, batch, ctx, chosen)
            loss = normalised(terms.losses, totals, world_size=1, weights=learner.weights)
        loss.backward()
        losses |= {name: float(term.total.detach()) / max(1.0, totals[name]) for name, term in terms.losses.items()}
    return losses


def passes(learner: Learner, parts: Sequence[Sequence[str]]) -> dict[str, int]:
    """Feature key -> how often a step encodes it."""
    counted: dict[str, int] = {}
    for part in parts:
        for key in needed_keys([learner.listed()[name] for name in part]):
            counted[key] = counted.get(key, 0) + 1
    return dict(sorted(counted.items()))


def prepared(recipe: VelvetRecipe, device: torch.device) -> tuple[Learner, StudyBatch]:
    """The same weights and batch in every process."""
    torch.manual_seed(0)
    vocab_size = vocabulary(recipe, None)
    learner = Learner(recipe, vocab_size).to(device).train()
    return learner, made_up_batch(recipe, vocab_size, recipe.loop.batch, learner.keys).to(device)


def parity(recipe: VelvetRecipe, device: torch.device, references: Sequence[str]) -> dict[str, Any]:
    """Losses and gradients of the references against ours, in float32."""
    learner, batch = prepared(recipe.with_(loop=replace(recipe.loop, precision="fp32")), device)
    ways = groupings(learner)
    ours = step(learner, batch, ways["shared"], device)
    own = gradients(learner)
    losses, grads = 0.0, 0.0
    for name in references:
        theirs = step(learner, batch, ways[name], device)
        losses = max(losses, *(abs(ours[k] - theirs[k]) / max(1e-6, abs(theirs[k])) for k in theirs))
        grads = max(grads, largest_difference(own, gradients(learner)))
    ok = losses <= LOSS_LIMIT and grads <= GRADIENT_LIMIT
    return {
        "metric": "largest relative difference of a loss; of gradients relative to the largest gradient", "losses": losses,
        "losses_limit": LOSS_LIMIT, "gradients": grads, "gradients_limit": GRADIENT_LIMIT, "values": ours, "ok": ok,
    }  # fmt: skip


def main() -> int:
    """Print the JSON line; exit code 1 when parity fails, or the gate is missed on a machine that was not loaded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("quick", "paper"), default="quick")
    parser.add_argument("--side", type=int, help="voxels of the global view, a multiple of 32 (default: the preset's)")
    parser.add_argument("--batch", type=int, help="studies (default: 4 quick, 10 paper)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing on all sides")
    parser.add_argument("--parity-side", type=int, help="voxels for the comparison of losses and gradients (default: as timed)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--once", action="store_true", help="one round without a warm-up, no by_loss, no memory: where a step takes minutes"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = Processes(args.device).device
    recipe = recipe_of(args.size, args.side, args.batch, args.precision, recompute=args.recompute)
    if args.only:
        learner, batch = prepared(recipe, device)
        print_peak(lambda: step(learner, batch, groupings(learner)[args.only], device), device)
        return 0
    head = facts("velvet_step", device)
    references = ("by_objective",) if args.once else ("by_loss", "by_objective")
    smaller = recipe_of(args.size, args.parity_side or args.side, args.batch, "fp32", recompute=args.recompute)
    checked = parity(smaller, device, references)
    learner, batch = prepared(recipe, device)
    ways = {name: parts for name, parts in groupings(learner).items() if not (args.once and name == "by_loss")}

    def call(name: str) -> Callable[[], Any]:
        return lambda: step(learner, batch, ways[name], device)

    rows = alternating({name: call(name) for name in ways}, 1 if args.once else args.repeats, device, warm_up=not args.once)
    shared = ["--size", args.size, "--precision", args.precision, "--threads", str(args.threads), "--device", args.device]
    shared += ["--batch", str(recipe.loop.batch), "--side", str(recipe.views.global_voxels)] + (["--recompute"] if args.recompute else [])
    for name in ways:
        rows[name] |= {"passes": passes(learner, ways[name]), **({} if args.once else peak_in_child(__file__, name, shared))}
    ratios = {
        f"{word}shared_over_{name}": round(rows["shared"][what] / rows[name][what], 3)
        for name in ways
        for word, what in (("", "median_s"), ("processor_", "processor_s"), ("peak_", "peak_mb"))
        if name != "shared" and rows["shared"].get(what) and rows[name].get(what)
    }
    ratio = ratios["shared_over_by_objective"]
    line = {
        **head,
        "input_sha256": [hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()],
        "input": {
            "preset": {"quick": "tiny", "paper": "paper"}[args.size],
            "parity_voxels": args.parity_side or recipe.views.global_voxels,
            "voxels": [recipe.views.global_voxels, recipe.views.local_voxels],
            "batch": recipe.loop.batch,
            "tokens": int(next(iter(batch.texts.values())).ids.shape[1]),
            "precision": args.precision,
            "recompute": args.recompute,
            "dropout": 0.0,
        },
        "reference": rows["by_objective"],
        "second_reference": rows.get("by_loss"),
        "ours": rows["shared"],
        "ratio": ratio,
        "ratios": ratios,
        "parity": checked,
        "gates": {f"shared over by_objective <= {REQUIRED}": ratio <= REQUIRED},
        "aims": {f"shared over by_objective <= {AIM}": ratio <= AIM},
        "excluded": ["imports", "reading of scans", "optimiser"],
    }
    print(json.dumps(line))
    return 0 if checked["ok"] and (all(line["gates"].values()) or line["loaded"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
