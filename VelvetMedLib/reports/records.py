"""The record of one finding: what the generator measures, what prose is written from, what tasks fill in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["present", "absent", "uncertain", "not_assessed"]
Side: TypeAlias = Literal["left", "right", "both"]
Severity: TypeAlias = Literal["mild", "moderate", "severe"]
STATES: tuple[State, ...] = ("present", "absent", "uncertain", "not_assessed")


@dataclass(frozen=True, kw_only=True)
class FindingRecord:
    """One finding of one scan, in the terms of the ontology (`reports.ontology`).

    name: finding name. state: one of `STATES`; silence is `not_assessed`, never `absent`.
    side: patient's side, None where the finding has none. site: a site name of the ontology, or a
    vertebral level such as "T12". size_mm: longest axial diameter of the largest instance.
    value: the measured quantity the state was decided on, in the ontology's unit for this finding.
    density_hu: mean HU inside. instance_ids: instances of the lesion map this finding rests on.
    """

    name: str
    state: State
    side: Side | None = None
    site: str | None = None
    size_mm: float | None = None
    count: int | None = None
    density_hu: float | None = None
    severity: Severity | None = None
    volume_ml: float | None = None
    value: float | None = None
    instance_ids: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; inverse of `from_dict`."""
        return asdict(self) | {"instance_ids": list(self.instance_ids)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FindingRecord:
        """Raises TypeError on an unknown key."""
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise TypeError(f"unknown keys in a finding record: {sorted(unknown)}")
        return cls(**{**data, "instance_ids": tuple(data.get("instance_ids", ()))})
