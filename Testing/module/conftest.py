"""Fixtures of the module's tests: the host, a clean scene, the loaded module, a fake worker, and a small finished Case."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_FILE = REPOSITORY / "VelvetMed" / "VelvetMed.py"

OBLIQUE_LEFT_HANDED = np.array(
    [
        [-0.7518, -0.3078, 0.0, 11.0],
        [-0.2736, 0.8457, 0.0, -22.0],
        [0.0, 0.0, 2.5, 33.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""A rotation by 20 degrees about S, spacing 0.8, 0.9, 2.5 mm, first axis mirrored: determinant < 0."""


@pytest.fixture(scope="session")
def host() -> Any:
    testing = str(REPOSITORY / "Testing")
    if testing not in sys.path:
        sys.path.insert(0, testing)
    try:
        from slicer_host.host import start
    except ImportError as error:  # a missing system library of Qt shows as an ImportError
        pytest.skip(f"the Slicer test host cannot start here: {error}")
    return start()


@pytest.fixture(scope="session")
def loaded_module(host: Any) -> Any:
    """The module as Slicer loads it at start-up."""
    module, _ = host.load_module(MODULE_FILE)
    host.app.startupCompleted.emit()
    from VelvetMedCore.library import make_importable

    make_importable()
    return module


@pytest.fixture
def scene(host: Any, loaded_module: Any) -> Iterator[Any]:
    """The scene, empty before and after."""
    import slicer

    host.close_scene()
    slicer.app.settings().clear()
    yield slicer.mrmlScene
    host.close_scene()


@dataclass
class FakeEvent:
    kind: str
    request_id: int | None
    data: dict[str, Any]


@dataclass
class FakeWorker:
    """A worker client that does what the test says: events are put by hand."""

    events: list[FakeEvent] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    volumes: list[tuple[Any, Any]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    started: int = 0
    killed: int = 0
    closed: int = 0

    def start(self) -> None:
        self.started += 1

    def put_volume(self, voxels_kji: Any, ijk_to_ras: Any) -> dict[str, Any]:
        self.volumes.append((voxels_kji, ijk_to_ras))
        return {"npy": "private", "ijk_to_ras": np.asarray(ijk_to_ras).tolist(), "unit": "HU"}

    def request(self, verb: str, params: Mapping[str, Any]) -> int:
        self.requests.append((verb, dict(params)))
        return len(self.requests)

    def poll(self) -> list[FakeEvent]:
        events, self.events = self.events, []
        return events

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    def kill(self) -> None:
        self.killed += 1

    def close(self) -> None:
        self.closed += 1

    def say(self, kind: str, **data: Any) -> None:
        self.events.append(FakeEvent(kind, len(self.requests), data))


@pytest.fixture
def fake_worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def logic(scene: Any, fake_worker: FakeWorker) -> Iterator[Any]:
    from VelvetMedCore.logic import VelvetMedLogic

    logic = VelvetMedLogic(connect=lambda: fake_worker)
    yield logic
    logic.stop()


@pytest.fixture
def ct(scene: Any) -> Any:
    """An oblique, left-handed CT-like volume node."""
    import slicer

    voxels = np.random.default_rng(0).normal(40, 10, (20, 30, 25)).astype(np.int16)
    return slicer.util.addVolumeFromArray(voxels, OBLIQUE_LEFT_HANDED, "DOE^JOHN 1950")


@pytest.fixture
def labels() -> np.ndarray:
    """Liver, spleen and a lung nodule on the grid of `ct`."""
    labels_kji = np.zeros((20, 30, 25), np.uint8)
    labels_kji[4:12, 5:20, 3:12] = 4
    labels_kji[5:10, 6:12, 15:20] = 1
    labels_kji[14:16, 20:23, 5:8] = 101
    return labels_kji


@pytest.fixture
def make_case(tmp_path: Path, labels: np.ndarray) -> Callable[..., Path]:
    """Writes a small finished Case, as the worker would, and returns its folder."""

    def make(folder: Path | None = None, **changes: Any) -> Path:
        from velvetmed_phantom import write_small_case

        return write_small_case(folder or tmp_path / "case", changes.pop("labels", labels), OBLIQUE_LEFT_HANDED, **changes)

    return make


CARD = {
    "format_version": 1,
    "id": "mine",
    "version": "0.1",
    "licence": "Apache-2.0",
    "training_data": "synthetic cases",
    "intended_use": "tests",
    "results": {
        "cases": {"test": 12},
        "held_out_synthetic": {"organ_dice_mean": 0.71, "findings": {"x": {"assessed": True, "auroc": 0.8}}},
    },
    "findings": [{"name": "pleural_effusion", "assessed": True, "threshold_absent": 0.2, "threshold_present": 0.8}],
}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "bundles" / "mine"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps(CARD), encoding="utf-8")
    return folder


@pytest.fixture
def widget(
    host: Any, loaded_module: Any, scene: Any, fake_worker: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The module's widget, statement acknowledged, an added model chosen, no scan."""
    from VelvetMedCore import logic as logic_module
    from VelvetMedCore.settings import Settings
    from VelvetMedLib import __version__

    monkeypatch.setattr(logic_module.VelvetMedLogic, "_connect_worker", lambda self: fake_worker)
    monkeypatch.setenv("VELVETMED_DATA", str(model_folder.parents[1]))
    settings = Settings()
    settings.acknowledged_version = __version__
    opened, parent = host.open_widget(loaded_module)
    opened.panels.analyze.choose_model("mine")
    parent.resize(350, 900)
    parent.show()
    host.app.processEvents()
    yield opened
    opened.cleanup()
    parent.close()


@pytest.fixture
def finished(widget: Any, ct: Any, fake_worker: Any, make_case: Callable[..., Path]) -> Any:
    """The widget after one analysis."""
    widget.panels.analyze.ui.applyButton.click()
    fake_worker.say("result", case=str(make_case(Path(fake_worker.requests[-1][1]["out"]))))
    widget.poll()
    return widget
