"""Weights, windows, scales and clips as ONNX nodes describe them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from exporters.errors import ExportError, UnsupportedGraph
from exporters.onnx_graph import attributes, integers, label, to_array
from exporters.qnet import DTYPE_RANGE, Dtype, QConv, QDepthwise, QLayer, QLinear, QTensor, window_sizes

Padding = tuple[int, int, int, int]
Built = tuple[tuple[int, ...], Callable[[QTensor], QLayer]]


@dataclass(frozen=True, eq=False)
class Constant:
    """An array known from the file alone."""

    array: NDArray


@dataclass(frozen=True, eq=False)
class Weights:
    """Constant codes behind a DequantizeLinear.

    stored: as in the file (INT4 as int8). scale: one, or one per index of `axis`.
    """

    stored: NDArray
    scale: NDArray[np.float32]
    zero_point: int
    axis: int

    @property
    def is_unsigned(self) -> bool:
        return self.stored.dtype == np.uint8

    def signed(self) -> tuple[NDArray[np.int8], int]:
        """The codes as int8, and their zero point."""
        if self.is_unsigned:
            return (self.stored.astype(np.int16) - 128).astype(np.int8), self.zero_point - 128
        return self.stored.astype(np.int8), self.zero_point


def fold_constant(node: onnx.NodeProto, inputs: list[Constant]) -> Constant:
    """The result of a node that reads constants only: Constant, Identity, and what joins packed weights.

    Raises: UnsupportedGraph for any other node.
    """
    arrays = [constant.array for constant in inputs]
    match node.op_type:
        case "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
                    return Constant(to_array(attribute.t))
                if attribute.name == "value_float":
                    return Constant(np.array(attribute.f, np.float32))
                if attribute.name == "value_int":
                    return Constant(np.array(attribute.i, np.int64))
                if attribute.name == "value_ints":
                    return Constant(np.array(attribute.ints, np.int64))
        case "Identity" if len(arrays) == 1:
            return inputs[0]
        case "Cast" if len(arrays) == 1 and arrays[0].dtype in (np.int8, np.uint8):
            if attributes(node).get("to") == TensorProto.INT8:
                return Constant(arrays[0].astype(np.int8))
        case "Mul" | "Add" if len(arrays) == 2 and all(array.dtype == np.int8 for array in arrays):
            left, right = arrays
            if left.size and right.size and (left.shape == right.shape or 1 in (left.size, right.size)):
                return Constant(left * right if node.op_type == "Mul" else left + right)
    raise UnsupportedGraph(
        f"{label(node)} on constants is not supported; supported: Constant, Identity, Cast to INT8, Mul and Add of INT8"
    )


def quantize_constant(node: onnx.NodeProto, values: Constant, parameters: list[Constant]) -> Constant:
    """Codes of float weights that the file leaves to be quantized when it is loaded.

    Raises: UnsupportedGraph if scales and zero points do not fit.
    """
    scale = parameters[0].array if parameters else np.zeros(0, np.float32)
    points = parameters[1].array if len(parameters) > 1 else np.zeros((), np.uint8)
    axis = attributes(node).get("axis", 1)
    array = values.array
    if scale.dtype != np.float32 or array.dtype != np.float32 or points.dtype not in (np.int8, np.uint8):
        raise UnsupportedGraph(f"{label(node)}: float32 constants should become INT8 or UINT8")
    if scale.size != 1 or points.size != 1:
        if not isinstance(axis, int) or not -array.ndim <= axis < array.ndim or scale.shape != (array.shape[axis],):
            raise UnsupportedGraph(f"{label(node)}: scales should be one, or one per channel, got {scale.shape}")
        if points.size not in (1, scale.size):
            raise UnsupportedGraph(f"{label(node)}: {points.size} zero points do not fit {scale.size} scales")
        shape = [1] * array.ndim
        shape[axis] = scale.size
        scale = scale.reshape(shape)
        points = points.reshape(shape) if points.size > 1 else points.reshape(())
    limits = np.iinfo(points.dtype)
    with np.errstate(all="ignore"):
        codes = np.rint(array / scale.reshape(scale.shape if scale.size > 1 else ())) + points.astype(np.float32)
    if np.isnan(codes).any():
        raise UnsupportedGraph(f"{label(node)}: its constants or scales are not numbers")
    return Constant(np.clip(codes, limits.min, limits.max).astype(points.dtype))


def dequantize_weights(node: onnx.NodeProto, codes: Constant, parameters: list[Constant]) -> Weights:
    """Weights from DequantizeLinear of constants.

    Raises: UnsupportedGraph if scales and zero points are not one, or one per channel.
    """
    if not parameters:
        raise UnsupportedGraph(f"{label(node)}: its scale should be a constant")
    array, scale = codes.array, parameters[0].array
    if array.dtype not in (np.int8, np.uint8, np.int32):
        raise UnsupportedGraph(f"{label(node)} reads constants of {array.dtype}; supported: INT4, INT8, UINT8, INT32")
    if scale.dtype != np.float32 or scale.ndim > 1 or scale.size == 0:
        raise UnsupportedGraph(f"{label(node)}: scales should be float32, one or one per channel, got {scale.shape}")
    values = attributes(node)
    axis = values.get("axis", 1)
    if values.get("block_size", 0) or not isinstance(axis, int):
        raise UnsupportedGraph(f"{label(node)}: scales per block are not supported; use one per channel")
    axis = axis % array.ndim if array.ndim and -array.ndim <= axis < array.ndim else 0
    if scale.ndim == 1 and scale.size > 1 and (array.ndim == 0 or array.shape[axis] != scale.size):
        raise UnsupportedGraph(f"{label(node)}: {scale.size} scales do not fit {array.shape} along axis {axis}")
    zero_point = 0
    if len(parameters) > 1:
        points = parameters[1].array
        if points.dtype != array.dtype or points.size == 0 or points.min() != points.max():
            raise UnsupportedGraph(f"{label(node)}: zero points should be of {array.dtype} and equal for all channels")
        zero_point = int(points.flat[0])
    return Weights(array, scale, zero_point, axis)


def convolution(
    node: onnx.NodeProto,
    name: str,
    source: QTensor,
    weights: Weights,
    bias: Weights | Constant | None,
    claimed_bits: int | None,
    is_depthwise: bool,
) -> Built:
    """Output shape of a Conv, and what makes the layer from its output tensor.

    claimed_bits: weight bits by the file's own word. is_depthwise: by the file's word, for a single channel.
    Raises: UnsupportedGraph for groups, dilations or strides that are not supported.
    """
    codes, zero_point = weights.signed()
    if weights.stored.dtype == np.int32 or codes.ndim != 4:
        raise UnsupportedGraph(f"{label(node)}: weights should be 8-bit of rank 4, got {codes.shape}")
    groups = attributes(node).get("group", 1)
    scale = _channel_scales(node, weights, 0)
    channel_bias = _bias(node, bias, source, scale)
    bits = claimed_bits or 8
    if len(source.shape) == 1:
        if codes.shape[2:] != (1, 1) or groups != 1 or any(integers(node, "pads", ())):
            raise UnsupportedGraph(f"{label(node)}: after the pooling only a 1x1 convolution is supported")
        flat = codes[:, :, 0, 0]
        return flat.shape[:1], lambda tensor: QLinear(
            name, source.name, tensor, flat, scale, bits, channel_bias, zero_point
        )
    channels = source.shape[0]
    stride = _stride(node)
    kernel = (int(codes.shape[2]), int(codes.shape[3]))
    if integers(node, "kernel_shape", kernel) != kernel:
        raise UnsupportedGraph(f"{label(node)}: its kernel_shape is not that of its weights, {kernel}")
    padding = _padding(node, source.shape, kernel, stride)
    shape = codes.shape[:1] + window_sizes(name, source.shape, kernel, stride, padding)
    is_single = is_depthwise and channels == 1 and codes.shape[:2] == (1, 1)
    if groups == 1 and not is_single:
        layer_class = QConv
    elif groups == channels == codes.shape[0]:
        layer_class = QDepthwise
    else:
        raise UnsupportedGraph(f"{label(node)} has {groups} groups; supported: 1, or depthwise with one per channel")
    return shape, lambda tensor: layer_class(
        name, source.name, tensor, codes, scale, bits, channel_bias, stride, padding, zero_point
    )


def linear(
    node: onnx.NodeProto,
    name: str,
    source: QTensor,
    weights: Weights,
    bias: Weights | Constant | None,
    claimed_bits: int | None,
    is_depthwise: bool,
) -> Built:
    """Output shape of a Gemm or MatMul, and what makes the layer; arguments and errors as `convolution`."""
    values = attributes(node)
    if values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0 or values.get("transA", 0):
        raise UnsupportedGraph(f"{label(node)}: alpha and beta should be 1 and transA 0")
    codes, zero_point = weights.signed()
    if weights.stored.dtype == np.int32 or codes.ndim != 2:
        raise UnsupportedGraph(f"{label(node)}: weights should be 8-bit of rank 2, got {codes.shape}")
    is_transposed = bool(values.get("transB", 0))
    scale = _channel_scales(node, weights, 0 if is_transposed else 1)
    rows = np.ascontiguousarray(codes if is_transposed else codes.T)
    channel_bias = _bias(node, bias, source, scale)
    bits = claimed_bits or 8
    return rows.shape[:1], lambda tensor: QLinear(
        name, source.name, tensor, rows, scale, bits, channel_bias, zero_point
    )


def pooling_window(node: onnx.NodeProto, source: QTensor) -> tuple[int, int, Padding]:
    """Kernel, stride and padding of a MaxPool.

    Raises: UnsupportedGraph if it is not square or has dilations or rounds up.
    """
    kernel = integers(node, "kernel_shape", ())
    values = attributes(node)
    if len(source.shape) != 3 or len(kernel) != 2 or kernel[0] != kernel[1] or kernel[0] < 1:
        raise UnsupportedGraph(f"{label(node)} should have a square kernel, got {kernel} on {source.shape}")
    if values.get("ceil_mode", 0) or values.get("storage_order", 0):
        raise UnsupportedGraph(f"{label(node)}: ceil_mode and storage_order are not supported")
    stride = _stride(node)
    return kernel[0], stride, _padding(node, source.shape, (kernel[0], kernel[1]), stride)


def _stride(node: onnx.NodeProto) -> int:
    strides = integers(node, "strides", (1, 1))
    if len(strides) != 2 or strides[0] != strides[1] or strides[0] < 1:
        raise UnsupportedGraph(f"{label(node)} has strides {strides}; supported: the same in height and width")
    if any(dilation != 1 for dilation in integers(node, "dilations", (1, 1))):
        raise UnsupportedGraph(f"{label(node)}: dilations are not supported")
    return strides[0]


def _padding(node: onnx.NodeProto, shape: tuple[int, ...], kernel: tuple[int, int], stride: int) -> Padding:
    """Top, left, bottom, right, from `pads` or `auto_pad`."""
    mode = attributes(node).get("auto_pad", "NOTSET")
    pads = integers(node, "pads", (0, 0, 0, 0))
    if len(pads) != 4:
        raise UnsupportedGraph(f"{label(node)} has pads {pads}; supported: four")
    match mode:
        case "NOTSET":
            top, left, bottom, right = pads
            return top, left, bottom, right
        case "VALID":
            return 0, 0, 0, 0
        case "SAME_UPPER" | "SAME_LOWER":
            totals = [
                max((-(-size // stride) - 1) * stride + window - size, 0)
                for size, window in zip(shape[1:], kernel, strict=True)
            ]
            small = [total // 2 for total in totals]
            large = [total - half for total, half in zip(totals, small, strict=True)]
            before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
            return before[0], before[1], after[0], after[1]
    raise UnsupportedGraph(f"{label(node)} has auto_pad {mode!r}; supported: NOTSET, VALID, SAME_UPPER, SAME_LOWER")


def _channel_scales(node: onnx.NodeProto, weights: Weights, axis: int) -> NDArray[np.float32]:
    """(out,) scales. axis: that of the output channels."""
    channels = weights.stored.shape[axis]
    if weights.scale.size > 1 and weights.axis != axis:
        raise UnsupportedGraph(f"{label(node)}: weight scales should lie along the output channels")
    if weights.scale.size > 1 and weights.scale.size != channels:
        raise UnsupportedGraph(f"{label(node)}: {weights.scale.size} weight scales for {channels} output channels")
    return np.ascontiguousarray(np.broadcast_to(weights.scale.reshape(-1), (channels,)))


def _bias(
    node: onnx.NodeProto, bias: Weights | Constant | None, source: QTensor, scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """(out,) codes at the scale of the accumulator; zeros where the node has no bias."""
    if bias is None:
        return np.zeros(len(scale), np.int32)
    if isinstance(bias, Constant):
        return _float_bias(node, bias.array, source, scale)
    codes = bias.stored.reshape(-1)
    if codes.dtype != np.int32 or codes.shape != scale.shape or bias.zero_point:
        raise UnsupportedGraph(f"{label(node)}: its bias should be INT32 of shape ({len(scale)},) with zero point 0")
    # onnxruntime adds the codes to the accumulator without a look at their scale
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = np.float32(source.scale) * scale
        is_right = bool((np.abs(bias.scale.reshape(-1) - expected) <= 1e-4 * np.abs(expected)).all())
    if not is_right:
        raise UnsupportedGraph(f"{label(node)}: its bias should have the scale of the input times that of the weights")
    return np.ascontiguousarray(codes)


def _float_bias(node: onnx.NodeProto, bias: NDArray, source: QTensor, scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """Codes of a float bias, as onnxruntime rounds it when it loads the file."""
    if bias.dtype != np.float32 or bias.shape != scale.shape:
        raise UnsupportedGraph(f"{label(node)}: its bias should be INT32 or float32 of shape ({len(scale)},)")
    with np.errstate(all="ignore"):
        codes = np.rint(bias / (np.float32(source.scale) * scale))
    if not (np.abs(codes) < 2**31).all():
        raise UnsupportedGraph(f"{label(node)}: its bias does not fit INT32 at the scale of input times weights")
    return codes.astype(np.int32)


def activation_parameters(node: onnx.NodeProto, inputs: Sequence[object]) -> tuple[float, int, Dtype]:
    """Scale, zero point and type of a QuantizeLinear or DequantizeLinear of an activation."""
    scale = inputs[1] if len(inputs) > 1 else None
    point = inputs[2] if len(inputs) > 2 else None
    if not isinstance(scale, Constant) or scale.array.dtype != np.float32 or scale.array.ndim != 0:
        raise UnsupportedGraph(f"{label(node)}: an activation's scale should be one constant float32 number")
    if point is None:
        return float(scale.array), 0, "uint8"
    if not isinstance(point, Constant) or point.array.ndim != 0 or str(point.array.dtype) not in DTYPE_RANGE:
        raise UnsupportedGraph(f"{label(node)}: an activation's zero point should be one constant of uint8 or int8")
    return float(scale.array), int(point.array), "uint8" if point.array.dtype == np.uint8 else "int8"


def is_clip_needless(name: str, low: float, high: float, scale: float, zero_point: int, dtype: Dtype) -> bool:
    """Whether quantizing clips at least as tightly as a float clip to [low, high]; onnxruntime drops it by this rule.

    name: of the layer, for messages.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ExportError(f"layer {name}: the scale after it must be positive and finite, got {scale}")
    lowest, highest = DTYPE_RANGE[dtype]
    with np.errstate(over="ignore"):
        bounds = np.rint(np.array([low, high], np.float32) / np.float32(scale)) + zero_point
    return bool(bounds[0] <= lowest and bounds[1] >= highest)


def clip_bounds(node: onnx.NodeProto, inputs: Sequence[object]) -> tuple[float, float]:
    """Low and high of a Relu or Clip."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = [-np.inf, np.inf]
    for position, value in enumerate(inputs[1:3]):
        if value is None:
            continue
        if not isinstance(value, Constant) or value.array.size != 1:
            raise UnsupportedGraph(f"{label(node)}: its bounds should be single constants")
        found[position] = float(value.array.reshape(()))
    legacy = attributes(node)
    for position, name in enumerate(("min", "max")):
        bound = legacy.get(name)
        if isinstance(bound, float):
            found[position] = bound
    if np.isnan(found).any():
        raise UnsupportedGraph(f"{label(node)}: its bounds should be numbers")
    return found[0], found[1]


def broadcast(node: onnx.NodeProto, constant: Weights, tensor: QTensor) -> NDArray:
    """The constant's codes in the tensor's shape."""
    codes = constant.stored
    if constant.scale.size != 1 or str(codes.dtype) != tensor.dtype:
        raise UnsupportedGraph(f"{label(node)} should add a constant with one scale, stored as {tensor.dtype}")
    shape = codes.shape[1:] if codes.ndim == len(tensor.shape) + 1 and codes.shape[0] == 1 else codes.shape
    try:
        return np.ascontiguousarray(np.broadcast_to(codes.reshape(shape), tensor.shape))
    except ValueError as error:
        raise UnsupportedGraph(f"{label(node)} adds {codes.shape} to {tensor.shape}, which does not fit") from error
