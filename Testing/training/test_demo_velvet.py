"""The demo training's own VELVET-Med pre-training: it never sees the held-out cases, and the model gets its encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from demo.data import prepare
from demo.texts import corpus
from demo.training import demo_architecture
from demo.velvet_stage import VelvetSettings, take_encoders, train_velvet
from pretraining.vocabulary import learn_vocabulary

from VelvetMedLib.cohorts import CohortOptions, make_cohort
from VelvetMedLib.engine.checkpoints import Checkpoints
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel
from VelvetMedLib.recipes.velvet import micro, tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_model_gets_the_pretrained_encoders_and_the_test_cases_are_not_even_listed(tmp_path: Path) -> None:
    made = make_cohort(tmp_path / "cohort", 20, 5, 1, CohortOptions(spacing_mm=12.0, largest_shape_ijk=(32, 28, 32)), sheet=False)
    cases = prepare(tmp_path / "cohort", tmp_path / "prepared", processes=1)
    assert len(made.case_folders) == len(cases) == 20
    held_out = {case.case_id for case in cases if case.split == "test"}
    (tmp_path / "tokenizer.json").write_text(learn_vocabulary(corpus(cases, seed=1), vocabulary=400), encoding="utf-8")
    settings = VelvetSettings(steps=2, recipe=micro())
    vocabulary = ReportTokenizer(tmp_path / "tokenizer.json").vocab_size

    def trained() -> VelvetModel:
        torch.manual_seed(0)
        model = VelvetModel(demo_architecture(settings.recipe.model_config(vocabulary)))
        arguments = (tmp_path / "cohort", cases, tmp_path / "tokenizer.json", tmp_path / "run", settings)
        assert train_velvet(model, *arguments, processes=1, seed=3) > 0
        return model

    model = trained()
    listed = [json.loads(line) for line in (tmp_path / "run" / "studies.jsonl").read_text(encoding="utf-8").splitlines()]
    assert held_out and not held_out & {entry["study"] for entry in listed}
    assert {entry["study"]: entry["split"] for entry in listed} == {c.case_id: c.split for c in cases if c.split != "test"}
    last = Checkpoints(tmp_path / "run").load()
    assert last is not None and last.step == 2
    best = Checkpoints(tmp_path / "run").load_best() or last
    own, learnt = model.state_dict(), best.parts["weights"]
    encoders = [name for name in learnt if name.startswith("model.")]
    assert encoders and all(torch.equal(own[name.removeprefix("model.")], learnt[name]) for name in encoders)
    again = trained().state_dict()
    assert all(torch.equal(again[name.removeprefix("model.")], learnt[name]) for name in encoders)


def test_the_demo_model_has_a_place_for_every_tensor_of_the_tiny_pretraining() -> None:
    config = tiny().model_config(500)
    encoders = VelvetModel(config).state_dict()
    take_encoders(VelvetModel(demo_architecture(config)), {f"model.{name}": value for name, value in encoders.items()})
    with pytest.raises(RuntimeError, match="no place for strange"):
        take_encoders(VelvetModel(demo_architecture(config)), {"model.strange": torch.zeros(1)})
