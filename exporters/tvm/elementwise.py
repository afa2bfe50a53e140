"""The kernels without weights: quantize the image, add, average, and turn the last codes into logits."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from exporters.tvm import ir
from exporters.tvm.isa import Isa
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
class PoolSpec:
    """Global average; `ratio` as `pool_ratio` gives it."""

    source: Layout
    source_zero_point: int
    target: Layout
    ratio: float
    clamp: Clamp


@dataclass(frozen=True)
class DequantizeSpec:
    """Codes -> float32 of `shape`, with a batch of 1."""

    source: Layout
    shape: tuple[int, ...]
    scale: float
    zero_point: int


def pool_ratio(source_scale: float, target_scale: float, pixels: int) -> float:
    """Scale of the sum of a global average. Source: onnxruntime, QLinearGlobalAveragePool."""
    return float(np.float32(source_scale) / np.float32(np.float32(target_scale) * np.float32(pixels)))


def quantize_kernel(isa: Isa, spec: QuantizeSpec, threads: int) -> ir.tirx.PrimFunc:
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
    return ir.kernel("quantize", [(image_shape, "float32"), (target.size, "uint8")], body)


def add_kernel(isa: Isa, spec: AddSpec, threads: int) -> ir.tirx.PrimFunc:
    """(first uint8, second uint8, target uint8), with onnxruntime's order of roundings.

    y = a * ra + (b * rb + offset), each a fused multiply-add, offset = zc - fma(ra, za, rb * zb).
    Source: onnxruntime, QLinearAdd.
    """
    single = np.float32
    ratios = [single(single(operand.scale) / single(spec.scale)) for operand in (spec.first, spec.second)]
    inner = single(ratios[1] * single(spec.second.zero_point))
    offset = single(spec.zero_point) - single(np.float64(ratios[0]) * spec.first.zero_point + np.float64(inner))
    layouts = [spec.first.layout, spec.second.layout, spec.target]
    if not any(any(layout.border) for layout in layouts):
        layouts = [layout.flat() for layout in layouts]
    first, second, target = layouts
    line = target.width * target.pitch
    # what the rounded sum must be moved by to be the stored byte, and the clamp in the same terms
    shift = spec.clamp.zero_point - spec.zero_point
    clamp = Clamp(shift, spec.clamp.low, spec.clamp.high)
    chunk = _chunk(isa, line)

    def values(codes: ir.Buffer, start: ir.Expr, operand: Operand) -> list[ir.Expr]:
        found = []
        for piece in _load_wide(isa, codes, start, chunk):
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
            _store_narrow(isa, output, places[2], isa.codes(total, clamp, may_overflow=False), chunk)

    return ir.kernel("add", [(layout.size, "uint8") for layout in (first, second, target)], body)


def pool_kernel(isa: Isa, spec: PoolSpec, threads: int) -> ir.tirx.PrimFunc:
    """(source uint8, target uint8)."""
    source, target = spec.source, spec.target
    chunk = _chunk(isa, source.pitch)
    pixels = source.height * source.width

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.clamp.zero_point, isa.width)
        with ir.loop(ceil(source.pitch / chunk), threads) as i:
            channel = ir.bind(ir.tirx.min(i * chunk, source.pitch - chunk))
            sums = ir.Accumulators(4, "int32", isa.lanes)
            for j in range(4):
                sums[j] = ir.splat(-spec.source_zero_point * pixels, "int32", isa.lanes)
            with ir.loop(source.height) as y, ir.loop(source.width) as x:
                start = ir.bind(source.origin + y * source.row + x * source.pitch + channel)
                for j, piece in enumerate(_load_wide(isa, codes, start, chunk)):
                    sums[j] = sums[j] + piece
            ratio = ir.splat(spec.ratio, "float32", isa.lanes)
            values = [ir.cast(sums[j], "float32", isa.lanes) * ratio for j in range(4)]
            packed = isa.codes(values, spec.clamp, may_overflow=False)
            _store_narrow(isa, output, target.origin + channel, packed, chunk)

    return ir.kernel("pool", [(source.size, "uint8"), (target.size, "uint8")], body)


def dequantize_kernel(isa: Isa, spec: DequantizeSpec, threads: int) -> ir.tirx.PrimFunc:
    """(source uint8, logits float32)."""
    source = spec.source

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        with ir.loop(source.height) as y, ir.loop(source.width) as x, ir.loop(source.channels) as channel:
            code = codes[source.origin + y * source.row + x * source.pitch + channel]
            value = ir.cast(ir.cast(code, "int32", 1) - spec.zero_point, "float32", 1)
            place = (channel * source.height + y) * source.width + x
            ir.store(output, place, value * ir.splat(spec.scale, "float32", 1), 1)

    return ir.kernel("dequantize", [(source.size, "uint8"), ((1, *spec.shape), "float32")], body)


def _chunk(isa: Isa, line: int) -> int:
    """Codes taken at once from a line of `line` bytes, a multiple of 16."""
    return max(size for size in (16, 32, 64) if size <= min(isa.width, line))


def _load_wide(isa: Isa, codes: ir.Buffer, start: ir.Expr, count: int) -> list[ir.Expr]:
    """`count` codes (repeated to fill a vector) as four int32 vectors, in the order that `Isa.codes` takes."""
    found = ir.load(codes, start, count)
    if count < isa.width:
        found = ir.shuffle([found] * (isa.width // count), range(isa.width))
    found, zero = ir.bind(found), ir.splat(0, "uint8", isa.width)
    halves = [ir.bind(ir.unpack(isa.width, 1, high, found, zero)) for high in (0, 1)]
    words = [ir.unpack(isa.width, 2, high, half, zero) for half in halves for high in (0, 1)]
    return [ir.bits(word, "int32", isa.lanes) for word in words]


def _store_narrow(isa: Isa, output: ir.Buffer, start: ir.Expr, codes: ir.Expr, count: int) -> None:
    ir.store(output, start, codes if count == isa.width else ir.shuffle([codes], range(count)), count)
