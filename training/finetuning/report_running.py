"""One report fine-tuning from bundle, language model and studies to a writer that `velvetmed analyze --writer` uses, as a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetuning.common import RESULTS, enough, note_left_out, train_best
from finetuning.report_data import OWN_STYLE, PromptBatch, PromptMaker, WrittenStudy, read_studies, seen_studies
from finetuning.report_learning import WritingStage, by_likelihood, mean_log_likelihood
from finetuning.report_settings import WritingSettings
from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.bundle.store import Bundle
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.runfolder import RunFolder, environment
from VelvetMedLib.evaluation.reports import score_reports
from VelvetMedLib.files import file_sha256, read_json, write_json
from VelvetMedLib.reports import STYLES, fill_slots, ontology
from VelvetMedLib.reports.phrases import phrase_book
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.report import accepted
from VelvetMedLib.tasks.writers.language import WriterFacts, save_writer, wordings
from VelvetMedLib.tasks.writers.soft_prompt import PromptedModel, check_language_folder, instruction, load_language_model, prompt_states

WRITER, BEFORE = "writer", "before.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """code: 0 done, `STOPPED` on request (then no results)."""

    code: int
    results: dict[str, Any] | None = None


def finetune_report(
    source: Path,
    bundle: Bundle,
    language: Path,
    settings: WritingSettings,
    *,
    run: Path,
    steps: int,
    seed: int,
    store: Path | None = None,
    say: Callable[[str], None] = print,
    after_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Teach a language model to word this bundle's findings, keep the best weights and measure them; called again, it goes on.

    source: a cohort or a manifest. language: folder of the model. store: encoded scans, by default in the run folder; runs may share
    one. The writer is `run`/writer. Raises TrainingError, UsageError or BundleError.
    """
    studies, quarantined = read_studies(source, settings.data, seed)
    sources = settings.prompt.resolved(bundle)
    hashes = {path.name: file_sha256(path) for path in check_language_folder(language)}
    folder = RunFolder(run)
    try:
        kind = {part: sorted(s.name for s in studies if s.split == part) for part in ("train", "val", "test")}
        definition = {"recipe": settings.to_dict(), "studies": kind, "bundle": bundle.encoding_key, "language": hashes}
        resumed = folder.check({**definition, "steps": steps, "seed": seed})
        folder.note_start({"resumed": resumed, **environment(bundle.device, Path(__file__).parent)})
        seen, unreadable = seen_studies(studies, bundle, store or run / "encoded", say)
        quarantine = note_left_out(run, [*quarantined, *unreadable], len(studies) + len(quarantined), "studies", say)
        parts = {part: [s for s in studies if s.split == part and s.name in seen] for part in ("train", "val", "test")}
        enough(parts, "studies")
        seed_torch(seed, "start")
        half = settings.loop.precision == "bf16"
        model = PromptedModel(*load_language_model(language, settings.lora, half=half), bundle.model.config.tribert.width)
        model.to(bundle.device)
        if not resumed:
            say(_described(model, parts, sources))
        loop = replace(settings.loop, batch=min(settings.loop.batch, len(parts["train"])))
        facts = {"bundle": bundle.encoding_key, "sources": list(sources), "lora": settings.lora.to_dict()}
        stage = WritingStage(model, replace(settings, loop=loop), facts)

        def maker(part: str) -> PromptMaker:
            return PromptMaker(parts[part], seen, bundle, model, sources, settings.data.sentences_per_study, seed)

        def fixed(part: str) -> list[PromptBatch]:
            """The same sentences of a split, whenever they are asked for."""
            return [maker(part).batch([study.name], 0) for study in parts[part]]

        judged = "test" if parts["test"] else "val"
        if not (run / BEFORE).is_file():
            write_json(run / BEFORE, {"split": judged, "log_likelihood": mean_log_likelihood(stage, fixed(judged))})
        code, best_step = train_best(
            stage,
            maker("train"),
            [study.name for study in parts["train"]],
            run=run,
            steps=steps,
            seed=seed,
            device=bundle.device,
            quarantine=quarantine,
            selection=by_likelihood(fixed("val")),
            after_step=after_step,
        )
        if code:
            return Outcome(code=code)
        stage.eval()
        before = read_json(run / BEFORE) or {}
        results = {
            "split": judged,
            "studies": {part: len(found) for part, found in parts.items()},
            "best_step": best_step,
            "loss_before": -before["log_likelihood"],
            "loss_after": -mean_log_likelihood(stage, fixed(judged)),
            **written_truth(model, parts[judged], maker(judged), settings, say),
        }
        write_json(run / RESULTS, {"disclaimer": RESEARCH_USE_ONLY, **results})
        _export(run, model, language, bundle, settings, sources, results, source)
        said = f"loss {results['loss_before']:.2f} before, {results['loss_after']:.2f} after"
        say(f"On {judged}: {said}; {results['accepted']:.0%} of the sentences say their record. The writer is {WRITER} in the run folder.")
        return Outcome(code=0, results=results)
    finally:
        folder.close()


def written_truth(
    model: PromptedModel, studies: Sequence[WrittenStudy], maker: PromptMaker, settings: WritingSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    """What the model writes about true records, before any check: the share of sentences that the report would take, and what the texts
    say against the records."""
    texts, truths, samples = [], [], []
    taken = total = 0
    for n, study in enumerate(studies, 1):
        records = list(study.records) or [row[0] for row in study.rows]
        asked = [instruction(record, STYLES[0] if study.records else OWN_STYLE) for record in records]
        states, valid = prompt_states(maker.bundle, asked, [maker.seen[study.name]] * len(records), maker.sources)
        found = wordings(model, states, valid, settings.search, Run())
        plan = {record.name: record.state for record in records}
        lines = []
        for record, wording in zip(records, found, strict=True):
            title = str(phrase_book()["sections"][ontology().finding(record.name).section])
            total += 1
            taken += wording is not None and accepted(wording.slotted, record, plan, title) is not None
            lines.append("" if wording is None else f"{title}: {fill_slots(wording.slotted, record)}")
        samples.append({"study": study.name, "asked": asked[:4], "written": lines[:4]})
        texts.append("\n".join(line for line in lines if line))
        truths.append(records)
        if n % 8 == 0:
            say(f"written {n} of {len(studies)} studies")
    score = score_reports(texts, truths)
    return {
        "accepted": taken / total if total else math.nan,
        "sentences": total,
        "unchecked": {
            "presence_f1": score.presence.f1,
            "with_side_f1": score.with_side.f1,
            "with_size_f1": score.with_size.f1,
            "contradiction_rate": score.contradiction_rate,
            "hallucinations_per_normal": score.hallucinations_per_normal,
        },
        "samples": samples[:4],
    }


def _export(
    run: Path, model: PromptedModel, language: Path, bundle: Bundle, settings: WritingSettings, sources: Sequence[str],
    results: dict[str, Any], source: Path,
) -> None:  # fmt: skip
    """The writer's folder. The language model's name and licence are those that were stated when it was converted or fetched."""
    record = read_json(language / "conversion.json") or {}
    stated = record.get("source", {}).get("stated_by_the_user", {})
    facts = WriterFacts(
        bundle={"id": bundle.config.id, "version": bundle.config.version, "encoding_key": bundle.encoding_key},
        base={"name": stated.get("name") or language.name, "licence": stated.get("licence") or "not stated"},
        width=bundle.model.config.tribert.width,
        sources=tuple(sources),
        lora=settings.lora,
        search=settings.search,
        style="" if source.is_dir() else OWN_STYLE,
        training_data="a synthetic cohort; no patient's data" if source.is_dir() else "the user's own reports, sentences of known words",
        results={name: value for name, value in results.items() if name != "samples"},
    )
    save_writer(run / WRITER, model, language, facts)


def _described(model: PromptedModel, parts: dict[str, list[WrittenStudy]], sources: Sequence[str]) -> str:
    trained = sum(p.numel() for p in model.adapted().values()) / 1e6
    whole = sum(p.numel() for p in model.parameters()) / 1e6
    counts = ", ".join(f"{len(found)} {part}" for part, found in parts.items())
    return f"{trained:.2f} M of {whole:.0f} M parameters are trained; the prompt is {' and '.join(sources)}; {counts} studies"
