"""From studies in the prepared store to the batches that objectives read; what a study shows depends on its keys alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from VelvetMedLib.ct.views import scaled
from VelvetMedLib.engine.manifest import Quarantined, Report, full_text
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.engine.source import EVALUATION, SourceOfOne
from VelvetMedLib.engine.store import FULL_SCALE, StoredStudy, StoreFault
from VelvetMedLib.engine.texts import sentences_of
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.text import ReportTokenizer, TextLayout
from VelvetMedLib.objectives.base import (
    IMAGE_GLOBAL,
    IMAGE_LOCAL_A,
    IMAGE_LOCAL_B,
    NOT_ASKED,
    TEXT_CLEAN,
    TEXT_MASKED_MM,
    TEXT_MASKED_UNI,
    StudyBatch,
    joined_layout,
    joined_rows,
)
from VelvetMedLib.objectives.corruption import choose_donor, corrupted_view
from VelvetMedLib.objectives.groups import close_groups, report_hash, study_key
from VelvetMedLib.objectives.masking import MaskingRule
from VelvetMedLib.recipes.crops import cut
from VelvetMedLib.recipes.inputs import InputMaker
from VelvetMedLib.recipes.layouts import lay_out
from VelvetMedLib.recipes.parts import ReportSettings, ViewSettings
from VelvetMedLib.shapes import IntTriple

LOCAL = (IMAGE_LOCAL_A, IMAGE_LOCAL_B)
MASKED = (TEXT_MASKED_MM, TEXT_MASKED_UNI)
INPUT_FIELDS = ("images", "texts", "labels", "clean", "quarter_turns", "extras")
"""Fields of a batch that are kept by feature key."""


class Quarantine:
    """Studies that are left out and why; each is written down once. Safe to use from several threads."""

    def __init__(self, path: Path | None, total: int, largest_share: float) -> None:
        self.path, self.total, self.largest_share = path, total, largest_share
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, entries: Sequence[Quarantined]) -> None:
        """Raises TrainingError when more of the studies are unusable than the settings allow."""
        with self._lock:
            for entry in entries:
                if entry.study not in self.reasons:
                    self.reasons[entry.study] = entry.reason
                    self._write(entry)
            count = len(self.reasons)
        if self.total and count > self.largest_share * self.total:
            first = next(iter(self.reasons.items()))
            raise TrainingError(
                "Too many studies cannot be used.",
                found=f"{count} of {self.total} quarantined; the first: {first[0]}: {first[1]}",
                expected=f"at most {self.largest_share:.0%} (loop.quarantine_share)",
                next_step="Read quarantine.jsonl in the run folder, mend the data, and call the same line again.",
            )

    def _write(self, entry: Quarantined) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(json.dumps(entry.as_dict(), ensure_ascii=False) + "\n")

    def __contains__(self, study: object) -> bool:
        return study in self.reasons

    def __len__(self) -> int:
        return len(self.reasons)


def groups_of(studies: Sequence[StoredStudy]) -> dict[str, int]:
    """Study -> group over the whole cohort: same report in any of its versions, or the same scan (methods.md 1.4)."""
    names: list[str] = []
    keys: list[str] = []
    for entry in studies:
        for report in entry.study.reports:
            names.append(entry.study.study)
            keys.append(report_hash(full_text(report)))
        names.append(entry.study.study)
        keys.append(f"scan {entry.sha256}")
    return dict(zip(names, close_groups(names, keys).tolist(), strict=True))


class BatchMaker:
    """Makes batches of named studies with the inputs of given feature keys.

    studies: all of one split. A study whose stored arrays cannot be read is quarantined and another, drawn by its keys,
    stands in its place.
    """

    def __init__(
        self,
        studies: Sequence[StoredStudy],
        groups: dict[str, int],
        tokenizer: ReportTokenizer,
        views: ViewSettings,
        reports: ReportSettings,
        *,
        keys: Sequence[str],
        seed: int,
        sentence_tokens: bool,
        quarantine: Quarantine,
        makers: Mapping[str, InputMaker] | None = None,
        companion_keys: Collection[str] = (),
        scans: Sequence[StoredStudy] = (),
    ) -> None:
        """keys: what is made. makers: of the inputs that the recipe makes itself; the other keys are those of `objectives.base`.
        companion_keys: those that `companions` of a batch have rows in; scans: studies without a report that are among these."""
        self.names = sorted(entry.study.study for entry in studies)
        self.by_name = {entry.study.study: entry for entry in (*studies, *scans)}
        self.companion_keys = frozenset(companion_keys)
        self.group_keys = np.array([groups[name] for name in self.names], np.int64)
        self.groups, self.tokenizer, self.views, self.reports = groups, tokenizer, views, reports
        self.keys, self.seed, self.sentence_tokens, self.quarantine = tuple(keys), seed, sentence_tokens, quarantine
        self.rule = MaskingRule.of(tokenizer, share=reports.mask_share)
        self.makers = dict(makers or {})
        self.own_keys = tuple(key for key in self.keys if key not in self.makers)

    def batch(self, names: Sequence[str], epoch: int, companions: Sequence[str] = (), companion_epoch: int = 0) -> StudyBatch:
        """names: studies in the order of the batch; epoch: keys what is drawn, `EVALUATION` draws nothing.

        companions: scans whose rows go into the companion keys, whatever pairs the batch holds; one study may be both.
        """
        made = joined_studies([self._usable(name, epoch, self._one, self.names) for name in names])
        if not companions:
            return made
        pool = sorted(self.by_name)
        beside = joined_studies([self._usable(name, companion_epoch, self._companion, pool) for name in companions])
        return replace(made, images=made.images | beside.images, extras=made.extras | beside.extras)

    def version(self, name: str, epoch: int) -> Report:
        """The version of a study's report that is read in this epoch, whole: one that says something in the chosen sections."""
        versions = [report for report in self.by_name[name].study.reports if sentences_of(report, self.reports)]
        if not versions:
            raise StoreFault(name, "the report has no sentence in the chosen sections")
        chosen = 0 if epoch == EVALUATION else int(generator(self.seed, epoch, name, "report version").integers(len(versions)))
        return versions[chosen]

    def sentences(self, name: str, epoch: int) -> list[str]:
        """What is read of a study's report in this epoch."""
        return sentences_of(self.version(name, epoch), self.reports)

    def _usable(self, name: str, epoch: int, one: Callable[[str, int], StudyBatch], pool: Sequence[str]) -> StudyBatch:
        candidate = name
        for turn in range(100 * len(pool)):
            if candidate not in self.quarantine:
                try:
                    return one(candidate, epoch)
                except StoreFault as fault:
                    self.quarantine.add([Quarantined(fault.study, fault.reason)])
                    if fault.study != candidate:
                        continue  # a donor failed: the study itself is tried again, with another donor
            candidate = pool[int(generator(self.seed, epoch, name, "substitute", turn).integers(len(pool)))]
        raise TrainingError(
            "No study of the cohort can be used.",
            found=f"{len(self.quarantine)} quarantined",
            expected="studies whose prepared arrays can be read",
            next_step="Remove the prepared store and call the same line again.",
        )

    def _one(self, name: str, epoch: int) -> StudyBatch:
        entry = self.by_name[name]
        parts: dict[str, dict[str, Any]] = {field: {} for field in INPUT_FIELDS}
        if IMAGE_GLOBAL in self.own_keys:
            view = entry.global_view().astype(np.float32) / np.float32(FULL_SCALE)
            parts["images"][IMAGE_GLOBAL] = torch.from_numpy(view)[None, None]
        if any(key in self.own_keys for key in LOCAL):
            self._local(entry, epoch, parts)
        if any(key.startswith("text.") for key in self.own_keys):
            self._text(name, epoch, parts)
        self._made(entry, epoch, parts, [key for key in self.keys if key not in self.companion_keys])
        return StudyBatch(
            study=torch.tensor([study_key(name)]),
            group=torch.tensor([self.groups[name]]),
            view_spacing_mm=torch.tensor([entry.view_spacing_mm], dtype=torch.float32),
            **parts,
        )

    def _companion(self, name: str, epoch: int) -> StudyBatch:
        entry = self.by_name[name]
        parts: dict[str, dict[str, Any]] = {field: {} for field in INPUT_FIELDS}
        self._made(entry, epoch, parts, [key for key in self.keys if key in self.companion_keys])
        return StudyBatch(
            study=torch.tensor([study_key(name)]),
            group=torch.tensor([self.groups[name]]),
            view_spacing_mm=None,
            **parts,
        )

    def _made(self, entry: StoredStudy, epoch: int, parts: dict[str, dict[str, Any]], keys: Sequence[str]) -> None:
        """What the recipe's own makers give for the keys."""
        study = SourceOfOne(self, entry, epoch)
        for make in dict.fromkeys(self.makers[key] for key in keys if key in self.makers):
            for field, values in make(study).items():
                parts[field] |= values

    def _local(self, entry: StoredStudy, epoch: int, parts: dict[str, dict[str, Any]]) -> None:
        name = entry.study.study
        crop = self._crop(entry, generator(self.seed, epoch, name, "crop"))
        donor = self._donor(name, epoch)
        for key in LOCAL:
            if key in self.own_keys:
                view = corrupted_view(crop, donor, generator(self.seed, epoch, name, key))
                parts["images"][key] = torch.from_numpy(view.voxels)[None, None]
                parts["clean"][key] = torch.from_numpy(view.clean)[None, None]
                parts["quarter_turns"][key] = torch.tensor([view.quarter_turns])

    def _donor(self, name: str, epoch: int) -> NDArray[np.float32] | None:
        """A crop of another study, never of the rank's batch by preference: drawn from the whole cohort by the study's keys."""
        draw = generator(self.seed, epoch, name, "donor")
        other = self.other(name, draw)
        return None if other is None else self._crop(other, draw)

    def other(self, name: str, draw: np.random.Generator) -> StoredStudy | None:
        """A study of another group that is not quarantined."""
        for _ in range(100):
            place = choose_donor(self.groups[name], self.group_keys, draw)
            if place is None:
                return None
            if self.names[place] not in self.quarantine:
                return self.by_name[self.names[place]]
        return None

    def _crop(self, entry: StoredStudy, draw: np.random.Generator) -> NDArray[np.float32]:
        side = self.views.local_voxels
        hu = entry.fine()
        start = drawn_start(hu.shape, (side, side, side), draw)
        return scaled(cut(hu, start, (side, side, side)), self.views.hu_window)

    def _text(self, name: str, epoch: int, parts: dict[str, dict[str, Any]]) -> None:
        draw = None if epoch == EVALUATION else generator(self.seed, epoch, name, "sentences")
        layout = lay_out(self.tokenizer, self.sentences(name, epoch), self.reports, sentence_tokens=self.sentence_tokens, draw=draw)
        for key in self.own_keys:
            if key == TEXT_CLEAN:
                parts["texts"][key] = layout
            elif key in MASKED:
                parts["texts"][key], parts["labels"][key] = self.rule.masked(layout, [generator(self.seed, epoch, name, key)])


def drawn_start(volume: tuple[int, ...], shape: IntTriple, draw: np.random.Generator) -> NDArray[np.int64]:
    """A start, uniform among those where crop and volume cover one another along every axis: no needless air."""
    slack = np.array(volume) - shape
    start: NDArray[np.int64] = draw.integers(np.minimum(slack, 0), np.maximum(slack, 0) + 1)
    return start


def joined_studies(parts: Sequence[StudyBatch]) -> StudyBatch:
    """Single studies as one batch; texts are padded to the longest."""

    def rows(get: Callable[[StudyBatch], dict[str, Tensor]], filler: float = 0) -> dict[str, Tensor]:
        return {key: joined_rows([get(part)[key] for part in parts], filler) for key in get(parts[0])}

    texts: dict[str, TextLayout] = {key: joined_layout([part.texts[key] for part in parts]) for key in parts[0].texts}
    spacings = [part.view_spacing_mm for part in parts if part.view_spacing_mm is not None]
    return StudyBatch(
        study=torch.cat([part.study for part in parts]),
        group=torch.cat([part.group for part in parts]),
        images=rows(lambda part: part.images),
        view_spacing_mm=torch.cat(spacings) if spacings else None,
        texts=texts,
        labels=rows(lambda part: part.labels, NOT_ASKED),
        clean=rows(lambda part: part.clean),
        quarter_turns=rows(lambda part: part.quarter_turns),
        extras=rows(lambda part: part.extras),
    )
