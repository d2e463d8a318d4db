"""The whole job: one encoding, then segments, findings, report and, on request, a Case folder; and questions to it later."""

from __future__ import annotations

import platform
import tempfile
import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from VelvetMedLib import RESEARCH_USE_ONLY, __version__
from VelvetMedLib.case import (
    About,
    Answer,
    Case,
    CaseInput,
    CaseModel,
    Segment,
    attribution_of,
    checked,
    read_case,
    update_case,
    write_case,
)
from VelvetMedLib.case.vertebrae import Heights, vertebral_heights
from VelvetMedLib.ct import Grid, Volume
from VelvetMedLib.errors import CaseError
from VelvetMedLib.reports import ontology
from VelvetMedLib.tasks import vqa
from VelvetMedLib.tasks.abilities import has_heads, stages_of
from VelvetMedLib.tasks.encoder import encode
from VelvetMedLib.tasks.encoding import Encoding, load_encoding, save_encoding
from VelvetMedLib.tasks.findings import find, lesion_channels, with_heights
from VelvetMedLib.tasks.progress import CancelCallback, ProgressCallback, Run
from VelvetMedLib.tasks.report import DEFAULT, Draft, draft_report
from VelvetMedLib.tasks.segmentation import organ_labels, overlay_lesions, segments_of
from VelvetMedLib.tasks.writers import DraftSettings, Writer, open_writer

if TYPE_CHECKING:
    from VelvetMedLib.bundle.store import Bundle

ENCODING_FILE = "encoding.safetensors"
PARTS = ("segments", "findings", "report")
"""What an analysis makes unless it is asked for less."""
STAGES = {
    "prepare": 0.15, "fine": 0.35, "tokens": 0.05, "global": 0.03, "reader": 0.02,
    "findings": 0.05, "segmentation": 0.2, "report": 0.1, "write": 0.05,
}  # fmt: skip
"""Expected share of the time of each stage, for the progress bar."""
WITHOUT = {
    "segments": "The model in use has no trained heads: it makes no segments, and nothing is measured.",
    "report": "The model in use has no writer: it makes no draft report.",
}
"""Said in the Case where the bundle's model cannot make a part that was asked for."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """A Case with the arrays behind it. segmentation_kji: uint8 labels on the scan's own grid."""

    case: Case
    segmentation_kji: NDArray[np.uint8] | None
    encoding: Encoding


def analyze(
    volume: Volume,
    bundle: Bundle,
    *,
    out: Path | str | None = None,
    draft: DraftSettings = DEFAULT,
    writer: Writer | None = None,
    parts: Collection[str] = PARTS,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
    keep_image: bool = True,
    keep_encoding: bool = True,
    cleaning: bool = True,
) -> Case:
    """Analyse a scan; with `out`, write the Case folder there, all or nothing. Raises Cancelled, BundleError, CaseError.

    parts: what to make (`PARTS`); a report needs the findings, so these come with it. Raises ValueError on an unknown one.
    draft: form of the draft report. writer: who words it, from `writers.open_writer`; None = the bundle's own.
    cleaning: apply `cleaning.RULES` to organs and lesions.
    """
    run = Run(progress, cancel, stages_of(bundle, STAGES))
    done = run_analysis(volume, bundle, draft=draft, writer=writer, parts=parts, cleaning=cleaning, run=run)
    case = done.case
    if out is not None:
        with run.stage("write"):
            case = _write(done, volume, Path(out), keep_image=keep_image, keep_encoding=keep_encoding)
    if progress is not None:
        progress(1.0, "done", 0.0)
    return case


def run_analysis(
    volume: Volume,
    bundle: Bundle,
    *,
    draft: DraftSettings = DEFAULT,
    writer: Writer | None = None,
    parts: Collection[str] = PARTS,
    cleaning: bool = True,
    run: Run | None = None,
) -> Analysis:
    """The analysis in memory."""
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts of an analysis: {sorted(unknown)}")
    run = run or Run(None, None, stages_of(bundle, STAGES))
    missing = [] if has_heads(bundle) else sorted({"segments", "report"} & set(parts))
    parts = set(parts) - set(missing)
    encoding = encode(volume, bundle, cleaning=cleaning, run=run)
    with run.stage("findings"):
        findings = find(encoding, bundle)
    labels: NDArray[np.uint8] | None = None
    segments: tuple[Segment, ...] = ()
    heights: Heights | None = None
    drafted: Draft | None = None
    spoken: dict[str, Any] = {}
    if "segments" in parts:
        with run.stage("segmentation"):
            organs = organ_labels(encoding.need_fine(), volume.grid, run)
            channels = lesion_channels(findings)
            labels = overlay_lesions(organs.copy(), encoding.need_fine(), volume.grid, channels, bundle.config.lesion_thresholds)
            segments = segments_of(labels, volume, volume.grid, organs_kji=organs)
            spine, cord = (organs == ontology().structure(name).label for name in ("vertebrae", "spinal_cord"))
            heights = vertebral_heights(volume.voxels_kji, spine, cord, volume.grid)
            findings = with_heights(findings, heights)
    if "report" in parts:
        with run.stage("report"):
            writer = writer or open_writer(None, bundle)
            drafted = draft_report(findings, encoding, bundle, settings=draft, writer=writer, run=run)
            form = vars(draft) | {"sections": list(draft.sections)}
            spoken = {"draft": form, "sentences": drafted.origin, "writer": dict(writer.facts)}
    case = Case(
        id=uuid.uuid4().hex[:12],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input=CaseInput.of(volume),
        model=_model_of(bundle),
        segments=segments,
        findings=findings if drafted is not None or "findings" in parts else (),
        report=drafted.report if drafted is not None else None,
        vertebrae=heights.vertebrae if heights is not None else (),
        timings=dict(run.timings),
        warnings=(*volume.warnings, *encoding.run.get("warnings", ()), *(WITHOUT[part] for part in missing)),
        run=run_record(encoding, bundle) | spoken | _attribution(volume),
    )
    return Analysis(checked(case), labels, encoding)


def _model_of(bundle: Bundle) -> CaseModel:
    config = bundle.config
    return CaseModel(id=config.id, version=config.version, sha256=bundle.sha256, licence=config.licence, training_data=config.training_data)


def _attribution(volume: Volume) -> dict[str, str]:
    """What the scan's licence asks to be shown; nothing for a scan that is not known."""
    line = attribution_of(volume)
    return {} if line is None else {"attribution": line}


def run_record(encoding: Encoding, bundle: Bundle) -> dict[str, Any]:
    """What produced a result: versions, device, precision, hashes, and the ml that each rule of cleaning changed (None without it).
    Nothing about the patient, the user or the machine's name."""
    import torch

    return {
        "notice": RESEARCH_USE_ONLY,
        "velvetmed": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": bundle.device,
        "precision": encoding.precision,
        "encoding_key": encoding.encoding_key,
        "weights_sha256": encoding.weights_sha256,
    } | ({} if encoding.fine is None else {"cleaned_ml": encoding.fine.cleaned})


def _write(done: Analysis, volume: Volume, out: Path, *, keep_image: bool, keep_encoding: bool) -> Case:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".encoding-", dir=out.parent) as temporary:
        stored = save_encoding(Path(temporary) / ENCODING_FILE, done.encoding) if keep_encoding else None
        return write_case(
            out,
            done.case,
            segmentation_kji=done.segmentation_kji,
            grid=volume.grid,
            volume=volume if keep_image else None,
            encoding_path=stored,
        )


def case_encoding(folder: Path | str, bundle: Bundle, *, required: bool = False) -> Encoding | None:
    """The stored encoding of a Case, checked against its input and the bundle. None if the Case has none and it is not required."""
    folder = Path(folder)
    case, path = read_case(folder), folder / ENCODING_FILE
    if not path.is_file():
        if not required:
            return None
        raise CaseError(
            "The case holds no encoding.",
            found="no encoding.safetensors in the case",
            expected="a case analysed with its encoding kept",
            next_step="Run 'velvetmed analyze' on the scan again, without --no-encoding.",
        )
    encoding = load_encoding(path)
    if encoding.volume_sha256 != case.input.sha256:
        raise CaseError(
            "The case's encoding belongs to another scan.",
            found=f"volume {encoding.volume_sha256[:12]}...",
            expected=f"volume {case.input.sha256[:12]}...",
            next_step="Run 'velvetmed analyze' on the scan again.",
        )
    if encoding.encoding_key != bundle.encoding_key:
        raise CaseError(
            "The case was analysed with another model.",
            found=f"bundle {case.model.id!r} version {case.model.version}",
            expected=f"bundle {bundle.config.id!r} version {bundle.config.version} with the same weights and preprocessing",
            next_step="Name the bundle of the case with --bundle, or analyse the scan again.",
        )
    return encoding


def ask(
    case: Case | Encoding | Path | str,
    question: str,
    bundle: Bundle,
    *,
    about: About | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Answer:
    """Answer a question about a Case folder (the answer is added to it), a Case or an Encoding. No image encoder runs.

    A Case without an encoding is answered from its findings and segments alone. about: the segment or box that is asked about.
    """
    run = Run(progress, cancel, {"answer": 1.0})
    with run.stage("answer"):
        if isinstance(case, Encoding):
            return vqa.answer(question, find(case, bundle), (), case, bundle, about=about, run=run)
        if isinstance(case, Case):
            return vqa.answer(question, case.findings, case.segments, None, bundle, about=about, scan=_grid_of(case), run=run)
        folder = Path(case)
        encoding = case_encoding(folder, bundle)
        stored = read_case(folder)
        scan = _grid_of(stored)
        answer = vqa.answer(question, stored.findings, stored.segments, encoding, bundle, about=about, scan=scan, run=run)
        update_case(folder, replace(stored, answers=(*stored.answers, answer)))
    return answer


def _grid_of(case: Case) -> Grid:
    return Grid(case.input.shape_kji, np.array(case.input.ijk_to_ras, np.float64))
