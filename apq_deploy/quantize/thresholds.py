"""Clip thresholds of quantizers: the v that minimises KL divergence or squared error, a percentile, or the maximum.

Quantizers meant here, for b bits and clip v:
signed (weights, activations that can be negative): s = v / (2**(b-1) - 1), codes from -(2**(b-1) - 1) to 2**(b-1) - 1;
unsigned (activations after ReLU6): s = v / (2**b - 1), codes from 0 to 2**b - 1.
On magnitudes both are the same: codes 0 to `steps`, with steps = v / s. Source: APQ (CVPR 2020), section 4.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.quantize.histogram import Histogram

ClipMethod = Literal["kl", "mse", "max", "percentile"]
TensorKind = Literal["weight", "activation"]

METHODS: tuple[ClipMethod, ...] = ("kl", "mse", "max", "percentile")
BINS_PER_LEVEL = 4
"""KL: the least number of bins per level, at every candidate. With one bin per level nothing seems to be lost."""
KL_WEIGHT_BITS = 4
"""The most bits at which KL is the default for weights."""
KL_FLOOR = 0.99
"""KL: the share of the values that no candidate clips."""
PERCENTILE = 99.99
DEAD_MAX = 2.0**-40
"""A tensor whose magnitudes all lie below this counts as dead: scales of weight and input, multiplied, would leave
the normal float32 numbers."""
DEAD_CLIP = 1.0
"""The clip of a dead tensor. Every code is 0 whatever the clip; 1 keeps the scale an ordinary number."""

_BLOCK = 1 << 15
"""(candidate, level) pairs looked at together: the temporaries stay in a core's second-level cache."""
_ROUNDING = 1e-12
"""More than the sums' rounding, relative to their terms: candidates no further apart count as equal."""


def default_method(kind: TensorKind, bits: int) -> ClipMethod:
    """The method that calibration uses unless told otherwise: "kl" for weights of up to 4 bits, else "mse".

    KL is the paper's choice for weights. Where it loses by measurement the default is squared error: weights of
    more bits, on which KL cuts heavy tails too hard, and activations, for which the paper names no criterion.
    Raises: UserError where bits are out of range.
    Source: docs/calibration.md, section "Which method when".
    """
    _steps(bits, signed=kind == "weight")
    return "kl" if kind == "weight" and bits <= KL_WEIGHT_BITS else "mse"


def choose_clip(
    histogram: Histogram,
    bits: int,
    method: ClipMethod,
    *,
    drop_zeros: bool = False,
    percentile: float = PERCENTILE,
) -> float:
    """The clip v, 0 < v <= histogram.max_abs, of a quantizer of `bits` bits, signed as the histogram is.

    drop_zeros: leave exact zeros out of the distribution (KL, percentile), as calibration does after ReLU6, where
    zero has a code of its own and its many values would drown the rest. Squared error and maximum do not change.
    percentile: of the magnitudes, for that method only.
    A dead tensor (all magnitudes below `DEAD_MAX`) gets `DEAD_CLIP`; a tensor whose values other than zero all share
    one bin gets its maximum. "kl" on too few values gives the clip of "mse": see `applied_method`.
    Raises: UserError where the histogram is empty, or bits, method or percentile are out of range.
    Source: APQ (CVPR 2020), section 4 (KL); docs/calibration.md for the sums.
    """
    steps = _steps(bits, signed=histogram.signed)
    method = applied_method(histogram, bits, method)
    if not 0 < percentile <= 100:
        raise UserError(f"expected a percentile above 0 and up to 100, got {percentile}; use {PERCENTILE}")
    if histogram.count == 0:
        raise UserError("expected a histogram with values, got an empty one; calibrate on at least one batch")
    if histogram.max_abs < DEAD_MAX:
        return DEAD_CLIP
    used = histogram.counts[: histogram.used_bins]
    if method == "max" or np.count_nonzero(used) == 1:
        return histogram.max_abs
    distribution = used.copy()
    if not drop_zeros:
        distribution[0] += histogram.zero_count
    if method == "percentile":
        edge = _quantile(distribution, percentile / 100)
    elif method == "mse":
        errors = squared_errors(used, steps, histogram.max_count)
        edge = 1 + _last_smallest(errors, _ROUNDING * errors.max())
    else:
        merged, smallest = _kl_grid(distribution, histogram.count - histogram.zero_count, steps + 1)
        coarse = np.add.reduceat(distribution, np.arange(0, len(distribution), merged))
        edge = merged * (smallest + _last_smallest(kl_divergences(coarse, steps + 1, smallest), _ROUNDING))
    return min(edge * histogram.bin_width, histogram.max_abs)


def weight_clip(weights: NDArray[np.float32], bits: int, method: ClipMethod) -> float:
    """The clip v > 0 of a whole weight tensor, symmetric; weights: any shape, float32.

    The tensor is divided by its largest magnitude first, so the clip of c * weights is c times the clip of weights.
    Raises: UserError where weights are empty, NaN or infinite, or bits or method are out of range.
    """
    flat = np.ravel(np.asarray(weights, dtype=np.float32))
    largest = float(np.abs(flat).max()) if flat.size else 0.0
    scalable = math.isfinite(largest) and largest >= DEAD_MAX
    histogram = Histogram(signed=True)
    histogram.update(flat / np.float32(largest) if scalable else flat)
    clip = choose_clip(histogram, bits, method)
    return clip * largest if scalable else clip


def applied_method(histogram: Histogram, bits: int, method: ClipMethod) -> ClipMethod:
    """The method that `choose_clip` applies: `method`, but "mse" for "kl" where the tensor is too small for KL.

    Too small: fewer than 2 * levels**2 values other than zero. Cutting one of n values costs up to about v^2 / n a
    value, rounding v^2 / (12 steps^2): below that number a single cut value, which KL hardly notices, can outweigh
    the rounding of all others. Squared error weighs both rightly on any number of values.
    Raises: UserError where bits or method are out of range, or the histogram has under 8 bins per level for "kl" (the
        range, a power of two, may be nearly twice the maximum).
    """
    if method not in METHODS:
        raise UserError(f"expected a clip method out of {', '.join(METHODS)}, got {method!r}")
    levels = _steps(bits, signed=histogram.signed) + 1
    needed = 2 * BINS_PER_LEVEL * levels
    if method == "kl" and histogram.bins < needed:
        raise UserError(f"expected at least {needed} bins for KL at {bits} bits, got {histogram.bins}; use 2048")
    too_small = histogram.count - histogram.zero_count < 2 * levels**2
    return "mse" if method == "kl" and too_small else method


def kl_divergences(counts: NDArray[np.int64], levels: int, smallest: int) -> NDArray[np.float64]:
    """KL divergence, in nats, of each clip candidate: entry j is the clip at the upper edge of bin smallest + j - 1.

    counts: (n_bins,), occupancy of equal bins from 0; the candidates end with the upper edge of the last bin.
    levels: number of codes of a magnitude, zero included. smallest: from `levels` to n_bins.
    P is the distribution with all beyond the clip put in its last bin. Q gives each level the count that P had in
    its rounding cell before that, spread evenly over the bins of the cell that P occupies. Infinite where values
    beyond the clip fall in a cell that Q leaves empty.
    Each candidate's sum needs only three prefix sums at the edges of its cells: O(levels) in place of O(n_bins).
    Source: APQ (CVPR 2020), section 4, for the criterion; docs/calibration.md for the sums.
    """
    assert 2 <= levels <= smallest <= len(counts)
    steps = levels - 1
    values = counts.astype(np.float64)
    total = values.sum()
    mass_below = _prefix_sums(values)
    occupied_below = _prefix_sums((values > 0).astype(np.float64))
    own_below = _prefix_sums(_x_log_x(values))

    candidates = np.arange(smallest, len(counts) + 1)
    last = values[candidates - 1]
    kept = mass_below[candidates]
    beyond = total - kept
    cross = np.empty(len(candidates))
    rows = max(1, _BLOCK // levels)
    # A bin lies in the cell its centre rounds to: for the clip at edge c, level k starts at the first bin i with
    # i + 1/2 >= (k - 1/2) c / steps.
    odd = np.arange(1, 2 * steps, 2)
    for start in range(0, len(candidates), rows):
        block = slice(start, start + rows)
        ends = candidates[block, None]
        edges = np.empty((len(ends), levels + 1), np.intp)
        edges[:, 0] = 0
        edges[:, 1:levels] = (odd * ends + (steps - 1)) // (2 * steps)
        edges[:, levels:] = ends
        mass = np.diff(mass_below.take(edges), axis=1)
        occupied = np.diff(occupied_below.take(edges), axis=1)
        occupied[:, -1] += (last[block] == 0) & (beyond[block] > 0)
        # Counts are whole numbers, so 1 stands in for 0 only where the product below is 0 or the entry is infinite.
        log_q = np.log(np.maximum(mass, 1) / np.maximum(occupied, 1))
        cross[block] = (mass * log_q).sum(axis=1) + beyond[block] * log_q[:, -1]
        cross[block][(mass[:, -1] == 0) & (beyond[block] > 0)] = -np.inf
    own = own_below[candidates] - _x_log_x(last) + _x_log_x(last + beyond)
    return (own - cross) / total - np.log(total) + np.log(np.maximum(kept, 1))


def squared_errors(counts: NDArray[np.int64], steps: int, at_end: int = 0) -> NDArray[np.float64]:
    """Squared error, in bin widths squared and summed over values, of each clip: entry j is the upper edge of bin j.

    counts: (n_bins,), occupancy of equal bins from 0, taken as evenly spread within a bin. steps: largest code.
    at_end: how many of the last bin's values lie at its very end: what ReLU6 has cut is no even spread.
    With f the density, v the clip, s = v / steps and H the integral from 0 of the cumulative count,
    sum (x - Q(x))^2 = sum (x - v)^2 - 2 s sum_{k=1..steps} H((k - 1/2) s), exactly: docs/calibration.md.
    """
    values = counts.astype(np.float64)
    values[-1] -= at_end
    below = _prefix_sums(values)
    integral = _prefix_sums(below[:-1] + values / 2)
    lower = np.arange(len(values))
    clips = np.arange(1, len(values) + 1, dtype=np.float64)
    first_moment = (values * (lower + 0.5)).sum()
    second_moment = (values * (lower**2 + lower + 1 / 3)).sum()
    saved = np.empty(len(values))
    rows = max(1, _BLOCK // steps)
    fractions = (np.arange(steps) + 0.5) / steps
    for start in range(0, len(values), rows):
        edges = clips[start : start + rows, None] * fractions
        bins = edges.astype(np.intp)
        inside = edges - bins
        heights = integral.take(bins) + inside * (below.take(bins) + inside / 2 * values.take(bins))
        saved[start : start + rows] = heights.sum(axis=1)
    to_clip = second_moment - 2 * clips * first_moment + clips**2 * values.sum()
    return to_clip - 2 * clips / steps * saved + at_end * (len(values) - clips) ** 2


def _steps(bits: int, *, signed: bool) -> int:
    """Largest code of a magnitude."""
    if not 2 <= bits <= 8:
        raise UserError(f"expected 2 to 8 bits, got {bits}")
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def _kl_grid(counts: NDArray[np.int64], samples: int, levels: int) -> tuple[int, int]:
    """How many bins, a power of two, to merge into one for KL, and the smallest candidate, in merged bins.

    About sqrt(samples) bins remain, more where the smallest candidate would have under 4 bins per level. That
    candidate clips no value below the 99th percentile.
    """
    floor = int(np.searchsorted(np.cumsum(counts), KL_FLOOR * counts.sum())) + 1
    most = min(len(counts) / math.sqrt(samples), floor / (BINS_PER_LEVEL * levels))
    merged = 1 << max(0, math.floor(math.log2(most)))
    return merged, max(-(-floor // merged), BINS_PER_LEVEL * levels)


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    """Where, in bins, the cumulative count reaches `share`, values taken as evenly spread within a bin."""
    cumulative = np.cumsum(counts)
    goal = share * cumulative[-1]
    index = int(np.searchsorted(cumulative, goal))
    below = cumulative[index] - counts[index]
    return index + float((goal - below) / counts[index])


def _last_smallest(losses: NDArray[np.float64], tolerance: float) -> int:
    """Index of the smallest loss; of those equal within `tolerance` the last, which clips least."""
    return int(np.flatnonzero(losses <= losses.min() + tolerance)[-1])


def _prefix_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n + 1,): entry i is the sum of the first i values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """x log x, which is 0 at 0; for whole numbers."""
    return values * np.log(np.maximum(values, 1))
