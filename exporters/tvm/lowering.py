"""A quantized network as a TVM module: one kernel for each layer, called in turn by a Relax function."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from exporters.errors import ExportError
from exporters.qnet import QAdd, QConv, QDepthwise, QLinear, QPool, QTensor, QuantizedNetwork, QWeighted
from exporters.tvm.conv import ConvSpec, channel_order, conv_kernel, pack_conv
from exporters.tvm.depthwise import DepthwiseSpec, depthwise_kernel, group_order, pack_depthwise
from exporters.tvm.elementwise import (
    AddSpec,
    DequantizeSpec,
    Operand,
    PoolSpec,
    QuantizeSpec,
    add_kernel,
    dequantize_kernel,
    pool_kernel,
    pool_ratio,
    quantize_kernel,
)
from exporters.tvm.isa import Isa
from exporters.tvm.layout import SIGNED_SHIFT, Border, Clamp, Layout

KERNELS = {
    ConvSpec: conv_kernel,
    DepthwiseSpec: depthwise_kernel,
    QuantizeSpec: quantize_kernel,
    AddSpec: add_kernel,
    PoolSpec: pool_kernel,
    DequantizeSpec: dequantize_kernel,
}
Spec = ConvSpec | DepthwiseSpec | QuantizeSpec | AddSpec | PoolSpec | DequantizeSpec
INT32_LIMIT = 2.0**31


@dataclass(frozen=True)
class Step:
    """A call of a kernel: what it computes, its constant arguments between the sources and the target."""

    layer: str
    spec: Spec
    sources: tuple[str, ...]
    target: str
    constants: tuple[NDArray[Any], ...] = ()


@dataclass(frozen=True)
class Program:
    """A network as steps; `layouts` holds how each activation lies in memory."""

    steps: tuple[Step, ...]
    layouts: dict[str, Layout] = field(hash=False)


def plan(net: QuantizedNetwork, isa: Isa) -> Program:
    """The steps that compute `net` with the instructions of `isa`.

    Raises: ExportError if a layer's shapes do not fit.
    """
    layouts = plan_layouts(net)
    tensors = net.tensors
    steps = [
        Step(
            "quantize",
            QuantizeSpec(layouts[net.input.name], _single(net.input.scale), Clamp.of(net.input)),
            (),
            net.input.name,
        )
    ]
    for layer in net.layers:
        match layer:
            case QAdd():
                steps.append(_add_step(layer, layouts, tensors))
            case QPool():
                steps.append(_pool_step(layer, layouts, tensors))
            case QDepthwise():
                steps.append(_depthwise_step(isa, layer, layouts, tensors[layer.input]))
            case QConv() | QLinear():
                steps.append(_conv_step(isa, layer, layouts, tensors[layer.input]))
    output = net.output
    spec = DequantizeSpec(layouts[output.name], output.shape, _single(output.scale), Clamp.of(output).zero_point)
    steps.append(Step("dequantize", spec, (output.name,), ""))
    return Program(tuple(steps), layouts)


def plan_layouts(net: QuantizedNetwork) -> dict[str, Layout]:
    """How each activation lies in memory: with the widest padding that any of its readers asks for."""
    borders: dict[str, Border] = {}
    for layer in net.layers:
        if isinstance(layer, QConv | QDepthwise):
            known = borders.get(layer.input, (0, 0, 0, 0))
            top, left, bottom, right = (max(pair) for pair in zip(known, layer.padding, strict=True))
            borders[layer.input] = (top, left, bottom, right)
    readers = [layer for layer in net.layers if net.input.name in layer.inputs]
    narrow = all(isinstance(layer, QConv | QLinear) for layer in readers)
    layouts = {}
    for name, tensor in net.tensors.items():
        channels, height, width = _image_shape(tensor)
        multiple = 4 if narrow and name == net.input.name else 16
        pitch = -(-channels // multiple) * multiple
        layouts[name] = Layout(channels, height, width, pitch, borders.get(name, (0, 0, 0, 0)))
    return layouts


def build_module(
    program: Program, isa: Isa, threads: int
) -> tvm.IRModule:
    """Relax functions `main` (image -> logits) and `tensors` (image -> every activation's bytes, in order)."""
    image_layout = program.layouts[program.steps[0].target]
    image_shape = image_layout.channels, image_layout.height, image_layout.width
    builder = relax.BlockBuilder()
    kernels: dict[Hashable, Any] = {}
    constants = {id(array): relax.const(array) for step in program.steps for array in step.constants}

    def kernel(step: Step) -> Any:
        if step.spec not in kernels:
            function = KERNELS[type(step.spec)](isa, step.spec, threads)
            name = f"{type(step.spec).__name__.removesuffix('Spec').lower()}_{len(kernels)}"
            kernels[step.spec] = builder.add_func(function.with_attr("global_symbol", name), name)
        return kernels[step.spec]

    for function in ("main", "tensors"):
        image = relax.Var("image", relax.TensorType((1, *image_shape), "float32"))
        with builder.function(function, [image]):
            values: dict[str, Any] = {}
            result: Any = None
            for step in program.steps:
                sources = [values[name] for name in step.sources] or [image]
                arguments = [*sources, *(constants[id(array)] for array in step.constants)]
                if isinstance(step.spec, DequantizeSpec):
                    if function == "tensors":
                        break
                    kind = relax.TensorType((1, *step.spec.shape), "float32")
                else:
                    kind = relax.TensorType((program.layouts[step.target].size,), "uint8")
                result = builder.emit(relax.call_tir(kernel(step), arguments, kind))
                values[step.target] = result
            builder.emit_func_output(result if function == "main" else relax.Tuple(list(values.values())))
    return builder.finalize()


def _image_shape(tensor: QTensor) -> tuple[int, int, int]:
    if len(tensor.shape) == 1:
        return tensor.shape[0], 1, 1
    if len(tensor.shape) == 3:
        channels, height, width = tensor.shape
        return channels, height, width
    raise ExportError(
        f"tensor {tensor.name}: expected shape (channels, height, width) or (features,), got {tensor.shape}"
    )


def _single(value: float) -> float:
    return float(np.float32(value))


@dataclass(frozen=True)
class _Arithmetic:
    """Bias and scale of a layer with the input's zero point worked in, padded to the target's pitch."""

    bias: NDArray[np.int32]
    scale: NDArray[np.float32]
    may_overflow: bool

    def ordered(self, order: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        return np.ascontiguousarray(self.bias[order]), np.ascontiguousarray(self.scale[order])


def _arithmetic(layer: QWeighted, source: QTensor, pitch: int) -> _Arithmetic:
    """sum((x - zx) w) + b = sum(x w) + (b - zx sum(w)), modulo 2**32; padding holds zx, so it needs no exception.

    scale = f32(f32(sx * sw) / sy). Source: onnxruntime, QLinearConv.
    """
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    bias = layer.bias.astype(np.int64) - Clamp.of(source).zero_point * weight.sum(1)
    scale = (np.float32(source.scale) * layer.weight_scale.astype(np.float32)) / np.float32(layer.output.scale)
    largest = (255 * np.abs(weight).sum(1) + np.abs(bias)) * scale.astype(np.float64)
    padded = np.zeros(pitch, np.int32), np.zeros(pitch, np.float32)
    padded[0][: len(bias)] = bias.astype(np.int32)
    padded[1][: len(bias)] = scale
    return _Arithmetic(*padded, bool(largest.max(initial=0.0) >= INT32_LIMIT))


def _check_window(layer: QConv | QDepthwise, source: Layout, target: Layout) -> None:
    top, left, bottom, right = layer.padding
    k_h, k_w = layer.weight.shape[2:]
    expected = (
        (source.height + top + bottom - k_h) // layer.stride + 1,
        (source.width + left + right - k_w) // layer.stride + 1,
    )
    if expected != (target.height, target.width):
        raise ExportError(
            f"layer {layer.name}: a {k_h}x{k_w} kernel over {source.height}x{source.width} gives {expected[0]}x"
            f"{expected[1]}, but its output is {target.height}x{target.width}; correct the tensor's shape"
        )


def _conv_step(isa: Isa, layer: QConv | QLinear, layouts: dict[str, Layout], tensor: QTensor) -> Step:
    source, target = layouts[layer.input], layouts[layer.output.name]
    if isinstance(layer, QConv):
        _check_window(layer, source, target)
        weight, stride, padding = layer.weight, layer.stride, layer.padding[:2]
    else:  # flattened channels, rows, columns: a kernel as large as the image
        weight, stride, padding = layer.weight.reshape(-1, source.channels, source.height, source.width), 1, (0, 0)
    arithmetic = _arithmetic(layer, tensor, target.pitch)
    kernel = weight.shape[2], weight.shape[3]
    clamp = Clamp.of(layer.output)
    spec = ConvSpec(source, target, kernel, stride, padding, clamp, arithmetic.may_overflow)
    order = channel_order(isa, target.pitch)
    constants = pack_conv(isa, weight, target.pitch), *arithmetic.ordered(order)
    return Step(layer.name, spec, (layer.input,), layer.output.name, constants)


def _depthwise_step(isa: Isa, layer: QDepthwise, layouts: dict[str, Layout], tensor: QTensor) -> Step:
    source, target = layouts[layer.input], layouts[layer.output.name]
    _check_window(layer, source, target)
    arithmetic = _arithmetic(layer, tensor, target.pitch)
    kernel = layer.weight.shape[2], layer.weight.shape[3]
    clamp, padding = Clamp.of(layer.output), layer.padding[:2]
    spec = DepthwiseSpec(source, target, kernel, layer.stride, padding, clamp, arithmetic.may_overflow)
    constants = pack_depthwise(isa, spec, layer.weight), *arithmetic.ordered(group_order(isa, target.pitch))
    return Step(layer.name, spec, (layer.input,), layer.output.name, constants)


def _add_step(layer: QAdd, layouts: dict[str, Layout], tensors: dict[str, QTensor]) -> Step:
    output = layer.output
    first, second = (
        Operand(
            layouts[name],
            _single(tensors[name].scale),
            tensors[name].zero_point,
            SIGNED_SHIFT if tensors[name].dtype == "int8" else 0,
        )
        for name in layer.inputs
    )
    spec = AddSpec(first, second, layouts[output.name], _single(output.scale), output.zero_point, Clamp.of(output))
    return Step(layer.name, spec, layer.inputs, output.name)


def _pool_step(layer: QPool, layouts: dict[str, Layout], tensors: dict[str, QTensor]) -> Step:
    source, output = layouts[layer.input], layer.output
    ratio = pool_ratio(tensors[layer.input].scale, output.scale, source.height * source.width)
    zero_point = Clamp.of(tensors[layer.input]).zero_point
    spec = PoolSpec(source, zero_point, layouts[output.name], ratio, Clamp.of(output))
    return Step(layer.name, spec, (layer.input,), output.name)
