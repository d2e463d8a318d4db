"""The page that a person reads: tables of every figure with its interval, its chance and its baselines beside it, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.evaluation.answers import POLICIES
from VelvetMedLib.evaluation.bootstrap import DRAWS, Estimate
from VelvetMedLib.evaluation.findings import LEAST_POSITIVES, kind_of
from VelvetMedLib.evaluation.grounding import NEAR_MM
from VelvetMedLib.evaluation.grounding import WAYS as POINTED
from VelvetMedLib.evaluation.outputs import METRICS
from VelvetMedLib.evaluation.reports import SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE
from VelvetMedLib.evaluation.retrieval import KS, WAYS
from VelvetMedLib.evaluation.segmentation import SURFACE_TOLERANCE_MM
from VelvetMedLib.reports import ontology

if TYPE_CHECKING:
    from VelvetMedLib.evaluation.protocol import Evaluation

Estimates = Mapping[str, Estimate]
FINDING_METRICS = ("AUROC", "AUPRC", "F1", "precision", "recall", "ECE")
REPORT_METRICS = (
    "precision", "recall", "F1", "F1 with side", "F1 with size", "side right", "size right", "accuracy", "contradictions",
    "contradicts itself", "sentences against the findings", "hallucinations per normal case",
    "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "BERTScore",
)  # fmt: skip
NOTHING = Estimate(value=None, low=None, high=None)


def page(done: Evaluation, estimates: Estimates, pictures: Sequence[str]) -> str:
    """The whole page. pictures: names of files beside it."""
    facts, counts = done.facts, done.table.counts()
    views = sorted({one.view for one in done.outputs})
    blocks = [
        f"# Evaluation of {facts.bundle_id} {facts.bundle_version}",
        f"{RESEARCH_USE_ONLY} {len(done.outputs)} synthetic cases of seed {facts.cohort_seed} ({', '.join(views)}), all deformed from one "
        "body: the figures show how the parts work and say nothing about patients. A cohort whose seed was used in training measures "
        "memory.",
        f"Figures stand with their 95 % interval ({DRAWS} bootstrap draws over cases, twins together); – is not defined on these cases. "
        f"Everything is in `{METRICS}`.",
        *([f"Drafts worded by: {', '.join(f'{name} {value}' for name, value in facts.writer.items())}."] if facts.writer else []),
        *_retrieval(estimates),
        *_findings(estimates, counts, calibrated=bool(facts.calibrated)),
        *_segmentation(estimates),
        *_answers(estimates),
        *_reports(estimates),
        *_grounding(estimates),
        "## Plots" if pictures else "",
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def parts(estimates: Estimates, prefix: str) -> list[str]:
    """The next part of every name below a prefix, in order, once each."""
    return list(dict.fromkeys(name[len(prefix) :].split("/")[0] for name in estimates if name.startswith(prefix)))


def _retrieval(estimates: Estimates) -> list[str]:
    if not parts(estimates, "retrieval/"):
        return []
    columns = [f"{way} R@{k}" for way in WAYS for k in KS]
    rows = []
    for gallery in parts(estimates, "retrieval/"):
        for right in parts(estimates, f"retrieval/{gallery}/"):
            for name in parts(estimates, f"retrieval/{gallery}/{right}/"):
                figures = [estimates.get(f"retrieval/{gallery}/{right}/{name}/{column}", NOTHING) for column in columns]
                rows.append([gallery, right, name, *figures])
    return [
        "## Retrieval",
        "Reports in wording of training styles (seen) and in a style and phrases never trained on (unseen), without technique sentences. "
        "Scores: as a search by words gives them; where it also weighs what the words state, by the vectors alone, too. "
        "The record oracle reads every scan and report right: cases with the same findings cannot be told apart. A hit is the study's own "
        "report, or any with an equal record. Galleries of one field of view take away what the coverage alone gives away.",
        table(["gallery", "right answer", "scores", *columns], rows),
    ]


def _findings(estimates: Estimates, counts: Mapping[str, Mapping[str, int]], *, calibrated: bool) -> list[str]:
    groups = [n for n in parts(estimates, "findings/") if n not in counts]
    rows = []
    for name in [*groups, *counts]:
        own = counts.get(name)
        kind = kind_of(ontology().finding(name)) if own else ""
        figures = [estimates.get(f"findings/{name}/{metric}", NOTHING) for metric in FINDING_METRICS]
        rows.append([name if own else f"**{name}**", kind, own["present"] if own else "", own["absent"] if own else "", *figures])
    uncalibrated = "" if calibrated else " The scores of this bundle are no probabilities: no ECE."
    return [
        "## Findings",
        "AUROC and AUPRC from the scores of all findings, also of those that the bundle does not use; precision, recall and F1 from what "
        "it calls present; ECE of those that it uses. Groups: AUROC and AUPRC are means over findings with at least "
        f"{LEAST_POSITIVES} cases present and absent, the others pool them. By size: focal findings of that true size beside all cases "
        "without; there is no ECE, as no probability speaks of a size. ECE takes chance for error: over few cases it is too large, in the "
        "bootstrap's draws more so, and its interval may lie above it. What the record is unsure of or could not see is left out."
        f"{uncalibrated}",
        table(["finding", "kind", "present", "absent", *FINDING_METRICS], rows),
    ]


def _segmentation(estimates: Estimates) -> list[str]:
    names = parts(estimates, "segmentation/")
    if not names:
        return []
    names = sorted(names, key=lambda n: n not in ("organs", "lesions"))
    metrics = ("Dice", "surface Dice", "HD95 (mm)")
    rows = [
        [f"**{n}**" if n in ("organs", "lesions") else n, *(estimates[f"segmentation/{n}/{metric}"] for metric in metrics)] for n in names
    ]
    return [
        "## Segmentation",
        f"Mean over the cases in which the structure is there or shown; surface Dice at {SURFACE_TOLERANCE_MM:g} mm. A lesion that "
        "is missed, or shown where there is none, scores 0; HD95 is a mean over the cases in which it is both there and shown.",
        table(["structure", *metrics], rows),
    ]


def _answers(estimates: Estimates) -> list[str]:
    who = parts(estimates, "answers/")
    kinds = parts(estimates, "answers/model/")
    rows = [[kind, *(estimates.get(f"answers/{one}/{kind}", NOTHING) for one in who)] for kind in kinds]
    agreeing = [[name, estimates[f"consistency/{name}"]] for name in parts(estimates, "consistency/")]
    policies = "; ".join(f"{name}: {what}" for name, what in POLICIES.items())
    return [
        "## Answers",
        "Share of right answers by type of question; a list of findings counts by its F1. What is not answered is not right; answered: the "
        "share that is; when answered: the share right among it, for the baselines on the same questions. Balanced: mean over the true "
        "answers. Both baselines learn from the other half of the cases: the commonest answer (of numbers the median) to the type of "
        f"question, and to the type of question about that finding or organ. Yes or no, three ways of answering ({policies}).",
        table(["question", *who], rows),
        table(["share that agree", ""], agreeing) if agreeing else "",
    ]


def _reports(estimates: Estimates) -> list[str]:
    who = parts(estimates, "report/")
    if not who:
        return []
    metrics = [m for m in REPORT_METRICS if f"report/{who[0]}/{m}" in estimates]
    rows = [[metric, *(estimates.get(f"report/{one}/{metric}", NOTHING) for one in who)] for metric in metrics]
    found = [
        [name, *(estimates[f"report/model/{name}/{metric}"] for metric in ("precision", "recall", "F1"))]
        for name in ontology().finding_names
        if estimates[f"report/model/{name}/F1"].value is not None
    ]
    return [
        "## Report",
        f"Sentences parsed back into findings and held against the record. A size is right within {SIZE_TOLERANCE_MM:g} mm or "
        f"{SIZE_TOLERANCE_SHARE:.0%}. Accuracy: share of findings whose state the report gives. Contradictions: share of its "
        "statements that say the opposite of the record; sentences against the findings: share of sentences that contradict what was "
        "found and measured on the same scan. Held to nothing: the writer's words alone, for comparison. Nearest report: that of the most "
        "similar other scan. Wording is compared with a reference written by the generator.",
        table(["", *who], rows),
        table(["finding", "precision", "recall", "F1"], found),
    ]


def _grounding(estimates: Estimates) -> list[str]:
    names = parts(estimates, "grounding/")
    if not names:
        return []
    metrics = [m for m in (*POINTED.values(), "called and pointed at", "chance", "placed") if f"grounding/all/{m}" in estimates]
    rows = [[f"**{n}**" if n == "all" else n, *(estimates[f"grounding/{n}/{metric}"] for metric in metrics)] for n in names]
    return [
        "## Grounding",
        f"A true sentence on each present finding; a hit is a peak of the heat-map within {NEAR_MM:g} mm of the finding. Chance: a random "
        "point of the body. Pointing: as the bundle answers; what it does not place, or where it marks nothing, is a miss. By lesion head, "
        "by cosine map: in that way alone. Called and pointed at: a finding that the bundle does not call present is a miss, too.",
        table(["finding", *metrics], rows),
    ]
