"""The demo training from cohort to bundle: fine network, encodings, pre-trained encoders, reader, figures and card."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pretraining.vocabulary import learn_vocabulary

from demo.data import SPLITS, prepare, seconds_spent
from demo.encodings import encode_cases, fit_lesion_thresholds, lesion_thresholds
from demo.fine import FineSettings, train_fine
from demo.global_stage import GlobalSettings, train_global
from demo.organ_offsets import fit_organ_offsets
from demo.reader_stage import ReaderSettings, train_reader
from demo.reading import keep_top_maps
from demo.results import finish
from demo.stages import StoppedOnRequest
from demo.text_stage import ReadingSettings, train_text
from demo.texts import corpus
from demo.velvet_stage import VelvetSettings, train_velvet
from demo.verifier_stage import VerifierSettings, train_verifier
from VelvetMedLib.engine.randomness import seed_torch
from VelvetMedLib.engine.trainer import STOPPED
from VelvetMedLib.files import write_json, write_text
from VelvetMedLib.models.decoder import DecoderConfig
from VelvetMedLib.models.fine import FineConfig
from VelvetMedLib.models.reader import FindingsHeadConfig, ReaderConfig
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import ModelConfig, VelvetModel
from VelvetMedLib.models.verifier import LesionVerifierConfig
from VelvetMedLib.reports import ontology


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the line says; the settings of the stages say the rest. until: the last stage to do, "all" = the bundle too."""

    cohort: Path
    run: Path
    out: Path
    fine_steps: int
    velvet_steps: int
    text_steps: int
    global_steps: int
    verifier_steps: int
    reader_steps: int
    encode_cases: int
    test_cases: int
    spacing_mm: float
    processes: int
    seed: int
    until: str = "all"


def demo_architecture(encoders: ModelConfig) -> ModelConfig:
    """The pre-trained encoders and everything that reads what they and the fine network see."""
    top, vocabulary, findings = encoders.swin.widths[4], encoders.tribert.vocab_size, len(ontology().findings)
    return replace(
        encoders,
        fine=FineConfig(),
        reader=ReaderConfig(top_channels=top, width=192, layers=2, heads=4, projection_dim=encoders.projection_dim),
        findings=FindingsHeadConfig(findings=findings, width=192),
        verifier=LesionVerifierConfig(),
        decoder=DecoderConfig(vocab_size=vocabulary, width=192, layers=3, heads=4, ffn=512, positions=128),
    )


def train_demo(options: DemoOptions) -> int:
    """0 when the stages are done, `STOPPED` after an orderly stop; called again, it goes on. Raises VelvetMedError."""
    try:
        _stages(options)
    except StoppedOnRequest:
        return STOPPED
    return 0


def _stages(options: DemoOptions) -> None:
    run, seed = options.run, options.seed
    run.mkdir(parents=True, exist_ok=True)
    cases = prepare(options.cohort, run / "prepared", processes=options.processes)
    prepared = {split: [case for case in cases if case.split == split] for split in SPLITS}
    print(f"{len(cases)} cases, {len(prepared['train'])} for training", flush=True)

    tokenizer_file = run / "tokenizer.json"
    if not tokenizer_file.exists():
        write_text(tokenizer_file, learn_vocabulary(corpus(prepared["train"][:800], seed=seed)))
    tokenizer = ReportTokenizer(tokenizer_file)
    pretraining = VelvetSettings(steps=options.velvet_steps)
    seed_torch(seed, "weights")
    model = VelvetModel(demo_architecture(pretraining.recipe.model_config(tokenizer.vocab_size)))
    assert model.fine is not None
    minutes = {"prepare": seconds_spent(run / "prepared") / 60}
    minutes["fine"] = train_fine(model.fine, prepared["train"], run / "fine", FineSettings(steps=options.fine_steps), seed=seed) / 60
    if options.until == "fine":
        return
    read = prepared["train"][: options.encode_cases] + prepared["val"]
    seconds = fit_organ_offsets(model.fine, prepared["val"], run / "thresholds", spacing_mm=options.spacing_mm)
    seconds += fit_lesion_thresholds(model, prepared["val"], run / "thresholds", spacing_mm=options.spacing_mm)
    chosen = lesion_thresholds(run / "thresholds")
    encoded, more = encode_cases(
        model, read, run / "encoded", thresholds=chosen, spacing_mm=options.spacing_mm, processes=options.processes
    )  # fmt: skip
    minutes["encode"] = (seconds + more) / 60
    if options.until == "encode":
        return
    of_split = {split: [case for case in encoded if case.split == split] for split in ("train", "val")}
    looks = VerifierSettings(steps=options.verifier_steps)
    minutes["verifier"] = train_verifier(model, of_split["train"], run / "verifier", looks, seed=seed) / 60
    if options.until == "verifier":
        return
    minutes["velvet"] = (
        train_velvet(
            model, options.cohort, cases, tokenizer_file, run / "velvet", pretraining, processes=options.processes, seed=seed
        )
        / 60
    )  # fmt: skip
    if options.until == "velvet":
        return
    named = [(case.case_id, case) for case in prepared["train"]]
    head, seconds = train_text(model, named, tokenizer, run / "text", ReadingSettings(steps=options.text_steps), seed=seed)
    minutes["text"] = seconds / 60
    if options.until == "text":
        return
    settings = GlobalSettings(steps=options.global_steps)
    minutes["global"] = train_global(model, of_split["train"], tokenizer, run / "global", settings, seed=seed) / 60
    keep_top_maps(model, encoded)
    if options.until == "global":
        return
    reading = ReaderSettings(steps=options.reader_steps)
    minutes["reader"] = train_reader(model, head, of_split["train"], tokenizer, run / "reader", reading, seed=seed) / 60
    write_json(run / "minutes.json", minutes)
    print("minutes by stage: " + json.dumps({k: round(v, 1) for k, v in minutes.items()}), flush=True)
    if options.until == "reader":
        return
    # What is held out plays no part in training: it is encoded here, and its minutes are not training's.
    held_out = prepared["test"][: options.test_cases]
    of_split["test"], _ = encode_cases(
        model, held_out, run / "held_out", thresholds=chosen, spacing_mm=options.spacing_mm, processes=options.processes
    )  # fmt: skip
    keep_top_maps(model, of_split["test"])
    finish(model, tokenizer_file, cases, of_split, reading.text, run, options.out, minutes=minutes, seed=seed)
