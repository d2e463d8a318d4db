#!/usr/bin/env python3
"""Train the demo bundle on the synthetic cohort: fine network, VELVET-Med pre-training, text encoder, global encoder, reader and writer.

    velvetmed cohort make --cases 2600 --seed 1 --out COHORT
    python training/demo_model.py --cohort COHORT --run RUN --out BUNDLE

`make demo-model` calls both. Every stage goes on where it was stopped when the same line is called again. Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commandline import add_seed, add_traceback, begin, carry_out, new_parser

COUNTS = {
    "fine_steps": (3000, 500),
    "verifier_steps": (3000, 500),
    "velvet_steps": (160, 40),
    "text_steps": (400, 80),
    "global_steps": (80, 20),
    "reader_steps": (600, 120),
    "encode_cases": (1500, 200),
    "test_cases": (500, 60),
}
"""Of a whole training (two hours planned, on two cores), and of one that shows where a change leads (a quarter of an hour planned)."""
STAGES = ("fine", "encode", "verifier", "velvet", "text", "global", "reader", "all")
NEEDED = ("sklearn", "jinja2")

EXAMPLES = """  velvetmed cohort make --cases 2600 --seed 1 --out COHORT
  python training/demo_model.py --cohort COHORT --run RUN --out BUNDLE
  python training/demo_model.py --cohort COHORT --run RUN --out BUNDLE --until fine"""


def parser() -> argparse.ArgumentParser:
    """The options of the line."""
    made = new_parser("demo_model.py", "Train the demo bundle.", EXAMPLES, help_options=True)
    made.add_argument("--cohort", type=Path, required=True, metavar="DIR", help="folder made by `velvetmed cohort make`")
    made.add_argument("--run", type=Path, required=True, metavar="DIR", help="folders of the stages, kept encodings; call again to go on")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the finished bundle")
    said = {
        "encode_cases": "training cases whose tokens are kept for the reader",
        "test_cases": "held-out cases that are measured",
    }
    for name, (full, proxy) in COUNTS.items():
        text = f"{said.get(name, 'optimiser steps of this stage')} (default: {full}; {proxy} with --proxy)"
        made.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    made.add_argument("--proxy", action="store_true", help="the second of these defaults: a quarter of an hour, to try a change")
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

    given = {name: getattr(options, name) for name in COUNTS}
    counts = {name: COUNTS[name][options.proxy] if count is None else count for name, count in given.items()}
    return train_demo(
        DemoOptions(
            cohort=options.cohort,
            run=options.run,
            out=options.out,
            **counts,
            spacing_mm=options.spacing_mm,
            processes=options.processes,
            seed=options.seed,
            until=options.until,
        )
    )


if __name__ == "__main__":
    begin(__file__, main)
