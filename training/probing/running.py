"""One probe put together: the run's recipe and weights, its studies, and the ways to read them side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablating.data import truth_table
from numpy.typing import NDArray
from pretraining.run import Options, batch_maker, new_learner, open_data

from probing.features import POOLS, StudyVectors, study_vectors
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.probe import FindingProbe, ProbeSplit, as_markdown, as_records, linear_probe, macro_auroc
from VelvetMedLib.files import read_json, write_text
from VelvetMedLib.models.t3d import T3dModel
from VelvetMedLib.recipes.t3d import T3dRecipe

SPLITS = ("train", "val", "test")
Truth = Mapping[str, NDArray[np.float64]]


def recipe_of(run: Path) -> tuple[T3dRecipe, int]:
    """The recipe of a T3D-style run and its seed. Raises TrainingError where the folder holds no such run."""
    facts = read_json(run / "run.json")
    found = facts.get("recipe", {}).get("name", "nothing") if facts else "nothing"
    if facts is None or found != T3dRecipe().name:
        raise TrainingError(
            "There is no T3D-style run here.",
            found=f"a run folder of the recipe {found}" if facts else "no run.json",
            expected="the run folder of `pretrain.py t3d`",
            next_step="Give that folder with --run.",
        )
    return T3dRecipe.from_dict(facts["recipe"]), int(facts["seed"])


def probed(
    vectors: Mapping[str, StudyVectors],
    untrained: Mapping[str, StudyVectors],
    truth: Truth,
    findings: Sequence[str],
    *,
    draws: int = 500,
) -> dict[str, list[FindingProbe]]:
    """ "without text, mean" and so on -> one logistic regression per finding. untrained: of the encoder as it began, which training
    must beat. draws: for the intervals."""
    results: dict[str, list[FindingProbe]] = {}
    for way, found in (("untrained", untrained), ("without text", vectors)):
        for pool in POOLS:
            plain = (ProbeSplit(features=found[split].without_text[pool], truth=truth[split]) for split in SPLITS)
            results[f"{way}, {pool}"] = linear_probe(*plain, findings, draws=draws)
    for pool in POOLS:
        results[f"with text, {pool}"] = [
            linear_probe(
                *(
                    ProbeSplit(features=vectors[split].with_text[finding][pool], truth=truth[split][:, column : column + 1])
                    for split in SPLITS
                ),
                [finding],
                draws=draws,
            )[0]
            for column, finding in enumerate(findings)
        ]
    return results


def probe(run: Path, cohort: Path, *, store: Path | None, workers: int, device: str | None, say: Callable[[str], None]) -> Path:
    """Writes RUN/probe/probe.md and probe.json; returns the folder."""
    recipe, seed = recipe_of(run)
    processes = Processes(device)
    data = open_data(recipe, Options(run=run, steps=1, seed=seed, cohort=cohort, store=store, workers=workers), processes)
    learner = new_learner(recipe, data.tokenizer.vocab_size, seed)
    checkpoints = Checkpoints(run)
    kept = checkpoints.load_best() or checkpoints.load()
    if kept is None:
        raise TrainingError(
            "The run has no checkpoint yet.", found="an empty run folder", expected="a run that has saved", next_step="Let it run on."
        )
    learner.load_state_dict(kept.parts.get("average", kept.parts["weights"]))
    model, begun = (made.model.to(processes.device) for made in (learner, new_learner(recipe, data.tokenizer.vocab_size, seed)))
    assert isinstance(model, T3dModel) and isinstance(begun, T3dModel)
    names = {split: [entry.study.study for entry in data.split(split)] for split in SPLITS}
    if not all(names.values()):
        raise TrainingError(
            "The cohort cannot be probed.",
            found=", ".join(f"{len(listed)} {split}" for split, listed in names.items()),
            expected="studies in all three splits",
            next_step="Make a larger cohort.",
        )
    tables = {split: truth_table(cohort, listed) for split, listed in names.items()}
    findings = tables["train"][0]
    vectors: dict[str, StudyVectors] = {}
    untrained: dict[str, StudyVectors] = {}
    for split in SPLITS:
        maker = batch_maker(data, split, recipe, (), seed)
        vectors[split] = study_vectors(model, recipe, maker, names[split], findings, processes.device)
        untrained[split] = study_vectors(begun, recipe, maker, names[split], (), processes.device)
        say(f"{split}: {len(names[split])} studies, {np.mean(vectors[split].crops):.1f} crops each")
    results = probed(vectors, untrained, {split: table for split, (_, table) in tables.items()}, findings)
    facts = {"step": kept.step, "key": recipe.key, "studies": {split: len(listed) for split, listed in names.items()}}
    return write_results(run / "probe", results, facts, say)


def write_results(
    folder: Path, results: Mapping[str, Sequence[FindingProbe]], facts: Mapping[str, Any], say: Callable[[str], None]
) -> Path:
    """AUROC with its interval by finding, the ways side by side."""
    table = as_markdown(results)
    about = (
        "AUROC (95 % interval) of logistic regressions on the frozen encoder, test studies. Study vector: mean or maximum over the crops "
        "that cover the body. Untrained: the same encoder with the weights it began with. With text: each finding's own question, and the "
        "history where a report has one.\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "probe.md", f"{about}\n{table}\n{RESEARCH_USE_ONLY}\n")
    means = {name: macro_auroc(probes) for name, probes in results.items()}
    record = {
        **facts,
        "mean": {name: None if np.isnan(mean) else mean for name, mean in means.items()},
        "findings": {name: as_records(probes) for name, probes in results.items()},
    }
    write_text(folder / "probe.json", json.dumps(record, indent=1) + "\n")
    say(table)
    return folder
