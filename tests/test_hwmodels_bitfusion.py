"""The BitFusion model against published costs, a layer worked by hand, and what must hold for any layer."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import BitFusion, ConvLayer, HardwareError, Precision, load_hardware
from hwmodels.tile_cost import next_power_of_two, precision_factor, tiles
from hwmodels.tiling import Problems, all_tilings, loop_orders, reuse, trip_counts

GOLDEN = Path(__file__).parent / "data" / "bitfusion"
SWEEP_COUNTERS = (
    "stall_cycles",
    "wbuf_read_bits",
    "wbuf_write_bits",
    "obuf_read_bits",
    "obuf_write_bits",
    "ibuf_read_bits",
    "ibuf_write_bits",
    "dram_read_bits",
    "dram_write_bits",
)


def preset(name: str) -> BitFusion:
    hardware = load_hardware(name)
    assert isinstance(hardware, BitFusion)
    return hardware


BITFUSION = preset("bitfusion")
ISCA18 = preset("bitfusion-isca18")


def golden_rows(name: str) -> list[dict[str, str]]:
    """A sample of a published table, of APQ or of the ISCA'18 simulator, as released."""
    with (GOLDEN / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_of_the_apq_sample() -> None:
    rows = golden_rows("apq_table_sample.csv")
    sizes = ("in_channels", "out_channels", "in_size", "kernel_size", "stride", "padding", "groups")
    entries = [
        (
            ConvLayer(*(int(row[name]) for name in sizes), im2col=row["im2col"] == "1"),
            Precision(int(row["weight_bits"]), int(row["act_bits"])),
        )
        for row in rows
    ]
    costs = BITFUSION.layer_costs(entries)
    assert len(costs) == 302
    assert [cost.cycles for cost in costs] == [int(row["cycles"]) for row in rows]
    np.testing.assert_allclose([cost.latency_ms for cost in costs], [float(row["latency_ms"]) for row in rows], 1e-12)
    np.testing.assert_allclose([cost.energy_mj for cost in costs], [float(row["energy_mj"]) for row in rows], 1e-12)
    # One layer alone is mapped as among many.
    assert [BITFUSION.layer_cost(*entry) for entry in entries[::10]] == costs[::10]
    assert [BITFUSION.layer_cost(*entry).counters for entry in entries[::10]] == [c.counters for c in costs[::10]]


def test_every_row_of_the_isca18_sample() -> None:
    rows = golden_rows("isca18_sweep_sample.csv")
    assert len(rows) == 61
    for row in rows:
        number = {name: int(value) for name, value in row.items() if name not in ("network", "layer")}
        hardware = replace(
            ISCA18, **{name: number[name] for name in ("rows", "cols", "wbuf_bytes", "ibuf_bytes", "obuf_bytes")}
        )
        hardware = replace(hardware, bandwidth_bits_per_cycle=number["bandwidth_bits_per_cycle"])
        in_size = (number["out_size"] - 1) * number["stride"] + number["kernel_size"]
        layer = ConvLayer(
            number["in_channels"],
            number["out_channels"],
            in_size,
            number["kernel_size"],
            number["stride"],
            im2col=bool(number["im2col"]),
        )
        cost = hardware.layer_cost(layer, Precision(number["weight_bits"], number["act_bits"]), batch=number["batch"])
        found = {name: cost.counters[name] for name in SWEEP_COUNTERS} | {"cycles": cost.cycles}
        assert found == {name: number[name] for name in found}, row["layer"]


def mobilenet_v2() -> list[ConvLayer]:
    """All 53 layers of torchvision's mobilenet_v2 at width 1.0 and 224x224, in order."""
    layers = [ConvLayer(3, 32, 224, 3, stride=2, padding=1, im2col=True)]
    in_channels, size = 32, 112
    for expand, out_channels, depth, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(depth):
            stride = first_stride if block == 0 else 1
            mid = in_channels * expand
            if expand > 1:
                layers.append(ConvLayer(in_channels, mid, size, 1))
            layers.append(ConvLayer(mid, mid, size, 3, stride=stride, padding=1, groups=mid))
            size //= stride
            layers.append(ConvLayer(mid, out_channels, size, 1))
            in_channels = out_channels
    return [*layers, ConvLayer(320, 1280, 7, 1), ConvLayer.linear(1280, 1000)]


@pytest.mark.parametrize(
    ("bits", "latency_ms", "energy_mj"), [(8, "9.099", "12.456"), (6, "8.965", "11.890"), (4, "5.344", "9.279")]
)
def test_mobilenet_v2_as_the_paper_prints_it(bits: int, latency_ms: str, energy_mj: str) -> None:
    """First layer, last convolution and classifier stay at 8 bits."""
    layers = mobilenet_v2()
    assert len(layers) == 53
    at_eight = {0, 51, 52}
    entries = [
        (layer, Precision(8, 8) if index in at_eight else Precision(bits, bits)) for index, layer in enumerate(layers)
    ]
    costs = BITFUSION.layer_costs(entries)
    assert f"{sum(cost.latency_ms for cost in costs):.3f}" == latency_ms
    assert f"{sum(cost.energy_mj or 0.0 for cost in costs):.3f}" == energy_mj


def test_mobilenet_v2_work() -> None:
    layers = mobilenet_v2()
    assert sum(layer.macs for layer in layers) == 300_774_272
    assert f"{sum(layer.bitops(Precision(8, 8)) for layer in layers) / 1e9:.2f}" == "19.25"


def test_the_layer_of_the_documentation() -> None:
    """docs/hardware.md works this layer through, by these steps."""
    cost = BITFUSION.layer_cost(ConvLayer(320, 1280, 7, 1), Precision(8, 8))
    assert cost.mapping is not None
    assert (cost.mapping.tile_size, cost.mapping.tile_in_channels, cost.mapping.tile_out_channels) == (1, 320, 32)
    assert cost.mapping.loops == ("rows", "columns", "in_channels", "out_channels")
    assert cost.counters["compute_cycles"] == 7 * 7 * 40 * 20 == 39_200
    moved = [cost.counters[name] for name in ("wbuf_write_bits", "ibuf_write_bits", "dram_write_bits")]
    assert moved == [81_920 * 40, 2_560 * 49, 1_024 * 49 * 40]
    exposed = -(-(81_920 + 125_440 + 50_176) // 192) - (-50_176 // 192)
    assert cost.cycles == 39_200 + exposed == 40_804
    parts_pj = (
        476.6518 * 39_200,
        433.014704 * 40_804,
        3_276_800 * 15.02891615625,
        125_440 * 15.1137040625,
        2_007_040 * 30.09250146875,
        1_960 * (2_560 * 0.059474375 + 81_920 * 0.02136565625 + 1_024 * 0.09250146875),
    )
    assert cost.energy_mj == pytest.approx(sum(parts_pj) / 1e9, rel=1e-12)
    assert f"{cost.energy_mj:.9f}" == "0.151807563"


def test_a_layer_worked_by_hand() -> None:
    """16 -> 32, 1x1 at 2x2, 8 bit: everything fits, so one tile is best.

    Compute: 4 pixels * 1 column pass * 1 channel pass = 4 cycles. Moved: W 16*32*8 = 4096, A 4*16*8 = 512,
    O 4*32*32 = 4096 bits. Exposed: ceil(8704 / 192) + ceil(4096 / 192) = 46 + 22 = 68, and 4 + 68 = 72.
    """
    cost = BITFUSION.layer_cost(ConvLayer(16, 32, 2, 1), Precision(8, 8))
    assert cost.cycles == 72
    assert cost.latency_ms == pytest.approx(72 / 500e6 * 1e3, rel=1e-15)
    assert cost.counters == {
        "compute_cycles": 4,
        "stall_cycles": 68,
        # Weight stationary: each weight is read once; with one channel pass the outputs cost the same either way.
        "wbuf_read_bits": 4096,
        "wbuf_write_bits": 4096,
        "ibuf_read_bits": 512,
        "ibuf_write_bits": 512,
        "obuf_read_bits": 8192,
        "obuf_write_bits": 8192,
        "dram_read_bits": 8704,
        "dram_write_bits": 4096,
    }
    energy_pj = (
        476.6518 * 4
        + 433.014704 * 72
        + 4096 * (15 + 0.02891615625)
        + 512 * (15 + 0.1137040625)
        + 4096 * (30 + 0.09250146875)
        + (512 * 0.059474375 + 4096 * 0.02136565625 + 4096 * 0.09250146875)
    )
    assert cost.energy_mj == pytest.approx(energy_pj / 1e9, rel=1e-12)
    assert cost.mapping is not None
    assert (cost.mapping.tile_size, cost.mapping.tile_in_channels, cost.mapping.tile_out_channels) == (2, 16, 32)
    assert cost.source == "modelled"


def test_precision_factor_and_storage_width_for_every_width() -> None:
    bits = np.arange(1.0, 9.0)
    assert precision_factor(BITFUSION, bits).tolist() == [4, 4, 2, 2, 1, 1, 1, 1]
    assert next_power_of_two(bits).tolist() == [1, 2, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize(("bits", "group"), [((8, 8), 8), ((8, 4), 16), ((4, 8), 16), ((6, 6), 8), ((4, 4), 32)])
def test_depthwise_is_costed_as_dense_groups(bits: tuple[int, int], group: int) -> None:
    precision = Precision(*bits)
    dense = BITFUSION.layer_cost(ConvLayer(group, group, 14, 5, padding=2), precision)
    depthwise = BITFUSION.layer_cost(ConvLayer(100, 100, 14, 5, padding=2, groups=100), precision)
    count = -(-100 // group)
    assert depthwise.cycles == (dense.cycles or 0) * count
    assert depthwise.energy_mj == pytest.approx((dense.energy_mj or 0.0) * count, rel=1e-12)
    assert depthwise.counters == {name: value * count for name, value in dense.counters.items()}
    assert depthwise.mapping is not None
    assert depthwise.mapping.convolutions == count


@pytest.mark.parametrize("hardware", [BITFUSION, ISCA18], ids=lambda each: each.name)
def test_grouped_is_costed_as_that_many_dense(hardware: BitFusion) -> None:
    grouped = hardware.layer_cost(ConvLayer(60, 36, 9, 3, groups=3), Precision(4, 8), batch=2)
    dense = hardware.layer_cost(ConvLayer(20, 12, 9, 3), Precision(4, 8), batch=2)
    assert grouped.cycles == 3 * (dense.cycles or 0)
    assert grouped.counters == {name: 3 * value for name, value in dense.counters.items()}


LAYERS = st.builds(
    lambda groups, ic, oc, size, kernel, stride, im2col: ConvLayer(
        ic * groups, oc * groups, max(size, kernel), kernel, stride, groups=groups, im2col=im2col
    ),
    st.integers(1, 3),
    st.integers(1, 130),
    st.integers(1, 130),
    st.integers(1, 30),
    st.sampled_from([1, 2, 3, 5, 7]),
    st.integers(1, 3),
    st.booleans(),
)
PRECISIONS = st.builds(Precision, st.integers(1, 8), st.integers(1, 8))
PRESETS = st.sampled_from([BITFUSION, ISCA18])


@settings(max_examples=60, deadline=None)
@given(PRESETS, LAYERS, PRECISIONS, st.integers(1, 5))
def test_doubling_the_bandwidth_never_costs_cycles(
    hardware: BitFusion, layer: ConvLayer, precision: Precision, batch: int
) -> None:
    slow = hardware.layer_cost(layer, precision, batch).cycles
    fast = replace(hardware, bandwidth_bits_per_cycle=2 * hardware.bandwidth_bits_per_cycle)
    assert (fast.layer_cost(layer, precision, batch).cycles or 0) <= (slow or 0)


@settings(max_examples=60, deadline=None)
@given(PRESETS, LAYERS, PRECISIONS, st.sampled_from(["wbuf_bytes", "ibuf_bytes", "obuf_bytes"]))
def test_a_larger_buffer_never_costs_cycles_without_a_bandwidth_limit(
    hardware: BitFusion, layer: ConvLayer, precision: Precision, buffer: str
) -> None:
    """With a limit it may: a set that stays resident for longer is also a longer first load, and that is exposed."""
    small = replace(hardware, bandwidth_bits_per_cycle=10**9)
    large = replace(small, **{buffer: 4 * getattr(small, buffer)})
    before, after = small.layer_cost(layer, precision).cycles, large.layer_cost(layer, precision).cycles
    assert (after or 0) <= (before or 0)


@settings(max_examples=60, deadline=None)
@given(LAYERS, PRECISIONS, PRECISIONS)
def test_fewer_bits_never_move_more_under_one_mapping(layer: ConvLayer, first: Precision, second: Precision) -> None:
    """Where tiles are not padded to the array. The padded rules of the presets do break it: see docs/hardware.md."""
    hardware = replace(BITFUSION, tile_traffic="exact", tile_capacity="traffic")
    few = Precision(min(first.weight_bits, second.weight_bits), min(first.act_bits, second.act_bits))
    totals = []
    for precision in (few, first):
        numbers = (
            [1.0],
            [layer.in_channels],
            [layer.out_channels],
            [layer.out_size],
            [layer.kernel_size],
            [layer.stride],
            [layer.im2col],
            [precision.weight_bits],
            [precision.act_bits],
        )
        problem = Problems(*(np.array(each, dtype=np.float64) for each in numbers))
        tilings = all_tilings(problem, hardware.cols)
        own = problem.take(tilings.problem)
        own = replace(own, im2col=own.im2col.astype(np.bool_))
        tile = tiles(hardware, own, tilings)
        moved = reuse(
            tile.traffic_bits, tile.needed_bits, hardware.usable_bits, trip_counts(own, tilings), loop_orders(False)
        )
        totals.append(moved.total_bits)
    assert (totals[0] <= totals[1]).all()


@settings(max_examples=60, deadline=None)
@given(PRESETS, LAYERS, PRECISIONS, st.integers(1, 4))
def test_counters_agree_with_each_other(
    hardware: BitFusion, layer: ConvLayer, precision: Precision, batch: int
) -> None:
    cost = hardware.layer_cost(layer, precision, batch)
    count = cost.counters
    assert count["compute_cycles"] + count["stall_cycles"] == cost.cycles
    assert count["dram_read_bits"] == count["wbuf_write_bits"] + count["ibuf_write_bits"] + count["dram_write_bits"]
    # At least every output is stored once, and every weight fetched once.
    assert count["dram_write_bits"] >= 32 * layer.out_channels * layer.out_size**2 * batch
    assert count["wbuf_write_bits"] >= (0 if layer.is_depthwise else layer.weights * precision.weight_bits)
    # No array is faster than all of its units at work.
    most = hardware.rows * hardware.cols * 16
    assert count["compute_cycles"] * most >= layer.macs * batch
    assert cost.energy_mj is not None
    assert cost.energy_mj > 0


def test_many_layers_keep_their_order_and_repeats() -> None:
    layers = [ConvLayer(24, 144, 28, 1), ConvLayer(144, 144, 28, 3, padding=1, groups=144), ConvLayer.linear(64, 10)]
    entries = [(layer, Precision(w, a)) for layer, w, a in product(layers, (4, 8), (6, 8))]
    entries = entries + entries[::-1]
    assert BITFUSION.layer_costs(entries) == [BITFUSION.layer_cost(*entry) for entry in entries]
    assert BITFUSION.layer_costs([]) == []


def test_a_layer_that_fits_no_buffer_is_refused_by_name() -> None:
    small = replace(BITFUSION, ibuf_bytes=64)
    fits, too_wide = ConvLayer(64, 64, 8, 1), ConvLayer(64, 64, 8, 3)
    with pytest.raises(HardwareError, match=r"64->64 k3 s1 at 8x8 at W8A8 must fit half of ibuf_bytes = 64, got 144"):
        small.layer_costs([(fits, Precision(8, 8)), (too_wide, Precision(8, 8))])
    assert small.layer_cost(fits, Precision(8, 8)).cycles


@pytest.mark.parametrize("bits", [0, 17, -1, 4.0, True, None])
def test_a_width_outside_1_to_16_is_refused(bits: object) -> None:
    with pytest.raises(ValueError, match=r"must be an integer from 1 to 16, got "):
        Precision(bits, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"act_bits must be an integer from 1 to 16, got "):
        Precision(8, bits)  # type: ignore[arg-type]


def test_a_width_that_the_array_does_not_take_is_refused() -> None:
    with pytest.raises(HardwareError, match=r"bitfusion computes weights of 1, .* 8 bits, got 16 for 3->8"):
        BITFUSION.layer_cost(ConvLayer(3, 8, 8, 3), Precision(16, 8))
    with pytest.raises(HardwareError, match=r"computes activations of .* got 9"):
        BITFUSION.layer_cost(ConvLayer(3, 8, 8, 3), Precision(8, 9))


@pytest.mark.parametrize("batch", [0, -1, 1.5])
def test_a_batch_must_be_a_positive_integer(batch: object) -> None:
    with pytest.raises(HardwareError, match="batch must be a positive integer"):
        BITFUSION.layer_cost(ConvLayer(3, 8, 8, 3), Precision(8, 8), batch=batch)  # type: ignore[arg-type]


def test_counts_beyond_exact_floats_are_refused() -> None:
    vast = ConvLayer(2**14, 2**14, 2**10, 1)
    with pytest.raises(HardwareError, match=r"counts must stay below 2\*\*53"):
        BITFUSION.layer_cost(vast, Precision(8, 8), batch=2**12)


def test_numpy_integers_describe_the_same_layer() -> None:
    numbers = np.array([96, 480, 14, 1])
    layer = ConvLayer(*numbers)  # type: ignore[arg-type]
    assert layer == ConvLayer(96, 480, 14, 1)
    assert type(layer.in_channels) is int
    assert Precision(np.int64(4), np.int8(8)) == Precision(4, 8)  # type: ignore[arg-type]


def test_without_double_buffers_transfers_do_not_overlap() -> None:
    """The layer of docs/hardware.md: every cycle of transfers comes on top of those of computing."""
    hardware = preset("bitfusion")
    serial = replace(hardware, double_buffered=False)
    for layer in (ConvLayer(320, 1280, 7, 1), ConvLayer(96, 480, 14, 1), ConvLayer(144, 144, 56, 3, 1, 1, groups=144)):
        cost = serial.layer_cost(layer, Precision(8, 8))
        count = cost.mapping.convolutions if cost.mapping is not None else 1
        bits = cost.counters["dram_read_bits"] // count, cost.counters["dram_write_bits"] // count
        assert cost.counters["stall_cycles"] == count * sum(ceil(each / 192) for each in bits)
        assert (cost.cycles or 0) > (hardware.layer_cost(layer, Precision(8, 8)).cycles or 0)
