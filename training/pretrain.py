#!/usr/bin/env python3
"""Pre-train a recipe: `python training/pretrain.py velvet --preset tiny --cohort DIR --run RUN --steps N --seed S`.

The same file runs under `torchrun` and under `Slicer --python-script`. Calling the same line again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from pretraining.child import explain_missing, missing_packages, python_slicer, run_again, under_slicer  # noqa: E402

RECIPES = ("velvet",)
PRESETS = ("tiny", "paper", "micro")
USAGE, PROBLEM = 2, 1

EPILOG = """examples:
  python training/pretrain.py velvet --preset tiny --cohort COHORT --run RUN --steps 600 --seed 1
  torchrun --nproc-per-node 4 training/pretrain.py velvet --preset paper --manifest STUDIES.jsonl --run RUN --steps 50000 --seed 1
  Slicer --no-splash --no-main-window --python-script training/pretrain.py velvet --cohort COHORT --run RUN --steps 600
  python training/pretrain.py velvet settings --preset tiny       all settings by name

exit codes: 0 done, 75 stopped on request with everything saved (call the same line again), 1 the training cannot go on, 2 wrong words
Research use only. Not for clinical use."""


def parser() -> argparse.ArgumentParser:
    """Help is the word `help`: Slicer keeps --help for itself. No option may be one of Slicer's."""
    made = argparse.ArgumentParser(
        prog="pretrain.py",
        description="Pre-train image and text encoders on scans and reports.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    made.add_argument("words", nargs="*", metavar="velvet [settings|help]", help="the recipe; then nothing to train, or what to print")
    made.add_argument("--preset", choices=PRESETS, default="tiny", help="paper: as published; tiny: for two CPU cores; micro: for tests")
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting by its dotted name; may be repeated"
    )
    made.add_argument("--cohort", type=Path, metavar="DIR", help="folder made by `velvetmed cohort make`")
    made.add_argument("--manifest", type=Path, metavar="FILE", help="list of studies, one JSON object per line, in place of --cohort")
    made.add_argument("--run", type=Path, metavar="DIR", help="run folder: checkpoints, logs, the finished bundle")
    made.add_argument("--steps", type=int, metavar="N", help="optimiser steps of the whole run")
    made.add_argument("--seed", type=int, default=1, metavar="S", help="everything random is drawn from it (default: 1)")
    made.add_argument("--store", type=Path, metavar="DIR", help="prepared scans, shared by runs (default: in the run folder)")
    made.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use (default: learnt from the training reports)")
    made.add_argument("--workers", type=int, default=1, metavar="N", help="processes that prepare scans (default: 1)")
    made.add_argument("--device", metavar="NAME", help="cpu or cuda:0 (default: the GPU if there is one)")
    made.add_argument("--bundle-id", default="velvet", metavar="NAME", help="name of the finished bundle")
    made.add_argument("--training-data", default="", metavar="TEXT", help="statement on the data, for the bundle and its card")
    made.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the bundle and its card")
    made.add_argument("--no-bundle", action="store_true", help="do not write a bundle at the end")
    made.add_argument("--dry-run", action="store_true", help="print sizes, memory and time of the run, and do not train")
    made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    return made


def main(words: list[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    if not options.words or "help" in options.words:
        parser().print_help()
        return 0
    if options.words[0] not in RECIPES or options.words[1:] not in ([], ["settings"]):
        sys.stderr.write(f"There is no '{' '.join(options.words)}'. Known: velvet, velvet settings, help.\n")
        return USAGE
    if missing := missing_packages():
        sys.stderr.write(explain_missing(missing))
        return PROBLEM
    from VelvetMedLib.errors import UsageError, VelvetMedError

    try:
        return _run(options)
    except VelvetMedError as error:
        if options.traceback:
            raise
        sys.stderr.write(f"{error}\n")
        # A failed process must not wait for the others: torchrun ends them.
        return USAGE if isinstance(error, UsageError) else PROBLEM


def _run(options: argparse.Namespace) -> int:
    from VelvetMedLib.engine.processes import Processes
    from VelvetMedLib.errors import UsageError
    from VelvetMedLib.recipes.overrides import names_of, overridden
    from VelvetMedLib.recipes.velvet import PRESETS as MAKERS

    recipe = overridden(MAKERS[options.preset](), options.set)
    if options.words[1:] == ["settings"]:
        for name, value in names_of(recipe).items():
            print(f"{name}={value}")
        return 0
    for name in ("run", "steps"):
        if getattr(options, name) is None and not (options.dry_run and name == "run"):
            raise UsageError(
                f"The option --{name} is missing.", found="nothing", expected=f"--{name}", next_step="Print 'pretrain.py help' for all."
            )
    if options.steps < 1:
        raise UsageError("There is nothing to do.", found=f"--steps {options.steps}", expected="at least 1", next_step="Give more steps.")
    if options.dry_run:
        from pretraining.plan import print_plan

        print_plan(recipe, steps=options.steps, device=options.device, cohort=options.cohort, tokenizer=options.tokenizer)
        return 0
    from pretraining.run import Options, pretrain

    processes = Processes(options.device)
    try:
        return pretrain(
            recipe,
            Options(
                run=options.run,
                steps=options.steps,
                seed=options.seed,
                cohort=options.cohort,
                manifest=options.manifest,
                store=options.store,
                tokenizer=options.tokenizer,
                device=options.device,
                workers=options.workers,
                name=options.bundle_id,
                training_data=options.training_data,
                licence=options.licence,
                bundle=not options.no_bundle,
            ),
            processes,
            source=HERE.parent,
        )
    finally:
        processes.close()


if __name__ == "__main__":
    if under_slicer():
        sys.exit(run_again(Path(__file__).resolve(), sys.argv[1:], python_slicer()))
    # One reader thread and torch's own threads share the cores; torchrun sets this itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    sys.exit(main(sys.argv[1:]))
