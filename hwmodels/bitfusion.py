"""BitFusion: a bit-composable systolic array with three buffers in front of one DRAM interface.

One model reproduces both published result sets, APQ's table and the public ISCA'18 sweep; what differs between them are
named settings under "mapping". docs/hardware.md works one layer through by hand.
Source: Sharma et al., "Bit Fusion", ISCA 2018; Wang et al., "APQ", CVPR 2020, section 5 and its released table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import Cost, LoopNest
from hwmodels.errors import HardwareError
from hwmodels.hardware import Entry, Setting
from hwmodels.layers import MAX_BITS, ConvLayer, Precision
from hwmodels.mapping_search import best_mappings
from hwmodels.settings import setting, setting_docs, settle_settings
from hwmodels.tile_cost import COUNTERS, precision_factor, tiles
from hwmodels.tiling import LOOPS, Problems, smallest_tilings

# Below this, float64 holds every whole number.
EXACT_LIMIT = 2.0**53

_PICOJOULES_PER_MILLIJOULE = 1e9
_Key = tuple[int, int, int, int, int, bool, int, int]


# Limits that no chip comes near: beyond them a figure is a slip of the unit.
_MAX_UNITS = 1_000_000
_MAX_BYTES = 10**12
_MAX_BITS_PER_CYCLE = 1e9
_MAX_PJ = 1e6
_MAX_STATIC_PJ = 1e9
_BUFFER_NOTE = (
    "Take care when buffers are sized by this model: what fits a buffer stays in it for the whole layer and then "
    "counts as first load, which computing does not hide, so a larger buffer or array may cost a layer more cycles."
)
_ENERGY_NOTE = (
    "Give all ten energies or none: without this whole section latency is known and energy is not, in tables, profiles "
    "and searches."
)
_DEPTHWISE_NOTE = (
    "The largest useful value is the smaller of rows and cols / factor, where factor counts the products of the "
    "narrowest precision in use that a unit takes in place of one of max_bits (4 at W4A4 of 8). With half of it a "
    "layer computes for twice the cycles; just above it each group fills the array twice, for up to twice the cycles."
)


def _energy(unit: str, meaning: str, high: float = _MAX_PJ, note: str = "") -> Any:
    return setting("energy", unit, meaning, low=0, high=high, note=note, optional=True)


@dataclass(frozen=True, slots=True)
class BitFusion:
    """One accelerator of the BitFusion kind. Units, ranges and meanings stand with the fields.

    Raises: HardwareError for a setting outside its range.
    """

    name: str = setting("", "", "short name, for tables and messages")
    description: str = setting("", "", "one sentence: what it is and where the numbers come from")

    rows: int = setting("array", "Fusion Units", "inputs that enter the array side by side, N", low=1, high=_MAX_UNITS)
    cols: int = setting("array", "Fusion Units", "output channels computed side by side, M", low=1, high=_MAX_UNITS)
    frequency_hz: float = setting("array", "Hz", "clock of the array", low=1e3, high=1e12)

    wbuf_bytes: int = setting("buffers", "bytes", "weight buffer", low=1, high=_MAX_BYTES, note=_BUFFER_NOTE)
    ibuf_bytes: int = setting("buffers", "bytes", "input buffer", low=1, high=_MAX_BYTES)
    obuf_bytes: int = setting("buffers", "bytes", "output buffer, which holds partial sums", low=1, high=_MAX_BYTES)
    double_buffered: bool = setting(
        "buffers",
        "",
        "whether one half of each buffer is filled while the other is used; if not, tiles have the whole buffers, and "
        "no transfer overlaps computing",
    )

    bandwidth_bits_per_cycle: float = setting(
        "memory", "bits per cycle", "DRAM interface, BW", low=1, high=_MAX_BITS_PER_CYCLE
    )

    weight_bits: tuple[int, ...] = setting(
        "precision", "bits", "weight widths that the hardware accepts", low=1, high=MAX_BITS
    )
    act_bits: tuple[int, ...] = setting(
        "precision", "bits", "activation widths that the hardware accepts", low=1, high=MAX_BITS
    )
    max_bits: int = setting("precision", "bits", "widest operand that a Fusion Unit takes whole", low=1, high=MAX_BITS)
    min_bits: int = setting(
        "precision",
        "bits",
        "narrowest operand that gains speed; equal to max_bits where no width does",
        low=1,
        high=MAX_BITS,
    )
    psum_bits: int = setting("precision", "bits", "width of a partial sum, and of an output in DRAM", low=1, high=64)

    unit_pj_per_cycle: float | None = _energy(
        "pJ per cycle", "one Fusion Unit while the array computes", note=_ENERGY_NOTE
    )
    static_pj_per_cycle: float | None = _energy(
        "pJ per cycle", "whole chip in every cycle, computing or not", _MAX_STATIC_PJ
    )
    wbuf_read_pj_per_bit: float | None = _energy("pJ per bit", "read of the weight buffer")
    wbuf_write_pj_per_bit: float | None = _energy("pJ per bit", "write to the weight buffer")
    ibuf_read_pj_per_bit: float | None = _energy("pJ per bit", "read of the input buffer")
    ibuf_write_pj_per_bit: float | None = _energy("pJ per bit", "write to the input buffer")
    obuf_read_pj_per_bit: float | None = _energy("pJ per bit", "read of the output buffer")
    obuf_write_pj_per_bit: float | None = _energy("pJ per bit", "write to the output buffer")
    dram_read_pj_per_bit: float | None = _energy("pJ per bit", "read of DRAM")
    dram_write_pj_per_bit: float | None = _energy("pJ per bit", "write to DRAM")

    tile_traffic: Literal["exact", "array-padded"] = setting(
        "mapping", "", "what a tile moves: its own operands, or weights and outputs padded to the array"
    )
    tile_capacity: Literal["array-padded", "traffic"] = setting(
        "mapping", "", "what a tile needs of a buffer: padded to the array and to powers of two of bits, or its traffic"
    )
    transfer_overlap: Literal["bounded", "stall"] = setting(
        "mapping",
        "",
        "cycles: the longer of computing with exposed ends and all traffic, or computing plus stalls",
    )
    tile_accesses: Literal["broadcast", "per-mac"] = setting(
        "mapping", "", "buffer reads: an input once for all columns, or every operand of every product"
    )
    depthwise_channels: int = setting(
        "mapping",
        "channels",
        "a depthwise layer is costed as dense convolutions of this many channels times the precision factor",
        low=1,
        high=_MAX_UNITS,
        note=_DEPTHWISE_NOTE,
    )

    def __post_init__(self) -> None:
        settle_settings(self)
        if self.min_bits > self.max_bits:
            raise HardwareError(
                f"{self.name}: min_bits must not exceed max_bits = {self.max_bits}, got {self.min_bits}; set it to the "
                f"narrowest operand that gains speed"
            )
        for label, widths in (("weight_bits", self.weight_bits), ("act_bits", self.act_bits)):
            if max(widths) > self.max_bits:
                raise HardwareError(
                    f"{self.name}: {label} must not exceed max_bits = {self.max_bits}, got {max(widths)}; raise "
                    f"max_bits or drop the width"
                )
        missing = [name for name in _ENERGIES if getattr(self, name) is None]
        if 0 < len(missing) < len(_ENERGIES):
            raise HardwareError(
                f"{self.name}: [energy] must give all {len(_ENERGIES)} energies or none, missing {', '.join(missing)}; "
                f"add them, or leave out the others"
            )

    @property
    def usable_bits(self) -> NDArray[np.float64]:
        """Bits of WBUF, IBUF and OBUF that one tile may fill: (3,)."""
        share = 0.5 if self.double_buffered else 1.0
        return np.array([self.wbuf_bytes, self.ibuf_bytes, self.obuf_bytes]) * (8 * share)

    @property
    def has_energy(self) -> bool:
        """Whether energies are known."""
        return self.dram_read_pj_per_bit is not None

    @property
    def energies_pj(self) -> Mapping[str, float]:
        """The energies by field. Where they are unknown a bit of DRAM alone counts: ties go to the least traffic."""
        given = {name: getattr(self, name) for name in _ENERGIES}
        return given if self.has_energy else {name: float(name.startswith("dram")) for name in given}

    def describe(self) -> Mapping[str, Setting]:
        """Every setting by name that is given, and the model that they belong to."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"model": "bitfusion"} | {name: value for name, value in given.items() if value is not None}

    def layer_cost(self, layer: ConvLayer, precision: Precision, batch: int = 1) -> Cost:
        """Cost of one layer for a batch.

        Raises: HardwareError for a precision that the hardware does not compute, and for a layer that no tiling brings
        into the buffers.
        """
        return self.layer_costs([(layer, precision)], batch)[0]

    def layer_costs(self, entries: Sequence[Entry], batch: int = 1) -> list[Cost]:
        """Costs of many layers for a batch, in their order. Equal problems are solved once.

        Raises: HardwareError as `layer_cost` does, naming the first such layer.
        """
        if not isinstance(batch, int) or batch < 1:
            raise HardwareError(f"batch must be a positive integer, got {batch!r}; give the images computed at once")
        positions: dict[_Key, int] = {}
        named: list[Entry] = []
        places: list[tuple[int, int]] = []
        for layer, precision in entries:
            key, convolutions = self._dense(layer, precision)
            position = positions.setdefault(key, len(positions))
            if position == len(named):
                named.append((layer, precision))
            places.append((position, convolutions))
        if not places:
            return []
        problems = _problems(positions, batch)
        self._check_fit(problems, named)
        mapped = best_mappings(self, problems)
        largest = max(convolutions for _, convolutions in places)
        if max(mapped.counters.max(), mapped.cycles.max()) * largest >= EXACT_LIMIT:
            worst = int(mapped.counters.max(axis=0).argmax())
            raise HardwareError(
                f"{self.name}: counts must stay below 2**53 to be exact, got more for {named[worst][0]} at batch "
                f"{batch}; use a smaller batch"
            )
        all_cycles = mapped.cycles.astype(np.int64).tolist()
        counted = mapped.counters.T.astype(np.int64).tolist()
        energies = mapped.energy_pj.tolist()
        chosen = mapped.tilings
        tile_rows = np.stack([chosen.batch, chosen.size, chosen.in_channels, chosen.out_channels], axis=1)
        tile_sizes = tile_rows.astype(np.int64).tolist()
        loop_names = {tuple(row): tuple(LOOPS[loop] for loop in row) for row in set(map(tuple, mapped.orders.tolist()))}
        loops = [loop_names[tuple(row)] for row in mapped.orders.tolist()]
        made: dict[tuple[int, int], Cost] = {}
        for place in places:
            if place in made:
                continue
            position, count = place
            made[place] = Cost(
                latency_ms=all_cycles[position] * count / self.frequency_hz * 1e3,
                energy_mj=energies[position] * count / _PICOJOULES_PER_MILLIJOULE if self.has_energy else None,
                cycles=all_cycles[position] * count,
                counters=dict(zip(COUNTERS, [value * count for value in counted[position]], strict=True)),
                mapping=LoopNest(*tile_sizes[position], loops=loops[position], convolutions=count),
            )
        return [made[place] for place in places]

    def _dense(self, layer: ConvLayer, precision: Precision) -> tuple[_Key, int]:
        """The dense convolution that a layer is costed as, and how many of them."""
        for label, bits, widths in (
            ("weights", precision.weight_bits, self.weight_bits),
            ("activations", precision.act_bits, self.act_bits),
        ):
            if bits not in widths:
                allowed = ", ".join(map(str, widths))
                raise HardwareError(
                    f"{self.name} computes {label} of {allowed} bits, got {bits} for {layer}; choose one of these or "
                    f"another hardware"
                )
        if layer.is_depthwise:
            widths = np.array([float(precision.act_bits), float(precision.weight_bits)])
            channels = self.depthwise_channels * int(precision_factor(self, widths).prod())
            in_channels = out_channels = channels
            convolutions = -(-layer.in_channels // channels)
        else:
            in_channels, out_channels = layer.in_channels // layer.groups, layer.out_channels // layer.groups
            convolutions = layer.groups
        return (
            in_channels,
            out_channels,
            layer.out_size,
            layer.kernel_size,
            layer.stride,
            layer.im2col,
            precision.weight_bits,
            precision.act_bits,
        ), convolutions

    def _check_fit(self, problems: Problems, named: Sequence[Entry]) -> None:
        """Raises HardwareError for the first problem whose smallest tile exceeds a buffer."""
        needed = tiles(self, problems, smallest_tilings(problems, self.cols)).needed_bits
        too_large = needed > self.usable_bits[:, None]
        if not too_large.any():
            return
        problem = int(too_large.any(axis=0).argmax())
        buffer = int(too_large[:, problem].argmax())
        layer, precision = named[problem]
        label = ("wbuf_bytes", "ibuf_bytes", "obuf_bytes")[buffer]
        usable = "half of " if self.double_buffered else ""
        raise HardwareError(
            f"{self.name}: the smallest tile of {layer} at {precision} must fit {usable}{label} = "
            f"{getattr(self, label)}, got {int(needed[buffer, problem]) / 8:g} bytes; "
            f"it cannot run without a larger buffer"
        )


_ENERGIES = tuple(name for name, doc in setting_docs(BitFusion).items() if doc.section == "energy")


def _problems(keys: Mapping[_Key, int], batch: int) -> Problems:
    columns = np.array(list(keys), dtype=np.float64).T
    in_channels, out_channels, out_size, kernel_size, stride, im2col, weight_bits, act_bits = columns
    return Problems(
        np.full(len(keys), float(batch)),
        in_channels,
        out_channels,
        out_size,
        kernel_size,
        stride,
        im2col.astype(np.bool_),
        weight_bits,
        act_bits,
    )
