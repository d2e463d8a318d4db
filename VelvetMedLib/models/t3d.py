"""The encoders of T3D-style training: crops through a Swin encoder, a report encoder, and the block in which the first reads the second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.swin import SwinConfig, SwinEncoder
from VelvetMedLib.models.text import TextLayout
from VelvetMedLib.models.text_informed import TextInformed, TextInformedConfig, cells
from VelvetMedLib.models.tribert import TriBert, TriBertConfig
from VelvetMedLib.models.velvet import MAX_LOG_SCALE, GlobalFeatures, Level


@dataclass(frozen=True, kw_only=True)
class T3dConfig(Settings):
    """Settings of `T3dModel`. aligned_dim: length of the common vectors of a global view and its report, 0 = the two are not aligned."""

    swin: SwinConfig = field(default_factory=SwinConfig)
    tribert: TriBertConfig
    text_informed: TextInformedConfig
    aligned_dim: int = 0

    def __post_init__(self) -> None:
        top, width = self.swin.widths[4], self.tribert.width
        self.require(self.text_informed.channels == top, "text_informed", f"channels {top}, those of the top map")
        self.require(self.text_informed.text_width == width, "text_informed", f"text_width {width}, that of the text encoder")
        self.require(self.aligned_dim >= 0, "aligned_dim", "0 or more")


class T3dModel(nn.Module):
    """f = `swin` serves alone (segmentation, classification without text); `text_informed` is for tasks with a text at hand.

    logit_scale: log of the scale of the global alignment, where there is one (the later version, methods.md 4.5).
    """

    def __init__(self, config: T3dConfig) -> None:
        super().__init__()
        self.config = config
        self.swin = SwinEncoder(config.swin)
        self.tribert = TriBert(config.tribert)
        self.text_informed = TextInformed(config.text_informed)
        if config.aligned_dim:
            self.image_projection = nn.Linear(config.swin.widths[4], config.aligned_dim)
            self.text_projection = nn.Linear(config.tribert.width, config.aligned_dim)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def project_image(self, features: GlobalFeatures, levels: Sequence[Level] = ("report",)) -> dict[str, Tensor]:
        """Unit vectors [B, D] of global views, float32, as `VelvetModel.project_image` gives them; the report level is the only one."""
        _only_report(levels)
        return {"report": _unit(self.image_projection(cells(features.top).mean(dim=1)))}

    def project_text(self, states: Tensor, layout: TextLayout, levels: Sequence[Level] = ("report",)) -> dict[str, Tensor]:
        """Unit vectors [B, D] of reports, float32, from the state of [CLS]."""
        _only_report(levels)
        return {"report": _unit(self.text_projection(states[:, 0]))}

    def contrast_scale(self) -> Tensor:
        """exp(logit_scale), kept within 1 to 100."""
        return self.logit_scale.clamp(0.0, MAX_LOG_SCALE).exp()


def _only_report(levels: Sequence[Level]) -> None:
    if tuple(levels) != ("report",):
        raise ValueError(f"this model aligns whole reports only, not {list(levels)}")


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
