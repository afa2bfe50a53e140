"""The fast search over tilings and loop orders equals a plain loop, written here from the published rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import BitFusion, ConvLayer, Precision, load_hardware
from hwmodels.mapping_search import BLOCK_TILINGS
from hwmodels.tiling import Problems, all_tilings, blocks, doublings, loop_orders, tiling_counts


@dataclass(frozen=True)
class Found:
    cycles: int
    energy_pj: float
    dram_bits: tuple[int, int, int]


def sizes(first: int, full: int) -> list[int]:
    """first, 2 first, 4 first, .. full."""
    found = []
    while first < full:
        found.append(first)
        first *= 2
    return [*found, full]


def walk(
    order: tuple[str, ...], trips: dict[str, int], depends: str, traffic: int, size: int, usable: int
) -> tuple[int, int]:
    """Total and resident traffic of one operand, from the innermost loop outwards."""
    resident, total, stays = traffic, traffic, True
    for loop in order:
        if not stays:
            total *= trips[loop]
        elif loop in depends.split():
            total, size = total * trips[loop], size * trips[loop]
            stays = size <= usable
            if stays:
                resident = total
    return total, resident


def mappings(hw: BitFusion, layer: ConvLayer, precision: Precision, batch: int) -> Iterator[Found]:
    """Every tiling under every one of the 120 loop orders."""
    kernel, full_o, bw = layer.kernel_size, layer.out_size, hw.bandwidth_bits_per_cycle
    n_in, n_out = layer.in_channels, layer.out_channels
    w, a, columns = precision.weight_bits, precision.act_bits, hw.cols
    wide = hw.rows * int(hw.max_bits / max(a, hw.min_bits)) * int(hw.max_bits / max(w, hw.min_bits))
    r8 = {bits: 2 ** ceil(np.log2(bits)) for bits in range(1, 17)}
    halves = [each * 8 // (2 if hw.double_buffered else 1) for each in (hw.wbuf_bytes, hw.ibuf_bytes, hw.obuf_bytes)]
    out_tiles = sizes(1 if layer.im2col else min(columns, n_out), n_out)
    for b, o, ic, oc in product(sizes(1, batch), sizes(1, full_o), sizes(1, n_in), out_tiles):
        window = ((o - 1) * layer.stride + kernel) ** 2
        patch_rows = ceil(kernel**2 * ic / wide)
        if layer.im2col:
            inputs, input_need, passes = o * o * kernel**2 * ic * b * a, o * o * patch_rows * wide * b, patch_rows
        else:
            inputs, input_need = window * ic * b * a, window * ceil(ic / wide) * wide * b
            passes = kernel**2 * ceil(ic / wide)
        padded_out = o * o * ceil(oc / columns) * columns * b * hw.psum_bits
        if hw.tile_traffic == "exact":
            traffic = [kernel**2 * ic * oc * w, inputs, o * o * oc * b * hw.psum_bits]
        else:
            traffic = [patch_rows * wide * oc * w, inputs, padded_out]
        need = traffic
        if hw.tile_capacity == "array-padded":
            need = [patch_rows * wide * ceil(oc / columns) * columns * r8[w], input_need * r8[a], padded_out]
        if any(size > half for size, half in zip(need, halves, strict=True)):
            continue
        pixels = ceil(full_o / o)
        trips = {"b": ceil(batch / b), "oh": pixels, "ow": pixels, "ic": ceil(n_in / ic), "oc": ceil(n_out / oc)}
        tile_count = int(np.prod(list(trips.values())))
        compute = tile_count * b * o * o * passes * ceil(oc / columns)
        reads = tile_reads(hw, kernel**2 * ic, b * o * o, oc, passes, wide, precision)
        for order in permutations(trips):
            (tw, rw), (ta, ra), (to, ro) = (
                walk(order, trips, depends, *each)
                for depends, *each in zip(("ic oc", "b oh ow ic", "b oh ow oc"), traffic, need, halves, strict=True)
            )
            ends = ceil((rw + ra + ro) / bw) + ceil(ro / bw)
            if not hw.double_buffered:
                cycles = compute + ceil((tw + ta + to) / bw) + ceil(to / bw)
            elif hw.transfer_overlap == "bounded":
                cycles = max(compute + ends, ceil((tw + ta + to) / bw) + ceil(to / bw))
            else:
                cycles = compute + max(0, ceil((tw + ta + 2 * to - (rw + ra + ro) - ro) / bw) - compute) + ends
            core = hw.unit_pj_per_cycle * hw.rows * hw.cols * compute + hw.static_pj_per_cycle * cycles
            dram = hw.dram_read_pj_per_bit * (tw + ta + to) + hw.dram_write_pj_per_bit * to
            fills = hw.wbuf_write_pj_per_bit * tw + hw.ibuf_write_pj_per_bit * ta
            fills += (hw.obuf_read_pj_per_bit + hw.obuf_write_pj_per_bit) * to
            yield Found(cycles, core + dram + fills + tile_count * reads, (tw, ta, to))


def tile_reads(hw: BitFusion, m: int, p: int, oc: int, passes: int, wide: int, precision: Precision) -> float:
    """Energy in pJ of what computing one tile reads and writes in the buffers."""
    w, a, psum = precision.weight_bits, precision.act_bits, hw.psum_bits
    read_w, read_a = hw.wbuf_read_pj_per_bit, hw.ibuf_read_pj_per_bit
    both_o = hw.obuf_read_pj_per_bit + hw.obuf_write_pj_per_bit
    if hw.tile_accesses == "broadcast":
        inputs = m * p * a * ceil(oc / hw.cols) * read_a
        output_stationary = inputs + m * oc * p * w * read_w + p * oc * psum * both_o
        weight_stationary = inputs + m * oc * w * read_w + p * oc * psum * passes * both_o
        return min(output_stationary, weight_stationary)
    cols, sums = ceil(oc / hw.cols) * hw.cols, passes * wide
    flows = [
        (sums * p * (a + cols * (w + psum)), m * p * a * read_a + m * p * oc * (psum * both_o + w * read_w)),
        (cols * p * (psum + sums * (a + w)), m * p * oc * (a * read_a + w * read_w) + p * oc * psum * both_o),
        (sums * cols * (w + p * (a + psum)), m * p * oc * (a * read_a + psum * both_o) + m * oc * w * read_w),
    ]
    return min(flows, key=lambda flow: flow[0])[1]


def preset(name: str) -> BitFusion:
    hardware = load_hardware(name)
    assert isinstance(hardware, BitFusion)
    return hardware


HARDWARE = st.builds(
    lambda base, rows, cols, bandwidth, buffers, rules, double: replace(
        base,
        double_buffered=double,
        rows=rows,
        cols=cols,
        bandwidth_bits_per_cycle=bandwidth,
        wbuf_bytes=buffers[0],
        ibuf_bytes=buffers[1],
        obuf_bytes=buffers[2],
        **dict(zip(("tile_traffic", "tile_capacity", "transfer_overlap", "tile_accesses"), rules, strict=True)),
    ),
    st.sampled_from([preset("bitfusion"), preset("bitfusion-isca18")]),
    st.sampled_from([3, 8, 16]),
    st.sampled_from([4, 24, 32]),
    st.sampled_from([32, 192, 4096]),
    st.tuples(*[st.sampled_from([2**15, 2**16, 2**18])] * 3),
    st.tuples(
        st.sampled_from(["exact", "array-padded"]),
        st.sampled_from(["array-padded", "traffic"]),
        st.sampled_from(["bounded", "stall"]),
        st.sampled_from(["broadcast", "per-mac"]),
    ),
    st.sampled_from([True, True, False]),
)
LAYERS = st.builds(
    lambda ic, oc, size, kernel, stride, im2col: ConvLayer(ic, oc, max(size, kernel), kernel, stride, im2col=im2col),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 13),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 2),
    st.booleans(),
)
PRECISIONS = st.builds(Precision, st.integers(1, 8), st.integers(1, 8))


def assert_best(hw: BitFusion, layer: ConvLayer, precision: Precision, batch: int) -> None:
    every = list(mappings(hw, layer, precision, batch))
    fewest = min(found.cycles for found in every)
    least_pj = min(found.energy_pj for found in every if found.cycles == fewest)
    cost = hw.layer_cost(layer, precision, batch)
    assert cost.cycles == fewest
    assert cost.energy_mj == pytest.approx(least_pj / 1e9, rel=1e-12)
    # The traffic is that of one of the best mappings.
    count = cost.counters
    moved = (count["wbuf_write_bits"], count["ibuf_write_bits"], count["dram_write_bits"])
    close = [f.dram_bits for f in every if f.cycles == fewest and f.energy_pj <= least_pj * (1 + 1e-12)]
    assert moved in close


@settings(max_examples=40, deadline=None)
@given(HARDWARE, LAYERS, PRECISIONS, st.sampled_from([1, 1, 3]))
def test_equals_a_plain_loop_over_tilings_and_orders(
    hw: BitFusion, layer: ConvLayer, precision: Precision, batch: int
) -> None:
    assert_best(hw, layer, precision, batch)


@pytest.mark.parametrize("name", ["bitfusion", "bitfusion-isca18"])
@pytest.mark.parametrize(
    ("layer", "precision", "batch"),
    [
        (ConvLayer(96, 480, 14, 1), Precision(4, 8), 1),
        (ConvLayer(3, 32, 64, 3, stride=2, padding=1, im2col=True), Precision(8, 8), 1),
        (ConvLayer.linear(1280, 1000), Precision(6, 4), 4),
    ],
    ids=str,
)
def test_equals_a_plain_loop_at_real_sizes(name: str, layer: ConvLayer, precision: Precision, batch: int) -> None:
    assert_best(preset(name), layer, precision, batch)


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([1, 3, 32]))
def test_doublings_count_what_the_loop_lists(full: int, first: int) -> None:
    assert doublings(np.array([float(full)]), np.array([float(first)])).tolist() == [len(sizes(min(first, full), full))]


def test_tilings_of_a_small_problem_by_hand() -> None:
    """O = 3, IC = 4, OC = 6 on 4 columns: 1 2 3, 1 2 4 and 4 6 are 18 tilings."""
    numbers = [[1.0], [4.0], [6.0], [3.0], [1.0], [1.0], [False], [8.0], [8.0]]
    problem = Problems(*(np.array(each) for each in numbers))
    tilings = all_tilings(problem, cols=4)
    rows = set(map(tuple, np.stack([tilings.size, tilings.in_channels, tilings.out_channels], axis=1).tolist()))
    assert rows == set(product((1, 2, 3), (1, 2, 4), (4, 6)))
    assert tiling_counts(problem, cols=4).tolist() == [len(tilings)] == [18]


def test_distinct_orders() -> None:
    assert loop_orders(False).shape == (12, 4)
    assert loop_orders(True).shape == (60, 5)


def test_blocks_cover_every_problem_once() -> None:
    counts = np.array([5, 5, BLOCK_TILINGS + 1, 1, 2, BLOCK_TILINGS])
    covered = [position for block in blocks(counts, 10) for position in range(len(counts))[block]]
    assert covered == list(range(len(counts)))
    assert [block.stop - block.start for block in blocks(counts, 10)] == [2, 1, 2, 1]
