"""COLIPRI's model with what aligning image and text needs: a scale that is learned, and features named as in every other model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from VelvetMedLib.models.colipri import ColipriConfig, ColipriModel, unit
from VelvetMedLib.models.text import TextLayout
from VelvetMedLib.models.velvet import MAX_LOG_SCALE, Level


class CellFeatures(NamedTuple):
    """pooled: unit vectors [B, D], float32; cells: [B, D, x, y, z] in the common space, before pooling."""

    pooled: Tensor
    cells: Tensor

    @staticmethod
    def alone() -> tuple[str, ...]:
        """Fields that are read study by study (`objectives.base.Feature`)."""
        return ("cells",)

    @property
    def top(self) -> Tensor:
        """The map that a probe pools."""
        return self.cells


class KeptFeatures(NamedTuple):
    """states: [B, K, image width] of the cells that the encoder was given, in the order of their numbers' list."""

    states: Tensor


class AlignedColipri(ColipriModel):
    """logits = exp(logit_scale) * cosine. Tensor names are the released ones, and `logit_scale`."""

    def __init__(self, config: ColipriConfig, *, start_scale: float = 1 / 0.07) -> None:
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(start_scale)))

    def image_features(self, x: Tensor) -> CellFeatures:
        """[B, 1, X, Y, Z] in -1..1, encoded once."""
        features = self.features(x)
        tokens = self.tokens(features)
        cells = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        return CellFeatures(unit(self.image_encoder.pooler(tokens)), cells)

    def kept_features(self, x: Tensor, kept: Tensor) -> KeptFeatures:
        """As if all other cells did not exist. kept: [B, K] numbers of cells, row-major."""
        return KeptFeatures(self.image_encoder.backbone.forward_kept(x, kept))

    def text_state(self, layout: TextLayout) -> Tensor:
        """One state per text, [B, 1, D]: pooled over its tokens, not yet of unit length."""
        states = self.text_states(layout.ids, layout.pad_mask)
        mask = layout.pad_mask if self.config.text_pool_mask else None
        return cast(Tensor, self._text().pooler(states, mask))[:, None]

    def project_image(self, features: CellFeatures, levels: Sequence[Level] = ("report",)) -> dict[str, Tensor]:
        """Unit vectors [B, D], float32. The report level is the only one."""
        _only_report(levels)
        return {"report": features.pooled}

    def project_text(self, states: Tensor, layout: TextLayout, levels: Sequence[Level] = ("report",)) -> dict[str, Tensor]:
        """states: of `text_state`. Unit vectors [B, D], float32."""
        _only_report(levels)
        return {"report": unit(states[:, 0])}

    def contrast_scale(self) -> Tensor:
        """exp(logit_scale), kept within 1 to 100."""
        return self.logit_scale.clamp(0.0, MAX_LOG_SCALE).exp()

    def released_tensors(self) -> dict[str, Tensor]:
        """Tensors under the released names only; the learned scale becomes `softmax_temperature`, its inverse."""
        found = {name: value.detach() for name, value in self.state_dict().items() if name != "logit_scale"}
        return found | {"softmax_temperature": (1 / self.contrast_scale()).detach().float()}


def _only_report(levels: Sequence[Level]) -> None:
    if tuple(levels) != ("report",):
        raise ValueError(f"this model aligns whole texts only, not {list(levels)}")
