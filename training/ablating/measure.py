"""What is measured of a pre-trained cell: retrieval beside its ceiling and its floor, and a linear probe by finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining.run import Data, batch_maker, new_learner

from ablating.data import facts_by_study, truth_table
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.data import EVALUATION, BatchMaker
from VelvetMedLib.engine.learner import Learner, autocast
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.validation import held_out_vectors
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.probe import ProbeSplit, as_records, linear_probe, macro_auroc
from VelvetMedLib.evaluation.records import Facts, record_scores
from VelvetMedLib.evaluation.retrieval import chance, hit_chances, recall_at, retrieval, same_group
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN, Features
from VelvetMedLib.objectives.encoding import encode
from VelvetMedLib.recipes.base import Recipe

OWN, EQUAL = "own report", "equal records too"
"""What counts as found: the study's own partner; or any partner whose record is equal, which no reader could tell apart."""
DRAWS, SHARE = 2000, 0.95


def trained(recipe: Recipe, vocab_size: int, run: Path) -> tuple[Learner, int]:
    """The learner with the best weights of a finished run, and their step; the last ones where none were chosen."""
    checkpoints = Checkpoints(run)
    found = checkpoints.load_best() or checkpoints.load()
    if found is None:
        raise TrainingError(
            "The cell has no checkpoint.", found="an empty run folder", expected="a finished training", next_step="Call the line again."
        )
    learner = new_learner(recipe, vocab_size, 0)
    learner.load_state_dict(found.parts["weights"])
    return learner.eval(), found.step


def measured(learner: Learner, data: Data, cohort: Path, processes: Processes, seed: int) -> dict[str, Any]:
    """Retrieval and probe of one learner on the test studies."""
    recipe = learner.recipe
    learner.to(processes.device).eval()
    names = {split: [entry.study.study for entry in data.split(split)] for split in ("train", "val", "test")}
    both = batch_maker(data, "test", recipe, (IMAGE_GLOBAL, TEXT_CLEAN), seed)
    images, texts = held_out_vectors(learner, both, names["test"], processes)
    words = [entry.study.record or entry.study.study for entry in data.split("test")]
    makers = {split: batch_maker(data, split, recipe, (IMAGE_GLOBAL,), seed) for split in names}
    features = {split: pooled_maps(learner, makers[split], names[split], processes) for split in names}
    return {
        "gallery": len(names["test"]),
        "retrieval": retrieval_figures(images.numpy(), texts.numpy(), words, facts_by_study(cohort, names["test"])),
        "probe": probe_figures(features, cohort, names),
    }


@torch.no_grad()
def pooled_maps(learner: Learner, maker: BatchMaker, names: Sequence[str], processes: Processes, *, batch: int = 8) -> NDArray[np.float32]:
    """[N, C]: mean of the top map of each study, before any projection, so that every row is probed at the same place."""
    out = []
    for start in range(0, len(names), batch):
        made = maker.batch(names[start : start + batch], EVALUATION).to(processes.device)
        with autocast(processes.device, learner.recipe.loop.precision):
            features: Features = encode(learner.model, made, (IMAGE_GLOBAL,))
        out.append(features[IMAGE_GLOBAL].top.float().mean(dim=(2, 3, 4)).cpu())
    return torch.cat(out).numpy()


def retrieval_figures(
    images: NDArray[Any], texts: NDArray[Any], words: Sequence[str], facts: Sequence[Facts]
) -> dict[str, dict[str, float]]:
    """By what counts as found: recall both ways and their mean, interval of the mean R@10, chance, and the record oracle."""
    scores = np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
    ceiling = record_scores(facts)
    out = {}
    for name, groups in ((OWN, [str(n) for n in range(len(words))]), (EQUAL, list(words))):
        relevant = same_group(groups)
        low, high = mean_interval(scores, relevant, 10)
        out[name] = {
            **retrieval(images, texts, groups),
            "R@10 low": low,
            "R@10 high": high,
            **{f"chance {k}": v for k, v in chance(relevant).items()},
            **{f"oracle {k}": v for k, v in recall_at(ceiling, relevant).items()},
        }
    return out


def mean_interval(scores: NDArray[np.float64], relevant: NDArray[np.bool_], k: int) -> tuple[float, float]:
    """Bootstrap interval over studies of the mean of R@k in both directions; the gallery stays as it is."""
    hits = 0.5 * (hit_chances(scores, relevant, k) + hit_chances(scores.T, relevant, k))
    draw = np.random.default_rng(0)
    means = hits[draw.integers(len(hits), size=(DRAWS, len(hits)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def probe_figures(features: dict[str, NDArray[np.float32]], cohort: Path, names: dict[str, list[str]]) -> dict[str, Any]:
    """Logistic regressions on the pooled map; "mean" over the findings that have a figure, None without any."""
    tables = {split: truth_table(cohort, studies) for split, studies in names.items()}
    findings = tables["train"][0]
    train, val, test = (ProbeSplit(features=features[split], truth=tables[split][1]) for split in ("train", "val", "test"))
    results = linear_probe(train, val, test, findings)
    mean = macro_auroc(results)
    told = sum(r.auroc is not None for r in results)
    return {"mean": None if np.isnan(mean) else mean, "findings_told": told, "findings": as_records(results)}


def stands_clear(figures: dict[str, Any], times: float) -> bool:
    """Whether the interval of R@10 of the own report lies above `times` chance: what a pilot must show."""
    own = figures["retrieval"][OWN]
    return bool(own["R@10 low"] > times * own["chance R@10"])
