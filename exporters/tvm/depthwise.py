"""Depthwise convolution: columns are interleaved byte by byte, so that one dot product takes four taps of a channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import ir
from exporters.tvm.isa import Isa
from exporters.tvm.layout import Clamp, Layout, fill_border


@dataclass(frozen=True)
class DepthwiseSpec:
    """What sets the code of a depthwise convolution apart. padding, may_overflow and parts: as in `ConvSpec`."""

    source: Layout
    target: Layout
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    clamp: Clamp
    may_overflow: bool = False
    parts: int = 1

    @property
    def quads(self) -> int:
        """Vectors of four columns that a window spans."""
        return -(-self.kernel[1] // 4)

    @property
    def outputs(self) -> int:
        """Neighbouring outputs that one window of `quads` serves, with the taps shifted."""
        free = self.quads * 4 - self.kernel[1]
        return 2 if free >= self.stride and self.stride == 1 else 1

    @property
    def advance(self) -> int:
        """Columns from a window to the next."""
        return self.outputs * self.stride


def channel_groups(isa: Isa, pitch: int) -> list[tuple[int, int]]:
    """(first channel, channels) of groups that fill a vector of codes, or half or a quarter of it for the rest."""
    groups, start, width = [], 0, isa.width
    while start < pitch:
        while pitch - start < width:
            width //= 2
        groups.append((start, width))
        start += width
    return groups


def group_channels(isa: Isa, first: int, count: int) -> NDArray[np.int64]:
    """The channel of each (vector, lane) of a group's sums: (4 * lanes,)."""
    return first + isa.interleave() % count


def weight_blocks(spec: DepthwiseSpec) -> list[tuple[int, int, int]]:
    """(row, output, quad) of the blocks of weights a group needs, in the order they are stored."""
    return [
        (row, output, quad)
        for row in range(spec.kernel[0])
        for output in range(spec.outputs)
        for quad in range(spec.quads)
        if any(0 <= 4 * quad + i - output * spec.stride < spec.kernel[1] for i in range(4))
    ]


def pack_depthwise(isa: Isa, spec: DepthwiseSpec, weight: NDArray[np.int8]) -> NDArray[np.generic]:
    """(parts, channels, 1, k_h, k_w) -> [group][block][part][4 vectors][lane][4]."""
    pitch, width = spec.source.pitch, spec.kernel[1]
    span = spec.quads * 4 + spec.outputs * spec.stride
    parts, channels = weight.shape[:2]
    padded = np.zeros((parts, pitch, spec.kernel[0], 2 * span), np.int8)  # the taps stand in the middle of zeros
    padded[:, :channels, :, span : span + width] = weight[:, :, 0]
    blocks = []
    for first, count in channel_groups(isa, pitch):
        order = group_channels(isa, first, count)
        for row, output, quad in weight_blocks(spec):
            tap = span + 4 * quad - output * spec.stride
            blocks.append(padded[:, order, row, tap : tap + 4].reshape(parts, 4, isa.lanes, 4))
    return isa.pack_weights(np.stack(blocks))


def group_order(isa: Isa, spec: DepthwiseSpec) -> NDArray[np.int64]:
    """The channel at each place of the packed biases and scales."""
    pitch = spec.source.pitch
    return np.concatenate([group_channels(isa, first, count) for first, count in channel_groups(isa, pitch)])


def depthwise_kernel(isa: Isa, spec: DepthwiseSpec, threads: int) -> ir.Kernel:
    """(source uint8, weights, bias int32, scale float32, target uint8)."""
    source, target = spec.source, spec.target
    groups = channel_groups(isa, source.pitch)
    wide = sum(count == isa.width for _, count in groups)
    group_blocks = len(weight_blocks(spec)) * spec.parts * 4

    def body(codes: ir.Buffer, weights: ir.Buffer, bias: ir.Buffer, scale: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.clamp.zero_point, isa.width)
        buffers = (codes, weights, bias, scale, output)
        with ir.loop(target.height, threads) as y:
            if wide:
                with ir.loop(wide) as group:
                    _row(isa, spec, buffers, y, group, group * isa.width, isa.width)
            for index, (first, count) in enumerate(groups):
                if count < isa.width:
                    _row(isa, spec, buffers, y, ir.tirx.IntImm("int32", index), first, count)

    arguments = (
        (source.size, "uint8"),
        (len(groups) * group_blocks * isa.block, isa.weight_dtype),
        (len(groups) * isa.width, "int32"),
        (len(groups) * isa.width, "float32"),
        (target.size, "uint8"),
    )
    return ir.Kernel(arguments, body)


def _row(
    isa: Isa,
    spec: DepthwiseSpec,
    buffers: tuple[ir.Buffer, ...],
    y: ir.Expr,
    group: ir.Expr,
    first: ir.Expr,
    count: int,
) -> None:
    """One row of outputs of one group of channels, in tiles that overlap at the end."""
    width = spec.target.width
    sets = isa.width // count  # pixel sets that share a vector
    unit = sets * spec.outputs
    # Four sums for each output: sixteen in 32 registers, eight in 16.
    steps = max(1, (4 if isa.registers > 16 else 2) // spec.outputs)
    while steps > 1 and unit * (steps - 1) >= width:
        steps -= 1
    tile = min(unit * steps, width)
    with ir.loop(-(-width // tile)) as column:
        x = ir.bind(ir.tirx.min(column * tile, width - tile))
        _Tile(isa, spec, buffers, y, x, group, first, count, steps, tile).emit()


@dataclass
class _Tile:
    isa: Isa
    spec: DepthwiseSpec
    buffers: tuple[ir.Buffer, ...]
    y: ir.Expr
    x: ir.Expr
    group: ir.Expr
    first: ir.Expr
    count: int
    steps: int
    outputs: int  # how many are stored; the windows of the last step may reach further

    def emit(self) -> None:
        spec, isa = self.spec, self.isa
        bias, scale = self.buffers[2:4]
        sums: dict[tuple[int, int], list[ir.Expr]] = {}
        initial = [ir.bind(ir.load(bias, self.group * isa.width + j * isa.lanes, isa.lanes)) for j in range(4)]
        for row in range(spec.kernel[0]):
            for key, quad, block in self._products(row):
                totals = sums.get(key, initial)
                for part in range(spec.parts):
                    totals = [
                        ir.bind(isa.dot(total, codes, self._weights(block * spec.parts + part, j)))
                        for j, (total, codes) in enumerate(zip(totals, quad, strict=True))
                    ]
                sums[key] = totals
        scales = [ir.bind(ir.load(scale, self.group * isa.width + j * isa.lanes, isa.lanes)) for j in range(4)]
        for (step, output), totals in sums.items():
            values = [
                ir.cast(total, "float32", isa.lanes) * factor for total, factor in zip(totals, scales, strict=True)
            ]
            self._store(step, output, ir.bind(isa.codes(values, spec.clamp, spec.may_overflow)))

    def _products(self, row: int) -> Iterator[tuple[tuple[int, int], list[ir.Expr], int]]:
        """((step, output), four vectors of quads, block of weights) of one row of the kernel."""
        spec, sets = self.spec, self.isa.width // self.count
        columns: dict[int, ir.Expr] = {}
        pairs: dict[int, list[ir.Expr]] = {}
        quads: dict[int, list[ir.Expr]] = {}

        def column(c: int) -> ir.Expr:
            if c not in columns:
                columns[c] = self._load(row, c)
            return columns[c]

        def pair(c: int) -> list[ir.Expr]:
            if c not in pairs:
                pairs[c] = [ir.bind(ir.unpack(self.isa.width, 1, high, column(c), column(c + 1))) for high in (0, 1)]
            return pairs[c]

        def quad_at(c: int) -> list[ir.Expr]:
            if c not in quads:
                left, right = pair(c), pair(c + 2)
                halves = [(left[half], right[half], high) for half in (0, 1) for high in (0, 1)]
                quads[c] = [self.isa.quads(ir.bind(ir.unpack(self.isa.width, 2, high, a, b))) for a, b, high in halves]
            return quads[c]

        blocks = {place: index for index, place in enumerate(weight_blocks(spec))}
        for step in range(self.steps):
            for quad in range(spec.quads):
                codes = quad_at(step * sets * spec.advance + 4 * quad)
                for output in range(spec.outputs):
                    if (row, output, quad) in blocks:
                        yield (step, output), codes, blocks[row, output, quad]

    def _load(self, row: int, column: int) -> ir.Expr:
        """Codes of a column, and of those a step further for the other pixel sets."""
        spec, codes = self.spec, self.buffers[0]
        source = spec.source
        # A column beyond the last one needed has zero weights: any code will do, so none outside is read.
        last = (self.outputs - 1) * spec.stride + spec.kernel[1] - 1
        start = (
            source.origin
            + (self.y * spec.stride + row - spec.padding[0]) * source.row
            + (self.x * spec.stride - spec.padding[1]) * source.pitch
            + self.first
        )
        parts = [
            ir.load(codes, start + min(column + i * spec.advance, last) * source.pitch, self.count)
            for i in range(self.isa.width // self.count)
        ]
        return ir.bind(parts[0] if len(parts) == 1 else ir.shuffle(parts, range(self.isa.width)))

    def _weights(self, block: int, j: int) -> ir.Expr:
        per_group = len(weight_blocks(self.spec)) * self.spec.parts * 4
        return self.isa.weights(self.buffers[1], self.group * per_group + block * 4 + j)

    def _store(self, step: int, output: int, codes: ir.Expr) -> None:
        target, sets = self.spec.target, self.isa.width // self.count
        base = target.origin + self.y * target.row + self.x * target.pitch + self.first
        for i in range(sets):
            place = (step * sets + i) * self.spec.outputs + output
            if place < self.outputs:
                start = i * self.count
                part = codes if sets == 1 else ir.shuffle([codes], range(start, start + self.count))
                ir.store(self.buffers[4], base + place * target.pitch, part, self.count)
