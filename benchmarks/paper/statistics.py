"""Means with their intervals, and what noise in labels allows a perfect predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of `n` values and the half width of its 95 % interval by Student's t (nan for a single value)."""

    mean: float
    half_width: float
    n: int

    @classmethod
    def of(cls, values: ArrayLike) -> Mean:
        found = np.asarray(values, float)
        n = len(found)
        error = float(found.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return cls(float(found.mean()), float(stats.t.ppf(0.975, n - 1)) * error if n > 1 else math.nan, n)

    def text(self, digits: int = 2) -> str:
        if math.isnan(self.half_width):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"

    def signed(self, digits: int = 2) -> str:
        return f"{self.mean:+.{digits}f} ± {self.half_width:.{digits}f}"


def bootstrap(values: ArrayLike, statistic: str, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a statistic of one sample: `std` or `mean`."""
    found = np.asarray(values, float)
    drawn = np.random.default_rng(seed).choice(found, (2000, len(found)))
    each = drawn.std(axis=1, ddof=1) if statistic == "std" else drawn.mean(axis=1)
    low, high = np.quantile(each, [0.025, 0.975])
    return float(low), float(high)


def noise_std(repeats: Sequence[NDArray[np.float64]]) -> float:
    """Standard deviation within networks, pooled: each array holds the labels of one network."""
    squares = sum(float(((labels - labels.mean()) ** 2).sum()) for labels in repeats)
    return math.sqrt(squares / sum(len(labels) - 1 for labels in repeats))


def pairwise_ceiling(label_std: float, noise: float) -> float:
    """Pairwise accuracy on noisy labels of a predictor that knows the truth, both being normal.

    A pair's true difference and its label's difference correlate by sqrt(reliability); the chance that they have the
    same sign follows from the bivariate normal distribution (Sheppard, 1899).
    """
    reliability = max(0.0, 1.0 - (noise / label_std) ** 2)
    return 0.5 + math.asin(math.sqrt(reliability)) / math.pi
