"""Global average and maximum over windows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from exporters.tvm import ir
from exporters.tvm.isa import Isa, chunk_size, load_wide, store_narrow
from exporters.tvm.layout import Clamp, Layout, fill_border

FINITE = 3.0e38  # a bound that no real value reaches: between a product and a sum it keeps LLVM from fusing the two


@dataclass(frozen=True)
class PoolSpec:
    """Global average: the integer sum of the codes times `ratio` (`pool_ratio`)."""

    source: Layout
    source_zero_point: int
    target: Layout
    ratio: float
    clamp: Clamp


@dataclass(frozen=True)
class FloatPoolSpec:
    """Global average of real values, summed one by one in float32, then divided and quantized."""

    source: Layout
    source_zero_point: int
    source_scale: float
    target: Layout
    scale: float
    clamp: Clamp


@dataclass(frozen=True)
class MaxPoolSpec:
    """Maximum over square windows. padding: top and left; it never wins."""

    source: Layout
    target: Layout
    kernel_size: int
    stride: int
    padding: tuple[int, int]
    clamp: Clamp


def pool_ratio(source_scale: float, target_scale: float, pixels: int) -> float:
    """Scale of the sum of a global average. Source: onnxruntime, QLinearGlobalAveragePool."""
    return float(np.float32(source_scale) / np.float32(np.float32(target_scale) * np.float32(pixels)))


def pool_kernel(isa: Isa, spec: PoolSpec, threads: int) -> ir.Kernel:
    """(source uint8, target uint8)."""
    source, target = spec.source, spec.target
    chunk = chunk_size(isa, source.pitch)
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
                for j, piece in enumerate(load_wide(isa, codes, start, chunk)):
                    sums[j] = sums[j] + piece
            ratio = ir.splat(spec.ratio, "float32", isa.lanes)
            values = [ir.cast(sums[j], "float32", isa.lanes) * ratio for j in range(4)]
            packed = isa.codes(values, spec.clamp, may_overflow=False)
            store_narrow(isa, output, target.origin + channel, packed, chunk)

    return ir.Kernel(((source.size, "uint8"), (target.size, "uint8")), body)


def float_pool_kernel(isa: Isa, spec: FloatPoolSpec, threads: int) -> ir.Kernel:
    """(source uint8, target uint8), with the roundings of onnxruntime's AveragePool and ReduceMean."""
    source, target, lanes = spec.source, spec.target, isa.lanes
    chunk = chunk_size(isa, source.pitch)
    pixels = source.height * source.width

    def constant(value: float, dtype: str = "float32") -> ir.Expr:
        return ir.splat(value, dtype, lanes)

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.clamp.zero_point, isa.width)
        with ir.loop(ceil(source.pitch / chunk), threads) as i:
            channel = ir.bind(ir.tirx.min(i * chunk, source.pitch - chunk))
            sums = ir.Accumulators(4, "float32", lanes)
            for j in range(4):
                sums[j] = constant(0.0)
            with ir.loop(source.height) as y, ir.loop(source.width) as x:
                start = ir.bind(source.origin + y * source.row + x * source.pitch + channel)
                for j, piece in enumerate(load_wide(isa, codes, start, chunk)):
                    real = ir.cast(piece - constant(spec.source_zero_point, "int32"), "float32", lanes)
                    sums[j] = sums[j] + ir.tirx.min(real * constant(spec.source_scale), constant(FINITE))
            values = [sums[j] / constant(pixels) / constant(spec.scale) for j in range(4)]
            packed = isa.codes(values, spec.clamp, may_overflow=True)
            store_narrow(isa, output, target.origin + channel, packed, chunk)

    return ir.Kernel(((source.size, "uint8"), (target.size, "uint8")), body)


def max_pool_kernel(isa: Isa, spec: MaxPoolSpec, threads: int) -> ir.Kernel:
    """(source uint8, target uint8)."""
    source, target = spec.source, spec.target
    chunk = chunk_size(isa, source.pitch)

    def inside(index: ir.Expr, size: int) -> ir.Expr:
        """The nearest index within the image: a window holds it, so a repeated pixel cannot change the maximum."""
        return ir.tirx.max(ir.tirx.min(index, size - 1), 0)

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        fill_border(output, target, spec.clamp.zero_point, isa.width)
        with (
            ir.loop(target.height, threads) as y,
            ir.loop(target.width) as x,
            ir.loop(ceil(source.pitch / chunk)) as i,
        ):
            channel = ir.bind(ir.tirx.min(i * chunk, source.pitch - chunk))
            largest = None
            for k_y in range(spec.kernel_size):
                row = ir.bind(inside(y * spec.stride + k_y - spec.padding[0], source.height) * source.row)
                for k_x in range(spec.kernel_size):
                    column = inside(x * spec.stride + k_x - spec.padding[1], source.width) * source.pitch
                    found = ir.load(codes, source.origin + row + column + channel, chunk)
                    largest = ir.bind(found if largest is None else ir.tirx.max(largest, found))
            clamped = ir.clip(largest, spec.clamp.low, spec.clamp.high, "uint8", chunk)
            ir.store(output, target.origin + y * target.row + x * target.pitch + channel, clamped, chunk)

    return ir.Kernel(((source.size, "uint8"), (target.size, "uint8")), body)
