"""The formulas of the BitFusion model for one tile, and for a whole layer under one tiling and loop order.

Operands are always in the order weights, activations, outputs. Whole numbers are float64 arrays, see `tiling`.
Source: Sharma et al., "Bit Fusion", ISCA 2018; Wang et al., "APQ", CVPR 2020, section 5 and its released table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwmodels.tiling import Problems, Reuse, Tilings, Whole

if TYPE_CHECKING:
    from hwmodels.bitfusion import BitFusion

COUNTERS = (
    "compute_cycles",
    "stall_cycles",
    "wbuf_read_bits",
    "wbuf_write_bits",
    "ibuf_read_bits",
    "ibuf_write_bits",
    "obuf_read_bits",
    "obuf_write_bits",
    "dram_read_bits",
    "dram_write_bits",
)


def precision_factor(hardware: BitFusion, bits: Whole) -> Whole:
    """How many operands of this width a Fusion Unit takes in place of one of `max_bits`: 6 bit computes as 8."""
    return np.floor(hardware.max_bits / np.maximum(bits, hardware.min_bits))


def next_power_of_two(bits: Whole) -> Whole:
    """Storage width of an operand in a buffer that holds whole powers of two: 6 -> 8."""
    return np.ldexp(1.0, np.frexp(bits - 1.0)[1])


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """What one tile of each tiling moves, needs and computes.

    `traffic_bits` and `needed_bits` (3, n); `compute_cycles` (n,); `inputs_per_cycle` (n,), rows of the array times the
    precision factor; `passes` (n,), how often the array is refilled along the sum for one output; `columns` (n,), how
    often along the output channels.
    """

    traffic_bits: Whole
    needed_bits: Whole
    compute_cycles: Whole
    inputs_per_cycle: Whole
    passes: Whole
    columns: Whole


def tiles(hardware: BitFusion, problems: Problems, tilings: Tilings) -> Tiles:
    """Figures of one tile; `problems` are those of the tilings, one each."""
    kernel = problems.kernel_size**2
    wide = hardware.rows * precision_factor(hardware, problems.act_bits)
    wide = wide * precision_factor(hardware, problems.weight_bits)
    # What enters one output: with im2col the whole patch is one row of a matrix, else each kernel position has its own.
    patch = np.ceil(kernel * tilings.in_channels / wide)
    channels = np.ceil(tilings.in_channels / wide)
    passes = np.where(problems.im2col, patch, kernel * channels)
    columns = np.ceil(tilings.out_channels / hardware.cols)
    pixels = tilings.batch * tilings.size**2
    # Zero padding is fetched as data.
    window = ((tilings.size - 1) * problems.stride + problems.kernel_size) ** 2 * tilings.batch
    unrolled = problems.im2col

    weights = kernel * tilings.in_channels * tilings.out_channels
    inputs = np.where(unrolled, pixels * kernel, window) * tilings.in_channels
    if hardware.tile_traffic == "array-padded":
        weight_bits = patch * wide * tilings.out_channels * problems.weight_bits
        output_bits = pixels * columns * (hardware.cols * hardware.psum_bits)
    else:
        weight_bits = weights * problems.weight_bits
        output_bits = pixels * tilings.out_channels * hardware.psum_bits
    traffic = np.stack([weight_bits, inputs * problems.act_bits, output_bits])
    if hardware.tile_capacity == "traffic":
        needed = traffic
    else:
        stored_inputs = np.where(unrolled, pixels * patch, window * channels) * wide
        needed = np.stack(
            [
                patch * wide * columns * hardware.cols * next_power_of_two(problems.weight_bits),
                stored_inputs * next_power_of_two(problems.act_bits),
                pixels * columns * (hardware.cols * hardware.psum_bits),
            ]
        )
    return Tiles(traffic, needed, pixels * passes * columns, wide, passes, columns)


def cycles(hardware: BitFusion, compute_cycles: Whole, moved: Reuse) -> Whole:
    """Cycles of the layer under every order: (n_orders, n). `compute_cycles` (n,) of the whole layer.

    Without double buffers transfers and computing take turns. With them, by `transfer_overlap`:
    `bounded`: either computing with the first load and the last store exposed, or all traffic, whichever is longer.
    `stall`: transfers beyond computing stall the array; the first load and last store always do.
    """
    weights, inputs, outputs = moved.total_bits
    first_load = moved.resident_bits.sum(axis=0)
    last_store = moved.resident_bits[2]
    width = hardware.bandwidth_bits_per_cycle
    transfers = np.ceil((weights + inputs + outputs) / width) + np.ceil(outputs / width)
    if not hardware.double_buffered:
        return compute_cycles + transfers
    exposed = np.ceil(first_load / width) + np.ceil(last_store / width)
    if hardware.transfer_overlap == "stall":
        hidden = np.ceil((weights + inputs + 2 * outputs - first_load - last_store) / width)
        return np.maximum(compute_cycles, hidden) + exposed
    return np.maximum(compute_cycles + exposed, transfers)


def least_cycles(hardware: BitFusion, compute_cycles: Whole, least_bits: Whole, tile_bits: Whole) -> Whole:
    """A lower bound of `cycles` over all orders: (n,), from the traffic with every operand moved once.

    `least_bits` (3, n): traffic of the layer with perfect reuse; `tile_bits` (3, n): traffic of one tile, the
    least that can be resident. Exact also with the `stall` rule, since ceil(a - b - c) + ceil(b) + ceil(c) >= ceil(a).
    """
    width = hardware.bandwidth_bits_per_cycle
    exposed = np.ceil(tile_bits.sum(axis=0) / width) + np.ceil(tile_bits[2] / width)
    loads = least_bits.sum(axis=0)
    if not hardware.double_buffered:
        return compute_cycles + np.ceil(loads / width) + np.ceil(least_bits[2] / width)
    if hardware.transfer_overlap == "stall":
        transfers = np.ceil((loads + least_bits[2]) / width)
    else:
        transfers = np.ceil(loads / width) + np.ceil(least_bits[2] / width)
    return np.maximum(compute_cycles + exposed, transfers)


def weighted_sum(weights: tuple[float, ...], rows: Whole) -> Whole:
    """Sum of the rows times their weights: (n,).

    Not a matrix product, whose rounding depends on n: ties are broken by energy, and one layer must be mapped alike
    alone and among many.
    """
    total = weights[0] * rows[0]
    for weight, row in zip(weights[1:], rows[1:], strict=True):
        total += weight * row
    return total


def tile_accesses(hardware: BitFusion, problems: Problems, tilings: Tilings, tile: Tiles) -> Whole:
    """Bits that computing one tile reads from and writes to the buffers: (4, n).

    Rows: WBUF read, IBUF read, OBUF read, OBUF write.
    `broadcast`: an input is read once for all columns; output or weight stationary, whichever takes less energy.
    `per-mac`: every operand of every product is read; the dataflow with the smallest proxy of traffic between the array
    and the buffers is taken (ties: input, then output stationary).
    """
    psum = float(hardware.psum_bits)
    patch = problems.kernel_size**2 * tilings.in_channels
    pixels = tilings.batch * tilings.size**2
    weights = patch * tilings.out_channels * problems.weight_bits
    outputs = pixels * tilings.out_channels * psum
    if hardware.tile_accesses == "broadcast":
        inputs = patch * pixels * problems.act_bits * tile.columns
        output_stationary = np.stack([weights * pixels, inputs, outputs, outputs])
        weight_stationary = np.stack([weights, inputs, outputs * tile.passes, outputs * tile.passes])
        pj = hardware.energies_pj
        pj_per_bit = (
            pj["wbuf_read_pj_per_bit"],
            pj["ibuf_read_pj_per_bit"],
            pj["obuf_read_pj_per_bit"],
            pj["obuf_write_pj_per_bit"],
        )
        cheaper = weighted_sum(pj_per_bit, output_stationary) <= weighted_sum(pj_per_bit, weight_stationary)
        return np.where(cheaper, output_stationary, weight_stationary)

    columns = tile.columns * hardware.cols
    sums = tile.passes * tile.inputs_per_cycle
    act_bits, weight_bits = problems.act_bits, problems.weight_bits
    proxy = np.stack(
        [
            sums * pixels * (act_bits + columns * (weight_bits + psum)),
            columns * pixels * (psum + sums * (act_bits + weight_bits)),
            sums * columns * (weight_bits + pixels * (act_bits + psum)),
        ]
    )
    per_mac = patch * pixels * tilings.out_channels
    input_stationary = [per_mac * weight_bits, patch * pixels * act_bits, per_mac * psum, per_mac * psum]
    output_stationary = [per_mac * weight_bits, per_mac * act_bits, outputs, outputs]
    weight_stationary = [weights, per_mac * act_bits, per_mac * psum, per_mac * psum]
    flows = np.stack([np.stack(flow) for flow in (input_stationary, output_stationary, weight_stationary)])
    return np.take_along_axis(flows, proxy.argmin(axis=0)[None, None, :], axis=0)[0]


def counters(total_bits: Whole, accesses: Whole, tile_count: Whole, compute: Whole, all_cycles: Whole) -> Whole:
    """Every counter of the layer: (n_counters, n), rows as in COUNTERS.

    `total_bits` (3, n); `accesses` (4, n) as `tile_accesses` gives them; the rest (n,).
    """
    weights, inputs, outputs = total_bits
    wbuf_read, ibuf_read, obuf_read, obuf_write = accesses * tile_count
    return np.stack(
        [
            compute,
            all_cycles - compute,
            wbuf_read,
            weights,
            ibuf_read,
            inputs,
            obuf_read + outputs,
            obuf_write + outputs,
            weights + inputs + outputs,
            outputs,
        ]
    )


def energy_pj(hardware: BitFusion, counted: Whole) -> Whole:
    """Energy of the layer: (n,), from its counters (n_counters, n)."""
    pj = hardware.energies_pj
    core = pj["unit_pj_per_cycle"] * hardware.rows * hardware.cols
    weights = (
        core + pj["static_pj_per_cycle"],
        pj["static_pj_per_cycle"],
        pj["wbuf_read_pj_per_bit"],
        pj["wbuf_write_pj_per_bit"],
        pj["ibuf_read_pj_per_bit"],
        pj["ibuf_write_pj_per_bit"],
        pj["obuf_read_pj_per_bit"],
        pj["obuf_write_pj_per_bit"],
        pj["dram_read_pj_per_bit"],
        pj["dram_write_pj_per_bit"],
    )
    return weighted_sum(weights, counted)
