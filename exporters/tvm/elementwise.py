"""The kernels without weights: quantize the image, add, average, and turn the last codes into logits."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from exporters.tvm import ir
from exporters.tvm.isa import Isa, chunk_size, load_wide, store_narrow
from exporters.tvm.layout import Clamp, Layout, fill_border


@dataclass(frozen=True)
class QuantizeSpec:
    """float32 image (channels, height, width) -> codes."""

    target: Layout
    scale: float
    clamp: Clamp


@dataclass(frozen=True)
class Operand:
    """An input of an addition. shift: what is taken from the stored byte to have the network's code."""

    layout: Layout
    scale: float
    zero_point: int
    shift: int


@dataclass(frozen=True)
class AddSpec:
    first: Operand
    second: Operand
    target: Layout
    scale: float
    zero_point: int
    clamp: Clamp


@dataclass(frozen=True)
class TableSpec:
    """Each code looked up in a table of 256, an argument of the kernel."""

    source: Layout
    target: Layout
    zero_point: int


@dataclass(frozen=True)
class DequantizeSpec:
    """Codes -> float32 of `shape`, with a batch of 1."""

    source: Layout
    shape: tuple[int, ...]
    scale: float
    zero_point: int


def quantize_kernel(isa: Isa, spec: QuantizeSpec, threads: int) -> ir.Kernel:
    """(image float32, target uint8): round(x / scale) to even, plus the zero point, clamped."""
    target = spec.target
    plane = target.height * target.width
    lanes = max(n for n in (1, 2, 4, 8, 16) if n <= min(isa.lanes, target.width))
    low, high = spec.clamp.low - spec.clamp.zero_point, spec.clamp.high - spec.clamp.zero_point

    def code(image: ir.Buffer, offset: ir.Expr, lanes: int) -> ir.Expr:
        value = ir.load(image, offset, lanes) / ir.splat(spec.scale, "float32", lanes)
        value = ir.clip(value, low, high, "float32", lanes)
        rounded = isa.round(value) if lanes == isa.lanes else ir.cast(ir.T.nearbyint(value), "int32", lanes)
        return ir.bind(rounded + ir.splat(spec.clamp.zero_point, "int32", lanes))

    def body(image: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.clamp.zero_point, isa.width)
        with ir.loop(target.height, threads) as y, ir.loop(ceil(target.width / lanes)) as i:
            x = ir.bind(ir.tirx.min(i * lanes, target.width - lanes))
            place = ir.bind(y * target.width + x)
            start = ir.bind(target.origin + y * target.row + x * target.pitch)
            if target.pitch == 4:
                word = code(image, place, lanes)
                for channel in range(1, target.channels):
                    factor = ir.splat(1 << (8 * channel), "int32", lanes)
                    word = word + code(image, place + channel * plane, lanes) * factor
                ir.store(output, start, ir.bits(word, "uint8", 4 * lanes), 4 * lanes)
                return
            for lane in range(lanes):
                for channel in range(target.pitch):
                    value = ir.T.uint8(0)
                    if channel < target.channels:
                        value = ir.cast(code(image, place + channel * plane + lane, 1), "uint8", 1)
                    ir.store(output, start + lane * target.pitch + channel, value, 1)

    image_shape = (1, target.channels, target.height, target.width)
    return ir.Kernel(((image_shape, "float32"), (target.size, "uint8")), body)


def add_constants(spec: AddSpec) -> tuple[list[float], float, Clamp]:
    """Ratios of the inputs' scales to the output's, the constant of the sum, and the clamp of its rounded value.

    y = a * ra + (b * rb + offset), each a fused multiply-add, offset = zc - fma(ra, za, rb * zb).
    Source: onnxruntime, QLinearAdd.
    """
    single = np.float32
    ratios = [single(single(operand.scale) / single(spec.scale)) for operand in (spec.first, spec.second)]
    inner = single(ratios[1] * single(spec.second.zero_point))
    offset = single(spec.zero_point) - single(np.float64(ratios[0]) * spec.first.zero_point + np.float64(inner))
    # the sum holds the zero point already; what is left to add is the shift of a signed code
    shift = spec.clamp.zero_point - spec.zero_point
    return [float(ratio) for ratio in ratios], float(offset), Clamp(shift, spec.clamp.low, spec.clamp.high)


def add_kernel(isa: Isa, spec: AddSpec, threads: int) -> ir.Kernel:
    """(first uint8, second uint8, target uint8), with onnxruntime's order of roundings."""
    ratios, offset, clamp = add_constants(spec)
    layouts = [spec.first.layout, spec.second.layout, spec.target]
    if not any(any(layout.border) for layout in layouts):
        layouts = [layout.flat() for layout in layouts]
    first, second, target = layouts
    line = target.width * target.pitch
    chunk = chunk_size(isa, line)

    def values(codes: ir.Buffer, start: ir.Expr, operand: Operand) -> list[ir.Expr]:
        found = []
        for piece in load_wide(isa, codes, start, chunk):
            shifted = piece - ir.splat(operand.shift, "int32", isa.lanes) if operand.shift else piece
            found.append(ir.cast(shifted, "float32", isa.lanes))
        return found

    def body(a: ir.Buffer, b: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.clamp.zero_point, isa.width)
        ratio = [ir.splat(value, "float32", isa.lanes) for value in ratios]
        constant = ir.splat(offset, "float32", isa.lanes)
        with ir.loop(target.height, threads) as y, ir.loop(ceil(line / chunk)) as i:
            x = ir.bind(ir.tirx.min(i * chunk, line - chunk))
            places = [ir.bind(layout.origin + y * layout.row + x) for layout in layouts]
            left, right = values(a, places[0], spec.first), values(b, places[1], spec.second)
            total = [
                isa.multiply_add(p, ratio[0], ir.bind(isa.multiply_add(q, ratio[1], constant)))
                for p, q in zip(left, right, strict=True)
            ]
            store_narrow(isa, output, places[2], isa.codes(total, clamp, may_overflow=False), chunk)

    return ir.Kernel(tuple((layout.size, "uint8") for layout in (first, second, target)), body)


def table_kernel(isa: Isa, spec: TableSpec, threads: int) -> ir.Kernel:
    """(source uint8, table uint8, target uint8)."""
    source, target = spec.source, spec.target

    def body(codes: ir.Buffer, table: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.zero_point, isa.width)
        with ir.loop(target.height, threads) as y, ir.loop(target.width * target.pitch) as i:
            code = ir.cast(codes[source.origin + y * source.row + i], "int32", 1)
            ir.store(output, target.origin + y * target.row + i, table[code], 1)

    return ir.Kernel(((source.size, "uint8"), (256, "uint8"), (target.size, "uint8")), body)


def dequantize_kernel(isa: Isa, spec: DequantizeSpec, threads: int) -> ir.Kernel:
    """(source uint8, logits float32)."""
    source = spec.source

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        with ir.loop(source.height) as y, ir.loop(source.width) as x, ir.loop(source.channels) as channel:
            code = codes[source.origin + y * source.row + x * source.pitch + channel]
            value = ir.cast(ir.cast(code, "int32", 1) - spec.zero_point, "float32", 1)
            place = (channel * source.height + y) * source.width + x
            ir.store(output, place, value * ir.splat(spec.scale, "float32", 1), 1)

    return ir.Kernel(((source.size, "uint8"), ((1, *spec.shape), "float32")), body)
