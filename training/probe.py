#!/usr/bin/env python3
"""Classify findings from a T3D-style encoder, without and with text: `python training/probe.py --run RUN --cohort DIR`.

The encoder is frozen; one logistic regression per finding. The table is printed and lies in RUN/probe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commandline import add_traceback, begin, carry_out, new_parser, require

EXAMPLES = """  python training/pretrain.py t3d --preset tiny --cohort COHORT --run RUN --steps 600
  python training/probe.py --run RUN --cohort COHORT"""


def parser() -> argparse.ArgumentParser:
    """The options of the line."""
    made = new_parser("probe.py", "Classify findings from a T3D-style encoder, without and with text.", EXAMPLES)
    made.add_argument("words", nargs="*", metavar="[help]", help="help: these options")
    made.add_argument("--run", type=Path, metavar="DIR", help="run folder of `pretrain.py t3d`")
    made.add_argument("--cohort", type=Path, metavar="DIR", help="folder made by `velvetmed cohort make`: the truth of each finding")
    made.add_argument("--store", type=Path, metavar="DIR", help="prepared scans (default: in the run folder)")
    made.add_argument("--workers", type=int, default=1, metavar="N", help="processes that prepare scans (default: 1)")
    made.add_argument("--device", metavar="NAME", help="cpu or cuda:0 (default: the GPU if there is one)")
    add_traceback(made)
    return made


def main(words: list[str]) -> int:
    """Exit code of the line."""
    options = parser().parse_args(words)
    if options.words:
        parser().print_help()
        return 0 if options.words == ["help"] else 2
    return carry_out(lambda: _run(options), traceback=options.traceback, also_needed=("sklearn",))


def _run(options: argparse.Namespace) -> int:
    require(options, ("run", "cohort"), "probe.py")
    from probing.running import probe

    probe(
        options.run,
        options.cohort,
        store=options.store,
        workers=options.workers,
        device=options.device,
        say=lambda line: print(line, flush=True),
    )
    return 0


if __name__ == "__main__":
    begin(__file__, main)
