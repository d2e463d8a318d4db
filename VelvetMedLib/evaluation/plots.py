"""Plots of an evaluation: figures with intervals beside their baselines, and how far probabilities are to be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from VelvetMedLib import RESEARCH_USE_ONLY
from VelvetMedLib.evaluation.bootstrap import Estimate
from VelvetMedLib.evaluation.grounding import WAYS
from VelvetMedLib.evaluation.page import parts
from VelvetMedLib.evaluation.retrieval import KS
from VelvetMedLib.reports import ontology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from VelvetMedLib.evaluation.protocol import Evaluation

COLOURS = ("#1f5fa8", "#d97a1d", "#3f8f4f", "#8a8a8a")
Series = Mapping[str, Sequence[Estimate | None]]


def draw_all(done: Evaluation, estimates: Mapping[str, Estimate], out: Path) -> list[str]:
    """Write every plot for which there are figures; returns the names of the files."""

    def column(prefix: str, rows: Sequence[str], suffix: str) -> list[Estimate | None]:
        return [estimates.get(f"{prefix}/{row}/{suffix}") for row in rows]

    figures: dict[str, Figure] = {}
    if parts(estimates, "retrieval/"):
        rows = [f"R@{k}" for k in KS if f"retrieval/all/own report/chance/text to image R@{k}" in estimates]
        series = {
            n: [estimates[f"retrieval/all/own report/{n}/text to image {row}"] for row in rows]
            for n in parts(estimates, "retrieval/all/own report/")
        }
        figures["retrieval.png"] = dots("Retrieval, text to image, all cases", rows, series)
    names = ontology().finding_names
    told = [n for n in names if (e := estimates.get(f"findings/{n}/AUROC")) is not None and e.value is not None]
    if told:
        figures["findings.png"] = dots(
            "AUROC by finding", [_display(n) for n in told], {"AUROC": column("findings", told, "AUROC")}, line=0.5
        )
    if any(done.reliability.values()):
        figures["reliability.png"] = _reliability(done.reliability, estimates)
    structures = [n for n in parts(estimates, "segmentation/") if n not in ("organs", "lesions")]
    if structures:
        figures["segmentation.png"] = dots(
            "Dice by structure", [_display(n) for n in structures], {"Dice": column("segmentation", structures, "Dice")}
        )
    kinds = [n for n in parts(estimates, "answers/model/") if n != "mean of types" and not n.endswith(("answered", "balanced"))]
    who = parts(estimates, "answers/")
    figures["answers.png"] = dots(
        "Right answers by type of question", kinds, {n: [estimates[f"answers/{n}/{k}"] for k in kinds] for n in who}
    )
    if writers := parts(estimates, "report/"):
        metrics = ["precision", "recall", "F1", "F1 with side", "F1 with size", "accuracy", "contradictions", "ROUGE-L"]
        figures["report.png"] = dots("Draft report", metrics, {n: [estimates[f"report/{n}/{m}"] for m in metrics] for n in writers})
    if pointed := parts(estimates, "grounding/"):
        there = [metric for metric in (*WAYS.values(), "chance") if f"grounding/all/{metric}" in estimates]
        points = {metric: column("grounding", pointed, metric) for metric in there}
        figures["grounding.png"] = dots("Pointing at findings", [_display(n) for n in pointed], points)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=110)
    return list(figures)


def _display(name: str) -> str:
    return name.replace("_", " ")


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(RESEARCH_USE_ONLY, fontsize=7, color="#666666")
    return figure


def dots(title: str, rows: Sequence[str], series: Series, *, line: float | None = None) -> Figure:
    """A row for each name, a point with its interval for each series; a figure that does not exist leaves its place empty."""
    step = 0.8 / len(series)
    figure = _figure(1.4 + max(0.26, 0.13 * len(series)) * len(rows))
    axes = figure.subplots()
    for n, (label, values) in enumerate(series.items()):
        places = [row + (n - (len(series) - 1) / 2) * step for row, e in enumerate(values) if e is not None and e.value is not None]
        there = [e for e in values if e is not None and e.value is not None]
        middle = [e.value or 0.0 for e in there]
        low = [m - (m if e.low is None else e.low) for m, e in zip(middle, there, strict=True)]
        high = [(m if e.high is None else e.high) - m for m, e in zip(middle, there, strict=True)]
        # A percentile interval need not hold its figure: bars are never drawn backwards.
        bars = [[max(0.0, x) for x in low], [max(0.0, x) for x in high]]
        axes.errorbar(middle, places, xerr=bars, fmt="o", markersize=4, linewidth=1.2, color=COLOURS[n % len(COLOURS)], label=label)
    if line is not None:
        axes.axvline(line, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
    axes.set_yticklabels(rows, fontsize=8)
    axes.grid(axis="x", linewidth=0.4)
    if len(series) > 1:
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _reliability(curves: Mapping[str, Sequence[Mapping[str, float]]], estimates: Mapping[str, Estimate]) -> Figure:
    figure = _figure(5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    for n, (kind, bins) in enumerate(curves.items()):
        if bins:
            label = f"{kind}: ECE {estimates[f'findings/{kind}/ECE']}"
            axes.plot([b["probability"] for b in bins], [b["present"] for b in bins], "o-", color=COLOURS[n % len(COLOURS)], label=label)
    for b in curves["all"]:
        axes.annotate(f"{b['cases']:.0f}", (b["probability"], b["present"]), textcoords="offset points", xytext=(5, -9), fontsize=7)
    axes.set(
        title="Are probabilities to be believed? At points of all findings: pairs of case and finding",
        xlabel="mean probability", ylabel="share present", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal",
    )  # fmt: skip
    axes.legend(loc="upper left", fontsize=8)
    return figure
