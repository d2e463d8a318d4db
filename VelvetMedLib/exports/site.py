"""Review pages: each Case as one offline HTML file that opens by double-click, and a list of them when there are several."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from VelvetMedLib import ct
from VelvetMedLib.case import Case, read_case, read_segmentation
from VelvetMedLib.errors import UsageError
from VelvetMedLib.exports import niivue as viewer
from VelvetMedLib.exports import pages
from VelvetMedLib.exports.embed import PageImages, page_images
from VelvetMedLib.exports.view import case_summary, case_view
from VelvetMedLib.files import write_bytes

Progress: TypeAlias = Callable[[float, str, float | None], None]

INDEX = "index.html"
MAX_PAGE_BYTES = 12_000_000


def review(cases: Sequence[Path], out: Path, *, niivue: Path | None = None, progress: Progress | None = None) -> Path:
    """Writes review pages for Case folders into the folder `out`; returns `out/index.html`.

    One case: index.html is its page. Several: index.html lists them and each has its own file beside it, so that a single
    page can be handed on alone. Nothing in a page reaches for the network. Files are written whole, index.html last, and
    only when all are made; other files in `out` are left alone. Where the viewer script was never fetched the pages show
    still pictures and say how to get it. Raises UsageError, CaseError or ScanError.
    """
    if not cases:
        raise UsageError(
            "There is nothing to review.",
            found="no case",
            expected="one Case folder or more",
            next_step="Name the folders that `velvetmed analyze` wrote.",
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(
            "The review pages cannot be written there.",
            found="a file where the output folder should be",
            expected="a folder, or a name that is still free",
            next_step="Choose another output folder.",
        )
    found = viewer.find(niivue)
    script = None if found is None else found.read_text(encoding="utf-8")
    read = [read_case(Path(folder)) for folder in cases]
    names = page_names(read)
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    # Made beside the site and moved in at the end: one damaged case among many leaves no half of a site, and an old one whole.
    near = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".pages-", dir=near) as staged:
        for number, (folder, case, name) in enumerate(zip(cases, read, names, strict=True)):
            if progress is not None:
                left = (time.monotonic() - started) / number * (len(read) - number) if number else None
                progress(number / len(read), f"page {number + 1} of {len(read)}", left)
            images = _images(Path(folder))
            view = case_view(case)
            html = pages.case_page(view, images, script, siblings=_siblings(names, number))
            _write(Path(staged) / name, html)
            if len(read) > 1:
                rows.append(case_summary(case) | {"href": name, "thumbnail": pages.thumbnail(view, images)})
        if len(read) > 1:
            _write(Path(staged) / INDEX, pages.index_page(rows))
        out.mkdir(parents=True, exist_ok=True)
        for name in [*(n for n in names if n != INDEX), INDEX]:
            os.replace(Path(staged) / name, out / name)
    if progress is not None:
        progress(1.0, "done", 0.0)
    return out / INDEX


def page_names(cases: Sequence[Case]) -> list[str]:
    """File name of each case's page: from its id, safe on every system, unique even where ids are not."""
    if len(cases) == 1:
        return [INDEX]
    names = []
    for number, case in enumerate(cases, start=1):
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", case.id).strip("-")[:48] or "case"
        names.append(f"{number:03d}-{safe}.html")
    return names


def _siblings(names: Sequence[str], number: int) -> dict[str, Any] | None:
    if len(names) == 1:
        return None
    return {
        "index": INDEX,
        "number": number + 1,
        "total": len(names),
        "previous": names[number - 1] if number > 0 else None,
        "next": names[number + 1] if number + 1 < len(names) else None,
    }


def _images(folder: Path) -> PageImages | None:
    """Scan and segments of a case on the page's grid; either may be missing."""
    scan = folder / "ct.nii.gz"
    volume = ct.read(scan) if scan.is_file() else None
    labels, grid = read_segmentation(folder) if (folder / "segmentation.nii.gz").is_file() else (None, None)
    return page_images(volume, labels, grid)


def _write(path: Path, html: str) -> None:
    data = html.encode("utf-8")
    if len(data) > MAX_PAGE_BYTES:
        raise UsageError(
            "A review page came out too large to open smoothly.",
            found=f"{len(data) / 1e6:.1f} MB",
            expected=f"at most {MAX_PAGE_BYTES / 1e6:.0f} MB",
            next_step="Report this with the size of the scan; the case itself is unharmed.",
        )
    write_bytes(path, data)
