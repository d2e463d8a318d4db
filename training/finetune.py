#!/usr/bin/env python3
"""Fine-tune on labelled scans: `python training/finetune.py segmentation --data DIR --encoder RUN --run FINE`; or teach a language model
to word findings: `python training/finetune.py report --data DIR --language-model FOLDER --run WRITE`.

Runs under plain Python and under `Slicer --python-script`. Calling the same line again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commandline import (
    USAGE,
    add_machine_options,
    add_run_options,
    add_settings_options,
    begin,
    carry_out,
    new_parser,
    print_settings,
    require,
)

if TYPE_CHECKING:
    from finetuning.settings import SegmentationSettings

TASKS = ("segmentation", "report")

PRESETS = ("tiny", "paper")

EXAMPLES = """  python training/finetune.py segmentation --preset tiny --data COHORT --encoder RUN --run FINE --steps 500 --seed 1
  python training/finetune.py segmentation --data COHORT --encoder scratch --run FINE --steps 500 --set data.train_cases=10
  python training/finetune.py segmentation --preset tiny --data COHORT --labels lesions --encoder RUN --run FINE --steps 500
  python training/finetune.py segmentation --preset paper --data Task09_Spleen --encoder WEIGHTS/swin --run FINE --steps 20000
  Slicer --no-splash --no-main-window --python-script training/finetune.py segmentation --data COHORT --encoder demo --run FINE --steps 500
  python training/finetune.py report --preset tiny --data COHORT --language-model WEIGHTS/smollm2 --run WRITE --steps 200
  python training/finetune.py segmentation settings --preset tiny       all settings by name"""


def parser() -> argparse.ArgumentParser:
    """The options of the line."""
    made = new_parser("finetune.py", "Fine-tune a pre-trained encoder on labelled scans, or a language model on findings.", EXAMPLES)
    made.add_argument(
        "words", nargs="*", metavar="segmentation|report [settings|help]", help="the task; then nothing to train, or what to print"
    )
    add_settings_options(made, PRESETS, "paper: as published; tiny: for two CPU cores")
    made.add_argument(
        "--data", type=Path, metavar="DIR", help="our cohort; an nnU-Net raw folder or a task of the Decathlon; report: or a manifest"
    )
    made.add_argument("--bundle", default="demo", metavar="NAME_OR_FOLDER", help="report: whose encodings the model reads (default: demo)")
    made.add_argument(
        "--language-model", metavar="FOLDER_OR_ID", help="report: folder of a causal language model, or its id on the hub (asks for --yes)"
    )
    made.add_argument("--yes", action="store_true", help="report: agree to the download that is shown")
    made.add_argument(
        "--encoder",
        default="scratch",
        metavar="WHAT",
        help='bundle (folder or name), converted weights, a training\'s run folder or checkpoint; "scratch": random start (default)',
    )
    made.add_argument("--untrained", action="store_true", help="a random start of the same encoder: what its pre-training must beat")
    add_run_options(made)
    made.add_argument("--labels", choices=("organs", "lesions"), default="organs", help="what of a cohort to learn (default: organs)")
    made.add_argument("--structures", default="", metavar="A,B", help="names to learn, joined by commas (default: all)")
    made.add_argument("--splits", type=Path, metavar="FILE", help="nnU-Net's splits_final.json, or a manifest with study and split")
    add_machine_options(made)
    made.add_argument("--save-predictions", action="store_true", help="write the found label maps of the evaluated scans")
    return made


def chosen_settings(preset: str, changes: Sequence[str], encoder: str) -> SegmentationSettings:
    """The preset with the changes. Raises UsageError for a setting of the encoder where one is given: it brings its own."""
    from finetuning.settings import PRESETS as MAKERS

    from VelvetMedLib.errors import UsageError
    from VelvetMedLib.recipes.overrides import overridden

    if encoder != "scratch" and (own := [change for change in changes if change.startswith("swin.")]):
        raise UsageError(
            "A given encoder brings its own settings.",
            found=", ".join(own),
            expected="no setting that begins with swin.",
            next_step="Leave these out, or train from --encoder scratch.",
        )
    return overridden(MAKERS[preset](), changes)


def main(words: Sequence[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    if not options.words or "help" in options.words:
        parser().print_help()
        return 0
    if options.words[0] not in TASKS or options.words[1:] not in ([], ["settings"]):
        known = ", ".join(f"{task}, {task} settings" for task in TASKS)
        sys.stderr.write(f"There is no '{' '.join(options.words)}'. Known: {known}, help.\n")
        return USAGE
    if options.words[0] == "report":
        return carry_out(lambda: _run_report(options), traceback=options.traceback, also_needed=("transformers", "peft"))
    return carry_out(lambda: _run(options), traceback=options.traceback, also_needed=("monai",))


def _run(options: argparse.Namespace) -> int:
    settings = chosen_settings(options.preset, options.set, options.encoder)
    if options.words[1:] == ["settings"]:
        print_settings(settings)
        return 0
    require(options, ("data", "run", "steps"), "finetune.py")
    from finetuning.encoders import encoder_start
    from finetuning.running import finetune_segmentation
    from finetuning.tasks import read_task

    start = encoder_start(options.encoder, scratch=settings.swin)
    structures = [name.strip() for name in options.structures.split(",") if name.strip()]
    outcome = finetune_segmentation(
        read_task(options.data, kind=options.labels, structures=structures, splits=options.splits, fold=settings.data.fold),
        start.at_random() if options.untrained else start,
        settings,
        run=options.run,
        steps=options.steps,
        seed=options.seed,
        store=options.store,
        processes=options.workers,
        device=options.device or "",
        save_predictions=options.save_predictions,
        say=lambda line: print(line, flush=True),
    )
    return outcome.code


def _run_report(options: argparse.Namespace) -> int:
    from finetuning.report_settings import PRESETS as MAKERS

    from VelvetMedLib.recipes.overrides import overridden

    settings = overridden(MAKERS[options.preset](), options.set)
    if options.words[1:] == ["settings"]:
        print_settings(settings)
        return 0
    require(options, ("data", "language_model", "run", "steps"), "finetune.py")
    from finetuning.language_source import language_folder
    from finetuning.report_running import finetune_report

    from VelvetMedLib.bundle import load_bundle

    outcome = finetune_report(
        options.data,
        load_bundle(options.bundle, device=options.device or "cpu"),
        language_folder(options.language_model, agreed=options.yes),
        settings,
        run=options.run,
        steps=options.steps,
        seed=options.seed,
        store=options.store,
        say=lambda line: print(line, flush=True),
    )
    return outcome.code


if __name__ == "__main__":
    begin(__file__, main)
