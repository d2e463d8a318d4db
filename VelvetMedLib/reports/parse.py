"""Sentences back into finding records: finding, state under negation and doubt, side, site, size in mm, count, severity.

Rules only, driven by `lexicon`. Text is data: nothing in it is executed, and what it does not mention is `not_assessed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from VelvetMedLib.reports.attributes import read_attributes
from VelvetMedLib.reports.lexicon import lexicon
from VelvetMedLib.reports.ontology import ontology
from VelvetMedLib.reports.records import FindingRecord, State
from VelvetMedLib.reports.sentences import is_irrelevant, split_sections, split_sentences

_STRENGTH: dict[State, int] = {"present": 3, "uncertain": 2, "absent": 1, "not_assessed": 0}
_GAP = re.compile(r"(?:, (?:and|or|nor) |,? and |,? with |; |, |,? but |,? or | without | secondary to | due to | caused by )")


@dataclass(frozen=True)
class Span:
    """A finding's words in normalised text. settled: a state that the words themselves carry ("spleen is normal")."""

    start: int
    end: int
    name: str
    settled: State | None = None


@dataclass(frozen=True)
class Cue:
    """Words of negation, doubt or missing coverage."""

    start: int
    end: int
    state: State
    before: bool


def normalise(text: str) -> str:
    """Lower case, single spaces, plain hyphens, one spelling, no list mark, no closing stop; a question mark stays, since it is doubt."""
    text = text.lower().replace("\u2013", "-").replace("\u2014", " - ").replace("\u00d7", "x").replace("\u2019", "'")
    text = re.sub(r"^\s*(?:[-*\u2022]|\(?\d{1,2}[.)]\s)\s*", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    for shorthand, spelt in lexicon().rewrites:
        text = shorthand.sub(spelt, text)
    return re.sub(r"[.!\s]+$", "", text)


def parse_sentence(text: str, section: str = "") -> list[FindingRecord]:
    """What one sentence says, in order of mention, one record per finding. section: its heading, which can tell a bare
    "mass" or "lesion" in the liver from one in the lung."""
    words = normalise(text)
    spans = _resolve(_find_spans(words), words, section.lower())
    cues = _find_cues(words)
    mentions = _placed([_mention(span, n, spans, cues, words) for n, span in enumerate(spans)], spans, words)
    mentions = [m for m, span in zip(mentions, spans, strict=True) if not _NOTHING_NEW.search(words[: span.start])]
    mentions += [m for n, span in enumerate(spans) if (m := _exception(span, n, spans, mentions, words))]
    mentions += _organ_statements(words, cues, {s.name for s in spans})
    return _merge(mentions)


def parse_report(text: str) -> list[FindingRecord]:
    """One record per finding of the ontology, in its order; findings that the report does not mention are `not_assessed`.

    Sections on technique, comparison and indication are skipped. Of several mentions the strongest state counts.
    """
    mentions: list[FindingRecord] = []
    for title, body in split_sections(text):
        if not is_irrelevant(title):
            for sentence in split_sentences(body):
                mentions += parse_sentence(sentence, title)
    found = {m.name: m for m in _merge(mentions)}
    return [found.get(name, FindingRecord(name=name, state="not_assessed")) for name in ontology().finding_names]


def find_findings(text: str) -> list[str]:
    """Names of the findings that a text mentions in any state, in order: for questions."""
    words = normalise(text)
    return list(dict.fromkeys(span.name for span in _resolve(_find_spans(words), words, "")))


def _find_spans(words: str) -> list[Span]:
    """Non-overlapping mentions; the longest wins where two findings' words overlap."""
    spans = [Span(m.start(), m.end(), name) for name, pattern in lexicon().findings for m in pattern.finditer(words)]
    spans.sort(key=lambda s: (s.start - s.end, s.start))
    kept: list[Span] = []
    for span in spans:
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda s: s.start)


_BARE = re.compile(
    r"(?:mass|masses)(?: lesions?)?|(?:(?:simple|cortical) )*cysts?|nodul(?:es?|arity)|stones?|calcul(?:us|i)|"
    r"(?:(?:focal|hypodense|hypoattenuating|low-attenuation|low-density|hypervascular|space-occupying) )+(?:lesions?|focus|foci|areas?)|"
    r"hypo(?:densit(?:y|ies)|attenuations?)|(?:(?:partial|segmental|subsegmental) )*(?:collapsed?|volume loss)|loss of volume"
)
_OTHER_ORGANS = re.compile(
    r"\b(?:thyroid|adrenal|breast|ovar\w+|uter\w+|prostat\w+|pancrea\w+|splenic cyst|bone|osseous|brain|gallbladder|biliary|"
    r"bladder|thymic|subcutaneous|soft[- ]tissue|parotid|trachea\w*|bronch\w+ (?:wall )?collapse|vena cava|ivc)\b"
)
_LIST_GAP = re.compile(r"[\s,/]*(?:and|or|nor|and/or|,)?[\s,]*(?:(?:a|an|any|left|right|bilateral|enlarged|mediastinal|focal) ?)*")
_ANCHORS = {
    "liver": re.compile(r"\b(?:liver|hepatic|segment [ivx\d]+)\b"),
    "kidney": re.compile(r"\b(?:kidneys?|renal)\b"),
    "lung": re.compile(r"\b(?:lungs?|pulmonary|lobes?|r[uml]l|l[ul]l|lingula|apex|apical)\b"),
    "spine": re.compile(r"\b(?:vertebra\w*|spin(?:e|al)|[tl]h?-?\d{1,2}|end-?plates?)\b"),
}
_BARE_NAMES: tuple[tuple[str, dict[str, str | None]], ...] = (
    ("nodul|mass", {"liver": "liver_lesion", "kidney": None, "spine": None}),
    ("cyst", {"liver": "liver_lesion", "lung": None, "spine": None}),
    ("lesion|focus|foci|area|hypo", {"liver": "liver_lesion", "lung": "lung_nodule", "kidney": None, "spine": None, "": None}),
    ("collaps|volume", {"spine": "vertebral_compression"}),
)
"""What a bare word means in which organ: None is no finding of ours, an organ that is not listed leaves the word its own name."""


def _resolve(spans: list[Span], words: str, section: str) -> list[Span]:
    """Bare words ("mass", "cyst", "lesion", "stone", "collapse") go to the organ that sentence or heading names, or are dropped."""
    resolved = []
    for span in spans:
        text = words[span.start : span.end]
        if _BARE.fullmatch(text) is None:
            resolved.append(span)
            continue
        near = _clause(words, span)
        if _OTHER_ORGANS.search(near):
            continue
        organ = next((organ for organ, anchor in _ANCHORS.items() if anchor.search(near)), None)
        for wider in (section, words):
            organ = organ or next((organ for organ, anchor in _ANCHORS.items() if anchor.search(wider)), None)
        meanings = next((names for pattern, names in _BARE_NAMES if re.search(pattern, text)), {})
        name = meanings.get(organ or "", span.name)
        # "Hypodense focus, possible liver lesion": one thing, named twice; the second name says what is thought of it.
        again = re.search("focus|foci|area|hypo|volume", text) and any(s.name == name and s.start > span.start for s in spans)
        if name is not None and not again:
            resolved.append(replace(span, name=name))
    return resolved


def _clause(words: str, span: Span) -> str:
    start = max((m.end() for m in re.finditer(r"[;:]|, (?!the largest)| and (?:a|an|there|no) ", words[: span.start])), default=0)
    end = re.compile(r"[;]| and (?:a|an|there|no) ").search(words, span.end)
    return words[start : end.start() if end else len(words)]


def _find_cues(words: str) -> list[Cue]:
    """Cues without overlap: earlier kinds in the lexicon win, then longer ones; pseudo-negations block what they cover."""
    taken = [m.span() for m in lexicon().pseudo_negation.finditer(words)]
    cues: list[Cue] = []
    for kind in lexicon().cues:
        for m in kind.pattern.finditer(words):
            if m.end() > m.start() and all(m.end() <= a or m.start() >= b for a, b in taken):
                cues.append(Cue(m.start(), m.end(), kind.state, kind.before))
                taken.append(m.span())
    return sorted(cues, key=lambda c: c.start)


_NOTHING_NEW = re.compile(r"\bno (?:new|further|additional|other)\b[^;.]*$")
"""In front of a finding: it says what was added since, not whether there is one."""
_EXCEPTION = re.compile(
    r"\b(?:except(?:ing)?(?: for)?|apart from|aside from|other than|save for|with the exception of|"
    r"but (?:for )?(?:there (?:is|are|remains?) )?(?=(?:[\w-]+ ){0,2}(?:ones?|two|three|some)\b))"
)
_CONTAINER = re.compile(r"(?:\b(?:contains?|shows?|demonstrates?|harbou?rs|has|there (?:is|are))|:)(?: (?:an?|the|[\w-]+))*\s*$")


def _mention(span: Span, n: int, spans: list[Span], cues: list[Cue], words: str) -> FindingRecord:
    state = _state(span, spans, cues, words)
    record = FindingRecord(name=span.name, state=state)
    if state == "not_assessed":
        return record
    left = _boundary(words, spans[n - 1].end, span.start) if n else 0
    right = _boundary(words, span.end, spans[n + 1].start) if n + 1 < len(spans) else len(words)
    read = read_attributes(record, words, (left, right), (span.start, span.end))
    # What is denied may be denied of one place ("no effusion on the left"), but has no size, number or grade of its own.
    return read if state != "absent" else replace(record, side=None if read.side == "both" else read.side, site=read.site)


def _placed(mentions: list[FindingRecord], spans: list[Span], words: str) -> list[FindingRecord]:
    """The mentions with the places that they share: "X and Y on the left", "the left kidney contains X and Y"."""
    placed = list(mentions)
    for n in range(len(spans) - 2, -1, -1):
        if _LIST_GAP.fullmatch(words[spans[n].end : spans[n + 1].start]):
            placed[n] = _at(placed[n], placed[n + 1])
            if placed[n].severity is None and re.match(r",? (?:both|all|each)\b", words[spans[-1].end :]):
                graded = placed[n].state == "present" and ontology().finding(placed[n].name).severity_from is not None
                placed[n] = replace(placed[n], severity=placed[n + 1].severity if graded else None)
    if spans and _CONTAINER.search(words[: spans[0].start]):
        for n in range(1, len(spans)):
            if re.search(r"[;.]|\b(?:but|while|whereas)\b", words[spans[0].end : spans[n].start]) is None:
                placed[n] = _at(placed[n], placed[0])
    return placed


def _at(mention: FindingRecord, other: FindingRecord) -> FindingRecord:
    """A mention without a place at the place of another in the same state."""
    finding = ontology().finding(mention.name)
    if mention.side or mention.site or mention.state != other.state or not finding.sided:
        return mention
    return replace(mention, side=other.side, site=other.site if other.site in finding.sites else None)


def _exception(span: Span, n: int, spans: list[Span], mentions: list[FindingRecord], words: str) -> FindingRecord | None:
    """What a denial leaves standing: "no X apart from a small patch on the left", "no X, but there is one on the left"."""
    end = spans[n + 1].start if n + 1 < len(spans) else len(words)
    excepted = _EXCEPTION.search(words, span.end, end)
    denied = any(m.name == span.name and m.state == "absent" for m in mentions)
    if excepted is None or not denied or (end < len(words) and "," not in words[excepted.end() : end]):
        return None
    region = (excepted.end(), end)
    return read_attributes(FindingRecord(name=span.name, state="present"), words, region, (region[0], region[0]))


def _boundary(words: str, start: int, end: int) -> int:
    """Where the words between two findings stop belonging to the first: at the last connector between them."""
    gaps = list(_GAP.finditer(words, start, end))
    return gaps[-1].start() if gaps else end


def _state(span: Span, spans: list[Span], cues: list[Cue], words: str) -> State:
    inner = re.search(r"\b(?:not|free of|no)\b", words[span.start : span.end])
    found: list[State] = ["absent"] if inner else []
    # "X versus Y": the reader does not know which of the two it is.
    if re.match(r" ?(?:versus|vs\.?|/) ", words[span.end :]) and not inner:
        found.append("uncertain")
    for cue in cues:
        inside = cue.start >= span.start and cue.end <= span.end
        if cue.before and (cue.end <= span.start or (inside and cue.start == span.start)):
            if not _cut(words, cue, span, spans):
                found.append(cue.state)
        elif not cue.before and cue.start >= span.end - 1 and _reaches_back(words, cue, span, spans):
            found.append(cue.state)
    for state in ("not_assessed", "uncertain", "absent"):
        if state in found:
            return state  # type: ignore[return-value]
    return "present"


def _cut(words: str, cue: Cue, span: Span, spans: list[Span]) -> bool:
    """True where something between a leading cue and the finding ends the cue's scope."""
    between = words[cue.end : span.start]
    if lexicon().scope_ends.search(between):
        # "cannot be assessed because ..." and "no X, which ...": beyond these words a new statement begins.
        return True
    others = [s for s in spans if cue.end <= s.start < span.start]
    if others:
        # The scope runs on through a list ("no effusion, consolidation or pneumothorax"), not over a verb.
        gap = words[others[-1].end : span.start]
        if re.search(r"\b(?:is|are|was|were|shows?|measur\w+|seen|noted|present|with|in keeping|has|have)\b", gap):
            return True
        if cue.state == "uncertain" and not re.search(r"\b(?:or|versus|vs|nor)\b|/", gap):
            return True
        if cue.state == "absent" and re.match(r",? and (?!\w+ \w*$)", gap) and re.search(r"\d", gap):
            return True
    # Doubt and negation do not reach over an unrelated noun phrase of more than a dozen words.
    return len(between.split()) > 12


def _reaches_back(words: str, cue: Cue, span: Span, spans: list[Span]) -> bool:
    """True where a trailing cue ("... cannot be excluded", ": none") speaks of this finding."""
    between = words[span.end : cue.start]
    if re.search(r"[;]|\bbut\b|\bhowever\b|\bwhile\b|\bwhereas\b|\bthere (?:is|are)\b|\balthough\b", between):
        return cue.state == "not_assessed" and ";" not in between and "but" not in between
    after = [s for s in spans if span.end <= s.start < cue.start]
    if after:
        # A shared cue needs a plain list between the two findings: "X and Y are not seen".
        gaps = words[span.end : after[0].start]
        return _LIST_GAP.fullmatch(gaps) is not None and _reaches_back(words, cue, after[0], spans)
    # "X, Y not excluded": the doubt is about Y, unless what follows the comma still describes X.
    tail = between.rpartition(",")[2].strip() if "," in between else ""
    if cue.state == "uncertain" and re.match(r"(?!most|the largest|measur|up to|\d|which|it |this |but|and |or |is |are |each)\w", tail):
        return False
    if cue.state == "uncertain" and cue.start > span.end and re.search(r"\b(?:is|are) (?:seen|present|noted)\b", between):
        return False
    return len(between.split()) <= 20


def _organ_statements(words: str, cues: list[Cue], named: set[str]) -> list[FindingRecord]:
    """What a sentence says of organs without naming a disease: normal, borderline, or not covered."""
    result: dict[str, State] = {}
    unseen = [c for c in cues if c.state == "not_assessed"]
    doubtful = re.search(r"\bborderline\b|\bupper limits? of normal\b|\bat the upper limit\b|\bslightly prominent\b", words)
    if unseen and not named:
        for pattern, names in lexicon().organ_unseen:
            for m in pattern.finditer(words):
                if any(c.start >= m.end() or c.end <= m.start() for c in unseen):
                    result.update(dict.fromkeys(names, "not_assessed"))
        return [FindingRecord(name=n, state=s) for n, s in result.items()]
    for pattern, names in lexicon().organ_normal:
        for m in pattern.finditer(words):
            if re.search(r"\b(?:not|no longer)(?: entirely| completely)? $", words[: m.start()]) or "not " in m.group():
                continue
            # "upper limit of normal" and "otherwise normal" are not "normal".
            if re.search(r"limits? of normal|otherwise", m.group()):
                continue
            result.update({n: "absent" for n in names if n not in named})
    records = []
    if doubtful and not any(c.state == "not_assessed" for c in cues):
        for pattern, names in lexicon().organ_borderline:
            if pattern.search(words):
                for name in names:
                    if name not in named:
                        result.pop(name, None)
                        record = FindingRecord(name=name, state="uncertain")
                        records.append(read_attributes(record, words, (0, len(words)), (0, 0)))
    return [FindingRecord(name=n, state=s) for n, s in result.items()] + records


def _merge(mentions: Iterable[FindingRecord]) -> list[FindingRecord]:
    """One record per finding: the strongest state, and of records in that state the first value of every attribute."""
    merged: dict[str, FindingRecord] = {}
    for m in mentions:
        old = merged.get(m.name)
        if old is None or _STRENGTH[m.state] > _STRENGTH[old.state]:
            merged[m.name] = m
        elif m.state == old.state:
            merged[m.name] = replace(
                old,
                side=old.side if old.side == m.side or m.side is None else (m.side if old.side is None else "both"),
                site=old.site or m.site,
                size_mm=max((s for s in (old.size_mm, m.size_mm) if s is not None), default=None),
                count=old.count or m.count,
                severity=old.severity or m.severity,
                value=old.value if old.value is not None else m.value,
            )
    return list(merged.values())
