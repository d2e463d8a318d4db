"""An index of a folder of scans: reports beside scans, small pictures, neutral numbers, and a private part that alone knows places."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.errors import Cancelled, IndexMismatchError, UsageError
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks import Index, Where, encode, search
from VelvetMedLib.tasks.indexing import index_folder, organ_centers, reported_states
from VelvetMedLib.tasks.regions import region_vectors
from VelvetMedLib.tasks.store.files import PLACES
from VelvetMedLib.tasks.thumbnails import SIDE, grey_png, thumbnail

PATIENT = "DOE^JANE-19500101"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_body: Callable[..., Any]) -> Path:
    """Two scans under names that carry an identity, one with a report, and something that is no scan."""
    path = tmp_path_factory.mktemp("scans")
    for number, name in enumerate((PATIENT, "ROE^RICHARD")):
        body = make_body(seed=number)
        ct.write_nifti(path / f"{name}.nii.gz", body.voxels_kji, body.ijk_to_ras)
    (path / f"{PATIENT}.txt").write_text(f"{PATIENT}: moderate left pleural effusion. No pneumothorax.", encoding="utf-8")
    (path / "broken.nii").write_bytes(b"no scan")
    return path


@pytest.fixture(scope="module")
def made(folder: Path, random_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[tuple[float, str]]]:
    out = tmp_path_factory.mktemp("index") / "index"
    said: list[tuple[float, str]] = []
    done = index_folder(
        folder, out, random_bundle, keep_places=True, keep_text=True, progress=lambda fraction, stage, left: said.append((fraction, stage))
    )
    return out, done, said


def test_what_cannot_be_read_is_skipped_by_its_place_and_the_bar_never_goes_back(made: Any) -> None:
    _, done, said = made
    assert (
        done.count == done.added == 2
        and done.known == 0
        and len(done.skipped) == 1
        and done.skipped[0].startswith("entry 3:")
        and "broken" not in done.skipped[0]
    )
    fractions = [fraction for fraction, _ in said]
    # The third cannot be read, and is said all the same; so is one whose encoding is still at hand.
    assert fractions == sorted(fractions) and {stage for _, stage in said} == {f"scan {n} of 3" for n in (1, 2, 3)}


def test_no_name_and_no_path_of_another_patient_is_outside_the_private_part(made: Any, folder: Path) -> None:
    out, _, _ = made
    for path in (p for p in out.rglob("*") if p.is_file()):
        content = path.read_bytes()
        held = [word for word in ("DOE", "ROE", str(folder)) if word.encode() in content]
        assert bool(held) == (path.relative_to(out).as_posix() == PLACES), path.name
    if os.name == "posix":
        assert (out / PLACES).stat().st_mode & 0o077 == 0 and (out / PLACES).parent.stat().st_mode & 0o077 == 0


def test_a_report_beside_a_scan_names_its_findings_and_the_model_does_where_there_is_none(made: Any, random_bundle: Any) -> None:
    out, _, _ = made
    with Index(out, random_bundle) as index:
        hits = search(index, text="Pleural effusion on the left.", count=2)
        only = [search(index, text="x", where=Where(**{kind: ("pneumothorax",)}, source="report")) for kind in ("absent", "present")]
    assert [[hit.number for hit in found] for found in only] == [[1], []]
    by_number = {hit.number: hit for hit in hits}
    assert by_number[1].source == "report" and by_number[1].present == ("pleural_effusion",)
    assert by_number[1].shared == ("pleural_effusion",) and by_number[1].why == "both show pleural effusion"
    assert by_number[2].source == "model" and by_number[1].text is None


def test_a_report_that_says_nothing_we_know_leaves_the_word_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"")
    assert reported_states(tmp_path / "a.nii.gz") is None
    (tmp_path / "a.md").write_text("Thank you for referring this pleasant patient.", encoding="utf-8")
    assert reported_states(tmp_path / "a.nii.gz") is None
    (tmp_path / "report.txt").write_text("No pleural effusion.", encoding="utf-8")
    assert reported_states(tmp_path) == {"pleural_effusion": "absent"}


def test_a_hit_says_where_its_organs_lie_and_opens_from_the_private_part(made: Any, random_bundle: Any, folder: Path) -> None:
    with Index(made[0], random_bundle) as opened:
        assert opened.place(1) == folder / f"{PATIENT}.nii.gz"
        encoding = encode(ct.read(folder / f"{PATIENT}.nii.gz"), random_bundle)
        assert opened.centers(1) == {name: pytest.approx(c, abs=0.06) for name, c in organ_centers(encoding).items()}
        for number in (0, 3):
            with pytest.raises(IndexMismatchError, match="no such case"):
                opened.place(number)


def test_an_index_without_its_private_part_still_searches_and_says_that_it_cannot_open(
    made: Any, random_bundle: Any, tmp_path: Path, folder: Path
) -> None:
    copy = Path(shutil.copytree(made[0], tmp_path / "copy"))
    with sqlite3.connect(copy / PLACES) as places:
        places.execute("UPDATE places SET place = ?", [str(tmp_path / "gone")])
    with Index(copy, random_bundle) as index, pytest.raises(IndexMismatchError, match="no scan where it was"):
        index.place(1)
    shutil.rmtree(copy / "private")
    with Index(copy, random_bundle) as index:
        with pytest.raises(IndexMismatchError, match="does not say where"):
            index.place(1)
        assert len(search(index, text="Liver lesion.")) == 2


def test_indexing_again_adds_only_what_is_new(made: Any, random_bundle: Any, folder: Path, make_body: Any, tmp_path: Path) -> None:
    copy, scans = Path(shutil.copytree(made[0], tmp_path / "copy")), Path(shutil.copytree(folder, tmp_path / "scans"))
    again = index_folder(scans, copy, random_bundle)
    assert (again.added, again.known, again.count) == (0, 2, 2)
    body = make_body(seed=9)
    ct.write_nifti(scans / "0001.nii.gz", body.voxels_kji, body.ijk_to_ras)
    before = (copy / "studies-1.f32").read_bytes()
    again = index_folder(scans, copy, random_bundle)
    assert (again.added, again.known, again.count) == (1, 2, 3) and (copy / "studies-1.f32").read_bytes()[: len(before)] == before
    with Index(copy, random_bundle) as index:
        assert {hit.number for hit in search(index, text="Liver lesion.")} == {1, 2, 3}
    with pytest.raises(IndexMismatchError, match="another model"):
        index_folder(scans, copy, SimpleNamespace(encoding_key="other", config=random_bundle.config))


def test_a_scan_is_compared_by_an_organ_that_both_show(made: Any, random_bundle: Any, folder: Path) -> None:
    mine, other = (encode(ct.read(folder / f"{name}.nii.gz"), random_bundle) for name in (PATIENT, "ROE^RICHARD"))
    vectors = [region_vectors(encoding, random_bundle) for encoding in (mine, other)]
    shared = sorted(vectors[0].keys() & vectors[1].keys())
    missing = next(s.name for s in ontology().structures if s.name not in vectors[0])
    scan = ct.read(folder / f"{PATIENT}.nii.gz")
    with Index(made[0], random_bundle) as index:
        for organ in shared[:3]:
            (hit,) = search(index, volume=scan, region=organ)
            assert hit.number == 2 and hit.similarity == pytest.approx(float(vectors[0][organ] @ vectors[1][organ]), abs=1e-4)
        (whole,) = search(index, volume=scan)
        best = max(shared, key=lambda organ: float(vectors[0][organ] @ vectors[1][organ]))
        assert whole.region is not None and whole.region[0] == best
        with pytest.raises(UsageError, match="does not show enough"):
            search(index, volume=scan, region=missing)


def test_the_querys_own_scan_stays_out_under_the_hash_it_was_indexed_by(made: Any, random_bundle: Any, folder: Path) -> None:
    mine = ct.read(folder / f"{PATIENT}.nii.gz")
    turned = ct.from_array(np.ascontiguousarray(mine.voxels_kji[::-1]), mine.ijk_to_ras @ flip_k(mine.shape_kji[0]))
    with Index(made[0], random_bundle) as index:
        assert {hit.number for hit in search(index, volume=turned)} == {1, 2}
        assert {hit.number for hit in search(index, volume=turned, where=Where(exclude=mine.sha256()))} == {2}


def flip_k(count: int) -> np.ndarray:
    matrix = np.diag([1.0, 1.0, -1.0, 1.0])
    matrix[2, 3] = count - 1
    return matrix


@pytest.mark.parametrize(("after", "left"), [(0, 0), (1, 1)])
def test_a_cancel_between_scans_keeps_what_was_added_and_half_of_nothing(
    folder: Path, random_bundle: Any, tmp_path: Path, after: int, left: int
) -> None:
    at = 0.0

    def progress(fraction: float, *_: Any) -> None:
        nonlocal at
        at = fraction

    def stop() -> None:
        if at >= after / 3:
            raise Cancelled()

    with pytest.raises(Cancelled):
        index_folder(folder, tmp_path / "index", random_bundle, progress=progress, cancel=stop)
    assert [path.name for path in tmp_path.iterdir()] == (["index"] if left else [])
    if left:
        with Index(tmp_path / "index", random_bundle) as index:
            assert len(search(index, text="Liver lesion.")) == len(index) == left


def test_a_thumbnail_shows_the_patient_as_radiologists_look_at_him(make_fine: Any) -> None:
    picture = thumbnail(make_fine(), (0.0, -8.0, 0.0))
    assert picture.shape == (SIDE, SIDE) and picture.dtype == np.uint8
    # The liver (right, below) is bright and left of the middle; the right lung above it is dark.
    assert picture[70, 28] > picture[35, 28]
    assert thumbnail(make_fine()).any()


def test_a_grey_png_can_be_read_by_another_program(tmp_path: Path) -> None:
    import SimpleITK as sitk

    grey = np.arange(12 * 7, dtype=np.uint8).reshape(12, 7)
    (tmp_path / "a.png").write_bytes(grey_png(grey))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.png"))), grey)


def test_the_worker_searches_shows_and_opens_without_a_name(made: Any, random_bundle_folder: Path, tmp_path: Path) -> None:
    import base64

    from VelvetMedLib.worker.handlers import make_handlers

    class Quiet:
        def progress(self, *_: Any) -> None: ...
        def cancel(self) -> None: ...

    similar = make_handlers()["similar"]
    shared = {"index": str(made[0]), "bundle": str(random_bundle_folder)}
    answer = similar({**shared, "text": "pleural effusion"}, Quiet())
    assert answer["count"] == 2 and base64.b64decode(answer["hits"][0]["picture"]).startswith(b"\x89PNG")
    opened = similar({**shared, "open": 1, "out": str(tmp_path / "scan.npy")}, Quiet())
    assert np.load(opened["npy"]).ndim == 3 and np.shape(opened["ijk_to_ras"]) == (4, 4)
    for said in (answer, opened):
        assert not any(word in repr(said) for word in ("DOE^", "JANE", "ROE^", str(made[0].parent), "nii"))
