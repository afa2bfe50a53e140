"""Histograms and clips: fast sums against plain loops, streaming against one shot, guards."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.quantize.histogram import CHUNK, Histogram
from apq_deploy.quantize.thresholds import (
    DEAD_CLIP,
    DEAD_MAX,
    METHODS,
    ClipMethod,
    applied_method,
    choose_clip,
    default_method,
    kl_divergences,
    squared_errors,
    weight_clip,
)

BITS = range(2, 9)

no_deadline = settings(deadline=None)  # a busy machine may stall any example


def kl_by_loop(counts: NDArray[np.int64], levels: int, smallest: int) -> NDArray[np.float64]:
    """What kl_divergences gives, written as the definition reads, bin by bin."""
    steps = levels - 1
    divergences = []
    for clip in range(smallest, len(counts) + 1):
        p = [int(count) for count in counts[:clip]]
        p[-1] += int(counts[clip:].sum())
        # The level a bin's centre rounds to, in whole numbers: floor((i + 1/2) steps / clip + 1/2).
        level = [((2 * i + 1) * steps + clip) // (2 * clip) for i in range(clip)]
        mass, occupied = [0] * levels, [0] * levels
        for i in range(clip):
            mass[level[i]] += int(counts[i])
            occupied[level[i]] += p[i] > 0
        divergence = 0.0
        for i in range(clip):
            if p[i] > 0:
                q = mass[level[i]] / occupied[level[i]] / max(1, sum(mass))
                share = p[i] / sum(p)
                divergence += share * math.log(share / q) if q > 0 else math.inf
        divergences.append(divergence)
    return np.array(divergences)


def quantize(values: NDArray[np.float32], clip: float, bits: int, signed: bool) -> NDArray[np.float64]:
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    scale = clip / steps
    return np.clip(np.rint(values.astype(np.float64) / scale), -steps if signed else 0, steps) * scale


def squared_error(values: NDArray[np.float32], clip: float, bits: int, signed: bool) -> float:
    return float(((values - quantize(values, clip, bits, signed)) ** 2).sum())


def histogram_of(values: NDArray[np.float32], signed: bool, bins: int = 2048) -> Histogram:
    histogram = Histogram(bins, signed=signed)
    histogram.update(values)
    return histogram


def draw(kind: str, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if kind == "gauss":
        return rng.normal(size=count).astype(np.float32)
    if kind == "laplace":
        return rng.laplace(size=count).astype(np.float32)
    if kind == "student":
        return rng.standard_t(3, size=count).astype(np.float32)
    assert kind == "relu6"
    return np.clip(rng.normal(0, 2, size=count), 0, 6).astype(np.float32)


def same(left: Histogram, right: Histogram) -> bool:
    return (
        np.array_equal(left.counts, right.counts)
        and left.bin_width == right.bin_width
        and (left.zero_count, left.max_abs, left.max_count) == (right.zero_count, right.max_abs, right.max_count)
    )


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches = st.lists(st.lists(floats, max_size=12), min_size=1, max_size=6)
gappy_counts = st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 1000]), min_size=8, max_size=48)


# Histogram


def test_bins_by_hand() -> None:
    histogram = histogram_of(np.float32([0, -0.0, 0.5, -0.6, 1, 3, -4, 4]), signed=True, bins=8)
    assert histogram.bin_width == 0.5  # range 4, which holds 4 itself
    assert histogram.counts.tolist() == [1, 2, 0, 0, 0, 1, 0, 2]
    assert (histogram.count, histogram.zero_count, histogram.max_abs, histogram.max_count) == (8, 2, 4.0, 2)
    histogram.update(np.float32([4.5]))
    assert histogram.bin_width == 1.0
    assert histogram.counts.tolist() == [3, 0, 1, 2, 1, 0, 0, 0]
    assert (histogram.used_bins, histogram.max_abs, histogram.max_count) == (5, 4.5, 1)


@given(batches, st.booleans(), st.randoms(use_true_random=False))
@no_deadline
def test_streaming_in_any_order_equals_one_shot(values, signed, random) -> None:
    arrays = [np.array(batch, np.float32) if signed else np.abs(np.array(batch, np.float32)) for batch in values]
    whole = histogram_of(np.concatenate(arrays), signed, bins=64)
    random.shuffle(arrays)
    streamed = Histogram(64, signed=signed)
    for array in arrays:
        streamed.update(array)
    assert same(whole, streamed)
    assert whole.count == sum(map(len, values))


@given(st.lists(floats, min_size=1, max_size=40))
@no_deadline
def test_every_value_lies_in_its_bin(values) -> None:
    magnitudes = np.abs(np.array(values, np.float32)).astype(np.float64)
    histogram = histogram_of(np.array(values, np.float32), signed=True, bins=32)
    expected = np.zeros(32, np.int64)
    for magnitude in magnitudes[magnitudes > 0]:
        expected[math.ceil(magnitude / histogram.bin_width) - 1] += 1
    assert np.array_equal(histogram.counts, expected)
    assert histogram.zero_count == int((magnitudes == 0).sum())
    assert histogram.max_abs == magnitudes.max()
    assert histogram.max_abs <= histogram.bin_width * 32 < 2 * histogram.max_abs or histogram.max_abs == 0


def test_batches_larger_than_a_chunk_and_any_layout() -> None:
    values = np.random.default_rng(3).normal(size=(4, CHUNK // 2 + 17)).astype(np.float32)
    whole = histogram_of(values, signed=True)
    assert same(whole, histogram_of(values.T, signed=True))
    # Negated, np.histogram's bins [a, b) become ours, which hold their upper edge and not their lower.
    expected, _ = np.histogram(-np.abs(values), bins=whole.bins, range=(-whole.bins * whole.bin_width, 0))
    assert np.array_equal(whole.counts, expected[::-1])


def test_memory_does_not_grow_with_batches() -> None:
    histogram = Histogram(signed=True)
    rng = np.random.default_rng(0)
    sizes = set()
    for scale in (1, 3, 1000, 1e-6, 1e6):
        histogram.update((scale * rng.normal(size=1000)).astype(np.float32))
        sizes.add(histogram.counts.nbytes)
    assert sizes == {2048 * 8}


def test_empty_batch_and_zeros() -> None:
    histogram = Histogram(signed=False)
    histogram.update(np.zeros((0, 3), np.float32))
    assert histogram.count == 0
    histogram.update(np.zeros(5, np.float32))
    assert (histogram.count, histogram.zero_count, histogram.max_abs, histogram.bin_width) == (5, 5, 0.0, 0.0)
    histogram.update(np.ones(1, np.float32))
    assert (histogram.count, histogram.zero_count, histogram.counts.sum()) == (6, 5, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    values = np.float32([1, 2, bad])
    histogram = histogram_of(np.float32([1, 2]), signed=True)
    with pytest.raises(UserError, match=r"finite values.* of 3"):
        histogram.update(values)
    assert same(histogram, histogram_of(np.float32([1, 2]), signed=True))
    with pytest.raises(UserError, match="finite"):
        weight_clip(values, 4, "kl")


def test_negative_in_unsigned_and_wrong_bins_are_refused() -> None:
    with pytest.raises(UserError, match=r"at least 0.*got -1"):
        Histogram(signed=False).update(np.float32([2, -1]))
    for bins in (0, 1, 100, -8):
        with pytest.raises(UserError, match="power of two"):
            Histogram(bins, signed=True)


# KL


def test_kl_by_hand() -> None:
    # Three levels. Clip at edge 4: cells of 1, 2 and 1 bins; P = [4, 1, 1, 2] / 8 = Q, so nothing is lost.
    # Clip at edge 3: cells of 1, 1 and 1 bins; P = [4, 1, 3] / 8, Q = [4, 1, 1] / 6.
    expected = 0.5 * math.log(3 / 4) + 0.125 * math.log(3 / 4) + 0.375 * math.log(9 / 4)
    assert kl_divergences(np.array([4, 1, 1, 2]), 3, 3) == pytest.approx([expected, 0.0], abs=1e-12)


def test_kl_is_infinite_where_clipped_values_meet_an_empty_cell() -> None:
    divergences = kl_divergences(np.array([5, 0, 0, 0, 3]), 3, 3)
    assert np.isinf(divergences[:2]).all()
    assert divergences[2] == pytest.approx(0, abs=1e-12)


@given(gappy_counts, st.data())
@settings(max_examples=150, deadline=None)
def test_kl_equals_the_plain_loop(counts, data) -> None:
    array = np.array(counts, np.int64)
    array[data.draw(st.integers(0, len(array) - 1))] += 1
    levels = data.draw(st.integers(2, min(9, len(array))))
    smallest = data.draw(st.integers(levels, len(array)))
    fast, loop = kl_divergences(array, levels, smallest), kl_by_loop(array, levels, smallest)
    assert np.array_equal(np.isinf(fast), np.isinf(loop))
    assert fast == pytest.approx(loop, abs=1e-11)
    assert loop[fast.argmin()] <= loop.min() + 1e-11


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_kl_argmin_equals_the_plain_loop_at_every_width(bits: int, signed: bool) -> None:
    rng = np.random.default_rng(bits)
    levels = 2 ** (bits - 1) if signed else 2**bits
    counts = histogram_of(draw("laplace" if signed else "relu6", 3000, rng), signed, bins=512).counts
    counts = counts[: np.flatnonzero(counts)[-1] + 1]
    smallest = max(levels, len(counts) - 40)
    fast, loop = kl_divergences(counts, levels, smallest), kl_by_loop(counts, levels, smallest)
    assert fast == pytest.approx(loop, abs=1e-11)
    assert fast.argmin() == loop.argmin()


def test_kl_never_negative_and_zero_without_loss() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 300)
    divergences = kl_divergences(counts, 16, 16)
    assert divergences.min() >= -1e-12
    assert kl_divergences(counts[:16], 16, 16) == pytest.approx([0], abs=1e-12)  # about one bin per level


def test_kl_candidates_start_above_the_floors() -> None:
    values = draw("student", 200_000, np.random.default_rng(0))
    for bits in BITS:
        clip = choose_clip(histogram_of(values, True), bits, "kl")
        assert (np.abs(values) <= clip).mean() >= 0.99
        # A grid too coarse leaves the maximum as the only candidate; these tails are never worth their levels.
        assert clip < 0.6 * np.abs(values).max()


def test_dropping_zeros_keeps_the_cut_of_relu6() -> None:
    values = np.clip(np.random.default_rng(0).normal(-2, 3, 500_000), 0, 6).astype(np.float32)
    assert (values == 0).mean() > 0.7
    histogram = histogram_of(values, signed=False)
    with_zeros, without = (choose_clip(histogram, 4, "kl", drop_zeros=drop) for drop in (False, True))
    assert with_zeros < without <= 6
    assert squared_error(values, without, 4, False) < squared_error(values, with_zeros, 4, False)


# Squared error


def test_squared_error_by_hand() -> None:
    # One value, evenly spread over (1, 2]. Steps 1, clip 1: all at code 1: the mean of (x - 1)^2 there is 1/3.
    # Clip 2: the boundary is at 1, so all at 2: the mean of (x - 2)^2 is 1/3.
    assert squared_errors(np.array([0, 1]), 1) == pytest.approx([1 / 3, 1 / 3])
    # Steps 2, clip 2: codes 1 and 2 at 1 and 2, boundary 1.5: twice the integral of t^2 to 1/2.
    assert squared_errors(np.array([0, 1]), 2)[1] == pytest.approx(1 / 12)
    # At the very end of the bin: exact with clip 2, one bin width off with clip 1.
    assert squared_errors(np.array([0, 1]), 1, at_end=1) == pytest.approx([1, 0])


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.integers(1, 15))
@no_deadline
def test_squared_error_equals_a_fine_sum(counts, steps) -> None:
    fine = 2000  # points per bin, at the centres of equal parts: the sum of an even spread up to O(1 / fine)
    points = (np.arange(len(counts) * fine) + 0.5) / fine
    weights = np.repeat(np.array(counts) / fine, fine)
    expected = [
        (weights * (points - np.clip(np.rint(points * steps / clip), 0, steps) * clip / steps) ** 2).sum()
        for clip in range(1, len(counts) + 1)
    ]
    assert squared_errors(np.array(counts), steps) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["gauss", "laplace", "student", "relu6"])
def test_mse_clip_is_as_good_as_the_best_of_a_scan(bits: int, kind: str) -> None:
    signed = kind != "relu6"
    values = draw(kind, 4000, np.random.default_rng(bits))
    clip = choose_clip(histogram_of(values, signed), bits, "mse", drop_zeros=not signed)
    best = min(squared_error(values, float(v), bits, signed) for v in np.linspace(0.01, 1, 400) * np.abs(values).max())
    assert squared_error(values, clip, bits, signed) <= 1.02 * best


def test_more_bits_never_clip_more_nor_err_more() -> None:
    for kind in ("gauss", "laplace", "student", "relu6"):
        values = draw(kind, 50_000, np.random.default_rng(1))
        signed = kind != "relu6"
        histogram = histogram_of(values, signed)
        clips = [choose_clip(histogram, bits, "mse", drop_zeros=True) for bits in BITS]
        assert clips == sorted(clips)
        for method in METHODS:
            clips = [choose_clip(histogram, bits, method, drop_zeros=True) for bits in BITS]
            errors = [squared_error(values, clip, bits, signed) for clip, bits in zip(clips, BITS, strict=True)]
            assert errors == sorted(errors, reverse=True)


# Percentile, maximum, guards


def test_percentile_and_max() -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    histogram = histogram_of(values, True)
    for percentile in (50, 90, 99, 99.9, 99.99):
        clip = choose_clip(histogram, 8, "percentile", percentile=percentile)
        assert clip == pytest.approx(np.percentile(np.abs(values), percentile), abs=2 * histogram.bin_width)
    largest = float(np.abs(values).max())
    assert choose_clip(histogram, 8, "percentile", percentile=100) == largest
    assert choose_clip(histogram, 8, "max") == largest
    assert weight_clip(values, 3, "max") == largest


@given(st.lists(floats, min_size=1, max_size=60), st.sampled_from(BITS), st.sampled_from(METHODS), st.booleans())
@no_deadline
def test_clip_is_positive_and_at_most_the_maximum(values, bits, method, drop_zeros) -> None:
    array = np.array(values, np.float32)
    largest = float(np.abs(array).max())
    for signed in (True, False):
        histogram = histogram_of(array if signed else np.abs(array), signed)
        clip = choose_clip(histogram, bits, method, drop_zeros=drop_zeros)
        assert 0 < clip <= largest if largest >= DEAD_MAX else clip == DEAD_CLIP
    clip = weight_clip(array, bits, method)
    assert 0 < clip <= largest if largest >= DEAD_MAX else clip == DEAD_CLIP


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 1e-20, 0.1, -7.0])
def test_constant_and_dead_tensors(value: float, bits: int, method: ClipMethod) -> None:
    for size in (1, 40, 5000):
        array = np.full(size, value, np.float32)
        expected = DEAD_CLIP if abs(value) < DEAD_MAX else abs(float(np.float32(value)))
        assert weight_clip(array, bits, method) == expected
        histogram = histogram_of(np.abs(array), signed=False)
        assert choose_clip(histogram, bits, method, drop_zeros=True) == expected


@pytest.mark.parametrize("bits", BITS)
def test_tiny_tensors_use_squared_error_in_place_of_kl(bits: int) -> None:
    enough = 2 * (2 ** (bits - 1)) ** 2
    few, many = draw("gauss", enough - 1, np.random.default_rng(0)), draw("gauss", enough, np.random.default_rng(0))
    assert applied_method(histogram_of(few, True), bits, "kl") == "mse"
    assert applied_method(histogram_of(many, True), bits, "kl") == "kl"
    assert weight_clip(few, bits, "kl") == weight_clip(few, bits, "mse")
    for method in METHODS:
        if method != "kl":
            assert applied_method(histogram_of(few, True), bits, method) == method


@given(
    st.integers(0, 10_000),
    st.sampled_from(["gauss", "laplace", "student"]),
    st.sampled_from(METHODS),
    st.sampled_from(BITS),
    st.integers(-12, 12),
)
@settings(max_examples=40, deadline=None)
def test_scale_equivariance(seed, kind, method, bits, exponent) -> None:
    values = draw(kind, 2000, np.random.default_rng(seed))
    factor = 2.0**exponent
    scaled = (values * np.float32(factor)).astype(np.float32)
    assert weight_clip(scaled, bits, method) == weight_clip(values, bits, method) * factor
    clip = choose_clip(histogram_of(values, True), bits, method)
    assert choose_clip(histogram_of(scaled, True), bits, method) == clip * factor


@pytest.mark.parametrize("method", METHODS)
def test_scale_equivariance_by_any_factor(method: ClipMethod) -> None:
    # Another factor moves values by their rounding, so a few may change bins.
    values = draw("laplace", 20_000, np.random.default_rng(0))
    for bits in BITS:
        scaled = values * np.float32(1.7)
        assert weight_clip(scaled, bits, method) == pytest.approx(1.7 * weight_clip(values, bits, method), rel=2e-3)


def test_signs_do_not_matter() -> None:
    values = draw("gauss", 3000, np.random.default_rng(0))
    for bits in BITS:
        for method in METHODS:
            assert weight_clip(-values, bits, method) == weight_clip(values.reshape(30, 100), bits, method)


def test_wrong_calls_are_refused() -> None:
    histogram = histogram_of(np.float32([1, 2, 3]), True)
    for bits in (1, 9, 0):
        with pytest.raises(UserError, match="2 to 8 bits"):
            choose_clip(histogram, bits, "max")
        with pytest.raises(UserError, match="2 to 8 bits"):
            default_method("weight", bits)
    with pytest.raises(UserError, match="kl, mse, max, percentile"):
        choose_clip(histogram, 8, "entropy")  # type: ignore[arg-type]
    for percentile in (0, 101, math.nan):
        with pytest.raises(UserError, match="percentile"):
            choose_clip(histogram, 8, "percentile", percentile=percentile)
    with pytest.raises(UserError, match="empty"):
        choose_clip(Histogram(signed=True), 8, "max")
    with pytest.raises(UserError, match="empty"):
        weight_clip(np.zeros((0,), np.float32), 8, "kl")
    with pytest.raises(UserError, match="at least 1024 bins"):
        choose_clip(histogram_of(np.float32([1, 2, 3]), True, bins=512), 8, "kl")


def test_default_methods() -> None:
    assert [default_method("weight", bits) for bits in BITS] == ["kl"] * 3 + ["mse"] * 4
    assert {default_method("activation", bits) for bits in BITS} == {"mse"}
    assert set(METHODS) == set(get_args(ClipMethod))
