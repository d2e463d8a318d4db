#!/usr/bin/env python3
"""Fine-tune a pre-trained encoder on labelled scans: `python training/finetune.py segmentation --data DIR --encoder RUN --run FINE`.

Runs under plain Python and under `Slicer --python-script`. Calling the same line again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from pretraining.child import explain_missing, missing_packages, python_slicer, run_again, under_slicer  # noqa: E402

if TYPE_CHECKING:
    from finetuning.settings import SegmentationSettings

PRESETS = ("tiny", "paper")
USAGE, PROBLEM = 2, 1

EPILOG = """examples:
  python training/finetune.py segmentation --preset tiny --data COHORT --encoder RUN --run FINE --steps 500 --seed 1
  python training/finetune.py segmentation --data COHORT --encoder scratch --run FINE --steps 500 --set data.train_cases=10
  python training/finetune.py segmentation --preset paper --data Task09_Spleen --encoder WEIGHTS/swin --run FINE --steps 20000
  Slicer --no-splash --no-main-window --python-script training/finetune.py segmentation --data COHORT --encoder demo --run FINE --steps 500
  python training/finetune.py segmentation settings --preset tiny       all settings by name

exit codes: 0 done, 75 stopped on request with everything saved (call the same line again), 1 the training cannot go on, 2 wrong words
Research use only. Not for clinical use."""


def parser() -> argparse.ArgumentParser:
    """Help is the word `help`: Slicer keeps --help for itself. No option may be one of Slicer's."""
    made = argparse.ArgumentParser(
        prog="finetune.py",
        description="Fine-tune a pre-trained encoder on labelled scans.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    made.add_argument("words", nargs="*", metavar="segmentation [settings|help]", help="the task; then nothing to train, or what to print")
    made.add_argument("--preset", choices=PRESETS, default="tiny", help="paper: as published; tiny: for two CPU cores")
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting by its dotted name; may be repeated"
    )
    made.add_argument("--data", type=Path, metavar="DIR", help="our cohort, an nnU-Net raw folder, or a task of the Decathlon")
    made.add_argument(
        "--encoder",
        default="scratch",
        metavar="WHAT",
        help='bundle (folder or name), converted weights, a training\'s run folder or checkpoint; "scratch": random start (default)',
    )
    made.add_argument("--run", type=Path, metavar="DIR", help="run folder: checkpoints, logs, results")
    made.add_argument("--steps", type=int, metavar="N", help="optimiser steps of the whole run")
    made.add_argument("--seed", type=int, default=1, metavar="S", help="everything random is drawn from it (default: 1)")
    made.add_argument("--structures", default="", metavar="A,B", help="names to learn, joined by commas (default: all)")
    made.add_argument("--splits", type=Path, metavar="FILE", help="nnU-Net's splits_final.json, or a manifest with study and split")
    made.add_argument("--store", type=Path, metavar="DIR", help="prepared scans, shared by runs (default: in the run folder)")
    made.add_argument("--workers", type=int, default=1, metavar="N", help="processes that prepare scans (default: 1)")
    made.add_argument("--device", default="", metavar="NAME", help="cpu or cuda:0 (default: the GPU if there is one)")
    made.add_argument("--save-predictions", action="store_true", help="write the found label maps of the evaluated scans")
    made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
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
    if options.words[0] != "segmentation" or options.words[1:] not in ([], ["settings"]):
        sys.stderr.write(f"There is no '{' '.join(options.words)}'. Known: segmentation, segmentation settings, help.\n")
        return USAGE
    if missing := [*missing_packages(), *(["monai"] if importlib.util.find_spec("monai") is None else [])]:
        sys.stderr.write(explain_missing(missing))
        return PROBLEM
    from VelvetMedLib.errors import UsageError, VelvetMedError

    try:
        return _run(options)
    except VelvetMedError as error:
        if options.traceback:
            raise
        sys.stderr.write(f"{error}\n")
        return USAGE if isinstance(error, UsageError) else PROBLEM


def _run(options: argparse.Namespace) -> int:
    from VelvetMedLib.errors import UsageError
    from VelvetMedLib.recipes.overrides import names_of

    settings = chosen_settings(options.preset, options.set, options.encoder)
    if options.words[1:] == ["settings"]:
        for name, value in names_of(settings).items():
            print(f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
        return 0
    for name in ("data", "run", "steps"):
        if getattr(options, name) is None:
            raise UsageError(
                f"The option --{name} is missing.", found="nothing", expected=f"--{name}", next_step="Print 'finetune.py help' for all."
            )
    if options.steps < 1:
        raise UsageError("There is nothing to do.", found=f"--steps {options.steps}", expected="at least 1", next_step="Give more steps.")
    from finetuning.encoders import encoder_start
    from finetuning.running import finetune_segmentation
    from finetuning.tasks import read_task

    structures = [name.strip() for name in options.structures.split(",") if name.strip()]
    outcome = finetune_segmentation(
        read_task(options.data, structures=structures, splits=options.splits, fold=settings.data.fold),
        encoder_start(options.encoder, scratch=settings.swin),
        settings,
        run=options.run,
        steps=options.steps,
        seed=options.seed,
        store=options.store,
        processes=options.workers,
        device=options.device,
        save_predictions=options.save_predictions,
        say=lambda line: print(line, flush=True),
    )
    return outcome.code


if __name__ == "__main__":
    if under_slicer():
        sys.exit(run_again(Path(__file__).resolve(), sys.argv[1:], python_slicer()))
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    sys.exit(main(sys.argv[1:]))
