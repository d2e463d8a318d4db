"""Manifest, prepared store and batches: bad data is named and left out, and a study shows the same whoever asks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from VelvetMedLib.ct import read
from VelvetMedLib.ct.views import fine_view, global_view
from VelvetMedLib.engine.data import EVALUATION, BatchMaker, Quarantine, drawn_start, groups_of
from VelvetMedLib.engine.loader import Loader
from VelvetMedLib.engine.manifest import Quarantined, read_manifest
from VelvetMedLib.engine.randomness import generator
from VelvetMedLib.engine.sampler import StepSampler
from VelvetMedLib.engine.store import FULL_SCALE, open_store, prepare, study_folder
from VelvetMedLib.engine.texts import sentences_of
from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.tribert import attention_rule
from VelvetMedLib.objectives.base import IMAGE_GLOBAL, IMAGE_LOCAL_A, IMAGE_LOCAL_B, NOT_ASKED, TEXT_CLEAN, TEXT_MASKED_MM, StudyBatch
from VelvetMedLib.objectives.encoding import needed_keys
from VelvetMedLib.recipes.crops import cut
from VelvetMedLib.recipes.layouts import lay_out
from VelvetMedLib.recipes.parts import ReportSettings
from VelvetMedLib.recipes.velvet import micro

KEYS = needed_keys(micro().objectives(300).values())


def maker(
    opened: Any, *, keys: tuple[str, ...] = KEYS, quarantine: Quarantine | None = None, studies: list[Any] | None = None
) -> BatchMaker:
    stored, groups, tokenizer = opened
    recipe = micro()
    listed = [s for s in stored if s.study.split == "train"] if studies is None else studies
    return BatchMaker(
        listed,
        groups,
        tokenizer,
        recipe.views,
        recipe.reports,
        keys=keys,
        seed=5,
        sentence_tokens=True,
        quarantine=Quarantine(None, len(listed), 1.0) if quarantine is None else quarantine,
    )


def lines_of(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def rewritten(manifest: Path, lines: list[Any]) -> Path:
    manifest.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return manifest


@pytest.fixture
def copied(studies_folder: Path, tmp_path: Path) -> Path:
    """A manifest that a test may change, beside copies of its scans."""
    shutil.copytree(studies_folder, tmp_path / "studies")
    return tmp_path / "studies" / "studies.jsonl"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"volume": "nowhere.nii.gz"}, "missing"),
        ({"reports": []}, "empty"),
        ({"reports": [[{"title": "Findings", "sentences": ["  "]}]]}, "empty"),
        ({"reports": [[{"title": "Findings", "sentences": "one text"}]]}, "known form"),
        ({"split": "training"}, "split"),
        ({"sectoins": 1}, "unknown keys"),
        ({"volume": None}, "no volume"),
    ],
)
def test_a_bad_line_is_quarantined_with_its_reason_and_the_others_stay(copied: Path, change: dict[str, Any], reason: str) -> None:
    lines = lines_of(copied)
    lines[1] |= change
    read_back = read_manifest(rewritten(copied, lines))
    assert [entry.study for entry in read_back.quarantined] == ["s1"] and reason in read_back.quarantined[0].reason
    assert len(read_back.studies) == 9


def test_lines_that_are_not_json_or_have_no_id_are_named_by_their_number(copied: Path) -> None:
    read_back = read_manifest(rewritten(copied, [*lines_of(copied), "{not json", {"split": "train"}]))
    assert [entry.study for entry in read_back.quarantined] == ["line 11", "line 12"] and len(read_back.studies) == 10


def test_a_study_in_two_splits_stays_where_it_is_evaluated(copied: Path) -> None:
    lines = lines_of(copied)
    read_back = read_manifest(rewritten(copied, [*lines, {**lines[9], "split": "train"}]))
    assert [(entry.study, entry.reason) for entry in read_back.quarantined] == [("s9 (train)", "listed twice: as train and as val")]
    assert {s.study: s.split for s in read_back.studies}["s9"] == "val"


def test_a_patient_in_two_splits_is_a_leak_and_refused(copied: Path) -> None:
    lines = lines_of(copied)
    lines[9]["patient"] = "p0"
    with pytest.raises(TrainingError, match="leak") as caught:
        read_manifest(rewritten(copied, lines))
    assert "p0" in caught.value.found


def test_the_same_scan_under_two_names_across_splits_is_left_out_of_training(copied: Path, tmp_path: Path) -> None:
    shutil.copyfile(copied.parent / "s9.nii.gz", copied.parent / "s0.nii.gz")
    manifest, views = read_manifest(copied), micro().views
    assert not prepare(manifest.studies, tmp_path / "store", views)
    studies, bad = open_store(manifest.studies, tmp_path / "store", views)
    assert [(b.study, b.reason) for b in bad] == [("s0", "the same scan is also in the val split")]
    assert len(studies) == 9


def test_a_corrupt_volume_is_quarantined_and_the_rest_prepared(copied: Path, tmp_path: Path) -> None:
    (copied.parent / "s2.nii.gz").write_bytes(b"no image at all")
    data = (copied.parent / "s3.nii.gz").read_bytes()
    (copied.parent / "s3.nii.gz").write_bytes(data[: len(data) // 2])
    manifest, views = read_manifest(copied), micro().views
    bad = prepare(manifest.studies, tmp_path / "store", views)
    assert sorted(b.study for b in bad) == ["s2", "s3"] and all("volume" in b.reason for b in bad)
    assert len(open_store(manifest.studies, tmp_path / "store", views)[0]) == 8


def test_preparing_again_changes_no_byte_and_a_changed_scan_is_prepared_anew(copied: Path, tmp_path: Path) -> None:
    store, views = tmp_path / "store", micro().views
    studies = read_manifest(copied).studies[:2]
    prepare(studies, store, views)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.rglob("*") if path.is_file()}
    prepare(studies, store, views)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.rglob("*") if path.is_file()}
    shutil.copyfile(copied.parent / "s7.nii.gz", copied.parent / "s0.nii.gz")
    prepare(studies, store, views)
    changed = study_folder(store, views, "s0") / "fine.npy"
    assert before[changed][1] != changed.read_bytes()


def test_stored_views_are_those_that_the_product_makes(opened: Any) -> None:
    entry, recipe = opened[0][0], micro()
    fine = fine_view(read(entry.study.volume), recipe.views.fine_spacing_mm)
    assert np.array_equal(entry.fine(), np.rint(fine.hu_xyz).astype(np.int16))
    small = global_view(fine, shape=(32, 32, 32), window=recipe.views.hu_window)
    assert np.abs(entry.global_view() / FULL_SCALE - small.voxels_xyz).max() <= 0.51 / FULL_SCALE
    assert entry.view_spacing_mm == small.view_spacing_mm


def same(one: StudyBatch, two: StudyBatch, row: int, other: int) -> bool:
    def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.ndim == 2 and a.dtype == torch.long:  # ids and labels, padded to the longest of their batch
            n = min(a.shape[1], b.shape[1])
            return torch.equal(a[row, :n], b[other, :n])
        return torch.equal(a[row], b[other])

    return (
        equal(one.study, two.study)
        and equal(one.group, two.group)
        and all(equal(one.images[key], two.images[key]) for key in one.images)
        and all(equal(one.clean[key], two.clean[key]) for key in one.clean)
        and all(equal(one.texts[key].ids, two.texts[key].ids) for key in one.texts)
        and all(equal(one.labels[key], two.labels[key]) for key in one.labels)
    )


def test_a_study_shows_the_same_alone_and_in_any_place_of_any_batch(opened: Any) -> None:
    made = maker(opened)
    together, alone = made.batch(["s0", "s3", "s5"], 2), made.batch(["s3"], 2)
    assert same(together, alone, 1, 0)
    assert same(together, made.batch(["s5", "s3"], 2), 2, 0)
    assert not same(together, made.batch(["s3"], 3), 1, 0)


def test_a_batch_has_what_every_objective_reads(opened: Any) -> None:
    batch = maker(opened).batch(["s0", "s1", "s2"], 0)
    assert batch.images[IMAGE_GLOBAL].shape == batch.images[IMAGE_LOCAL_A].shape == (3, 1, 32, 32, 32)
    assert not torch.equal(batch.images[IMAGE_LOCAL_A], batch.images[IMAGE_LOCAL_B])
    assert all(float(image.min()) >= 0.0 and float(image.max()) <= 1.0 for image in batch.images.values())
    assert batch.view_spacing_mm is not None and batch.view_spacing_mm.shape == (3, 3)
    asked = batch.labels[TEXT_MASKED_MM] != NOT_ASKED
    assert asked.any(dim=1).all() and len(batch.group.unique()) == 3


def test_evaluation_draws_nothing(opened: Any) -> None:
    made = maker(opened, keys=(IMAGE_GLOBAL, TEXT_CLEAN))
    other = maker(opened, keys=(IMAGE_GLOBAL, TEXT_CLEAN))
    other.seed = 99
    assert same(made.batch(["s0", "s1"], EVALUATION), other.batch(["s0", "s1"], EVALUATION), 1, 1)
    assert made.sentences("s1", EVALUATION) == ["there is a effusion 1 in the right lung.", "no pleural effusion."]
    assert {tuple(made.sentences("s1", epoch)) for epoch in range(20)} == {
        ("there is a effusion 1 in the right lung.", "no pleural effusion."),
        ("Right lung has effusion 1 in it.", "The liver is clear."),
    }


def test_a_prepared_file_that_breaks_during_the_run_is_quarantined_and_another_study_stands_in(opened: Any, tmp_path: Path) -> None:
    stored = [s for s in opened[0] if s.study.split == "train"]
    broken = tmp_path / "broken"
    shutil.copytree(stored[0].folder, broken)
    (broken / "fine.npy").write_bytes((broken / "fine.npy").read_bytes()[:200])
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 8, 0.5)
    studies = [replace(stored[0], folder=broken), *stored[1:]]
    made = maker(opened, quarantine=quarantine, studies=studies)
    batch = made.batch(["s0", "s1"], 0)
    assert len(batch) == 2 and "s0" in quarantine and len(quarantine) == 1
    again = maker(opened, studies=studies).batch(["s0", "s1"], 0)
    assert same(batch, again, 0, 0), "the stand-in must be the same whenever the run is taken up again"
    assert json.loads((tmp_path / "quarantine.jsonl").read_text(encoding="utf-8"))["study"] == "s0"


def test_too_many_unusable_studies_stop_the_run() -> None:
    quarantine = Quarantine(None, 10, 0.2)
    quarantine.add([Quarantined("a", "x"), Quarantined("b", "x"), Quarantined("a", "x")])
    assert len(quarantine) == 2
    with pytest.raises(TrainingError, match="Too many"):
        quarantine.add([Quarantined("c", "x")])


def test_equal_reports_and_equal_scans_are_one_group(copied: Path, tmp_path: Path) -> None:
    lines = lines_of(copied)
    lines[1]["reports"] = [lines[0]["reports"][1]]
    shutil.copyfile(copied.parent / "s3.nii.gz", copied.parent / "s4.nii.gz")
    manifest, views = read_manifest(rewritten(copied, lines)), micro().views
    prepare(manifest.studies, tmp_path / "store", views)
    groups = groups_of(open_store(manifest.studies, tmp_path / "store", views)[0])
    assert groups["s0"] == groups["s1"] and groups["s3"] == groups["s4"] and len(set(groups.values())) == 8


def test_crops_equal_a_padded_cut_and_cover_no_needless_air() -> None:
    volume = np.arange(5 * 4 * 9, dtype=np.int16).reshape(5, 4, 9)
    padded = np.pad(volume, 10, constant_values=-1024)
    draw = generator(0, "crops")
    for _ in range(50):
        start = drawn_start(volume.shape, (4, 6, 4), draw)
        where = tuple(slice(10 + int(a), 10 + int(a) + n) for a, n in zip(start, (4, 6, 4), strict=True))
        assert np.array_equal(cut(volume, start, (4, 6, 4)), padded[where])
        assert 0 <= start[0] <= 1 and -2 <= start[1] <= 0 and 0 <= start[2] <= 5


def test_sections_are_chosen_by_title_or_by_what_is_irrelevant(opened: Any) -> None:
    report = opened[0][0].study.reports[0]
    assert len(sentences_of(report, ReportSettings())) == 2
    assert len(sentences_of(report, ReportSettings(skip_irrelevant=False))) == 3
    assert sentences_of(report, ReportSettings(report_fields=("technique",))) == ["axial scan."]


def test_without_sentence_tokens_the_layout_is_that_of_a_plain_bert(opened: Any) -> None:
    tokenizer, settings = opened[2], ReportSettings(max_tokens=64)
    sentences = ["no effusion.", "the nodule is left."]
    with_, plain = (lay_out(tokenizer, sentences, settings, sentence_tokens=on, draw=None) for on in (True, False))
    ids = [n for n in with_.ids[0].tolist() if n not in tokenizer.sentence_ids]
    assert plain.ids[0].tolist() == [*ids, tokenizer.id("[SEP]")] and plain.type_ids.unique().tolist() == [1]
    assert attention_rule(plain.type_ids, plain.pad_mask).all()
    assert plain.word_mask.sum() == with_.word_mask.sum() and plain.sentence_mask.tolist() == [[True, True]]
    # Every word of the plain layout is one of the other's, with the same pieces.
    for layout in (with_, plain):
        pieces = [layout.ids[0][layout.word_index[0] == int(entry)].tolist() for entry in layout.word_entry[0]]
        assert pieces == [with_.ids[0][with_.word_index[0] == int(e)].tolist() for e in with_.word_entry[0]]
    owners = [int(plain.entry_sentence[0, int(e)]) for e in plain.word_entry[0]]
    assert owners == [int(with_.entry_sentence[0, int(e)]) for e in with_.word_entry[0]]
    assert int(plain.entry_sentence[0, int(plain.word_index[0, -1])]) == 0, "[SEP] belongs to no sentence"


def test_the_loader_gives_every_step_its_studies_and_raises_what_a_reader_raised() -> None:
    class Names:
        def batch(self, names: list[str], epoch: int) -> Any:
            if "s3" in names and epoch == 1:
                raise TrainingError("broken", found="", expected="", next_step="")
            return names

    sampler = StepSampler([f"s{n}" for n in range(6)], 6, seed=0)
    loader = Loader(Names(), sampler, first_step=0, last_step=2, micro_batches=2, rank=1, world_size=2, readers=2)
    steps = loader.steps()
    assert [name for part in next(steps) for name in part] == sampler.draw(0)[3:]
    if "s3" in sampler.draw(1)[3:]:
        with pytest.raises(TrainingError, match="broken"):
            next(steps)
    loader.close()
