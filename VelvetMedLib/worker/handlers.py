"""What the worker does for each request: thin, the work is in `tasks`; heavy imports happen inside the functions."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from VelvetMedLib import __version__
from VelvetMedLib.errors import WorkerError
from VelvetMedLib.shapes import Affine, ArrayKJI
from VelvetMedLib.worker.protocol import PROTOCOL_VERSION

if TYPE_CHECKING:
    from VelvetMedLib.bundle import Bundle
    from VelvetMedLib.case import About, Case
    from VelvetMedLib.ct import Volume
    from VelvetMedLib.tasks import Hit, Index
    from VelvetMedLib.tasks.writers import DraftSettings, Writer

PACKAGES = ("torch", "numpy", "SimpleITK", "safetensors", "tokenizers", "pydicom")
DEFAULT_BUNDLE = "demo"


class Context(Protocol):
    """What a handler gets beside its parameters (`server.Context`, or a test's)."""

    def progress(self, fraction: float, stage: str, seconds_left: float | None = None) -> None: ...
    def cancel(self) -> None: ...


Handler: TypeAlias = Callable[[dict[str, Any], Context], Mapping[str, Any]]


class Session:
    """What one worker keeps between requests: the model in use. (`tasks.encode` keeps the last encodings.)"""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._key: tuple[object, ...] = ()
        self._writer: Writer | None = None
        self._writer_key: tuple[object, ...] = ()

    def bundle(self, params: Mapping[str, Any], case: Case | None = None) -> Bundle:
        """The model that the request names; else the one of its Case; else the one in use. Loaded and verified once per version."""
        from VelvetMedLib import bundle as bundles

        named = params.get("bundle")
        device = _device(params)
        if named is None and self._bundle is not None and (case is None or self._bundle.sha256 == case.model.sha256):
            return self._bundle
        if named is None:
            named = DEFAULT_BUNDLE if case is None else case.model.id
        folder = Path(bundles.locate(named))
        key = (folder.resolve(), _stamp(folder / "bundle.json"), _stamp(folder / "model.safetensors"), device)
        if self._bundle is None or key != self._key:
            self._bundle = None  # Two models at once would double the memory.
            self._bundle, self._key = bundles.load_bundle(folder, device=device), key
        return self._bundle

    # the requests, in the order of protocol.VERBS

    def hello(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        """Versions of everything that could explain a difference; imports none of it."""
        versions: dict[str, str | None] = {"velvetmed": __version__, "python": platform.python_version()}
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = None
        return {"protocol": PROTOCOL_VERSION, "versions": versions, "missing": [name for name in PACKAGES if versions[name] is None]}

    def load(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        context.progress(0.0, "loading the model")
        bundle = self.bundle(params)
        config = bundle.config
        return {"id": config.id, "version": config.version, "licence": config.licence, "sha256": bundle.sha256, "device": bundle.device}

    def encode(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        from VelvetMedLib import tasks

        encoding = tasks.encode(volume_of(params), self.bundle(params), progress=context.progress, cancel=context.cancel)
        return {"volume_sha256": encoding.volume_sha256, "encoding_key": encoding.encoding_key, "precision": encoding.precision}

    def analyze(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        if "out" not in params:
            raise _incomplete("analyze", "out")
        case = self._analysed(params, context)
        return {"case": str(params["out"]), "id": case.id, "timings": dict(case.timings), "warnings": list(case.warnings)}

    def segment(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        return {"segments": self._case_of(params, context).segments}

    def findings(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        return {"findings": self._case_of(params, context).findings}

    def report(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        """The draft; with `labels` and `edited`, findings and draft as they are after a person has edited those segments."""
        if "labels" in params:
            return self._revised(params, context)
        case = self._case_of(params, context)
        return {"disclaimer": case.disclaimer, "report": case.report}

    def ask(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        """The answer as the Case keeps it; with `about`, a segment or box (`case.About`), on that alone."""
        from VelvetMedLib import tasks
        from VelvetMedLib.case import read_case

        folder, question = Path(_need(params, "ask", "case")), str(_need(params, "ask", "question"))
        about = _about(params["about"]) if params.get("about") is not None else None
        bundle = self.bundle(params, read_case(folder))
        return tasks.ask(folder, question, bundle, about=about, progress=context.progress, cancel=context.cancel).as_dict()

    def ground(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        """Where a phrase is, and whether anything of it is marked.

        With `out`, the heat-map is written there as NIfTI on the scan's own grid; with `scan_grid` false it stays on the coarser grid
        that it was made on: a viewer interpolates as well and moves less.
        """
        from VelvetMedLib import ct, tasks
        from VelvetMedLib.case import read_case

        folder, phrase = Path(_need(params, "ground", "case")), str(_need(params, "ground", "phrase"))
        bundle = self.bundle(params, read_case(folder))
        encoding = tasks.case_encoding(folder, bundle, required=True)
        assert encoding is not None
        context.progress(0.3, "looking for the words")
        found = tasks.ground(encoding, phrase, bundle)
        answer = {
            "peak_ras_mm": found.peak_ras_mm,
            "score": found.score,
            "marked": found.marked,
            "source": found.source,
            "finding": found.finding,
            "structures": [{"name": name, "similarity": similarity} for name, similarity in found.structures],
        }
        context.cancel()
        if "out" in params:
            grid = encoding.scan_grid if params.get("scan_grid", True) else found.grid
            ct.write_nifti(Path(params["out"]), found.heat_kji if grid is found.grid else found.on(grid), grid.ijk_to_ras)
            answer["heatmap"] = str(params["out"])
        return answer

    def similar(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        """Nearest cases with the reason and a small picture; with `open`, that case's scan is written to `out` instead.

        With `region`, that organ of the scan is compared alone.
        """
        from VelvetMedLib import tasks

        # A Path: what comes from Slicer never names a database.
        folder = Path(_need(params, "similar", "index"))
        context.progress(0.0, "loading the model")
        with tasks.Index(folder, self.bundle(params)) as index:
            if "open" in params:
                return self._opened(index, int(params["open"]), Path(_need(params, "similar", "out")), context)
            hits = tasks.search(
                index,
                text=params.get("text"),
                volume=volume_of(params) if "volume" in params else None,
                case=Path(params["case"]) if "case" in params else None,
                count=int(params.get("count", 5)),
                where=tasks.Where(exclude=params.get("exclude")),
                region=params.get("region"),
                progress=context.progress,
                cancel=context.cancel,
            )
            return {"hits": [hit.as_dict() | {"picture": _picture(hit)} for hit in hits], "count": len(index)}

    def _opened(self, index: Index, number: int, out: Path, context: Context) -> dict[str, Any]:
        """A case's voxels as `.npy` and its matrix: nothing of the file it came from goes along, least of all its name."""
        from VelvetMedLib import ct

        context.progress(0.1, "reading the scan")
        place = index.place(number)
        image = place / "ct.nii.gz"
        volume = ct.read(image if image.is_file() else place)
        context.cancel()
        with out.open("xb") as stream:
            np.save(stream, np.ascontiguousarray(volume.voxels_kji), allow_pickle=False)
        return {"number": number, "npy": str(out), "ijk_to_ras": volume.ijk_to_ras, "centers": index.centers(number)}

    def index(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        from VelvetMedLib import tasks

        context.progress(0.0, "loading the model")
        made = tasks.index_folder(
            Path(_need(params, "index", "folder")),
            Path(_need(params, "index", "out")),
            self.bundle(params),
            keep_text=bool(params.get("keep_text", False)),
            keep_places=bool(params.get("keep_places", False)),
            progress=context.progress,
            cancel=context.cancel,
        )
        return {"added": made.added, "known": made.known, "count": made.count, "skipped": list(made.skipped)}

    def _revised(self, params: dict[str, Any], context: Context) -> dict[str, Any]:
        from VelvetMedLib import tasks

        labels_kji, _ = read_volume(params["labels"])
        volume = volume_of(params)
        edited = [int(label) for label in _need(params, "report", "edited")]
        if labels_kji.shape != volume.voxels_kji.shape or labels_kji.dtype != np.uint8:
            raise _unreadable(f"labels of shape {labels_kji.shape} and type {labels_kji.dtype}")
        context.progress(0.0, "loading the model")
        bundle = self.bundle(params)
        draft, writer = _draft_of(params), self._writer_of(params, bundle)
        done = tasks.revise(
            volume, labels_kji, edited, bundle, draft=draft, writer=writer, progress=context.progress, cancel=context.cancel
        )
        return {"findings": done.findings, "report": done.report}

    def _writer_of(self, params: Mapping[str, Any], bundle: Bundle) -> Writer | None:
        """Who words the draft, where the request names a writer; opened once per version."""
        from VelvetMedLib.tasks.writers import open_writer

        named = params.get("writer")
        if named is None:
            return None
        key = (str(named), _stamp(Path(named)), _stamp(Path(named) / "writer.json"), bundle.sha256, bundle.device)
        if self._writer is None or key != self._writer_key:
            self._writer = None  # Two language models at once would double the memory.
            self._writer, self._writer_key = open_writer(named, bundle), key
        return self._writer

    def _case_of(self, params: dict[str, Any], context: Context) -> Case:
        """The Case that the request names, or a new analysis of its volume (nothing is computed twice)."""
        from VelvetMedLib.case import read_case

        return read_case(Path(params["case"])) if "case" in params else self._analysed(params, context)

    def _analysed(self, params: dict[str, Any], context: Context) -> Case:
        from VelvetMedLib import tasks

        volume = volume_of(params)  # First: the voxels leave the disk even if the model turns out to be missing.
        context.progress(0.0, "loading the model")
        bundle = self.bundle(params)
        return tasks.analyze(
            volume,
            bundle,
            out=params.get("out"),
            draft=_draft_of(params),
            writer=self._writer_of(params, bundle),
            parts=tuple(map(str, params.get("parts") or tasks.PARTS)),
            keep_image=bool(params.get("keep_image", True)),
            progress=context.progress,
            cancel=context.cancel,
        )


def make_handlers() -> dict[str, Handler]:
    """All requests of one new session, by name."""
    session = Session()
    return {
        "hello": session.hello,
        "load": session.load,
        "encode": session.encode,
        "analyze": session.analyze,
        "segment": session.segment,
        "findings": session.findings,
        "report": session.report,
        "ask": session.ask,
        "ground": session.ground,
        "similar": session.similar,
        "index": session.index,
    }


def volume_of(params: Mapping[str, Any]) -> Volume:
    """The checked scan of a request: voxels from the private folder. Raises ScanError, WorkerError."""
    from VelvetMedLib import ct

    voxels_kji, ijk_to_ras = read_volume(params.get("volume") or {})
    return ct.from_array(voxels_kji, ijk_to_ras)


def read_volume(params: dict[str, Any]) -> tuple[ArrayKJI, Affine]:
    """The voxels that the client handed over: read whole, then deleted. Returns ([k, j, i], 4x4 in mm)."""
    try:
        path = Path(params["npy"])
        ijk_to_ras = np.asarray(params["ijk_to_ras"], dtype=np.float64)
        try:
            voxels_kji = np.load(path, mmap_mode=None, allow_pickle=False)
        finally:
            path.unlink(missing_ok=True)
    except (KeyError, TypeError, ValueError, OSError, EOFError) as problem:
        raise _unreadable(type(problem).__name__) from None
    if voxels_kji.ndim != 3 or ijk_to_ras.shape != (4, 4):
        raise _unreadable(f"{voxels_kji.ndim} axes and a matrix of shape {ijk_to_ras.shape}")
    return voxels_kji, ijk_to_ras


def _picture(hit: Hit) -> str | None:
    """A case's small picture as base64 of a PNG file."""
    import base64

    return None if hit.picture is None else base64.b64encode(hit.picture).decode("ascii")


def _device(params: Mapping[str, Any]) -> str:
    """The device of a request. Raises WorkerError where this Python's torch cannot use it."""
    device = str(params.get("device", "cpu"))
    if device == "cpu":
        return device
    import torch

    if device.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise WorkerError(
            "The chosen device cannot be used.",
            found=f"{device} without a graphics card that this torch can use",
            expected="cpu, or cuda where torch finds such a card",
            next_step="Choose the CPU under Setup, or a Python whose torch was built for the card.",
        )
    return device


def _about(data: Any) -> About:
    from VelvetMedLib.case import About

    try:
        return About.from_dict(data)
    except (TypeError, ValueError) as problem:
        raise WorkerError(
            "The place that was asked about cannot be read.",
            found=str(problem),
            expected="the name of a segment, or the 4x4 matrix of a box",
            next_step="Choose the segment or the region of interest again.",
        ) from None


def _draft_of(params: Mapping[str, Any]) -> DraftSettings:
    """The form of the draft that a request asks for. Raises UsageError."""
    from VelvetMedLib.tasks.writers import DraftSettings

    asked: dict[str, Any] = {name: str(params[name]) for name in ("style", "length") if name in params}
    if "hold_from" in params:
        asked["hold_from"] = None if params["hold_from"] is None else float(params["hold_from"])
    return DraftSettings(**asked, sections=tuple(map(str, params.get("sections") or ())))


def _need(params: Mapping[str, Any], verb: str, name: str) -> Any:
    if name not in params:
        raise _incomplete(verb, name)
    return params[name]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _incomplete(verb: str, name: str) -> WorkerError:
    return WorkerError(
        "The request to the worker is not complete.",
        found=f"{verb!r} without {name!r}",
        expected=f"{name!r} among its parameters",
        next_step="Use the same VelvetMed version for the program and the worker.",
    )


def _unreadable(found: str) -> WorkerError:
    return WorkerError(
        "The worker could not read the voxels handed to it.",
        found=found,
        expected="one array of three axes with its 4x4 matrix",
        next_step="Start the run again; if it happens again, check the free space of the temporary folder.",
    )
