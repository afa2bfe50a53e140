"""Fitting: a full-precision predictor on cheap points, transferred to quantized networks with few expensive ones.

The paper trains the whole predictor on the expensive points (`fit_quantized`). Training only a linear correction to it
(`fit_correction`) ranks better by measurement (docs/results.md), in milliseconds, but is too hopeful of networks far
from the points, which a search looks for. A network from scratch errs elsewhere: a model is shipped with their mean
(`mean_of`). Source: APQ (CVPR 2020), section 3.2 and figure 4; the correction and the mean are additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apq_deploy.errors import UserError
from apq_deploy.predictor.model import HIDDEN, Predictor, kendall_tau, pairwise_accuracy
from apq_deploy.predictor.ridge import ridge
from apq_deploy.space import Genes, SearchSpace

FEWEST_POINTS = 10


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a predictor is trained. Full batches would overfit the order of the data, so batches are drawn anew."""

    epochs: int = 60
    transfer_epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    transfer_learning_rate: float = 3e-4
    weight_decay: float = 1.0
    seed: int = 0


def fit_float(space: SearchSpace, genes: Genes, accuracy: NDArray[np.floating], settings: FitSettings) -> Predictor:
    """The predictor of full-precision accuracy from the architecture alone.

    genes: (n, n_genes); accuracy: (n,) in [0, 1].

    Raises: UserError if there are too few points.
    """
    features = space.encode(genes)[:, space.architecture_features]
    layers = _layers(features.shape[1], settings.seed)
    return _train(space, layers, features, accuracy, settings, settings.epochs, settings.learning_rate, quantized=False)


def fit_quantized(
    space: SearchSpace,
    genes: Genes,
    accuracy: NDArray[np.floating],
    settings: FitSettings,
    source: Predictor | None,
) -> Predictor:
    """The predictor of quantized accuracy: `source` with the bits as further inputs, or from scratch without it.

    The weights of the new inputs start at zero, so that training begins at the full-precision ranking.

    Raises: UserError if there are too few points.
    """
    features = space.encode(genes)
    layers = _layers(features.shape[1], settings.seed)
    if source is None:
        return _train(
            space, layers, features, accuracy, settings, settings.epochs, settings.learning_rate, quantized=True
        )
    start = _reading_bits(space, source)
    with torch.no_grad():
        for layer, (weight,), (bias,) in zip(layers, start.weights, start.biases, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    rate = settings.transfer_learning_rate
    return _train(space, layers, features, accuracy, settings, settings.transfer_epochs, rate, quantized=True)


def fit_correction(space: SearchSpace, genes: Genes, accuracy: NDArray[np.floating], source: Predictor) -> Predictor:
    """`source` plus the linear function of all features that fits best what it leaves of `accuracy`.

    The fewer the points, the heavier the penalty that leaving one out asks for, and the nearer the result to `source`.

    Raises: UserError if there are too few points.
    """
    _require_enough(accuracy)
    source = _reading_bits(space, source)
    source = _in_units_of(source, max(source.std, float(accuracy.std())))
    features = space.encode(genes)
    slope, intercept = ridge(features, accuracy - source(features))
    return _plus_linear(source, slope, intercept)


def _reading_bits(space: SearchSpace, source: Predictor) -> Predictor:
    """The same predictor with the bits among its inputs, at weight zero if they were not."""
    if source.quantized:
        return source
    first = np.zeros((*source.biases[0].shape, space.n_features), np.float32)
    first[..., space.architecture_features] = source.weights[0]
    return replace(source, weights=(first, *source.weights[1:]), quantized=True)


def _in_units_of(predictor: Predictor, std: float) -> Predictor:
    """The same predictor with another `std`; one that is too small would need weights beyond float16."""
    ratio = np.float32(predictor.std / std)
    weights = (*predictor.weights[:-1], predictor.weights[-1] * ratio)
    biases = (*predictor.biases[:-1], predictor.biases[-1] * ratio)
    return replace(predictor, weights=weights, biases=biases, std=std)


def _plus_linear(source: Predictor, slope: NDArray[np.float64], intercept: float) -> Predictor:
    """`source`, of one network, plus `slope` @ features + `intercept`, as a predictor of the same form.

    One more unit in each hidden layer carries the sum on, raised by a whole number that keeps it from ReLU's zero.
    """
    slope = slope / source.std
    raised = float(np.ceil(np.maximum(-slope, 0).sum()))
    weights, biases = [], []
    for number, ((weight,), (bias,)) in enumerate(zip(source.weights, source.biases, strict=True)):
        is_first, is_last = number == 0, number == len(source.weights) - 1
        carried = np.zeros((len(weight), 0 if is_first else 1), np.float32)
        wide = np.concatenate([weight, carried], axis=1)
        if is_last:
            wide[0, -1] = 1.0
            bias = bias - np.float32(raised)
        else:
            unit = np.zeros((1, wide.shape[1]), np.float32)
            unit[0] = slope if is_first else np.append(np.zeros(weight.shape[1]), 1.0)
            wide, bias = np.concatenate([wide, unit]), np.append(bias, np.float32(raised if is_first else 0.0))
        weights.append(wide[None])
        biases.append(bias[None].astype(np.float32))
    return replace(source, weights=tuple(weights), biases=tuple(biases), mean=source.mean + intercept, metrics={})


def mean_of(first: Predictor, second: Predictor) -> Predictor:
    """The mean of all networks of two predictors of one space; hidden layers are filled up with idle units."""
    std = max(first.std, second.std)
    first, second = _in_units_of(first, std), _in_units_of(second, std)
    joined_weights, joined_biases = [], []
    n_in = first.weights[0].shape[2]
    for a, b, a_bias, b_bias in zip(first.weights, second.weights, first.biases, second.biases, strict=True):
        n_out = max(a.shape[1], b.shape[1])
        joined_weights.append(np.concatenate([_padded(each, n_out, n_in) for each in (a, b)]))
        joined_biases.append(np.concatenate([_padded(each, n_out) for each in (a_bias, b_bias)]))
        n_in = n_out
    shares = np.array([len(first.biases[0]), len(second.biases[0])]) / len(joined_biases[0])
    mean = float(shares @ (first.mean, second.mean))
    return replace(first, weights=tuple(joined_weights), biases=tuple(joined_biases), mean=mean, metrics={})


def _padded(array: NDArray[np.float32], *shape: int) -> NDArray[np.float32]:
    """The array of every member with zeros behind, up to `shape`."""
    return np.pad(array, [(0, 0), *((0, n - had) for n, had in zip(shape, array.shape[1:], strict=True))])


def score(predicted: NDArray[np.floating], measured: NDArray[np.floating]) -> dict[str, float]:
    """Pairwise accuracy, Kendall tau, mean absolute error (in points of accuracy) and the number of points."""
    return {
        "points": float(len(measured)),
        "pairwise_accuracy": pairwise_accuracy(predicted, measured),
        "kendall_tau": kendall_tau(predicted, measured),
        "mean_absolute_error_points": 100 * float(np.abs(predicted - measured).mean()),
    }


def _require_enough(accuracy: NDArray[np.floating]) -> None:
    if len(accuracy) < FEWEST_POINTS:
        raise UserError(f"expected at least {FEWEST_POINTS} points to fit a predictor, got {len(accuracy)}")


def _layers(n_inputs: int, seed: int) -> list[nn.Linear]:
    torch.manual_seed(seed)
    sizes = (n_inputs, *HIDDEN, 1)
    return [nn.Linear(a, b) for a, b in pairwise(sizes)]


def _forward(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    for layer in layers[:-1]:
        x = layer(x).relu()
    return layers[-1](x)[:, 0]


def _train(
    space: SearchSpace,
    layers: list[nn.Linear],
    features: NDArray[np.float32],
    accuracy: NDArray[np.floating],
    settings: FitSettings,
    epochs: int,
    learning_rate: float,
    *,
    quantized: bool,
) -> Predictor:
    _require_enough(accuracy)
    mean, std = float(accuracy.mean()), float(accuracy.std()) or 1.0
    x = torch.from_numpy(features)
    y = torch.from_numpy(((accuracy - mean) / std).astype(np.float32))
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=settings.weight_decay)
    generator = torch.Generator().manual_seed(settings.seed)
    per_epoch = max(1, len(x) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).tensor_split(per_epoch):
            optimizer.zero_grad()
            loss = (_forward(layers, x[batch]) - y[batch]).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
    weights = tuple(layer.weight.detach().numpy()[None].copy() for layer in layers)
    biases = tuple(layer.bias.detach().numpy()[None].copy() for layer in layers)
    return Predictor(space, weights, biases, mean, std, quantized)
