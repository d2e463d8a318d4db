"""The list of models: read from bundle.json alone, in the library's own places, with what each card says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gui


@pytest.fixture(autouse=True)
def module_loaded(loaded_module: Any) -> None:
    """The module's texts are translated through Slicer."""


def write(folder: Path, **data: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"format_version": 1, "id": folder.name} | data), encoding="utf-8")
    return folder


def test_added_models_are_looked_for_where_the_library_keeps_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from VelvetMedCore.models import added_models_folder
    from VelvetMedLib.bundle.catalogue import user_folder

    monkeypatch.delenv("VELVETMED_DATA", raising=False)
    assert added_models_folder(os.environ) == user_folder()
    monkeypatch.setenv("VELVETMED_DATA", str(tmp_path))
    assert added_models_folder(os.environ) == user_folder()


def test_models_are_listed_from_their_cards_and_unusable_ones_with_their_problem(tmp_path: Path) -> None:
    from VelvetMedCore.models import list_models

    shipped, added = tmp_path / "VelvetMedLib" / "assets" / "bundles", tmp_path / "data" / "bundles"
    write(shipped / "demo", version="0.1", licence="Apache-2.0", training_data=["a", "b"])
    (write(shipped / "broken") / "bundle.json").write_text("{", encoding="utf-8")
    write(shipped / "later", format_version=99)
    write(added / "mine", version="2")
    write(added / ".mine-removed-7", version="2")
    write(added / "other", id="demo")
    (shipped / "no bundle").mkdir()
    entries = {entry.id: entry for entry in list_models(tmp_path, environ={"VELVETMED_DATA": str(tmp_path / "data")})}
    assert set(entries) == {"demo", "broken", "later", "mine"}
    demo = entries["demo"]  # a shipped name cannot be shadowed
    assert (demo.title, demo.licence, demo.training_data, demo.origin) == ("demo 0.1", "Apache-2.0", "a; b", "shipped")
    assert demo.bytes == (demo.folder / "bundle.json").stat().st_size and entries["mine"].origin == "added"
    assert "damaged" in entries["broken"].problem and "another version" in entries["later"].problem and not demo.problem


def test_the_shipped_model_says_how_it_was_measured_and_its_thresholds_are_the_bundles(repository: Path) -> None:
    from VelvetMedCore.models import list_models
    from VelvetMedLib.bundle import load_bundle

    demo = next(entry for entry in list_models(repository, environ={"VELVETMED_DATA": "nowhere"}) if entry.id == "demo")
    config = load_bundle("demo").config
    assert demo.thresholds == {f.name: (f.threshold_absent, f.threshold_present) for f in config.findings if f.assessed}
    assert "AUROC" in demo.measured and "No patients" in demo.measured and "Research use only" in demo.card()


@pytest.mark.parametrize(
    ("results", "text"),
    [
        (None, "Nothing is recorded."),
        ({}, "Nothing is recorded."),
        ({"public": {"dice": 0.9}}, "See the whole card."),
        ({"held_out_synthetic": {"organ_dice_mean": "?"}}, "See the whole card."),
        ({"held_out_synthetic": {"organ_dice_mean": 0.5}}, "held-out synthetic cases: organ Dice 0.50 on average. No patients."),
    ],
)
def test_unknown_records_of_results_are_announced_and_not_guessed(results: Any, text: str) -> None:
    from VelvetMedCore.models import measured

    assert measured(results) == text
