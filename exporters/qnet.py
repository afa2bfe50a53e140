"""The quantized network: what the ONNX writer and reader, the integer reference, the audit and TVM all speak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError

Dtype = Literal["uint8", "int8"]
DTYPE_RANGE: dict[str, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, slots=True)
class QTensor:
    """A quantized activation: `real = (code - zero_point) * scale`, with codes clamped to [lo, hi].

    shape: (channels, height, width), or (features,) after the pooling, without the batch.
    scale: rounded to the nearest float32, which is what files and kernels carry.
    bits: what the layer that reads the tensor was promised; lo and hi lie within 2**bits codes.
    dtype: how the codes are stored.

    Raises: ExportError if the clamp does not fit the storage type or spans more than 2**bits codes.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    bits: int
    lo: int
    hi: int
    dtype: Dtype = "uint8"

    def __post_init__(self) -> None:
        low, high = DTYPE_RANGE[self.dtype]
        if not low <= self.lo <= self.hi <= high:
            raise ExportError(f"tensor {self.name}: clamp [{self.lo}, {self.hi}] must lie within {self.dtype}")
        if not low <= self.zero_point <= high:
            raise ExportError(f"tensor {self.name}: zero point {self.zero_point} must lie within {self.dtype}")
        scale = float(np.float32(self.scale))
        if not (np.isfinite(scale) and scale > 0):
            raise ExportError(f"tensor {self.name}: scale must be positive and finite in float32, got {self.scale}")
        object.__setattr__(self, "scale", scale)
        if not 1 <= self.bits <= 8:
            raise ExportError(f"tensor {self.name}: bits must be from 1 to 8, got {self.bits}")
        if self.hi - self.lo >= 2**self.bits:
            raise ExportError(f"tensor {self.name}: {self.hi - self.lo + 1} codes do not fit {self.bits} bits")


@dataclass(frozen=True, eq=False, slots=True)
class QConv:
    """Convolution (groups 1) with fused clamp.

    weight: (out, in, k_h, k_w) int8 codes, zero point 0. weight_scale: (out,) float32. bias: (out,) int32 at
    scale `input.scale * weight_scale`. padding: top, left, bottom, right, filled with the input's zero point.
    weight_zero_point: 0 in what this project exports; files of other tools may differ.
    """

    name: str
    input: str
    output: QTensor
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    weight_bits: int
    bias: NDArray[np.int32]
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    weight_zero_point: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, eq=False, slots=True)
class QDepthwise:
    """Depthwise convolution: as QConv, with weight (channels, 1, k_h, k_w)."""

    name: str
    input: str
    output: QTensor
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    weight_bits: int
    bias: NDArray[np.int32]
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    weight_zero_point: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, eq=False, slots=True)
class QLinear:
    """Fully connected layer. weight: (out, in) int8; the rest as QConv."""

    name: str
    input: str
    output: QTensor
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    weight_bits: int
    bias: NDArray[np.int32]
    weight_zero_point: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, slots=True)
class QAdd:
    """Residual addition of two quantized tensors of one shape."""

    name: str
    input: str
    other: str
    output: QTensor

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input, self.other)


@dataclass(frozen=True, slots=True)
class QPool:
    """Global average pooling, (c, h, w) -> (c,).

    method: "integer" sums codes and rounds once, as GlobalAveragePool does; "float" sums dequantized values row by row
    in float32, as onnxruntime does where a file has an AveragePool or ReduceMean over the whole image.
    """

    name: str
    input: str
    output: QTensor
    method: Literal["integer", "float"] = "integer"

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, slots=True)
class QMaxPool:
    """Maximum over square windows. The output keeps the input's scale and zero point; padding never wins."""

    name: str
    input: str
    output: QTensor
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, slots=True)
class QClip:
    """ReLU or ReLU6 that a file keeps apart: real values clipped to [low, high], then quantized anew.

    `apq-deploy` itself never writes one: it folds the clip into the clamp of the layer before.
    """

    name: str
    input: str
    output: QTensor
    low: float
    high: float

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, eq=False, slots=True)
class QAddConstant:
    """Addition of a quantized constant, as files have it where a MatMul and its bias stand apart.

    constant: codes of the output's shape and type; constant_scale and constant_zero_point: their meaning.
    """

    name: str
    input: str
    output: QTensor
    constant: NDArray[np.uint8] | NDArray[np.int8]
    constant_scale: float
    constant_zero_point: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


QWeighted = QConv | QDepthwise | QLinear
QLayer = QWeighted | QAdd | QPool | QMaxPool | QClip | QAddConstant


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """An integer network: the image is quantized to `input`, then `layers` run in order; the last one gives the logits.

    Raises: ExportError if a layer reads a tensor that no earlier layer wrote, a name is used twice, or shapes, types
    or ranges do not fit together.
    """

    name: str
    input: QTensor
    layers: tuple[QLayer, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {self.input.name: self.input}
        names: set[str] = set()
        for layer in self.layers:
            if layer.name in names:
                raise ExportError(f"two layers are named {layer.name!r}; give each its own name")
            names.add(layer.name)
            for source in layer.inputs:
                if source not in known:
                    raise ExportError(f"layer {layer.name} reads tensor {source!r}, which no earlier layer writes")
            if layer.output.name in known:
                raise ExportError(f"layer {layer.name} writes tensor {layer.output.name!r} a second time")
            _check(layer, tuple(known[source] for source in layer.inputs))
            known[layer.output.name] = layer.output

    @property
    def output(self) -> QTensor:
        return self.layers[-1].output

    @property
    def tensors(self) -> dict[str, QTensor]:
        """Every activation by name, the input first."""
        return {self.input.name: self.input} | {layer.output.name: layer.output for layer in self.layers}

    def weighted(self) -> Iterator[QWeighted]:
        """The layers that carry weights, in order."""
        for layer in self.layers:
            if isinstance(layer, QConv | QDepthwise | QLinear):
                yield layer


def _check(layer: QLayer, sources: tuple[QTensor, ...]) -> None:
    """Nothing, if the layer fits the tensors that it reads and writes.

    Raises: ExportError naming the layer.
    """
    shape = sources[0].shape
    match layer:
        case QConv() | QDepthwise() | QLinear():
            if len(shape) != (1 if isinstance(layer, QLinear) else 3):
                raise ExportError(f"layer {layer.name} cannot read a tensor of shape {shape}")
            _check_weights(layer, shape[0])
            expected = (layer.weight.shape[0],)
            if not isinstance(layer, QLinear):
                expected += window_sizes(layer.name, shape, layer.weight.shape[2:], layer.stride, layer.padding)
        case QMaxPool():
            source, output = sources[0], layer.output
            if len(shape) != 3:
                raise ExportError(f"layer {layer.name} cannot read a tensor of shape {shape}")
            if (source.scale, source.zero_point, source.dtype) != (output.scale, output.zero_point, output.dtype):
                raise ExportError(f"layer {layer.name} must keep the scale, zero point and type of its input")
            kernel = (layer.kernel_size, layer.kernel_size)
            if max(layer.padding) >= layer.kernel_size:
                raise ExportError(f"layer {layer.name}: padding {layer.padding} must be smaller than the kernel")
            expected = shape[:1] + window_sizes(layer.name, shape, kernel, layer.stride, layer.padding)
        case QAdd():
            if sources[1].shape != shape:
                raise ExportError(f"layer {layer.name} adds tensors of shapes {shape} and {sources[1].shape}")
            expected = shape
        case QClip():
            if not layer.low < layer.high:
                raise ExportError(f"layer {layer.name} clips to [{layer.low}, {layer.high}], which is empty")
            expected = shape
        case QAddConstant():
            if layer.constant.shape != shape or str(layer.constant.dtype) not in DTYPE_RANGE:
                raise ExportError(f"layer {layer.name} adds a constant of another shape or type than {shape}")
            if not (np.isfinite(np.float32(layer.constant_scale)) and np.float32(layer.constant_scale) > 0):
                raise ExportError(f"layer {layer.name}: the constant's scale must be positive and finite")
            low, high = DTYPE_RANGE[str(layer.constant.dtype)]
            if not low <= layer.constant_zero_point <= high:
                raise ExportError(f"layer {layer.name}: the constant's zero point must fit its type")
            expected = shape
        case QPool():
            if len(shape) != 3:
                raise ExportError(f"layer {layer.name} cannot read a tensor of shape {shape}")
            expected = shape[:1]
    if layer.output.shape != expected:
        raise ExportError(f"layer {layer.name} gives a tensor of shape {expected}, not {layer.output.shape}")


def window_sizes(
    name: str, shape: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: tuple[int, int, int, int]
) -> tuple[int, int]:
    """Height and width after a sliding window."""
    top, left, bottom, right = padding
    if stride < 1 or min(padding) < 0 or min(kernel) < 1:
        raise ExportError(f"layer {name}: stride {stride} and padding {padding} do not make a window")
    height, width = shape[1] + top + bottom - kernel[0], shape[2] + left + right - kernel[1]
    if height < 0 or width < 0:
        raise ExportError(f"layer {name}: kernel {kernel} does not fit a padded input of shape {shape}")
    return height // stride + 1, width // stride + 1


def _check_weights(layer: QWeighted, in_channels: int) -> None:
    name, weight = layer.name, layer.weight
    if weight.dtype != np.int8 or weight.ndim != (2 if isinstance(layer, QLinear) else 4) or weight.size == 0:
        raise ExportError(f"layer {name}: weight must be int8 of rank 2 or 4, got {weight.dtype} {weight.shape}")
    channels = weight.shape[0]
    if isinstance(layer, QDepthwise):
        if weight.shape[:2] != (in_channels, 1):
            raise ExportError(f"layer {name}: weight {weight.shape} does not fit {in_channels} input channels")
    elif weight.shape[1] != in_channels:
        raise ExportError(f"layer {name}: weight {weight.shape} does not fit {in_channels} input channels")
    if layer.weight_scale.dtype != np.float32 or layer.weight_scale.shape != (channels,):
        raise ExportError(f"layer {name}: weight_scale must be float32 of shape ({channels},)")
    if not (np.isfinite(layer.weight_scale).all() and (layer.weight_scale > 0).all()):
        raise ExportError(f"layer {name}: weight scales must be positive and finite")
    if layer.bias.dtype != np.int32 or layer.bias.shape != (channels,):
        raise ExportError(f"layer {name}: bias must be int32 of shape ({channels},)")
    if not 1 <= layer.weight_bits <= 8:
        raise ExportError(f"layer {name}: weight_bits must be from 1 to 8, got {layer.weight_bits}")
    limit = 2 ** (layer.weight_bits - 1)
    low, high = int(weight.min()), int(weight.max())
    if low < -limit or high >= limit:
        raise ExportError(f"layer {name}: weight codes from {low} to {high} do not fit {layer.weight_bits} bits")
    if not -128 <= layer.weight_zero_point <= 127:
        raise ExportError(f"layer {name}: weight zero point {layer.weight_zero_point} must fit int8")
