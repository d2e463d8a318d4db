"""kill -9 at every step of adding to a folder and of removing from it: what was said to be done is done, the rest did not happen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from Testing.house.tree import ROOT
from Testing.tasks.store_items import DIMENSION, facts, make_items, sorted_by_hand, unit
from VelvetMedLib.tasks.store import Store, Where, create_store, open_store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills itself by SIGKILL")

CHILD = """
import os, signal, sys
from pathlib import Path
from Testing.tasks.store_items import make_items
from VelvetMedLib.tasks.store import open_store

folder, verb, step, seen = Path(sys.argv[1]), sys.argv[2], sys.argv[3], 0
store = open_store(folder)

def dead_at(word):
    global seen
    seen += word == step.split(":")[0]
    if seen == int(step.split(":")[1]) and word == step.split(":")[0]:
        os.kill(os.getpid(), signal.SIGKILL)

flush, unlink = os.fsync, Path.unlink
def dying_flush(handle):
    dead_at("flush")
    flush(handle)
def dying_unlink(self, **words):
    dead_at("unlink")
    unlink(self, **words)
os.fsync, Path.unlink = dying_flush, dying_unlink
store._base.set_trace_callback(lambda words: dead_at(words.split()[0]))
items = make_items(60)
for n in range(20, 60, 4):
    done = store.add(items[n : n + 4]) if verb == "add" else store.remove([n - 19])
    print(n, flush=True)
"""


def run(folder: Path, verb: str, step: str) -> list[int]:
    """The steps that the child said were done before it killed itself."""
    words = [sys.executable, "-c", CHILD, str(folder), verb, step]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("step", ["BEGIN:4", "flush:3", "flush:4", "INSERT:9", "UPDATE:2", "COMMIT:3", "COMMIT:4", "SELECT:20"])
def test_a_kill_while_adding_loses_nothing_that_was_said_and_half_adds_nothing(tmp_path: Path, step: str):
    items = make_items(60)
    store = create_store(tmp_path / "index", facts())
    store.add(items[:20])
    store.close()
    said = run(tmp_path / "index", "add", step)
    again = open_store(tmp_path / "index")
    kept = len(again)
    # The batch under way is there whole or not at all: killed after its commit, it may not have been said yet.
    assert kept in (20 + 4 * len(said), 24 + 4 * len(said))
    check(again, kept, set())
    assert again.add(items) == 60 - kept and len(list((tmp_path / "index").glob("*.f32"))) == 2
    check(again, 60, set())


@pytest.mark.parametrize("step", ["flush:3", "flush:4", "DELETE:3", "UPDATE:2", "COMMIT:4", "COMMIT:5", "unlink:1", "unlink:3"])
def test_a_kill_while_removing_leaves_a_whole_index_and_the_next_writer_sweeps_up(tmp_path: Path, step: str):
    store = create_store(tmp_path / "index", facts())
    store.add(make_items(20))
    store.add(make_items(40, first=20))
    store.close()
    said = [n - 19 for n in run(tmp_path / "index", "remove", step)]
    again = open_store(tmp_path / "index")
    gone = {n for n in range(1, 42, 4) if n not in again._now.numbers}
    assert set(said) <= gone and len(gone) <= len(said) + 1 and len(again) == 60 - len(gone)
    check(again, 60, gone)
    assert again.remove([2]) == 1 and len(list((tmp_path / "index").glob("*.f32"))) == 2
    check(again, 60, gone | {2})


def check(store: Store, count: int, gone: set[int]) -> None:
    """Every case that is left is found by its vector and reads as it was written."""
    query = unit(DIMENSION, seed=99)
    wanted = [n for n, _ in sorted_by_hand(make_items(count), query, count, Where(), None) if n not in gone]
    found = [n for n, _ in store.nearest(query, count, Where())]
    assert found == wanted
    assert [entry.picture for entry in store.entries(sorted(found))] == [
        item.picture for n, item in enumerate(make_items(count), 1) if n not in gone
    ]


@pytest.mark.slow
def test_kills_at_any_time_lose_nothing_that_was_said(tmp_path: Path):
    create_store(tmp_path / "index", facts()).close()
    script = CHILD.replace("range(20, 60, 4)", "range(0, 60, 1)").replace("n : n + 4", "n : n + 1")
    before = 0
    for pause_s in (0.0, 0.01, 0.03, 0.05, 0.08):
        words = [sys.executable, "-c", script, str(tmp_path / "index"), "add", "never:1"]
        child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline()
        time.sleep(pause_s)
        child.kill()
        said = 1 + len(child.stdout.read().split())
        child.wait()
        child.stdout.close()
        store = open_store(tmp_path / "index")
        assert len(store) >= max(before, said)
        check(store, len(store), set())
        before = len(store)
        store.close()
