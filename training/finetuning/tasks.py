"""A labelled data set on disk: organs or lesions of our cohort, an nnU-Net folder, or a task of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from demo.data import split_of

from finetuning.coding import AnyOf, Coded, Coding, Mask, OneOf
from VelvetMedLib.cohorts import read_cohort
from VelvetMedLib.cohorts.store import MANIFEST, CohortCase, load_case
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.errors import TrainingError, UsageError
from VelvetMedLib.reports import ontology

SPLITS = ("train", "val", "test")
MOST_CLASSES, MOST_OVERLAPPING = 254, 32
KINDS = ("organs", "lesions")
"""What of a cohort can be learnt."""


@dataclass(frozen=True)
class Label:
    """A structure to learn and the value it has in the label files; several values: a region that is their union."""

    name: str
    value: int | tuple[int, ...]

    @property
    def values(self) -> tuple[int, ...]:
        return (self.value,) if isinstance(self.value, int) else self.value


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """One labelled scan. group: cases of one group (twins, one patient) stay in one split. split: "" where the data set names none.

    bits: where a voxel of the label file holds bits and not one value: those of each structure in this file, by its name.
    """

    name: str
    image: Path
    label: Path
    group: str
    split: str = ""
    bits: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """labels: structure n is labels[n - 1], 0 is everything else. declared: every value that the label files may hold."""

    kind: str
    labels: tuple[Label, ...]
    declared: tuple[int, ...]
    cases: tuple[CaseFiles, ...]

    @property
    def names(self) -> list[str]:
        """Of structures 1, 2, ..."""
        return [label.name for label in self.labels]

    @property
    def coding(self) -> Coding:
        """Structures that can share a voxel are bits and learnt one by one; others are classes that exclude one another."""
        values = [value for label in self.labels for value in label.values]
        apart = len(values) == len(set(values)) and not any(case.bits is not None for case in self.cases)
        return OneOf(len(self.labels)) if apart else AnyOf(len(self.labels))

    def members(self, values: Coded, case: CaseFiles) -> Iterator[Mask]:
        """Where each structure is, from the values of the case's label file, on whatever grid."""
        for label in self.labels:
            if case.bits is not None:
                yield (values & np.uint32(case.bits.get(label.name, 0))) != 0
            else:
                yield np.isin(values, label.values) if len(label.values) > 1 else values == label.values[0]

    def foreign(self, values: Coded, case: CaseFiles) -> list[int]:
        """Values (bits as their sum) of a label file that the data set does not declare."""
        if case.bits is not None:
            rest = int(np.bitwise_or.reduce(values, axis=None)) & ~sum(case.bits.values())
            return [rest] if rest else []
        # Counting is many times faster than sorting, but only small numbers can be counted.
        found = np.unique(values) if values.dtype.itemsize > 2 else np.flatnonzero(np.bincount(values.ravel()))
        return sorted(set(found.tolist()) - {0, *self.declared})

    def of(self, split: str) -> list[CaseFiles]:
        return [case for case in self.cases if case.split == split]


def read_task(
    folder: Path, *, kind: str = KINDS[0], structures: Sequence[str] = (), splits: Path | None = None, fold: int = 0
) -> SegmentationTask:
    """Read a data set's description. kind: what of a cohort, one of `KINDS`. structures: names to learn, empty = all. splits: nnU-Net's
    splits_final.json or a manifest of studies (one JSON object per line with `study` and `split`). Raises TrainingError or UsageError."""
    if (folder / MANIFEST).is_file():
        task = _cohort(folder, kind)
    elif kind != KINDS[0]:
        raise UsageError(
            "Only a cohort has labels of several kinds.",
            found=f"--labels {kind} for another data set",
            expected="no --labels: its structures are all in one label file",
            next_step="Leave out --labels; choose among its structures with --structures.",
        )
    elif (folder / "dataset.json").is_file():
        task = _listed(folder, _json(folder / "dataset.json"))
    else:
        _refuse(
            "There is no labelled data set here.",
            found="neither cohort.json nor dataset.json in the given folder",
            expected="a cohort, an nnU-Net raw folder, or a task of the Medical Segmentation Decathlon",
        )
    if structures:
        unknown = sorted(set(structures) - set(task.names))
        if unknown:
            raise UsageError(
                "The data set has no structure of this name.",
                found=", ".join(unknown),
                expected="some of: " + ", ".join(task.names),
                next_step="Correct --structures.",
            )
        task = replace(task, labels=tuple(label for label in task.labels if label.name in structures))
    chosen = splits or (folder / "splits_final.json" if (folder / "splits_final.json").is_file() else None)
    return replace(task, cases=_with_splits(task.cases, chosen, fold)) if chosen else task


def _cohort(folder: Path, kind: str) -> SegmentationTask:
    """The synthetic cohort; twins share a split, which is that of the demo training."""
    table = ontology().lesions if kind == "lesions" else ontology().structures
    cases = [load_case(source) for source in read_cohort(folder).case_folders]
    groups = {case.case_id: str(case.record.get("twin_of") or case.case_id) for case in cases}
    split = split_of(list(groups.values()))
    return SegmentationTask(
        kind=f"cohort, {kind}",
        labels=tuple(Label(entry.name, entry.label) for entry in table),
        declared=tuple(entry.label for entry in table),
        cases=tuple(
            CaseFiles(
                name=case.case_id,
                image=case.folder / "ct.nii.gz",
                label=case.folder / f"{kind}.nii.gz",
                group=groups[case.case_id],
                split=split[groups[case.case_id]],
                bits=lesion_bits(case) if kind == "lesions" else None,
            )
            for case in cases
        ),
    )


def lesion_bits(case: CohortCase) -> dict[str, int]:
    """Kind of lesion -> the bits of its instances in the case's lesion map."""
    bits: dict[str, int] = {}
    for instance in case.instances:
        bits[instance["lesion"]] = bits.get(instance["lesion"], 0) | 1 << (instance["id"] - 1)
    return bits


def _listed(folder: Path, described: Mapping[str, Any]) -> SegmentationTask:
    """nnU-Net (version 1 and 2) and the Decathlon: both have dataset.json, imagesTr and labelsTr."""
    channels = described.get("channel_names") or described.get("modality") or {}
    if not isinstance(channels, Mapping) or len(channels) != 1 or "ct" not in str(next(iter(channels.values()), "")).lower():
        _refuse(
            "The data set is not one of single CT volumes.",
            found=f"channels {list(channels.values()) if isinstance(channels, Mapping) else channels}",
            expected='one channel named "CT" in dataset.json (channel_names or modality)',
        )
    labels = _labels(described.get("labels"))
    ending = str(described.get("file_ending", ".nii.gz"))
    listed = described.get("training")
    if isinstance(listed, list) and all(isinstance(entry, Mapping) and "image" in entry and "label" in entry for entry in listed):
        pairs = [(folder / entry["image"], folder / entry["label"], "") for entry in listed]
    else:
        pairs = _pairs(folder, "Tr", ending, "") + _pairs(folder, "Ts", ending, "test")
    cases = tuple(_case(image, label, ending, split) for image, label, split in pairs)
    if not cases:
        _refuse("The data set has no labelled cases.", found="no files in imagesTr and labelsTr", expected=f"files that end in {ending}")
    wanted = tuple(label for label in labels if label.value != 0)
    declared = sorted({value for label in labels for value in label.values})
    return SegmentationTask(kind="dataset.json", labels=wanted, declared=tuple(declared), cases=cases)


def _labels(given: Any) -> list[Label]:
    """{"liver": 1} as nnU-Net 2 has it, {"1": "liver"} as the others; {"tumour": [1, 2]} is a region."""
    labels = []
    try:
        for key, value in dict(given).items():
            name, number = (value, key) if isinstance(value, str) else (key, value)
            labels.append(Label(str(name), tuple(map(int, number)) if isinstance(number, list) and number else int(number)))
    except (TypeError, ValueError):
        _refuse("The labels of dataset.json cannot be read.", found=str(given)[:80], expected='such as {"background": 0, "liver": 1}')
    labels.sort(key=lambda label: label.values)
    if [n for n in labels if n.name.lower() == "ignore"]:
        _refuse("An ignore label is not supported.", found="a label named ignore", expected="structures and background only")
    values = [value for label in labels if label.value for value in label.values]
    most = MOST_CLASSES if len(values) == len(set(values)) else MOST_OVERLAPPING
    if len({label.value for label in labels}) != len(labels) or not 1 <= len([x for x in labels if x.value]) <= most:
        _refuse(
            "The labels of dataset.json cannot be used.",
            found=f"{len(labels)} labels",
            expected=f"different values, 1 to {most} of them other than 0",
        )
    return labels


def _pairs(folder: Path, part: str, ending: str, split: str) -> list[tuple[Path, Path, str]]:
    if not (folder / f"labels{part}").is_dir():
        return []
    pairs = []
    for label in sorted((folder / f"labels{part}").glob(f"*{ending}")):
        stem = label.name.removesuffix(ending)
        images = [folder / f"images{part}" / f"{stem}{tail}{ending}" for tail in ("_0000", "")]
        pairs.append((next((image for image in images if image.is_file()), images[0]), label, split))
    return pairs


def _case(image: Path, label: Path, ending: str, split: str) -> CaseFiles:
    name = label.name.removesuffix(ending).removesuffix(".nii.gz").removesuffix(".nii")
    return CaseFiles(name=name, image=image, label=label, group=name, split=split)


def _with_splits(cases: Sequence[CaseFiles], path: Path, fold: int) -> tuple[CaseFiles, ...]:
    """The splits of a file; a case that it does not name is left out."""
    split: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            entry = json.loads(text)[fold]
            split = {name: part for part in ("train", "val") for name in entry[part]}
        else:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            split = {str(line["study"]): str(line["split"]) for line in lines}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        _refuse(
            "The file of splits cannot be used.",
            found=f"{type(error).__name__} at fold {fold}",
            expected="nnU-Net's splits_final.json with this fold, or one JSON object per line with study and split",
        )
    split |= {case.name: "test" for case in cases if case.split == "test"}
    return tuple(replace(case, split=split[case.name]) for case in cases if split.get(case.name) in SPLITS)


def with_splits(task: SegmentationTask, *, val_share: float, seed: int, most: Mapping[str, int] | None = None) -> SegmentationTask:
    """Every case in a split, groups together. most: largest number of cases by split (0 = all), drawn by the seed; a smaller
    number draws a part of what a larger one draws."""
    open_groups = sorted({case.group for case in task.cases if not case.split})
    order = [open_groups[int(n)] for n in generator(seed, "validation split").permutation(len(open_groups))]
    val = set(order[: max(1, round(len(order) * val_share))]) if len(order) > 1 else set()
    cases = [replace(case, split=case.split or ("val" if case.group in val else "train")) for case in task.cases]
    seen: dict[str, set[str]] = {}
    for case in cases:
        seen.setdefault(case.group, set()).add(case.split)
    if leaks := sorted(group for group, parts in seen.items() if len(parts) > 1):
        _refuse("Cases that belong together lie in different splits.", found=", ".join(leaks[:5]), expected="one split per group")
    for part, count in (most or {}).items():
        names = sorted(case.name for case in cases if case.split == part)
        if 0 < count < len(names):
            kept = {names[int(n)] for n in generator(seed, "few", part).permutation(len(names))[:count]}
            cases = [case for case in cases if case.split != part or case.name in kept]
    return replace(task, cases=tuple(cases))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, Mapping):
        _refuse("The description of the data set cannot be read.", found="no JSON object in dataset.json", expected="a JSON object")
    return content


def _refuse(what: str, *, found: str, expected: str) -> NoReturn:
    raise TrainingError(what, found=found, expected=expected, next_step="Correct the data set, or give another folder with --data.")
