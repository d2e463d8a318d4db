"""The words of the command line. Standard library only, so that `--help` is instant; a test freezes what stands here."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, NoReturn

from VelvetMedLib import RESEARCH_USE_ONLY, __version__
from VelvetMedLib.errors import UsageError

DEFAULT_BUNDLE = "demo"
VIEWS = ("crop", "windowed")
ORIENTATIONS = ("RAS", "SAR")
SOURCES = ("report", "model")
STYLES = ("structured", "narrative", "terse", "itemised")
LENGTHS = ("full", "brief")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are errors in four parts."""

    def __init__(self, **kwargs: Any) -> None:
        # An abbreviation that works today would be broken by tomorrow's option.
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        raise UsageError(
            "The command line cannot be understood.",
            found=message,
            expected=usage,
            next_step=f"See '{self.prog} --help'.",
        )


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _name(text: str) -> str:
    """A finding or an organ, also as it is written in sentences."""
    return text.strip().lower().replace(" ", "_")


def _corners(text: str) -> tuple[float, ...]:
    """Two corners of a box; a comma or space between the numbers."""
    numbers = tuple(float(word) for word in text.replace(",", " ").split())
    if len(numbers) != 6 or any(a == b for a, b in zip(numbers[:3], numbers[3:], strict=True)):
        raise argparse.ArgumentTypeError(f"{text!r} are not two opposite corners of a box, six numbers in all")
    return numbers


def _names(text: str) -> tuple[str, ...]:
    """Names joined by commas."""
    return tuple(_name(part) for part in text.split(",") if part.strip())


def _confidence(text: str) -> float | None:
    """A confidence from 0 to 1, or none."""
    if text == "none":
        return None
    with contextlib.suppress(ValueError):
        if 0.0 <= float(text) <= 1.0:
            return float(text)
    raise argparse.ArgumentTypeError("give a number from 0 to 1, or none")


def build_parser() -> argparse.ArgumentParser:
    """The whole surface of `velvetmed`."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="machine-readable output on stdout")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    model = Parser(add_help=False)
    model.add_argument("--bundle", default=DEFAULT_BUNDLE, metavar="NAME_OR_FOLDER", help=f"model bundle (default: {DEFAULT_BUNDLE})")
    model.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    scan = Parser(add_help=False)
    scan.add_argument("volume", type=Path, metavar="VOLUME", help="DICOM folder, NIfTI or NRRD file")
    scan.add_argument("--series", help="which DICOM series, by number in the list or by its UID (default: the largest CT series)")

    top = Parser(prog="velvetmed", description=f"From a CT scan to segments, findings, a draft report and answers. {RESEARCH_USE_ONLY}")
    top.add_argument("--version", action="version", version=f"velvetmed {__version__} - {RESEARCH_USE_ONLY}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, text: str, *parents: Parser) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[*parents, common])

    sample = verb("sample", "get the sample scan, or show where it is")
    sample.add_argument("--no-dicom", action="store_true", help="only the NIfTI form")

    cohort = verb("cohort", "make a synthetic cohort")
    kinds = cohort.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    make = kinds.add_parser("make", help="make synthetic cases", description="Make synthetic cases.", parents=[common])
    make.add_argument("--cases", type=_at_least_one, required=True, help="how many")
    make.add_argument("--seed", type=int, required=True, help="the same seed makes the same cohort")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    make.add_argument("--processes", type=_at_least_one, default=1, help="how many work side by side (default: 1)")

    analyze = verb("analyze", "analyse a scan into a Case folder", scan, model)
    analyze.add_argument("--out", type=Path, required=True, metavar="CASE", help="Case folder to write")
    analyze.add_argument("--style", choices=STYLES, default="structured", help="style of the draft report (default: structured)")
    analyze.add_argument("--length", choices=LENGTHS, default="full", help="full (default), or brief: what is not there in one sentence")
    analyze.add_argument(
        "--hold-from", type=_confidence, default=0.0, metavar="P",
        help="no sentence may contradict a finding this sure, 0 to 1 (default: 0, all), or none: wrong words are only flagged",
    )  # fmt: skip
    analyze.add_argument("--sections", type=_names, default=(), metavar="A,B", help="sections of the draft, such as lungs,impression")
    writer = "who words the draft: decoder (of the bundle), composer, a file of phrases, or the folder of a trained language model"
    analyze.add_argument("--writer", metavar="WRITER", help=writer)
    analyze.add_argument("--no-image", action="store_true", help="do not copy the scan into the case")
    analyze.add_argument("--no-encoding", action="store_true", help="do not keep the encoding (ask and ground then know less)")
    analyze.add_argument("--no-cleaning", action="store_true", help="keep stray islands, holes and misplaced parts as the model gives them")

    phrases = verb("phrases", "take phrases for draft reports from your own reports")
    phrases.add_argument("source", metavar="SOURCE", help="folder of reports (.txt, .md), or an index that keeps texts")
    phrases.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="file to write, for analyze --writer")

    ask = verb("ask", "ask a question about a case", model)
    ask.add_argument("case", type=Path, metavar="CASE")
    ask.add_argument("question", metavar="QUESTION")
    place = ask.add_mutually_exclusive_group()
    place.add_argument("--segment", type=_name, metavar="NAME", help="ask about one segment alone, such as liver")
    corners = 'ask about the box between two corners in RAS mm, such as "-60 -40 10 -20 0 50"'
    place.add_argument("--box", type=_corners, metavar='"R A S R A S"', help=corners)

    ground = verb("ground", "show where a phrase is in a case", model)
    ground.add_argument("case", type=Path, metavar="CASE")
    ground.add_argument("phrase", metavar="PHRASE")

    index = verb("index", "add a folder of cases or scans to an index for search", model)
    index.add_argument("folder", type=Path, metavar="FOLDER", nargs="?", help="what is in the index already is left as it is")
    index.add_argument("--out", required=True, metavar="INDEX", help="index folder, or postgresql:// address of a database")
    index.add_argument("--keep-text", action="store_true", help="keep the text of the draft reports in the index")
    index.add_argument("--remove", type=int, action="append", metavar="NUMBER", help="instead: take this case out of the index")

    search = verb("search", "find similar cases in an index", model)
    search.add_argument("index", metavar="INDEX")
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="words to look for")
    query.add_argument("--volume", type=Path, help="a scan to compare with")
    query.add_argument("--case", type=Path, help="an analysed case to compare with")
    search.add_argument("--count", type=_at_least_one, default=5, help="how many results (default: 5)")
    search.add_argument("--region", type=_name, metavar="ORGAN", help="compare this organ of the scan alone, such as liver")
    search.add_argument("--rerank", action="store_true", help="order the best by the model's match head as well (with --text)")
    search.add_argument("--reports", action="store_true", help="only cases whose report text was kept, with the text")
    for option, kind, text in (
        ("--with-finding", "FINDING", "only cases that show it"),
        ("--without-finding", "FINDING", "only cases in which it was looked for and is absent"),
        ("--with-organ", "ORGAN", "only cases that show enough of this organ"),
    ):
        search.add_argument(option, type=_name, action="append", default=[], metavar=kind, help=f"{text}; can be given several times")
    search.add_argument("--source", choices=SOURCES, help="only cases whose findings a report, or the model, has named")
    search.add_argument("--since", metavar="DATE", help="only cases added from this day on, such as 2026-11-22 (UTC)")

    embed = verb("embed", "write a scan's vectors", scan, model)
    embed.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file to write")
    embed.add_argument(
        "--view", choices=VIEWS, default=VIEWS[0], help="of a model that takes one crop: which declared view (default: crop)"
    )

    review = verb("review", "write review pages for cases")
    review.add_argument("cases", type=Path, nargs="+", metavar="CASE")
    review.add_argument("--out", type=Path, required=True, metavar="SITE", help="folder to write")

    evaluate = verb("evaluate", "measure a bundle on a cohort", model)
    evaluate.add_argument("--cohort", type=Path, required=True, metavar="DIR", help="a cohort whose seed was never trained on")
    evaluate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; a stopped evaluation there goes on")
    evaluate.add_argument("--against", type=Path, metavar="DIR", help="a finished evaluation of another bundle or writer, to compare with")
    evaluate.add_argument("--writer", metavar="WRITER", help=writer)
    evaluate.add_argument("--text-model", type=Path, metavar="FOLDER", help="transformers encoder for BERTScore (default: none, left out)")

    models = verb("models", "list, add, remove or show model bundles")
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    actions.add_parser("list", help="which bundles there are", description="Which bundles there are.", parents=[common])
    add = actions.add_parser(
        "add",
        help="add a bundle from a folder or zip, or a published model by its name",
        description="Add a bundle from a folder or zip, or a published model (colipri) from its weights or, after a yes, from its source.",
        parents=[common],
    )
    add.add_argument("source", type=Path, metavar="FOLDER_OR_ZIP_OR_NAME")
    add.add_argument("--weights", type=Path, metavar="FILE", help="the published model's .safetensors file, with vocab.txt beside it")
    add.add_argument("--yes", action="store_true", help="agree to the download that is shown")
    add.add_argument("--orientation", choices=ORIENTATIONS, default=ORIENTATIONS[0], help="body axes of the tensor's axes (default: RAS)")
    add.add_argument("--pool-padding", action="store_true", help="pool the text over padding too, as the package did up to 0.1.2")
    remove = actions.add_parser("remove", help="delete an added bundle", description="Delete an added bundle.", parents=[common])
    remove.add_argument("name", metavar="NAME")
    card = actions.add_parser("show", help="print a bundle's model card", description="Print a bundle's model card.", parents=[common])
    card.add_argument("name", metavar="NAME", nargs="?", default=DEFAULT_BUNDLE)

    verb("doctor", "what this machine has, what is missing, what to do")
    return top
