"""Quantization-aware fine-tuning: it trains the very scales, clips and weights that the export writes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apq_deploy.errors import UserError
from apq_deploy.progress import Advance
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.supernet.data import ImageSet, augment, to_unit
from apq_deploy.supernet.train import batch_indices, distillation_loss


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How a quantized subnet is fine-tuned. The rate falls to 0 along a cosine."""

    steps: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    clip_learning_rate: float = 3e-3
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
    """Train `network` in place with straight-through gradients, half on labels, half on the teacher's probabilities.

    Batch-norm statistics are those of the batches; re-estimate them afterwards.
    """
    device = next(network.parameters()).device
    clips = [parameter for name, parameter in network.named_parameters() if name.endswith(".clip")]
    others = [parameter for name, parameter in network.named_parameters() if not name.endswith(".clip")]
    groups = [
        {"params": others, "base": settings.learning_rate},
        {"params": clips, "base": settings.clip_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)
    network.train()
    for step in range(settings.steps):
        rng = np.random.default_rng((settings.seed, 4, step))
        chosen = batch_indices(len(images), settings.batch_size, step, (settings.seed, 5))
        x = to_unit(augment(images.images(chosen), rng), device)
        y = images.labels(chosen).to(device)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        logits = network(x)
        loss = F.cross_entropy(logits, y)
        if teacher is not None:
            loss = (loss + distillation_loss(logits, _logits(teacher, x))) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if advance is not None:
            advance(step + 1, f"loss {loss.item():.3f}")
    network.eval()


@torch.no_grad()
def _logits(teacher: nn.Module, x: Tensor) -> Tensor:
    return teacher(x)
