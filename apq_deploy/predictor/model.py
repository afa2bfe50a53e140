"""The predictor at work: one small network or the mean of several, in NumPy, loaded from safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from apq_deploy.errors import UserError
from apq_deploy.files import MAX_WEIGHTS_BYTES, atomic, check_size
from apq_deploy.space import SearchSpace

SCHEMA = "apq-deploy/predictor/2"
HIDDEN = (400, 400, 400)
"""Source: APQ (CVPR 2020), section 4.1."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicted accuracy in [0, 1] of encoded subnets: the mean of networks of hidden layers with ReLU, one output.

    weights: one (members, n_out, n_in) float32 array per layer; biases: one (members, n_out) array per layer. The
    output is standardised: accuracy = mean + std * output. The first layer reads all features, or the architecture
    alone.
    """

    space: SearchSpace
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    mean: float
    std: float
    quantized: bool
    metrics: dict[str, float] = field(default_factory=dict)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Accuracies (n,) of features (n, n_features)."""
        x = features[None]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight.transpose(0, 2, 1) + bias[:, None], 0)
        outputs = x @ self.weights[-1].transpose(0, 2, 1) + self.biases[-1][:, None]
        return self.mean + self.std * outputs.mean(axis=0)[:, 0]

    def save(self, path: Path) -> None:
        """Write the predictor; weights as float16, which halves the file and leaves the ranking as it is."""
        tensors = {}
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"{index}.weight": weight.astype(np.float16), f"{index}.bias": bias.astype(np.float16)}
        header = {"mean": self.mean, "std": self.std, "quantized": self.quantized, "metrics": self.metrics}
        with atomic(path) as temporary:
            save_file(tensors, temporary, {"schema": SCHEMA, **self.space.identity, "predictor": json.dumps(header)})

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> Predictor:
        """The predictor of a space.

        Raises: UserError for a file that is missing, damaged or of another space.
        """
        if not path.is_file():
            raise UserError(
                f"there is no predictor {path}; make it with `apq-deploy collect`, then `apq-deploy fit`, or name "
                "another folder with --model"
            )
        check_size(path, MAX_WEIGHTS_BYTES)
        try:
            with safetensors.safe_open(str(path), framework="np") as file:
                metadata = dict(file.metadata() or {})
            tensors = load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a complete safetensors file ({error})") from None
        if metadata.get("schema") != SCHEMA:
            raise UserError(f"{path}: expected schema {SCHEMA!r}, got {metadata.get('schema')!r}")
        space.require(metadata, path)
        try:
            header = json.loads(metadata["predictor"])
            mean, std = float(header["mean"]), float(header["std"])
            quantized, metrics = bool(header["quantized"]), dict(header["metrics"])
            n_layers = len(tensors) // 2
            weights = tuple(tensors[f"{i}.weight"].astype(np.float32) for i in range(n_layers))
            biases = tuple(tensors[f"{i}.bias"].astype(np.float32) for i in range(n_layers))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} lacks a part of a predictor ({error}); fit it again") from None
        n_inputs = space.n_features if quantized else int(space.architecture_features.sum())
        members = biases[0].shape[:1] if biases else ()
        found = [weight.shape for weight in weights]
        sizes = [n_inputs, *(bias.shape[-1] if bias.ndim else 0 for bias in biases)]
        wanted = [(*members, n_out, n_in) for n_in, n_out in pairwise(sizes)]
        fits = found == wanted and all(bias.shape[:-1] == members for bias in biases) and sizes[-1] == 1
        if not fits or not members or not members[0]:
            reads = found[0][-1] if found and found[0] else "no"
            raise UserError(
                f"{path} reads {reads} features, the space {space.name!r} has {n_inputs}, or its layers do not fit "
                "each other; fit it again"
            )
        return cls(space, weights, biases, mean, std, quantized, metrics)


def pairwise_accuracy(predicted: NDArray[np.floating], measured: NDArray[np.floating]) -> float:
    """Share of pairs ranked right, of those whose measured values differ; a predicted tie counts half.

    Where no two values differ, 0.5, as by chance.

    Source: APQ (CVPR 2020), section 4.3.
    """
    order = np.sign(predicted[:, None] - predicted) * np.sign(measured[:, None] - measured)
    differ = measured[:, None] != measured
    return float(((order[differ] + 1) / 2).mean()) if differ.any() else 0.5


def kendall_tau(predicted: NDArray[np.floating], measured: NDArray[np.floating]) -> float:
    """Kendall's tau-b of two rankings; 0 where one of them ranks nothing."""
    a, b = np.sign(predicted[:, None] - predicted), np.sign(measured[:, None] - measured)
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else 0.0
