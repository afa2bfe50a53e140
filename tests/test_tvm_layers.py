"""Compiled layers against the reference: shapes, paddings, types and zero points that no exported network combines."""

from __future__ import annotations

import numpy as np
import pytest

from exporters import compile_tvm
from exporters.parity import parity
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
)
from exporters.tvm import families
from exporters.tvm.conv import split_weight
from exporters.tvm.targets import TARGETS

RUNNABLE = [name for name, target in TARGETS.items() if target.runs_here]


class Zoo:
    """Layers side by side, all reading the image or one another."""

    def __init__(self, rng: np.random.Generator, channels: int, height: int, width: int) -> None:
        self.rng = rng
        self.layers: list[QLayer] = []
        self.image = self.tensor("image", (channels, height, width), 0.02)
        self.values = [self.image]

    def tensor(self, name: str, shape: tuple[int, ...], scale: float) -> QTensor:
        dtype = str(self.rng.choice(["uint8", "int8"]))
        low, high = DTYPE_RANGE[dtype]
        zero_point = int(self.rng.choice([low, high, 0, self.rng.integers(low, high + 1)]))
        clamp = sorted(self.rng.integers(low, high + 1, 2).tolist()) if self.rng.random() < 0.3 else [low, high]
        return QTensor(name, shape, scale * float(self.rng.uniform(0.5, 2)), zero_point, 8, *clamp, dtype)

    def pick(self, rank: int = 3) -> QTensor:
        found = [value for value in self.values if len(value.shape) == rank]
        return found[int(self.rng.integers(len(found)))]

    def weighted(self, kind: type[QConv] | type[QDepthwise] | type[QLinear], scale: float = 1.0) -> None:
        rng, name = self.rng, f"{kind.__name__.lower()}{len(self.layers)}"
        source = self.pick(1 if kind is QLinear else 3)
        kernel: tuple[int, ...] = ()
        stride, padding = 1, (0, 0, 0, 0)
        if kind is not QLinear:
            kernel = (int(rng.choice([1, 2, 3, 5, 7])), int(rng.choice([1, 3, 4, 5, 7])))
            stride = int(rng.integers(1, 4))
            short = [max(0, size - have) for size, have in zip(kernel, source.shape[1:], strict=True)]
            extra = rng.integers(0, 4, 4)
            padding = (short[0] + int(extra[0]), short[1] + int(extra[1]), int(extra[2]), int(extra[3]))
        channels = source.shape[0] if kind is QDepthwise else int(rng.integers(1, 90))
        inside = 1 if kind is QDepthwise else source.shape[0]
        weight = rng.integers(-128, 128, (channels, inside, *kernel)).astype(np.int8)
        zero_point = int(rng.choice([0, 0, 0, -128, 100]))
        sums = 60 * 128 * np.sqrt(weight[0].size)
        output = self.tensor(
            name, (channels, *_sizes(source, kernel, stride, padding)), source.scale * sums / 128 / scale
        )
        weight_scale = rng.uniform(0.2, 1, channels).astype(np.float32)
        bias = rng.integers(-20_000, 20_000, channels).astype(np.int32)
        common = (name, source.name, output, weight, weight_scale, 8, bias)
        if kind is QLinear:
            self.add(QLinear(*common, zero_point))
        else:
            self.add(kind(*common, stride, padding, zero_point))

    def max_pool(self) -> None:
        source, size, stride = self.pick(), int(self.rng.integers(2, 4)), int(self.rng.integers(1, 3))
        padding = tuple(int(value) for value in self.rng.integers(1, size, 4))
        shape = (source.shape[0], *_sizes(source, (size, size), stride, padding))
        name = f"maxpool{len(self.layers)}"
        output = QTensor(name, shape, source.scale, source.zero_point, 8, source.lo, source.hi, source.dtype)
        self.add(QMaxPool(name, source.name, output, size, stride, padding))

    def elementwise(self) -> None:
        source = self.pick()
        name = f"clip{len(self.layers)}"
        self.add(QClip(name, source.name, self.tensor(name, source.shape, source.scale), 0.0, 60 * source.scale))
        name = f"constant{len(self.layers)}"
        dtype = str(self.rng.choice(["uint8", "int8"]))
        low, high = DTYPE_RANGE[dtype]
        constant = self.rng.integers(low, high + 1, source.shape).astype(dtype)
        output = self.tensor(name, source.shape, source.scale)
        self.add(
            QAddConstant(name, source.name, output, constant, source.scale * 0.7, int(self.rng.integers(low, high)))
        )
        name = f"add{len(self.layers)}"
        self.add(QAdd(name, source.name, self.layers[-1].output.name, self.tensor(name, source.shape, source.scale)))

    def pool(self, method: str) -> None:
        source, name = self.pick(), f"pool{len(self.layers)}"
        self.add(QPool(name, source.name, self.tensor(name, source.shape[:1], 0.5 * source.scale), method))

    def add(self, layer: QLayer) -> None:
        self.layers.append(layer)
        self.values.append(layer.output)

    def network(self) -> QuantizedNetwork:
        return QuantizedNetwork("zoo", self.image, tuple(self.layers))


def _sizes(source: QTensor, kernel: tuple[int, ...], stride: int, padding: tuple[int, ...]) -> tuple[int, ...]:
    if not kernel:
        return ()
    height = (source.shape[1] + padding[0] + padding[2] - kernel[0]) // stride + 1
    width = (source.shape[2] + padding[1] + padding[3] - kernel[1]) // stride + 1
    return height, width


def zoo(seed: int) -> QuantizedNetwork:
    rng = np.random.default_rng(seed)
    layers = Zoo(rng, int(rng.integers(1, 41)), int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    for _ in range(2):
        layers.weighted(QConv)
        layers.weighted(QDepthwise)
        layers.max_pool()
        layers.elementwise()
    layers.weighted(QConv, scale=1e9)  # sums that leave int32 once they are scaled
    layers.pool("integer")
    layers.pool("float")
    layers.weighted(QLinear)
    return layers.network()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", RUNNABLE)
def test_odd_layers_equal_the_reference(target: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "WORK_FOR_THREADS", 0)  # small layers would stay on one thread
    net = zoo(seed)
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 2, (2, *net.input.shape)).astype(np.float32)
    report = parity(net, None, images, {target: compile_tvm(net, target, threads=1 + seed % 2).tensors(images)})
    assert report.is_equal, str(report)


@pytest.mark.parametrize("target", RUNNABLE)
def test_packed_weights_give_the_same_codes(target: str) -> None:
    from networks import random_image, random_network

    rng = np.random.default_rng(3)
    net = random_network(rng, (4, 6), size=9)
    images = random_image(net, 2, rng)
    report = parity(net, None, images, {"packed": compile_tvm(net, target, pack_weights=True).tensors(images)})
    assert report.is_equal, str(report)


def test_weights_beyond_int8_are_split() -> None:
    weight = np.arange(-255, 256, dtype=np.int16)
    parts = split_weight(weight)
    assert parts.dtype == np.int8
    np.testing.assert_array_equal(parts.sum(0, dtype=np.int16), weight)
    assert len(split_weight(np.arange(-128, 128, dtype=np.int16))) == 1
