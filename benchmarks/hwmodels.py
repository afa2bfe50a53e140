"""The cost table of a whole space side by side: this package, and a plain loop over tilings and loop orders.

`python -m benchmarks.hwmodels` builds the table of `apq-imagenet` on BitFusion, costs a sample of its distinct problems
with the loop written here, asserts that both agree, and prints seconds, layers per second and the ratio. Times are of
the processor, so that other work on the machine does not count; `table_wall_s` is the exception. `--sample` sets how
many problems the loop costs, `--csv FILE` appends the figures.
"""

from __future__ import annotations

import argparse
import csv
import platform
import resource
import statistics
import time
from collections.abc import Callable
from itertools import permutations, product
from math import ceil
from pathlib import Path

import numpy as np

from apq_deploy.space import SearchSpace
from apq_deploy.workload import space_entries
from hwmodels import BitFusion, ConvLayer, Entry, Precision, build_table, load_hardware

SEED = 0
# Loops over tiles of one image, rows and columns being equal, and what each operand depends on.
LOOPS = ("rows", "columns", "in_channels", "out_channels")
DEPENDS = ({2, 3}, {0, 1, 2}, {0, 1, 3})
ORDERS = [order for order in permutations(range(4)) if order.index(0) < order.index(1)]


def tile_sizes(first: int, full: int) -> list[int]:
    """first, 2 first, 4 first, .. full."""
    sizes = []
    while first < full:
        sizes.append(first)
        first *= 2
    return [*sizes, full]


def totals(
    order: tuple[int, ...], trips: tuple[int, ...], traffic: list[int], needed: list[int], usable: list[int]
) -> tuple[list[int], list[int]]:
    """Total and resident bits of weights, inputs and outputs under one loop order, innermost loop first."""
    total, resident, needed = list(traffic), list(traffic), list(needed)
    stays = [True, True, True]
    for loop in order:
        for operand in range(3):
            if not stays[operand]:
                total[operand] *= trips[loop]
            elif loop in DEPENDS[operand]:
                total[operand] *= trips[loop]
                needed[operand] *= trips[loop]
                if needed[operand] <= usable[operand]:
                    resident[operand] = total[operand]
                else:
                    stays[operand] = False
    return total, resident


def plain_cost(hw: BitFusion, layer: ConvLayer, precision: Precision) -> tuple[int, float]:
    """Cycles and energy in mJ of one image by the rules of the preset `bitfusion`, one tiling and order at a time."""
    weight_bits, act_bits, kernel = precision.weight_bits, precision.act_bits, layer.kernel_size
    factor = int(hw.max_bits / max(act_bits, hw.min_bits)) * int(hw.max_bits / max(weight_bits, hw.min_bits))
    in_channels, out_channels, count = layer.in_channels, layer.out_channels, 1
    if layer.is_depthwise:
        group = hw.depthwise_channels * factor
        in_channels, out_channels, count = group, group, ceil(layer.in_channels / group)
    wide, columns, bandwidth = hw.rows * factor, hw.cols, hw.bandwidth_bits_per_cycle
    stored_weight, stored_act = (1 << (bits - 1).bit_length() for bits in (weight_bits, act_bits))
    usable = [size * 8 // 2 for size in (hw.wbuf_bytes, hw.ibuf_bytes, hw.obuf_bytes)]
    obuf_pj = hw.obuf_read_pj_per_bit + hw.obuf_write_pj_per_bit
    out_tiles = tile_sizes(1 if layer.im2col else min(columns, out_channels), out_channels)
    best: tuple[int, float] | None = None
    for size, ic, oc in product(tile_sizes(1, layer.out_size), tile_sizes(1, in_channels), out_tiles):
        window, pixels = ((size - 1) * layer.stride + kernel) ** 2, size * size
        patch, passes_out = ceil(kernel**2 * ic / wide), ceil(oc / columns)
        if layer.im2col:
            inputs, stored_inputs, passes_in = pixels * kernel**2 * ic, pixels * patch * wide, patch
        else:
            inputs, stored_inputs = window * ic, window * ceil(ic / wide) * wide
            passes_in = kernel**2 * ceil(ic / wide)
        traffic = [kernel**2 * ic * oc * weight_bits, inputs * act_bits, pixels * oc * 32]
        needed = [
            patch * wide * passes_out * columns * stored_weight,
            stored_inputs * stored_act,
            pixels * passes_out * columns * 32,
        ]
        if any(bits > limit for bits, limit in zip(needed, usable, strict=True)):
            continue
        along = ceil(layer.out_size / size)
        trips = (along, along, ceil(in_channels / ic), ceil(out_channels / oc))
        tiles = trips[0] * trips[1] * trips[2] * trips[3]
        compute = tiles * pixels * passes_in * passes_out
        shared = kernel**2 * ic * pixels * act_bits * passes_out * hw.ibuf_read_pj_per_bit
        weights_pj, outputs_pj = traffic[0] * hw.wbuf_read_pj_per_bit, traffic[2] * obuf_pj
        accesses = shared + min(weights_pj * pixels + outputs_pj, weights_pj + outputs_pj * passes_in)
        for order in ORDERS:
            (weights, acts, outputs), resident = totals(order, trips, traffic, needed, usable)
            ends = ceil(sum(resident) / bandwidth) + ceil(resident[2] / bandwidth)
            moving = ceil((weights + acts + outputs) / bandwidth) + ceil(outputs / bandwidth)
            cycles = max(compute + ends, moving)
            if best is not None and cycles > best[0]:
                continue
            energy_pj = (
                hw.unit_pj_per_cycle * hw.rows * hw.cols * compute
                + hw.static_pj_per_cycle * cycles
                + weights * (hw.dram_read_pj_per_bit + hw.wbuf_write_pj_per_bit)
                + acts * (hw.dram_read_pj_per_bit + hw.ibuf_write_pj_per_bit)
                + outputs * (hw.dram_read_pj_per_bit + hw.dram_write_pj_per_bit + obuf_pj)
                + tiles * accesses
            )
            best = (cycles, energy_pj) if best is None else min(best, (cycles, energy_pj))
    if best is None:
        raise ValueError(f"{layer} at {precision} must fit the buffers of {hw.name}; choose another layer")
    return best[0] * count, best[1] * count / 1e9


def distinct_problems(hw: BitFusion, entries: list[Entry]) -> list[Entry]:
    """One entry of each convolution that is solved once: depthwise layers differ by how often only."""
    first: dict[object, Entry] = {}
    for layer, precision in entries:
        channels = 0 if layer.is_depthwise else (layer.in_channels, layer.out_channels)
        kind = (channels, layer.out_size, layer.kernel_size, layer.stride, layer.im2col, precision)
        first.setdefault(kind, (layer, precision))
    return list(first.values())


def median_seconds(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Median seconds of `repeats` runs after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        start = clock()
        work()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def main() -> None:
    """Runs both sides and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="apq-imagenet", help="search space whose table is built")
    parser.add_argument("--sample", type=int, default=150, help="distinct problems that the plain loop costs")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of the fast side")
    parser.add_argument("--csv", type=Path, help="append the figures to this file")
    given = parser.parse_args()
    hw = load_hardware("bitfusion")
    assert isinstance(hw, BitFusion)
    entries = space_entries(SearchSpace.load(given.space))
    problems = distinct_problems(hw, entries)

    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table_s = median_seconds(lambda: build_table(hw, entries), given.repeats)
    table_wall_s = median_seconds(lambda: build_table(hw, entries), given.repeats, time.perf_counter)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    single_s = median_seconds(lambda: hw.layer_cost(*problems[len(problems) // 2]), 50)

    rng = np.random.default_rng(SEED)
    drawn = rng.choice(len(problems), min(given.sample, len(problems)), replace=False)
    sample = [problems[at] for at in np.sort(drawn).tolist()]
    start = time.process_time()
    plain = [plain_cost(hw, *entry) for entry in sample]
    plain_s = time.process_time() - start
    sample_s = median_seconds(lambda: hw.layer_costs(sample), given.repeats)
    for entry, (cycles, energy_mj), cost in zip(sample, plain, hw.layer_costs(sample), strict=True):
        assert cost.cycles == cycles, entry
        assert cost.energy_mj is not None
        assert abs(cost.energy_mj / energy_mj - 1) < 1e-12, entry

    figures: dict[str, str | int | float] = {
        "space": given.space,
        "entries": len(entries),
        "distinct_problems": len(problems),
        "table_s": round(table_s, 4),
        "table_wall_s": round(table_wall_s, 4),
        "entries_per_s": round(len(entries) / table_s),
        "problems_per_s": round(len(problems) / table_s),
        "peak_mib": round(peak_mib),
        "peak_above_start_mib": round(peak_mib - before_mib),
        "one_layer_alone_s": round(single_s, 6),
        "sample": len(sample),
        "sample_plain_s": round(plain_s, 3),
        "sample_fast_s": round(sample_s, 5),
        "plain_s_per_problem": round(plain_s / len(sample), 5),
        "ratio_on_sample": round(plain_s / sample_s, 1),
        "ratio_on_table": round(plain_s / len(sample) * len(problems) / table_s, 1),
        "machine": platform.machine(),
        "numpy": np.__version__,
    }
    for name, value in figures.items():
        print(f"{name:>22}  {value}")
    print(f"all {len(sample)} sampled costs equal: cycles to the digit, energy to 1e-12")
    if given.csv is not None:
        is_new = not given.csv.exists()
        with given.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(figures))
            if is_new:
                writer.writeheader()
            writer.writerow(figures)


if __name__ == "__main__":
    main()
