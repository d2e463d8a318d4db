#!/usr/bin/env python3
"""Train the demo bundle on the synthetic cohort, plainly and in one go: fine network, text encoder, global encoder, reader and writer.

    velvetmed cohort make --cases 2600 --seed 1 --out COHORT
    python training/train_demo.py --cohort COHORT --run RUN --out BUNDLE

Every stage goes on where it was stopped when the same line is called again. Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commandline import add_seed, add_traceback, begin, carry_out, new_parser

FINE_STEPS, TEXT_STEPS, GLOBAL_STEPS, READER_STEPS = 4200, 400, 80, 600
STAGES = ("fine", "encode", "text", "global", "reader", "all")
NEEDED = ("sklearn", "jinja2")

EXAMPLES = """  velvetmed cohort make --cases 2600 --seed 1 --out COHORT
  python training/train_demo.py --cohort COHORT --run RUN --out BUNDLE
  python training/train_demo.py --cohort COHORT --run RUN --out BUNDLE --until fine"""


def parser() -> argparse.ArgumentParser:
    """The options of the line."""
    made = new_parser("train_demo.py", "Train the demo bundle.", EXAMPLES, help_options=True)
    made.add_argument("--cohort", type=Path, required=True, metavar="DIR", help="folder made by `velvetmed cohort make`")
    made.add_argument("--run", type=Path, required=True, metavar="DIR", help="folders of the stages, kept encodings; call again to go on")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the finished bundle")
    for name, steps in (("fine", FINE_STEPS), ("text", TEXT_STEPS), ("global", GLOBAL_STEPS), ("reader", READER_STEPS)):
        made.add_argument(f"--{name}-steps", type=int, default=steps, metavar="N", help=f"optimiser steps of this stage (default: {steps})")
    made.add_argument(
        "--encode-cases", type=int, default=1000, metavar="N", help="training cases whose tokens are kept for the reader (default: 1000)"
    )
    made.add_argument("--test-cases", type=int, default=160, metavar="N", help="held-out cases that are measured (default: 160)")
    made.add_argument("--spacing-mm", type=float, default=4.0, metavar="MM", help="of the cohort's grid and of the fine view (default: 4)")
    made.add_argument("--processes", type=int, default=2, metavar="N", help="that prepare and encode cases (default: 2)")
    add_seed(made)
    made.add_argument("--until", choices=STAGES, default="all", help="stop after this stage")
    add_traceback(made)
    return made


def main(words: Sequence[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    return carry_out(lambda: _run(options), traceback=options.traceback, also_needed=NEEDED)


def _run(options: argparse.Namespace) -> int:
    from demo.training import DemoOptions, train_demo

    return train_demo(
        DemoOptions(
            cohort=options.cohort,
            run=options.run,
            out=options.out,
            fine_steps=options.fine_steps,
            text_steps=options.text_steps,
            global_steps=options.global_steps,
            reader_steps=options.reader_steps,
            encode_cases=options.encode_cases,
            test_cases=options.test_cases,
            spacing_mm=options.spacing_mm,
            processes=options.processes,
            seed=options.seed,
            until=options.until,
        )
    )


if __name__ == "__main__":
    begin(__file__, main)
