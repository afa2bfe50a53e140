"""Quantization-aware fine-tuning: it trains the very scales, clips and weights that the export writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from apq_deploy.errors import UserError
from apq_deploy.files import atomic
from apq_deploy.progress import Advance
from apq_deploy.quantize.network import QuantizedSubnet, accuracy
from apq_deploy.supernet.data import ImageSet, ImagesInMemory, augment, to_unit
from apq_deploy.supernet.network import read_safetensors
from apq_deploy.supernet.subnet import reestimate_batch_norm
from apq_deploy.supernet.train import batch_indices, distillation_loss

SCHEMA = "apq-deploy/finetuning/1"


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


@dataclass(frozen=True, eq=False)
class BestState:
    """Keeps the best state of a long fine-tuning, and what it needs to go on after a stop, in the file `path`.

    validation: labelled images that are neither trained nor tested on. identity: what the run belongs to; a file of
    another one is not gone on with. every: steps between two evaluations.
    """

    path: Path
    validation: ImagesInMemory
    calibration: list[Tensor]
    identity: Mapping[str, Any]
    every: int = 100


class _Course:
    """A fine-tuning under way: its optimizer, its best state, and how far it has come."""

    def __init__(self, network: QuantizedSubnet, settings: FinetuneSettings, keep: BestState | None) -> None:
        self.network, self.settings, self.keep = network, settings, keep
        groups = [
            {"params": [parameter], "base": settings.clip_learning_rate * parameter.item()}
            for name, parameter in network.named_parameters()
            if name.endswith(".clip")
        ]
        others = [parameter for name, parameter in network.named_parameters() if not name.endswith(".clip")]
        groups.append({"params": others, "base": settings.learning_rate})
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)
        self.step = 0
        self.best: dict[str, Tensor] = {}
        self.best_accuracy = -1.0
        if keep is not None and keep.path.exists():
            self._restore(keep)

    def evaluate(self) -> None:
        """Compare the present state with the best so far, and write both down."""
        assert self.keep is not None
        state = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        reestimate_batch_norm(self.network, self.keep.calibration)
        found = accuracy(self.network, self.keep.validation.pixels, self.keep.validation.classes)
        self.network.load_state_dict(state)  # training goes on with the statistics that it began with
        if found > self.best_accuracy:
            self.best, self.best_accuracy = state, found
        tensors = {f"network.{name}": tensor for name, tensor in state.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        header = {"step": self.step, "best_accuracy": self.best_accuracy}
        metadata = {"schema": SCHEMA, "identity": self._identity(), "header": json.dumps(header)}
        with atomic(self.keep.path) as temporary:
            save_file(tensors, temporary, metadata)

    def _identity(self) -> str:
        assert self.keep is not None
        return json.dumps({**self.keep.identity, "settings": asdict(self.settings)}, sort_keys=True)

    def _restore(self, keep: BestState) -> None:
        tensors, metadata = read_safetensors(keep.path)
        if metadata.get("schema") != SCHEMA or metadata.get("identity") != self._identity():
            return  # of another network or other settings: begin anew
        header = json.loads(metadata["header"])
        self.step, self.best_accuracy = header["step"], header["best_accuracy"]
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        self.best = parts["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, field = name.partition(".")
            state.setdefault(int(index), {})[field] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def finetune(
    network: QuantizedSubnet,
    images: ImageSet,
    settings: FinetuneSettings,
    teacher: nn.Module | None = None,
    advance: Advance | None = None,
    keep: BestState | None = None,
) -> None:
    """Train `network` in place with straight-through gradients on the teacher's probabilities, or else on labels.

    Batch-norm statistics stay fixed: a few steps on the statistics of single batches did more harm than good by
    measurement. Re-estimate them before, and again afterwards. With `keep`, the network ends in its best state, and a
    stopped run goes on from its last evaluation.
    """
    device = next(network.parameters()).device
    network.eval()
    course = _Course(network, settings, keep)
    for step in range(course.step, settings.steps):
        rng = np.random.default_rng((settings.seed, 4, step))
        chosen = batch_indices(len(images), settings.batch_size, step, (settings.seed, 5))
        x = to_unit(augment(images.images(chosen), rng), device)
        for group in course.optimizer.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        logits = network(x)
        if teacher is not None:
            with torch.no_grad():
                target = teacher(x)
            loss = distillation_loss(logits, target)
        else:
            loss = F.cross_entropy(logits, images.labels(chosen).to(device))
        course.optimizer.zero_grad()
        loss.backward()
        course.optimizer.step()
        course.step = step + 1
        if keep is not None and (course.step % keep.every == 0 or course.step == settings.steps):
            course.evaluate()
        if advance is not None:
            advance(course.step, f"loss {loss.item():.3f}")
    if keep is not None:
        network.load_state_dict(course.best)
        keep.path.unlink(missing_ok=True)
