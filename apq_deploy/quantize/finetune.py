"""Quantization-aware fine-tuning: it trains the very scales, clips and weights that the export writes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from apq_deploy.errors import UserError
from apq_deploy.progress import Advance
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.supernet.data import ImageSet, augment, to_unit
from apq_deploy.supernet.train import batch_indices, distillation_loss


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How a quantized subnet is fine-tuned. The rates fall to 0 along a cosine; that of a clip is relative to it."""

    steps: int = 20
    batch_size: int = 128
    learning_rate: float = 3e-4
    clip_learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 2:
            raise UserError(f"expected steps >= 0 and batch_size >= 2, got {self.steps} and {self.batch_size}")


def finetune(
    network: QuantizedSubnet,
    images: ImageSet,
    settings: FinetuneSettings,
    teacher: nn.Module | None = None,
    advance: Advance | None = None,
) -> None:
    """Train `network` in place with straight-through gradients on the teacher's probabilities, or else on labels.

    Batch-norm statistics stay fixed: a few steps on the statistics of single batches did more harm than good by
    measurement. Re-estimate them before, and again afterwards.
    """
    device = next(network.parameters()).device
    groups = [
        {"params": [parameter], "base": settings.clip_learning_rate * parameter.item()}
        for name, parameter in network.named_parameters()
        if name.endswith(".clip")
    ]
    others = [parameter for name, parameter in network.named_parameters() if not name.endswith(".clip")]
    groups.append({"params": others, "base": settings.learning_rate})
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)
    network.eval()
    for step in range(settings.steps):
        rng = np.random.default_rng((settings.seed, 4, step))
        chosen = batch_indices(len(images), settings.batch_size, step, (settings.seed, 5))
        x = to_unit(augment(images.images(chosen), rng), device)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        logits = network(x)
        if teacher is not None:
            with torch.no_grad():
                target = teacher(x)
            loss = distillation_loss(logits, target)
        else:
            loss = F.cross_entropy(logits, images.labels(chosen).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if advance is not None:
            advance(step + 1, f"loss {loss.item():.3f}")
