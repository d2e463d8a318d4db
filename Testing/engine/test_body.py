"""Where the body is in a stored study: found once and kept beside its arrays, found again where the file does not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.ct.body_cells import body_cells
from VelvetMedLib.engine import body
from VelvetMedLib.engine.body import BODY_FILE, body_of
from VelvetMedLib.recipes.velvet import micro

SPACING = micro().views.fine_spacing_mm


@pytest.fixture
def entry(opened: Any, tmp_path: Path) -> Any:
    shutil.copytree(opened[0][0].folder, tmp_path / "study", ignore=shutil.ignore_patterns(BODY_FILE))
    return replace(opened[0][0], folder=tmp_path / "study")


def test_the_body_is_found_once_and_read_from_then_on(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = body_of(entry, SPACING)
    want = body_cells(entry.fine(), SPACING)
    assert np.array_equal(first.cells, want.cells) and first.step == want.step and first.shape == want.shape == entry.fine().shape
    assert (entry.folder / BODY_FILE).is_file() and not list(entry.folder.glob(".*.part"))
    monkeypatch.setattr(body, "body_cells", lambda *_: pytest.fail("found a second time"))
    assert np.array_equal(body_of(entry, SPACING).cells, want.cells)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY broken", None], ids=["empty", "torn", "of another grid"])
def test_a_file_that_does_not_fit_is_made_again(entry: Any, content: bytes | None) -> None:
    want = body_of(entry, SPACING).cells
    if content is None:
        np.save(entry.folder / BODY_FILE, np.ones((2, 2, 2), bool))
    else:
        (entry.folder / BODY_FILE).write_bytes(content)
    assert np.array_equal(body_of(entry, SPACING).cells, want)
    assert np.array_equal(np.load(entry.folder / BODY_FILE), want)


def test_where_nothing_can_be_written_the_body_is_found_all_the_same(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(body.os, "replace", refused)
    found = body_of(entry, SPACING)
    assert np.array_equal(found.cells, body_cells(entry.fine(), SPACING).cells)
    assert not (entry.folder / BODY_FILE).exists() and not list(entry.folder.glob(".*.part"))
