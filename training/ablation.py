#!/usr/bin/env python3
"""Rerun VELVET-Med's ablation on a synthetic cohort: `python training/ablation.py --cohort DIR --out OUT`.

Prints the plan, runs the pilot, then cell after cell; the table and plot in OUT grow with them. Calling the same line again goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

USAGE, PROBLEM = 2, 1
PRESETS = ("tiny", "micro", "paper")
NUMBERS = ("steps", "pairs", "fewer_pairs", "seeds", "val", "test", "segmentation_volumes", "segmentation_steps", "segmentation_val",
           "segmentation_test", "data_seed")  # fmt: skip

EPILOG = """examples:
  velvetmed cohort make --cases 2600 --seed 1 --out COHORT
  python training/ablation.py --cohort COHORT --out OUT --plan         what it would cost, from a few timed steps
  python training/ablation.py --cohort COHORT --out OUT --pilot        only the two ends, one seed
  python training/ablation.py --cohort COHORT --out OUT --docs docs    the grid; table and plot also in docs/
  python training/ablation.py --cohort COHORT --out OUT --only word_sum --only everything-400-s2

exit codes: 0 done, 75 stopped or set aside with everything saved (call the same line again), 1 cannot go on, 2 wrong words
Research use only. Not for clinical use."""


def parser() -> argparse.ArgumentParser:
    """The options; those with numbers come from `AblationSettings`."""
    made = argparse.ArgumentParser(
        prog="ablation.py",
        description="Rerun the ablation of VELVET-Med's parts at equal data and equal steps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--cohort", type=Path, required=True, metavar="DIR", help="folder made by `velvetmed cohort make`")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="cells, prepared scans, table and plot")
    made.add_argument("--plan", action="store_true", help="print the plan and do nothing else")
    made.add_argument("--pilot", action="store_true", help="only the pilot: plain CLIP, then everything, until one stands above chance")
    made.add_argument("--only", action="append", default=[], metavar="ROW", help="only this row or cell; may be repeated")
    made.add_argument("--anyway", action="store_true", help="run the grid even where no pilot stands above chance")
    made.add_argument("--docs", type=Path, metavar="DIR", help="also write table and plot here")
    made.add_argument("--preset", choices=PRESETS, default="tiny", help="sizes of every row (default: tiny)")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of every row; may be repeated")
    for name in NUMBERS:
        made.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=argparse.SUPPRESS)
    made.add_argument("--sitting-minutes", type=float, metavar="M", help="longest time of a cell in one go (default: 40)")
    made.add_argument("--workers", type=int, default=1, metavar="N", help="processes that prepare scans (default: 1)")
    made.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda:0 (default: cpu)")
    made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    made.epilog = f"numbers: {', '.join('--' + name.replace('_', '-') for name in NUMBERS)}\n\n{EPILOG}"
    return made


def main(words: Sequence[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    from VelvetMedLib.errors import UsageError, VelvetMedError

    try:
        return _run(options)
    except VelvetMedError as error:
        if options.traceback:
            raise
        sys.stderr.write(f"{error}\n")
        return USAGE if isinstance(error, UsageError) else PROBLEM


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
        source=HERE.parent,
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
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    sys.exit(main(sys.argv[1:]))
