"""A quantized network as a TVM module: one kernel for each layer, called in turn by a Relax function."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax as typed_relax

from exporters.errors import ExportError
from exporters.qnet import (
    DTYPE_RANGE,
    QAdd,
    QAddConstant,
    QClip,
    QConv,
    QDepthwise,
    QLayer,
    QLinear,
    QMaxPool,
    QPool,
    QTensor,
    QuantizedNetwork,
    QWeighted,
)
from exporters.reference import requantization_scale
from exporters.tvm.conv import ConvSpec, pack_nibbles, split_weight
from exporters.tvm.depthwise import DepthwiseSpec
from exporters.tvm.elementwise import AddSpec, DequantizeSpec, Operand, QuantizeSpec, TableSpec
from exporters.tvm.families import Spec, family_of
from exporters.tvm.isa import Isa
from exporters.tvm.layout import SIGNED_SHIFT, Border, Clamp, Layout
from exporters.tvm.pooling import FloatPoolSpec, MaxPoolSpec, PoolSpec, pool_ratio

relax: Any = typed_relax  # its annotations name fewer types than it takes

LOGITS = ""  # the last step's target: no tensor of the network
Constants = tuple[NDArray[Any], ...]
INT32_LIMIT = 2.0**31


@dataclass(frozen=True)
class Step:
    """A call of a kernel: what it computes, its constant arguments between the sources and the target."""

    layer: str
    spec: Spec
    sources: tuple[str, ...]
    target: str
    constants: Constants = ()


@dataclass(frozen=True)
class Program:
    """A network as steps; `layouts` holds how each activation lies in memory."""

    steps: tuple[Step, ...]
    layouts: dict[str, Layout] = field(hash=False)

    def kernel_names(self) -> dict[Spec, str]:
        """A name for each kernel, as the steps first need them; steps of one description share it."""
        names: dict[Spec, str] = {}
        for step in self.steps:
            if step.spec not in names:
                names[step.spec] = f"{type(step.spec).__name__.removesuffix('Spec').lower()}_{len(names)}"
        return names


def plan(net: QuantizedNetwork, isa: Isa, *, pack_weights: bool = False) -> Program:
    """The steps that compute `net` with the instructions of `isa`; pack_weights: as in `compile_tvm`."""
    layouts = plan_layouts(net)
    tensors = net.tensors
    start = QuantizeSpec(layouts[net.input.name], net.input.scale, Clamp.of(net.input))
    steps = [Step("quantize", start, (), net.input.name)]
    for layer in net.layers:
        source, target = layouts[layer.input], layouts[layer.output.name]
        spec, constants = _lower(isa, layer, tensors, layouts, source, target, pack_weights)
        steps.append(Step(layer.name, spec, layer.inputs, layer.output.name, constants))
    output = net.output
    end = DequantizeSpec(layouts[output.name], output.shape, output.scale, Clamp.of(output).zero_point)
    steps.append(Step("dequantize", end, (output.name,), LOGITS))
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


def build_module(program: Program, isa: Isa, threads: int) -> tvm.IRModule:
    """Relax functions `main` (image -> logits) and `tensors` (image -> all activations)."""
    image_layout = program.layouts[program.steps[0].target]
    image_shape = image_layout.channels, image_layout.height, image_layout.width
    builder = relax.BlockBuilder()
    kernels: dict[Spec, Any] = {}
    for spec, name in program.kernel_names().items():
        function = family_of(isa).kernel(isa, spec, threads).function(name)
        kernels[spec] = builder.add_func(function, name)
    constants = {id(array): relax.const(array) for step in program.steps for array in step.constants}
    for function in ("main", "tensors"):
        image = relax.Var("image", relax.TensorType((1, *image_shape), "float32"))
        with builder.function(function, [image]):
            values: dict[str, Any] = {}
            for step in program.steps:
                if isinstance(step.spec, DequantizeSpec):
                    kind = relax.TensorType((1, *step.spec.shape), "float32")
                else:
                    kind = relax.TensorType((program.layouts[step.target].size,), "uint8")
                sources = [values[name] for name in step.sources] or [image]
                arguments = [*sources, *(constants[id(array)] for array in step.constants)]
                values[step.target] = builder.emit(relax.call_tir(kernels[step.spec], arguments, kind))
            logits = values.pop(LOGITS)
            builder.emit_func_output(logits if function == "main" else relax.Tuple(list(values.values())))
    return builder.finalize()


def _image_shape(tensor: QTensor) -> tuple[int, int, int]:
    if len(tensor.shape) == 1:
        return tensor.shape[0], 1, 1
    if len(tensor.shape) == 3:
        channels, height, width = tensor.shape
        return channels, height, width
    raise ExportError(f"tensor {tensor.name}: expected (channels, height, width) or (features,), got {tensor.shape}")


def _lower(
    isa: Isa,
    layer: QLayer,
    tensors: dict[str, QTensor],
    layouts: dict[str, Layout],
    source: Layout,
    target: Layout,
    pack_weights: bool,
) -> tuple[Spec, Constants]:
    """What computes the layer, and its constants."""
    tensor, output, clamp = tensors[layer.input], layer.output, Clamp.of(layer.output)
    match layer:
        case QConv() | QDepthwise() | QLinear():
            return _lower_weighted(isa, layer, tensor, source, target, pack_weights)
        case QAdd():
            first, second = (_operand(tensors[name], layouts[name]) for name in layer.inputs)
            return AddSpec(first, second, target, output.scale, output.zero_point, clamp), ()
        case QAddConstant():
            shift = -DTYPE_RANGE[str(layer.constant.dtype)][0]
            second = Operand(
                replace(target, border=(0, 0, 0, 0)),
                float(np.float32(layer.constant_scale)),
                layer.constant_zero_point,
                shift,
            )
            codes = np.zeros((target.height, target.width, target.pitch), np.uint8)
            image = layer.constant.reshape(target.channels, target.height, target.width).astype(np.int16) + shift
            codes[..., : target.channels] = image.transpose(1, 2, 0)
            spec = AddSpec(_operand(tensor, source), second, target, output.scale, output.zero_point, clamp)
            return spec, (codes.reshape(-1),)
        case QPool(method="integer"):
            ratio = pool_ratio(tensor.scale, output.scale, source.height * source.width)
            return PoolSpec(source, Clamp.of(tensor).zero_point, target, ratio, clamp), ()
        case QPool():
            return FloatPoolSpec(source, Clamp.of(tensor).zero_point, tensor.scale, target, output.scale, clamp), ()
        case QMaxPool():
            return MaxPoolSpec(source, target, layer.kernel_size, layer.stride, layer.padding[:2], clamp), ()
        case QClip():
            return TableSpec(source, target, clamp.zero_point), (_clip_table(layer, tensor),)


def _operand(tensor: QTensor, layout: Layout) -> Operand:
    return Operand(layout, tensor.scale, tensor.zero_point, _shift(tensor))


def _shift(tensor: QTensor) -> int:
    return SIGNED_SHIFT if tensor.dtype == "int8" else 0


def _clip_table(layer: QClip, source: QTensor) -> NDArray[np.uint8]:
    """(256,) byte of the output by byte of the input: dequantized, clipped, quantized, in float32."""
    codes = np.arange(256) - _shift(source)
    values = (codes - source.zero_point).astype(np.float32) * np.float32(source.scale)
    clipped = np.clip(values, np.float32(layer.low), np.float32(layer.high))
    steps = np.rint(clipped / np.float32(layer.output.scale)) + layer.output.zero_point
    return (np.clip(steps, layer.output.lo, layer.output.hi) + _shift(layer.output)).astype(np.uint8)


def _lower_weighted(
    isa: Isa, layer: QWeighted, tensor: QTensor, source: Layout, target: Layout, pack_weights: bool
) -> tuple[ConvSpec | DepthwiseSpec, Constants]:
    """sum((x - zx) w) + b = sum(x w) + (b - zx sum(w)), modulo 2**32; padding holds zx, so it needs no exception.

    scale = f32(f32(sx * sw) / sy). Source: onnxruntime, QLinearConv.
    """
    weight = layer.weight.astype(np.int16) - layer.weight_zero_point
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    bias = layer.bias.astype(np.int64) - (Clamp.of(tensor).zero_point - isa.code_offset) * flat.sum(1)
    scale = requantization_scale(layer, tensor)
    largest = 255 * np.abs(flat).sum(1) + np.abs(bias)
    may_overflow = bool((largest * scale.astype(np.float64)).max(initial=0.0) >= INT32_LIMIT)
    clamp = Clamp.of(layer.output)
    if isinstance(layer, QLinear):
        weight, stride, padding = weight[..., None, None], 1, (0, 0)
    else:
        stride, padding = layer.stride, layer.padding[:2]
    kernel = weight.shape[2], weight.shape[3]
    parts, family = split_weight(weight), family_of(isa)
    if isinstance(layer, QDepthwise):
        spec = DepthwiseSpec(source, target, kernel, stride, padding, clamp, may_overflow, len(parts))
        packed, order = family.pack_depthwise(isa, spec, parts), family.depthwise_order(isa, spec)
    else:
        fits = weight.min(initial=0) >= -8 and weight.max(initial=0) <= 7 and 16 * largest.max() < INT32_LIMIT
        spec = ConvSpec(source, target, kernel, stride, padding, clamp, may_overflow, len(parts), pack_weights and fits)
        packed, order = family.pack_conv(isa, spec, parts), family.conv_order(isa, spec)
        if spec.packed:  # 16 times the sum, and a sixteenth of the scale, is the same in float32
            packed, bias, scale = pack_nibbles(isa, spec, parts), bias * 16, scale / np.float32(16)
    padded_bias, padded_scale = np.zeros(target.pitch, np.int32), np.zeros(target.pitch, np.float32)
    padded_bias[: len(bias)] = bias.astype(np.int32)
    padded_scale[: len(scale)] = scale
    return spec, (packed, padded_bias[order], padded_scale[order])
