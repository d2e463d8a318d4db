"""From a finding record to the parts of a sentence: noun phrase, place, grade, numbers as slots, and the words that fill them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from VelvetMedLib.reports.ontology import Finding, ontology
from VelvetMedLib.reports.records import FindingRecord

SIZE, COUNT, VALUE = "[SIZE]", "[COUNT]", "[VALUE]"
_COUNT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_ADVERBS = {"mild": "mildly", "moderate": "moderately", "severe": "severely"}


@lru_cache(maxsize=1)
def phrase_book() -> dict[str, Any]:
    """The shipped wordings (assets/prose_phrases.json), read once."""
    book: dict[str, Any] = json.loads(files("VelvetMedLib").joinpath("assets", "prose_phrases.json").read_text(encoding="utf-8"))
    return book


@dataclass
class Parts:
    """What a template may use. An entry that is missing makes every template that needs it unfit for the record.

    said: per part, the record's attributes that the part puts into words.
    """

    words: dict[str, str] = field(default_factory=dict)
    said: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, name: str, text: str, *attributes: str) -> None:
        self.words[name] = text
        self.said[name] = attributes


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, evenly."""
    return options[int(rng.integers(len(options)))]


def nouns_of(name: str, held_out: bool) -> list[list[str | None]]:
    """Singular and plural (None: a mass noun) for a finding, ordinary or held out for testing."""
    spec = phrase_book()["findings"][name]
    result: list[list[str | None]] = spec["held_out_nouns"] if held_out else spec["nouns"]
    return result


def build_parts(record: FindingRecord, rng: np.random.Generator, *, held_out: bool, short_sites: bool) -> Parts:
    """Everything the templates of this record can draw on. Numbers stay slots here; `fill_slots` writes them."""
    finding = ontology().finding(record.name)
    spec = phrase_book()["findings"][record.name]
    parts = Parts()
    one, many = choose(rng, nouns_of(record.name, held_out))
    assert one is not None
    singular = many is None or rng.random() < 0.5
    parts.add("neg", one if singular or many is None else many)
    parts.add("neg_be", "is" if singular else "are")
    parts.add("negp", many or one)
    parts.add("negp_be", "is" if many is None else "are")
    organ, organ_be = spec["organ"]
    parts.add("organ", organ)
    parts.add("organ_be", organ_be)
    if record.state in ("absent", "not_assessed"):
        return parts
    grade = None
    if spec["grade"] and record.severity and record.state == "present":
        grade = choose(rng, phrase_book()["grades"][spec["grade"]][record.severity])
        parts.add("sev", grade, "severity")
        parts.add("sevly", _ADVERBS[record.severity], "severity")
    if finding.sized and record.size_mm is not None:
        parts.add("size", "", "size_mm")
    if record.value is not None and value_text(record) is not None:
        parts.add("value", "", "value")
    site = record.site if record.site in finding.sites else None
    if site and not (finding.sided and record.side == "both"):
        parts.add("site", _site_words(site, short_sites), "site", *(("side",) if finding.sided else ()))
    if record.site and spec["place"] == "spine":
        parts.add("level", record.site, "site")
    if spec["place"] == "kidney" and record.side in ("left", "right"):
        parts.add("kidney", f"{record.side} kidney", "side")
    _noun_phrase(parts, record, finding, spec["place"], one, many, grade, rng, short_sites)
    return parts


def _noun_phrase(
    parts: Parts,
    record: FindingRecord,
    finding: Finding,
    where: str,
    one: str,
    many: str | None,
    grade: str | None,
    rng: np.random.Generator,
    short_sites: bool,
) -> None:
    count = record.count if finding.countable and many is not None else None
    plural = many is not None and ((count or 1) > 1 or (record.side == "both" and where != "none"))
    said: list[str] = []
    head: list[str] = []
    if plural and (count or 0) > 1:
        head.append(COUNT)
        said.append("count")
    elif many is not None and not plural:
        if count == 1 and rng.random() < 0.15:
            head.append("a single")
            said.append("count")
        else:
            head.append("a")
    if grade and rng.random() < 0.85:
        head.append(grade)
        said.append("severity")
    tail = ""
    has_size = "size" in parts.words
    if has_size and rng.random() < 0.85:
        said.append("size_mm")
        if plural:
            tail = choose(rng, (f", the largest measuring {SIZE}", f" up to {SIZE}", f" measuring up to {SIZE}"))
        elif many is None:
            tail = f" up to {SIZE}"
        elif rng.random() < 0.6:
            head.append(SIZE)
        else:
            tail = choose(rng, (f" of {SIZE}", f" measuring {SIZE}", f", {SIZE}"))
    in_lung = record.name in ("lung_nodule", "lung_mass")
    if in_lung and record.density_hu is not None and rng.random() < 0.25:
        head.append("solid" if record.density_hu > -200 else "subsolid")
    place, place_said, adjective = _place(record, finding, where, rng, short_sites)
    noun = many if plural else one
    if adjective and place == "" and "[" not in adjective:
        said.append("side")
        middle = [adjective]
    else:
        middle = []
    core = " ".join([*head, *middle, str(noun)])
    core = re.sub(r"\ba (?=[aeiouAEIO])", "an ", core)
    # A list of sizes behind a comma would tear noun and place apart: the place moves in front of it.
    if tail.startswith(",") and place:
        core, place, tail, place_said_in_np = core + place + tail, "", "", place_said
    else:
        core, place_said_in_np = core + tail, ()
    parts.add("np", core, *said, *place_said_in_np)
    parts.add("np_plain", re.sub(r"\b(?:left-sided|right-sided|left|right|bilateral) ", "", core), *(s for s in said if s != "side"))
    parts.add("bare", re.sub(r"^an? ", "", core), *said, *place_said_in_np)
    parts.add("be", "are" if plural else "is")
    parts.add("place", place, *(place_said if place else ()))
    if place:
        front = place.strip()
        parts.add("front", front, *place_said)
    if tail == "" and "size_mm" in said and place_said_in_np:
        parts.words.pop("front", None)


def _place(
    record: FindingRecord, finding: Finding, where: str, rng: np.random.Generator, short_sites: bool
) -> tuple[str, tuple[str, ...], str]:
    """(" in the right upper lobe", attributes said, side adjective where the side goes before the noun instead)."""
    site = record.site if record.site in finding.sites else None
    side = record.side if finding.sided else None
    if where == "lung":
        if side == "both":
            both = choose(rng, (" in both lungs", " bilaterally"))
            if site and rng.random() < 0.5:
                return f"{both}, most pronounced in the {_site_words(site, short_sites)}", ("side", "site"), ""
            return both, ("side",), ""
        if site and rng.random() < 0.92:
            words = _site_words(site, short_sites)
            return choose(rng, (f" in the {words}", f" in the {words}", f" within the {words}")), ("site", "side"), ""
        if side:
            return f" in the {side} lung", ("side",), ""
    if where == "pleura" and side:
        if side == "both":
            return choose(rng, (("", (), "bilateral"), (" on both sides", ("side",), ""), (" bilaterally", ("side",), "")))
        return choose(rng, (("", (), side), ("", (), side), ("", (), f"{side}-sided"), (f" on the {side}", ("side",), "")))
    if where == "kidney" and side:
        if side == "both":
            return choose(rng, (("", (), "bilateral"), (" in both kidneys", ("side",), "")))
        return choose(rng, (("", (), side), (f" in the {side} kidney", ("side",), ""), (f" in the {side} kidney", ("side",), "")))
    if where == "spine" and record.site:
        return choose(rng, (f" of {record.site}", f" at {record.site}")), ("site",), ""
    if where == "liver" and rng.random() < 0.3:
        return " in the liver", (), ""
    return "", (), ""


def _site_words(site: str, short: bool) -> str:
    words = ontology().site_display(site)
    return str(phrase_book()["abbreviations"].get(words, words)) if short else words


def render_template(template: str, parts: Parts, rng: np.random.Generator) -> tuple[str, tuple[str, ...]] | None:
    """Slotted sentence and the attributes it states; None where the template needs a part that the record lacks.

    "{name?}" is left out where missing, and otherwise by chance.
    """
    said: list[str] = []
    text = template
    for token in re.findall(r"\{(\w+\??)\}", template):
        name = token.rstrip("?")
        optional = token.endswith("?")
        if name not in parts.words:
            if not optional:
                return None
            text = text.replace("{" + token + "}", "")
            continue
        if optional and rng.random() < 0.25:
            text = text.replace("{" + token + "}", "")
            continue
        said += parts.said[name]
        text = text.replace("{" + token + "}", parts.words[name])
    # A noun phrase that ends in ", the largest measuring [SIZE]" can only end the sentence.
    if (
        "{np}" in template
        and f", the largest measuring {SIZE}" in parts.words.get("np", "")
        and not re.search(r"\{np\}(\{place\})?\.$", template)
    ):
        return None
    # The same size twice in one sentence is a slip of the template, not of the record.
    if text.count(SIZE) > 1:
        return None
    text = re.sub(r"\s+", " ", text).replace(" ,", ",").replace(" .", ".").strip()
    return capitalise(text), tuple(dict.fromkeys(said))


def capitalise(text: str) -> str:
    """First letter upper-case; a leading slot is written in upper case when it is filled."""
    return text[:1].upper() + text[1:]


def size_text(size_mm: float, rng: np.random.Generator | None = None) -> str:
    """ "14 mm", or now and then "1.4 cm" for 10 mm and more. Whole millimetres, as reports round."""
    whole = max(1, round(size_mm))
    if rng is not None and whole >= 10 and rng.random() < 0.3:
        return f"{whole / 10:.1f} cm"
    return f"{whole} mm"


def value_text(record: FindingRecord) -> str | None:
    """The measured value as its finding's sentences write it; None for findings whose value is not put into words."""
    if record.value is None:
        return None
    quantity = ontology().finding(record.name).measure.quantity
    if quantity == "cardiothoracic_ratio":
        return f"{record.value:.2f}"
    if quantity == "liver_minus_spleen_hu" and record.value < 0:
        return f"{-record.value:.0f} HU"
    if quantity == "craniocaudal_length_mm":
        return f"{record.value:.0f} mm"
    if quantity in ("lung_fraction", "height_loss_fraction"):
        return f"{100 * record.value:.0f} %"
    return None


def fill_slots(slotted: str, record: FindingRecord | None, *, rng: np.random.Generator | None = None) -> str:
    """Numbers of the record into a slotted sentence. A slot whose number the record lacks becomes words without a number.

    rng: lets sizes come in cm too. Articles agree with the number that follows ("an 8 mm nodule").
    """
    size = size_text(record.size_mm, rng) if record is not None and record.size_mm is not None else "unmeasured size"
    value = (value_text(record) if record is not None else None) or "an unmeasured amount"
    count = "several"
    if record is not None and record.count is not None:
        count = _COUNT_WORDS[record.count] if 0 <= record.count < len(_COUNT_WORDS) else str(record.count)
    if record is None or record.size_mm is None:
        # "a [SIZE] nodule" reads "a nodule", and "measuring [SIZE]" needs some noun.
        slotted = re.sub(r"\b([Aa]) \[SIZE\] ", r"\1 ", slotted)
    text = slotted.replace(SIZE, size).replace(COUNT, count).replace(VALUE, value)
    text = re.sub(r"\b([Aa]) (?=(?:8|11|18)(?:\D|$)|8\d(?:\D|$))", r"\1n ", text)
    return capitalise(text) if slotted.startswith("[") else text
