"""What each verb does: read the options, call the library, print. Heavy imports happen inside the functions."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.cli import show
from VelvetMedLib.cli.models import models
from VelvetMedLib.errors import UsageError

if TYPE_CHECKING:
    from VelvetMedLib.bundle import Bundle
    from VelvetMedLib.case import Case
    from VelvetMedLib.ct import Volume
    from VelvetMedLib.tasks import Encoding, Grounding, Hit


def run(options: Namespace) -> None:
    """Carry out the verb that was parsed."""
    VERBS[options.verb](options)


def _bundle(options: Namespace) -> Bundle:
    from VelvetMedLib.bundle import load_bundle

    device = str(options.device)
    if device != "cpu":
        import torch

        kind = device.split(":")[0]
        if kind != "cuda" or not torch.cuda.is_available():
            raise UsageError(
                "This device cannot be used.",
                found=f"--device {device}" + (" without a CUDA device on this machine" if kind == "cuda" else ""),
                expected="cpu, or cuda where there is a CUDA device",
                next_step="Leave --device out.",
            )
    return load_bundle(options.bundle, device=device)


def _volume(path: Path, series: str | None = None) -> Volume:
    from VelvetMedLib import ct

    return ct.read(path, series=int(series) if series is not None and series.isdecimal() else series)


def _check_out(out: Path, mark: str, what: str) -> None:
    """Refuse an output folder before the work, not after it: it must be free, empty, or an older result of the same kind."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / mark).is_file())):
        raise UsageError(
            f"The {what} cannot be written there.",
            found="something else at the place of the output",
            expected=f"a new or empty folder, or an older {what}",
            next_step="Choose another --out.",
        )
    parent = next((p for p in (out, *out.absolute().parents) if p.exists()), None)
    if parent is not None and not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UsageError(
            f"The {what} cannot be written there.",
            found="a place that is not a folder one may write to",
            expected="a folder with permission to write",
            next_step="Choose another --out.",
        )


def sample(options: Namespace) -> None:
    from VelvetMedLib.cohorts.sample import ATTRIBUTION, get_sample

    with show.progress() as progress:
        found = get_sample(dicom=not options.no_dicom, progress=progress)
    names = ("ct", "mask", "structures", "dicom", "xml")
    paths = {name: str(path) for name in names if (path := getattr(found, name, None)) is not None}
    lines = [*(f"{name:<11}{path}" for name, path in paths.items()), "", ATTRIBUTION, RESEARCH_USE_ONLY]
    show.result(paths | {"attribution": ATTRIBUTION, "notice": RESEARCH_USE_ONLY}, "\n".join(lines), as_json=options.json)


def cohort(options: Namespace) -> None:
    from VelvetMedLib.cohorts import make_cohort

    with show.progress() as progress:
        make_cohort(options.out, options.cases, options.seed, options.processes, progress=progress)
    data = {"out": str(options.out), "cases": options.cases, "seed": options.seed, "notice": RESEARCH_USE_ONLY}
    show.result(data, f"{options.cases} synthetic cases with seed {options.seed} are in {options.out}", as_json=options.json)


def analyze(options: Namespace) -> None:
    from VelvetMedLib import tasks
    from VelvetMedLib.tasks.writers import DraftSettings, open_writer

    draft = DraftSettings(style=options.style, sections=options.sections, length=options.length, hold_from=options.hold_from)
    _check_out(options.out, "case.json", "case")
    volume = _volume(options.volume, options.series)
    bundle = _bundle(options)
    writer = None if options.writer is None else open_writer(options.writer, bundle)
    with show.progress() as progress:
        case = tasks.analyze(
            volume, bundle, out=options.out, draft=draft, writer=writer, progress=progress,
            keep_image=not options.no_image, keep_encoding=not options.no_encoding, cleaning=not options.no_cleaning,
        )  # fmt: skip
    states = {state: [f.display for f in case.findings if f.state == state] for state in ("present", "uncertain", "absent", "not_assessed")}
    lines = [
        f"The case is in {options.out}: {len(case.segments)} segments, {len(case.findings)} findings, a draft report.",
        f"Present:      {', '.join(states['present']) or 'none of the findings looked for'}",
        f"Uncertain:    {', '.join(states['uncertain']) or 'none'}",
        f"Not assessed: {', '.join(states['not_assessed']) or 'none'}",
        *(f"Note: {warning}" for warning in case.warnings),
        f"{sum(case.timings.values()):.1f} s with bundle {case.model.id} {case.model.version} ({case.model.licence})",
        *([f"Source of the scan: {case.run['attribution']}"] if "attribution" in case.run else []),
        case.disclaimer,
    ]
    data = {
        "case": str(options.out),
        "states": states,
        "timings": dict(case.timings),
        "warnings": list(case.warnings),
        "attribution": case.run.get("attribution"),
        "notice": case.disclaimer,
    }
    show.result(data, "\n".join(lines), as_json=options.json)


def phrases(options: Namespace) -> None:
    from VelvetMedLib.reports.own_phrases import write_phrases
    from VelvetMedLib.tasks.writers.composer import gather

    found = gather(options.source)
    write_phrases(options.out, found)
    data = {"out": str(options.out), "reports": found.reports, "sentences": found.sentences, "phrases": len(found.phrases)}
    lines = [
        f"{len(found.phrases)} phrases from {found.sentences} sentences of {found.reports} reports are in {options.out}.",
        "A sentence was taken only if it speaks of one finding in words that say nothing of a patient.",
        RESEARCH_USE_ONLY,
    ]
    show.result(data | {"notice": RESEARCH_USE_ONLY}, "\n".join(lines), as_json=options.json)


def ask(options: Namespace) -> None:
    from VelvetMedLib import tasks
    from VelvetMedLib.case import About, read_case

    case = read_case(options.case)
    about = None if options.segment is None else About(segment=_segment_of(case, options.segment))
    if options.box is not None:
        about = About.between(options.box[:3], options.box[3:])
    answer = tasks.ask(options.case, options.question, _bundle(options), about=about)
    where = "" if answer.link is None else f"  at RAS {_millimetres(answer.link.center_ras_mm)}"
    confidence = "" if answer.confidence is None or answer.unanswered else f"  (confidence {answer.confidence:.2f})"
    text = f"{answer.answer}{confidence}{where}\n{RESEARCH_USE_ONLY}"
    show.result(answer.as_dict() | {"notice": RESEARCH_USE_ONLY}, text, as_json=options.json)


def _segment_of(case: Case, wanted: str) -> str:
    """The name of a segment, given by its name or as it is written in sentences."""
    found = next((s.name for s in case.segments if wanted in (s.name, s.display.replace(" ", "_"))), None)
    if found is None:
        raise UsageError(
            "The case has no such segment.",
            found=wanted,
            expected=f"one of: {', '.join(s.name for s in case.segments)}" if case.segments else "a case with segments",
            next_step="Choose another --segment, or leave it out to ask about the whole scan.",
        )
    return found


def ground(options: Namespace) -> None:
    from VelvetMedLib import tasks
    from VelvetMedLib.case import read_case
    from VelvetMedLib.ct import write_nifti

    read_case(options.case)
    bundle = _bundle(options)
    encoding = tasks.case_encoding(options.case, bundle, required=True)
    assert encoding is not None
    found = tasks.ground(encoding, options.phrase, bundle)
    folder = options.case / "heatmaps"
    folder.mkdir(exist_ok=True)
    # Numbered, not named after the phrase: what a user types may name a person.
    number = 1 + max((int(p.name[8:11]) for p in folder.glob("heatmap_[0-9][0-9][0-9].nii.gz")), default=0)
    path = folder / f"heatmap_{number:03d}.nii.gz"
    write_nifti(path, found.on(encoding.scan_grid), encoding.scan_grid.ijk_to_ras)
    data = {
        "phrase": options.phrase,
        "heatmap": f"heatmaps/{path.name}",
        "source": found.source,
        "score": found.score,
        "threshold": found.threshold,
        "peak_ras_mm": list(found.peak_ras_mm),
        "finding": found.finding,
        "structures": [{"name": name, "cosine": cosine} for name, cosine in found.structures[:5]],
        "notice": RESEARCH_USE_ONLY,
    }
    said = _grounded(found)
    show.result(data, f"{said}; map in heatmaps/{path.name}\n{RESEARCH_USE_ONLY}", as_json=options.json)


def _grounded(found: Grounding) -> str:
    """Where a phrase is, or that nothing of the kind was seen."""
    place = f"RAS {_millimetres(found.peak_ras_mm)}"
    if found.source == "segment":
        return f"The middle of the segment is at {place}"
    if not found.marked:
        return f"Nothing is marked: the highest lesion probability is {found.score:.2f}, the model's threshold {found.threshold:.2f}"
    return f"Peak at {place}: {'lesion probability' if found.source == 'lesions' else 'similarity'} {found.score:.2f}"


def index(options: Namespace) -> None:
    from VelvetMedLib import tasks
    from VelvetMedLib.tasks.indexing import entries
    from VelvetMedLib.tasks.store import is_address

    if (options.folder is None) == (options.remove is None):
        raise UsageError(
            "An index either grows by a folder or loses cases.",
            found="both FOLDER and --remove" if options.folder is not None else "neither FOLDER nor --remove",
            expected="one of them",
            next_step="Give a FOLDER to add, or --remove with the numbers that 'velvetmed search' shows.",
        )
    bundle = _bundle(options)
    if options.remove is not None:
        with tasks.Index(options.out, bundle) as opened:
            removed, count = opened.remove(options.remove), len(opened)
        data: dict[str, Any] = {"removed": removed, "count": count}
        lines = [f"{_cases(removed)} taken out. {_cases(count)} in the index."]
    else:
        entries(options.folder)
        if not is_address(options.out):
            _check_out(Path(options.out), "index.json", "index")
        with show.progress() as progress:
            done = tasks.index_folder(options.folder, options.out, bundle, keep_text=options.keep_text, progress=progress)
        data = {"added": done.added, "known": done.known, "count": done.count, "skipped": list(done.skipped)}
        lines = [f"{_cases(done.added)} added; already there: {done.known}. {_cases(done.count)} in the index."]
        lines += [f"Skipped {reason}" for reason in done.skipped]
    show.result(data | {"notice": RESEARCH_USE_ONLY}, "\n".join([*lines, RESEARCH_USE_ONLY]), as_json=options.json)


def _cases(count: int) -> str:
    return "1 case is" if count == 1 else f"{count} cases are"


def search(options: Namespace) -> None:
    from VelvetMedLib import tasks

    where = tasks.Where(
        present=tuple(options.with_finding),
        absent=tuple(options.without_finding),
        organs=tuple(options.with_organ),
        source=options.source,
        since=options.since,
        with_text=options.reports,
    )
    volume = _volume(options.volume) if options.volume is not None else None
    with tasks.Index(options.index, _bundle(options)) as opened, show.progress(quiet=volume is None) as progress:
        hits = tasks.search(
            opened, text=options.text, volume=volume, case=options.case, count=options.count, where=where,
            region=options.region, rerank=options.rerank, progress=progress,
        )  # fmt: skip
    none = "No case whose report text was kept ('velvetmed index --keep-text')." if options.reports else "No case to compare with."
    lines = [_told(n, hit, options.reports) for n, hit in enumerate(hits, 1)] or [none]
    data = {"results": [hit.as_dict() for hit in hits], "notice": RESEARCH_USE_ONLY}
    show.result(data, "\n".join([*lines, RESEARCH_USE_ONLY]), as_json=options.json)


def _told(place: int, hit: Hit, with_text: bool) -> str:
    match = "" if hit.match is None else f"  match {hit.match:+.2f}"
    line = f"{place}. case {hit.number} ({hit.id})  similarity {hit.similarity:.3f}{match}  {hit.why}"
    return f"{line}\n   {hit.text}" if with_text else line


def embed(options: Namespace) -> None:
    import numpy as np

    from VelvetMedLib import tasks
    from VelvetMedLib.tasks.abilities import takes_one_crop

    if options.out.suffix != ".npz":
        raise UsageError(
            "The vectors are written as an .npz file.",
            found=f"a name ending in {options.out.suffix or 'nothing'}",
            expected="a name ending in .npz",
            next_step="Choose another --out.",
        )
    volume = _volume(options.volume, options.series)
    bundle = _bundle(options)
    # A bundle without crops has no windowed view either: the encoder says so.
    needs = {options.view} if takes_one_crop(bundle) or options.view != "crop" else None
    with show.progress() as progress:
        encoding = tasks.encode(volume, bundle, progress=progress, needs=needs)
    arrays, data, said = _vectors(encoding)
    temporary = options.out.with_name(f".{options.out.name}.part.npz")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(temporary, **arrays, notice=np.array(RESEARCH_USE_ONLY))
    os.replace(temporary, options.out)
    facts = {"out": str(options.out), "precision": encoding.precision, **data, "notice": RESEARCH_USE_ONLY}
    show.result(facts, f"{said} are in {options.out}", as_json=options.json)


def _vectors(encoding: Encoding) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Arrays of the file, facts for --json, and what is said of them."""
    import numpy as np

    from VelvetMedLib.reports import ontology

    if encoding.crop is not None:
        crop = encoding.crop
        # ijk_to_ras takes a cell's place (x, y, z) in `dense` to the middle of its block in mm.
        arrays = {"embedding": crop.embedding, "dense": crop.dense, "ijk_to_ras": crop.grid.ijk_to_ras, "view": np.array(crop.view)}
        cells = crop.dense.shape[1:]
        facts: dict[str, Any] = {"dimension": len(crop.embedding), "cells": list(cells), "view": crop.view}
        return arrays, facts, f"A vector of {len(crop.embedding)} numbers and one for each of {' x '.join(map(str, cells))} cells"
    if encoding.fine is None:
        arrays = {"study": encoding.study_vector}
        return arrays, {"dimension": len(encoding.study_vector)}, f"The {len(encoding.study_vector)} numbers of the study vector"
    reading, fine = encoding.need_reading(), encoding.need_fine()
    arrays = {
        "study": reading.study,
        "regions": reading.region_vectors,
        "region_mask": fine.region_mask,
        "structures": np.array([s.name for s in ontology().structures]),
    }
    facts = {"dimension": len(reading.study), "regions": int(fine.region_mask.sum())}
    return arrays, facts, f"A study vector of {facts['dimension']} numbers and {facts['regions']} region vectors"


def review(options: Namespace) -> None:
    from VelvetMedLib.exports import review as write_pages

    with show.progress() as progress:
        page = write_pages(options.cases, options.out, progress=progress)
    show.result({"index": str(page), "notice": RESEARCH_USE_ONLY}, f"Open {page} in a browser.\n{RESEARCH_USE_ONLY}", as_json=options.json)


def evaluate(options: Namespace) -> None:
    from VelvetMedLib.cli.evaluate import evaluate as measure

    measure(options, _bundle)


def doctor(options: Namespace) -> None:
    from VelvetMedLib.cli.doctor import examine, render

    report = examine()
    show.result(report, render(report), as_json=options.json)


def _millimetres(point: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{x:.1f}' for x in point)}) mm"


VERBS: dict[str, Callable[[Namespace], None]] = {
    "sample": sample, "cohort": cohort, "analyze": analyze, "phrases": phrases, "ask": ask, "ground": ground, "index": index,
    "search": search, "embed": embed, "review": review, "evaluate": evaluate, "models": models, "doctor": doctor,
}  # fmt: skip
