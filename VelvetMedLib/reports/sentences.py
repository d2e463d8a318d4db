"""Report text into titled sections and sentences: plain rules that keep decimals, initials, units and numbered lists whole."""

from __future__ import annotations

import re

_HEADINGS = frozenset(
    """technique examination exam procedure protocol comparison prior indication history clinical information question
    findings report lungs lung airways pleura heart cardiac pericardium vessels aorta mediastinum hila lymph nodes liver
    biliary kidneys kidney renal spleen pancreas adrenals bowel stomach abdomen chest thorax bones bone spine skeleton soft
    tissues impression conclusion summary opinion recommendation other""".split()  # noqa: SIM905
)
_HEADING_WORDS = _HEADINGS | frozenset("and of the tissue system upper lower data ct great osseous structures".split())  # noqa: SIM905
IRRELEVANT_TITLES = frozenset(
    """technique examination exam procedure protocol comparison prior indication history clinical information question
    data""".split()  # noqa: SIM905
)
"""Words of headings whose sections say nothing about what is seen: how and why the scan was made, what it was compared with."""

_DIRECTION_MARKS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|approx|ca|cf|dr|mr|mrs|ms|prof|no|nr|fig|vs|resp|incl|max|min|ant|post|sup|inf|dd|st)|\b[A-Za-z])\.$", re.IGNORECASE
)
_LIST_MARK = re.compile(r"^\s*(?:[-*\u2022\u2013]|\(?\d{1,2}[.)](?=\s)|\(?[a-z]\))\s+")
_END = re.compile(r"[.!?]+(?=[\"')\]]*(?:\s|$))")


def split_sections(text: str) -> list[tuple[str, str]]:
    """(title, body) pairs in order. Text before any heading gets the title "".

    A heading is a line of its own, or the start of a line up to a colon, made of the words that radiology uses for headings.
    """
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in _clean(text).split("\n"):
        title, rest = _heading(line)
        if title is not None:
            sections.append((title, [rest] if rest else []))
        else:
            sections[-1][1].append(line)
    joined = [(title, "\n".join(lines).strip()) for title, lines in sections]
    return [(title, body) for title, body in joined if body or title]


def is_irrelevant(title: str) -> bool:
    """True for sections on technique, comparison and indication."""
    words = re.findall(r"[a-z]+", title.lower())
    return bool(words) and words[0] in IRRELEVANT_TITLES


def split_sentences(text: str) -> list[str]:
    """Sentences in order, list marks removed, decimals ("1.5 cm"), initials and abbreviations kept whole.

    A list entry or a line after a blank line starts a new sentence even without a full stop before it.
    """
    sentences: list[str] = []
    block: list[str] = []
    for line in [*_clean(text).split("\n"), ""]:
        bulleted = _LIST_MARK.match(line)
        if not line.strip() or bulleted:
            sentences += _split_block(" ".join(block))
            block = []
        if line.strip():
            block.append(line[bulleted.end() :].strip() if bulleted else line.strip())
    return sentences


def _split_block(text: str) -> list[str]:
    parts: list[str] = []
    start = 0
    for match in _END.finditer(text):
        head = text[start : match.end()]
        rest = text[match.end() :].lstrip()
        # "1." before a word is a list number; "approx." and "J." do not end a sentence unless nothing follows.
        unfinished = _ABBREVIATION.search(head) or re.fullmatch(r"\s*\(?\d{1,2}\.", head)
        if rest and unfinished and not _starts_anew(head, rest):
            continue
        # A full stop before a lower-case word is an abbreviation we do not know.
        if rest and match.group() == "." and rest[0].islower():
            continue
        parts.append(head)
        start = match.end()
    parts.append(text[start:])
    return [p for p in (_LIST_MARK.sub("", part).strip() for part in parts) if re.search(r"\w", p)]


def _starts_anew(head: str, rest: str) -> bool:
    """True for a "No." that is an answer and not the abbreviation of number."""
    return bool(re.search(r"\b(?:no|nr|fig)\.$", head, re.IGNORECASE)) and not rest[0].isdigit() and not rest[0].islower()


def _heading(line: str) -> tuple[str | None, str]:
    match = re.match(r"^\s*([A-Za-z][A-Za-z /&,-]{1,40}?)\s*(:|$)\s*(.*)$", line)
    if match is None:
        return None, ""
    title, colon, rest = match.group(1).strip(), match.group(2), match.group(3).strip()
    words = re.findall(r"[a-z]+", title.lower())
    if not words or len(words) > 5 or any(w not in _HEADING_WORDS for w in words) or not set(words) & _HEADINGS:
        return None, ""
    # "Spleen" alone on a line is a heading; a colon or capitals make it certain, as does a line with nothing else.
    return (title, rest) if colon or not rest else (None, "")


def _clean(text: str) -> str:
    """Control characters out, one kind of line end, dashes and spaces in one form. Text is data: nothing in it is interpreted."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ").replace("\u2212", "-").replace("\u2011", "-")
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) <= 0x9F and c not in _DIRECTION_MARKS))
