"""What a study's texts say in the demo training: report sentences for contrast, sentences and answers for the decoder, prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from VelvetMedLib.errors import TrainingError
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.objectives.base import NOT_ASKED
from VelvetMedLib.objectives.groups import normalised_report, study_key
from VelvetMedLib.reports import HELD_OUT_STYLE, STYLES, FindingRecord, fill_slots, make_questions, ontology, write_report, write_sentence
from VelvetMedLib.tasks.prompts import answer_prefix, report_prefix

Rows: TypeAlias = list[tuple[list[int], list[int]]]
"""(prompt ids, target ids) pairs of one study."""
Packs: TypeAlias = list[tuple[Tensor, Tensor, Tensor]]
"""Rows of like length: which study each belongs to [R], ids [R, L], targets [R, L]."""


class HasFindings(Protocol):
    @property
    def findings(self) -> list[FindingRecord]: ...


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """sentences_per_study, questions_per_study: rows of the decoder in a step. tokens: longest text of contrast and prompts."""

    sentences_per_study: int = 3
    questions_per_study: int = 2
    tokens: int = 224


class TextSource:
    """Draws what a study's texts say."""

    def __init__(self, tokenizer: ReportTokenizer, settings: TextSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.end = tokenizer.id("[EOS]")

    def report(self, case: HasFindings, draw: np.random.Generator, *, held_out: bool = False) -> list[str]:
        """The sentences that say something about this scan; never empty. held_out: a style and wordings never trained on."""
        style = HELD_OUT_STYLE if held_out else str(draw.choice(STYLES))
        sections = write_report(case.findings, style=style, rng=draw, held_out_wording=held_out)
        sentences = [s.text for section in sections for s in section.sentences if s.findings]
        return sentences or ["No abnormality is described."]

    def excerpt(self, case: HasFindings, draw: np.random.Generator) -> tuple[list[str], Tensor]:
        """One or two sentences of a report, and what they say of each finding: [F], 1 affirmed, 0 denied, NaN neither."""
        sections = write_report(case.findings, style=str(draw.choice(STYLES)), rng=draw)
        sentences = [s for section in sections for s in section.sentences if s.findings]
        names = [finding.name for finding in ontology().findings]
        said = torch.full((len(names),), float("nan"))
        if not sentences:
            return ["No abnormality is described."], said
        chosen = [sentences[int(i)] for i in sorted(draw.permutation(len(sentences))[: int(draw.integers(1, 3))])]
        of_case = finding_targets([case])[0]
        for name in {name for sentence in chosen for name in sentence.findings}:
            said[names.index(name)] = of_case[names.index(name)]
        return [sentence.text for sentence in chosen], said

    def prompts(self, known: dict[str, dict[str, list[FindingRecord]]], draw: np.random.Generator) -> list[list[str]]:
        """One sentence that affirms and one that denies each finding, in this order, worded after records of the cohort."""
        sentences = []
        for finding in ontology().findings:
            for state in ("present", "absent"):
                records = known[finding.name][state]
                record = records[int(draw.integers(len(records)))]
                sentences.append([fill_slots(write_sentence(record, draw, str(draw.choice(STYLES))).slotted, record)])
        return sentences

    def decoder_rows(self, case: HasFindings, draw: np.random.Generator) -> Rows:
        """(prompt ids, target ids) pairs: sentences about some findings, positive ones first, and answers."""
        shuffled = [case.findings[i] for i in draw.permutation(len(case.findings))]
        positive = [r for r in shuffled if r.state in ("present", "uncertain")]
        rest = [r for r in shuffled if r.state in ("absent", "not_assessed")]
        half = self.settings.sentences_per_study // 2
        chosen = (positive[: self.settings.sentences_per_study - half] + rest)[: self.settings.sentences_per_study]
        rows = []
        for record in chosen:
            sentence = write_sentence(record, draw, str(draw.choice(STYLES)))
            rows.append((report_prefix(self.tokenizer, record), self.tokenizer.encode(sentence.slotted)))
        questions = make_questions(case.findings, draw)
        for index in draw.permutation(len(questions))[: self.settings.questions_per_study]:
            question = questions[int(index)]
            rows.append((answer_prefix(self.tokenizer, question.question), self.tokenizer.encode(question.slotted_answer)))
        return rows

    def packed(self, rows_of: Sequence[Rows], positions: int, parts: int = 3) -> Packs:
        """All studies' rows; those of like length run together, since padding would otherwise double the work."""
        flat = [(owner, row) for owner, rows in enumerate(rows_of) for row in rows]
        flat.sort(key=lambda entry: len(entry[1][0]) + len(entry[1][1]))
        packs = []
        for order in torch.arange(len(flat)).chunk(parts):
            part = [flat[int(n)] for n in order]
            ids, targets = pack_rows([row for _, row in part], self.end, self.tokenizer.id("[PAD]"), positions)
            packs.append((torch.tensor([owner for owner, _ in part]), ids, targets))
        return packs


def pack_rows(rows: Rows, end: int, pad: int, longest: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids [R, L] and targets [R, L] (`NOT_ASKED` where nothing is to be learnt: prompt and padding)."""
    sequences = [(prompt + target + [end], len(prompt)) for prompt, target in rows]
    width = min(longest, max(len(ids) for ids, _ in sequences))
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), NOT_ASKED)
    for row, (sequence, prompt) in enumerate(sequences):
        kept = torch.tensor(sequence[:width])
        ids[row, : len(kept)] = kept
        targets[row, prompt - 1 : len(kept) - 1] = kept[prompt:]
    return ids, targets


def groups_of_texts(reports: Iterable[Sequence[str]]) -> Tensor:
    """int64 [B]: equal where reports read the same, so that they share the positive of the contrast."""
    return torch.tensor([study_key(normalised_report(" ".join(report))) for report in reports])


def finding_targets(cases: Sequence[HasFindings]) -> Tensor:
    """[B, findings]: 1 present, 0 absent, NaN uncertain or not assessed."""
    names = [finding.name for finding in ontology().findings]
    value = {"present": 1.0, "absent": 0.0}
    table = [{record.name: value.get(record.state, float("nan")) for record in case.findings} for case in cases]
    return torch.tensor([[row[name] for name in names] for row in table])


def positive_weight(cases: Sequence[HasFindings]) -> Tensor:
    """[findings]: root of how many times rarer than absent a finding is, within 1 and root 6."""
    targets = finding_targets(cases)
    positive, negative = (targets == 1).sum(0), (targets == 0).sum(0)
    return (negative / positive.clamp(min=1)).clamp(1, 6).sqrt()


def records_by_state(cases: Sequence[HasFindings]) -> dict[str, dict[str, list[FindingRecord]]]:
    """All records of the cases by finding and state. TrainingError if a finding is never present or never absent."""
    table: dict[str, dict[str, list[FindingRecord]]] = {f.name: {"present": [], "absent": []} for f in ontology().findings}
    for case in cases:
        for record in case.findings:
            if record.state in ("present", "absent"):
                table[record.name][record.state].append(record)
    if empty := [f"{name}: {state}" for name, states in table.items() for state, records in states.items() if not records]:
        raise TrainingError(
            "The training cases do not show every finding.",
            found=f"no example of {', '.join(empty[:6])}" + (" ..." if len(empty) > 6 else ""),
            expected="each finding present in some case and absent in another",
            next_step="Make a larger cohort, or encode more cases (--encode-cases).",
        )
    return table


def corpus(cases: Sequence[HasFindings], *, seed: int) -> list[str]:
    """Texts for the tokenizer: reports, single sentences and question-answer pairs of training cases, slots included."""
    draw = np.random.default_rng((seed, 1))
    texts: list[str] = []
    for case in cases:
        records = case.findings
        for section in write_report(records, style=str(draw.choice(STYLES)), rng=draw):
            texts += [section.title, *(sentence.text for sentence in section.sentences)]
        texts += [fill_slots(write_sentence(r, draw, str(draw.choice(STYLES))).slotted, r) for r in records]
        for question in make_questions(records, draw):
            texts += [question.question, question.answer]
    return texts
