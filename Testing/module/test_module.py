"""The module file as Slicer sees it: registration, an old Slicer, sample data, the self-test, and a quiet import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gui

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_module_says_what_it_is_and_that_it_is_for_research(loaded_module: Any) -> None:
    import slicer

    entry = slicer.modules.velvetmed
    assert entry.title == "VelvetMed" and entry.categories == ["Segmentation"]
    assert "Research use only. Not for clinical use." in entry.helpText


def test_a_slicer_that_is_too_old_shows_one_sentence_and_no_panel(loaded_module: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.app, "minorVersion", 10)
    widget, parent = host.open_widget(loaded_module)
    layout = parent.layout()
    assert layout.count() == 1 and layout.itemAt(0).widget().text == "VelvetMed needs Slicer 5.12 or newer."
    assert widget.panels is None and widget.logic is None
    widget.cleanup()


def test_the_self_test_passes_in_slicers_own_runner(loaded_module: Any) -> None:
    import slicer

    slicer.testing.runUnitTest([REPOSITORY / "VelvetMed"], "VelvetMed")


def test_the_sample_scan_is_registered_once_the_application_is_up(loaded_module: Any, host: Any) -> None:
    sources = [source for source in host.recorders.sample_data.sources if source["sampleName"] == "VelvetMedChestCT"]
    assert sources and Path(sources[0]["thumbnailFileName"]).is_file() and callable(sources[0]["customDownloader"])


@contextmanager
def answering_questions(host: Any) -> Iterator[None]:
    """Out of testing mode, where slicer.util asks its questions; the host's message box says Ok at once."""
    host.app.testing = False
    try:
        yield
    finally:
        host.app.testing = True


def fake_python(folder: Path, body: str) -> str:
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n", encoding="utf-8")
    script.chmod(0o755)
    return str(script)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a script with a first line for POSIX")
def test_the_sample_button_asks_runs_the_sample_step_and_loads_the_scan(
    scene: Any, host: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ctk
    import nibabel as nib
    import numpy as np

    from VelvetMedCore.settings import Settings

    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "ct.nii.gz")
    body = f"assert sys.argv[-2:] == ['sample', '--json']\nprint(json.dumps({{'ct': {str(tmp_path / 'ct.nii.gz')!r}}}))"
    Settings().own_python = fake_python(tmp_path, body)
    with caplog.at_level("INFO"), answering_questions(host):
        node = host.recorders.sample_data.press("VelvetMedChestCT")
    assert node.GetName() == "VelvetMed chest CT" and "LIDC-IDRI" in node.GetDescription()
    question = ctk.ctkMessageBox.shown[-1]
    assert "Download the sample chest CT" in question and "CC BY 3.0" in question


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a script with a first line for POSIX")
def test_a_failed_download_says_why_in_four_parts(scene: Any, host: Any, tmp_path: Path) -> None:
    from VelvetMedCore.settings import Settings
    from VelvetMedLib.errors import DownloadError

    Settings().own_python = fake_python(tmp_path, "sys.exit('no route to host')")
    with pytest.raises(DownloadError) as caught, answering_questions(host):
        host.recorders.sample_data.press("VelvetMedChestCT")
    assert "no route to host" in caught.value.found and caught.value.next_step


def test_a_refused_question_downloads_nothing(scene: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: False)
    assert host.recorders.sample_data.press("VelvetMedChestCT") is None


def test_importing_the_module_opens_no_file_socket_or_process_of_its_own() -> None:
    """In a process of its own, where sockets and child processes raise and torch cannot be imported."""
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "Testing")!r})
from slicer_host.host import start
host = start()
import socket, subprocess
def refuse(*_, **__):
    raise AssertionError("something was started at import")
socket.socket, subprocess.Popen = refuse, refuse
sys.modules["torch"] = None
from pathlib import Path
module, _ = host.load_module(Path({str(REPOSITORY / "VelvetMed" / "VelvetMed.py")!r}))
host.app.startupCompleted.emit()
widget, _ = host.open_widget(module)
widget.cleanup()
assert not [name for name in sys.modules if name.split(".")[0] in ("monai", "transformers", "safetensors", "tokenizers", "pydicom")]
print("quiet")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.stdout.strip().endswith("quiet"), done.stderr[-2000:]
