"""The real SmolLM2-135M that a package ships: converted once, taught to word findings for some steps, and used by the product."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="language models need the extra 'llm'")
pytest.importorskip("gguf", reason="the packaged weights are GGUF, which the package gguf reads")

import numpy as np
import torch
from convert_weights import main
from finetuning.report_running import RESULTS, WRITER, finetune_report
from finetuning.report_settings import tiny
from safetensors.numpy import load_file

from Testing.plugins.bundles import body_volume
from VelvetMedLib.ct import write_nifti
from VelvetMedLib.reports import parse_sentence
from VelvetMedLib.tasks import analyze
from VelvetMedLib.tasks.writers import open_writer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SAID = (
    "There is a 6 mm nodule in the right upper lobe. No pneumothorax. The heart is enlarged.",
    "Small left pleural effusion. No pneumothorax. Mild emphysema of the lungs.",
)


@pytest.fixture(scope="module")
def smollm2(smollm2_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "smollm2"
    assert main(["language", str(smollm2_wheel), "--out", str(out), "--name", "SmolLM2-135M-Instruct", "--licence", "Apache-2.0"]) == 0
    return out


def test_the_converted_tensors_are_those_of_the_packaged_file(smollm2: Path) -> None:
    record = json.loads((smollm2 / "conversion.json").read_text("utf-8"))
    assert record["source"]["files"][0]["sha256"] == GGUF_SHA256
    assert record["source"]["stated_by_the_user"]["licence"] == "Apache-2.0"
    tensors = load_file(str(smollm2 / "model.safetensors"))
    # The output matrix is the embedding and not stored twice: 134.5 million numbers.
    assert sum(t.size for t in tensors.values()) == 134_515_008
    assert all(np.isfinite(t).all() for t in tensors.values())


def test_it_learns_to_word_findings_and_the_product_uses_it(smollm2: Path, random_bundle: Any, body: Any, tmp_path: Path) -> None:
    lines = []
    for n in range(4):
        volume = body_volume((20, 18, 22), 14.0, seed=n)
        write_nifti(tmp_path / f"s{n}.nii.gz", volume.voxels_kji, volume.ijk_to_ras)
        report, split = f"Findings: {SAID[n % 2]}", "val" if n >= 2 else "train"
        lines.append({"study": f"s{n}", "patient": f"p{n}", "split": split, "volume": f"s{n}.nii.gz", "report": report})
    (tmp_path / "studies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    base = tiny()
    settings = replace(
        base, data=replace(base.data, sentences_per_study=3), loop=replace(base.loop, validate_every=30, log_every=10), prompt_rate=3.0
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    outcome = finetune_report(
        tmp_path / "studies.jsonl", random_bundle, smollm2, settings, run=tmp_path / "run", steps=30, seed=1, say=lambda line: None
    )
    torch.set_num_threads(threads)
    assert outcome.code == 0
    results = json.loads((tmp_path / "run" / RESULTS).read_text("utf-8"))
    assert results["loss_after"] < 0.5 * results["loss_before"]
    written = json.loads((tmp_path / "run" / WRITER / "writer.json").read_text("utf-8"))
    assert written["base"] == {"name": "SmolLM2-135M-Instruct", "licence": "Apache-2.0"}
    writer = open_writer(tmp_path / "run" / WRITER, random_bundle)
    case = analyze(body, random_bundle, writer=writer)
    assert case.report is not None and case.run["writer"]["model"] == "SmolLM2-135M-Instruct"
    states = {f.name: f.state for f in case.findings}
    for sentence in (s for section in case.report.sections for s in section.sentences if s.finding):
        assert {m.name: m.state for m in parse_sentence(sentence.text)}.get(sentence.finding) == states[sentence.finding]
