"""The quantized network that the ONNX writer and reader, the integer reference, the audit and the TVM lowering share."""

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
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ExportError(f"tensor {self.name}: scale must be positive and finite, got {self.scale}")
        if self.hi - self.lo >= 2**self.bits:
            raise ExportError(f"tensor {self.name}: {self.hi - self.lo + 1} codes do not fit {self.bits} bits")


@dataclass(frozen=True, eq=False, slots=True)
class QConv:
    """Convolution (groups 1) with fused clamp.

    weight: (out, in, k_h, k_w) int8 codes, zero point 0. weight_scale: (out,) float32. bias: (out,) int32 at
    scale `input.scale * weight_scale`. padding: top, left, bottom, right, filled with the input's zero point.
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
    """Global average pooling, (c, h, w) -> (c,)."""

    name: str
    input: str
    output: QTensor

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


QWeighted = QConv | QDepthwise | QLinear
QLayer = QWeighted | QAdd | QPool


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """An integer network: the image is quantized to `input`, then `layers` run in order; the last one gives the logits.

    Raises: ExportError if a layer reads a tensor that no earlier layer wrote, or a name is used twice.
    """

    name: str
    input: QTensor
    layers: tuple[QLayer, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {self.input.name}
        for layer in self.layers:
            for source in layer.inputs:
                if source not in known:
                    raise ExportError(f"layer {layer.name} reads tensor {source!r}, which no earlier layer writes")
            if layer.output.name in known:
                raise ExportError(f"layer {layer.name} writes tensor {layer.output.name!r} a second time")
            known.add(layer.output.name)

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
