"""Integer codes of every tensor of a quantized network, computed with NumPy the way onnxruntime's integer kernels do.

Accumulators are exact integers, bias included. Sums run as float32 matrix products while every partial sum stays
below 2**24, else as float64 ones, so no product or sum is ever rounded. Only the requantization rounds, and it rounds
as the kernels do: in float32, half to even.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

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

Codes = NDArray[np.uint8] | NDArray[np.int8]
Sums = NDArray[np.float32 | np.float64]

FLOAT32_EXACT = 2**24
INT32_LIMIT = 2**31


def run_reference(net: QuantizedNetwork, images: NDArray[np.float32]) -> dict[str, Codes]:
    """Codes of every tensor by name, the input's first; each (n, *tensor.shape) of the tensor's own type.

    images: (n, channels, height, width) float32.
    Raises: ExportError if the images do not fit the network, or an accumulator leaves int32.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != net.input.shape:
        raise ExportError(f"images should be (n, {', '.join(map(str, net.input.shape))}), got {images.shape}")
    if not np.isfinite(images).all():
        raise ExportError("images hold values that are not finite; check how they were scaled")
    tensors = net.tensors
    codes = {net.input.name: quantize(images.astype(np.float32), net.input)}
    for layer in net.layers:
        sources = [tensors[name] for name in layer.inputs]
        codes[layer.output.name] = _run(layer, sources, [codes[name] for name in layer.inputs])
    return codes


def reference_logits(net: QuantizedNetwork, codes: dict[str, Codes]) -> NDArray[np.float32]:
    """(n, classes) float32: the last tensor's codes as real numbers."""
    return dequantize(codes[net.output.name], net.output)


def quantize(values: NDArray[np.float32], tensor: QTensor) -> Codes:
    """`rint(values / scale) + zero_point`, clamped; the division in float32 as onnxruntime's QuantizeLinear does it."""
    low, high = tensor.lo - tensor.zero_point, tensor.hi - tensor.zero_point
    with np.errstate(over="ignore"):  # a quotient past float32 is clamped like any other large one
        steps = np.rint(values / np.float32(tensor.scale))
    return (np.clip(steps, low, high) + np.float32(tensor.zero_point)).astype(tensor.dtype)


def dequantize(codes: Codes, tensor: QTensor) -> NDArray[np.float32]:
    """`(codes - zero_point) * scale` in float32."""
    return (codes.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


def _run(layer: QLayer, sources: list[QTensor], codes: list[Codes]) -> Codes:
    match layer:
        case QConv() | QDepthwise() | QLinear():
            sums = accumulate(layer, sources[0], codes[0])
            return _requantize(sums, requantization_scale(layer, sources[0]), layer.output)
        case QAdd():
            table = add_table(sources[0], sources[1], layer.output)
            left, right = (_index(array, tensor) for array, tensor in zip(codes, sources, strict=True))
            return table[left, right]
        case QAddConstant():
            table = add_table(sources[0], _constant_tensor(layer), layer.output)
            low = DTYPE_RANGE[str(layer.constant.dtype)][0]
            return table[_index(codes[0], sources[0]), layer.constant.astype(np.intp) - low]
        case QClip():
            return _clip_table(layer, sources[0])[_index(codes[0], sources[0])]
        case QMaxPool():
            return _max_pool(layer, codes[0])
        case QPool(method="integer"):
            return _average(codes[0], sources[0], layer.output)
        case QPool():
            return _average_in_float(codes[0], sources[0], layer.output)


def requantization_scale(layer: QWeighted, source: QTensor) -> NDArray[np.float32]:
    """(out,) float32: what the accumulators of each output channel are multiplied with.

    Raises: ExportError if a scale is not finite.
    """
    with np.errstate(over="ignore", under="ignore"):
        scale = (np.float32(source.scale) * layer.weight_scale) / np.float32(layer.output.scale)
    if not np.isfinite(scale).all():
        raise ExportError(f"layer {layer.name}: input scale * weight scale / output scale is not finite")
    return scale


def accumulate(layer: QWeighted, source: QTensor, codes: Codes) -> Sums:
    """Integer accumulators, bias included, held exactly in float32 or float64.

    codes: (n, channels, height, width) or (n, features). Returns (n, out, height, width) or (n, out).
    Raises: ExportError if an accumulator leaves int32, which the kernels would wrap around.
    """
    weight = layer.weight.astype(np.int64) - layer.weight_zero_point
    largest = max(abs(bound - source.zero_point) for bound in DTYPE_RANGE[source.dtype])
    bound = np.abs(weight).reshape(len(weight), -1).sum(1) * largest + np.abs(layer.bias.astype(np.int64))
    dtype = np.float32 if bound.max() < FLOAT32_EXACT else np.float64
    values = codes.astype(dtype) - dtype(source.zero_point)
    bias = layer.bias.astype(dtype)
    if isinstance(layer, QLinear):
        sums = values @ weight.astype(dtype).T + bias
    else:
        padded = _pad(values, layer.padding, 0)
        convolve = _depthwise if isinstance(layer, QDepthwise) else _convolve
        sums = convolve(padded, weight.astype(dtype), layer.stride) + bias[:, None, None]
    if bound.max() >= INT32_LIMIT and (sums.min() < -INT32_LIMIT or sums.max() >= INT32_LIMIT):
        raise ExportError(f"layer {layer.name}: an accumulator leaves int32; use fewer bits or a smaller bias")
    return sums


def _pad(values: NDArray, padding: tuple[int, int, int, int], fill: int) -> NDArray:
    top, left, bottom, right = padding
    return np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def _convolve(padded: Sums, weight: Sums, stride: int) -> Sums:
    """(n, out, height, width) from (n, in, padded height, padded width) and (out, in, k_h, k_w)."""
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    count, _, height, width = windows.shape[:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(count, -1, height * width)
    return (weight.reshape(len(weight), -1) @ columns).reshape(count, len(weight), height, width)


def _depthwise(padded: Sums, weight: Sums, stride: int) -> Sums:
    """(n, channels, height, width) from (n, channels, padded height, padded width) and (channels, 1, k_h, k_w)."""
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    sums = np.zeros(windows.shape[:4], padded.dtype)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            sums += windows[..., row, column] * weight[:, 0, row, column][:, None, None]
    return sums


def _requantize(sums: Sums, scale: NDArray[np.float32], tensor: QTensor) -> Codes:
    """Sums -> codes. scale: one per output channel (axis 1 of sums)."""
    factors = scale.reshape(-1, *[1] * (sums.ndim - 2))
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(sums.astype(np.float32) * factors)
    low, high = tensor.lo - tensor.zero_point, tensor.hi - tensor.zero_point
    return (np.clip(steps, low, high) + np.float32(tensor.zero_point)).astype(tensor.dtype)


def _index(codes: Codes, tensor: QTensor) -> NDArray[np.intp]:
    return codes.astype(np.intp) - DTYPE_RANGE[tensor.dtype][0]


def add_table(left: QTensor, right: QTensor, output: QTensor) -> Codes:
    """(256, 256) codes of the sum, by the two codes from the lowest of their types on.

    With ra, rb the input scales over the output's: `fma(a, ra, fma(b, rb, zc - fma(ra, za, rb * zb)))`, rounded half
    to even, each step in float32 as onnxruntime's QLinearAdd does it.
    """
    ratio_left = np.float32(left.scale) / np.float32(output.scale)
    ratio_right = np.float32(right.scale) / np.float32(output.scale)
    points = [np.array(tensor.zero_point, np.float32) for tensor in (left, right, output)]
    offset = points[2] - fma(ratio_left, points[0], ratio_right * points[1])
    codes = [np.arange(low, high + 1, dtype=np.float32) for low, high in (DTYPE_RANGE[t.dtype] for t in (left, right))]
    values = fma(codes[0][:, None], ratio_left, fma(codes[1], ratio_right, offset))
    return np.clip(np.rint(values), output.lo, output.hi).astype(output.dtype)


def fma(
    factor: NDArray[np.float32] | np.float32, other: NDArray[np.float32] | np.float32, addend: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`factor * other + addend` in float32 with one rounding.

    The product of two float32 is exact in float64. The sum is rounded to odd there, so that the second rounding, to
    float32, gives what a single one would. Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums:
    proved algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008.
    """
    product = np.asarray(factor, np.float64) * np.asarray(other, np.float64)
    term = np.asarray(addend, np.float64)
    total = product + term
    virtual = total - product
    error = (product - (total - virtual)) + (term - virtual)
    is_even = (total.view(np.int64) & 1) == 0 if total.ndim else (np.int64(total.view(np.int64)) & 1) == 0
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    odd = np.where((error != 0) & is_even, toward, total)
    return odd.astype(np.float32)


def _constant_tensor(layer: QAddConstant) -> QTensor:
    dtype = "uint8" if layer.constant.dtype == np.uint8 else "int8"
    low, high = DTYPE_RANGE[dtype]
    shape, scale, zero_point = layer.constant.shape, layer.constant_scale, layer.constant_zero_point
    return QTensor(f"{layer.name}.constant", shape, scale, zero_point, 8, low, high, dtype)


def _clip_table(layer: QClip, source: QTensor) -> Codes:
    """(256,) codes of the output, by the input's code from the lowest of its type on."""
    low, high = DTYPE_RANGE[source.dtype]
    values = dequantize(np.arange(low, high + 1).astype(source.dtype), source)
    return quantize(np.clip(values, np.float32(layer.low), np.float32(layer.high)), layer.output)


def _average(codes: Codes, source: QTensor, output: QTensor) -> Codes:
    """(n, channels): the integer sum times `sx / (sy * pixels)` in float32, as onnxruntime's kernel has it."""
    pixels = codes.shape[2] * codes.shape[3]
    sums = codes.astype(np.int64).sum((2, 3)) - pixels * source.zero_point
    scale = np.float32(source.scale) / (np.float32(output.scale) * np.float32(pixels))
    return _requantize(sums.astype(np.float64), np.array([scale], np.float32), output)


def _average_in_float(codes: Codes, source: QTensor, output: QTensor) -> Codes:
    """(n, channels): values summed one by one in float32, row after row, then divided and quantized."""
    values = dequantize(codes, source).reshape(*codes.shape[:2], -1)
    # accumulate, other than sum, adds strictly from left to right
    sums: NDArray[np.float32] = np.add.accumulate(values, axis=2, dtype=np.float32)[..., -1]
    return quantize(sums / np.float32(values.shape[2]), output)


def _max_pool(layer: QMaxPool, codes: Codes) -> Codes:
    output = layer.output
    padded = _pad(codes, layer.padding, DTYPE_RANGE[output.dtype][0])
    windows = sliding_window_view(padded, (layer.kernel_size,) * 2, axis=(2, 3))[:, :, :: layer.stride, :: layer.stride]
    return np.clip(windows.max((4, 5)), output.lo, output.hi)
