"""Which scans and cases a folder holds, how each becomes an item of a retrieval index, and how a scan or a Case is searched for."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import ct
from VelvetMedLib.case import Case, measure, read_case
from VelvetMedLib.errors import ScanError, UsageError, VelvetMedError
from VelvetMedLib.reports import ontology, parse_report
from VelvetMedLib.reports.records import State
from VelvetMedLib.shapes import Triple
from VelvetMedLib.tasks.abilities import stages_of
from VelvetMedLib.tasks.analysis import case_encoding
from VelvetMedLib.tasks.encoder import encode
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.evidence import Evidence
from VelvetMedLib.tasks.findings import find
from VelvetMedLib.tasks.matching import match_tokens
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.regions import region_dimension, region_vector, region_vectors
from VelvetMedLib.tasks.retrieval import ANY_CASE, Hit, Index, check_key
from VelvetMedLib.tasks.statements import kept_row
from VelvetMedLib.tasks.store import Facts, Item, Where, create_store, is_address, open_store, refuse, store_exists
from VelvetMedLib.tasks.thumbnails import grey_png, thumbnail

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
    """What became of a folder: how many of its scans were added, how many were in the index already (a second entry of a scan among
    them), how many the index now has, and why others were left out (by their place in the sorted folder)."""

    added: int
    known: int
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
    """Add every Case and scan of a folder that is not in the index yet; the index is made with the first of them.

    Each is safe once the next begins: a cancel or a kill loses none of them, and the same call goes on. One that cannot be read is
    skipped and named by its place. out: a folder, or the address of a database.

    A report beside a scan (same name ending in .txt or .md; `report.txt` inside a folder) gives the scan's findings instead of
    the model. Of its text nothing is kept: reports carry names. keep_text concerns the drafts of Cases alone.
    keep_places: also keep where the scans are, in the private part, by which a hit can be opened.
    """
    found = [path for path in entries(Path(folder)) if is_address(out) or path.resolve() != Path(out).resolve()]
    skipped: list[str] = []
    added = known = 0

    def run_of(place: int) -> Run:
        """Each scan moves the bar by its share of the folder, however many stages its own encoding has, and if it has none."""

        def report(fraction: float, stage: str = "", seconds_left: float | None = None) -> None:
            if progress is not None:
                progress((place - 1 + fraction) / len(found), f"scan {place} of {len(found)}", None)

        report(0.0)
        return Run(report, cancel, stages_of(bundle, STAGES))

    with ExitStack() as opened:
        store = opened.enter_context(closing(open_store(out))) if store_exists(out) else None
        if store is not None:
            check_key(store, bundle)
        for place, path in enumerate(found, start=1):
            run = run_of(place)
            run.check()
            try:
                source = _Source.of(path)
                if store is not None and store.knows(source.volume_sha256):
                    known += 1
                    continue
                item = source.item(bundle, run, keep_text=keep_text, keep_place=keep_places)
            except VelvetMedError as error:
                if error.code in ("cancelled", "index", "bundle"):  # what the model cannot do, it can do for no scan
                    raise
                skipped.append(f"entry {place}: {error.what}")
                continue
            if store is None:
                facts = Facts(encoding_key=bundle.encoding_key, dimension=len(item.study), region_dimension=region_dimension(bundle))
                store = opened.enter_context(closing(create_store(out, facts)))
            added += store.add([item])
        if store is None:
            raise refuse(
                "There is nothing to index.",
                found="; ".join(skipped[:3]) or "no case and no scan",
                expected="at least one analysed case or scan that can be read",
                next_step="Check the folder, or run 'velvetmed analyze' on a scan first.",
            )
        return Indexed(added, known, len(store), tuple(skipped))


@dataclass(frozen=True, eq=False)
class _Source:
    """A Case, or a scan that was read, before it is encoded."""

    path: Path
    volume_sha256: str
    case: Case | None
    scan: ct.Volume | None

    @classmethod
    def of(cls, path: Path) -> _Source:
        if (path / "case.json").is_file():
            case = read_case(path)
            return cls(path, case.input.sha256, case, None)
        scan = ct.read(path / "ct.nii.gz" if (path / "ct.nii.gz").is_file() else path)
        return cls(path, scan.sha256(), None, scan)

    def item(self, bundle: Bundle, run: Run, *, keep_text: bool, keep_place: bool) -> Item:
        text = None
        if self.case is not None:
            encoding = case_encoding(self.path, bundle) or _encode_case_image(self.path, bundle, run)
            findings = self.case.findings
            if keep_text and self.case.report is not None:
                text = " ".join(s.text for section in self.case.report.sections for s in section.sentences if not s.rejected)
        else:
            assert self.scan is not None
            encoding = encode(self.scan, bundle, run=run)
            findings = find(encoding, bundle)
        states = reported_states(self.path)
        told = {f.name: f.state for f in findings} if states is None else states
        strongest = max((f for f in findings if f.state == "present"), key=lambda f: f.probability or 0.0, default=None)
        at = strongest.link.center_ras_mm if strongest is not None and strongest.link is not None else None
        return Item(
            volume_sha256=self.volume_sha256,
            study=kept_row(encoding, bundle, states),
            id=self.case.id if self.case is not None else None,
            present=tuple(name for name, state in told.items() if state == "present"),
            absent=tuple(name for name, state in told.items() if state == "absent"),
            source="model" if states is None else "report",
            text=text,
            picture=grey_png(_picture(encoding, at)),
            centers={} if encoding.fine is None else organ_centers(encoding),
            regions=region_vectors(encoding, bundle),
            match_tokens=match_tokens(encoding, bundle),
            place=str(self.path.resolve()) if keep_place else None,
        )


def _picture(encoding: Encoding, at_ras_mm: Triple | None) -> NDArray[np.uint8]:
    """The plane through a point where the scan's own cells are kept; else the one that was drawn when it was encoded."""
    if encoding.fine is not None:
        return thumbnail(encoding.fine, at_ras_mm)
    return encoding.need_global().need_picture() if encoding.crop is None else encoding.crop.picture


def organ_centers(encoding: Encoding) -> dict[str, Triple]:
    """Centre in RAS mm of every organ that lies wholly in view: what two scans can be laid over each other by."""
    evidence = Evidence(encoding.need_fine(), (0.5,) * len(ontology().lesions))
    names = [s.name for s in ontology().structures if evidence.volume_ml(s.name) > 0 and not evidence.truncated(s.name)]
    centers = {name: measure.centroid_ras(evidence.mask(name), encoding.need_fine().grid) for name in names}
    return {name: center for name, center in centers.items() if center is not None}


def reported_states(path: Path) -> dict[str, State] | None:
    """Finding to state, as a report beside a scan says it; None where there is no report or it speaks of none that we know."""
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
    return {r.name: r.state for r in said} or None


def _encode_case_image(path: Path, bundle: Bundle, run: Run) -> Encoding:
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
    index: Index,
    *,
    text: str | None = None,
    volume: ct.Volume | None = None,
    case: Path | str | None = None,
    count: int = 5,
    where: Where = ANY_CASE,
    region: str | None = None,
    rerank: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> list[Hit]:
    """The cases of an index most similar to a text, a volume or a Case: exactly one of the three.

    The query's own scan stays out; `where.exclude` names it by its hash where its voxels have since been stored in another order.
    region: compare this organ alone, for scans. rerank: by the bundle's match head, for texts.
    """
    if sum(query is not None for query in (text, volume, case)) != 1:
        raise UsageError(
            "A search needs one query.",
            found="none or several",
            expected="a text, a volume or a case",
            next_step="Give exactly one of --text, --volume and --case.",
        )
    if (text is None and rerank) or (text is not None and region is not None):
        raise UsageError(
            "Re-ranking is for words, and an organ for scans.",
            found="--rerank without --text" if rerank else "--region with --text",
            expected="--text with --rerank, or --volume or --case with --region",
            next_step="Leave the option out, or change the query.",
        )
    bundle = index.bundle
    if text is not None:
        return index.by_text(text, count=count, where=where, rerank=rerank)
    if case is not None:
        encoding = case_encoding(case, bundle, required=True)
        assert encoding is not None
        findings = read_case(Path(case)).findings
    else:
        assert volume is not None
        encoding = encode(volume, bundle, run=Run(progress, cancel, stages_of(bundle, STAGES)))
        findings = find(encoding, bundle)
    return index.by_vector(
        encoding.study_vector if region is None else region_vector(encoding, bundle, region),
        count=count,
        where=replace(where, exclude=where.exclude or encoding.volume_sha256),
        present=[f.name for f in findings if f.state == "present"],
        regions=region_vectors(encoding, bundle),
        region=region,
    )
