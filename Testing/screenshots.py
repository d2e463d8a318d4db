"""Pictures of the module in its main states, drawn without a screen: `python Testing/screenshots.py --out DIR`.

The real worker analyses the sample scan with the shipped model; where either cannot be had, a made-up phantom and a made-up
result stand in, and the script says so. The panel is drawn by the test host, not by Slicer: frames and fonts differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "Testing")]

PANEL_WIDTH, NARROW_WIDTH = 420, 350
README_PICTURE_BYTES = 450_000
README_PICTURES = {"report": "07_report_edited", "segments": "08_segment_edited", "ask": "11_ask", "similar": "13_similar"}
"""Names in docs/ of the pictures that the README shows beside module.png."""
VIEW_WIDTH, VIEW_BAR, VIEW_GAP = 430, 18, 3
VIEW_COLORS = {"Axial": "#f34a33", "3D": "#7480f0", "Coronal": "#6eb04b", "Sagittal": "#edd54c"}
DARK = {"Window": "#2b2b2e", "WindowText": "#e8e8e8", "Base": "#1f1f22", "AlternateBase": "#28282b", "Text": "#e8e8e8"}
DARK |= {"Button": "#3a3a3e", "ButtonText": "#e8e8e8", "Link": "#8ab4f8", "Highlight": "#3d6fb5", "HighlightedText": "#ffffff"}
DARK |= {"PlaceholderText": "#9a9a9a", "ToolTipBase": "#3a3a3e", "ToolTipText": "#e8e8e8"}


SECTIONS = ("setup", "analyze", "findings", "report", "ask", "similar", "segments", "save")


class Studio:
    """The host with the module's widget open, and a folder for pictures."""

    def __init__(self, out: Path) -> None:
        from slicer_host.host import start

        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.host = start()
        self.module, _ = self.host.load_module(REPOSITORY / "VelvetMed" / "VelvetMed.py")
        self.widget, self.parent = self.host.open_widget(self.module)
        self.parent.show()

    @property
    def board(self) -> Any:
        return self.widget.panels

    def settle(self) -> None:
        for _ in range(5):
            self.host.app.processEvents()

    def shoot(self, name: str, *, width: int = PANEL_WIDTH) -> Path:
        """The whole panel at a width, as high as it wants to be there."""
        layout = self.parent.layout()
        for _ in range(3):  # wrapped labels and tables settle their heights in turns
            self.settle()
            self.parent.setFixedSize(width, max(layout.heightForWidth(width), layout.minimumSize().height(), 120))
        self.settle()
        path = self.out / f"{name}.png"
        if not self.parent.grab().save(str(path)):
            raise OSError("a picture could not be written")
        print(path.name)
        return path

    def fold(self, *open_sections: str) -> None:
        """Opens the named sections and closes the others."""
        for name in SECTIONS:
            getattr(self.board.ui, f"{name}Section").collapsed = name not in open_sections

    def dark(self, on: bool) -> None:
        import qt

        palette = qt.QPalette()
        if on:
            for role, color in DARK.items():
                palette.setColor(getattr(qt.QPalette, role), qt.QColor(color))
            for role in ("WindowText", "ButtonText", "Text"):
                palette.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, role), qt.QColor("#7a7a7a"))
        self.host.app.setPalette(palette)
        self.board.refresh_from_scene()  # the colour of links is taken when the text is set
        self.settle()

    def run(self, on_progress: Callable[[Any], None] | None = None) -> None:
        """Presses Apply and polls as the module's own timer would."""
        self.board.analyze.ui.applyButton.click()
        self.wait(lambda: on_progress(self.board.analyze.ui.progressBar.value / 1000) if on_progress is not None else None)

    def wait(self, meanwhile: Callable[[], Any] = lambda: None, timeout_s: float = 600.0) -> None:
        """Until the run that goes on has ended."""
        deadline = time.monotonic() + timeout_s
        while self.widget.logic.busy and time.monotonic() < deadline:
            self.widget.poll()
            meanwhile()
            self.settle()
            time.sleep(0.05)


def load_sample() -> Any:
    """The sample scan as a node, or None where it cannot be had."""
    import slicer

    from VelvetMedLib.cohorts.sample import get_sample
    from VelvetMedLib.errors import DownloadError

    try:
        return slicer.util.loadVolume(str(get_sample(dicom=False).ct), {"name": "Chest CT"})
    except DownloadError as problem:
        print(f"no sample scan: {problem.what}")
        return None


def load_phantom() -> Any:
    """The made-up body as a node."""
    import slicer
    from velvetmed_phantom import IJK_TO_RAS, phantom

    return slicer.util.addVolumeFromArray(phantom()[0], IJK_TO_RAS, "Phantom")


def made_up_model() -> Any:
    from VelvetMedCore.models import ModelEntry

    return ModelEntry(id="none (made-up result)", folder=REPOSITORY)


def set_window(volume: Any, window: float, level: float) -> None:
    volume.CreateDefaultDisplayNodes()
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(window, level)


def take_views(studio: Studio, views: Any) -> dict[str, Path]:
    """Four views of the scene as it is now."""
    paths = {}
    for orientation in ("Axial", "Coronal", "Sagittal"):
        paths[orientation] = studio.out / f"view_{orientation.lower()}.png"
        views.save_slice(orientation, paths[orientation])
    paths["3D"] = studio.out / "view_3d.png"
    views.save_3d(paths["3D"], azimuth=-20, elevation=8, zoom=1.3)
    return paths


def compose(panel: Path, views: dict[str, Path], out: Path) -> None:
    """The panel on the left, four views on the right under coloured bars, as Slicer lays them out."""
    import qt

    left = qt.QImage(str(panel))
    picture = qt.QImage(left.width() + 2 * (VIEW_WIDTH + VIEW_GAP), left.height(), qt.QImage.Format_RGB32)
    picture.fill(qt.QColor("#1b1b1d"))
    painter = qt.QPainter(picture)
    painter.drawImage(0, 0, left)
    cell_height = (left.height() + VIEW_GAP) // 2
    for index, name in enumerate(("Axial", "3D", "Coronal", "Sagittal")):
        x = left.width() + VIEW_GAP + (index % 2) * (VIEW_WIDTH + VIEW_GAP)
        y = (index // 2) * cell_height
        painter.fillRect(x, y, VIEW_WIDTH, VIEW_BAR, qt.QColor(VIEW_COLORS[name]))
        painter.setPen(qt.QColor("#1b1b1d"))
        painter.drawText(x + 6, y + 14, name)
        painter.drawImage(x, y + VIEW_BAR, qt.QImage(str(views[name])))
    painter.end()
    if not picture.save(str(out)):
        raise OSError("the composed picture could not be written")
    print(out.name)
    save_small(picture, out.with_name("module.png"))


def save_small(picture: Any, path: Path) -> None:
    """The same picture for the README, made smaller until it weighs less than 300 kB."""
    import qt

    for percent in (100, 90, 80, 70, 60, 50):
        smaller = picture.scaledToWidth(picture.width() * percent // 100, qt.Qt.SmoothTransformation)
        smaller.save(str(path), "PNG", 0)
        if path.stat().st_size < README_PICTURE_BYTES:
            print(f"{path.name} at {percent} %")
            return
    raise OSError("the picture for the README cannot be made small enough")


def scans_to_index(folder: Path, count: int = 4) -> Path:
    """Made-up scans with reports beside them, as another archive would hold them: `03.nii.gz`, `03.txt`."""
    from VelvetMedLib.cohorts.options import CohortOptions
    from VelvetMedLib.cohorts.synthetic import make_case
    from VelvetMedLib.ct import write_nifti
    from VelvetMedLib.reports import write_report

    options = CohortOptions(normal_fraction=0.0, view_weights=(1.0, 0.0, 0.0, 0.0), mode_weights=(1.0, 0.0, 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        case = make_case(number, options)
        write_nifti(folder / f"{number:02d}.nii.gz", case.volume.voxels_kji, case.volume.ijk_to_ras)
        sections = write_report(case.records, style="structured", rng=np.random.default_rng(number))
        text = "\n".join(sentence.text for section in sections for sentence in section.sentences)
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


def show_first_start(studio: Studio) -> None:
    studio.fold("setup", "analyze")
    studio.shoot("01_first_start")
    studio.board.setup.ui.acknowledgeButton.click()


def show_a_run(studio: Studio, volume: Any) -> None:
    studio.fold("analyze")
    studio.board.analyze.ui.volumeSelector.setCurrentNode(volume)
    studio.shoot("02_ready")
    studio.board.analyze.ui.formBox.collapsed = False
    studio.shoot("02_form_of_the_draft")
    studio.board.analyze.ui.formBox.collapsed = True
    taken: list[float] = []

    def while_running(fraction: float) -> None:
        if not taken and fraction >= 0.3:
            taken.append(fraction)
            studio.shoot("03_running")

    studio.run(while_running)
    if studio.widget.logic.case() is None:
        raise SystemExit(studio.board.analyze.ui.messageLabel.text or "the analysis did not finish")
    studio.fold("analyze", "findings")
    studio.shoot("04_findings")
    studio.board.findings.set_filter("all")
    studio.fold("findings")
    studio.shoot("05_all_findings")
    studio.board.findings.set_filter("relevant")


def show_the_report(studio: Studio) -> None:
    """Read, then with a sentence accepted, one rejected, one rewritten and one added."""
    report = studio.board.report
    studio.fold("report")
    studio.shoot("06_report")
    places = [place for place, _section, sentence in sentences_of(studio) if sentence.finding is not None]
    report.choose(places[0])
    report.ui.acceptButton.click()
    report.choose(places[1])
    report.ui.rejectButton.click()
    report.choose(places[2])
    report.ui.sentenceEdit.setPlainText("No change since the last examination.")
    report.ui.keepButton.click()
    studio.shoot("07_report_edited")


def sentences_of(studio: Studio) -> list[Any]:
    from VelvetMedLib.case.editing import sentences

    return list(sentences(studio.widget.logic.case()))


def show_an_edited_segment(studio: Studio) -> None:
    """Four slices of a lobe are erased, as in the Segment Editor; then what rests on it is made anew."""
    from vtk.util import numpy_support

    node = studio.widget.logic.nodes().segmentation
    organ = next(s for s in studio.widget.logic.case().segments if s.name == "lung_upper_lobe_left")
    image = node.GetBinaryLabelmapInternalRepresentation(organ.name)
    voxels = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    inside = voxels == node.GetSegmentation().GetSegment(organ.name).GetLabelValue()
    slices = np.flatnonzero(inside.any(axis=(1, 2)))
    for k in slices[-4:]:
        voxels[k][inside[k]] = 0
    image.Modified()
    node.GetSegmentation().InvokeEvent(node.GetSegmentation().SourceRepresentationModified)
    studio.fold("segments")
    studio.shoot("08_segment_edited")
    studio.fold("report")
    studio.shoot("09_report_out_of_date")
    studio.board.report.ui.recomputeButton.click()
    studio.wait()
    stale = [place for place, _section, sentence in sentences_of(studio) if sentence.stale]
    for place in stale:  # a person's own words: read again and accepted
        studio.board.report.choose(place)
        studio.board.report.ui.acceptButton.click()
    studio.fold("segments")
    studio.shoot("10_segments")


def show_questions(studio: Studio) -> None:
    """Of the whole scan, of a segment, of a box, and one that no scan can answer; then a box that has left the scan."""
    import slicer

    studio.fold("ask")
    ask, case = studio.board.ask, studio.widget.logic.case()

    def put(question: str) -> None:
        ask.ui.questionEdit.text = question
        ask.ui.askButton.click()
        studio.wait()

    put("Has the nodule grown?")
    put("Is there a pleural effusion?")
    put("Which lung is larger?")
    segment = next((s for s in case.segments if s.name == "liver"), case.segments[0])
    ask.ui.aboutSelector.setCurrentIndex(1 + 1 + ask._segments.index(segment.name))
    put("What is wrong here?")
    studio.board.go_to_segment(segment)
    ask.ui.aboutSelector.setCurrentIndex(1)
    ask.ui.newBoxButton.click()
    put("What is seen here?")
    studio.shoot("11_ask")
    slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")[0].SetCenter(900.0, 0.0, 0.0)
    studio.shoot("11_ask_outside")
    ask.ui.aboutSelector.setCurrentIndex(0)
    for node in slicer.util.getNodesByClass("vtkMRMLMarkupsROINode"):
        slicer.mrmlScene.RemoveNode(node)


def show_similar(studio: Studio) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        panel = studio.board.similar
        panel.ui.indexPath.currentPath = str(Path(temporary) / "index")
        panel.ui.scansPath.currentPath = str(scans_to_index(Path(temporary) / "scans"))
        panel.ui.buildBox.collapsed = False
        studio.fold("similar")
        panel.ui.buildButton.click()
        taken: list[bool] = []

        def while_building() -> None:
            if not taken and panel.ui.progressBar.value > 250:
                taken.append(True)
                panel.ui.indexPath.currentPath, real = "index", panel.ui.indexPath.currentPath
                panel.ui.scansPath.currentPath = "scans"
                studio.shoot("12_index_being_built")
                panel.ui.indexPath.currentPath = real

        studio.wait(while_building)
        panel.ui.byScanButton.click()
        studio.wait()
        real, panel.ui.indexPath.currentPath = panel.ui.indexPath.currentPath, "index"
        studio.shoot("13_similar")
        panel.ui.indexPath.currentPath = real


def show_saving(studio: Studio) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        panel = studio.board.save
        panel.ui.folderPath.currentPath = temporary
        studio.fold("save")
        panel.ui.reportButton.click()
        panel.ui.folderPath.currentPath = "results"
        studio.shoot("14_save")


def show_narrow(studio: Studio) -> None:
    studio.board.similar.ui.indexPath.currentPath = "index"
    for name, sections in (("findings_report", ("analyze", "findings", "report")), ("rest", ("ask", "similar", "segments", "save"))):
        studio.fold(*sections)
        studio.shoot(f"15_narrow_{name}", width=NARROW_WIDTH)
        studio.dark(True)
        studio.shoot(f"16_narrow_dark_{name}", width=NARROW_WIDTH)
        studio.dark(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the VelvetMed module in its main states.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--phantom", action="store_true", help="use the made-up phantom even if the sample scan is there")
    options = parser.parse_args()
    studio = Studio(options.out.resolve())
    from velvetmed_phantom import PhantomWorker

    show_first_start(studio)
    studio.board.logic.settings.own_python = sys.executable
    volume = None if options.phantom or studio.board.analyze.model is None else load_sample()
    if volume is None:
        print("A made-up phantom and a made-up result stand in for scan and model.")
        volume = load_phantom()
        studio.board.logic._connect = PhantomWorker
        import VelvetMedPanels.board

        VelvetMedPanels.board.list_models = lambda *_, **__: [made_up_model()]
        studio.board.refresh_from_scene()
    set_window(volume, 400, 40)
    show_a_run(studio, volume)
    show_the_report(studio)
    show_an_edited_segment(studio)
    show_questions(studio)
    show_similar(studio)
    show_saving(studio)
    show_narrow(studio)
    studio.fold("findings", "report")
    picture_with_views(studio, volume)
    show_an_error(studio)
    for name, picture in README_PICTURES.items():
        import qt

        save_small(qt.QImage(str(studio.out / f"{picture}.png")), studio.out / f"{name}.png")
    studio.widget.cleanup()


def picture_with_views(studio: Studio, volume: Any) -> None:
    """The panel beside axial, coronal, sagittal and 3D views at the first finding: the picture of the README."""
    from slicer_host.views import OffscreenViews

    if not any(finding.state in ("present", "uncertain") for finding in studio.widget.logic.case().findings):
        studio.board.findings.set_filter("all")  # an empty table shows nothing
    panel = studio.shoot("panel_for_views")
    views = OffscreenViews((VIEW_WIDTH, (studio.parent.height - VIEW_GAP) // 2 - VIEW_BAR))
    for orientation in ("Axial", "Coronal", "Sagittal"):
        views.add_slice(orientation, volume)
    segmentation = studio.widget.logic.nodes().segmentation
    display = segmentation.GetDisplayNode()
    display.SetOpacity2DFill(0.35)
    studio.board.segments.ui.show3dButton.checked = True
    hide_in_3d(segmentation, ("ribs", "shoulder_girdle", "sternum", "autochthon", "costal_cartilages"))
    for segment in studio.widget.logic.case().segments:
        if segment.name.startswith("lung_") and segment.kind == "organ":
            display.SetSegmentOpacity3D(segment.name, 0.35)
    findings = [finding for finding in studio.widget.logic.case().findings if finding.link is not None]
    for finding in sorted(findings, key=lambda finding: finding.state != "present")[:1]:
        studio.board.go_to(finding.link)
    compose(panel, take_views(studio, views), studio.out / "17_module_with_views.png")


def hide_in_3d(segmentation: Any, names: tuple[str, ...]) -> None:
    """The chest wall would hide everything else."""
    for name in names:
        if segmentation.GetSegmentation().GetSegment(name) is not None:
            segmentation.GetDisplayNode().SetSegmentVisibility3D(name, False)


def show_an_error(studio: Studio) -> None:
    from VelvetMedLib.worker.wording import exit_error

    studio.fold("analyze")
    studio.board.analyze.failed(exit_error(1, ["MemoryError"])[1])
    studio.shoot("18_failed", width=NARROW_WIDTH)


if __name__ == "__main__":
    main()
