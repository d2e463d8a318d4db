"""One pre-training put together: data, learner, loop, validation by retrieval, the finished bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretraining.cohort import load_manifest, load_tokenizer, prepared
from pretraining.export import export
from pretraining.start import Start, read_start
from pretraining.warm import Warm, read_warm
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.data import BatchMaker, Quarantine, groups_of
from VelvetMedLib.engine.learner import Learner
from VelvetMedLib.engine.loader import loaders
from VelvetMedLib.engine.processes import Processes
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.runfolder import RunFolder, environment
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.store import StoredStudy
from VelvetMedLib.engine.trainer import Selection, Trainer
from VelvetMedLib.engine.validation import held_out_vectors
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.evaluation.retrieval import alikeness, chance, retrieval, same_group
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, TEXT_CLEAN
from VelvetMedLib.recipes.base import Recipe

CHOSEN_BY = ("mean recall", "R@1")
"""Best checkpoint: recall at 1, 5 and 10 of both directions on the validation studies, averaged; a tie goes to recall at 1."""
ALL_ALIKE = 0.98
"""Mean cosine of different studies' vectors from which a run is warned of: tiny encoders of random weights began at 0.996, one that learnt
nothing ended at 1.000, two that learnt at 0.80 and 0.40."""
STORE = "prepared"
COMPANION_SEED = 0x5CA9
"""So that scans without a report come in an order of their own."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the line says beside the recipe. steps: optimiser steps of the whole run. workers: processes that prepare data.

    text_from, vision_from: folders of converted weights to begin with; run_from: the run folder of an earlier pre-training.
    """

    run: Path
    steps: int
    seed: int
    cohort: Path | None = None
    manifest: Path | None = None
    store: Path | None = None
    tokenizer: Path | None = None
    text_from: Path | None = None
    vision_from: Path | None = None
    run_from: Path | None = None
    device: str | None = None
    workers: int = 1
    name: str = "velvet"
    training_data: str = ""
    licence: str = ""
    bundle: bool = True


@dataclass(frozen=True)
class Data:
    """What a run learns from, opened. scans: of the training split, without a report, where the recipe has a use for them."""

    studies: list[StoredStudy]
    groups: dict[str, int]
    tokenizer: ReportTokenizer
    tokenizer_json: str
    content: str
    quarantine: Quarantine
    scans: list[StoredStudy] = field(default_factory=list)

    def split(self, name: str) -> list[StoredStudy]:
        return [entry for entry in self.studies if entry.study.split == name]

    def learnt_from(self, recipe: Recipe) -> list[StoredStudy]:
        """What a step draws its studies from: of the training split; with the scans where no objective reads a report."""
        return [*self.split("train"), *([] if recipe.needs_reports else self.scans)]


def open_data(recipe: Recipe, options: Options, processes: Processes) -> Data:
    """Read the manifest, quarantine what cannot be used, prepare the store, learn or read the tokenizer."""
    path = options.run / "quarantine.jsonl"
    if processes.first:
        path.unlink(missing_ok=True)
    processes.wait()
    manifest, content = load_manifest(
        options.run, options.cohort, options.manifest, processes, scans=recipe.companions() is not None or not recipe.needs_reports
    )
    total = len(manifest.studies) + len(manifest.scans) + len(manifest.quarantined)
    quarantine = Quarantine(path if processes.first else None, total, recipe.loop.quarantine_share)
    found = prepared(manifest, options.store or options.run / STORE, recipe, quarantine, processes, workers=options.workers)
    if not processes.first:
        quarantine.path = options.run / f"quarantine.{processes.rank}.jsonl"
    studies = [entry for entry in found if entry.study.reports]
    tokenizer, text = load_tokenizer(options.run, options.tokenizer, [entry.study for entry in studies], processes)
    scans = [entry for entry in found if not entry.study.reports]
    return Data(studies, groups_of(found), tokenizer, text, content, quarantine, scans)


def batch_maker(data: Data, split: str, recipe: Recipe, keys: Sequence[str], seed: int) -> BatchMaker:
    """Batches of one split's studies."""
    along = recipe.companions()
    return BatchMaker(
        data.learnt_from(recipe) if split == "train" else data.split(split),
        data.groups,
        data.tokenizer,
        recipe.views,
        recipe.reports,
        keys=keys,
        seed=seed,
        sentence_tokens=recipe.tokens_for_sentences,
        quarantine=data.quarantine,
        makers=recipe.inputs(),
        companion_keys=() if along is None else along.keys,
        scans=data.scans if recipe.needs_reports else (),
    )


def new_learner(recipe: Recipe, vocab_size: int, seed: int) -> Learner:
    """Weights drawn from the seed alone."""
    seed_torch(seed, "weights")
    return Learner(recipe, vocab_size)


def selection(data: Data, recipe: Recipe, processes: Processes, seed: int) -> Selection | None:
    """Retrieval on the validation studies; None where there are too few to retrieve among, or image and text are not aligned."""
    held_out = data.split("val")
    if len(held_out) < 2 or "report" not in recipe.levels:
        return None
    maker = batch_maker(data, "val", recipe, (IMAGE_GLOBAL, TEXT_CLEAN), seed)
    names = [entry.study.study for entry in held_out]
    words = [entry.study.record or f"group {data.groups[entry.study.study]}" for entry in held_out]

    def validate(learner: Learner) -> dict[str, float]:
        images, texts = held_out_vectors(learner, maker, names, processes)
        by_chance = {f"chance {name}": value for name, value in chance(same_group(words)).items()}
        alike = {f"{of} alike": alikeness(vectors.numpy()) for of, vectors in (("scans", images), ("reports", texts))}
        return {**retrieval(images.numpy(), texts.numpy(), words), **by_chance, **alike}

    return Selection(validate, CHOSEN_BY, collapsed)


def collapsed(figures: Mapping[str, float]) -> str:
    """A warning where the vectors of different studies hardly differ (`ALL_ALIKE`); "" elsewhere."""
    worst = max(("scans", "reports"), key=lambda of: figures[f"{of} alike"])
    if figures[f"{worst} alike"] < ALL_ALIKE:
        return ""
    return (
        f"The vectors of different {worst} are nearly all alike (mean cosine {figures[f'{worst} alike']:.4f}): nothing can be found by "
        "them. Runs begin so; where one stays so, its gradient fades and it learns nothing. Then begin again: with another seed, more "
        "studies, a larger batch, or encoders that learnt elsewhere (--text-from, --vision-from)."
    )


def companion_sampler(data: Data, recipe: Recipe, processes: Processes, seed: int) -> StepSampler | None:
    """Draws the scans that go along with each step's pairs; None for a recipe without any. Raises TrainingError where there are too few."""
    along = recipe.companions()
    if along is None:
        return None
    names = [entry.study.study for entry in (*data.scans, *(data.split("train") if along.paired_too else ()))]
    wanted, least = along.of(recipe.loop.batch), processes.world_size * recipe.loop.micro_batches
    if len(names) < wanted or wanted < least:
        raise TrainingError(
            "The scans that go along with the pairs of a step cannot be drawn.",
            found=f"{len(names)} usable scans, {wanted} per step for {least} parts of a step",
            expected="at least as many scans as a step needs, and at least one for each process and micro-batch",
            next_step='Add scans without a report ("image_only": true), let those of pairs count too, or change loop.batch.',
        )
    return StepSampler(names, wanted, seed ^ COMPANION_SEED)


def definition(recipe: Recipe, options: Options, data: Data, begun: Start, warm: Warm | None) -> dict[str, Any]:
    """What makes two calls the same run."""
    started: dict[str, Any] = {"started_from": begun.facts()} if begun.named() else {}
    if warm is not None:
        started["started_from_run"] = warm.facts()
    return {
        **started,
        "recipe": recipe.to_dict(),
        "key": recipe.key,
        "seed": options.seed,
        "steps": options.steps,
        "data": {"content": data.content, "train": len(data.split("train")), "val": len(data.split("val"))},
    }


def pretrain(
    recipe: Recipe, options: Options, processes: Processes, *, source: Path, after_step: Callable[[int], None] | None = None
) -> int:
    """Run, or go on with, a pre-training; 0 when it is done, `trainer.STOPPED` after an orderly stop. source: where the code lies."""
    if recipe.loop.batch < processes.world_size * recipe.loop.micro_batches:
        raise TrainingError(
            "The batch is too small to be divided.",
            found=f"batch {recipe.loop.batch} for {processes.world_size} processes with {recipe.loop.micro_batches} micro-batches each",
            expected="at least one study for each",
            next_step="Make loop.batch larger, or start fewer processes.",
        )
    begun = read_start(options.text_from, options.vision_from)
    begun.check(recipe)
    warm = read_warm(options.run_from)
    options = replace(options, tokenizer=begun.tokenizer_file(options.text_from, options.tokenizer))
    if warm is not None:
        options = replace(options, tokenizer=warm.tokenizer_file(options.tokenizer))
    folder = RunFolder(options.run, lock=processes.first)
    try:
        data = open_data(recipe, options, processes)
        if not data.learnt_from(recipe):
            raise TrainingError(
                "There is no study to train on.",
                found=f"{len(data.studies)} usable studies with a report, none in the train split",
                expected="studies with split 'train'",
                next_step="Look at the manifest and at quarantine.jsonl in the run folder.",
            )
        resumed = folder.check(definition(recipe, options, data, begun, warm)) if processes.first else False
        processes.wait()
        learner = new_learner(recipe, data.tokenizer.vocab_size, options.seed)
        if warm is not None:
            taken, whole = warm.load(learner)
            if processes.first:
                print(f"{taken} of {whole} tensors begin as step {warm.step} of {warm.key} left them", flush=True)
        begun.load(learner.model, data.tokenizer, data.tokenizer_json, recipe)
        sampler = StepSampler([entry.study.study for entry in data.learnt_from(recipe)], recipe.loop.batch, options.seed)
        maker = batch_maker(data, "train", recipe, learner.made, options.seed)
        along = companion_sampler(data, recipe, processes, options.seed)

        loader = loaders(
            maker,
            sampler,
            recipe.loop,
            steps=options.steps,
            rank=processes.rank,
            world_size=processes.world_size,
            companions=along,
        )
        chosen = selection(data, recipe, processes, options.seed)
        if processes.first:
            folder.note_start(
                {
                    "resumed": resumed,
                    "processes": processes.world_size,
                    **environment(str(processes.device), source),
                }
            )
            _introduce(recipe, data, chosen is not None)
        trainer = Trainer(
            learner,
            run=options.run,
            steps=options.steps,
            seed=options.seed,
            make_loader=loader,
            processes=processes,
            quarantine=data.quarantine,
            selection=chosen,
            after_step=after_step,
        )
        code = trainer.run()
        if code == 0 and processes.first and options.bundle:
            _finish(recipe, data, options, begun)
        processes.wait()
        return code
    finally:
        folder.close()


def _introduce(recipe: Recipe, data: Data, validates: bool) -> None:
    print(f"{recipe.key}: {len(data.learnt_from(recipe))} studies to learn from, {len(data.split('val'))} to validate on", flush=True)
    if data.scans and recipe.needs_reports:
        print(f"{len(data.scans)} scans without a report go along", flush=True)
    if len(data.quarantine):
        print(f"{len(data.quarantine)} studies are quarantined; quarantine.jsonl in the run folder says why", flush=True)
    if not validates:
        print("no validation by retrieval: fewer than two validation studies, or no report-level contrast", flush=True)
    if recipe.loop.micro_batches > 1 and not recipe.loop.cached_gradients:
        print(
            "micro-batches without cached gradients: counts are exact, but contrast sees only the negatives of one micro-batch, "
            "which is not the same as a larger batch",
            flush=True,
        )


def _finish(recipe: Recipe, data: Data, options: Options, begun: Start) -> None:
    """The best weights, or the last ones where nothing was validated, as a bundle in the run folder."""
    # A new learner: the trained one's weights may be shared out among processes.
    learner = new_learner(recipe, data.tokenizer.vocab_size, options.seed)
    best = Checkpoints(options.run).load_best()
    results: dict[str, Any] = {"steps": options.steps, "step": options.steps, "seed": options.seed, "gallery": len(data.split("val"))}
    if best is not None:
        learner.load_state_dict(best.parts["weights"])
        results |= {"step": best.step, "validation": {k: round(v, 4) for k, v in best.facts["figures"].items()}}
    elif (last := Checkpoints(options.run).load()) is not None:
        learner.load_state_dict(last.parts.get("average", last.parts["weights"]))
    unstated = "Synthetic cases made by this project's generator." if options.cohort else "Not stated."
    export(
        options.run / "bundle",
        learner,
        data.tokenizer_json,
        name=options.name,
        training_data=" ".join(filter(None, (options.training_data or unstated, begun.statement()))),
        licence=options.licence or "Not stated.",
        results=results,
    )
    print(f"{'bundle' if (options.run / 'bundle/bundle.json').is_file() else 'encoders'} of step {results['step']} written", flush=True)
