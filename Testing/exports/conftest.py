"""A small phantom case on a left-handed grid, with places known in millimetres, and text that tries to break a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from VelvetMedLib import ct
from VelvetMedLib.case import Answer, Case, CaseFinding, CaseInput, CaseModel, Link, Report, Section, Segment, Sentence, write_case
from VelvetMedLib.exports import niivue
from VelvetMedLib.reports import ontology

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202e & 'single' \"double\" {{ 7 * 7 }}"
LIVER_RAS = (28.0, -4.0, -12.0)
NODULE_RAS = (-30.0, 12.0, 20.0)


@dataclass(frozen=True)
class Phantom:
    """The case, its voxels, its labels, and a viewer script that does nothing."""

    case: Case
    volume: ct.Volume
    labels_kji: np.ndarray
    script: str = "var niivue = {};"


def _link(label: int | None, center: tuple[float, float, float], radius: float, kind: str = "lesion") -> Link:
    return Link(
        kind=kind, label=label, center_ras_mm=center, box_ras_mm=(tuple(x - radius for x in center), tuple(x + radius for x in center))
    )


def _segment(name: str, center: tuple[float, float, float], radius: float, *, truncated: bool = False) -> Segment:
    entry = next(s for s in (*ontology().structures, *ontology().lesions) if s.name == name)
    place = _link(entry.label, center, radius)
    return Segment(
        label=entry.label,
        name=name,
        display=entry.display,
        code=ontology().structures[0].code,
        color=entry.color,
        kind="lesion" if entry.label > 100 else "organ",
        volume_ml=4 / 3 * np.pi * radius**3 / 1000,
        mean_hu=-12.4,
        truncated=truncated,
        center_ras_mm=center,
        box_ras_mm=place.box_ras_mm,
    )


def make_phantom(case_id: str = "case-phantom") -> Phantom:
    """A body with a liver and a nodule. i runs to the patient's left here, so array order and patient order differ."""
    ijk_to_ras = np.array([[-4.0, 0, 0, 78], [0, 4, 0, -78], [0, 0, 4, -62], [0, 0, 0, 1]])
    k, j, i = np.indices((32, 40, 40))
    ras = np.stack([-4.0 * i + 78, 4.0 * j - 78, 4.0 * k - 62])
    body = (ras[0] / 70) ** 2 + (ras[1] / 60) ** 2 < 1
    voxels = np.where(body, 40, -1000).astype(np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    for name, center, radius, hu in (("liver", LIVER_RAS, 24, 60), ("lung_nodule", NODULE_RAS, 14, 90)):
        inside = sum((ras[axis] - center[axis]) ** 2 for axis in range(3)) < radius**2
        labels[inside] = next(s.label for s in (*ontology().structures, *ontology().lesions) if s.name == name)
        voxels[inside] = hu
    volume = ct.from_array(voxels, ijk_to_ras)
    nodule = _link(101, NODULE_RAS, 14)
    liver = _link(4, LIVER_RAS, 24, "segment")
    findings = (
        CaseFinding(name="splenomegaly", display="splenomegaly", state="not_assessed", reason="the spleen is outside the field of view"),
        CaseFinding(name="liver_lesion", display="liver lesion", state="absent", probability=0.04, link=liver),
        CaseFinding(name="emphysema", display="emphysema", state="uncertain", probability=0.45, value=0.031, unit="1", side="both"),
        CaseFinding(
            name="lung_nodule",
            display="lung nodule",
            state="present",
            probability=0.91,
            side="left",
            site="lung_lower_lobe_left",
            size_mm=28.4,
            count=2,
            value=28.4,
            unit="mm",
            volume_ml=11.5,
            link=nodule,
        ),
    )
    sections = (
        Section(title="technique", sentences=(Sentence(text=HOSTILE),)),
        Section(
            title="lungs",
            sentences=(
                Sentence(text="Nodule in the left lower lobe, 28 mm.", state="present", support=0.9, finding="lung_nodule", link=nodule),
                Sentence(text="Emphysema cannot be excluded.", state="uncertain", support=0.4, finding="emphysema"),
            ),
        ),
        Section(
            title="liver", sentences=(Sentence(text="No liver lesion.", state="absent", support=0.96, finding="liver_lesion", link=liver),)
        ),
    )
    case = Case(
        id=case_id,
        created="2026-11-21T22:40:12.345678+00:00",
        input=CaseInput.of(volume),
        model=CaseModel(id="demo", version="1", sha256="cd" * 32, licence="Apache-2.0"),
        segments=(_segment("liver", LIVER_RAS, 24, truncated=True), _segment("lung_nodule", NODULE_RAS, 14)),
        findings=findings,
        report=Report(style="structured", sections=sections),
        answers=(Answer(question=HOSTILE, answer="Yes, on the left.", confidence=0.8, link=nodule, created="2026-11-21T22:41:00+00:00"),),
        timings={"encode": 1.234},
        warnings=(f"Careful with {HOSTILE[:30]}",),
        run={"device": "cpu", "versions": {"python": "3.11"}, "attribution": "Phantom made by the tests."},
    )
    return Phantom(case=case, volume=volume, labels_kji=labels)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return make_phantom()


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom) -> Path:
    """The phantom as a Case folder, image and segmentation included."""
    folder = tmp_path_factory.mktemp("phantom") / "case"
    write_case(folder, phantom.case, segmentation_kji=phantom.labels_kji, grid=phantom.volume.grid, volume=phantom.volume)
    return folder


@pytest.fixture
def dummy_viewer(tmp_path: Path, phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for NiiVue's script that passes for the pinned one, for tests that only look at what is written."""
    import hashlib

    path = tmp_path / "viewer.js"
    path.write_text(phantom.script, encoding="utf-8")
    monkeypatch.setattr(niivue, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path
