"""The parser on sentences that people write: precision and recall per attribute, on a part it was made on and a part it was not."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.reports import STATES, FindingRecord, State, is_irrelevant, ontology, parse_sentence
from VelvetMedLib.reports.phrases import build_parts, phrase_book

SENTENCES: dict[str, Any] = json.loads(Path(__file__).with_name("hand_written_sentences.json").read_text(encoding="utf-8"))
ATTRIBUTES = ("side", "site", "size_mm", "count", "severity", "value")
REACHED = {
    "develop": dict.fromkeys(("name", "state", *ATTRIBUTES), (0.99, 0.99)),
    "held_out": {
        "name": (0.98, 0.95),
        "state": (0.90, 0.88),
        "side": (0.95, 0.84),
        "site": (0.99, 0.92),
        "size_mm": (0.99, 0.99),
        "count": (0.66, 0.99),
        "severity": (0.92, 0.85),
        "value": (0.99, 0.99),
    },
}
"""(precision, recall) that the parser reached on 2026-11-22, rounded down: it may not fall below."""


def read(row: dict[str, Any]) -> dict[str, FindingRecord]:
    section = row.get("section", "")
    return {} if is_irrelevant(section) else {m.name: m for m in parse_sentence(row["text"], section)}


def figures(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """(precision, recall) of names, of states (over all findings), and of the attributes of findings that are present or uncertain."""
    hits, said, truth = Counter[str](), Counter[str](), Counter[str]()

    def count(kind: str, told: Any, true: Any) -> None:
        said[kind] += told is not None
        truth[kind] += true is not None
        hits[kind] += told is not None and told == (pytest.approx(true) if isinstance(true, float) else true)

    for row in rows:
        got, says = read(row), row["says"]
        for name in {*got, *says} - set(row.get("either", ())) - {n for n, true in says.items() if true["state"] == "*"}:
            told, true = got.get(name), says.get(name)
            count("name", told and told.name, true and name)
            count("state", told and told.state, true and true["state"])
            if told and true and true["state"] in ("present", "uncertain"):
                for attribute in ATTRIBUTES:
                    if true.get(attribute) != "*":
                        count(attribute, getattr(told, attribute), true.get(attribute))
    return {kind: (hits[kind] / max(said[kind], 1), hits[kind] / max(truth[kind], 1)) for kind in ("name", "state", *ATTRIBUTES)}


@pytest.mark.parametrize("part", ["develop", "held_out"])
def test_the_parser_keeps_the_level_it_has_reached(part: str) -> None:
    reached = figures(SENTENCES[part])
    short = {kind: reached[kind] for kind, (p, r) in REACHED[part].items() if reached[kind][0] < p or reached[kind][1] < r}
    assert not short


def test_a_third_of_at_least_150_sentences_is_held_out() -> None:
    develop, held_out = ({row["text"] for row in SENTENCES[part]} for part in ("develop", "held_out"))
    assert len(develop) + len(held_out) >= 150
    assert not develop & held_out
    assert 2.3 * len(held_out) >= len(develop)


def test_the_phrase_book_can_write_none_of_them(make_record: Any) -> None:
    """Each wording of the book as a pattern whose parts hold any of the words that the part can have, in any order: wider than the book."""
    writable = re.compile("|".join(_wordings(make_record)))
    assert all(
        writable.fullmatch(_plain(text)) for text in ("No pleural effusion.", "Also, there is a 12 mm nodule in the right upper lobe.")
    )
    assert not [row["text"] for part in ("develop", "held_out") for row in SENTENCES[part] if writable.fullmatch(_plain(row["text"]))]


def _plain(text: str) -> str:
    """Lower case, no joining word in front, no closing stop, every number # and every length in mm."""
    joiners = "|".join(joiner.lower() for joiner in phrase_book()["joiners"])
    text = re.sub(rf"^(?:{joiners})", "", text.lower()).rstrip(".")
    text = re.sub(r"\b(?:two|three|four|five|six|seven|eight|nine|ten)\b|\d+(?:\.\d+)?", "#", text)
    return re.sub("# ?cm", "# mm", text)


def _wordings(make_record: Any) -> set[str]:
    book = phrase_book()
    patterns, nouns = set(), set()
    for name in ontology().finding_names:
        for state in STATES:
            words = _words_of_parts(make_record, name, state)
            own = [*book["findings"][name][state], *book["findings"][name].get(f"held_out_{state}", ())]
            patterns |= {_pattern(text, words) for text in [*own, *(t for kind in book["frames"][state].values() for t in kind)]}
        nouns |= {re.escape(noun) for kind in ("nouns", "held_out_nouns") for pair in book["findings"][name][kind] for noun in pair if noun}
    any_noun = dict.fromkeys(("a", "b", "c", "as", "bs", "cs", "As"), "(?:" + "|".join(nouns) + ")")
    patterns |= {_pattern(text, any_noun) for texts in book["absent_lists"].values() for text in texts}
    whole = [*book["absent_together"], *book["not_assessed_together"].values()]
    fixed = [text for group in whole for text in (*group["texts"], *group["held_out"])]
    fixed += [text for kind in ("technique", "comparison", "closing", "normal") for text in book[kind]]
    return patterns | {_pattern(text, {}) for text in fixed}


def _words_of_parts(make_record: Any, name: str, state: State) -> dict[str, str]:
    """Per part of a sentence a pattern of all words that it had in many draws."""
    words: dict[str, set[str]] = {}
    rng = np.random.default_rng(1)
    for draw in range(200):
        parts = build_parts(make_record(name, state, rng), rng, held_out=draw % 2 == 1, short_sites=draw % 4 > 1)
        for part, text in parts.words.items():
            words.setdefault(part, set()).update(_filled(text).replace(",", " ").split())
    return {part: f"(?:(?:{'|'.join(map(re.escape, sorted(some)))})[ ,]*)+" if some else "" for part, some in words.items()}


def _filled(text: str) -> str:
    for slot, written in (("[SIZE]", "# mm"), ("[COUNT]", "#"), ("[VALUE]", "#")):
        text = text.replace(slot, written)
    return _plain(text)


def _pattern(text: str, words: dict[str, str]) -> str:
    """The pattern of a wording; one that needs a part which was never drawn fits nothing."""
    pattern = ""
    for literal, part, optional in re.findall(r"([^{]*)(?:\{(\w+)(\??)\})?", text):
        pattern += re.escape(_filled(literal)).replace(r"\ ", " ?")
        pattern += f"(?:{words.get(part, '(?!)')}){optional}" if part else ""
    return pattern


@pytest.mark.parametrize(
    ("text", "side", "site"),
    [
        ("No effusion on the left.", "left", None),
        ("No consolidation or atelectasis in the right lower lobe.", "right", "lung_lower_lobe_right"),
        ("No nodule in either lung.", None, None),
    ],
)
def test_what_is_denied_of_one_place_is_not_denied_of_another(text: str, side: str | None, site: str | None) -> None:
    for record in parse_sentence(text):
        assert (record.state, record.side) == ("absent", side)
        assert record.site in (site, None)


def test_nothing_new_is_no_statement_on_what_was_there_before() -> None:
    assert parse_sentence("No new or enlarging nodules.") == []
