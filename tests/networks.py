"""Random quantized networks for the tests: every kind of layer, odd channel counts, kernels 3 to 7, residual adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from exporters.qnet import (
    QAdd,
    QConv,
    QDepthwise,
    QLayer,
    QLinear,
    QPool,
    QTensor,
    QuantizedNetwork,
)

BITS = (4, 6, 8)


def random_image(net: QuantizedNetwork, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, channels, height, width) float32 from 0 to 1."""
    return rng.random((count, *net.input.shape), dtype=np.float32)


def random_network(
    rng: np.random.Generator,
    weight_bits: Sequence[int] = BITS,
    act_bits: Sequence[int] = BITS,
    *,
    size: int = 14,
    power_of_two: bool = False,
) -> QuantizedNetwork:
    """A small network of the MobileNet family; every layer draws its bits from the two lists.

    Stem, three inverted residual blocks (kernels 3, 5 and 7 in random order, one of them with stride 2, two with a
    residual addition), head, pooling and classifier. Channel counts are drawn from 3 to 21. Weight codes use their
    whole range and activation scales are set so that results spread over the clamp and past it.
    """
    builder = _Builder(rng, tuple(weight_bits), tuple(act_bits), power_of_two)
    image = QTensor("image", (3, size, size), 1 / 256 if power_of_two else 1 / 255, 0, 8, 0, 255)
    channels = int(rng.integers(3, 22))
    value = builder.conv("stem", image, channels, kernel=3, stride=2)
    kernels = rng.permutation([3, 5, 7]).tolist()
    strided = int(rng.integers(3))
    for index, kernel in enumerate(kernels):
        stride = 2 if index == strided else 1
        name = f"stage1.block{index + 1}"
        inside = builder.conv(f"{name}.expand", value, int(rng.integers(5, 40)))
        inside = builder.depthwise(f"{name}.depthwise", inside, kernel, stride)
        out_channels = value.shape[0] if stride == 1 else int(rng.integers(3, 22))
        inside = builder.conv(f"{name}.project", inside, out_channels, signed=True)
        value = builder.add(f"{name}.add", value, inside) if stride == 1 else inside
    value = builder.conv("head", value, int(rng.integers(9, 50)))
    value = builder.pool("pool", value)
    builder.linear("classifier", value, int(rng.integers(2, 13)))
    return QuantizedNetwork("random", image, tuple(builder.layers), {"seed": "0"})


@dataclass
class _Builder:
    rng: np.random.Generator
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    power_of_two: bool
    layers: list[QLayer] = field(default_factory=list)

    def conv(
        self, name: str, value: QTensor, channels: int, *, kernel: int = 1, stride: int = 1, signed: bool = False
    ) -> QTensor:
        """A convolution with padding of half the kernel."""
        bits, codes, scale = self._weight((channels, value.shape[0], kernel, kernel))
        output, bias = self._output(name, value, codes, scale, _sizes(value, kernel, stride), signed)
        padding = (kernel // 2,) * 4
        self.layers.append(QConv(name, value.name, output, codes, scale, bits, bias, stride, padding))
        return output

    def depthwise(self, name: str, value: QTensor, kernel: int, stride: int) -> QTensor:
        bits, codes, scale = self._weight((value.shape[0], 1, kernel, kernel))
        output, bias = self._output(name, value, codes, scale, _sizes(value, kernel, stride), False)
        padding = (kernel // 2,) * 4
        self.layers.append(QDepthwise(name, value.name, output, codes, scale, bits, bias, stride, padding))
        return output

    def linear(self, name: str, value: QTensor, features: int) -> QTensor:
        bits, codes, scale = self._weight((features, value.shape[0]))
        output, bias = self._output(name, value, codes, scale, (), True)
        self.layers.append(QLinear(name, value.name, output, codes, scale, bits, bias))
        return output

    def add(self, name: str, left: QTensor, right: QTensor) -> QTensor:
        output = self._tensor(name, left.shape, 0.7 * (_span(left) + _span(right)), signed=True)
        self.layers.append(QAdd(name, left.name, right.name, output))
        return output

    def pool(self, name: str, value: QTensor) -> QTensor:
        output = self._tensor(name, value.shape[:1], 0.6 * _span(value), signed=False)
        self.layers.append(QPool(name, value.name, output))
        return output

    def _weight(self, shape: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray]:
        """Bits, codes in the narrow symmetric range, and scales per channel."""
        bits = int(self.rng.choice(self.weight_bits))
        limit = 2 ** (bits - 1) - 1
        codes = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        scale = self._round(self.rng.uniform(0.5, 2.0, shape[0]) / (limit * np.sqrt(np.prod(shape[1:]))))
        return bits, codes, scale

    def _output(
        self,
        name: str,
        value: QTensor,
        codes: np.ndarray,
        scale: np.ndarray,
        sizes: tuple[int, ...],
        signed: bool,
    ) -> tuple[QTensor, np.ndarray]:
        """A tensor whose clamp cuts off the largest results, and a bias of about a third of the typical result."""
        spread = np.sqrt((codes.astype(np.float64) ** 2).reshape(len(codes), -1).sum(1)) * _span(value) / value.scale
        bias = np.rint(self.rng.normal(0, 0.3, len(codes)) * spread).astype(np.int32)
        span = float(np.mean(spread * value.scale * scale))
        return self._tensor(name, (len(codes), *sizes), span, signed), bias

    def _tensor(self, name: str, shape: tuple[int, ...], span: float, signed: bool) -> QTensor:
        """span: real value where the clamp should cut, on each side if signed."""
        bits = int(self.rng.choice(self.act_bits))
        if signed:
            middle = 2 ** (bits - 1)
            return QTensor(name, shape, float(self._round(span / middle)), middle, bits, 1, 2**bits - 1)
        # as after a ReLU6, the clamp may end below the last code
        high = 2**bits - 1 - int(self.rng.integers(0, 3))
        return QTensor(name, shape, float(self._round(span / high)), 0, bits, 0, high)

    def _round(self, scale: float | np.ndarray) -> np.ndarray:
        return np.asarray(2.0 ** np.round(np.log2(scale)) if self.power_of_two else scale, dtype=np.float32)


def _sizes(value: QTensor, kernel: int, stride: int) -> tuple[int, int]:
    height, width = ((size + 2 * (kernel // 2) - kernel) // stride + 1 for size in value.shape[1:])
    return height, width


def _span(tensor: QTensor) -> float:
    """Typical real magnitude: a half of the largest."""
    return 0.5 * tensor.scale * max(tensor.hi - tensor.zero_point, tensor.zero_point - tensor.lo)
