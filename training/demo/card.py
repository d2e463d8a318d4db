"""The model card of the demo bundle, written from its measured results: no figure on it is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY
from VelvetMedLib.bundle.config import BundleConfig
from VelvetMedLib.cohorts.sample import ATTRIBUTION
from VelvetMedLib.reports import ontology

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def _finding_row(config: BundleConfig, name: str, display: str, entry: dict[str, Any]) -> dict[str, Any]:
    setting, interval = config.finding(name), entry.get("auroc_95")
    return {
        "display": display,
        "positives": entry.get("positives"),
        "negatives": entry.get("negatives"),
        "auroc": f"{entry['auroc']:.2f} ({interval[0]:.2f}-{interval[1]:.2f})" if interval else None,
        "precision": entry.get("precision"),
        "recall": entry.get("recall"),
        "weighed": setting.evidence is not None,
        "used": "yes" if setting.assessed else f"no: {setting.reason}",
    }


def model_card(config: BundleConfig) -> str:
    """Markdown. Every figure comes from `config.results`."""
    held = config.results["held_out_synthetic"]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # Markdown, not HTML
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=config,
        held=held,
        sample=config.results.get("sample_scan", {}),
        cases=config.results["cases"],
        minutes=config.results["minutes_on_two_cores"],
        findings=[_finding_row(config, f.name, f.display, held["findings"].get(f.name, {})) for f in ontology().findings],
        structures=ontology().structures,
        retrieval_rows=(
            ("report in a training style", "training_styles"),
            (f"report in a style and wording never trained on ({held['held_out_style']})", "held_out_style"),
            ("the first, by vectors alone", "training_styles_by_vector"),
            ("the second, by vectors alone", "held_out_style_by_vector"),
            ("record oracle", "record_oracle"),
            ("chance", "chance"),
        ),
        attribution=ATTRIBUTION,
        research_use_only=RESEARCH_USE_ONLY,
        draft_disclaimer=DRAFT_DISCLAIMER,
    )
