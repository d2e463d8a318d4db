"""Fixtures for training: a handful of small scans with reports as a manifest, and what a run needs to read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from Testing.plugins.bundles import body_volume, tokenizer_text

SIDES = ("left", "right")
FINDINGS = ("nodule", "effusion", "mass", "emphysema")


def write_studies(folder: Path, count: int = 10, *, held_out: int = 2) -> Path:
    """`count` studies of elliptic bodies with two-sentence reports; the last `held_out` of them are the validation split."""
    from VelvetMedLib.ct import write_nifti

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(count):
        volume = body_volume((20 + n % 3, 18, 22), 14.0, seed=n)
        write_nifti(folder / f"s{n}.nii.gz", volume.voxels_kji, volume.ijk_to_ras)
        finding, side = FINDINGS[n % 4], SIDES[n % 2]
        versions = [
            [
                {"title": "Findings", "sentences": [f"there is a {finding} {n} in the {side} lung.", "no pleural effusion."]},
                {"title": "Technique", "sentences": ["axial scan."]},
            ],
            [{"title": "Findings", "text": f"{side.title()} lung has {finding} {n} in it. The liver is clear."}],
        ]
        split = "val" if n >= count - held_out else "train"
        lines.append({"study": f"s{n}", "patient": f"p{n}", "split": split, "volume": f"s{n}.nii.gz", "reports": versions})
    manifest = folder / "studies.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_text(), encoding="utf-8")
    return manifest


@pytest.fixture(scope="session")
def studies_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `studies.jsonl` (8 train, 2 val), its scans, and `tokenizer.json`. Copy it before changing a byte."""
    return write_studies(tmp_path_factory.mktemp("studies")).parent


@pytest.fixture(scope="session")
def studies_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store that tests share; it fills when first used."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def make_studies() -> Callable[..., Path]:
    """`make_studies(folder, count, held_out=...)` -> manifest."""
    return write_studies


@pytest.fixture(scope="session")
def opened(studies_folder: Path, studies_store: Path) -> Any:
    """(stored studies, groups, tokenizer) of the studies under the micro recipe."""
    from VelvetMedLib.engine.data import groups_of
    from VelvetMedLib.engine.manifest import read_manifest
    from VelvetMedLib.engine.store import open_store, prepare
    from VelvetMedLib.models.text import ReportTokenizer
    from VelvetMedLib.recipes.velvet import micro

    manifest = read_manifest(studies_folder / "studies.jsonl")
    assert not prepare(manifest.studies, studies_store, micro().views)
    studies, bad = open_store(manifest.studies, studies_store, micro().views)
    assert not bad
    return studies, groups_of(studies), ReportTokenizer(studies_folder / "tokenizer.json")
