"""Float ONNX graphs with random weights whose activations keep a steady size through the whole depth."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class Value:
    """A float tensor of the graph: its name, (channels, height, width) or (features,), and its mean square."""

    name: str
    shape: tuple[int, ...]
    mean_square: float


@dataclass
class FloatGraph:
    """A graph in the making. Weights are drawn so that each layer's output has the standard deviation asked for.

    Each tensor carries an estimate of its mean square; a weight of variance `deviation**2 / (fan_in * mean_square)`
    then gives outputs of that deviation, so activations neither die nor explode.
    """

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def image(self, channels: int, size: int) -> Value:
        """The input: pixels from 0 to 1."""
        shape = ["N", channels, size, size]
        self.inputs.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, shape))
        return Value("image", (channels, size, size), 1 / 3)

    def conv(
        self,
        name: str,
        value: Value,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        pads: tuple[int, int, int, int] | None = None,
        deviation: float = 2.0,
    ) -> Value:
        """Convolution with bias. pads: top, left, bottom, right; half the kernel on each side if left out."""
        channels, height, width = value.shape
        half = kernel_size // 2
        top, left, bottom, right = pads if pads is not None else (half, half, half, half)
        fan_in = channels // groups * kernel_size**2
        spread = deviation / np.sqrt(fan_in * value.mean_square)
        weight = self.rng.normal(0, spread, (out_channels, channels // groups, kernel_size, kernel_size))
        bias = self.rng.normal(0, 0.25 * deviation, out_channels)
        self._node(
            "Conv",
            name,
            [value.name, self._constant(f"{name}.weight", weight), self._constant(f"{name}.bias", bias)],
            {
                "kernel_shape": [kernel_size, kernel_size],
                "strides": [stride, stride],
                "pads": [top, left, bottom, right],
                "group": groups,
            },
        )
        out_height = (height + top + bottom - kernel_size) // stride + 1
        out_width = (width + left + right - kernel_size) // stride + 1
        return Value(name, (out_channels, out_height, out_width), 17 / 16 * deviation**2)

    def relu6(self, name: str, value: Value) -> Value:
        """Clip to [0, 6]."""
        low, high = self._constant(f"{name}.min", np.array(0.0)), self._constant(f"{name}.max", np.array(6.0))
        self._node("Clip", name, [value.name, low, high])
        return Value(name, value.shape, value.mean_square / 2)

    def relu(self, name: str, value: Value) -> Value:
        self._node("Relu", name, [value.name])
        return Value(name, value.shape, value.mean_square / 2)

    def add(self, name: str, left: Value, right: Value) -> Value:
        self._node("Add", name, [left.name, right.name])
        return Value(name, left.shape, left.mean_square + right.mean_square)

    def max_pool(self, name: str, value: Value, kernel_size: int = 3, stride: int = 2, padding: int = 1) -> Value:
        channels, height, width = value.shape
        self._node(
            "MaxPool",
            name,
            [value.name],
            {"kernel_shape": [kernel_size] * 2, "strides": [stride] * 2, "pads": [padding] * 4},
        )
        sizes = [(size + 2 * padding - kernel_size) // stride + 1 for size in (height, width)]
        return Value(name, (channels, *sizes), 2 * value.mean_square)

    def global_average_pool(self, name: str, value: Value) -> Value:
        """Mean over height and width, then flattened to (channels,)."""
        self._node("GlobalAveragePool", f"{name}.mean", [value.name])
        self._node("Flatten", name, [f"{name}.mean"], {"axis": 1})
        return Value(name, value.shape[:1], value.mean_square / 2)

    def linear(self, name: str, value: Value, out_features: int, deviation: float = 3.0) -> Value:
        """Fully connected layer as a Gemm with transposed weight."""
        spread = deviation / np.sqrt(value.shape[0] * value.mean_square)
        weight = self.rng.normal(0, spread, (out_features, value.shape[0]))
        bias = self.rng.normal(0, 0.25 * deviation, out_features)
        inputs = [value.name, self._constant(f"{name}.weight", weight), self._constant(f"{name}.bias", bias)]
        self._node("Gemm", name, inputs, {"transB": 1})
        return Value(name, (out_features,), 17 / 16 * deviation**2)

    def save(self, path: str | os.PathLike[str], output: Value, name: str) -> None:
        """Write the graph; `output`, which the last node gives, becomes its only output and is named "logits"."""
        assert self.nodes[-1].output[0] == output.name
        self.nodes[-1].output[0] = "logits"
        shape = ["N", *output.shape]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, name, self.inputs, [logits], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        temporary = Path(f"{os.fspath(path)}.tmp")
        temporary.write_bytes(model.SerializeToString())
        temporary.replace(path)

    def _constant(self, name: str, array: NDArray[np.float64]) -> str:
        self.initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def _node(
        self, kind: str, name: str, inputs: list[str], attributes: dict[str, int | list[int]] | None = None
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **(attributes or {})))
