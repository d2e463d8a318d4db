"""Stage 1: the fine network learns organs and lesions from crops of the synthetic cohort."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo.checkpoint import StageState
from VelvetMedLib.engine.optimiser import MovingAverage
from demo.data import PreparedCase, crop_batches
from VelvetMedLib.models.fine import FineNet
from VelvetMedLib.tasks.views import windowed


@dataclass(frozen=True, kw_only=True)
class FineSettings:
    """crop_voxels: (x, y, z). steps: of `batch` crops each. window_hu: as in the bundle's `fine` view."""

    steps: int = 1800
    batch: int = 2
    crop_voxels: tuple[int, int, int] = (80, 64, 64)
    learning_rate: float = 2.5e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 60
    average_decay: float = 0.995
    lesion_weight: float = 0.25
    least_share: float = 0.12
    windows_hu: tuple[tuple[float, float], ...] = ((-1000.0, 1000.0), (-160.0, 240.0))


def voxel_rows(maps: Tensor) -> Tensor:
    """[B, C, X, Y, Z] to [B*X*Y*Z, C]: a view when the network works channels-last, which keeps the losses cheap."""
    return maps.permute(0, 2, 3, 4, 1).reshape(-1, maps.shape[1])


def organ_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy over the given rows plus soft Dice, averaged over the structures that the batch contains.

    logits [N, O] float32, labels [N] int64 with 0 = background, weight [N]: how many voxels of the batch each row stands
    for. Dice counts voxels; cross-entropy counts rows, so that what is drawn more often weighs more.
    """
    log_probability = logits.log_softmax(1)
    of_label = log_probability.gather(1, labels[:, None])[:, 0]
    size = torch.bincount(labels, weight, minlength=logits.shape[1])
    hit = torch.zeros_like(size).index_add_(0, labels, of_label.exp() * weight)
    dice = (2 * hit + 1) / (weight @ log_probability.exp() + size + 1)
    inside = size[1:] > 0
    return 1 - of_label.mean() - dice[1:][inside].mean() if inside.any() else -of_label.mean()


def lesion_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Focal-weighted binary cross-entropy per voxel plus soft Dice of the channels that the batch contains.

    logits, targets [N, L]; weight [N]: how many voxels of the batch each row stands for. The focal weight keeps
    millions of easy voxels from drowning a nodule of ten.
    """
    probability = logits.sigmoid()
    wrongness = (probability - targets).detach().square() * weight[:, None]
    # softplus(z) - z*y is the cross-entropy of sigmoid(z) against y.
    focal = (wrongness * (F.softplus(logits) - logits * targets)).sum() / (targets.sum() + 200.0)
    size = targets.sum(0)
    hit = (probability * targets).sum(0)
    dice = (2 * hit + 1) / (weight @ probability.square() + size + 1)
    present = size > 0
    return focal + (1 - dice[present]).mean() if present.any() else focal


def class_shares(cases: list[PreparedCase], classes: int, least: float) -> Tensor:
    """Share of each class's voxels that the losses look at: `least` of the commonest, all of the rarest, inverse root between.

    The losses at full resolution cost as much as the network, and a part of the voxels estimates them as well. Taking all
    of a small structure gives it the weight without which it stays unpredicted: soft Dice alone has no slope at zero.
    """
    count = np.zeros(classes)
    for case in cases:
        count += np.bincount(case.organs_xyz.ravel(), minlength=classes)
    return torch.from_numpy(np.clip(least * np.sqrt(count.max() / np.maximum(count, 1)), least, 1.0)).float()


def sampled_rows(labels: Tensor, bits: Tensor, shares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for the losses: (indices drawn by class share, the other lesion voxels' indices, weights of the first).

    labels [N] int64, bits [N]. A weight is the inverse of the share: how many voxels a drawn one stands for.
    """
    share = shares[labels]
    drawn = torch.rand(labels.shape[0], generator=generator) < share
    return drawn.nonzero()[:, 0], ((bits != 0) & ~drawn).nonzero()[:, 0], 1.0 / share[drawn]


def unpack_bits(bits: Tensor, channels: int) -> Tensor:
    """[N] int32 bit mask to [N, channels] float32 of zeros and ones."""
    return ((bits[:, None] >> torch.arange(channels, dtype=bits.dtype)) & 1).float()


def _prefetched(batches: Iterator[Any], depth: int = 4) -> Iterator[Any]:
    """The same items, made ahead by one thread: numpy works while torch does."""
    waiting: queue.Queue[Any] = queue.Queue(depth)

    def fill() -> None:
        for item in batches:
            waiting.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield waiting.get()


def learning_rate_at(step: int, settings: FineSettings) -> float:
    """Linear warm-up, then cosine to 1 % of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    fraction = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, fraction)))))


def train_fine(net: FineNet, cases: list[PreparedCase], run: Path, settings: FineSettings, *, seed: int) -> float:
    """Train in place and leave the moving average in `net`. Returns the seconds spent, resumed parts included."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    state = StageState(run / "fine", net, optimiser, MovingAverage(net, settings.average_decay))
    step, spent = state.restore()
    started = time.perf_counter() - spent
    batches = _prefetched(crop_batches(cases, shape=settings.crop_voxels, batch=settings.batch, seed=seed, first_step=step))
    generator = torch.Generator()
    shares = class_shares(cases[:64], net.config.organs, settings.least_share)
    net.train()
    shown: list[tuple[float, float]] = []
    while step < settings.steps:
        hu, organs, bits = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        channels = torch.from_numpy(windowed(hu, settings.windows_hu)).transpose(0, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(channels)
        flat_bits = torch.from_numpy(bits.astype(np.int32)).flatten()
        labels = torch.from_numpy(organs.astype(np.int64)).flatten()
        drawn, rest, stands_for = sampled_rows(labels, flat_bits, shares, generator.manual_seed(seed * 1_000_003 + step))
        on_organs = organ_loss(voxel_rows(out.organ_logits)[drawn].float(), labels[drawn], stands_for)
        both = torch.cat([drawn, rest])
        # Every lesion voxel is looked at, so it stands for itself.
        weight = torch.cat([torch.where(flat_bits[drawn] != 0, 1.0, stands_for), torch.ones(len(rest))])
        targets = unpack_bits(flat_bits[both], out.lesion_logits.shape[1])
        on_lesions = lesion_loss(voxel_rows(out.lesion_logits)[both].float(), targets, weight)
        total = on_organs + settings.lesion_weight * on_lesions
        optimiser.zero_grad(set_to_none=True)
        if torch.isfinite(total):
            total.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
        else:
            print(f"fine step {step}: loss is not finite, step skipped", flush=True)
        state.average.update(net, step)
        shown.append((float(on_organs.detach()), float(on_lesions.detach())))
        step += 1
        if step % 50 == 0 or step == settings.steps:
            seconds = time.perf_counter() - started
            organ_mean, lesion_mean = np.mean(shown, axis=0)
            print(
                f"fine {step}/{settings.steps}  organs {organ_mean:.3f}  lesions {lesion_mean:.3f}"
                f"  {seconds / 60:.1f} min  {seconds / step:.2f} s/step",
                flush=True,
            )
            shown.clear()
        if step % 200 == 0 or step == settings.steps:
            state.save(step, time.perf_counter() - started)
    net.load_state_dict(state.average.tensors)
    net.eval()
    return time.perf_counter() - started
