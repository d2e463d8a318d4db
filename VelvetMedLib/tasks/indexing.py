"""Which scans and cases a folder holds, and how each becomes an item of a retrieval index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from VelvetMedLib import ct
from VelvetMedLib.case import Case, read_case
from VelvetMedLib.errors import ScanError, UsageError, VelvetMedError
from VelvetMedLib.tasks.analysis import case_encoding
from VelvetMedLib.tasks.encoder import encode
from VelvetMedLib.tasks.encoding import Encoding
from VelvetMedLib.tasks.findings import find
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.retrieval import Hit, Index, Item, build_index

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

SCAN_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr")


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
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Indexed:
    """Index every Case and scan of a folder. One that cannot be read is skipped and named by its place; the rest go in."""
    run = Run(progress, cancel, {"index": 1.0})
    found = [p for p in entries(Path(folder)) if p.resolve() != Path(out).resolve()]
    skipped: list[str] = []

    def items() -> Iterator[Item]:
        for place, path in enumerate(found, start=1):
            run.step((place - 1) / len(found))
            try:
                yield item_of(path, place, bundle, run)
            except VelvetMedError as error:
                if error.code == "cancelled":
                    raise
                skipped.append(f"entry {place}: {error.what}")

    with run.stage("index"):
        count = build_index(items(), out, bundle.encoding_key, keep_text=keep_text)
    return Indexed(count, tuple(skipped))


def item_of(path: Path, place: int, bundle: Bundle, run: Run) -> Item:
    """The index item of a Case folder or a scan."""
    if (path / "case.json").is_file():
        case = read_case(path)
        encoding = case_encoding(path, bundle) or _encode_case_image(path, case, bundle, run)
        present = tuple(f.name for f in case.findings if f.state == "present")
        text = " ".join(s.text for section in (case.report.sections if case.report else ()) for s in section.sentences)
        return Item(case.id, case.input.sha256, encoding.need_reading().study, present, text)
    scan = path / "ct.nii.gz" if (path / "ct.nii.gz").is_file() else path
    encoding = encode(ct.read(scan), bundle, run=run)
    present = tuple(f.name for f in find(encoding, bundle) if f.state == "present")
    return Item(f"entry-{place:04d}", encoding.volume_sha256, encoding.need_reading().study, present)


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
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> list[Hit]:
    """The cases of an index most similar to a text, a volume or a Case: exactly one of the three."""
    if sum(query is not None for query in (text, volume, case)) != 1:
        raise UsageError(
            "A search needs one query.",
            found="none or several",
            expected="a text, a volume or a case",
            next_step="Give exactly one of --text, --volume and --case.",
        )
    opened = Index(index, bundle)
    run = Run(progress, cancel, {"prepare": 0.3, "fine": 0.6, "tokens": 0.1})
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
    return opened.by_vector(encoding.need_reading().study, count=count, present=present, exclude_volume=encoding.volume_sha256)
