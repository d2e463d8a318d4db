"""Fixtures of the objectives room."""

from __future__ import annotations

import pytest
import torch

from Testing.objectives import toys
from VelvetMedLib.models.text import ReportTokenizer
from VelvetMedLib.models.velvet import VelvetModel


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> ReportTokenizer:
    return toys.tokenizer()


@pytest.fixture
def model() -> VelvetModel:
    return toys.model()
