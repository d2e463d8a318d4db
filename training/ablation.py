#!/usr/bin/env python3
"""Rerun VELVET-Med's ablation on a synthetic cohort: `python training/ablation.py --cohort DIR --out OUT`.

Prints the plan, runs the pilot, then cell after cell; the table and plot in OUT grow with them. Calling the same line again goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commandline import ROOT, add_machine_options, add_settings_options, begin, carry_out, new_parser

PRESETS = ("lean", "tiny", "micro", "paper")
NUMBERS = ("steps", "pairs", "fewer_pairs", "seeds", "val", "test", "segmentation_volumes", "segmentation_steps", "segmentation_val",
           "segmentation_test", "data_seed")  # fmt: skip

EXAMPLES = """  velvetmed cohort make --cases 2600 --seed 1 --out COHORT
  python training/ablation.py --cohort COHORT --out OUT --plan         what it would cost, from a few timed steps
  python training/ablation.py --cohort COHORT --out OUT --pilot        only the two ends, one seed
  python training/ablation.py --cohort COHORT --out OUT --docs docs    the grid; table and plot also in docs/
  python training/ablation.py --cohort COHORT --out OUT --only word_sum --only everything-400-s2"""


def parser() -> argparse.ArgumentParser:
    """The options; those with numbers come from `AblationSettings`."""
    numbers = ", ".join("--" + name.replace("_", "-") for name in NUMBERS)
    made = new_parser(
        "ablation.py",
        f"Rerun the ablation of VELVET-Med's parts at equal data and equal steps. Numbers that can be given: {numbers}.",
        EXAMPLES,
        help_options=True,
    )
    made.add_argument("--cohort", type=Path, required=True, metavar="DIR", help="folder made by `velvetmed cohort make`")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="cells, prepared scans, table and plot")
    made.add_argument("--plan", action="store_true", help="print the plan and do nothing else")
    made.add_argument("--pilot", action="store_true", help="only the pilot: plain CLIP, then everything, until one stands above chance")
    made.add_argument("--only", action="append", default=[], metavar="ROW", help="only this row or cell; may be repeated")
    made.add_argument("--anyway", action="store_true", help="run the grid even where no pilot stands above chance")
    made.add_argument("--docs", type=Path, metavar="DIR", help="also write table and plot here")
    add_settings_options(made, PRESETS, "sizes of every row (default: lean)")
    for name in NUMBERS:
        made.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=argparse.SUPPRESS)
    made.add_argument("--sitting-minutes", type=float, metavar="M", help="longest time of a cell in one go (default: 40)")
    add_machine_options(made, device="cpu")
    return made


def main(words: Sequence[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    return carry_out(lambda: _run(options), traceback=options.traceback)


def _run(options: argparse.Namespace) -> int:
    from ablating.driver import drive
    from ablating.grid import AblationSettings, refuse_switches

    from VelvetMedLib.recipes.overrides import overridden
    from VelvetMedLib.recipes.velvet import PRESETS as MAKERS

    refuse_switches(options.set)
    given = {name: getattr(options, name) for name in (*NUMBERS, "sitting_minutes") if getattr(options, name) is not None}
    return drive(
        overridden(MAKERS[options.preset](), options.set),
        AblationSettings(**given),
        cohort=options.cohort,
        out=options.out,
        source=Path(ROOT),
        only=options.only,
        plan=options.plan,
        pilot=options.pilot,
        anyway=options.anyway,
        docs=options.docs,
        workers=options.workers,
        device=options.device,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    begin(__file__, main)
