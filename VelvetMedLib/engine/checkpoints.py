"""Checkpoints of a run: whole or absent, verified before they are read, and never fewer than one good one on the disk.

    checkpoints/last/       the newest: weights, optimiser, average, generators (*.safetensors), state.json
    checkpoints/previous/   the one before
    checkpoints/best/       weights only, of the best validation so far, with its figures

A checkpoint is written as a hidden folder, flushed, and moved into place by renames. state.json is its commit mark: it is
written last and holds the size and SHA-256 of every other file. A torn or damaged `last` is passed over for `previous`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from VelvetMedLib.engine.files import disk_error, put_folder
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.files import file_sha256, flush_file, flush_folder, read_json, write_json

FORMAT_VERSION = 1
MARK = "state.json"
LAST, PREVIOUS, BEST = "last", "previous", "best"

Parts = dict[str, dict[str, Tensor]]
"""File name without ending -> its tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """step: optimiser steps done. facts: JSON-ready. note: why it is not the newest one, for the user; "" if it is."""

    step: int
    parts: Parts
    facts: dict[str, Any]
    note: str = ""


class Checkpoints:
    """The checkpoints below a run folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    def save(self, step: int, parts: Parts, facts: Mapping[str, Any]) -> None:
        """Becomes `last`; what was `last` becomes `previous`. Raises TrainingError where the disk refuses; older ones stay good."""
        self._put(LAST, step, parts, facts, aside=PREVIOUS)

    def save_best(self, step: int, parts: Parts, facts: Mapping[str, Any]) -> None:
        """Becomes `best`."""
        self._put(BEST, step, parts, facts, aside=".best-before")
        shutil.rmtree(self.folder / ".best-before", ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; None where the run has none. Raises TrainingError if there are some and all are damaged."""
        self._sweep()
        faults: list[str] = []
        for name in (LAST, PREVIOUS):
            if not (self.folder / name).exists():
                continue
            try:
                found = read_checkpoint(self.folder / name)
            except TrainingError as error:
                faults.append(f"{name}: {error.found}")
                continue
            note = f"The newest checkpoint is damaged ({faults[0]}); going on from step {found.step}." if faults else ""
            return Checkpoint(found.step, found.parts, found.facts, note)
        if faults:
            raise TrainingError(
                "No checkpoint of this run can be read.",
                found="; ".join(faults),
                expected="at least one whole checkpoint",
                next_step="Restore the folder 'checkpoints' from a copy, or remove it to begin this run anew.",
            )
        return None

    def load_best(self) -> Checkpoint | None:
        """The best checkpoint; None where there is none or it is damaged."""
        for name in (BEST, ".best-before"):
            try:
                return read_checkpoint(self.folder / name)
            except TrainingError:
                continue
        return None

    def _put(self, name: str, step: int, parts: Parts, facts: Mapping[str, Any], *, aside: str) -> None:
        new = self.folder / f".new-{name}-{os.getpid()}"
        size = sum(tensor.numel() * tensor.element_size() for tensors in parts.values() for tensor in tensors.values())
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            write_checkpoint(new, step, parts, facts)
            put_folder(new, self.folder / name, self.folder / aside)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            kept = self.load()
            safe = f"The checkpoint of step {kept.step} is whole." if kept else "No checkpoint was written yet."
            raise disk_error("A checkpoint", error, size, safe) from error

    def _sweep(self) -> None:
        """Remove what a kill left half-made."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith((".new-", ".previous.", "..best-before.")):
                    shutil.rmtree(path, ignore_errors=True)


def write_checkpoint(folder: Path, step: int, parts: Parts, facts: Mapping[str, Any]) -> None:
    """The files of one checkpoint into an empty folder, flushed; state.json last."""
    files = {}
    for name, tensors in parts.items():
        path = folder / f"{name}.safetensors"
        save_tensors(tensors, path)
        flush_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(folder / MARK, {"format_version": FORMAT_VERSION, "step": step, "files": files, "facts": dict(facts)})
    flush_folder(folder)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify every file of a checkpoint folder, then read it. Raises TrainingError that names what is wrong."""
    state = read_json(folder / MARK)
    if state is None:
        raise _damaged("no readable state.json")
    if state.get("format_version") != FORMAT_VERSION:
        raise _damaged(f"format version {state.get('format_version')!r}, this version reads {FORMAT_VERSION}")
    files = state["files"]
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(f"no {name}")
        if path.stat().st_size != entry["bytes"]:
            raise _damaged(f"{name} has {path.stat().st_size} of {entry['bytes']} bytes")
        if file_sha256(path) != entry["sha256"]:
            raise _damaged(f"{name} does not have its checksum")
    parts = {name.removesuffix(".safetensors"): load_file(str(folder / name)) for name in files}
    return Checkpoint(int(state["step"]), parts, dict(state["facts"]))


def _damaged(found: str) -> TrainingError:
    return TrainingError(
        "A checkpoint is damaged.",
        found=found,
        expected="all files that state.json lists, with their sizes and checksums",
        next_step="Call the training again: it goes on from the checkpoint before.",
    )
