"""QuantizedNetwork -> ONNX, in the few patterns that onnxruntime turns into integer kernels at every bit width.

weight    W -> DequantizeLinear(axis=0); at 4 bits and below W is INT4, two codes a byte, and goes through Cast(INT8),
          because INT4 straight into DequantizeLinear leaves the convolution in float.
activation    float -> QuantizeLinear -> Clip on the codes -> DequantizeLinear. A float Clip before QuantizeLinear, or
          a 4-bit activation type, would leave the convolution in float or not load at all.
head      GlobalAveragePool -> QuantizeLinear -> Flatten on the codes -> DequantizeLinear -> Gemm.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import onnx
from ml_dtypes import int4, uint2
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError
from exporters.files import replace_file
from exporters.onnx_metadata import METADATA_KEY, describe_network, node_metadata
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

OPSET, IR_VERSION = 21, 10
PACKED_OPSET, PACKED_IR_VERSION = 25, 13  # the first with two-bit tensors
LOGITS = "logits"
Attributes = dict[str, int | list[int]]


def write_onnx(net: QuantizedNetwork, path: str | os.PathLike[str], *, pack_6bit: bool = False) -> None:
    """Write the network to `path`: input named as `net.input` (N, channels, height, width) float32, output "logits".

    pack_6bit: store weights of 5 and 6 bits in 6 bits, as INT4 and UINT2 tensors that onnxruntime joins when it
    loads the file; such a file needs opset 25.

    Raises: ExportError if the network has no layer, names run into each other, or the file cannot be written.
    """
    replace_file(path, build_model(net, pack_6bit=pack_6bit).SerializeToString())


def build_model(net: QuantizedNetwork, *, pack_6bit: bool = False) -> onnx.ModelProto:
    """The ONNX model of the network, unsaved; arguments and errors as `write_onnx`."""
    if not net.layers:
        raise ExportError(f"network {net.name} has no layers to write")
    graph = _Graph(net, pack_6bit)
    graph.values.add(net.input.name)
    graph.quantize(net.input, net.input.name)
    for layer in net.layers:
        graph.layer(layer)
    image = helper.make_tensor_value_info(net.input.name, TensorProto.FLOAT, ["N", *net.input.shape])
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", *net.output.shape])
    model = helper.make_model(
        helper.make_graph(graph.nodes, net.name, [image], [logits], graph.initializers),
        opset_imports=[helper.make_opsetid("", PACKED_OPSET if pack_6bit else OPSET)],
        ir_version=PACKED_IR_VERSION if pack_6bit else IR_VERSION,
        producer_name="apq-deploy",
    )
    helper.set_model_props(model, {METADATA_KEY: describe_network(net)})
    return model


@dataclass
class _Graph:
    """Nodes and initializers in the making.

    A tensor `t` is the value `t.codes`; `t.real` is what its DequantizeLinear gives.
    """

    net: QuantizedNetwork
    pack_6bit: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    values: set[str] = field(default_factory=set)

    def layer(self, layer: QLayer) -> None:
        real = [self._real(name) for name in layer.inputs]
        result = f"{layer.output.name}.float"
        attributes: Attributes
        match layer:
            case QConv() | QDepthwise():
                kernel_shape = list(layer.weight.shape[2:])
                attributes = {"kernel_shape": kernel_shape, "strides": [layer.stride] * 2, "pads": list(layer.padding)}
                if isinstance(layer, QDepthwise):
                    attributes["group"] = layer.weight.shape[0]
                self._node(
                    "Conv", layer.name, [*real, *self._weights(layer)], result, layer=layer, attributes=attributes
                )
            case QLinear():
                self._node(
                    "Gemm", layer.name, [*real, *self._weights(layer)], result, layer=layer, attributes={"transB": 1}
                )
            case QAdd():
                self._node("Add", layer.name, real, result, layer=layer)
            case QPool(method="integer"):
                self._node("GlobalAveragePool", layer.name, real, result, layer=layer)
            case QPool():
                attributes = {"kernel_shape": list(self.net.tensors[layer.input].shape[1:])}
                self._node("AveragePool", layer.name, real, result, layer=layer, attributes=attributes)
            case QClip():
                bounds = [
                    self._constant(f"{layer.name}.{name}", np.array(value, np.float32))
                    for name, value in (("low", layer.low), ("high", layer.high))
                ]
                self._node("Clip", layer.name, [*real, *bounds], result, layer=layer)
            case QAddConstant():
                inputs = [
                    self._constant(f"{layer.name}.constant.codes", layer.constant),
                    self._constant(f"{layer.name}.constant.scale", np.array(layer.constant_scale, np.float32)),
                    self._constant(
                        f"{layer.name}.constant.zero_point", np.array(layer.constant_zero_point, layer.constant.dtype)
                    ),
                ]
                constant = f"{layer.name}.constant"
                self._node("DequantizeLinear", f"{constant}.dequantize", inputs, constant)
                self._node("Add", layer.name, [*real, constant], result, layer=layer)
            case QMaxPool():
                attributes = {
                    "kernel_shape": [layer.kernel_size] * 2,
                    "strides": [layer.stride] * 2,
                    "pads": list(layer.padding),
                }
                self._node("MaxPool", layer.name, real, result, layer=layer, attributes=attributes)
        self.quantize(layer.output, result, flatten=isinstance(layer, QPool))

    def quantize(self, tensor: QTensor, source: str, *, flatten: bool = False) -> None:
        """Value `source` -> codes -> clamp -> real again."""
        name = tensor.name
        scale = self._constant(f"{name}.scale", np.array(tensor.scale, np.float32))
        zero_point = self._constant(f"{name}.zero_point", np.array(tensor.zero_point, tensor.dtype))
        steps = ["QuantizeLinear"]
        if (tensor.lo, tensor.hi) != DTYPE_RANGE[tensor.dtype]:
            steps.append("Clip")
        if flatten:
            steps.append("Flatten")
        for step in steps:
            result = f"{name}.codes" if step == steps[-1] else f"{name}.{step.lower()}"
            match step:
                case "QuantizeLinear":
                    self._node(step, f"{name}.quantize", [source, scale, zero_point], result)
                case "Clip":
                    low = self._constant(f"{name}.lo", np.array(tensor.lo, tensor.dtype))
                    high = self._constant(f"{name}.hi", np.array(tensor.hi, tensor.dtype))
                    self._node(step, f"{name}.clip", [source, low, high], result)
                case "Flatten":
                    self._node(step, f"{name}.flatten", [source], result, attributes={"axis": 1})
            source = result
        self._node("DequantizeLinear", f"{name}.dequantize", [source, scale, zero_point], self._real(name))

    def _real(self, tensor: str) -> str:
        return LOGITS if tensor == self.net.output.name else f"{tensor}.real"

    def _weights(self, layer: QWeighted) -> tuple[str, str]:
        """Names of the dequantized weight and bias."""
        name = layer.name
        scale = self._constant(f"{name}.weight.scale", layer.weight_scale)
        source = self._stored_weight(layer)
        zero_points = []
        # onnxruntime keeps a Gemm in float unless its weight's zero point is written out
        if layer.weight_zero_point or isinstance(layer, QLinear):
            points = np.full(len(layer.weight_scale), layer.weight_zero_point, np.int8)
            zero_points.append(self._constant(f"{name}.weight.zero_point", points))
        inputs = [source, scale, *zero_points]
        axis: Attributes = {"axis": 0}
        self._node("DequantizeLinear", f"{name}.weight.dequantize", inputs, f"{name}.weight", attributes=axis)
        bias_scale = np.float32(self.net.tensors[layer.input].scale) * layer.weight_scale
        inputs = [
            self._constant(f"{name}.bias.codes", layer.bias),
            self._constant(f"{name}.bias.scale", bias_scale),
        ]
        self._node("DequantizeLinear", f"{name}.bias.dequantize", inputs, f"{name}.bias", attributes=axis)
        return f"{name}.weight", f"{name}.bias"

    def _stored_weight(self, layer: QWeighted) -> str:
        """Name of a value that gives the weight's codes as INT8."""
        name, codes = f"{layer.name}.weight.codes", layer.weight
        if layer.weight_bits <= 4:
            packed = self._constant(f"{name}.int4", codes.astype(int4))
            self._node("Cast", name, [packed], name, attributes={"to": TensorProto.INT8})
            return name
        if layer.weight_bits <= 6 and self.pack_6bit:
            # codes = 4 * high + low with high in [-8, 7] and low in [0, 3]
            parts = {"high": (codes >> 2).astype(int4), "low": (codes & 3).astype(uint2)}
            for part, array in parts.items():
                packed = self._constant(f"{name}.{part}.packed", array)
                self._node("Cast", f"{name}.{part}", [packed], f"{name}.{part}", attributes={"to": TensorProto.INT8})
            four = self._constant(f"{name}.four", np.array(4, np.int8))
            self._node("Mul", f"{name}.shift", [f"{name}.high", four], f"{name}.shifted")
            self._node("Add", name, [f"{name}.shifted", f"{name}.low"], name)
            return name
        return self._constant(name, codes)

    def _claim(self, name: str) -> None:
        if name in self.values:
            raise ExportError(f"two values of the file would be named {name!r}; rename a layer or a tensor")
        self.values.add(name)

    def _constant(self, name: str, array: NDArray) -> str:
        self._claim(name)
        # from_array packs 4-bit codes two to a byte; make_tensor would spend a byte or more on each
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def _node(
        self,
        kind: str,
        name: str,
        inputs: list[str],
        output: str,
        *,
        layer: QLayer | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        self._claim(output)
        node = helper.make_node(kind, inputs, [output], name=name)
        for key, value in sorted((attributes or {}).items()):
            node.attribute.append(helper.make_attribute(key, value))
        if layer is not None:
            helper.set_metadata_props(node, node_metadata(self.net, layer))
        self.nodes.append(node)
