"""Which scans and cases a folder holds, and how each becomes an item of a retrieval index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from VelvetMedLib import ct
from VelvetMedLib.case import Case, measure, read_case
from VelvetMedLib.errors import ScanError, UsageError, VelvetMedError
from VelvetMedLib.reports import ontology, parse_report
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.analysis import case_encoding
from VelvetMedLib.tasks.crop import stages_of
from VelvetMedLib.tasks.encoder import encode
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.findings import find
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.retrieval import Hit, Index, Item, build_index
from VelvetMedLib.tasks.thumbnails import thumbnail

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

SCAN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr")
STAGES = {"prepare": 0.25, "fine": 0.6, "tokens": 0.1, "global": 0.03, "reader": 0.02}
"""Share of the time of one scan."""
REPORT_ENDINGS = (".txt", ".md")
REPORT_IN_FOLDER = "report.txt"
_LONGEST_REPORT_BYTES = 1 << 20


@dataclass(frozen=True)
class Indexed:
    """What became of a folder: how many cases were indexed, and why others were not (by their place in the sorted folder)."""

    count: int
    skipped: tuple[str, ...]


def entries(folder: Path) -> list[Path]:
    """Cases, scan files and DICOM folders directly inside a folder, sorted by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            "The folder to index cannot be read.",
            found="no such folder",
            expected="a folder of Case folders or scans",
            next_step="Check the folder and try again.",
        )
    found = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    return [p for p in found if p.is_dir() or p.name.lower().endswith(SCAN_ENDINGS)]


def index_folder(
    folder: Path | str,
    out: Path | str,
    bundle: Bundle,
    *,
    keep_text: bool = False,
    keep_places: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Indexed:
    """Index every Case and scan of a folder. One that cannot be read is skipped and named by its place; the rest go in.

    A report beside a scan (same name ending in .txt or .md; `report.txt` inside a folder) gives the scan's findings instead of
    the model. Of its text nothing is kept: reports carry names. keep_text concerns the drafts of Cases alone.
    """
    found = [p for p in entries(Path(folder)) if p.resolve() != Path(out).resolve()]
    skipped: list[str] = []

    def run_of(place: int) -> Run:
        """Each scan moves the bar by its share of the folder, however many stages its own encoding has."""

        def report(fraction: float, stage: str, seconds_left: float | None) -> None:
            if progress is not None:
                progress((place - 1 + fraction) / len(found), f"scan {place} of {len(found)}", None)

        return Run(report, cancel, stages_of(bundle, STAGES))

    def items() -> Iterator[Item]:
        for place, path in enumerate(found, start=1):
            run = run_of(place)
            run.check()
            try:
                yield item_of(path, place, bundle, run)
            except VelvetMedError as error:
                if error.code == "cancelled":
                    raise
                skipped.append(f"entry {place}: {error.what}")

    count = build_index(items(), out, bundle.encoding_key, keep_text=keep_text, keep_places=keep_places)
    return Indexed(count, tuple(skipped))


def item_of(path: Path, place: int, bundle: Bundle, run: Run) -> Item:
    """The index item of a Case folder or a scan."""
    if (path / "case.json").is_file():
        case = read_case(path)
        encoding = case_encoding(path, bundle) or _encode_case_image(path, case, bundle, run)
        text = " ".join(s.text for section in (case.report.sections if case.report else ()) for s in section.sentences if not s.rejected)
        name, volume, findings, text_or_none = case.id, case.input.sha256, case.findings, text
    else:
        scan = path / "ct.nii.gz" if (path / "ct.nii.gz").is_file() else path
        encoding = encode(ct.read(scan), bundle, run=run)
        name, volume, findings, text_or_none = f"entry-{place:04d}", encoding.volume_sha256, find(encoding, bundle), None
    reported = reported_findings(path)
    strongest = max((f for f in findings if f.state == "present"), key=lambda f: f.probability or 0.0, default=None)
    at = strongest.link.center_ras_mm if strongest is not None and strongest.link is not None else None
    return Item(
        id=name,
        volume_sha256=volume,
        study=encoding.study_vector,
        present=tuple(f.name for f in findings if f.state == "present") if reported is None else reported,
        text=text_or_none,
        source="model" if reported is None else "report",
        thumbnail=thumbnail(encoding.need_fine(), at) if encoding.crop is None else encoding.crop.picture,
        centers=organ_centers(encoding) if encoding.crop is None else {},
        place=str(path.resolve()),
    )


def organ_centers(encoding: Encoding) -> dict[str, Triple]:
    """Centre in RAS mm of every organ that lies wholly in view: what two scans can be laid over each other by."""
    evidence = Evidence(encoding.need_fine(), (0.5,) * len(ontology().lesions))
    names = [s.name for s in ontology().structures if evidence.volume_ml(s.name) > 0 and not evidence.truncated(s.name)]
    centers = {name: measure.centroid_ras(evidence.mask(name), encoding.need_fine().grid) for name in names}
    return {name: center for name, center in centers.items() if center is not None}


def reported_findings(path: Path) -> tuple[str, ...] | None:
    """Findings that a report beside a scan calls present; None where there is no report or it speaks of none that we know."""
    if path.is_dir():
        candidates = [path / REPORT_IN_FOLDER]
    else:
        ending = next((e for e in SCAN_ENDINGS if path.name.lower().endswith(e)), path.suffix)
        stem = path.name[: len(path.name) - len(ending)]
        candidates = [path.with_name(stem + e) for e in REPORT_ENDINGS]
    report = next((c for c in candidates if c.is_file() and c.stat().st_size <= _LONGEST_REPORT_BYTES), None)
    if report is None:
        return None
    said = [r for r in parse_report(report.read_text(encoding="utf-8", errors="replace")) if r.state != "not_assessed"]
    return tuple(dict.fromkeys(r.name for r in said if r.state == "present")) if said else None


def _encode_case_image(path: Path, case: Case, bundle: Bundle, run: Run) -> Encoding:
    image = path / "ct.nii.gz"
    if not image.is_file():
        raise ScanError(
            "The case holds neither its encoding nor its image.",
            found="no encoding.safetensors and no ct.nii.gz",
            expected="at least one of the two",
            next_step="Run 'velvetmed analyze' on the scan again.",
        )
    return encode(ct.read(image), bundle, run=run)


def search(
    index: Path | str,
    bundle: Bundle,
    *,
    text: str | None = None,
    volume: ct.Volume | None = None,
    case: Path | str | None = None,
    count: int = 5,
    exclude_sha256: str | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> list[Hit]:
    """The cases of an index most similar to a text, a volume or a Case: exactly one of the three.

    exclude_sha256: the query's own scan as it was indexed, where its voxels have since been stored in another order.
    """
    if sum(query is not None for query in (text, volume, case)) != 1:
        raise UsageError(
            "A search needs one query.",
            found="none or several",
            expected="a text, a volume or a case",
            next_step="Give exactly one of --text, --volume and --case.",
        )
    opened = Index(index, bundle)
    run = Run(progress, cancel, stages_of(bundle, STAGES))
    if text is not None:
        return opened.by_text(text, bundle, count=count)
    if case is not None:
        encoding = case_encoding(case, bundle, required=True)
        assert encoding is not None
        present = [f.name for f in read_case(Path(case)).findings if f.state == "present"]
    else:
        assert volume is not None
        encoding = encode(volume, bundle, run=run)
        present = [f.name for f in find(encoding, bundle) if f.state == "present"]
    own = exclude_sha256 or encoding.volume_sha256
    return opened.by_vector(encoding.study_vector, count=count, present=present, exclude_volume=own)
