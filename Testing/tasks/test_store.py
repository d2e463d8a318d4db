"""Where cases are kept: one contract for the folder and the database, and what a folder promises beyond it."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.tasks.store_items import DIMENSION, REGION_DIMENSION, facts, make_items, sorted_by_hand, unit
from VelvetMedLib.errors import IndexMismatchError, UsageError
from VelvetMedLib.tasks.store import Where, create_store, files, is_address, open_store, store_exists

PLACES = ("folder", pytest.param("database", marks=pytest.mark.slow))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty place for an index: a folder, or a database of a server that the tests start."""
    kind = getattr(request, "param", "folder")
    return tmp_path / "index" if kind == "folder" else request.getfixturevalue("new_database")()


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_every_search_equals_looking_at_every_case_and_sorting(place: Any):
    items = make_items(120)
    store = create_store(place, facts())
    for part in (items[:1], items[1:50], items[50:]):
        assert store.add(part) == len(part)
    filters = [
        Where(),
        Where(exclude="volume3"),
        Where(present=("lung_nodule",)),
        Where(absent=("lung_nodule", "liver_lesion")),
        Where(present=("pleural_effusion",), organs=("liver", "heart"), source="model"),
        Where(with_text=True, source="report"),
        Where(since="2026-01-01"),
    ]
    for where, region, count in product(filters, (None, "liver"), (1, 7, 500)):
        query = unit(DIMENSION if region is None else REGION_DIMENSION, seed=3)
        found = store.nearest(query, count, where, region)
        wanted = sorted_by_hand(items, query, count, where, region)
        assert [number for number, _ in found] == [number for number, _ in wanted], (where, region, count)
        assert np.allclose([score for _, score in found], [score for _, score in wanted], atol=1e-5)
    assert store.nearest(query, 5, Where(since="2100-01-01"), "liver") == []
    store.close()


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_what_went_in_comes_out_and_one_volume_counts_once(place: Any):
    items = make_items(8)
    assert not store_exists(place)
    store = create_store(place, facts())
    assert store.add(items) == 8 and store.add([items[2], *make_items(2, first=8), items[2]]) == 2
    store.close()
    assert store_exists(place)
    again = open_store(place)
    assert len(again) == 10 and again.knows("volume9") and not again.knows("volume10")
    for number, entry in zip(range(8, 0, -1), again.entries(range(8, 0, -1)), strict=True):
        item = items[number - 1]
        assert entry.number == number
        for name in ("id", "present", "absent", "source", "text", "picture"):
            assert getattr(entry, name) == getattr(item, name)
        assert dict(entry.centers) == {"liver": (1.0, 2.5, 1.0 - number)}
        assert entry.regions.keys() == item.regions.keys()
        assert all(np.array_equal(vector, item.regions[organ]) for organ, vector in entry.regions.items())
        assert (entry.match_tokens is None) == (item.match_tokens is None)
        assert entry.match_tokens is None or np.array_equal(entry.match_tokens, item.match_tokens)
    for number in (0, 11):
        with pytest.raises(IndexMismatchError, match="no such case"):
            again.entries([1, number])
        with pytest.raises(IndexMismatchError, match="no such case"):
            again.place(number)
    with pytest.raises(ValueError, match="finite"):
        again.add([replace(items[0], volume_sha256="x", study=np.full(DIMENSION, np.nan, np.float32))])
    again.close()


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_removed_case_is_gone_and_its_number_is_never_given_again(place: Any):
    items = make_items(9)
    store = create_store(place, facts())
    store.add(items)
    assert store.remove([9, 2, 77]) == 2 and len(store) == 7 and not store.knows("volume1")
    wanted = [n for n, _ in sorted_by_hand(items, items[0].study, 9, Where(), None) if n not in (9, 2)]
    assert [n for n, _ in store.nearest(items[0].study, 9, Where())] == wanted
    assert [entry.id for entry in store.entries([3, 8])] == ["case002", "case007"]
    assert store.add([items[8]]) == 1 and store.entries([10])[0].picture == b"picture8"
    assert store.remove(range(1, 11)) == 8 and len(store) == 0 and store.nearest(items[0].study, 3, Where()) == []
    store.close()


def test_nothing_of_a_removed_case_is_left_in_any_file_and_places_stand_in_the_private_part_alone(place: Path):
    store = create_store(place, facts())
    items = make_items(6)
    store.add(items)
    gone = items[5]  # case 6
    traces = [gone.study.tobytes(), gone.regions["heart" if "heart" in gone.regions else "liver"].tobytes(), b"picture5", b"note in 5"]
    traces += [b"DOE^JANE-5", store.facts.salted("volume5").encode()]

    def holders(trace: bytes) -> list[str]:
        return sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file() and trace in p.read_bytes())

    assert all(holders(trace) for trace in traces) and holders(b"DOE") == [files.PLACES]
    assert not holders(b"volume5") and store.place(6) == gone.place and store.place(1) is None
    if os.name == "posix":
        assert not any((place / part).stat().st_mode & 0o077 for part in (files.PLACES, Path(files.PLACES).parent))
    store.remove([6])
    assert not any(holders(trace) for trace in traces)
    assert sorted(p.name for p in place.glob("*.f32")) == ["regions-2.f32", "studies-2.f32"]
    assert store.place(5) == items[4].place


def test_adding_writes_behind_what_is_there_and_nothing_else(place: Path):
    store = create_store(place, facts())
    store.add(make_items(50))
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in place.glob("*.f32")}
    store.add(make_items(20, first=50))
    for path, (inode, content) in before.items():
        assert path.stat().st_ino == inode and path.read_bytes()[: len(content)] == content
        assert path.stat().st_size * 50 == len(content) * 70


def test_vectors_are_flushed_before_the_commit_that_names_them(place: Path, monkeypatch: pytest.MonkeyPatch):
    store = create_store(place, facts())
    said: list[str] = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flush(handle), said.append("flush"))[1])
    store._base.set_trace_callback(lambda words: said.append(words.split()[0]))
    store.add(make_items(3))
    assert [word for word in said if word in ("BEGIN", "flush", "INSERT", "COMMIT")][:5] == ["BEGIN", "flush", "flush", "INSERT", "INSERT"]
    assert said.index("COMMIT") > max(n for n, word in enumerate(said) if word in ("flush", "INSERT", "UPDATE"))


def test_two_programs_add_in_turns_and_a_reader_keeps_what_it_saw(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "BUSY_S", 0.05)
    items = make_items(30)
    first = create_store(place, facts())
    first.add(items[:10])
    second, reader = open_store(place), open_store(place)
    second.add(items[10:20])
    first.add(items[20:])
    second.remove([1])
    query = unit(DIMENSION, seed=5)
    assert [n for n, _ in reader.nearest(query, 99, Where())] == [n for n, _ in sorted_by_hand(items[:10], query, 99, Where(), None)]
    late = open_store(place)
    wanted = [found for found in sorted_by_hand(items, query, 99, Where(), None) if found[0] != 1]
    assert [n for n, _ in late.nearest(query, 99, Where())] == [n for n, _ in wanted] and late.entries([30])[0].id == "case029"
    for who, seen in ((reader, items[:10]), (late, items)):
        for where in (Where(present=("lung_nodule",)), Where(present=("lung_nodule",), absent=("liver_lesion",), organs=("heart",))):
            wanted = sorted_by_hand(seen, query, 99, where, None)
            assert [n for n, _ in who.nearest(query, 99, where)] == [n for n, _ in wanted if n != 1]
    with sqlite3.connect(place / files.ITEMS) as another:
        another.execute("BEGIN IMMEDIATE")
        with pytest.raises(IndexMismatchError, match="in use"):
            first.add(make_items(1, first=40))
    assert first.add(make_items(1, first=40)) == 1


def test_a_full_disk_is_said_in_words_and_loses_nothing(place: Path, monkeypatch: pytest.MonkeyPatch):
    store = create_store(place, facts())
    store.add(make_items(4))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(IndexMismatchError, match="cannot be read or written") as caught:
            store.add(make_items(2, first=4))
        with pytest.raises(IndexMismatchError):
            store.remove([1])
    assert str(place) not in str(caught.value) and len(open_store(place)) == 4
    assert store.add(make_items(2, first=4)) == 2 and store.entries([6])[0].id == "case005"


@pytest.mark.parametrize("name", ["studies-1.f32", "regions-1.f32", "items.sqlite", "index.json"])
def test_a_damaged_or_missing_part_is_refused_before_a_hit_is_shown(place: Path, name: str):
    create_store(place, facts()).add(make_items(5))

    def look() -> None:
        store = open_store(place)
        store.entries([number for number, _ in store.nearest(unit(DIMENSION, seed=1), 5, Where())])

    look()
    content = bytearray((place / name).read_bytes())
    content[-20] ^= 255
    (place / name).write_bytes(content)
    with pytest.raises(IndexMismatchError):
        look()
    (place / name).unlink()
    with pytest.raises(IndexMismatchError):
        look()


def test_an_index_of_another_version_must_be_built_again(place: Path):
    create_store(place, facts()).add(make_items(1))
    told = json.loads((place / files.MARK).read_text())
    for version in (2, 9, None):
        (place / files.MARK).write_text(json.dumps(told | {"format_version": version}))
        with pytest.raises(IndexMismatchError, match="must be built again"):
            open_store(place)


def test_an_index_is_never_made_over_something_else(place: Path):
    place.mkdir()
    create_store(place, facts()).close()
    (place.parent / "mine").mkdir()
    (place.parent / "mine" / "thesis.txt").write_text("precious")
    for taken in (place, place.parent / "mine", place.parent / "mine" / "thesis.txt"):
        with pytest.raises(IndexMismatchError, match="cannot be written there"):
            create_store(taken, facts())
    assert sorted(p.name for p in place.parent.iterdir()) == ["index", "mine"]


@pytest.mark.parametrize("wrong", [{"present": ("plague",)}, {"absent": ("x",)}, {"organs": ("lung",)}, {"since": "yesterday"}])
def test_a_filter_that_names_nothing_we_know_is_refused_in_words(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        Where(**wrong)


def test_a_path_never_reaches_a_server():
    assert is_address("postgresql://host/base") and is_address("postgres://host/base")
    assert not is_address(Path("postgresql://host/base")) and not is_address("index") and not is_address("C://index")


@pytest.mark.slow
def test_a_server_that_is_not_there_is_refused_without_repeating_the_address(new_database: Callable[[], str]):
    address = new_database()
    with pytest.raises(IndexMismatchError, match="no index here"):
        open_store(address)
    for wrong in (address.replace("/index", "/secret"), "postgresql://doe:secret@127.0.0.1:9/base"):
        with pytest.raises(IndexMismatchError, match="cannot be used") as caught:
            open_store(wrong)
        assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_no_place_and_no_plain_hash_is_sent_to_a_server(new_database: Callable[[], str]):
    import psycopg

    address = new_database()
    store = create_store(address, facts())
    store.add(make_items(5))
    with psycopg.connect(address) as db:
        for table in ("velvetmed_cases", "velvetmed_regions", "velvetmed_index"):
            held = db.execute(f"SELECT string_agg(t::text, ' ') FROM {table} t").fetchone()[0]
            assert "DOE" not in held and "/scans" not in held and "volume1" not in held
    assert store.place(2) is None
    store.close()
