"""The same kernels as plain loops over single numbers, for C source that any compiler takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import ir
from exporters.tvm.conv import ConvSpec
from exporters.tvm.depthwise import DepthwiseSpec
from exporters.tvm.elementwise import AddSpec, DequantizeSpec, Operand, QuantizeSpec, add_constants
from exporters.tvm.isa import ROUNDING_OFFSET, Isa
from exporters.tvm.layout import Clamp, Layout
from exporters.tvm.pooling import FINITE, FloatPoolSpec, MaxPoolSpec, PoolSpec


@dataclass(frozen=True)
class Plain(Isa):
    """No vectors."""

    lanes: int = 1
    registers: int = 16
    fma: bool = False

    @property
    def tile_limit(self) -> int:
        return 1

    def dot(self, total: ir.Expr, quads: ir.Expr, weights: ir.Expr) -> ir.Expr:
        return total + quads * weights


PLAIN = Plain()
NUMBER_FROM_BITS = "apq_float"  # a C function that whoever prints the source has to define


def number(value: float) -> ir.Expr:
    """A float32 constant by its bits: TVM would print it with seven digits, two less than it takes."""
    bits = int(np.float32(value).view(np.uint32))
    return ir.T.call_extern("float32", NUMBER_FROM_BITS, ir.tirx.IntImm("uint32", bits))


def pack_conv(isa: Isa, spec: ConvSpec, weight: NDArray[np.int8]) -> NDArray[np.int16]:
    """(parts, out, in, k_h, k_w) -> [out][k_h][k_w][in], zeros up to the target's pitch."""
    _, out, inside, k_h, k_w = weight.shape
    packed = np.zeros((spec.target.pitch, k_h, k_w, inside), np.int16)
    packed[:out] = weight.sum(0, dtype=np.int16).transpose(0, 2, 3, 1)
    return packed.reshape(-1)


def pack_depthwise(isa: Isa, spec: DepthwiseSpec, weight: NDArray[np.int8]) -> NDArray[np.int16]:
    """(parts, channels, 1, k_h, k_w) -> [k_h][k_w][channel], zeros up to the pitch."""
    packed = np.zeros((*spec.kernel, spec.source.pitch), np.int16)
    packed[..., : weight.shape[1]] = weight.sum(0, dtype=np.int16)[:, 0].transpose(1, 2, 0)
    return packed.reshape(-1)


def natural_order(isa: Isa, spec: ConvSpec | DepthwiseSpec) -> NDArray[np.int64]:
    return np.arange(spec.target.pitch)


def conv_kernel(isa: Isa, spec: ConvSpec, threads: int) -> ir.Kernel:
    source, target = spec.source, spec.target
    window = spec.kernel[0] * spec.kernel[1] * source.channels

    def body(codes: ir.Buffer, weights: ir.Buffer, bias: ir.Buffer, scale: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        with ir.loop(target.height) as y, ir.loop(target.width) as x, ir.loop(target.pitch) as n:
            total = ir.Accumulators(1, "int32", 1)
            total[0] = bias[n]
            with ir.loop(spec.kernel[0]) as k_y, ir.loop(spec.kernel[1]) as k_x, ir.loop(source.channels) as k:
                code = codes[_place(spec, y, x, k_y, k_x) + k]
                weight = weights[n * window + (k_y * spec.kernel[1] + k_x) * source.channels + k]
                total[0] = total[0] + ir.cast(code, "int32", 1) * ir.cast(weight, "int32", 1)
            value = ir.cast(total[0], "float32", 1) * scale[n]
            write(output, target.origin + y * target.row + x * target.pitch + n, value, spec.clamp)

    arguments = (
        (source.size, "uint8"),
        (target.pitch * window, "int16"),
        (target.pitch, "int32"),
        (target.pitch, "float32"),
        (target.size, "uint8"),
    )
    return ir.Kernel(arguments, body)


def depthwise_kernel(isa: Isa, spec: DepthwiseSpec, threads: int) -> ir.Kernel:
    source, target = spec.source, spec.target

    def body(codes: ir.Buffer, weights: ir.Buffer, bias: ir.Buffer, scale: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        with ir.loop(target.height) as y, ir.loop(target.width) as x, ir.loop(target.pitch) as n:
            total = ir.Accumulators(1, "int32", 1)
            total[0] = bias[n]
            with ir.loop(spec.kernel[0]) as k_y, ir.loop(spec.kernel[1]) as k_x:
                code = codes[_place(spec, y, x, k_y, k_x) + n]
                weight = weights[(k_y * spec.kernel[1] + k_x) * source.pitch + n]
                total[0] = total[0] + ir.cast(code, "int32", 1) * ir.cast(weight, "int32", 1)
            value = ir.cast(total[0], "float32", 1) * scale[n]
            write(output, target.origin + y * target.row + x * target.pitch + n, value, spec.clamp)

    arguments = (
        (source.size, "uint8"),
        (spec.kernel[0] * spec.kernel[1] * source.pitch, "int16"),
        (target.pitch, "int32"),
        (target.pitch, "float32"),
        (target.size, "uint8"),
    )
    return ir.Kernel(arguments, body)


def quantize_kernel(isa: Isa, spec: QuantizeSpec, threads: int) -> ir.Kernel:
    target = spec.target

    def body(image: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        with ir.loop(target.channels) as channel, ir.loop(target.height) as y, ir.loop(target.width) as x:
            value = image[(channel * target.height + y) * target.width + x] / number(spec.scale)
            write(output, target.origin + y * target.row + x * target.pitch + channel, value, spec.clamp)

    image_shape = (1, target.channels, target.height, target.width)
    return ir.Kernel(((image_shape, "float32"), (target.size, "uint8")), body)


def add_kernel(isa: Isa, spec: AddSpec, threads: int) -> ir.Kernel:
    ratios, offset, clamp = add_constants(spec)
    target = spec.target

    def real(codes: ir.Buffer, y: ir.Expr, i: ir.Expr, operand: Operand) -> ir.Expr:
        code = codes[operand.layout.origin + y * operand.layout.row + i]
        return ir.cast(ir.cast(code, "int32", 1) - operand.shift, "float32", 1)

    def body(a: ir.Buffer, b: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        ratio = [number(value) for value in ratios]
        with ir.loop(target.height) as y, ir.loop(target.width * target.pitch) as i:
            inner = ir.bind(isa.multiply_add(real(b, y, i, spec.second), ratio[1], number(offset)))
            total = isa.multiply_add(real(a, y, i, spec.first), ratio[0], inner)
            write(output, target.origin + y * target.row + i, total, clamp)

    sizes = (spec.first.layout.size, spec.second.layout.size, target.size)
    return ir.Kernel(tuple((size, "uint8") for size in sizes), body)


def pool_kernel(isa: Isa, spec: PoolSpec, threads: int) -> ir.Kernel:
    source, target = spec.source, spec.target
    pixels = source.height * source.width

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        with ir.loop(source.pitch) as channel:
            total = ir.Accumulators(1, "int32", 1)
            total[0] = ir.splat(-spec.source_zero_point * pixels, "int32", 1)
            with ir.loop(source.height) as y, ir.loop(source.width) as x:
                code = codes[source.origin + y * source.row + x * source.pitch + channel]
                total[0] = total[0] + ir.cast(code, "int32", 1)
            value = ir.cast(total[0], "float32", 1) * number(spec.ratio)
            write(output, target.origin + channel, value, spec.clamp)

    return ir.Kernel(((source.size, "uint8"), (target.size, "uint8")), body)


def float_pool_kernel(isa: Isa, spec: FloatPoolSpec, threads: int) -> ir.Kernel:
    source, target = spec.source, spec.target

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        with ir.loop(source.pitch) as channel:
            total = ir.Accumulators(1, "float32", 1)
            total[0] = number(0.0)
            with ir.loop(source.height) as y, ir.loop(source.width) as x:
                code = codes[source.origin + y * source.row + x * source.pitch + channel]
                real = ir.cast(ir.cast(code, "int32", 1) - spec.source_zero_point, "float32", 1)
                product = real * number(spec.source_scale)
                total[0] = total[0] + ir.tirx.min(product, number(FINITE))
            mean = total[0] / number(source.height * source.width)
            write(output, target.origin + channel, mean / number(spec.scale), spec.clamp)

    return ir.Kernel(((source.size, "uint8"), (target.size, "uint8")), body)


def max_pool_kernel(isa: Isa, spec: MaxPoolSpec, threads: int) -> ir.Kernel:
    source, target = spec.source, spec.target

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        fill(output, target, spec.clamp)
        with ir.loop(target.height) as y, ir.loop(target.width) as x, ir.loop(source.pitch) as channel:
            largest = ir.Accumulators(1, "uint8", 1)
            largest[0] = ir.splat(0, "uint8", 1)
            with ir.loop(spec.kernel_size) as k_y, ir.loop(spec.kernel_size) as k_x:
                row = y * spec.stride + k_y - spec.padding[0]
                column = x * spec.stride + k_x - spec.padding[1]
                inside = ir.I.And(ir.I.And(row >= 0, row < source.height), ir.I.And(column >= 0, column < source.width))
                with ir.I.If(inside), ir.I.Then():
                    code = codes[source.origin + row * source.row + column * source.pitch + channel]
                    largest[0] = ir.tirx.max(largest[0], code)
            clamped = ir.clip(largest[0], spec.clamp.low, spec.clamp.high, "uint8", 1)
            ir.store(output, target.origin + y * target.row + x * target.pitch + channel, clamped, 1)

    return ir.Kernel(((source.size, "uint8"), (target.size, "uint8")), body)


def dequantize_kernel(isa: Isa, spec: DequantizeSpec, threads: int) -> ir.Kernel:
    source = spec.source

    def body(codes: ir.Buffer, output: ir.Buffer) -> None:
        with ir.loop(source.height) as y, ir.loop(source.width) as x, ir.loop(source.channels) as channel:
            code = codes[source.origin + y * source.row + x * source.pitch + channel]
            value = ir.cast(ir.cast(code, "int32", 1) - spec.zero_point, "float32", 1)
            ir.store(output, (channel * source.height + y) * source.width + x, value * number(spec.scale), 1)

    return ir.Kernel(((source.size, "uint8"), ((1, *spec.shape), "float32")), body)


def _place(spec: ConvSpec | DepthwiseSpec, y: ir.Expr, x: ir.Expr, k_y: ir.Expr, k_x: ir.Expr) -> ir.Expr:
    """Offset of the input pixel under place (k_y, k_x) of the kernel."""
    source = spec.source
    row = (y * spec.stride + k_y - spec.padding[0]) * source.row
    return source.origin + row + (x * spec.stride + k_x - spec.padding[1]) * source.pitch


def fill(output: ir.Buffer, layout: Layout, clamp: Clamp) -> None:
    """Write the zero point everywhere, the image to come included: only its border stays."""
    if any(layout.border) or layout.channels < layout.pitch:
        with ir.loop(layout.size) as i:
            ir.store(output, i, ir.splat(clamp.zero_point, "uint8", 1), 1)


def write(output: ir.Buffer, place: ir.Expr, value: ir.Expr, clamp: Clamp) -> None:
    """Round a float32 half to even, shift and clamp it, and store it as a code."""
    low, high = clamp.low - clamp.zero_point, clamp.high - clamp.zero_point
    offset = number(ROUNDING_OFFSET)
    # two sums instead of a look at the float's bits, which C compilers may assume never happens
    rounded = ir.bind(ir.bind(ir.clip(value, low, high, "float32", 1) + offset) - offset)
    code = ir.cast(rounded, "int32", 1) + clamp.zero_point
    ir.store(output, place, ir.cast(code, "uint8", 1), 1)
