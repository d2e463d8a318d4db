"""One process of a test of many: its share of the eight studies, every objective's term and gradient, reduced and written down."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from VelvetMedLib.objectives.base import normalised
from VelvetMedLib.objectives.context import Context, ProcessGroupContext
from VelvetMedLib.objectives.encoding import encode, needed_keys

SEED, STEP = 11, 5


def terms_and_gradients(
    shares: Sequence[Sequence[int]], rank: int, ctx: Context, *, one_group: bool, of: str = "toys"
) -> dict[str, tuple[float, Tensor]]:
    """Per term: (sum of sums) / n_tot, and that number's gradient over all parameters as DDP would have it: averaged over ranks.

    of: module of toys with `model`, `objectives` and `batch`.
    """
    many = ctx.world_size > 1
    toys = import_module(f"Testing.objectives.{of}")
    model, objectives = toys.model(), toys.objectives()
    batch = toys.batch(shares[rank], one_group=one_group)
    totals = {name: torch.tensor(n) for o in objectives.values() for name, n in o.counts(batch, ctx).items()}
    if many:
        for total in totals.values():
            dist.all_reduce(total)
    features = encode(model, batch, needed_keys(objectives.values()))
    parameters = [*model.parameters(), *objectives.parameters()]
    found: dict[str, tuple[float, Tensor]] = {}
    for objective in objectives.values():
        for name, term in objective(model, features, batch, ctx).losses.items():
            n = {name: float(totals[name])}
            loss = normalised({name: term}, n, world_size=ctx.world_size)
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)])
            value = loss.detach().clone()
            if many:
                dist.all_reduce(flat)
                dist.all_reduce(value)
            found[name] = (float(value) / ctx.world_size, flat / ctx.world_size)
    return found


def main(folder: Path, rank: int, world_size: int) -> None:
    """Runs the scenarios of `folder`/scenarios.json as one rank; rank 0 writes `folder`/results.json (losses, and gradients as files)."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=400))
    ctx = ProcessGroupContext.current(seed=SEED, step=STEP)
    results = []
    for n, scenario in enumerate(json.loads((folder / "scenarios.json").read_text())):
        found = terms_and_gradients(scenario["shares"], rank, ctx, one_group=scenario["one_group"], of=scenario.get("of", "toys"))
        results.append({name: value for name, (value, _) in found.items()})
        if rank == 0:
            for name, (_, gradient) in found.items():
                gradient.numpy().tofile(folder / f"{n}_{name}.f64")
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
