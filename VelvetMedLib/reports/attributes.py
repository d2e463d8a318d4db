"""Side, site, size, count, severity and measured value from the words around a finding."""

from __future__ import annotations

import re
from dataclasses import replace

from VelvetMedLib.reports.lexicon import COUNT, HOUNSFIELD, NUMBER_WORDS, PERCENT, PRIOR_SIZE, RATIO, SIZE, VERTEBRA, lexicon
from VelvetMedLib.reports.ontology import Ontology, ontology
from VelvetMedLib.reports.records import FindingRecord, Severity, Side

_BOTH = re.compile(
    r"\b(?:bilateral(?:ly)?|both (?:lungs|kidneys|sides|lobes|upper|lower|pleural|hemithoraces)|"
    r"on either side|biapical|bibasal|bibasilar|each kidney|either kidney|multilobar)\b"
)
_NOT_A_GRADE = re.compile(
    r"\b(?:(?:small|large) (?:bowel|airways?|vessels?)|at large|limited (?:by|to|assessment)|"
    r"(?:most|more) (?:pronounced|marked|severe|extensive))\b"
)
_NOT_A_COUNT = re.compile(r"(?:\b(?:segment|grade|type|image|series|[tl]|level|less than|more than|than) ?|\d[.,/x-]|- ?)$")


def read_attributes(record: FindingRecord, words: str, region: tuple[int, int], span: tuple[int, int]) -> FindingRecord:
    """The record with what `words[region]` says about it. span: the finding's own words, in the same text.

    Attributes that the ontology does not know for a finding stay None.
    """
    finding = ontology().finding(record.name)
    near = words[region[0] : region[1]]
    sites, rest = _take_sites(near)
    site = next((s for s in sites if s in finding.sites), None)
    if record.name == "vertebral_compression":
        site = _level(near)
    size = _size_mm(near)
    value = _value(finding.measure.quantity, near, size)
    return replace(
        record,
        side=_side(rest, sites) if finding.sided else None,
        site=site,
        size_mm=size if finding.sized else None,
        count=_count(words, region, span) if finding.countable else None,
        severity=_severity(near) if finding.severity_from is not None and record.state == "present" else None,
        value=value,
    )


def _take_sites(near: str) -> tuple[list[str], str]:
    """Sites in order of mention, and the text without their words (so that their "left" is not counted twice)."""
    found: list[tuple[int, str]] = []
    rest = near
    for pattern, name in lexicon().sites:
        for m in pattern.finditer(rest):
            found.append((m.start(), name))
            rest = rest[: m.start()] + "_" * (m.end() - m.start()) + rest[m.end() :]
    # "right upper and lower lobes": the second part borrows the side.
    for m in re.finditer(r"_ ?(?:and|/|,) ?(?:the )?(upper|middle|lower) lobes?", rest):
        side = next((Ontology.site_side(name) for at, name in sorted(found, reverse=True) if at <= m.start()), None)
        name = f"lung_{m.group(1)}_lobe_{side}"
        if side is not None and name in ontology().sites:
            found.append((m.start(), name))
    return [name for _, name in sorted(found)], rest


def _side(rest: str, sites: list[str]) -> Side | None:
    rest = re.sub(r"\b(?:shift(?:ed)?|deviat\w+|displac\w+)(?: \w+){0,3} to the (?:left|right)", " ", rest)
    if _BOTH.search(rest):
        return "both"
    sides = {m.group(1) for m in re.finditer(r"\b(left|right)(?:-sided)?\b(?! (?:coronary|atri|ventric|heart|hilar node))", rest)}
    if not sides:
        sides = {side for s in sites if (side := Ontology.site_side(s))}
    elif len(sides) == 1:
        sides |= {side for s in sites if (side := Ontology.site_side(s))}
    if len(sides) == 2:
        return "both"
    return None if not sides else "left" if "left" in sides else "right"


def _level(near: str) -> str | None:
    m = VERTEBRA.search(near)
    if m is None:
        return None
    region = m.group(1) or m.group(4) or m.group(5)
    number = m.group(2) or m.group(3) or m.group(6)
    level = f"{region[0].upper()}{int(number)}"
    return level if level in ontology().sites else None


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _size_mm(near: str) -> float | None:
    """Largest size in mm; earlier sizes ("previously 8 mm") and slice thicknesses do not count."""
    near = PRIOR_SIZE.sub(" ", near)
    sizes = []
    for m in SIZE.finditer(near):
        if re.match(r"[\s-]*(?:thick|slice|section|collimation|interval)", near[m.end() :]):
            continue
        factor = 10.0 if m.group(4).startswith("c") else 1.0
        sizes.append(max(_number(g) for g in m.groups()[:3] if g) * factor)
    return round(max(sizes), 3) if sizes else None


def _value(quantity: str, near: str, size_mm: float | None) -> float | None:
    if quantity == "cardiothoracic_ratio":
        m = RATIO.search(near)
        if m is None:
            return None
        text = m.group(1)
        return _number(text.rstrip(" %")) / 100 if text.endswith("%") else _number(text)
    if quantity == "liver_minus_spleen_hu":
        m = HOUNSFIELD.search(near)
        if m is None or not re.search(r"below|lower|less|spleen", near[m.end() :]):
            return None
        return -abs(_number(m.group(1)))
    if quantity in ("lung_fraction", "height_loss_fraction"):
        m = PERCENT.search(near)
        return _number(m.group(1)) / 100 if m else None
    return size_mm if quantity in ("craniocaudal_length_mm", "aortic_diameter_mm") else None


def _count(words: str, region: tuple[int, int], span: tuple[int, int]) -> int | None:
    """A number word up to four words before the finding, or in front of it inside its own words; 1 for "single"."""
    before = words[region[0] : span[1]]
    tail = before[: span[0] - region[0]]
    start = max(0, len(tail) - 48)
    best = None
    for m in COUNT.finditer(before, start):
        between = before[m.end() : max(span[0] - region[0], m.end())]
        if re.search(r"\b(?:in|of|the|with|measuring|at|than|segment|lobe|grade|type|image|series)\b|[,;]", between):
            continue
        if _NOT_A_COUNT.search(before[: m.start()]):
            continue
        best = m.group(1)
    if best is None:
        return None
    if best in ("single", "solitary"):
        return 1
    return NUMBER_WORDS.get(best) or (int(best) if best.isdigit() else None)


def _severity(near: str) -> Severity | None:
    m = lexicon().grade.search(_NOT_A_GRADE.sub(" ", near))
    return lexicon().grades[m.group(1)] if m else None
