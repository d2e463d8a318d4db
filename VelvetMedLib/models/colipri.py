"""COLIPRI: image encoder, text encoder and their pooling, tensor names equal to the released weights (methods.md 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from VelvetMedLib.errors import UsageError
from VelvetMedLib.models.bert import Bert, BertConfig
from VelvetMedLib.models.config import Settings
from VelvetMedLib.models.pooling import AttentionPool
from VelvetMedLib.models.primus import Block, Primus, PrimusConfig, RunBlock


@dataclass(frozen=True, kw_only=True)
class ColipriConfig(Settings):
    """Settings of `ColipriModel`. text None: the image half alone.

    projection_dim: length of the common vectors. pool_heads: heads of both poolers. text_pool_mask: pool the text over its real
    tokens only; without it over all positions, padding included (the package did that up to 0.1.2; which of the two the released
    weights were trained with is not known).
    """

    image: PrimusConfig = field(default_factory=PrimusConfig)
    text: BertConfig | None = field(default_factory=BertConfig)
    projection_dim: int = 768
    pool_heads: int = 12
    text_pool_mask: bool = True

    def __post_init__(self) -> None:
        self.require(self.pool_heads >= 1, "pool_heads", "at least 1")
        self.require(self.projection_dim >= 1, "projection_dim", "at least 1")
        self.require(self.projection_dim % self.pool_heads == 0, "pool_heads", f"a divisor of projection_dim ({self.projection_dim})")
        if self.text is not None:
            # There is no projector on the text's side: its states are in the common space as they are.
            self.require(self.text.width == self.projection_dim, "projection_dim", f"the text encoder's width ({self.text.width})")

    @classmethod
    def paper(cls) -> Self:
        """The released COLIPRI-CRM."""
        return cls()

    @classmethod
    def tiny(cls, vocab_size: int) -> Self:
        """For two CPU cores."""
        return cls(image=PrimusConfig.tiny(), text=BertConfig.tiny(vocab_size), projection_dim=96, pool_heads=4)


class ImageEncoder(nn.Module):
    """Backbone, 1x1x1 projector into the common space, pooler."""

    def __init__(self, config: ColipriConfig) -> None:
        super().__init__()
        self.backbone = Primus(config.image)
        self.projector = nn.Conv3d(config.image.width, config.projection_dim, 1)
        self.pooler = AttentionPool(config.projection_dim, config.pool_heads)


class TextEncoder(nn.Module):
    """Backbone and pooler; no projector."""

    def __init__(self, text: BertConfig, pool_heads: int) -> None:
        super().__init__()
        self.backbone = Bert(text)
        self.pooler = AttentionPool(text.width, pool_heads)


class ColipriModel(nn.Module):
    """Image [B, 1, X, Y, Z] in -1..1 and text ids to unit vectors in one space; logits = cosine / softmax_temperature.

    softmax_temperature is float32 here: built from an integer, as the public package does, it would cut a fractional value off.
    """

    softmax_temperature: Tensor

    def __init__(self, config: ColipriConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("softmax_temperature", torch.tensor(1.0))
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config.text, config.pool_heads) if config.text is not None else None

    def features(self, x: Tensor, *, run: RunBlock = Block.__call__) -> Tensor:
        """Cells before projection: [B, 1, X, Y, Z] -> [B, image width, X / patch, Y / patch, Z / patch]."""
        return cast(Tensor, self.image_encoder.backbone(x, run=run))

    def features_by_windows(self, x: Tensor, window: int, *, run: RunBlock = Block.__call__) -> Tensor:
        """`features` of windows that do not overlap, one at a time, joined to one map; places are counted anew in each window.

        This is the published evaluation's way to read 384 voxels a side with an encoder for 192.
        """
        if any(side % window for side in x.shape[2:]):
            raise UsageError(
                "The image cannot be read in windows.",
                found=f"shape {tuple(x.shape[2:])} with windows of {window} voxels",
                expected=f"sides that are multiples of {window}",
                next_step="Crop or pad the view to such a grid.",
            )
        patch = self.config.image.patch
        out: Tensor | None = None
        for cx, cy, cz in product(*(range(0, side, window) for side in x.shape[2:])):
            part = self.features(x[:, :, cx : cx + window, cy : cy + window, cz : cz + window], run=run)
            if out is None:
                out = part.new_empty(*part.shape[:2], *(side // patch for side in x.shape[2:]))
            gx, gy, gz, step = cx // patch, cy // patch, cz // patch, window // patch
            out[:, :, gx : gx + step, gy : gy + step, gz : gz + step] = part
        assert out is not None
        return out

    def tokens(self, features: Tensor) -> Tensor:
        """Cells in the common space, [B, image width, gx, gy, gz] -> [B, N, projection_dim], cells row-major."""
        projector = self.image_encoder.projector
        return functional.linear(features.flatten(2).transpose(1, 2), projector.weight.flatten(1), projector.bias)

    def pooled(self, features: Tensor) -> Tensor:
        """One unit vector per image, [B, projection_dim]."""
        return unit(self.image_encoder.pooler(self.tokens(features)))

    def dense(self, features: Tensor) -> Tensor:
        """One unit vector per cell, [B, projection_dim, gx, gy, gz]."""
        cells = unit(self.image_encoder.pooler.dense(self.tokens(features)))
        return cells.transpose(1, 2).unflatten(2, features.shape[2:])

    def embed_image(self, x: Tensor) -> Tensor:
        """[B, 1, X, Y, Z] -> unit vectors [B, projection_dim]."""
        return self.pooled(self.features(x))

    def text_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L] ids and mask (True = real) -> states [B, L, projection_dim]. Raises UsageError without a text half."""
        return cast(Tensor, self._text().backbone(ids, mask))

    def pool_text(self, states: Tensor, mask: Tensor) -> Tensor:
        """One unit vector per text, [B, projection_dim], over the real tokens or over all positions as the settings say."""
        return unit(self._text().pooler(states, mask if self.config.text_pool_mask else None))

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L] ids and mask -> unit vectors [B, projection_dim]."""
        return self.pool_text(self.text_states(ids, mask), mask)

    def _text(self) -> TextEncoder:
        if self.text_encoder is None:
            raise UsageError(
                "This model cannot read text.",
                found="the image half of COLIPRI alone",
                expected="a model with its text half",
                next_step="Add a model whose weights hold the text encoder too.",
            )
        return self.text_encoder


def unit(x: Tensor) -> Tensor:
    """Divided by its length along the last axis, in float32 (float64 where the model is)."""
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
