"""The private file of a Case: UIDs alone, readable by their owner alone, and never anything else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from VelvetMedLib.case.sources import SOURCES, is_uid, read_sources, write_sources

UIDS = ("1.2.840.113619.2.55.3.1", "1.3.6.1.4.1.14519.5.2.1.6279.6001.1")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_sources(tmp_path, UIDS)
    assert read_sources(tmp_path) == UIDS and [path.name for path in tmp_path.iterdir()] == [SOURCES]


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    write_sources(tmp_path, UIDS)
    assert stat.S_IMODE((tmp_path / SOURCES).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "DOE^JOHN", "1.2.x", "/tmp/1.2.3", "1." * 40, "1..2"])
def test_nothing_but_uids_gets_in(tmp_path: Path, text: str) -> None:
    assert not is_uid(text)
    with pytest.raises(ValueError):
        write_sources(tmp_path, [UIDS[0], text])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 2, "instance_uids": ["1.2"]}', '{"format_version": 1, "instance_uids": 7}'])
def test_a_missing_or_damaged_file_means_no_instances(tmp_path: Path, text: str) -> None:
    assert read_sources(tmp_path) == ()
    (tmp_path / SOURCES).write_text(text, encoding="utf-8")
    assert read_sources(tmp_path) == ()
