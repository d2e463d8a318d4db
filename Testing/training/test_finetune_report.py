"""Teaching a language model to word findings: it learns, resumes bit for bit, learns no patient, and gives a writer that works."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="language models need the extra 'llm'")

import finetune
import numpy as np
import torch
from commandline import PROBLEM, USAGE
from finetuning import language_source
from finetuning.common import RESULTS
from finetuning.language_source import language_folder
from finetuning.report_data import read_studies
from finetuning.report_running import WRITER, Outcome, finetune_report
from finetuning.report_settings import WritingData, WritingSettings, paper, tiny

from Testing.plugins.bundles import body_volume
from VelvetMedLib.ct import write_nifti
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.engine.trainer import STOPPED
from VelvetMedLib.errors import DownloadError, TrainingError, UsageError
from VelvetMedLib.tasks import encode
from VelvetMedLib.tasks.progress import Run
from VelvetMedLib.tasks.writers import open_writer

SAID = (
    "There is a 6 mm nodule in the right upper lobe. No pneumothorax.",
    "Small left pleural effusion. No pneumothorax. Mrs. Okafor, born 3.4.1950, has a nodule in the right upper lobe.",
)


def small(**loop: Any) -> WritingSettings:
    base = tiny()
    loops = {"batch": 2, "precision": "fp32", "save_every": 2, "validate_every": 100, "log_every": 1, **loop}
    return replace(
        base,
        data=replace(base.data, sentences_per_study=3, train_cases=0, val_cases=0, test_cases=0),
        optimiser=replace(base.optimiser, learning_rate=1e-2, last_rate=1e-3),
        search=replace(base.search, most_tokens=24),
        loop=replace(base.loop, **loops),
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scans with reports of two kinds; the last is for validation, and one report says nothing that is known."""
    folder = tmp_path_factory.mktemp("reports")
    lines = []
    for n in range(5):
        volume = body_volume((20, 18, 22), 7.0, seed=n)
        write_nifti(folder / f"s{n}.nii.gz", volume.voxels_kji, volume.ijk_to_ras)
        text = f"Findings: {SAID[n % 2] if n != 2 else 'As discussed with Dr. Okafor.'}"
        split = "val" if n >= 3 else "train"
        lines.append({"study": f"s{n}", "patient": f"p{n}", "split": split, "volume": f"s{n}.nii.gz", "report": text})
    (folder / "studies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder / "studies.jsonl"


def run(manifest: Path, folder: Path, bundle: Any, language: Path, steps: int, **options: Any) -> Outcome:
    given: dict[str, Any] = {
        "run": folder,
        "steps": steps,
        "seed": 5,
        "store": manifest.parent / "store",
        "say": lambda line: None,
    } | options
    return finetune_report(manifest, bundle, language, given.pop("settings", small()), **given)


def test_only_sentences_without_a_patient_are_learnt(manifest: Path) -> None:
    studies, left_out = read_studies(manifest, WritingData(), 1)
    rows = [row for study in studies for row in study.rows]
    assert {text for _, _, text in rows} == {
        "There is a [SIZE] nodule in the right upper lobe.",
        "No pneumothorax.",
        "Small left pleural effusion.",
    }
    assert [(q.study, "known words" in q.reason) for q in left_out] == [("s2", True)]
    for record, _, text in rows:
        assert (record.size_mm is not None) == ("[SIZE]" in text)


@pytest.mark.slow
def test_it_learns_two_reports_and_gives_a_writer_that_words_them(
    manifest: Path, tmp_path: Path, random_bundle: Any, tiny_language: Path
) -> None:
    outcome = run(manifest, tmp_path / "run", random_bundle, tiny_language, 160)
    assert outcome.code == 0 and outcome.results is not None
    results = json.loads((tmp_path / "run" / RESULTS).read_text("utf-8"))
    assert results["split"] == "val" and results["loss_after"] < 0.5 * results["loss_before"]
    assert 0 <= results["accepted"] <= 1 and results["sentences"] == 4
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:3])
    # What is kept of a run is what was trained, not the language model.
    best = Checkpoints(tmp_path / "run").load_best()
    assert best is not None and all("lora_" in name or "prompt" in name for name in best.parts["weights"])
    writer = open_writer(tmp_path / "run" / WRITER, random_bundle)
    studies, _ = read_studies(manifest, WritingData(), 1)
    record = next(row[0] for study in studies for row in study.rows if row[0].name == "pneumothorax")
    found = writer.write([record], encode(body_volume((20, 18, 22), 7.0, seed=0), random_bundle), "own", Run())
    assert found[0] is not None and found[0].slotted == "No pneumothorax."
    assert json.loads((tmp_path / "run" / WRITER / "writer.json").read_text("utf-8"))["training_data"].startswith("the user's own")


def test_a_run_that_was_stopped_goes_on_bit_for_bit(manifest: Path, tmp_path: Path, random_bundle: Any, tiny_language: Path) -> None:
    def stop_at(step: int) -> Any:
        return lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == step else None

    whole = run(manifest, tmp_path / "whole", random_bundle, tiny_language, 6)
    first = run(manifest, tmp_path / "parts", random_bundle, tiny_language, 6, after_step=stop_at(3))
    assert (first.code, whole.code) == (STOPPED, 0)
    assert run(manifest, tmp_path / "parts", random_bundle, tiny_language, 6).results == whole.results
    one, two = (Checkpoints(tmp_path / name).load() for name in ("whole", "parts"))
    assert one is not None and two is not None
    for name, value in one.parts["weights"].items():
        assert torch.equal(value, two.parts["weights"][name]), name
    with pytest.raises(TrainingError, match="other settings"):
        run(manifest, tmp_path / "parts", random_bundle, tiny_language, 6, settings=replace(small(), prompt_rate=2.0))


def test_the_published_setting_is_the_papers() -> None:
    settings = paper()
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.dropout) == (8, 32, 0.05)
    assert settings.lora.targets == ("q_proj", "k_proj", "v_proj")
    assert (settings.search.beams, settings.search.no_repeat, settings.search.early_stop) == (8, 2, True)
    assert (settings.optimiser.learning_rate, settings.optimiser.beta1, settings.optimiser.beta2, settings.optimiser.weight_decay) == (
        2e-5, 0.9, 0.99, 1e-4,
    )  # fmt: skip
    assert settings.loop.batch == 4


def test_the_line_prints_settings_and_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert finetune.main(["report", "settings", "--preset", "paper", "--set", "lora.targets=c_attn"]) == 0
    assert "lora.targets=c_attn" in capsys.readouterr().out
    assert finetune.main(["report", "--data", str(tmp_path), "--run", str(tmp_path / "run"), "--steps", "3"]) == USAGE
    assert "--language-model" in capsys.readouterr().err
    line = ["report", "--data", str(tmp_path), "--run", str(tmp_path / "r"), "--steps", "3", "--language-model", str(tmp_path)]
    assert finetune.main(line) == PROBLEM
    assert "nothing to learn writing from" in capsys.readouterr().err


class Hub:
    """Serves the files of a folder below /owner/name/resolve/main/."""

    def __init__(self, folder: Path) -> None:
        hub = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self, body: bool) -> None:
                name = self.path.removeprefix("/owner/name/resolve/main/")
                path = folder / name
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                hub.asked += [name] if body else []
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tiny_language: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    serving = Hub(tiny_language)
    thread = threading.Thread(target=serving.server.serve_forever)
    thread.start()
    monkeypatch.setattr(language_source, "HUB", serving.address)
    monkeypatch.setenv("VELVETMED_DATA", str(tmp_path / "data"))
    yield serving
    serving.server.shutdown()
    serving.server.server_close()
    thread.join()


def test_a_model_of_the_hub_is_fetched_once_and_only_after_a_yes(hub: Hub, tiny_language: Path) -> None:
    with pytest.raises(UsageError, match="no yes"):
        language_folder("owner/name", agreed=False)
    assert hub.asked == []
    folder = language_folder("owner/name", agreed=True)
    assert (folder / "model.safetensors").read_bytes() == (tiny_language / "model.safetensors").read_bytes()
    assert not [name for name in hub.asked if name.endswith((".bin", ".py", ".pt"))]
    hub.asked.clear()
    assert language_folder("owner/name", agreed=False) == folder and hub.asked == []
    with pytest.raises(DownloadError):
        language_folder("owner/other", agreed=True)
    with pytest.raises(UsageError, match="neither a folder nor an id"):
        language_folder("no such folder", agreed=True)
