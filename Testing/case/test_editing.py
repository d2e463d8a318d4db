"""A person's words, verdicts and edited segments: kept with whose they are, never silently rewritten, never exported unmarked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from VelvetMedLib.case import Case, Section, Sentence, read_case, report_markdown
from VelvetMedLib.case.editing import (
    PERSONS_SECTION,
    add_sentence,
    anything_stale,
    judge,
    mark_edited,
    restore,
    rests_on,
    rewrite,
    sentence_at,
    sentences,
    stale_segments,
    take_revised,
)

WHEN = "2026-11-22T10:00:00+00:00"
NODULE, CONSOLIDATION, EFFUSION = (0, 0), (0, 1), (0, 2)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A nodule (present), no consolidation, an uncertain effusion; segments of liver, spleen and nodule."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from velvetmed_phantom import write_small_case

    labels = np.zeros((20, 30, 25), np.uint8)
    labels[4:12, 5:20, 3:12], labels[5:10, 6:12, 15:20], labels[14:16, 20:23, 5:8] = 4, 1, 101
    return read_case(write_small_case(tmp_path_factory.mktemp("case") / "case", labels, np.diag([1.0, 1.0, 2.0, 1.0])))


def texts(case: Case) -> list[str]:
    return [sentence.text for _, _, sentence in sentences(case)]


def test_a_persons_words_replace_the_models_which_stay_with_whose_they_were(case: Case) -> None:
    after = sentence_at(rewrite(case, NODULE, " A nodule \n of 9 mm. ", when=WHEN), NODULE)
    assert after.text == "A nodule of 9 mm." and after.by_person and after.link == sentence_at(case, NODULE).link
    told = after.revision
    assert told is not None and told.machine_text == "A nodule of 7 mm in the left upper lobe." and told.changed == WHEN
    assert told.model_id == "demo 1" and told.weights_sha256 == "1" * 64 and told.machine_support == 0.91


def test_a_persons_words_carry_the_state_that_they_say_and_no_support_of_the_models(case: Case) -> None:
    denied = sentence_at(rewrite(case, NODULE, "No lung nodule."), NODULE)
    assert denied.state == "absent" and denied.support is None
    assert sentence_at(rewrite(case, NODULE, "Compare with the last scan."), NODULE).state is None


def test_typing_the_models_words_again_makes_them_the_models_again(case: Case) -> None:
    there = rewrite(case, NODULE, "Something else.")
    back = sentence_at(rewrite(there, NODULE, sentence_at(case, NODULE).text), NODULE)
    assert not back.by_person and (back.state, back.support) == ("present", 0.91)


def test_restoring_brings_back_the_models_sentence_whole(case: Case) -> None:
    changed = judge(rewrite(case, NODULE, "Something else."), NODULE, "rejected")
    assert restore(changed, NODULE) == case
    added = add_sentence(case, "Surgical clips.", section=0)
    assert restore(added, (0, 3)) == case and restore(case, NODULE) == case


def test_an_added_sentence_has_no_model_behind_it(case: Case) -> None:
    added = add_sentence(case, "Surgical clips.", when=WHEN)
    assert added.report is not None and added.report.sections[-1].title == PERSONS_SECTION
    new = sentence_at(added, (1, 0))
    assert new.by_person and new.revision is not None and new.revision.machine_text is None and new.revision.model_id is None
    twice = add_sentence(added, "Old fracture.")
    assert texts(twice)[-2:] == ["Surgical clips.", "Old fracture."]
    assert texts(add_sentence(replace(case, report=None), "Alone.")) == ["Alone."]


@pytest.mark.parametrize("text", ["", "  \n ", "x" * 3000])
def test_an_empty_or_endless_sentence_is_refused(case: Case, text: str) -> None:
    with pytest.raises(ValueError):
        rewrite(case, NODULE, text)


def test_a_place_that_does_not_exist_is_refused(case: Case) -> None:
    for place in ((0, 9), (5, 0), (-1, 0)):
        with pytest.raises(IndexError):
            judge(case, place, "accepted")


def test_a_rejected_sentence_leaves_the_report_and_is_named_among_the_changes(case: Case) -> None:
    text = report_markdown(judge(case, CONSOLIDATION, "rejected", when=WHEN))
    body, changes = text.split("## What a person changed")
    assert "No consolidation." not in body and "Rejected: No consolidation." in changes and WHEN in changes


def test_the_markdown_tells_machine_and_human_words_apart(case: Case) -> None:
    text = report_markdown(rewrite(case, NODULE, "A nodule of 9 mm.", when=WHEN))
    line = next(line for line in text.splitlines() if line.startswith("- A nodule of 9 mm."))
    assert "words of a person" in line and "support" not in line
    assert "~~A nodule of 7 mm in the left upper lobe.~~ A nodule of 9 mm." in text and "model demo 1, weights 111111111111" in text
    assert "What a person changed" not in report_markdown(case)


def test_editing_a_segment_marks_its_figures_its_findings_and_their_sentences_at_once(case: Case) -> None:
    after = mark_edited(case, ["lung_nodule"])
    assert stale_segments(after) == ("lung_nodule",) and next(s for s in after.segments if s.name == "lung_nodule").edited
    stale = {f.name for f in after.findings if f.stale}
    assert {"lung_nodule", "lung_mass"} <= stale and "consolidation" not in stale
    # The effusion's sentence points at the nodule's voxels in this made-up case, so it goes with it.
    assert [sentence_at(after, place).stale for place in (NODULE, CONSOLIDATION, EFFUSION)] == [True, False, True]
    assert anything_stale(after) and not anything_stale(case) and mark_edited(case, []) is case


def test_what_was_not_assessed_does_not_become_stale(case: Case) -> None:
    after = mark_edited(case, ["spleen"])
    assert not next(f for f in after.findings if f.name == "splenomegaly").stale


def test_a_stale_figure_is_never_exported_without_its_mark(case: Case) -> None:
    text = report_markdown(mark_edited(case, ["lung_nodule"]))
    line = next(line for line in text.splitlines() if line.startswith("- A nodule of 7 mm"))
    assert "Out of date" in line and "Out of date: Lung nodule or mass" in text.replace("lung nodule or mass", "Lung nodule or mass")


def test_rewriting_or_accepting_after_an_edit_is_a_persons_word_that_it_holds_now(case: Case) -> None:
    old = mark_edited(case, ["lung_nodule"])
    assert not sentence_at(rewrite(old, NODULE, "A nodule of 9 mm."), NODULE).stale
    person = mark_edited(rewrite(case, NODULE, "A nodule of 9 mm."), ["lung_nodule"])
    asked = sentence_at(person, NODULE)
    assert asked.stale and asked.revision is not None and asked.revision.verdict is None
    assert not sentence_at(judge(person, NODULE, "accepted"), NODULE).stale
    # The model's own numbers do not become right by being accepted.
    assert sentence_at(judge(old, NODULE, "accepted"), NODULE).stale


def test_every_finding_rests_on_segments_that_the_ontology_knows() -> None:
    from VelvetMedLib.reports import ontology

    known = {s.name for s in ontology().structures} | {x.name for x in ontology().lesions}
    for finding in ontology().findings:
        assert rests_on(finding.name) and rests_on(finding.name) <= known, finding.name
    assert rests_on("unheard of") == frozenset()


def test_a_changed_case_reads_back_from_json_as_it_was_and_an_older_one_still_reads(case: Case) -> None:
    changed: Any = mark_edited(judge(rewrite(case, NODULE, "Mine."), CONSOLIDATION, "rejected"), ["liver"])
    assert Case.from_dict(changed.as_dict()) == changed
    older = case.as_dict()
    for part in (*older["segments"], *older["findings"], *older["report"]["sections"][0]["sentences"]):
        for key in ("revision", "stale", "edited"):
            part.pop(key, None)
    assert Case.from_dict(older) == case


def revised(case: Case, text: str = "A nodule of 9 mm in the left upper lobe.") -> tuple[Any, Any]:
    """Findings and draft after a second look: the nodule is larger, the effusion is no longer spoken of."""
    assert case.report is not None
    findings = tuple(replace(f, size_mm=9.0, stale=False) if f.name == "lung_nodule" else replace(f, stale=False) for f in case.findings)
    section = case.report.sections[0]
    nodule = replace(section.sentences[0], text=text, support=0.93, stale=False, revision=None)
    return findings, replace(case.report, sections=(replace(section, sentences=(nodule, section.sentences[1])),))


def test_a_second_look_replaces_the_models_stale_words_and_nothing_else(case: Case) -> None:
    old = mark_edited(judge(case, CONSOLIDATION, "accepted", when=WHEN), ["lung_nodule"])
    after = take_revised(old, *revised(case))
    assert texts(after) == ["A nodule of 9 mm in the left upper lobe.", "No consolidation."]
    told = sentence_at(after, CONSOLIDATION).revision
    assert told is not None and told.verdict == "accepted"
    assert after.finding("lung_nodule").size_mm == 9.0 and not any(f.stale for f in after.findings)  # type: ignore[union-attr]


def test_a_verdict_on_other_words_does_not_pass_to_new_ones_and_one_on_the_same_words_stays(case: Case) -> None:
    old = mark_edited(judge(case, NODULE, "accepted"), ["lung_nodule"])
    assert sentence_at(take_revised(old, *revised(case)), NODULE).revision is None
    same = take_revised(old, *revised(case, sentence_at(case, NODULE).text))
    told = sentence_at(same, NODULE).revision
    assert told is not None and told.verdict == "accepted" and not sentence_at(same, NODULE).stale


def test_a_persons_words_survive_a_second_look_and_stay_stale_until_the_person_says_that_they_hold(case: Case) -> None:
    mine = rewrite(rewrite(case, NODULE, "A nodule of 8 mm."), EFFUSION, "Possibly some fluid.")
    after = take_revised(mark_edited(add_sentence(mine, "Clips."), ["lung_nodule"]), *revised(case))
    assert set(texts(after)) == {"A nodule of 8 mm.", "No consolidation.", "Possibly some fluid.", "Clips."}
    nodule = sentence_at(after, NODULE)
    assert nodule.stale and nodule.revision is not None and nodule.revision.machine_text == "A nodule of 9 mm in the left upper lobe."
    assert restore(after, NODULE) and sentence_at(restore(after, NODULE), NODULE).text == "A nodule of 9 mm in the left upper lobe."
    assert not sentence_at(judge(after, NODULE, "accepted"), NODULE).stale


def together(text: str, state: Any) -> Sentence:
    return Sentence(text=text, state=state, support=None, finding=None, link=None)


def test_sentences_that_tell_several_findings_go_stale_and_are_made_anew(case: Case) -> None:
    """The brief form: a second look finds the nodule that the first denied together with a consolidation."""
    assert case.report is not None
    none, unseen = (
        together("No lung nodule and consolidation.", "absent"),
        together("Not covered by this scan: cysts and goitre.", "not_assessed"),
    )
    title = case.report.sections[0].title
    sections = (
        Section(title=title, sentences=(none, unseen)),
        Section(title="Impression", sentences=(together("None is present.", None),)),
    )
    brief = add_sentence(replace(case, report=replace(case.report, sections=sections)), "Clips.", section=1)
    old = mark_edited(brief, ["lung_nodule"])
    assert [sentence.stale for _, _, sentence in sentences(old)] == [True, False, False, False]
    nodule = sentence_at(case, NODULE)
    lines = (nodule, sentence_at(case, CONSOLIDATION), unseen)
    fresh = (Section(title=title, sentences=lines), Section(title="Impression", sentences=(nodule,)))
    after = take_revised(old, case.findings, replace(case.report, sections=fresh))
    assert texts(after) == [*(line.text for line in lines), nodule.text, "Clips."]
    again = take_revised(old, case.findings, replace(case.report, sections=sections))
    assert texts(again) == texts(brief) and not anything_stale(replace(again, segments=()))


def test_a_finding_that_a_person_has_overruled_is_not_overruled_back(case: Case) -> None:
    from VelvetMedLib.case.schema import Overruling

    told = Overruling(machine_state="present", absent_below=0.95, present_from=0.99, changed=WHEN)
    mine = replace(
        case,
        findings=tuple(replace(f, state="absent", overruling=told) if f.name == "lung_nodule" else f for f in case.findings),
    )
    after = take_revised(mark_edited(mine, ["lung_nodule"]), *revised(case))
    found = after.finding("lung_nodule")
    assert found is not None and (found.state, found.size_mm, found.stale) == ("absent", 9.0, False)
    assert found.overruling is not None and found.overruling.machine_state == "present" and found.overruling.present_from == 0.99
