"""How true a written report is: its sentences, parsed back into findings, against the records of the scan.

Scored are findings that the record calls present or absent; one that the record is unsure of or could not see can be
neither hit nor missed. A finding that the report does not name is not called present.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from VelvetMedLib.evaluation.bootstrap import Measure, ratio
from VelvetMedLib.reports import FindingRecord, is_irrelevant, ontology, parse_report, parse_sentence, split_sections, split_sentences

SIZE_TOLERANCE_MM = 2.0
SIZE_TOLERANCE_SHARE = 0.2
"""A size is right within 2 mm or a fifth of the true size, whichever is more."""
ALL_NORMAL = [FindingRecord(name=name, state="absent") for name in ontology().finding_names]
"""What a report says that denies every finding."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """hits: what is both said and true. said: what the reports affirm. truth: what the records hold."""

    hits: int = 0
    said: int = 0
    truth: int = 0

    @property
    def precision(self) -> float | None:
        """None where nothing was said."""
        return self.hits / self.said if self.said else None

    @property
    def recall(self) -> float | None:
        """None where nothing is true."""
        return self.hits / self.truth if self.truth else None

    @property
    def f1(self) -> float | None:
        """None where nothing is said and nothing is true; 0 where nothing is said of something true."""
        return 2 * self.hits / (self.said + self.truth) if self.said + self.truth else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True, kw_only=True)
class ReportCounts:
    """What can be counted in one report; counts of several reports are added up.

    said, truth, hits: findings affirmed, present, both. hits_side, hits_size: hits whose side (size) is right, or has none to be
    right. sided, sized: hits whose record has a side (size); side_right, size_right: those of them that the report gives rightly.
    known: findings that the record calls present or absent; right: those whose state the report gives.
    statements: known findings that the report affirms or denies; opposite: those where the record holds the opposite, a left for
    a right included. itself: findings that one sentence affirms and another denies.
    normal: 1 for a record without any present or uncertain finding; invented: findings affirmed on such a record.
    """

    said: int = 0
    truth: int = 0
    hits: int = 0
    hits_side: int = 0
    hits_size: int = 0
    sided: int = 0
    side_right: int = 0
    sized: int = 0
    size_right: int = 0
    known: int = 0
    right: int = 0
    statements: int = 0
    opposite: int = 0
    itself: int = 0
    normal: int = 0
    invented: int = 0

    def __add__(self, other: ReportCounts) -> ReportCounts:
        return ReportCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class ReportScore:
    """Figures over all reports, micro-averaged. by_finding: presence of each finding of the ontology, in its order."""

    reports: int
    counts: ReportCounts
    by_finding: Mapping[str, Rates]

    @property
    def presence(self) -> Rates:
        return Rates(hits=self.counts.hits, said=self.counts.said, truth=self.counts.truth)

    @property
    def with_side(self) -> Rates:
        """Only a hit with the right side counts."""
        return replace(self.presence, hits=self.counts.hits_side)

    @property
    def with_size(self) -> Rates:
        """Only a hit with a size within the tolerance counts."""
        return replace(self.presence, hits=self.counts.hits_size)

    @property
    def accuracy(self) -> float | None:
        """Share of known findings whose state the report gives."""
        return _share(self.counts.right, self.counts.known)

    @property
    def contradiction_rate(self) -> float | None:
        """Share of statements that say the opposite of the record."""
        return _share(self.counts.opposite, self.counts.statements)

    @property
    def hallucinations_per_normal(self) -> float | None:
        """Findings affirmed per record without any."""
        return _share(self.counts.invented, self.counts.normal)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "reports": self.reports,
            "presence": self.presence.as_dict(),
            "with_side": self.with_side.as_dict(),
            "with_size": self.with_size.as_dict(),
            "accuracy": self.accuracy,
            "contradiction_rate": self.contradiction_rate,
            "hallucinations_per_normal": self.hallucinations_per_normal,
            "counts": asdict(self.counts),
            "by_finding": {name: rates.as_dict() for name, rates in self.by_finding.items()},
        }


def score_reports(
    texts: Sequence[str],
    records: Sequence[Sequence[FindingRecord]],
    *,
    tolerance_mm: float = SIZE_TOLERANCE_MM,
    tolerance_share: float = SIZE_TOLERANCE_SHARE,
) -> ReportScore:
    """Written reports against the records of their scans, in one order. Raises ValueError where they do not pair up."""
    said = [parse_report(text) for text in texts]
    score = score_records(said, records, tolerance_mm=tolerance_mm, tolerance_share=tolerance_share)
    return replace(score, counts=replace(score.counts, itself=sum(len(contradicted(text)) for text in texts)))


def score_records(
    said: Sequence[Sequence[FindingRecord]],
    records: Sequence[Sequence[FindingRecord]],
    *,
    tolerance_mm: float = SIZE_TOLERANCE_MM,
    tolerance_share: float = SIZE_TOLERANCE_SHARE,
) -> ReportScore:
    """What reports say, already as records. Raises ValueError where they do not pair up with the scans' records."""
    if len(said) != len(records):
        raise ValueError(f"{len(said)} reports for {len(records)} scans")
    pairs = list(zip(said, records, strict=True))
    counts = [count(a, b, tolerance_mm=tolerance_mm, tolerance_share=tolerance_share) for a, b in pairs]
    of_finding = {name: [presence_of(name, a, b) for a, b in pairs] for name in ontology().finding_names}
    by_finding = {
        name: Rates(hits=sum(s and t for s, t in calls), said=sum(s for s, _ in calls), truth=sum(t for _, t in calls))
        for name, calls in ((name, [call for call in calls if call is not None]) for name, calls in of_finding.items())
    }
    return ReportScore(reports=len(pairs), counts=sum(counts, ReportCounts()), by_finding=by_finding)


def measures(counts: Sequence[ReportCounts]) -> dict[str, Measure]:
    """The figures of `ReportScore` by name, over the counts of each report."""

    def column(name: str) -> list[int]:
        return [getattr(one, name) for one in counts]

    double = [one.said + one.truth for one in counts]
    return {
        "precision": ratio(column("hits"), column("said")),
        "recall": ratio(column("hits"), column("truth")),
        "F1": ratio([2 * n for n in column("hits")], double),
        "F1 with side": ratio([2 * n for n in column("hits_side")], double),
        "F1 with size": ratio([2 * n for n in column("hits_size")], double),
        "side right": ratio(column("side_right"), column("sided")),
        "size right": ratio(column("size_right"), column("sized")),
        "accuracy": ratio(column("right"), column("known")),
        "contradictions": ratio(column("opposite"), column("statements")),
        "contradicts itself": ratio(column("itself"), [1] * len(counts)),
        "hallucinations per normal case": ratio(column("invented"), column("normal")),
    }


def all_normal(records: Sequence[Sequence[FindingRecord]]) -> ReportScore:
    """The baseline that denies every finding on every scan."""
    return score_records([ALL_NORMAL] * len(records), records)


def count(
    said: Iterable[FindingRecord],
    truth: Iterable[FindingRecord],
    *,
    tolerance_mm: float = SIZE_TOLERANCE_MM,
    tolerance_share: float = SIZE_TOLERANCE_SHARE,
) -> ReportCounts:
    """The counts of one report, all but those of `itself`, for which the sentences are needed."""
    report, truth = {record.name: record for record in said}, list(truth)
    total = ReportCounts()
    normal = not any(record.state in ("present", "uncertain") for record in truth)
    for true in truth:
        told = report.get(true.name, FindingRecord(name=true.name, state="not_assessed"))
        affirmed = told.state == "present"
        if normal and affirmed:
            total += ReportCounts(invented=1)
        if true.state not in ("present", "absent"):
            continue
        hit = affirmed and true.state == "present"
        sided = hit and true.side is not None
        sized = hit and true.size_mm is not None and ontology().finding(true.name).sized
        side_right = sided and told.side == true.side
        size_right = sized and _close(told.size_mm, true.size_mm, tolerance_mm, tolerance_share)
        opposite = {told.state, true.state} == {"present", "absent"} or (sided and {told.side, true.side} == {"left", "right"})
        total += ReportCounts(
            said=affirmed,
            truth=true.state == "present",
            hits=hit,
            hits_side=hit and (side_right or not sided),
            hits_size=hit and (size_right or not sized),
            sided=sided,
            side_right=side_right,
            sized=sized,
            size_right=size_right,
            known=1,
            right=told.state == true.state,
            statements=told.state in ("present", "absent"),
            opposite=opposite,
        )
    return total + ReportCounts(normal=int(normal))


def presence_of(name: str, said: Iterable[FindingRecord], truth: Iterable[FindingRecord]) -> tuple[bool, bool] | None:
    """(affirmed, present) of one finding; None where the record calls it neither present nor absent."""
    true = next((record.state for record in truth if record.name == name), "not_assessed")
    if true not in ("present", "absent"):
        return None
    return any(record.name == name and record.state == "present" for record in said), true == "present"


def contradicted(text: str) -> list[str]:
    """Findings that one sentence of a report affirms and another denies at the same place, in the ontology's order."""
    said = [
        mention
        for title, body in split_sections(text)
        if not is_irrelevant(title)
        for sentence in split_sentences(body)
        for mention in parse_sentence(sentence, title)
    ]
    pairs = ((yes, no) for yes in said if yes.state == "present" for no in said if no.state == "absent")
    denied = {yes.name for yes, no in pairs if yes.name == no.name and _covers(no, yes)}
    return [name for name in ontology().finding_names if name in denied]


def _covers(denial: FindingRecord, claim: FindingRecord) -> bool:
    """Whether a denial speaks of the place of what is affirmed: "no nodule on the right" leaves one on the left, or one somewhere."""
    if denial.site is not None:
        return bool(claim.site == denial.site)
    return denial.side in (None, "both") or claim.side in (denial.side, "both")


def _close(said: float | None, true: float | None, tolerance_mm: float, tolerance_share: float) -> bool:
    # A hair wider: a size of 12 mm against 10 mm must not fail on the last bit of a division.
    return said is not None and true is not None and abs(said - true) <= max(tolerance_mm, tolerance_share * true) + 1e-9


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
