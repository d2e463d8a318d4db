"""Train the demo bundle on the synthetic cohort, plainly and in one go: fine network, global encoder, reader and writer.

    velvetmed cohort make --cases 2600 --seed 1 --out COHORT
    python training/train_demo.py --cohort COHORT --run RUN --out BUNDLE

Every stage resumes where it was stopped when the same line is called again. Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from demo.data import SPLITS, prepare, seconds_spent, write_json_atomically
from demo.encodings import encode_cases, fit_lesion_thresholds, lesion_thresholds
from demo.fine import FineSettings, train_fine
from demo.language import LanguageSettings, corpus, keep_top_maps, train_global, train_reader
from demo.results import finish
from demo.tokenizer import train_tokenizer

from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import ModelConfig, VelvetModel
from VelvetMedLib.reports import ontology


def demo_architecture(vocabulary: int) -> ModelConfig:
    """The tiny setting: every number of the demo model that is not a default."""
    from VelvetMedLib.models.decoder import DecoderConfig
    from VelvetMedLib.models.fine import FineConfig
    from VelvetMedLib.models.reader import FindingsHeadConfig, ReaderConfig
    from VelvetMedLib.models.swin import SwinConfig
    from VelvetMedLib.models.tribert import TriBertConfig

    swin = SwinConfig(embed_dim=16, depths=(1, 2, 2, 2), heads=(2, 4, 8, 16), window=4)
    top = swin.embed_dim * 16
    return ModelConfig(
        swin=swin,
        tribert=TriBertConfig(
            vocab_size=vocabulary, width=192, heads=4, ffn=512, text_layers=3, fusion_layers=1, positions=256, visual_width=top
        ),
        projection_dim=128,
        fine=FineConfig(),
        reader=ReaderConfig(top_channels=top, width=192, layers=2, heads=4, projection_dim=128),
        findings=FindingsHeadConfig(findings=len(ontology().findings), width=192),
        decoder=DecoderConfig(vocab_size=vocabulary, width=192, layers=3, heads=4, ffn=512, positions=128),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo bundle. Research use only.")
    parser.add_argument("--cohort", type=Path, required=True, help="folder made by `velvetmed cohort make`")
    parser.add_argument("--run", type=Path, required=True, help="checkpoints and kept encodings; call again to resume")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished bundle")
    parser.add_argument("--fine-steps", type=int, default=FineSettings().steps)
    parser.add_argument("--global-steps", type=int, default=LanguageSettings().global_steps)
    parser.add_argument("--reader-steps", type=int, default=LanguageSettings().reader_steps)
    parser.add_argument("--encode-cases", type=int, default=720, help="training cases whose tokens are kept for the reader")
    parser.add_argument("--test-cases", type=int, default=160, help="held-out cases that are encoded and measured")
    parser.add_argument("--spacing-mm", type=float, default=4.0, help="of the cohort's grid and of the fine view")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", choices=("fine", "encode", "global", "reader", "all"), default="all", help="stop after this stage")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    fine_settings = FineSettings(steps=options.fine_steps)
    language = LanguageSettings(global_steps=options.global_steps, reader_steps=options.reader_steps)
    run: Path = options.run
    run.mkdir(parents=True, exist_ok=True)
    cases = prepare(options.cohort, run / "prepared", processes=options.processes)
    prepared = {split: [case for case in cases if case.split == split] for split in SPLITS}
    train_cases = prepared["train"]
    print(f"{len(cases)} cases, {len(train_cases)} for training", flush=True)

    tokenizer_file = run / "tokenizer.json"
    if not tokenizer_file.exists():
        tokenizer_file.write_text(train_tokenizer(corpus(train_cases[:800], seed=options.seed)), encoding="utf-8")
    tokenizer = ReportTokenizer(tokenizer_file)
    model = VelvetModel(demo_architecture(tokenizer.vocab_size))
    assert model.fine is not None
    minutes = {"prepare": seconds_spent(run / "prepared") / 60}
    minutes["fine"] = train_fine(model.fine, train_cases, run, fine_settings, seed=options.seed) / 60
    if options.until == "fine":
        return
    read = prepared["train"][: options.encode_cases] + prepared["val"]
    seconds = fit_lesion_thresholds(model, prepared["val"], run / "thresholds", spacing_mm=options.spacing_mm)
    at = {"thresholds": lesion_thresholds(run / "thresholds"), "spacing_mm": options.spacing_mm, "processes": options.processes}
    encoded, more = encode_cases(model, read, run / "encoded", **at)
    minutes["encode"] = (seconds + more) / 60
    if options.until == "encode":
        return
    of_split = {split: [case for case in encoded if case.split == split] for split in ("train", "val")}
    minutes["global"] = train_global(model, of_split["train"], tokenizer, run, language, seed=options.seed) / 60
    keep_top_maps(model, encoded)
    if options.until == "global":
        return
    minutes["reader"] = train_reader(model, of_split["train"], tokenizer, run, language, seed=options.seed) / 60
    write_json_atomically(run / "minutes.json", minutes)
    print("minutes by stage: " + json.dumps({k: round(v, 1) for k, v in minutes.items()}), flush=True)
    if options.until == "reader":
        return
    # What is held out plays no part in training: it is encoded here, and its minutes are not training's.
    of_split["test"], _ = encode_cases(model, prepared["test"][: options.test_cases], run / "held_out", **at)
    keep_top_maps(model, of_split["test"])
    finish(model, tokenizer_file, cases, of_split, language, run, options.out, minutes=minutes, seed=options.seed)


if __name__ == "__main__":
    main()
