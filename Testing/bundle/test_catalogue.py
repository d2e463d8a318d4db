"""Bundles are listed, added, shown and removed; an archive cannot leave its folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from VelvetMedLib.bundle import add_bundle, catalogue, locate, model_card, remove_bundle
from VelvetMedLib.errors import BundleError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELVETMED_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "bundles"


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


def test_a_bundle_is_added_from_a_folder_listed_shown_and_removed(random_bundle_folder: Path, home: Path):
    entry = add_bundle(random_bundle_folder)
    assert entry.name == "random-0" and entry.origin == "added" and not entry.problem
    assert any(e.name == "random-0" for e in catalogue())
    assert locate("random-0") == home / "random-0"
    assert "Random bundle" in model_card("random-0")
    size = sum(p.stat().st_size for p in (home / "random-0").iterdir())
    assert remove_bundle("random-0") == size
    assert not list(home.iterdir())


@pytest.mark.parametrize("prefix", ["", "some_folder/"])
def test_a_bundle_is_added_from_a_zip(random_bundle_folder: Path, home: Path, tmp_path: Path, prefix: str):
    entry = add_bundle(zipped(random_bundle_folder, tmp_path / "b.zip", prefix))
    assert (home / entry.name / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "C:\\evil", "a/../../evil", "x/aux.txt", "..\\evil", "a:b"])
def test_a_zip_member_that_would_leave_its_folder_is_refused(random_bundle_folder: Path, home: Path, tmp_path: Path, name: str):
    path = zipped(random_bundle_folder, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(BundleError, match="leave its folder"):
        add_bundle(path)
    assert not list(home.iterdir())
    assert not (tmp_path / "evil").exists()


def test_a_link_in_a_zip_is_refused(random_bundle_folder: Path, home: Path, tmp_path: Path):
    path = zipped(random_bundle_folder, tmp_path / "b.zip")
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BundleError, match="leave its folder"):
        add_bundle(path)


def test_a_zip_bomb_is_refused(home: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", b"\0" * (8 << 20))
    with pytest.raises(BundleError, match="too tightly"):
        add_bundle(tmp_path / "b.zip")


def test_a_damaged_bundle_is_not_added(random_bundle_folder: Path, home: Path, tmp_path: Path):
    broken = Path(shutil.copytree(random_bundle_folder, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        add_bundle(broken)
    assert not list(home.iterdir())


def test_a_pickled_weights_file_is_refused_with_the_way_to_convert_it(home: Path, tmp_path: Path):
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(BundleError) as error:
        add_bundle(tmp_path / "model.pth")
    assert "convert_weights" in error.value.next_step


def test_an_unknown_name_is_refused_with_the_names_there_are(home: Path, random_bundle_folder: Path):
    add_bundle(random_bundle_folder)
    with pytest.raises(BundleError) as error:
        locate("nobody")
    assert "random-0" in error.value.found


def test_a_shipped_bundle_cannot_be_removed(home: Path):
    shipped = [e for e in catalogue() if e.origin == "shipped"]
    if not shipped:
        pytest.skip("no bundle is shipped in this tree")
    with pytest.raises(BundleError, match="stays"):
        remove_bundle(shipped[0].name)


def test_a_bundle_that_cannot_be_read_is_listed_with_its_problem(home: Path, random_bundle_folder: Path):
    add_bundle(random_bundle_folder)
    (home / "random-0" / "bundle.json").write_text("{")
    entry = next(e for e in catalogue() if e.name == "random-0")
    assert "not valid JSON" in entry.problem and entry.config is None
