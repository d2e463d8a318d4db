"""The public `colipri` package as a reference: loaded if it is installed, asked of nothing but its own arithmetic, never its downloads."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXTRA = "the public package `colipri` is not installed: `make test-all` installs it, or pip install -e '.[colipri]'"


def load_package() -> ModuleType:
    """The package, or a skip that names the extra."""
    if importlib.util.find_spec("colipri") is None:
        pytest.skip(EXTRA)
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except (RuntimeError, ImportError):
            # A torchvision built for CUDA beside a torch for the CPU cannot load its operators and stops while describing two of
            # them. timm, which the package imports, needs none: the two get their signatures and nothing behind them.
            global _operators
            _operators = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("colipri")


_operators: Any = None


def their_model(config: Any, side: int | None = None, *, sharp: bool = True) -> Any:
    """The package's model with the architecture of a `ColipriConfig`, random weights everywhere, in eval mode.

    The text encoder's shell comes from the same class that the package would load (BertModel, wrapped as a masked language
    model), because the package itself fetches it from a hub. side: of its input in voxels (its positions are made for one size
    only); 4 cells unless given. sharp: queries and keys twice as wide, so that attention is far from uniform and texts and cells stay
    far from one another, and a wrong computation from a right one. Over many blocks such weights also make much of any rounding, the
    package's own in bf16 included.
    """
    load_package()
    import torch
    from colipri.model.image import ImageEncoder
    from colipri.model.multimodal import Model
    from colipri.model.text import TextEncoder
    from colipri.pooling import AttentionPool1D
    from dynamic_network_architectures.architectures.primus import Primus
    from transformers import BertConfig, BertForMaskedLM

    image, text = config.image, config.text
    side = side or image.patch * 4
    backbone = Primus(
        input_channels=1, num_classes=1, eva_depth=image.depth, eva_numheads=image.heads, embed_dim=image.width,
        patch_embed_size=(image.patch,) * 3, input_shape=(side, side, side), use_rot_pos_emb=True, use_abs_pos_embed=False,
        drop_path_rate=image.drop_path, init_values=image.scale_start, scale_attn_inner=True, num_register_tokens=0,
    )  # fmt: skip
    projector = torch.nn.Conv3d(image.width, config.projection_dim, 1)
    encoder = ImageEncoder(backbone, projector, AttentionPool1D(config.projection_dim, config.pool_heads))
    shell = None
    if text is not None:
        settings = BertConfig(
            vocab_size=text.vocab_size, hidden_size=text.width, num_hidden_layers=text.depth, num_attention_heads=text.heads,
            intermediate_size=text.ffn, max_position_embeddings=text.positions, type_vocab_size=text.kinds,
        )  # fmt: skip
        shell = TextEncoder(BertForMaskedLM(settings), AttentionPool1D(config.projection_dim, config.pool_heads))
    model = Model(encoder, shell, temperature=0.07).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                wide = 2.0 if sharp and any(part in name for part in ("q_proj", "k_proj", "query", "key", "in_proj")) else 1.0
                parameter.copy_(noise * wide / parameter[0].numel() ** 0.5)
            else:
                middle = 0.3 if "gamma" in name else 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(noise * 0.05 + middle)
    return model


def their_state(model: Any) -> dict[str, Any]:
    """The package's tensors as they would lie in its weights file."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def their_processor(size: int, spacing: float = 2.0, orientation: str = "RAS") -> Any:
    """The package's own image transform at another size, spacing or orientation, from its own configuration."""
    load_package()
    from colipri.checkpoint import load_processor_config
    from hydra.utils import instantiate

    overrides = [f"input_size={size}", f"spacing={spacing}", f"orientation={orientation}"]
    return instantiate(load_processor_config(overrides=overrides).image_transform)


def write_nifti_for_them(volume: Any, path: Path) -> Path:
    """A Volume as a NIfTI file for the package to read."""
    from VelvetMedLib.ct import write_nifti

    write_nifti(path, volume.voxels_kji, volume.ijk_to_ras)
    return path
