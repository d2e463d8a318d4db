"""Which writer a word or a path names, and drafts worded with a user's own phrases from a folder or an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from VelvetMedLib.errors import UsageError
from VelvetMedLib.reports import FindingRecord
from VelvetMedLib.reports.own_phrases import harvest, write_phrases
from VelvetMedLib.tasks import analyze
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.report import finding_support
from VelvetMedLib.tasks.writers import Composer, open_writer
from VelvetMedLib.tasks.writers.composer import gather
from VelvetMedLib.tasks.writers.decoder import DecoderWriter

REPORT = "FINDINGS: There is a 6 mm nodule in the right upper lobe. Pleural effusion is absent. Seen by Dr. Okafor on 3.4.2024.\n"
NODULE = FindingRecord(name="lung_nodule", state="present", side="left", site="lung_lower_lobe_left", size_mm=14.2)


def test_the_bundles_decoder_writes_unless_another_writer_is_named(random_bundle: Any, tmp_path: Path):
    write_phrases(tmp_path / "own.json", harvest([REPORT]))
    assert isinstance(open_writer(None, random_bundle), DecoderWriter)
    assert isinstance(open_writer("decoder", random_bundle), DecoderWriter)
    assert open_writer("composer", random_bundle).facts == {"kind": "composer", "own_phrases": 0}
    digest = harvest([REPORT]).sha256
    assert open_writer(tmp_path / "own.json", random_bundle).facts == {"kind": "composer", "own_phrases": 2, "sha256": digest}
    assert harvest([REPORT + "\n"]).sha256 == digest != harvest([REPORT.replace("nodule", "mass")]).sha256
    with pytest.raises(UsageError, match="no such writer"):
        open_writer(tmp_path / "nothing", random_bundle)


def test_a_decoder_that_finds_no_end_has_nothing_to_propose(random_bundle: Any, monkeypatch: pytest.MonkeyPatch):
    from VelvetMedLib.tasks.writers import decoder
    from VelvetMedLib.tasks.writing import Written

    monkeypatch.setattr(decoder, "write", lambda *_: [Written("A nodule.", 0.5, True), Written("A nodule", 0.5, False)])
    found = DecoderWriter(random_bundle).write([NODULE, NODULE], None, "terse", Run())  # type: ignore[arg-type]
    assert [w and (w.slotted, w.probability) for w in found] == [("A nodule.", 0.5), None]


def test_reports_of_a_folder_give_phrases_but_drafts_of_cases_do_not(tmp_path: Path):
    for folder, mark in (("a", None), ("a/b", None), ("case", "case.json"), (".hidden", None)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "report.txt").write_text(REPORT, encoding="utf-8")
        if mark is not None:
            (tmp_path / folder / mark).write_text("{}", encoding="utf-8")
    found = gather(tmp_path)
    assert found.reports == 2 and {p.finding for p in found.phrases} == {"lung_nodule", "pleural_effusion"}
    with pytest.raises(UsageError, match="no report"):
        gather(tmp_path / "case")


def test_a_draft_is_worded_with_phrases_of_an_index_that_keeps_texts(random_bundle: Any, body: Any, tmp_path: Path):
    from VelvetMedLib.tasks import index_folder

    case = analyze(body, random_bundle, out=tmp_path / "cases" / "one", writer=Composer())
    index_folder(tmp_path / "cases", tmp_path / "index", random_bundle, keep_text=True)
    phrases = gather(tmp_path / "index")
    assert phrases.reports == 1 and len(phrases.phrases) > 3
    again = analyze(body, random_bundle, writer=Composer(phrases))
    written = [name for name, origin in again.run["sentences"].items() if origin == "written"]
    assert len(written) > 3 and again.findings == case.findings
    assert again.report is not None
    sentences = [s for section in again.report.sections[:-1] for s in section.sentences if s.finding in written]
    support = {f.name: finding_support(f) for f in again.findings}
    # Words that nobody guessed leave the support of the finding as it is.
    assert [s.support for s in sentences] == [support[str(s.finding)] for s in sentences]


def test_a_phrase_is_proposed_with_slots_for_numbers(random_bundle: Any):
    writer = Composer(harvest([REPORT]))
    effusion = FindingRecord(name="pleural_effusion", state="absent")
    mass = FindingRecord(name="lung_mass", state="absent")
    found = writer.write([NODULE, effusion, mass], None, "terse", Run())  # type: ignore[arg-type]
    texts = [w and w.slotted for w in found]
    assert texts == ["There is a [SIZE] nodule in the left lower lobe.", "Pleural effusion is absent.", None]
