"""A user's own phrases: sentences of their reports, made into templates that hold no patient, kept in one JSON file.

What is taken is decided by what is known, not by what looks like a name. A sentence becomes a phrase only if
* it speaks of exactly one finding of the ontology, and of no earlier scan;
* its size, count or measured value, its side and its place can be lifted out and stand as slots, with no digit left behind;
* every word that stays is among `WORDS` or in the built-in phrases of that finding (assets/prose_phrases.json), and none of
  these is capitalised inside the sentence. A name, a date, an identifier, a hospital, another organ or a diagnosis
  ("metastasis", "pneumonia") is not, so its sentence is left out;
* filled again with what was lifted out, it reads back as what it said.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.errors import UsageError
from VelvetMedLib.files import write_json
from VelvetMedLib.reports.lexicon import COUNT, HOUNSFIELD, PERCENT, RATIO, SIZE, VERTEBRA, lexicon
from VelvetMedLib.reports.ontology import ontology
from VelvetMedLib.reports.parse import parse_sentence
from VelvetMedLib.reports.phrases import COUNT as COUNT_SLOT
from VelvetMedLib.reports.phrases import SIZE as SIZE_SLOT
from VelvetMedLib.reports.phrases import VALUE as VALUE_SLOT
from VelvetMedLib.reports.phrases import capitalise, fill_slots, phrase_book
from VelvetMedLib.reports.records import STATES, FindingRecord, State
from VelvetMedLib.reports.sentences import is_irrelevant, split_sections, split_sentences

FORMAT_VERSION = 1
SIDE_SLOT, SITE_SLOT = "{side}", "{site}"
SLOTS = frozenset((SIZE_SLOT, COUNT_SLOT, VALUE_SLOT, SIDE_SLOT, SITE_SLOT))
MOST_LETTERS = 200
MOST_BYTES = 16 << 20
_SLOT = re.compile(r"\[[A-Z]+\]|\{[a-z]+\}")
_PLAIN = re.compile(r"[A-Za-z ,.:()/'\[\]{}%-]+")
WORDS = frozenset(
    """a an the is are was were be been being there it this that these which has have had and or nor of in on at to by with without within
    into from for as also both either each any all no not none nothing seen noted present identified demonstrated demonstrates show shows
    shown showing visible visualised visualized observed detected found evident apparent appreciated depicted recognised recognized
    contains contain involving involves affecting affects located lies i we see find note there's scan ct study examination exam images
    image imaging computed tomography evidence sign signs suggestion finding findings measuring measures measured measurement
    approximately about around roughly up size sized diameter dimension dimensions largest greatest longest maximum maximal axial
    transverse long axis length side sided left-sided right-sided bilateral bilaterally lung lungs pulmonary lobe lobes hemithorax chest
    thorax thoracic upper middle lower mild mildly moderate moderately severe severely slight slightly minimal small tiny trace large
    marked markedly extensive massive limited widespread mm cm percent hu absent negative positive free clear possible possibly potential
    questionable question may might could can cannot excluded exclude ruled out uncertain indeterminate equivocal suspected suspicion
    represent represents likely probable probably assessed assessable evaluated evaluable judged covered included imaged outside beyond
    field view scan's range partially partly incompletely fully because since so but""".split()  # noqa: SIM905
)
"""Words that say nothing of one patient. Left out on purpose: whatever compares with an earlier scan ("new", "unchanged", "stable"),
names a cause or a diagnosis, recommends, or counts without a number ("multiple")."""
_WEAKENED = frozenset("likely probable probably possible possibly potential may might could suspected suspicion questionable".split())  # noqa: SIM905


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A template for a finding in one state. text: with [SIZE], [COUNT], [VALUE], {side} and {site} for what was lifted out.

    side, site, severity: what a record must have, since the words themselves say it; None where they say none. many: whether
    the words are in the plural; None where the finding cannot be counted. reports: how many reports have it.
    """

    finding: str
    state: State
    text: str
    side: str | None = None
    site: str | None = None
    severity: str | None = None
    many: bool | None = None
    reports: int = 1

    def fits(self, record: FindingRecord) -> bool:
        """Whether a record has what the words say, and the words the record's side."""
        if (self.finding, self.state) != (record.name, record.state):
            return False
        told = ((self.side, record.side), (self.site, record.site), (self.severity, record.severity))
        if any(stated is not None and stated != known for stated, known in told):
            return False
        # Both sides may be told in either number: "bilateral effusion", "effusions on both sides".
        if self.many is not None and self.many != ((record.count or 1) > 1) and (record.side != "both" or (record.count or 1) > 1):
            return False
        if SIDE_SLOT in self.text and record.side not in ("left", "right"):
            return False
        if SITE_SLOT in self.text and (record.side == "both" or record.site is None):
            return False
        # Words that pass over a side that was found say less than the built-in ones.
        sided = self.side is not None or self.site is not None or SIDE_SLOT in self.text or SITE_SLOT in self.text
        return sided or record.side is None or record.state not in ("present", "uncertain")

    def worded(self, record: FindingRecord) -> str:
        """The template for a record that it fits; numbers stay slots."""
        site = "" if record.site is None else ontology().site_display(record.site)
        return capitalise(self.text.replace(SIDE_SLOT, str(record.side)).replace(SITE_SLOT, site))

    @property
    def told(self) -> int:
        """How many attributes the words give."""
        return len(_SLOT.findall(self.text)) + sum(said is not None for said in (self.side, self.site, self.severity))


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """All phrases of a collection of reports. sentences: how many were looked at."""

    phrases: tuple[Phrase, ...]
    reports: int
    sentences: int

    @property
    def sha256(self) -> str:
        """Of the phrases: two collections with the same digest word every finding alike."""
        return hashlib.sha256(json.dumps([asdict(phrase) for phrase in self.phrases], sort_keys=True).encode()).hexdigest()

    def best(self, record: FindingRecord) -> Phrase | None:
        """The phrase that tells most of a record, of those the one in most reports. The same record always gets the same."""
        fitting = [p for p in self.phrases if p.fits(record)]
        return min(fitting, key=lambda p: (-p.told, -p.reports, p.text), default=None)


def harvest(reports: Iterable[str]) -> Phrases:
    """The phrases of plain-text reports. Sections on technique, comparison and indication are not read."""
    counts: Counter[Phrase] = Counter()
    read = sentences = 0
    for text in reports:
        here: set[Phrase] = set()
        for title, body in split_sections(text):
            if is_irrelevant(title):
                continue
            for sentence in split_sentences(body):
                sentences += 1
                if (phrase := phrase_of(sentence, title)) is not None:
                    here.add(phrase)
        counts.update(here)
        read += 1
    kept = [replace(phrase, reports=count) for phrase, count in counts.items()]
    kept.sort(key=lambda p: (p.finding, STATES.index(p.state), -p.reports, p.text, p.many is True))
    return Phrases(phrases=tuple(kept), reports=read, sentences=sentences)


def phrase_of(sentence: str, section: str = "") -> Phrase | None:
    """The phrase in a sentence, None where it may not be taken. section: its heading, as for `parse_sentence`."""
    text = re.sub(r"\s+", " ", sentence).strip().rstrip(".")
    if text.isupper():
        text = text.lower()
    said = parse_sentence(text, section)
    if len(said) != 1 or len(text) > MOST_LETTERS:
        return None
    record = said[0]
    lifted = _lifted(text, record)
    if lifted is None or not _known_words(lifted, record):
        return None
    side, site = (slot in lifted for slot in (SIDE_SLOT, SITE_SLOT))
    phrase = Phrase(
        finding=record.name,
        state=record.state,
        text=capitalise(lifted) + ".",
        side=None if side or site else record.side,
        site=None if site else record.site,
        severity=record.severity,
        many=_plural(lifted, record),
    )
    if not phrase.fits(record):
        return None
    again = parse_sentence(fill_slots(phrase.worded(record), record), section)
    return phrase if again == [replace(record, value=again[0].value if again else None)] else None


def _lifted(text: str, record: FindingRecord) -> str | None:
    """The sentence with numbers, side and place as slots; None where one is there twice or cannot be lifted."""
    if record.state in ("absent", "not_assessed") and (record.side is not None or record.site is not None):
        return None  # Denied here, it may be there elsewhere.
    quantity = ontology().finding(record.name).measure.quantity
    for pattern, slot, there in (
        (RATIO, VALUE_SLOT, quantity == "cardiothoracic_ratio" and record.value is not None),
        (HOUNSFIELD, VALUE_SLOT, quantity == "liver_minus_spleen_hu" and record.value is not None),
        (PERCENT, VALUE_SLOT, quantity in ("lung_fraction", "height_loss_fraction") and record.value is not None),
        (SIZE, VALUE_SLOT, quantity == "craniocaudal_length_mm" and record.value is not None),
        (SIZE, SIZE_SLOT, record.size_mm is not None),
        (COUNT, COUNT_SLOT, record.count is not None and record.count > 1),
        (VERTEBRA, SITE_SLOT, record.name == "vertebral_compression" and record.site is not None),
    ):
        if not there or slot in text:
            continue
        found = list(re.finditer(pattern.pattern, text, re.IGNORECASE))
        if len(found) != 1:
            return None
        start, end = found[0].span(1) if pattern in (RATIO, COUNT) else found[0].span()
        text = text[:start] + slot + text[end:]
    for pattern, name in lexicon().sites:
        if name == record.site and SITE_SLOT not in text:
            found = list(re.finditer(pattern.pattern, text, re.IGNORECASE))
            if len(found) == 1:
                text = text[: found[0].start()] + SITE_SLOT + text[found[0].end() :]
    sides = list(re.finditer(r"\b(?:left|right)\b", text, re.IGNORECASE))
    if len(sides) == 1 and record.side in ("left", "right") and SITE_SLOT not in text:
        text = text[: sides[0].start()] + SIDE_SLOT + text[sides[0].end() :]
        sides = []
    # A side that is not the finding's own, or one that the parser did not take for its, must not be said of another patient.
    return None if sides or re.search(r"\d", text) else text


def _known_words(text: str, record: FindingRecord) -> bool:
    """Whether every word left is one that says nothing of the patient beyond the finding."""
    if _PLAIN.fullmatch(text) is None or not set(_SLOT.findall(text)) <= SLOTS:
        return False
    words = re.findall(r"[A-Za-z]+(?:[-'][A-Za-z]+)*", _SLOT.sub(" ", text))
    capitals = [w for w in words[1:] if w != w.lower() and w not in ("CT", "HU", "I")]
    lower = {w.lower() for w in words}
    if capitals or not lower <= WORDS | own_words(record.name):
        return False
    if record.state == "present" and lower & _WEAKENED:
        return False
    # "No large effusion" leaves room for a small one.
    return record.state in ("present", "uncertain") or not lower & set(lexicon().grades)


@lru_cache(maxsize=64)
def own_words(finding: str) -> frozenset[str]:
    """Words of the built-in phrases of a finding."""
    spec: dict[str, Any] = phrase_book()["findings"][finding]
    texts = " ".join(_texts(spec))
    return frozenset(re.findall(r"[a-z]+(?:[-'][a-z]+)*", re.sub(r"\[[A-Z]+\]|\{\w+\??\}", " ", texts).lower()))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _plural(text: str, record: FindingRecord) -> bool | None:
    """None for a finding that is not counted, or whose words give no number away."""
    pairs = phrase_book()["findings"][record.name]
    both = [(set(one.split()), set(many.split())) for one, many in (*pairs["nouns"], *pairs["held_out_nouns"]) if many is not None]
    singulars, plurals = (set().union(*sets) for sets in ([one - many for one, many in both], [many - one for one, many in both]))
    words = set(re.findall(r"[a-z]+", text.lower()))
    if record.state not in ("present", "uncertain") or not words & (plurals | singulars):
        return None
    return bool(words & plurals)


def write_phrases(path: Path, phrases: Phrases) -> None:
    """All or nothing."""
    facts = {"format_version": FORMAT_VERSION, "notice": RESEARCH_USE_ONLY, "reports": phrases.reports, "sentences": phrases.sentences}
    write_json(path, facts | {"phrases": [asdict(phrase) for phrase in phrases.phrases]})


def read_phrases(path: Path) -> Phrases:
    """Raises UsageError where the file is none, or a phrase in it is not one that `harvest` would take."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError("another format version")
        made = tuple(Phrase(**entry) for entry in data["phrases"])
        if unknown := [p for p in made if not _sound(p)]:
            raise ValueError(f"a phrase for {unknown[0].finding} with words that are not known")
        return Phrases(phrases=made, reports=int(data["reports"]), sentences=int(data["sentences"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "The file of phrases cannot be used.",
            found=str(error) if type(error) is ValueError else type(error).__name__,
            expected=f"a file that 'velvetmed phrases' wrote, format version {FORMAT_VERSION}",
            next_step="Make it again with 'velvetmed phrases'.",
        ) from None


def _sound(phrase: Phrase) -> bool:
    """The same word check as of a sentence: a file may have been edited by hand."""
    record = FindingRecord(name=phrase.finding, state=phrase.state)
    known: Sequence[str] = ontology().finding_names
    return phrase.finding in known and phrase.state in STATES and _known_words(phrase.text, record) and not re.search(r"\d", phrase.text)
