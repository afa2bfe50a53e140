"""Latencies of layers that were not measured, from a subset that was: a design that spreads, and a smooth fit.

The fit is kernel ridge regression of the logarithm of the latency: a linear kernel carries the trend over sizes, a
Gaussian kernel what departs from it. It predicts between measured layers, not beyond them.
Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.7 and 5.4.2 (leave-one-out
residuals in closed form); Kennard and Stone, "Computer Aided Design of Experiments", Technometrics 1969 (the design).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.compare import ErrorStatistics, error_statistics
from hwmodels.cost import Cost
from hwmodels.errors import HardwareError
from hwmodels.hardware import Entry
from hwmodels.layers import Precision

FOLDS = 10
# Fewer points than this leave nothing to validate on.
LEAST_MEASURED = 20

_LENGTH_SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)
_NOISES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# Variance of the linear trend against that of the Gaussian part: large, so that the trend is hardly shrunk.
_TREND = 100.0


def layer_features(entries: Sequence[Entry]) -> NDArray[np.float64]:
    """What the latency of a layer can depend on: (n, 11). Sizes as logarithms to base 2, then bits and kind."""
    rows = [
        (
            layer.macs,
            layer.weights * precision.weight_bits,
            layer.in_channels * layer.in_size**2,
            layer.out_channels * layer.out_size**2,
            layer.in_channels // layer.groups,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.groups > 1,
            precision.weight_bits,
            precision.act_bits,
        )
        for layer, precision in entries
    ]
    features = np.array(rows, dtype=np.float64)
    features[:, :7] = np.log2(features[:, :7])
    return features


@dataclass(frozen=True, slots=True, eq=False)
class _Scaling:
    """Mean and deviation of each feature over the entries that it was made from; constant features stay at zero."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float64]) -> _Scaling:
        deviation = features.std(axis=0)
        return cls(features.mean(axis=0), np.where(deviation > 1e-12, deviation, 1.0))

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return (features - self.mean) / self.deviation


def fitted_kind(entry: Entry) -> tuple[bool, Precision]:
    """What entries are fitted by: whether the layer is depthwise, and the precision."""
    return entry[0].is_depthwise, entry[1]


def designed_subset(entries: Sequence[Entry], size: int) -> list[Entry]:
    """`size` different entries that spread over all of them: each next one is the farthest from those chosen.

    Starts at the entries with the most work, one for every precision of depthwise layers and of others, since only such
    are fitted. Equal entries give equal subsets.

    Raises: HardwareError where fewer entries than `size` are there, or too few are asked for to fit and validate.
    """
    unique = list(dict.fromkeys(entries))
    kinds: dict[tuple[bool, Precision], int] = {}
    for at, entry in enumerate(unique):
        largest = kinds.setdefault(fitted_kind(entry), at)
        if entry[0].macs > unique[largest][0].macs:
            kinds[fitted_kind(entry)] = at
    least = max(LEAST_MEASURED, len(kinds))
    if not least <= size <= len(unique):
        raise HardwareError(
            f"a subset must have from {least} to {len(unique)} entries, got {size}; choose a size in between"
        )
    raw = layer_features(unique)
    points = _Scaling.of(raw)(raw)
    chosen = list(kinds.values())
    distance = np.full(len(unique), np.inf)
    for each in chosen[:-1]:
        distance = np.minimum(distance, ((points - points[each]) ** 2).sum(axis=1))
    while len(chosen) < size:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen] = -np.inf
        chosen.append(int(distance.argmax()))
    return [unique[at] for at in sorted(chosen)]


def _kernel(left: NDArray[np.float64], right: NDArray[np.float64], length_scale: float) -> NDArray[np.float64]:
    """Gaussian plus linear kernel, with a constant: (n_left, n_right)."""
    products = left @ right.T
    squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * products
    return np.exp(-np.maximum(squared, 0.0) / (2 * length_scale**2)) + _TREND * (1 + products)


def _chosen_kernel(points: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """Length scale and noise with the least leave-one-out error on these points."""
    best, found = np.inf, (_LENGTH_SCALES[0], _NOISES[0])
    for length_scale in _LENGTH_SCALES:
        values, vectors = np.linalg.eigh(_kernel(points, points, length_scale))
        rotated = vectors.T @ target
        for noise in _NOISES:
            inverse = 1 / (np.maximum(values, 0.0) + noise)
            residual = (vectors @ (inverse * rotated)) / (vectors**2 @ inverse)
            error = float((residual**2).mean())
            if error < best:
                best, found = error, (length_scale, noise)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class LatencyFit:
    """A fit of latencies. `cross_validated` is its error on entries that it was not fitted on."""

    cross_validated: ErrorStatistics
    length_scale: float
    noise: float
    _scaling: _Scaling
    _points: NDArray[np.float64]
    _weights: NDArray[np.float64]
    _mean: float

    def predict_ms(self, entries: Sequence[Entry]) -> NDArray[np.float64]:
        """Latencies in ms: (n,)."""
        points = self._scaling(layer_features(entries))
        return np.exp(_kernel(points, self._points, self.length_scale) @ self._weights + self._mean)


def _fitted(points: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    length_scale, noise = _chosen_kernel(points, target)
    kernel = _kernel(points, points, length_scale) + noise * np.eye(len(points))
    return length_scale, noise, np.asarray(np.linalg.solve(kernel, target), dtype=np.float64)


def fit_latency(measured: Mapping[Entry, Cost], rng: np.random.Generator) -> LatencyFit:
    """A fit of measured latencies, with the error of 10-fold cross-validation.

    The kernel is chosen again inside every fold, so the error holds the choice too. `rng` deals the folds.

    Raises: HardwareError for fewer measurements than can be validated.
    """
    if len(measured) < LEAST_MEASURED:
        raise HardwareError(
            f"a fit needs at least {LEAST_MEASURED} measured entries, got {len(measured)}; measure more layers"
        )
    entries = list(measured)
    features = layer_features(entries)
    scaling = _Scaling.of(features)
    points = scaling(features)
    latency_ms = np.array([measured[entry].latency_ms for entry in entries])
    target = np.log(latency_ms)
    predicted = np.empty_like(target)
    fold = rng.permutation(np.arange(len(entries)) % FOLDS)
    for each in range(FOLDS):
        train, held = fold != each, fold == each
        mean = float(target[train].mean())
        length_scale, _, weights = _fitted(points[train], target[train] - mean)
        predicted[held] = np.exp(_kernel(points[held], points[train], length_scale) @ weights + mean)
    mean = float(target.mean())
    length_scale, noise, weights = _fitted(points, target - mean)
    return LatencyFit(error_statistics(predicted, latency_ms), length_scale, noise, scaling, points, weights, mean)
