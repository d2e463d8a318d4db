"""A made-up body and a made-up finished Case, for the module's tests and for screenshots where no scan or model is at hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

SPACING_MM = 4.0
SHAPE_KJI = (80, 72, 96)
IJK_TO_RAS = np.array(
    [[-SPACING_MM, 0, 0, 190.0], [0, -SPACING_MM, 0, 142.0], [0, 0, SPACING_MM, -160.0], [0, 0, 0, 1.0]],
)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels of an egg-shaped trunk with lungs, heart, liver, spleen, spine, kidneys and one lung nodule."""
    k, j, i = np.indices(SHAPE_KJI)
    r, a, s = (IJK_TO_RAS[n, 0] * i + IJK_TO_RAS[n, 1] * j + IJK_TO_RAS[n, 2] * k + IJK_TO_RAS[n, 3] for n in range(3))

    def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return sum(((x - c) / q) ** 2 for x, c, q in zip((r, a, s), center, radii, strict=True)) < 1

    hu = np.full(SHAPE_KJI, -1000.0)
    labels = np.zeros(SHAPE_KJI, np.uint8)
    body = (r / 165) ** 2 + (a / 115) ** 2 < 1
    hu[body] = -90
    hu[(r / 150) ** 2 + (a / 100) ** 2 < 1] = 45
    parts = (
        (11, 13, (68, 5, 60), (58, 80, 95), -840),  # right upper and lower lobes share one ellipsoid, split by height
        (9, 10, (-68, 5, 60), (56, 80, 95), -845),
        (18, 18, (-18, 30, 20), (52, 45, 55), 45),
        (4, 4, (60, 12, -70), (82, 75, 62), 62),
        (1, 1, (-92, -22, -75), (34, 44, 46), 55),
        (2, 2, (62, -48, -130), (26, 26, 40), 35),
        (3, 3, (-62, -48, -128), (26, 26, 40), 35),
        (26, 26, (0, -72, 0), (19, 21, 400), 220),
        (19, 19, (-20, -42, 0), (12, 12, 400), 140),
    )
    for upper, lower, center, radii, value in parts:
        inside = ellipsoid(center, radii) & body
        hu[inside] = value
        labels[inside] = np.where(s[inside] > 70, upper, lower)
    nodule = ellipsoid((-78, 22, 105), (9, 9, 9))
    hu[nodule], labels[nodule] = 30, 101
    noise = np.random.default_rng(1).normal(0, 12, SHAPE_KJI)
    return (hu + noise).round().astype(np.int16), labels


class PhantomWorker:
    """A worker client that takes four seconds over the phantom and then hands the made-up result over."""

    STAGES = ((0.05, "reading the scan"), (0.2, "global view"), (0.35, "fine view"), (0.8, "findings"), (0.95, "report"))

    def __init__(self) -> None:
        self._began = 0.0
        self._out: Path | None = None
        self._answering = False
        self._done = True
        self._count = 0
        self._verb = ""
        self._params: dict[str, Any] = {}

    def start(self) -> None:
        """Nothing to start."""

    def put_volume(self, voxels_kji: np.ndarray, ijk_to_ras: np.ndarray) -> dict[str, Any]:
        return {}

    def request(self, verb: str, params: Mapping[str, Any]) -> int:
        self._count += 1
        self._began, self._done, self._answering = time.monotonic(), False, verb == "ask"
        self._verb, self._params = verb, dict(params)
        self._out = Path(params["out"]) if "out" in params else None
        return self._count

    def poll(self) -> list[Any]:
        if self._done:
            return []
        passed = time.monotonic() - self._began
        if self._verb in ("similar", "report", "index"):
            return self._other(passed)
        if self._answering:
            self._done = True
            return [_Event("result", self._count, {"answer": "A nodule of 7 mm in the left upper lobe.", "confidence": 0.88, "link": None})]
        if passed > 4 and self._out is not None:
            self._done = True
            write_small_case(self._out, phantom()[1], IJK_TO_RAS)
            return [_Event("result", self._count, {"case": str(self._out)})]
        fraction, stage = max((s for s in self.STAGES if s[0] <= passed / 4), default=self.STAGES[0])
        return [_Event("progress", self._count, {"fraction": fraction, "stage": stage, "seconds_left": 4 - passed})]

    def _other(self, passed: float) -> list[Any]:
        """A made-up index that takes two seconds, made-up hits, and findings that stay as they were."""
        if self._verb == "index" and passed < 2:
            number = 1 + int(2 * passed)
            said = {"fraction": passed / 2, "stage": f"scan {number} of 4", "seconds_left": 2 - passed}
            return [_Event("progress", self._count, said)]
        self._done = True
        if self._verb == "index":
            return [_Event("result", self._count, {"added": 3, "count": 4, "skipped": ["entry 3: The scan cannot be read."]})]
        if self._verb == "report":
            case = small_case_parts(phantom()[1], IJK_TO_RAS)
            data = {"findings": [f.as_dict() for f in case["findings"]], "report": case["report"].as_dict()}
            return [_Event("result", self._count, data)]
        hits = [
            {
                "number": n,
                "similarity": 0.9 - 0.07 * n,
                "present": ["lung_nodule", "emphysema"][: 1 + n % 2],
                "source": source,
                "region": {"organ": self._params.get("region", "heart"), "similarity": 0.95 - 0.11 * n},
                "picture": None,
            }
            for n, source in ((1, "report"), (2, "report"), (4, "model"))
        ]
        return [_Event("result", self._count, {"hits": [h | {"shared": ["lung_nodule"][: h["number"] % 3]} for h in hits], "count": 4})]

    def cancel(self, request_id: int) -> None:
        self._done = True

    def kill(self) -> None:
        self._done = True

    def close(self) -> None:
        self._done = True


class _Event:
    def __init__(self, kind: str, request_id: int, data: dict[str, Any]) -> None:
        self.kind, self.request_id, self.data = kind, request_id, data


def _points(mask: np.ndarray, start_kji: list[int], ijk_to_ras: np.ndarray) -> np.ndarray:
    indices = (np.argwhere(mask) + start_kji)[:, ::-1]
    return indices @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]


def write_small_case(folder: Path, labels_kji: np.ndarray, ijk_to_ras: np.ndarray, **changes: Any) -> Path:
    """A finished Case on disk; changes: other values of its fields."""
    from VelvetMedLib.case import Case, write_case
    from VelvetMedLib.ct import Grid

    case = Case(**{**small_case_parts(labels_kji, ijk_to_ras), **changes})
    write_case(folder, case, segmentation_kji=labels_kji, grid=Grid(shape_kji=tuple(labels_kji.shape), ijk_to_ras=ijk_to_ras))
    return folder


def small_case_parts(labels_kji: np.ndarray, ijk_to_ras: np.ndarray) -> dict[str, Any]:
    """The fields of a made-up Case."""
    from VelvetMedLib import DRAFT_DISCLAIMER
    from VelvetMedLib.case import CaseFinding, CaseInput, CaseModel, Link, Report, Section, Segment, Sentence
    from VelvetMedLib.reports import ontology

    segments = []
    known: dict[int, tuple[Any, str]] = {item.label: (item, "organ") for item in ontology().structures}
    known |= {item.label: (item, "lesion") for item in ontology().lesions}
    voxel_ml = abs(float(np.linalg.det(ijk_to_ras[:3, :3]))) / 1000
    for label, part in enumerate(find_objects(labels_kji), start=1):
        if part is None:
            continue
        item, kind = known[label]
        points = _points(labels_kji[part] == label, [axis.start for axis in part], ijk_to_ras)
        segments.append(
            Segment(
                label=label,
                name=item.name,
                display=item.display,
                code=item.code,
                color=item.color,
                kind=kind,
                volume_ml=len(points) * voxel_ml,
                mean_hu=40.0,
                truncated=label == 4,
                center_ras_mm=tuple(points.mean(0)),
                box_ras_mm=(tuple(points.min(0)), tuple(points.max(0))),
            )
        )
    place = next((s for s in segments if s.label == 101), segments[0] if segments else None)
    center = place.center_ras_mm if place is not None else (0.0, 0.0, 0.0)
    box = place.box_ras_mm if place is not None else None
    link = Link(kind="lesion", label=101, center_ras_mm=center, box_ras_mm=box)
    findings = []
    for finding in ontology().findings:
        values: dict[str, Any] = {
            "name": finding.name,
            "display": finding.display,
            "state": "absent",
            "probability": 0.04,
            "side": None,
            "site": None,
            "size_mm": None,
            "count": None,
            "severity": None,
            "value": None,
            "unit": None,
            "volume_ml": None,
            "reason": None,
            "link": None,
        }
        if finding.name == "lung_nodule":
            values |= {"state": "present", "probability": 0.91, "side": "left", "site": "lung_upper_lobe_left"}
            values |= {"size_mm": 7.2, "count": 1, "link": link}
        if finding.name == "pleural_effusion":
            values |= {"state": "uncertain", "probability": 0.44, "side": "right", "link": link}
        if finding.name == "splenomegaly":
            values |= {"state": "not_assessed", "probability": None, "reason": "The spleen is not wholly in the scan."}
        findings.append(CaseFinding(**values))
    sentences = (
        Sentence(text="A nodule of 7 mm in the left upper lobe.", state="present", support=0.91, finding="lung_nodule", link=link),
        Sentence(text="No consolidation.", state="absent", support=0.95, finding="consolidation", link=None),
        Sentence(
            text="A small right pleural effusion is possible.", state="uncertain", support=0.44, finding="pleural_effusion", link=link
        ),
    )
    return {
        "id": "case",
        "created": "2026-11-21T12:00:00+00:00",
        "disclaimer": DRAFT_DISCLAIMER,
        "input": CaseInput(
            kind="array",
            shape_kji=labels_kji.shape,
            ijk_to_ras=ijk_to_ras.tolist(),
            spacing_mm=tuple(np.linalg.norm(ijk_to_ras[:3, :3], axis=0).tolist()),
            sha256="0" * 64,
        ),
        "model": CaseModel(id="demo", version="1", sha256="1" * 64, licence="Apache-2.0"),
        "segments": tuple(segments),
        "findings": tuple(findings),
        "report": Report(style="structured", sections=(Section(title="Lungs", sentences=sentences),)),
        "answers": (),
        "timings": {"total": 1.0},
        "warnings": (),
        "run": {},
        "files": {},
    }
