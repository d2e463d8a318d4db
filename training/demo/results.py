"""The end of the demo training: thresholds from validation, figures from the test split and the sample, the bundle and its card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from demo.calibrate import FindingCalibration, calibrate, fit_evidence, least_trust
from demo.card import model_card
from demo.data import LESION_CHANNELS, PreparedCase
from demo.encodings import EncodedCase, Overlap, lesion_thresholds
from demo.losses import words_term
from demo.reading import Reading, read_all, reader_input
from demo.sample import dice_on_sample
from demo.texts import TextSettings, TextSource, finding_targets
from demo.verifier_stage import true_kinds
from VelvetMedLib.bundle import save_bundle
from VelvetMedLib.bundle.config import BundleConfig, Calibration, FindingEntry, LesionEntry
from VelvetMedLib.evaluation import findings
from VelvetMedLib.evaluation.bootstrap import estimate, resamples
from VelvetMedLib.evaluation.findings import LEAST_POSITIVES, FindingTable
from VelvetMedLib.evaluation.records import facts_of, record_scores
from VelvetMedLib.evaluation.retrieval import recall_at
from VelvetMedLib.files import write_json
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.reports import HELD_OUT_STYLE, make_questions, ontology, parse_report
from VelvetMedLib.shapes import FourNumbers
from VelvetMedLib.tasks.findings import HEAD_ALONE, with_evidence
from VelvetMedLib.tasks.prompts import answer_prefix
from VelvetMedLib.tasks.statements import log_ratios, stated
from VelvetMedLib.tasks.tokens import FEATURES, lesion_summary

TRAINING_DATA = (
    "Synthetic cases only, made by this project's generator from one label atlas. The atlas and part of the texture come from one real "
    "chest CT (LIDC-IDRI-0001, CC BY 3.0) with its nodule painted out. No other patient's data was used."
)
INTENDED_USE = (
    "Research and development of the VelvetMed pipeline: it shows that every part works together. Research use only. Not for clinical use."
)


def evidence_and_scores(
    reading: Reading, cases: list[EncodedCase], targets: NDArray[np.float64]
) -> tuple[list[FourNumbers | None], NDArray[np.float64]]:
    """By finding, the weights of head and lesion map, and the scores [cases, findings] to calibrate (`fit_evidence`)."""
    summaries = _summaries(reading, cases)
    weights: list[FourNumbers | None] = []
    scores = reading.finding_logits.copy()
    for column, finding in enumerate(ontology().findings):
        own: FourNumbers | None = None
        if finding.lesion is not None:
            shown = summaries[:, ontology().lesion(finding.lesion).channel]
            own, scores[:, column] = fit_evidence(scores[:, column], shown, targets[:, column])
        weights.append(own)
    return weights, scores


def weighed(reading: Reading, cases: list[EncodedCase], evidence: list[FourNumbers | None]) -> Reading:
    """With the logits as the bundle will give them."""
    weights = np.array([own or HEAD_ALONE for own in evidence])
    return replace(reading, finding_logits=with_evidence(reading.finding_logits, _summaries(reading, cases), weights))


def _summaries(reading: Reading, cases: list[EncodedCase]) -> NDArray[np.float64]:
    return np.stack([lesion_summary(case.lesions, verified) for case, verified in zip(cases, reading.verified, strict=True)])


def trust_to_ask(reading: Reading, cases: list[EncodedCase]) -> list[float]:
    """By kind of lesion, what its parts must be given to be kept (`least_trust`)."""
    kind = np.concatenate([_kinds(case) for case in cases])
    trust = 1 / (1 + np.exp(-np.concatenate(reading.verified).astype(np.float64)))
    true = np.concatenate([true_kinds(case).numpy() for case in cases]) > 0
    return [least_trust(trust[kind == c, c], true[kind == c, c]) for c in range(LESION_CHANNELS)]


def _kinds(case: EncodedCase) -> NDArray[np.int64]:
    """[N]: the channel of each part of the lesion maps."""
    return np.asarray(case.lesions[:, FEATURES : FEATURES + LESION_CHANNELS].argmax(1))


def doubted(cases: list[EncodedCase], reading: Reading, asked: list[float]) -> list[EncodedCase]:
    """The cases with the overlap of their lesion maps as it is once the parts that are doubted are dropped (`tasks.verification`)."""
    out = []
    for case, logits in zip(cases, reading.verified, strict=True):
        kind, overlap = _kinds(case), case.lesion_overlap
        predicted, both = overlap.predicted.copy(), overlap.both.copy()
        for channel in np.flatnonzero(asked):
            own = kind == channel
            own[own] = 1 / (1 + np.exp(-logits[own, channel].astype(np.float64))) >= asked[channel]
            predicted[channel], both[channel] = case.part_voxels[own].sum(), case.part_true[own, channel].sum()
        out.append(replace(case, lesion_overlap=Overlap(overlap.truth, predicted, both)))
    return out


def dice_table(cases: list[EncodedCase]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean Dice by structure over the cases that contain it, and pooled Dice by lesion channel."""
    organs, lesions = {}, {}
    for index, structure in enumerate(ontology().structures):
        values = [c.organ_overlap.dice(index) for c in cases if c.organ_overlap.truth[index] >= 20]
        if values:
            organs[structure.name] = {"dice": round(float(np.mean(values)), 3), "cases": len(values)}
    for index, lesion in enumerate(ontology().lesions):
        total = Overlap.sum([c.lesion_overlap for c in cases])
        if total.truth[index] > 0:
            lesions[lesion.name] = {
                "dice": round(total.dice(index), 3),
                "cases": sum(bool(c.lesion_overlap.truth[index] > 0) for c in cases),
            }
    return organs, lesions


def probabilities(reading: Reading, calibrations: list[FindingCalibration]) -> NDArray[np.float64]:
    """[cases, findings], calibrated."""
    return np.stack([c.probability(logit) for c, logit in zip(calibrations, reading.finding_logits.T, strict=True)], 1)


def called(cases: list[EncodedCase], reading: Reading, calibrations: list[FindingCalibration]) -> FindingTable:
    """The findings of the cases as the bundle will call them: by calibrated probability, those that are assessed only."""
    probability = probabilities(reading, calibrations)
    limit = np.array([c.present if c.assessed else np.inf for c in calibrations])
    truth = finding_targets(cases).double().numpy()
    return FindingTable(
        names=ontology().finding_names,
        truth=truth,
        score=reading.finding_logits,
        probability=np.where([c.assessed for c in calibrations], probability, np.nan),
        called=probability >= limit,
        size_mm=np.full_like(truth, np.nan),
    )


def finding_table(table: FindingTable, calibrations: list[FindingCalibration]) -> dict[str, Any]:
    """Held-out AUROC with interval, and precision and recall at the thresholds fixed on validation."""
    figures = findings.measures(table)
    weights = resamples(range(len(table.truth)))
    out: dict[str, Any] = {}
    for (name, counts), calibration in zip(table.counts().items(), calibrations, strict=True):
        found = {metric: estimate(figures[f"findings/{name}/{metric}"], weights) for metric in ("AUROC", "precision", "recall")}
        entry: dict[str, Any] = {"positives": counts["present"], "negatives": counts["absent"], "assessed": calibration.assessed}
        if min(counts.values()) >= LEAST_POSITIVES:
            ranked = found["AUROC"]
            entry |= {"auroc": _rounded(ranked.value), "auroc_95": [_rounded(ranked.low), _rounded(ranked.high)]}
        if calibration.assessed:
            entry |= {metric: _rounded(found[metric].value) for metric in ("precision", "recall")}
        out[name] = entry
    return out


def presence_summary(cases: list[EncodedCase], table: FindingTable) -> dict[str, float | int | None]:
    """Micro-averaged F1 of `present` over assessed findings, and false calls per case without any finding."""
    normal = np.array([all(r.state in ("absent", "not_assessed") for r in case.findings) for case in cases])
    micro = estimate(findings.calls(table.truth, table.called)["F1"], resamples(range(len(cases))))
    return {
        "presence_micro_f1": _rounded(micro.value),
        "false_findings_per_normal_case": _rounded(float(table.called[normal].sum() / max(1, normal.sum()))),
        "normal_cases": int(normal.sum()),
    }


def calibration(table: FindingTable) -> dict[str, Any]:
    """How far the probabilities of the assessed findings are to be believed: ECE with interval, and the reliability curve."""
    error = estimate(findings.calibration_error(table.truth, table.probability), resamples(range(len(table.truth))))
    curve = [
        {"probability": _rounded(b["probability"]), "present": _rounded(b["present"]), "cases": b["cases"]}
        for b in findings.reliability(table.truth, table.probability)
    ]
    return {"ece": _rounded(error.value), "ece_95": [_rounded(error.low), _rounded(error.high)], "curve": curve}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


@torch.no_grad()
def retrieval(
    model: VelvetModel,
    tokenizer: ReportTokenizer,
    cases: list[EncodedCase],
    reading: Reading,
    calibrations: list[FindingCalibration],
    settings: TextSettings,
    *,
    seed: int,
) -> dict[str, Any]:
    """Text to image among `cases`, with wording of training styles and of the held-out style, beside the record oracle.

    As the product searches, by vectors and statements, and by the vectors alone.
    """
    source = TextSource(tokenizer, settings)
    own = np.eye(len(cases), dtype=bool)
    ratios = log_ratios(probabilities(reading, calibrations), np.array([c.prevalence or 0.0 for c in calibrations]))

    def recalls(scores: NDArray[np.float64]) -> dict[str, float | None]:
        return {name: _rounded(value) for name, value in recall_at(scores, own).items()}

    result: dict[str, Any] = {"gallery": len(cases), "record_oracle": recalls(record_scores([facts_of(case.findings) for case in cases]))}
    for name, held_out in (("training_styles", False), ("held_out_style", True)):
        draw = np.random.default_rng((seed, 9))
        written = [source.report(case, draw, held_out=held_out) for case in cases]
        by_vector = model.embed_text(tokenizer.layout(written, settings.tokens)).numpy() @ reading.study.T
        states = np.stack([stated(parse_report(" ".join(sentences))) for sentences in written])
        result[name] = recalls(by_vector + states @ ratios.T / float(model.contrast_scale()))
        result[f"{name}_by_vector"] = recalls(by_vector)
    result["chance"] = recalls(np.zeros(own.shape))
    return result


@torch.no_grad()
def answers(model: VelvetModel, tokenizer: ReportTokenizer, cases: list[EncodedCase], *, seed: int, most: int = 120) -> dict[str, Any]:
    """Free-running decoder answers to presence questions, against the truth and against always saying the commoner answer."""
    assert model.reader is not None and model.decoder is not None
    draw = np.random.default_rng((seed, 10))
    truth, said = [], []
    for case in cases[:most]:
        read = model.reader(*reader_input([case], model.reader.config.lesion_features))
        asked = [q for q in make_questions(case.findings, draw) if q.kind == "presence" and q.answer.lower().startswith(("yes", "no"))]
        for question in [asked[int(i)] for i in draw.permutation(len(asked))[:4]]:
            prefix = torch.tensor([answer_prefix(tokenizer, question.question)])
            out = model.decoder.generate(prefix, read.memory, read.memory_mask, 12, tokenizer.id("[EOS]"))
            said.append(tokenizer.decode(out.ids[0].tolist()).strip().lower().startswith("yes"))
            truth.append(question.answer.lower().startswith("yes"))
    return {
        "presence_balanced_accuracy": round(float(balanced_accuracy_score(truth, said)), 3),
        "questions": len(truth),
        "yes_share": round(float(np.mean(truth)), 3),
        "chance": 0.5,
    }


@torch.no_grad()
def writing_perplexity(
    model: VelvetModel, tokenizer: ReportTokenizer, cases: list[EncodedCase], settings: TextSettings, *, seed: int
) -> float:
    """exp of the mean next-token loss on held-out studies."""
    assert model.reader is not None and model.decoder is not None
    source, draw = TextSource(tokenizer, settings), np.random.default_rng((seed, 11))
    part = cases[:64]
    read = model.reader(*reader_input(part, model.reader.config.lesion_features))
    rows = [source.decoder_rows(case, draw) for case in part]
    term = words_term(model.decoder, read.memory, read.memory_mask, source.packed(rows, model.decoder.config.positions))
    return round(float(np.exp(float(term.total) / term.count)), 3)


def finish(
    model: VelvetModel,
    tokenizer_file: Path,
    cases: list[PreparedCase],
    of_split: dict[str, list[EncodedCase]],
    settings: TextSettings,
    run: Path,
    out: Path,
    *,
    minutes: dict[str, float],
    seed: int,
) -> None:
    """Calibrate on `val`, measure on `test` and on the sample scan, save the bundle with its card."""
    model.eval()
    tokenizer = ReportTokenizer(tokenizer_file)
    targets = finding_targets(of_split["val"]).double().numpy()
    on_val = read_all(model, of_split["val"])
    evidence, scores = evidence_and_scores(on_val, of_split["val"], targets)
    asked = trust_to_ask(on_val, of_split["val"])
    calibrations = [calibrate(score, target) for score, target in zip(scores.T, targets.T, strict=True)]
    test = of_split["test"]
    on_test = weighed(read_all(model, test), test, evidence)
    organs, lesions = dice_table(doubted(test, on_test, asked))
    table = called(test, on_test, calibrations)
    results: dict[str, Any] = {
        "cases": {split: len(part) for split, part in of_split.items()} | {"train_fine": sum(case.split == "train" for case in cases)},
        "minutes_on_two_cores": {name: round(value, 1) for name, value in minutes.items()},
        "held_out_synthetic": {
            "organ_dice": organs,
            "organ_dice_mean": round(float(np.mean([entry["dice"] for entry in organs.values()])), 3),
            "lesion_dice": lesions,
            "findings": finding_table(table, calibrations),
            "presence": presence_summary(test, table),
            "calibration": calibration(table),
            "retrieval_text_to_image": retrieval(model, tokenizer, test, on_test, calibrations, settings, seed=seed),
            "answers": answers(model, tokenizer, test, seed=seed),
            "writing_perplexity": writing_perplexity(model, tokenizer, test, settings, seed=seed),
            "held_out_style": HELD_OUT_STYLE,
        },
    }
    config = BundleConfig(
        id="demo",
        version="4",
        recipe="demo (VELVET-Med pre-training in its tiny setting, then heads trained with labels)",
        licence="Apache-2.0; derived from LIDC-IDRI-0001 (CC BY 3.0), attribution in MODEL_CARD.md",
        training_data=TRAINING_DATA,
        intended_use=INTENDED_USE,
        architecture=model.config.to_dict(),
        aligned_levels=("report",),
        lesions=tuple(
            LesionEntry(name=x.name, threshold=t, least_trust=least)
            for x, t, least in zip(ontology().lesions, lesion_thresholds(run / "thresholds"), asked, strict=True)
        ),
        findings=tuple(
            FindingEntry(
                name=finding.name,
                assessed=c.assessed,
                reason=c.reason,
                calibration=Calibration(slope=round(c.slope, 5), bias=round(c.bias, 5)),
                threshold_absent=c.absent,
                threshold_present=c.present,
                prevalence=None if c.prevalence is None else round(c.prevalence, 4),
                evidence=weights,
            )
            for finding, c, weights in zip(ontology().findings, calibrations, evidence, strict=True)
        ),
        results=results,
    )
    save_bundle(out, config, model, tokenizer_file.read_text(encoding="utf-8"), model_card(config))
    results["sample_scan"] = dice_on_sample(out)
    write_json(run / "results.json", results)
    config = replace(config, results=results)
    save_bundle(out, config, model, tokenizer_file.read_text(encoding="utf-8"), model_card(config))
    print(json.dumps(results, indent=1), flush=True)
