#!/usr/bin/env python3
"""Pre-train a recipe: `python training/pretrain.py velvet --preset tiny --cohort DIR --run RUN --steps N --seed S`.

The same file runs under `torchrun` and under `Slicer --python-script`. Calling the same line again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commandline import (
    ROOT,
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

from VelvetMedLib.recipes import RECIPES

PRESETS = ("tiny", "paper", "micro")

EXAMPLES = """  python training/pretrain.py velvet --preset tiny --cohort COHORT --run RUN --steps 600 --seed 1
  torchrun --nproc-per-node 4 -- training/pretrain.py velvet --preset paper --manifest STUDIES.jsonl --run RUN --steps 50000 --seed 1
  Slicer --no-splash --no-main-window --python-script training/pretrain.py velvet --cohort COHORT --run RUN --steps 600
  python training/pretrain.py velvet settings --preset tiny       all settings by name"""


def parser() -> argparse.ArgumentParser:
    """The options of the line."""
    made = new_parser("pretrain.py", "Pre-train image and text encoders on scans and reports.", EXAMPLES)
    made.add_argument(
        "words", nargs="*", metavar=f"{'|'.join(RECIPES)} [settings|help]", help="the recipe; then nothing to train, or what to print"
    )
    add_settings_options(made, PRESETS, "paper: as published; tiny: for two CPU cores; micro: for tests")
    made.add_argument("--cohort", type=Path, metavar="DIR", help="folder made by `velvetmed cohort make`")
    made.add_argument("--manifest", type=Path, metavar="FILE", help="list of studies, one JSON object per line, in place of --cohort")
    add_run_options(made)
    made.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use (default: learnt from the training reports)")
    made.add_argument("--text-from", type=Path, metavar="DIR", help="begin with a BERT's weights and tokenizer, from convert_weights.py")
    made.add_argument("--vision-from", type=Path, metavar="DIR", help="begin with a Swin's weights, from convert_weights.py")
    made.add_argument("--run-from", type=Path, metavar="DIR", help="begin with the weights of an earlier run, as far as they fit")
    add_machine_options(made)
    made.add_argument("--bundle-id", default="velvet", metavar="NAME", help="name of the finished bundle")
    made.add_argument("--training-data", default="", metavar="TEXT", help="statement on the data, for the bundle and its card")
    made.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the bundle and its card")
    made.add_argument("--no-bundle", action="store_true", help="do not write a bundle at the end")
    made.add_argument("--dry-run", action="store_true", help="print sizes, memory and time of the run, and do not train")
    return made


def main(words: list[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    if not options.words or "help" in options.words:
        parser().print_help()
        return 0
    if options.words[0] not in RECIPES or options.words[1:] not in ([], ["settings"]):
        sys.stderr.write(f"There is no '{' '.join(options.words)}'. Known: {', '.join(RECIPES)}, each with or without settings; help.\n")
        return USAGE
    return carry_out(lambda: _run(options), traceback=options.traceback)


def _run(options: argparse.Namespace) -> int:
    from VelvetMedLib.engine.processes import Processes
    from VelvetMedLib.recipes import preset
    from VelvetMedLib.recipes.overrides import overridden

    recipe = overridden(preset(options.words[0], options.preset), options.set)
    if options.words[1:] == ["settings"]:
        print_settings(recipe)
        return 0
    require(options, ("steps",) if options.dry_run else ("run", "steps"), "pretrain.py")
    if options.dry_run:
        from pretraining.plan import print_plan
        from pretraining.start import read_start

        begun = read_start(options.text_from, options.vision_from)
        begun.check(recipe)
        tokenizer = begun.tokenizer_file(options.text_from, options.tokenizer)
        print_plan(recipe, steps=options.steps, device=options.device, cohort=options.cohort, tokenizer=tokenizer)
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
                text_from=options.text_from,
                vision_from=options.vision_from,
                run_from=options.run_from,
                device=options.device,
                workers=options.workers,
                name=options.bundle_id,
                training_data=options.training_data,
                licence=options.licence,
                bundle=not options.no_bundle,
            ),
            processes,
            source=Path(ROOT),
        )
    finally:
        processes.close()


if __name__ == "__main__":
    begin(__file__, main)
