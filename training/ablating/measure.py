"""What is measured of a pre-trained cell: retrieval beside its ceiling and its floor, a linear probe by finding, written reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pretraining.run import Data, batch_maker, new_learner

from ablating.data import facts_by_study, findings_of, truth_table
from ablating.views import pooled
from ablating.writing import report_figures, written_reports
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.validation import held_out_vectors
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.probe import ProbeSplit, as_records, linear_probe, macro_auroc
from VelvetMedLib.evaluation.records import Facts, record_scores
from VelvetMedLib.evaluation.retrieval import chance, hit_chances, recall_at, retrieval, same_group
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
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
    """Of one learner on the test studies: retrieval where scans and reports end in one space, the probe, and what it writes if it can."""
    recipe = learner.recipe
    learner.to(processes.device).eval()
    names = {split: [entry.study.study for entry in data.split(split)] for split in ("train", "val", "test")}
    figures: dict[str, Any] = {"gallery": len(names["test"])}
    if "report" in recipe.levels:
        both = batch_maker(data, "test", recipe, (IMAGE_GLOBAL, TEXT_CLEAN), seed)
        images, texts = held_out_vectors(learner, both, names["test"], processes)
        words = [entry.study.record or entry.study.study for entry in data.split("test")]
        figures["retrieval"] = retrieval_figures(images.numpy(), texts.numpy(), words, facts_by_study(cohort, names["test"]))
    features = {split: pooled(recipe, learner, data, split, processes, seed) for split in names}
    figures["probe"] = probe_figures(features, cohort, names)
    if written := written_reports(learner, data, "test", processes, seed):
        figures["reports"] = report_figures(written, data, "test", [findings_of(cohort, study) for study in names["test"]])
    return figures


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
