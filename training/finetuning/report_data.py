"""What a language model learns to write after: scans as the bundle sees them, and sentences with the records that they say.

STORE/<encoding key>/<study>.safetensors   visual tokens and the reader's memory, some ten thousand numbers a scan
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from demo.data import split_of
from safetensors.numpy import load_file, save_file
from torch import Tensor

from finetuning.report_settings import WritingData
from VelvetMedLib.bundle.store import Bundle
from VelvetMedLib.cohorts import read_cohort
from VelvetMedLib.cohorts.store import MANIFEST, load_case
from VelvetMedLib.ct import read
from VelvetMedLib.engine.manifest import SPLITS, Quarantined, Study, read_manifest
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.errors import TrainingError, VelvetMedError
from VelvetMedLib.reports import STYLES, FindingRecord, is_irrelevant, parse_sentence, write_sentence
from VelvetMedLib.reports.own_phrases import phrase_of
from VelvetMedLib.tasks.encoder import encode
from VelvetMedLib.tasks.writers.soft_prompt import PromptedModel, Seen, instruction, prompt_states, seen_of

OWN_STYLE = "own"
"""In place of a style, for sentences of real reports."""
Row = tuple[FindingRecord, str, str]
"""A record, the style of its sentence, and the sentence with slots."""


@dataclass(frozen=True, kw_only=True)
class WrittenStudy:
    """A study to learn from. records: of a synthetic case, whose sentences are worded anew each time. rows: sentences of a real
    report; only such as `own_phrases` takes, so that nothing of a patient can be learnt by heart."""

    name: str
    split: str
    volume: Path
    records: tuple[FindingRecord, ...] = ()
    rows: tuple[Row, ...] = ()

    def drawn(self, count: int, draw: np.random.Generator) -> list[Row]:
        """At most `count` rows, half of them affirmed or in doubt where there are enough of both; each finding at most once."""
        style = str(draw.choice(STYLES))
        every = list(self.rows) or [(r, style, "") for r in self.records]
        every = [every[int(n)] for n in draw.permutation(len(every))]
        likely = [row for row in every if row[0].state in ("present", "uncertain")]
        others = [row for row in every if row[0].state not in ("present", "uncertain")]
        chosen = likely[: max(count // 2, count - len(others))]
        chosen += others[: count - len(chosen)]
        return [row if row[2] else (row[0], style, write_sentence(row[0], draw, style).slotted) for row in chosen]


def read_studies(source: Path, data: WritingData, seed: int) -> tuple[list[WrittenStudy], list[Quarantined]]:
    """A cohort, or a manifest of studies with reports. Raises TrainingError or CohortError."""
    if (source / MANIFEST).is_file():
        cases = [load_case(folder) for folder in read_cohort(source).case_folders]
        groups = [str(case.record.get("twin_of") or case.case_id) for case in cases]
        split = split_of(groups)
        studies = [
            WrittenStudy(name=case.case_id, split=split[group], volume=case.folder / "ct.nii.gz", records=tuple(case.findings))
            for case, group in zip(cases, groups, strict=True)
        ]
        bad: tuple[Quarantined, ...] = ()
    elif source.is_file():
        manifest = read_manifest(source)
        studies, bad = [_of_report(study) for study in manifest.studies], manifest.quarantined
        silent = [Quarantined(s.study, "no sentence of its report says one finding in known words") for s in
                  (manifest.studies[n] for n, made in enumerate(studies) if not made.rows)]  # fmt: skip
        studies, bad = [s for s in studies if s.rows], (*bad, *silent)
    else:
        raise TrainingError(
            "There is nothing to learn writing from here.",
            found="neither a cohort's folder nor a file",
            expected="a cohort made by 'velvetmed cohort make', or a manifest with one study per line",
            next_step="Give one of these with --data.",
        )
    most = {"train": data.train_cases, "val": data.val_cases, "test": data.test_cases}
    kept = []
    for part in SPLITS:
        here = sorted((s for s in studies if s.split == part), key=lambda s: s.name)
        order = generator(seed, "few", part).permutation(len(here))
        kept += [here[int(n)] for n in order[: most[part] or len(here)]]
    return kept, list(bad)


def _of_report(study: Study) -> WrittenStudy:
    rows: dict[str, Row] = {}
    for report in study.reports:
        for section in report:
            for sentence in () if is_irrelevant(section.title) else section.sentences:
                phrase = phrase_of(sentence, section.title)
                if phrase is not None:
                    record = parse_sentence(sentence, section.title)[0]
                    rows[phrase.text] = (record, OWN_STYLE, phrase.worded(record))
    return WrittenStudy(name=study.study, split=study.split, volume=study.volume, rows=tuple(rows.values()))


def seen_studies(
    studies: Sequence[WrittenStudy], bundle: Bundle, store: Path, say: Callable[[str], None]
) -> tuple[dict[str, Seen], list[Quarantined]]:
    """What the bundle makes of each scan, computed once; a scan that cannot be read is left out with its reason."""
    home = store / bundle.encoding_key[:16]
    home.mkdir(parents=True, exist_ok=True)
    found: dict[str, Seen] = {}
    bad = []
    for n, study in enumerate(studies, 1):
        stat = study.volume.stat() if study.volume.exists() else None
        key = hashlib.sha256(f"{study.name}\n{stat and (stat.st_size, stat.st_mtime_ns)}".encode()).hexdigest()[:24]
        path = home / f"{key}.safetensors"
        try:
            if not path.is_file():
                seen = seen_of(encode(read(study.volume), bundle), bundle)
                part = path.with_suffix(".part")
                save_file({"visual": seen.visual, "memory": seen.memory}, str(part))
                part.replace(path)
            tensors = load_file(str(path))
            found[study.name] = Seen(tensors["visual"], tensors["memory"])
        except VelvetMedError as error:
            bad.append(Quarantined(study.name, f"{error.what} {error.found}"))
        if n == len(studies) or n % 20 == 0:
            say(f"encoded {n} of {len(studies)} scans")
    return found, bad


@dataclass(frozen=True)
class PromptBatch:
    """states [B, P, W] with valid [B, P]; answers: ids of each sentence, end token included."""

    states: Tensor
    valid: Tensor
    answers: list[list[int]]

    def __len__(self) -> int:
        return len(self.answers)

    def to(self, device: torch.device) -> PromptBatch:
        return PromptBatch(self.states.to(device), self.valid.to(device), self.answers)

    @property
    def tokens(self) -> float:
        return float(sum(map(len, self.answers)))


class PromptMaker:
    """Batches of sentences of the named studies; what a study says depends on seed, epoch and study alone."""

    def __init__(
        self,
        studies: Sequence[WrittenStudy],
        seen: dict[str, Seen],
        bundle: Bundle,
        model: PromptedModel,
        sources: Sequence[str],
        sentences: int,
        seed: int,
    ) -> None:
        self.studies, self.seen, self.seed = {study.name: study for study in studies}, seen, seed
        self.bundle, self.model, self.sources, self.sentences = bundle, model, sources, sentences

    def batch(self, names: Sequence[str], epoch: int) -> PromptBatch:
        rows = [(name, *row) for name in names for row in self.rows(name, epoch)]
        asked = [instruction(record, style) for _, record, style, _ in rows]
        states, valid = prompt_states(self.bundle, asked, [self.seen[name] for name, *_ in rows], self.sources)
        return PromptBatch(states, valid, [self.model.tokens(text) for *_, text in rows])

    def rows(self, name: str, epoch: int) -> list[Row]:
        return self.studies[name].drawn(self.sentences, generator(self.seed, "sentences", epoch, name))
