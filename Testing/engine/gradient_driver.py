"""One of several processes that take the same step together; the first writes its gradients. Started by `test_steps.py`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from VelvetMedLib.engine.data import BatchMaker, Quarantine, groups_of
from VelvetMedLib.engine.fsdp import shard, whole
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.manifest import read_manifest
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.sampler import part_of
from VelvetMedLib.engine.store import open_store
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.objectives.base import StudyBatch
from VelvetMedLib.recipes.overrides import overridden
from VelvetMedLib.recipes.velvet import micro

NAMES = ["s0", "s1", "s2", "s3", "s4"]
"""Five studies: no number of processes or micro-batches divides them."""


def gradients(folder: Path, store: Path, assignments: list[str], processes: Processes) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of one step over `NAMES` by parameter name, and the loss sums of this process. Dropout is off."""
    recipe = overridden(micro(), ["text_dropout=0", *assignments])
    manifest = read_manifest(folder / "studies.jsonl")
    studies, _ = open_store(manifest.studies, store, recipe.views)
    tokenizer = ReportTokenizer(folder / "tokenizer.json")
    seed_torch(1, "weights")
    learner = Learner(recipe, tokenizer.vocab_size).double()
    names, loop = NAMES, recipe.loop
    if loop.parallel == "fsdp":
        # Sharded weights want equal parts.
        names = NAMES[: loop.batch]
        if processes.world_size > 1:
            assert len(shard(learner, processes, studies=loop.batch, micro_batches=loop.micro_batches)) > 10
    maker = BatchMaker(
        studies,
        groups_of(studies),
        tokenizer,
        recipe.views,
        recipe.reports,
        keys=learner.keys,
        seed=3,
        sentence_tokens=True,
        quarantine=Quarantine(None, 0, 1.0),
    )
    mine = part_of(names, processes.rank, processes.world_size)
    parts = [part_of(mine, n, recipe.loop.micro_batches) for n in range(recipe.loop.micro_batches)]
    # float64: restoration's absolute value has a kink, and float32's last bit decides the sign of a gradient there.
    batches = [in_float64(maker.batch(part, 0)) for part in parts]
    result = learner.gradients(batches, processes.context(3, 7), processes, 3)
    found = whole({name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None})
    return found, {name: value / max(1.0, result.totals[name]) for name, value in result.sums.items()}


def in_float64(batch: StudyBatch) -> StudyBatch:
    return replace(
        batch,
        images={key: image.double() for key, image in batch.images.items()},
        clean={key: image.double() for key, image in batch.clean.items()},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    group = Processes("cpu")
    found, losses = gradients(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:], group)
    shares = group.gather_objects(losses)
    if group.first:
        save_file(found, sys.argv[3])
        summed = {name: sum(share[name] for share in shares) for name in losses}
        Path(sys.argv[3]).with_suffix(".json").write_text(json.dumps(summed), encoding="utf-8")
    group.close()
