"""Search is exact, explains itself, leaves the query's own scan out, and refuses a damaged or foreign index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.errors import IndexMismatchError, UsageError
from VelvetMedLib.tasks.retrieval import Index, Item, build_index

KEY = "k" * 64


def bundle(key: str = KEY) -> Any:
    return SimpleNamespace(encoding_key=key, config=SimpleNamespace(id="demo"))


def items(count: int = 200, dimension: int = 16) -> list[Item]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = ("lung_nodule", "pleural_effusion", "liver_lesion")
    return [
        Item(f"case{n:03d}", f"volume{n}", v, tuple(x for m, x in enumerate(names) if (n >> m) & 1), f"text {n}")
        for n, v in enumerate(vectors)
    ]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    assert build_index(items(), out, KEY) == 200
    return out


def test_search_equals_sorting_everything(stored: Path):
    index, everything = Index(stored, bundle()), items()
    query = everything[17].study
    scores = np.array([item.study @ query for item in everything])
    expected = [everything[n].id for n in np.argsort(-scores, kind="stable")[:10]]
    hits = index.by_vector(query, count=10)
    assert [h.id for h in hits] == expected and hits[0].id == "case017"
    assert hits[0].similarity == pytest.approx(1.0, abs=1e-3)


def test_the_querys_own_scan_is_left_out(stored: Path):
    hits = Index(stored, bundle()).by_vector(items()[17].study, count=200, exclude_volume="volume17")
    assert len(hits) == 199 and "case017" not in {h.id for h in hits}


def test_every_hit_says_why(stored: Path):
    hits = Index(stored, bundle()).by_vector(items()[3].study, count=50, present=("lung_nodule",))
    for hit in hits:
        assert hit.shared == (("lung_nodule",) if "lung_nodule" in hit.present else ())
        assert ("both show lung nodule" in hit.why) == bool(hit.shared)


def test_no_identity_no_path_and_no_text_is_stored_unless_asked(stored: Path, tmp_path: Path):
    everything = b"".join(p.read_bytes() for p in stored.iterdir())
    assert b"volume17" not in everything and b"text 17" not in everything and str(tmp_path).encode() not in everything
    build_index(items(5), tmp_path / "texts", KEY, keep_text=True)
    assert Index(tmp_path / "texts", bundle()).by_vector(items()[0].study, count=1)[0].text == "text 0"


def test_one_volume_counts_once(tmp_path: Path):
    twice = [*items(4), *items(4)]
    assert build_index(twice, tmp_path / "i", KEY) == 4


def test_an_index_of_other_weights_is_refused(stored: Path):
    with pytest.raises(IndexMismatchError, match="another model"):
        Index(stored, bundle("other"))


@pytest.mark.parametrize("name", ["vectors.npy", "thumbnails.npy", "items.sqlite", "index.json"])
def test_a_damaged_or_missing_part_is_refused(stored: Path, tmp_path: Path, name: str):
    copy = Path(shutil.copytree(stored, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[-20] ^= 255
    (copy / name).write_bytes(content)
    with pytest.raises(IndexMismatchError):
        Index(copy, bundle())
    (copy / name).unlink()
    with pytest.raises(IndexMismatchError):
        Index(copy, bundle())


def test_an_unknown_format_is_refused(stored: Path, tmp_path: Path):
    copy = Path(shutil.copytree(stored, tmp_path / "copy"))
    facts = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(facts | {"format_version": 9}))
    with pytest.raises(IndexMismatchError, match="format version"):
        Index(copy, bundle())


def test_a_failed_build_leaves_the_old_index_and_no_rubbish(tmp_path: Path):
    out = tmp_path / "i"
    build_index(items(5), out, KEY)

    def failing() -> Any:
        yield items(1)[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        build_index(failing(), out, KEY)
    assert len(Index(out, bundle())) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["i"]
    build_index(items(7), out, KEY)
    assert len(Index(out, bundle())) == 7 and [p.name for p in tmp_path.iterdir()] == ["i"]


def test_an_index_never_replaces_something_else(tmp_path: Path):
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "thesis.txt").write_text("precious")
    with pytest.raises(IndexMismatchError, match="cannot be written there"):
        build_index(items(2), tmp_path / "i", KEY)
    assert (tmp_path / "i" / "thesis.txt").read_text() == "precious"


def test_nothing_to_index_is_said(tmp_path: Path):
    with pytest.raises(IndexMismatchError, match="nothing to index"):
        build_index([], tmp_path / "i", KEY)


def test_an_empty_text_is_refused(stored: Path):
    with pytest.raises(UsageError, match="no words"):
        Index(stored, bundle()).by_text("  ?!", bundle())
