"""After an analysis by the real worker: a segment edited and looked at again, an index built, searched and opened, by clicks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.gui, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def real_widget(host: Any, loaded_module: Any, scene: Any, random_bundle_folder: Path, tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    """The module's widget with its own worker, which runs in this environment's Python, and the random bundle as added model."""
    import shutil

    from VelvetMedCore.settings import Settings
    from VelvetMedLib import __version__

    shutil.copytree(random_bundle_folder, tmp_path / "data" / "bundles" / "random")
    monkeypatch.setenv("VELVETMED_DATA", str(tmp_path / "data"))
    host.app.startup_environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = Settings()
    settings.acknowledged_version, settings.own_python = __version__, sys.executable
    widget, parent = host.open_widget(loaded_module)
    widget.panels.analyze.choose_model("random-0")
    yield widget
    widget.cleanup()
    parent.close()


def run(widget: Any, timeout_s: float = 300.0) -> None:
    """Polls as the module's timer does, until the run that goes on has ended."""
    deadline = time.monotonic() + timeout_s
    while widget.logic.busy:
        assert time.monotonic() < deadline
        widget.poll()
        time.sleep(0.02)


def test_a_whole_review_with_the_real_worker(real_widget: Any, body: Any, make_body: Any, scene: Any, tmp_path: Path) -> None:
    import qt
    import slicer
    from vtk.util import numpy_support

    from VelvetMedLib import ct
    from VelvetMedLib.case.editing import rewrite, sentences

    widget, panels = real_widget, real_widget.panels
    node = slicer.util.addVolumeFromArray(body.voxels_kji, body.ijk_to_ras, "open scan")
    panels.analyze.ui.volumeSelector.setCurrentNode(node)
    panels.analyze.ui.applyButton.click()
    run(widget)
    case = widget.logic.case()
    assert case is not None, panels.analyze.ui.messageLabel.text
    # A whole organ is erased; what rests on it is looked at again, and a person's sentence stays.
    organ = next(s for s in case.segments if s.kind == "organ")
    place = next(place for place, _, sentence in sentences(case) if sentence.finding is not None)
    panels.change(lambda case: rewrite(case, place, "My own words."))
    segmentation = widget.logic.nodes().segmentation
    image = segmentation.GetBinaryLabelmapInternalRepresentation(organ.name)
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    values[values == segmentation.GetSegmentation().GetSegment(organ.name).GetLabelValue()] = 0
    image.Modified()
    segmentation.GetSegmentation().InvokeEvent(segmentation.GetSegmentation().SourceRepresentationModified)
    assert [s.name for s in widget.logic.case().segments if s.stale] == [organ.name]
    panels.report.ui.recomputeButton.click()
    run(widget)
    after = widget.logic.case()
    assert organ.name not in {s.name for s in after.segments} and not any(f.stale for f in after.findings)
    kept = [sentence for _, _, sentence in sentences(after)]
    assert "My own words." in [s.text for s in kept] and not [s.text for s in kept if s.stale and not s.by_person]
    # Another scan, under a name that nobody may see.
    scans = tmp_path / "scans"
    scans.mkdir()
    other = make_body(seed=5)
    ct.write_nifti(scans / "ROE^RICHARD.nii.gz", other.voxels_kji, other.ijk_to_ras)
    (scans / "ROE^RICHARD.txt").write_text("Right pleural effusion.", encoding="utf-8")
    similar = panels.similar
    similar.ui.indexPath.currentPath, similar.ui.scansPath.currentPath = str(tmp_path / "index"), str(scans)
    similar.ui.buildButton.click()
    run(widget)
    assert "One scan is in the index." in similar.ui.similarMessage.text, similar.ui.similarMessage.text
    similar.ui.byScanButton.click()
    run(widget)
    assert "Scan 1" in similar.ui.hitsView.plainText and "pleural effusion" in similar.ui.hitsView.plainText
    similar.ui.hitsView.anchorClicked.emit(qt.QUrl("open:1"))
    run(widget)
    beside = slicer.util.getNode("Similar scan 1")
    assert np.array_equal(slicer.util.arrayFromVolume(beside), other.voxels_kji)
    names = " ".join((scene.GetNthNode(n).GetName() or "") for n in range(scene.GetNumberOfNodes()))
    assert "ROE" not in names and "ROE" not in similar.ui.hitsView.plainText
    similar.ui.closeButton.click()
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1
