"""The Case folder on disk: written whole or not at all, read only where it is complete and of a known version.

`case.json` is the truth; `report.md` is drawn from it. Beside them: `segmentation.nii.gz`, where wanted `ct.nii.gz`, and
`encoding.safetensors`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from VelvetMedLib.case.geometry import Geometry, affine_of
from VelvetMedLib.case.markdown import report_markdown
from VelvetMedLib.case.schema import READABLE_VERSIONS, Case
from VelvetMedLib.errors import CaseError, ScanError
from VelvetMedLib.files import file_sha256, flush_folder, write_text
from VelvetMedLib.shapes import LabelsKJI

if TYPE_CHECKING:
    from VelvetMedLib.ct import Grid, Volume

CASE_JSON = "case.json"
REPORT = "report.md"
SEGMENTATION = "segmentation.nii.gz"
IMAGE = "ct.nii.gz"
ENCODING = "encoding.safetensors"
_STALE_S = 3600.0
_MOST_JSON_BYTES = 64 * 2**20


def write_case(
    folder: Path | str,
    case: Case,
    *,
    segmentation_kji: LabelsKJI | None = None,
    grid: Geometry | None = None,
    volume: Volume | None = None,
    encoding_path: Path | str | None = None,
) -> Case:
    """Write a case folder and return the case as written (with `files` filled in).

    segmentation_kji: labels on the scan's own grid, saved with `grid`'s affine. volume: saved as ct.nii.gz.
    encoding_path: a finished encoding file to copy in. A case that is already there is replaced. Everything is made in a
    folder beside it first; a kill at any moment leaves the old case or none. Raises CaseError where the folder holds
    something else or cannot be written, ValueError where segmentation and case do not fit.
    """
    from VelvetMedLib import ct

    target = Path(folder)
    if segmentation_kji is not None:
        if grid is None:
            raise ValueError("a segmentation needs the grid it lies on")
        if tuple(segmentation_kji.shape) != tuple(case.input.shape_kji):
            raise ValueError(f"segmentation of shape {segmentation_kji.shape} for a scan of shape {case.input.shape_kji}")
    _recover(target)
    if target.exists() and not (target / CASE_JSON).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise CaseError(
            "The output folder is not a case.",
            found="a file or a folder with other content",
            expected="a folder that does not exist, is empty, or holds an earlier case",
            next_step="Choose another output folder.",
        )
    with _in_words(), _beside(target) as building:
        if segmentation_kji is not None:
            labels = np.asarray(segmentation_kji)
            if labels.dtype != np.uint8:
                if labels.size and (int(labels.min()) < 0 or int(labels.max()) > 255):
                    raise ValueError("labels must lie between 0 and 255")
                labels = labels.astype(np.uint8)
            assert grid is not None
            ct.write_nifti(building / SEGMENTATION, labels, affine_of(grid))
        if volume is not None:
            ct.write_nifti(building / IMAGE, volume.voxels_kji, volume.ijk_to_ras)
        if encoding_path is not None:
            shutil.copyfile(encoding_path, building / ENCODING)
        written = replace(case, files={p.name: _seal(p) for p in sorted(building.iterdir())})
        write_text(building / REPORT, report_markdown(written))
        write_text(building / CASE_JSON, case_to_json(written))
        _swap_in(building, target)
    return written


def update_case(folder: Path | str, case: Case) -> Case:
    """Replace what a case folder says (report, answers, findings) and keep its images. Raises CaseError.

    `case.json` is replaced in one step; `report.md`, which is drawn from it, right after.
    """
    target = Path(folder)
    written = replace(case, files=read_case(target).files)
    with _in_words():
        for name, text in ((CASE_JSON, case_to_json(written)), (REPORT, report_markdown(written))):
            write_text(target / name, text)
    return written


def read_case(folder: Path | str) -> Case:
    """The case of a folder. Raises CaseError where it is missing, damaged, incomplete or of an unknown version."""
    target = Path(folder)
    _recover(target)
    path = target / CASE_JSON
    if not path.is_file():
        raise CaseError(
            "The given folder holds no case.",
            found="no case.json in it" if target.is_dir() else "no such folder",
            expected="a folder written by `velvetmed analyze`",
            next_step="Analyze a scan first, or check the folder that you gave.",
        )
    data = _parse(path)
    try:
        case = Case.from_dict(data)
    except (TypeError, ValueError) as error:
        raise _damaged(str(error)) from None
    for name, seal in case.files.items():
        _check_name(name)
        file = target / name
        if not file.is_file() or file.stat().st_size != seal.get("bytes"):
            raise CaseError(
                f"The case is incomplete: {name} is missing or cut short.",
                found=f"{file.stat().st_size} bytes" if file.is_file() else "no such file in the folder",
                expected=f"{seal.get('bytes')} bytes",
                next_step="Copy the whole folder again, or analyze the scan again.",
            )
    return case


def read_segmentation(folder: Path | str) -> tuple[LabelsKJI, Grid]:
    """(label map [k, j, i] uint8, its grid) of a case. Raises CaseError where there is none or it was changed."""
    from VelvetMedLib import ct

    case = read_case(folder)
    path = Path(folder) / SEGMENTATION
    seal = case.files.get(SEGMENTATION)
    if seal is None or not path.is_file():
        raise CaseError(
            "The case has no segmentation.",
            found=f"no {SEGMENTATION}",
            expected="a case that was written with its segmentation",
            next_step="Analyze the scan again.",
        )
    if file_sha256(path) != seal.get("sha256"):
        raise CaseError(
            "The segmentation of the case was changed after it was written.",
            found="another sha256 than case.json records",
            expected="the file as it was written",
            next_step="Copy the folder again, or analyze the scan again.",
        )
    try:
        labels, grid = ct.read_labels(path)
    except ScanError as error:
        raise _damaged(f"{SEGMENTATION}: {error.found}") from None
    if tuple(labels.shape) != tuple(case.input.shape_kji):
        raise _damaged(f"{SEGMENTATION} has another shape than the scan")
    return labels.astype(np.uint8, copy=False), grid


def case_to_json(case: Case) -> str:
    """The text of `case.json`: UTF-8, finite numbers, keys in the schema's order."""
    return json.dumps(case.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _parse(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise _damaged("case.json is implausibly large")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise _damaged("case.json is not readable JSON") from None
    if not isinstance(data, dict):
        raise _damaged("case.json does not hold an object")
    version = data.get("schema_version")
    if version not in READABLE_VERSIONS:
        raise CaseError(
            "The case was written in a format that this version does not know.",
            found=f"schema version {version!r}",
            expected=f"schema version {' or '.join(map(str, READABLE_VERSIONS))}",
            next_step="Update VelvetMed, or analyze the scan again with this version.",
        )
    return data


def _damaged(found: str) -> CaseError:
    return CaseError(
        "The case is damaged.",
        found=found,
        expected="a case.json as `velvetmed analyze` writes it, with its files unchanged",
        next_step="Copy the folder again, or analyze the scan again.",
    )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise _damaged("case.json names a file outside the case folder")


def _seal(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A fresh folder next to the target, removed if the block fails; leftovers of killed runs are swept up when old."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.*.part"):
        if time.time() - stale.stat().st_mtime > _STALE_S:
            shutil.rmtree(stale, ignore_errors=True)
    building = target.parent / f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.part"
    building.mkdir()
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _old_name(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _swap_in(building: Path, target: Path) -> None:
    """Folders cannot replace each other in one step: the old one steps aside, and `_recover` puts it back after a kill."""
    old = _old_name(target)
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    try:
        os.replace(building, target)
    except OSError:
        _recover(target)
        raise
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    """Put an old case back that a killed `write_case` had moved aside."""
    old = _old_name(target)
    if not target.exists() and (old / CASE_JSON).is_file():
        os.replace(old, target)


@contextmanager
def _in_words() -> Iterator[None]:
    """The operating system's refusals in our words, without the path."""
    try:
        yield
    except OSError as error:
        raise CaseError(
            "The case could not be written.",
            found=os.strerror(error.errno) if error.errno else "an input/output error",
            expected="a writable folder with enough free space",
            next_step="Choose another output folder, or free some space; nothing half-made was kept.",
        ) from None
