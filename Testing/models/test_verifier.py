"""The second look at a part: its own numbers alone decide, wild ones are limited, wrong settings are refused."""

from __future__ import annotations

import pytest
import torch

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.verifier import LesionVerifier, LesionVerifierConfig


def test_every_part_is_judged_by_itself_and_by_standardised_numbers() -> None:
    torch.manual_seed(0)
    verifier = LesionVerifier(LesionVerifierConfig(lesion_features=12, lesions=5, width=8)).eval()
    tokens = torch.randn(7, 12) * 3 + 5
    alone = torch.stack([verifier(token) for token in tokens])
    torch.testing.assert_close(verifier(tokens), alone)
    verifier.mean.fill_(5.0)
    verifier.scale.fill_(1 / 3)
    by_hand = verifier.layers(((tokens - 5) / 3).clamp(-6, 6))
    torch.testing.assert_close(verifier(tokens), by_hand)
    wild = tokens.clone()
    wild[0, 0] = 1e9
    assert torch.isfinite(verifier(wild)).all() and verifier(tokens[:0]).shape == (0, 5)


def test_wrong_settings_are_refused_by_name() -> None:
    for name, value in (("width", 0), ("lesions", 0), ("dropout", 1.0)):
        with pytest.raises(UsageError, match=name):
            LesionVerifierConfig(**{name: value})
