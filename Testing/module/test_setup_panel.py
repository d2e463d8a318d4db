"""Setup driven by clicks: models with their cards, models that come and go, the Python, the device, packages and the check."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gui

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a script with a first line for POSIX")


def fake_python(folder: Path, body: str) -> str:
    """A program that stands in for the worker's Python: it sees the words of the command line in sys.argv[4:]."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable} -I\nimport json, sys, time\nwords = sys.argv[4:]\n{body}\n", encoding="utf-8")
    script.chmod(0o755)
    return str(script)


def use_python(widget: Any, program: str) -> None:
    widget.panels.setup.ui.pythonSelector.setCurrentIndex(1)
    widget.panels.setup.ui.pythonPath.currentPath = program


def until_done(setup: Any, host: Any, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while setup._errand is not None and time.monotonic() < deadline:
        setup.poll()
        host.app.processEvents()
        time.sleep(0.02)
    assert setup._errand is None


def names(setup: Any) -> list[str]:
    table = setup.ui.modelsTable
    return [table.item(row, 0).text() for row in range(table.rowCount)]


def row_of(setup: Any, name: str) -> int:
    return next(row for row, text in enumerate(names(setup)) if text.startswith(name))


def test_shipped_and_added_models_are_listed_with_size_and_origin(widget: Any) -> None:
    setup = widget.panels.setup
    table = setup.ui.modelsTable
    rows = {table.item(n, 0).text(): (table.item(n, 1).text(), table.item(n, 2).text()) for n in range(table.rowCount)}
    assert rows["mine 0.1"] == ("0 MB", "you")
    demo = next(value for name, value in rows.items() if name.startswith("demo"))
    assert demo[1] == "VelvetMed" and int(demo[0].split()[0]) >= 1


def test_choosing_a_model_shows_its_card_and_chooses_it_for_the_analysis(widget: Any) -> None:
    setup, analyze = widget.panels.setup, widget.panels.analyze
    setup.ui.modelsTable.setCurrentCell(row_of(setup, "demo"), 0)
    assert analyze.model.id == "demo"
    text = setup.ui.modelCard.text
    assert all(title in text for title in ("Trained on:", "Measured:", "Meant for:", "Licence:")) and "No patients" in text
    analyze.choose_model("mine")
    assert setup.model.id == "mine" and "12 held-out" in setup.ui.modelCard.text and "0.71" in setup.ui.modelCard.text


def test_the_whole_card_opens_and_a_model_without_one_says_so(widget: Any) -> None:
    setup = widget.panels.setup
    setup.ui.wholeCardButton.click()
    assert "without a card" in setup.ui.cardView.plainText
    setup.ui.modelsTable.setCurrentCell(row_of(setup, "demo"), 0)
    assert "Model card" in setup.ui.cardView.plainText and "Research use only" in setup.ui.cardView.plainText
    setup.ui.wholeCardButton.click()
    assert not setup.ui.cardView.isVisibleTo(setup.ui.root)


def test_markup_in_a_models_words_is_shown_and_not_interpreted(widget: Any, model_folder: Path) -> None:
    data = json.loads((model_folder / "bundle.json").read_text(encoding="utf-8"))
    (model_folder / "bundle.json").write_text(json.dumps(data | {"training_data": "<img src=x> & more"}), encoding="utf-8")
    widget.panels.on_settings()
    assert "&lt;img src=x&gt; &amp; more" in widget.panels.setup.ui.modelCard.text


def test_a_damaged_model_is_listed_so_that_it_can_be_removed_but_not_offered(widget: Any, model_folder: Path) -> None:
    (model_folder / "bundle.json").write_text("{", encoding="utf-8")
    widget.panels.on_settings()
    setup = widget.panels.setup
    setup.ui.modelsTable.setCurrentCell(row_of(setup, "mine"), 0)
    assert "cannot be used" in setup.ui.modelCard.text and setup.ui.removeButton.enabled
    assert [entry.id for entry in widget.panels.analyze._models] == ["demo"]


def test_a_shipped_model_cannot_be_removed(widget: Any) -> None:
    setup = widget.panels.setup
    setup.ui.modelsTable.setCurrentCell(row_of(setup, "demo"), 0)
    assert not setup.ui.removeButton.enabled


@POSIX_ONLY
def test_a_model_is_removed_after_asking_and_the_freed_space_is_said(
    widget: Any, host: Any, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slicer

    asked: list[str] = []
    body = f"""assert words == ['models', 'remove', 'mine', '--json'], words
import shutil; shutil.rmtree({str(model_folder)!r}); print(json.dumps({{'removed': 'mine', 'bytes': 12_400_000}}))"""
    use_python(widget, fake_python(tmp_path, body))
    setup = widget.panels.setup
    setup.ui.modelsTable.setCurrentCell(row_of(setup, "mine"), 0)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_, **__: asked.append(text) or False)
    setup.ui.removeButton.click()
    assert "Delete the model mine 0.1" in asked[0] and setup._errand is None and model_folder.is_dir()
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
    setup.ui.removeButton.click()
    until_done(setup, host)
    assert setup.ui.setupStatus.text == "12 MB are free again." and not any(name.startswith("mine") for name in names(setup))


@POSIX_ONLY
@pytest.mark.parametrize("button", ["addFolderButton", "addZipButton"])
def test_a_model_is_added_from_a_folder_or_a_zip(widget: Any, host: Any, tmp_path: Path, model_folder: Path, button: str) -> None:
    import qt

    body = f"""assert words[:2] == ['models', 'add'] and words[2].endswith('their model'), words
import pathlib, shutil; shutil.copytree({str(model_folder)!r}, pathlib.Path({str(model_folder)!r}).parent / 'other')
path = pathlib.Path({str(model_folder)!r}).parent / 'other' / 'bundle.json'
path.write_text(path.read_text().replace('"mine"', '"other"'))
print(json.dumps({{'name': 'other', 'licence': 'CC BY 4.0', 'origin': 'added'}}))"""
    use_python(widget, fake_python(tmp_path, body))
    setup = widget.panels.setup
    qt.QFileDialog.answer = str(tmp_path / "their model")
    try:
        getattr(setup.ui, button).click()
        assert not setup.ui.addFolderButton.enabled and "Copying" in setup.ui.setupStatus.text
        until_done(setup, host)
    finally:
        qt.QFileDialog.answer = ""
    assert "other 0.1" in names(setup) and "CC BY 4.0" in setup.ui.setupStatus.text and setup.ui.addFolderButton.enabled


def test_closing_the_file_dialog_adds_nothing(widget: Any) -> None:
    widget.panels.setup.ui.addFolderButton.click()
    widget.panels.setup.ui.addZipButton.click()
    assert widget.panels.setup._errand is None


@POSIX_ONLY
def test_a_model_that_is_refused_is_explained_in_the_four_parts_of_the_library(widget: Any, host: Any, tmp_path: Path) -> None:
    import qt

    problem = {"code": "bundle", "what": "A hash is wrong.", "found": "a", "expected": "b", "next_step": "Get it again."}
    use_python(widget, fake_python(tmp_path, f"print(json.dumps({{'error': {problem!r}}})); sys.exit(2)"))
    setup = widget.panels.setup
    qt.QFileDialog.answer = str(tmp_path)
    try:
        setup.ui.addFolderButton.click()
        until_done(setup, host)
    finally:
        qt.QFileDialog.answer = ""
    assert setup.ui.setupMessage.isVisibleTo(setup.ui.root) and "A hash is wrong." in setup.ui.setupMessage.text
    assert "Next: Get it again." in setup.ui.setupMessage.text


@POSIX_ONLY
def test_the_check_lists_what_is_there_and_what_is_missing(widget: Any, host: Any, tmp_path: Path) -> None:
    checks = [
        {"name": "torch", "ok": False, "found": "not installed", "todo": "pip install 'torch>=2.2'"},
        {"name": "numpy", "ok": True, "found": "2.4", "todo": ""},
        {"name": "monai", "ok": None, "found": "not installed", "todo": ""},
    ]
    body = f"assert words == ['doctor', '--json']\nprint(json.dumps({{'ready': False, 'devices': ['cpu'], 'checks': {checks!r}}}))"
    use_python(widget, fake_python(tmp_path, body))
    setup = widget.panels.setup
    setup.ui.deviceSelector.setCurrentIndex(1)
    setup.ui.checkButton.click()
    until_done(setup, host)
    text = setup.ui.checkView.text
    assert "torch: not installed" in text and "numpy: 2.4" in text and "monai" not in text and "choose the CPU" in text
    assert "missing" in setup.ui.setupStatus.text


@POSIX_ONLY
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit(\"ModuleNotFoundError: No module named 'SimpleITK'\")", "lacks the package SimpleITK"),
        ("print('no json')", "did not run to its end"),
        ("sys.exit(7)", "exit code 7"),
    ],
)
def test_a_python_that_cannot_be_asked_is_explained_in_words(widget: Any, host: Any, tmp_path: Path, body: str, words: str) -> None:
    use_python(widget, fake_python(tmp_path, body))
    setup = widget.panels.setup
    setup.ui.checkButton.click()
    until_done(setup, host)
    assert words in setup.ui.setupMessage.text and "Next:" in setup.ui.setupMessage.text and "Traceback" not in setup.ui.setupMessage.text


def test_a_python_that_is_not_there_is_said_at_once(widget: Any, tmp_path: Path) -> None:
    use_python(widget, str(tmp_path / "nothing"))
    widget.panels.setup.ui.checkButton.click()
    assert "does not exist" in widget.panels.setup.ui.setupMessage.text and widget.panels.setup._errand is None


@POSIX_ONLY
def test_closing_the_module_ends_a_check_that_runs(widget: Any, host: Any, tmp_path: Path) -> None:
    use_python(widget, fake_python(tmp_path, "time.sleep(60)"))
    setup = widget.panels.setup
    setup.ui.checkButton.click()
    child = setup._errand[0]._child
    widget.cleanup()
    assert child.wait(30) and setup._errand is None and not setup._timer.active


def test_the_real_check_and_the_real_catalogue_answer(widget: Any, host: Any, tmp_path: Path, random_bundle_folder: Path) -> None:
    """No stand-in: this environment's own Python adds, checks and removes a model."""
    import qt

    use_python(widget, sys.executable)
    setup = widget.panels.setup
    host.app.startup_environment["VELVETMED_DATA"] = str(tmp_path / "data")
    host.app.startup_environment["OMP_NUM_THREADS"] = "1"
    qt.QFileDialog.answer = str(random_bundle_folder)
    try:
        setup.ui.addFolderButton.click()
        until_done(setup, host, 280)
        assert "random-0 0" in names(setup), setup.ui.setupMessage.text
        setup.ui.checkButton.click()
        until_done(setup, host, 280)
        assert "torch" in setup.ui.checkView.text and "bundle random-0" in setup.ui.checkView.text, setup.ui.setupMessage.text
    finally:
        qt.QFileDialog.answer = ""
        host.app.startup_environment.pop("VELVETMED_DATA")


def test_the_device_is_remembered_and_travels_with_the_request(widget: Any, ct: Any, fake_worker: Any) -> None:
    from VelvetMedCore.settings import Settings

    widget.panels.setup.ui.deviceSelector.setCurrentIndex(1)
    assert Settings().device == "cuda"
    widget.panels.analyze.ui.applyButton.click()
    assert fake_worker.requests[-1][1]["device"] == "cuda"


def test_what_is_missing_is_named_with_its_size_before_anything_is_installed(widget: Any, host: Any) -> None:
    setup, packaging = widget.panels.setup, host.recorders.packaging
    packaging.missing = {"torch", "tokenizers"}
    try:
        setup.refresh()
        text = setup.ui.packagesLabel.text
        assert text.startswith("Missing: torch, tokenizers. About 203 to 3010 MB") and packaging.requested == []
        setup.ui.installButton.click()
        assert setup.ui.packagesLabel.text == "All there."
        constraints = Path(packaging.requested[-1]["constraints"]).read_text(encoding="utf-8")
        assert "numpy==" in constraints and "SimpleITK==" in constraints
    finally:
        packaging.missing = set()
        packaging.requested.clear()
        host.recorders.torch.requested.clear()


def test_without_the_pytorch_extension_the_user_is_told_what_to_do(widget: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    said: list[str] = []
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, *_, **__: said.append(text))
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    host.recorders.packaging.missing = {"torch"}
    try:
        widget.panels.setup.refresh()
        widget.panels.setup.ui.installButton.click()
    finally:
        host.recorders.packaging.missing = set()
    assert "Extensions Manager" in said[0] and host.recorders.packaging.requested == []
