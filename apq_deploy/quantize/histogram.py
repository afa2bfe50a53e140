"""Streaming histogram of magnitudes: what calibration keeps of a tensor, whatever the number of batches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError

CHUNK = 1 << 15
"""Values binned at a time: the temporaries of one chunk stay in a core's second-level cache."""


class Histogram:
    """Counts of |x| (signed tensors) or x (unsigned) in equal bins from 0 to a power of two.

    Bin i holds i * bin_width < |x| <= (i + 1) * bin_width; exact zeros are counted apart in `zero_count`. The range
    is the smallest power of two that holds the largest magnitude so far. When a batch goes beyond it, the range
    doubles and bins merge in pairs, which moves no value to a wrong bin: the counts after any batches, in any order,
    equal those of all values given at once. Memory: `bins` integers, and the temporaries of one chunk.

    counts: (bins,) int64. max_abs: the largest magnitude. max_count: how many values have it, which after ReLU6 are
    those that the 6 has cut.
    """

    def __init__(self, bins: int = 2048, *, signed: bool) -> None:
        """An empty histogram. bins: a power of two, so that bin widths are powers of two and binning is exact.

        Raises: UserError where bins is not a power of two of at least 2.
        """
        if bins < 2 or bins & (bins - 1):
            raise UserError(f"expected a power of two of at least 2 as the number of bins, got {bins}; use 2048")
        self.bins = bins
        self.signed = signed
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.zero_count = 0
        self.max_abs = 0.0
        self.max_count = 0
        self._exponent: int | None = None  # the range is 2 ** exponent; None until a value other than zero came

    @property
    def count(self) -> int:
        """Number of values seen, zeros included."""
        return self.zero_count + int(self.counts.sum())

    @property
    def bin_width(self) -> float:
        """Width of a bin, a power of two, in the tensor's own unit; 0 as long as no value other than zero came."""
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent) / self.bins

    @property
    def used_bins(self) -> int:
        """Number of bins up to and with the one of the largest magnitude."""
        return 0 if self._exponent is None else math.ceil(self.max_abs / self.bin_width)

    def update(self, values: NDArray[np.float32]) -> None:
        """Nothing; counts one batch. values: any shape, float32; an empty batch changes nothing.

        Raises: UserError where a value is NaN or infinite, or negative in an unsigned histogram; the histogram is
            then as it was before.
        """
        flat = np.ravel(np.asarray(values, dtype=np.float32))
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(_not_finite(flat))
        if low < 0 and not self.signed:
            raise UserError(
                f"expected values of at least 0 for an unsigned histogram, got {low:.6g}; "
                "calibrate before a ReLU6 with signed=True, or after it"
            )
        largest = max(high, -low)
        if largest > 0:
            self._hold(largest)
        for start in range(0, flat.size, CHUNK):
            self._count(flat[start : start + CHUNK])

    def _hold(self, largest: float) -> None:
        """Widen the range until it holds `largest`."""
        if largest > self.max_abs:
            self.max_abs, self.max_count = largest, 0
        fraction, exponent = math.frexp(largest)  # largest = fraction * 2 ** exponent, 0.5 <= fraction < 1
        if fraction == 0.5:
            exponent -= 1
        if self._exponent is None:
            self._exponent = exponent
        elif exponent > self._exponent:
            merged = 1 << min(exponent - self._exponent, self.bins.bit_length() - 1)
            sums = self.counts.reshape(-1, merged).sum(axis=1)
            self.counts = np.zeros(self.bins, np.int64)
            self.counts[: len(sums)] = sums
            self._exponent = exponent

    def _count(self, chunk: NDArray[np.float32]) -> None:
        """Add a chunk whose values the range holds."""
        if self._exponent is None:
            self.zero_count += chunk.size
            return
        width = self.bin_width
        # Times a power of two is exact. Beyond these widths a float32 product could under- or overflow.
        scaled = chunk if 2.0**-100 <= width <= 1 else chunk.astype(np.float64)
        scaled = scaled * scaled.dtype.type(1 / width)
        if self.signed:
            np.abs(scaled, out=scaled)
        self.max_count += int(np.count_nonzero(scaled == self.max_abs / width))
        np.ceil(scaled, out=scaled)
        found = np.bincount(scaled.astype(np.intp), minlength=self.bins + 1)
        self.zero_count += int(found[0])
        self.counts += found[1:]


def _not_finite(flat: NDArray[np.float32]) -> str:
    """The message for values that are NaN or infinite."""
    nan, infinite = int(np.isnan(flat).sum()), int(np.isinf(flat).sum())
    return (
        f"expected finite values to calibrate on, got {nan} NaN and {infinite} infinite of {flat.size}; "
        "find the layer that made them, or train again from an earlier checkpoint"
    )
