"""Stage 2 and 3: the global encoder, then everything that reads tokens: findings, alignment with reports, writing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from demo.checkpoint import StageState
from VelvetMedLib.engine.optimiser import MovingAverage
from demo.encodings import EncodedCase
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.objectives.groups import normalised_report
from VelvetMedLib.reports import HELD_OUT_STYLE, STYLES, FindingRecord, fill_slots, make_questions, ontology, write_report, write_sentence
from VelvetMedLib.tasks.prompts import answer_prefix, report_prefix


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """global_steps: of the image encoder with contrast and findings; reader_steps: of everything else on kept tokens."""

    global_steps: int = 80
    global_batch: int = 16
    reader_steps: int = 300
    reader_batch: int = 32
    sentences_per_study: int = 3
    questions_per_study: int = 2
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.02
    warmup_steps: int = 30
    average_decay: float = 0.99
    label_smoothing: float = 0.1
    text_tokens: int = 224


def finding_targets(cases: list[EncodedCase]) -> Tensor:
    """[B, findings]: 1 present, 0 absent, NaN uncertain or not assessed."""
    names = [finding.name for finding in ontology().findings]
    value = {"present": 1.0, "absent": 0.0}
    table = [{record.name: value.get(record.state, float("nan")) for record in case.findings} for case in cases]
    return torch.tensor([[row[name] for name in names] for row in table])


def findings_loss(logits: Tensor, targets: Tensor, positive_weight: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known entries of [B, F]."""
    known = torch.isfinite(targets)
    raw = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), pos_weight=positive_weight, reduction="none")
    return (raw * known).sum() / known.sum().clamp(min=1)


def cells_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy between what a cell holds and what is said of it, summed over structures and lesions, averaged over cells.

    logits, shares [B, S, X, Y, Z]; a share is the part of the cell that is filled, 0..1.
    """
    return F.binary_cross_entropy_with_logits(logits, shares, reduction="none").sum(1).mean()


def prompt_loss(study: Tensor, text: Tensor, log_scale: Tensor, targets: Tensor, positive_weight: Tensor) -> Tensor:
    """Is the study nearer to the sentence that affirms a finding or to the one that denies it? Cross-entropy over known findings.

    study [B, D] and text [2 F, D] unit vectors, text alternating affirmed and denied; targets [B, F] as in `finding_targets`.
    """
    scores = study.float() @ text.float().T
    return findings_loss(log_scale.clamp(0, float(np.log(100))).exp() * (scores[:, 0::2] - scores[:, 1::2]), targets, positive_weight)


def records_by_state(cases: list[EncodedCase]) -> dict[str, dict[str, list[FindingRecord]]]:
    """All records of the cases by finding and state. ValueError if a finding is never present or never absent."""
    table: dict[str, dict[str, list[FindingRecord]]] = {f.name: {"present": [], "absent": []} for f in ontology().findings}
    for case in cases:
        for record in case.findings:
            if record.state in ("present", "absent"):
                table[record.name][record.state].append(record)
    if empty := [f"{name}: {state}" for name, states in table.items() for state, records in states.items() if not records]:
        raise ValueError(f"the training cases hold no example of {', '.join(empty)}; make a larger cohort")
    return table


def report_contrast(image: Tensor, text: Tensor, log_scale: Tensor, groups: list[str], smoothing: float) -> Tensor:
    """Symmetric InfoNCE over unit vectors [B, D]; reports that read the same share the positive (methods of VELVET-Med, report level)."""
    count = len(groups)
    same = torch.tensor([[a == b for b in groups] for a in groups], dtype=torch.float32)
    target = (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / count
    logits = log_scale.clamp(0, float(np.log(100))).exp() * image.float() @ text.float().T
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


Rows: TypeAlias = list[tuple[list[int], list[int]]]
"""(prompt ids, target ids) pairs of one study."""


class TextSource:
    """Draws what a study's texts say: report sentences for contrast, slotted sentences and answers for the decoder."""

    def __init__(self, tokenizer: ReportTokenizer, settings: LanguageSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.end = tokenizer.id("[EOS]")

    def report(self, case: EncodedCase, draw: np.random.Generator, *, held_out: bool = False) -> list[str]:
        """The sentences that say something about this scan; never empty. held_out: a style and wordings never trained on."""
        style = HELD_OUT_STYLE if held_out else str(draw.choice(STYLES))
        sections = write_report(case.findings, style=style, rng=draw, held_out_wording=held_out)
        sentences = [s.text for section in sections for s in section.sentences if s.findings]
        return sentences or ["No abnormality is described."]

    def prompts(self, known: dict[str, dict[str, list[FindingRecord]]], draw: np.random.Generator) -> list[list[str]]:
        """One sentence that affirms and one that denies each finding, in this order, worded after records of the cohort."""
        sentences = []
        for finding in ontology().findings:
            for state in ("present", "absent"):
                records = known[finding.name][state]
                record = records[int(draw.integers(len(records)))]
                sentences.append([fill_slots(write_sentence(record, draw, str(draw.choice(STYLES))).slotted, record)])
        return sentences

    def decoder_rows(self, case: EncodedCase, draw: np.random.Generator) -> Rows:
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


def pack_rows(rows: Rows, end: int, pad: int, longest: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids [R, L] and targets [R, L] (-100 where nothing is to be learnt: prompt and padding)."""
    sequences = [(prompt + target + [end], len(prompt)) for prompt, target in rows]
    width = min(longest, max(len(ids) for ids, _ in sequences))
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -100)
    for row, (sequence, prompt) in enumerate(sequences):
        kept = torch.tensor(sequence[:width])
        ids[row, : len(kept)] = kept
        targets[row, prompt - 1 : len(kept) - 1] = kept[prompt:]
    return ids, targets


def decoder_loss(model: VelvetModel, memory: Tensor, mask: Tensor, rows_of: list[Rows], source: TextSource) -> Tensor:
    """Cross-entropy of the next token, averaged over the target tokens of all studies."""
    assert model.decoder is not None
    flat = [row for rows in rows_of for row in rows]
    owner = torch.tensor([study for study, rows in enumerate(rows_of) for _ in rows])
    # Rows of like length run together: padding would otherwise double the work.
    order = torch.tensor(sorted(range(len(flat)), key=lambda n: len(flat[n][0]) + len(flat[n][1])))
    total, count = memory.new_zeros(()), 0
    for part in order.chunk(3):
        ids, targets = pack_rows([flat[int(n)] for n in part], source.end, source.tokenizer.id("[PAD]"), model.decoder.config.positions)
        logits = model.decoder(ids, memory[owner[part]], mask[owner[part]])
        total = total + F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        count += int((targets >= 0).sum())
    return total / max(1, count)


def stack(cases: list[EncodedCase], name: str) -> Tensor:
    return torch.from_numpy(np.stack([getattr(case, name) for case in cases])).float()


def lesion_batch(cases: list[EncodedCase], width: int) -> tuple[Tensor, Tensor]:
    """Lesion tokens padded to the longest of the batch, and their mask."""
    longest = max(1, max(len(case.lesions) for case in cases))
    tokens, mask = torch.zeros(len(cases), longest, width), torch.zeros(len(cases), longest, dtype=torch.bool)
    for row, case in enumerate(cases):
        tokens[row, : len(case.lesions)] = torch.from_numpy(case.lesions)
        mask[row, : len(case.lesions)] = True
    return tokens, mask


def reader_input(model: VelvetModel, cases: list[EncodedCase]) -> tuple[Tensor, ...]:
    """The six arguments of `StudyReader.forward` for a batch."""
    assert model.reader is not None
    regions_valid = torch.from_numpy(np.stack([case.region_mask for case in cases]))
    lesions, lesion_mask = lesion_batch(cases, model.reader.config.lesion_features)
    return stack(cases, "top"), stack(cases, "view_spacing_mm"), stack(cases, "regions"), regions_valid, lesions, lesion_mask


def fit_standardisation(model: VelvetModel, cases: list[EncodedCase]) -> None:
    """Mean and inverse spread of the raw tokens over the training cases, into the reader's buffers."""
    assert model.reader is not None
    regions = np.stack([case.regions for case in cases]).astype(np.float64)
    mask = np.stack([case.region_mask for case in cases])[..., None]
    count = np.maximum(mask.sum(0), 1)
    mean = (regions * mask).sum(0) / count
    spread = np.sqrt(((regions - mean) ** 2 * mask).sum(0) / count)
    lesions = np.concatenate([case.lesions for case in cases if len(case.lesions)]).astype(np.float64)

    def inverse(value: NDArray[np.float64]) -> Tensor:
        # What never varies carries nothing; its scale must not blow up rounding noise.
        return torch.from_numpy(np.where(value > 1e-4, 1 / np.maximum(value, 1e-4), 0.0)).float()

    model.reader.region_mean.copy_(torch.from_numpy(mean).float())
    model.reader.region_scale.copy_(inverse(spread))
    model.reader.lesion_mean.copy_(torch.from_numpy(lesions.mean(0)).float())
    model.reader.lesion_scale.copy_(inverse(lesions.std(0)))


def _positive_weight(cases: list[EncodedCase]) -> Tensor:
    targets = finding_targets(cases)
    positive, negative = (targets == 1).sum(0), (targets == 0).sum(0)
    return (negative / positive.clamp(min=1)).clamp(1, 6).sqrt()


def _learning_rate(step: int, steps: int, settings: LanguageSettings) -> float:
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    fraction = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, fraction)))))


def _run_stage(name: str, module: nn.Module, run: Path, steps: int, settings: LanguageSettings, losses_of: Any) -> float:
    """The shared loop: `losses_of(step)` gives a dictionary of losses; their sum is minimised."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate, betas=(0.9, 0.98),
    )  # fmt: skip
    state = StageState(run / name, module, optimiser, MovingAverage(module, settings.average_decay))
    step, spent = state.restore()
    started = time.perf_counter() - spent
    sums: dict[str, list[float]] = {}
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, steps, settings)
        torch.manual_seed(7919 * step + 13)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = losses_of(step)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        if torch.isfinite(total):
            total.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
        else:
            print(f"{name} step {step}: loss is not finite, step skipped", flush=True)
        state.average.update(module, step)
        for key, value in losses.items():
            sums.setdefault(key, []).append(float(value.detach()))
        step += 1
        if step % 20 == 0 or step == steps:
            seconds = time.perf_counter() - started
            shown = "  ".join(f"{key} {np.mean(values):.3f}" for key, values in sums.items())
            print(f"{name} {step}/{steps}  {shown}  {seconds / 60:.1f} min  {seconds / step:.2f} s/step", flush=True)
            sums.clear()
        if step % 60 == 0 or step == steps:
            state.save(step, time.perf_counter() - started)
    module.load_state_dict(state.average.tensors)
    return time.perf_counter() - started


class _GlobalStage(nn.Module):
    """What stage 2 trains: the image encoder, the text encoder, their report-level projections and an auxiliary head."""

    def __init__(self, model: VelvetModel, findings: int, shares: int) -> None:
        super().__init__()
        self.swin, self.tribert = model.swin, model.tribert
        self.image_projection, self.text_projection = model.image_projection, model.text_projection
        self.logit_scale = model.logit_scale
        width = model.config.swin.embed_dim
        # Bottom, middle and top all vote: a small finding must not have to survive five halvings to be learnt from.
        self.auxiliary = nn.Linear(width * (4 + 8 + 16) * 2, findings)
        # What lies in each cell of the bottom map. Labels of whole studies alone left this encoder on its plateau.
        self.cells = nn.Conv3d(width * 4, shares, 1)
        nn.init.constant_(self.cells.bias, -4.0)  # type: ignore[arg-type]


def train_global(
    model: VelvetModel, cases: list[EncodedCase], tokenizer: ReportTokenizer, run: Path, settings: LanguageSettings, *, seed: int
) -> float:
    """Contents of every cell, report-level contrast and findings, all from the global encoder alone. Returns seconds spent."""
    stage = _GlobalStage(model, len(ontology().findings), len(ontology().structures) + len(ontology().lesions))
    stage.train()
    weight = _positive_weight(cases)
    source = TextSource(tokenizer, settings)

    def losses_of(step: int) -> dict[str, Tensor]:
        draw = np.random.default_rng((seed, 2, step))
        batch = [cases[i] for i in draw.choice(len(cases), settings.global_batch, replace=False)]
        views = np.stack([case.global_view for case in batch]).astype(np.float32)
        # Contrast and brightness of one study must not identify it.
        views = views * draw.uniform(0.9, 1.1, (len(batch), 1, 1, 1)) + draw.normal(0, 0.02, (len(batch), 1, 1, 1))
        maps = model.encode_global(torch.from_numpy(views.astype(np.float32))[:, None], stack(batch, "view_spacing_mm"))
        pooled = torch.cat(
            [m.flatten(2).amax(2) for m in (maps.bottom, maps.middle, maps.top)]
            + [m.flatten(2).mean(2) for m in (maps.bottom, maps.middle, maps.top)],
            1,
        )
        reports = [source.report(case, draw) for case in batch]
        layout = tokenizer.layout(reports, settings.text_tokens, training=True, rng=draw)
        text = model.embed_text(layout)
        image = model.project_image(maps)["report"]
        groups = [normalised_report(" ".join(report)) for report in reports]
        return {
            "cells": 0.2 * cells_loss(stage.cells(maps.bottom).float(), stack(batch, "cell_shares")),
            "findings": findings_loss(stage.auxiliary(pooled).float(), finding_targets(batch), weight),
            "contrast": 0.5 * report_contrast(image, text, model.logit_scale, groups, settings.label_smoothing),
        }

    return _run_stage("global", stage, run, settings.global_steps, settings, losses_of)


@torch.no_grad()
def keep_top_maps(model: VelvetModel, cases: list[EncodedCase], *, batch: int = 16) -> None:
    """Encode every global view once with the finished image encoder; `case.top` is what the reader reads."""
    model.swin.eval()
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = model.encode_global(stack(part, "global_view")[:, None], stack(part, "view_spacing_mm"))
        for case, top in zip(part, maps.top.float().numpy(), strict=True):
            case.top = top


class _ReaderStage(nn.Module):
    """What stage 3 trains; the image encoders are finished."""

    def __init__(self, model: VelvetModel) -> None:
        super().__init__()
        self.reader, self.findings, self.decoder = model.reader, model.findings, model.decoder
        self.tribert, self.text_projection, self.logit_scale = model.tribert, model.text_projection, model.logit_scale


def train_reader(
    model: VelvetModel, cases: list[EncodedCase], tokenizer: ReportTokenizer, run: Path, settings: LanguageSettings, *, seed: int
) -> float:
    """Findings, opposite prompts, study-report contrast and next-token prediction on kept tokens. Returns seconds spent."""
    assert model.reader is not None and model.findings is not None and model.decoder is not None
    fit_standardisation(model, cases)
    stage = _ReaderStage(model)
    stage.train()
    weight = _positive_weight(cases)
    source = TextSource(tokenizer, settings)
    known = records_by_state(cases)

    def losses_of(step: int) -> dict[str, Tensor]:
        draw = np.random.default_rng((seed, 3, step))
        batch = [cases[i] for i in draw.choice(len(cases), settings.reader_batch, replace=False)]
        *others, lesion_mask = reader_input(model, batch)
        # A lesion that the fine network missed must not bring the reader down.
        read = model.reader(*others, lesion_mask & (torch.rand(lesion_mask.shape) > 0.03))
        reports = [source.report(case, draw) for case in batch]
        layout = tokenizer.layout(reports, settings.text_tokens, training=True, rng=draw)
        text = model.embed_text(layout)
        groups = [normalised_report(" ".join(report)) for report in reports]
        prompts = model.embed_text(tokenizer.layout(source.prompts(known, draw), settings.text_tokens))
        targets = finding_targets(batch)
        rows = [source.decoder_rows(case, draw) for case in batch]
        return {
            "findings": 2.0 * findings_loss(model.findings(read.memory, read.memory_mask).float(), targets, weight),
            "prompt": prompt_loss(read.study, prompts, model.logit_scale, targets, weight),
            "contrast": report_contrast(read.study, text, model.logit_scale, groups, settings.label_smoothing),
            "writing": decoder_loss(model, read.memory, read.memory_mask, rows, source),
        }

    return _run_stage("reader", stage, run, settings.reader_steps, settings, losses_of)


@dataclass(frozen=True)
class Reading:
    """Outputs of the finished model on kept tokens. finding_logits [N, F]; study [N, D]."""

    finding_logits: NDArray[np.float64]
    study: NDArray[np.float32]


@torch.no_grad()
def read_all(model: VelvetModel, cases: list[EncodedCase], *, batch: int = 64) -> Reading:
    assert model.reader is not None and model.findings is not None
    model.eval()
    logits, study = [], []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        read = model.reader(*reader_input(model, part))
        logits.append(model.findings(read.memory, read.memory_mask).double().numpy())
        study.append(read.study.float().numpy())
    return Reading(np.concatenate(logits), np.concatenate(study))


def corpus(cases: list[Any], *, seed: int) -> list[str]:
    """Texts for the tokenizer: reports, single sentences and question-answer pairs of training cases, slots included."""
    draw = np.random.default_rng((seed, 1))
    texts: list[str] = []
    for case in cases:
        records: list[FindingRecord] = case.findings
        for section in write_report(records, style=str(draw.choice(STYLES)), rng=draw):
            texts += [section.title, *(sentence.text for sentence in section.sentences)]
        texts += [fill_slots(write_sentence(r, draw, str(draw.choice(STYLES))).slotted, r) for r in records]
        for question in make_questions(records, draw):
            texts += [question.question, question.answer]
    return texts
