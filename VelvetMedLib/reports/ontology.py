"""The dictionary of the product: structures, lesion channels, findings, their codes, places and thresholds (assets/ontology.json)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any, Literal

from VelvetMedLib.reports.records import Severity, Side, State

LUNG_LOBES: tuple[str, ...] = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)
VERTEBRAL_LEVELS: tuple[str, ...] = tuple(f"T{n}" for n in range(1, 13)) + tuple(f"L{n}" for n in range(1, 6))
"""Places of a vertebral fracture, written as the record's site."""
FIRST_LESION_LABEL = 101
"""Label of lesion channel 0 in the shared label map."""
_SITE_SIDES: dict[str, Side] = {name: "left" if name.endswith("_left") else "right" for name in LUNG_LOBES}
_SITE_DISPLAYS = {
    "ascending_aorta": "ascending aorta",
    "aortic_arch": "aortic arch",
    "descending_thoracic_aorta": "descending thoracic aorta",
    "abdominal_aorta": "abdominal aorta",
}


@dataclass(frozen=True)
class Code:
    """A coded concept. `value` is empty where no code is known for certain; then it must not be exported as coded."""

    scheme: str
    value: str
    meaning: str

    def as_dict(self) -> dict[str, str]:
        """JSON-ready; inverse of `Code(**data)`."""
        return {"scheme": self.scheme, "value": self.value, "meaning": self.meaning}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """An organ class of the `fine` view. source_ids: ids of the sample scan's mask that it merges."""

    label: int
    name: str
    display: str
    source_ids: tuple[int, ...]
    side: Side | None
    region: Literal["chest", "abdomen", "both"]
    color: tuple[int, int, int]
    code: Code
    category: Code


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A lesion channel of the `fine` view; `channel` is its index in the lesion head."""

    label: int
    name: str
    display: str
    color: tuple[int, int, int]
    code: Code
    category: Code

    @property
    def channel(self) -> int:
        return self.label - FIRST_LESION_LABEL


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The quantity that decides a finding's state, with a band of uncertainty between the two bounds.

    Higher is worse with (absent_below, present_from); lower is worse with (absent_above, present_until).
    """

    quantity: str
    unit: str
    absent_below: float | None = None
    present_from: float | None = None
    absent_above: float | None = None
    present_until: float | None = None

    def __post_init__(self) -> None:
        rising = self.absent_below is not None and self.present_from is not None
        falling = self.absent_above is not None and self.present_until is not None
        if rising == falling:
            raise ValueError(f"{self.quantity}: give either absent_below and present_from, or absent_above and present_until")

    @property
    def lower_is_worse(self) -> bool:
        return self.absent_above is not None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One of the findings that reports speak about. `requires`: structures that must be seen for it to be assessed."""

    name: str
    display: str
    section: str
    lesion: str | None
    requires: tuple[str, ...]
    measure: Measure
    sided: bool
    sites: tuple[str, ...]
    sized: bool
    countable: bool
    severity_from: Mapping[str, float] | None
    code: Code

    def state_of(self, value: float | None) -> State:
        """State for a measured value; None or NaN (not measurable) is `not_assessed`, never `absent`."""
        if value is None or math.isnan(value):
            return "not_assessed"
        m = self.measure
        if m.absent_above is not None and m.present_until is not None:
            return "absent" if value > m.absent_above else "present" if value <= m.present_until else "uncertain"
        assert m.absent_below is not None and m.present_from is not None
        return "absent" if value < m.absent_below else "present" if value >= m.present_from else "uncertain"

    def severity_of(self, value: float | None) -> Severity | None:
        """Severity for a measured value of a present finding; None where this finding is not graded."""
        if self.severity_from is None or value is None or math.isnan(value):
            return None
        sign = -1.0 if self.measure.lower_is_worse else 1.0
        if sign * value >= sign * self.severity_from["severe"]:
            return "severe"
        return "moderate" if sign * value >= sign * self.severity_from["moderate"] else "mild"


@dataclass(frozen=True, kw_only=True)
class Ontology:
    """All tables. The order of `structures`, `lesions` and `findings` is the channel order of the heads."""

    version: int
    states: tuple[State, ...]
    sections: tuple[str, ...]
    structures: tuple[Structure, ...]
    lesions: tuple[Lesion, ...]
    findings: tuple[Finding, ...]

    @cached_property
    def _structures(self) -> dict[str, Structure]:
        return {s.name: s for s in self.structures}

    @cached_property
    def _lesions(self) -> dict[str, Lesion]:
        return {x.name: x for x in self.lesions}

    @cached_property
    def _findings(self) -> dict[str, Finding]:
        return {f.name: f for f in self.findings}

    @cached_property
    def _labels(self) -> dict[int, Structure | Lesion]:
        entries: list[Structure | Lesion] = [*self.structures, *self.lesions]
        return {entry.label: entry for entry in entries}

    def structure(self, name: str) -> Structure:
        """Raises KeyError on an unknown name, as the three look-ups below do."""
        return self._structures[name]

    def lesion(self, name: str) -> Lesion:
        return self._lesions[name]

    def finding(self, name: str) -> Finding:
        return self._findings[name]

    def by_label(self, label: int) -> Structure | Lesion:
        return self._labels[label]

    def counts_for(self, finding: Finding, size_mm: float) -> bool:
        """Whether a lesion of the finding's channel, of this longest axial diameter, belongs to the finding at all.

        Nodule and mass share a channel and are told apart by size: what is certainly a mass (32 mm) is reported as a mass, not
        also as a nodule. The generator's truth and the measurements on a scan both ask here. A mass is measured on all of them.
        """
        if finding.name != "lung_nodule":
            return True
        limit = self.finding("lung_mass").measure.present_from
        return limit is None or size_mm < limit

    def finding_index(self, name: str) -> int:
        """Position of a finding in the findings head."""
        return self.findings.index(self._findings[name])

    @cached_property
    def finding_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.findings)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Every place that a record's site may name, vertebral levels last."""
        named = dict.fromkeys(site for f in self.findings for site in f.sites)
        return (*named, *VERTEBRAL_LEVELS)

    def site_display(self, site: str) -> str:
        """Words for a site: 'right upper lobe', 'aortic arch', 'T12'."""
        if site in self._structures:
            return self._structures[site].display
        return _SITE_DISPLAYS.get(site, site)

    @staticmethod
    def site_side(site: str | None) -> Side | None:
        """The side that a site implies, if any."""
        return _SITE_SIDES.get(site) if site else None


def _code(data: Mapping[str, str] | None, meaning: str) -> Code:
    return Code(**data) if data else Code("SCT", "", meaning)


def build(data: Mapping[str, Any]) -> Ontology:
    """An Ontology from the parsed JSON. Raises KeyError, TypeError or ValueError where the file is inconsistent."""
    categories = {name: Code(**value) for name, value in data["categories"].items()}
    structures = tuple(
        Structure(
            **{
                **s,
                "source_ids": tuple(s["source_ids"]),
                "color": tuple(s["color"]),
                "code": _code(s.get("code"), s["display"]),
                "category": categories[s.get("category", "anatomy")],
            }
        )
        for s in data["structures"]
    )
    lesions = tuple(
        Lesion(
            **{
                **x,
                "color": tuple(x["color"]),
                "code": _code(x.get("code"), x["display"]),
                "category": categories[x.get("category", "abnormal")],
            }
        )
        for x in data["lesions"]
    )
    findings = tuple(
        Finding(
            **{
                **f,
                "requires": tuple(f["requires"]),
                "sites": tuple(f["sites"]),
                "measure": Measure(**f["measure"]),
                "code": _code(f.get("code"), f["display"]),
            }
        )
        for f in data["findings"]
    )
    result = Ontology(
        version=data["version"],
        states=tuple(data["states"]),
        sections=tuple(data["sections"]),
        structures=structures,
        lesions=lesions,
        findings=findings,
    )
    _check(result)
    return result


def _check(table: Ontology) -> None:
    names = {s.name for s in table.structures}
    channels = {x.name for x in table.lesions}
    for finding in table.findings:
        unknown = set(finding.requires) - names
        if unknown or finding.section not in table.sections or (finding.lesion is not None and finding.lesion not in channels):
            raise ValueError(f"finding {finding.name!r} names an unknown structure, section or lesion channel")
    labels = [s.label for s in table.structures] + [x.label for x in table.lesions]
    if len(set(labels)) != len(labels):
        raise ValueError("a label is used twice")


@lru_cache(maxsize=1)
def ontology() -> Ontology:
    """The shipped ontology, read once."""
    text = files("VelvetMedLib").joinpath("assets", "ontology.json").read_text(encoding="utf-8")
    return build(json.loads(text))
