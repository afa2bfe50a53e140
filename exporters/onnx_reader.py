"""ONNX -> QuantizedNetwork: the files of this project, and those of onnxruntime's `quantize_static` in QDQ format.

One walk over the nodes, in which every value is one of: a constant, dequantized weights, a float result that waits for
its QuantizeLinear, codes, or the real numbers that codes stand for. A graph that onnxruntime would not run with
integer kernels is refused, because nothing could then promise its codes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from exporters.errors import UnsupportedGraph
from exporters.onnx_graph import Graph, image_shape, integers, label, load_model, to_array
from exporters.onnx_layers import (
    Constant,
    Weights,
    activation_parameters,
    broadcast,
    clip_bounds,
    convolution,
    dequantize_weights,
    fold_constant,
    is_clip_needless,
    linear,
    pooling_window,
    quantize_constant,
)
from exporters.onnx_metadata import Claims, read_claims
from exporters.qnet import (
    DTYPE_RANGE,
    Dtype,
    QAdd,
    QAddConstant,
    QClip,
    QLayer,
    QMaxPool,
    QPool,
    QTensor,
    QuantizedNetwork,
    window_sizes,
)

SUPPORTED = (
    "Conv (groups 1 or depthwise), Gemm, MatMul, Add, Relu, Clip, MaxPool, GlobalAveragePool, AveragePool and "
    "ReduceMean over the whole image, Flatten, Reshape and Squeeze after pooling, each between DequantizeLinear and "
    "QuantizeLinear of 8-bit types"
)
CODES = ".codes"
FOREIGN = "_QuantizeLinear_Output"


@dataclass
class _Result:
    """A float result that waits for its QuantizeLinear. make: the layer, once its output tensor is known."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[QTensor], QLayer]
    low: float = -np.inf
    high: float = np.inf
    clips: int = 0
    keeps: QTensor | None = None  # the input whose scale and zero point the result must keep
    source: str | None = None  # the codes that a clip reads
    is_float: bool = False  # computed in float whatever follows
    used: bool = False
    codes: _Codes | None = None  # once it is quantized
    position: int = 0  # of the node among the graph's nodes


@dataclass
class _Codes:
    """Codes of a tensor. layer: what computes them; None for the image. tensor: set once they are dequantized."""

    value: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    dtype: Dtype
    lo: int
    hi: int
    layer: _Result | None
    tensor: QTensor | None = None
    replaced: bool = False  # a Clip or Flatten has taken its place


@dataclass(frozen=True)
class _Real:
    tensor: QTensor


@dataclass(frozen=True)
class _View:
    """A dequantized tensor in another shape, on its way to being quantized again."""

    tensor: QTensor


@dataclass(frozen=True)
class _Image:
    name: str
    shape: tuple[int, int, int]


_Value = Constant | Weights | _Result | _Codes | _Real | _View | _Image


@dataclass(frozen=True)
class NetworkFile:
    """A network and where its file keeps each tensor. values: name of the codes' value, by tensor name."""

    net: QuantizedNetwork
    values: dict[str, str]


def read_onnx(path: str | os.PathLike[str]) -> QuantizedNetwork:
    """The network in the file.

    Raises: UnsupportedGraph naming the node that is not supported; ExportError if the file is broken or what it says
    about its own bits is not so.
    """
    return read_network(load_model(path)).net


def read_network(model: onnx.ModelProto) -> NetworkFile:
    """The network of a loaded model, with the names of its values; errors as `read_onnx`."""
    graph = Graph(model)
    claims = read_claims(model)
    return _Reader(graph, claims).read()


class _Reader:
    def __init__(self, graph: Graph, claims: Claims | None) -> None:
        self.graph = graph
        self.claims = claims
        self.values: dict[str, _Value] = {}
        self.layers: list[tuple[int, QLayer]] = []
        self.input: QTensor | None = None
        self.tensor_values: dict[str, str] = {}

    def read(self) -> NetworkFile:
        outputs = [value.name for value in self.graph.model.graph.output]
        inputs = self.graph.inputs
        if len(inputs) != 1 or len(outputs) != 1:
            raise UnsupportedGraph(f"supported: one image in and one result out; got {len(inputs)} and {len(outputs)}")
        image = _Image(inputs[0].name, image_shape(inputs[0]))
        self.values[image.name] = image
        for position, node in enumerate(self.graph.nodes):
            self._node(node, position)
        result = self.values.get(outputs[0])
        if not isinstance(result, _Real):
            raise UnsupportedGraph(
                f"output {outputs[0]!r} should come from a DequantizeLinear; quantize the last layer"
            )
        if self.input is None or not self.layers:
            raise UnsupportedGraph("no layer reads the image")
        # in the order of the nodes that compute, not of those that quantize
        layers = tuple(layer for _, layer in sorted(self.layers, key=lambda entry: entry[0]))
        if result.tensor != layers[-1].output:
            raise UnsupportedGraph(f"output {outputs[0]!r} should be the last layer's result")
        metadata = self.claims.metadata if self.claims else {}
        net = QuantizedNetwork(self.graph.model.graph.name, self.input, layers, metadata)
        return NetworkFile(net, self.tensor_values)

    def _node(self, node: onnx.NodeProto, position: int) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedGraph(f"{label(node)} of domain {node.domain!r} is not supported; supported: {SUPPORTED}")
        if len(node.output) != 1 or not node.output[0]:
            raise UnsupportedGraph(f"{label(node)} has {len(node.output)} outputs; supported: one")
        inputs = [self._value(node, name) for name in node.input]
        constants = [value for value in inputs if isinstance(value, Constant)]
        is_constant = node.op_type == "Constant" or (inputs and len(constants) == len(inputs))
        if is_constant and node.op_type == "QuantizeLinear":
            self.values[node.output[0]] = quantize_constant(node, constants[0], constants[1:])
            return
        if is_constant and node.op_type != "DequantizeLinear":
            self.values[node.output[0]] = fold_constant(node, constants)
            return
        handlers: dict[str, Callable[[onnx.NodeProto, list[_Value | None]], _Value]] = {
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            "Conv": self._weighted,
            "Gemm": self._weighted,
            "MatMul": self._weighted,
            "Add": self._add,
            "Relu": self._clip,
            "Clip": self._clip,
            "MaxPool": self._max_pool,
            "GlobalAveragePool": self._pool,
            "AveragePool": self._pool,
            "ReduceMean": self._pool,
            "Flatten": self._view,
            "Reshape": self._view,
            "Squeeze": self._view,
        }
        if node.op_type not in handlers:
            hint = (
                "quantize in the QDQ format, not QOperator; " if node.op_type.startswith(("QLinear", "QGemm")) else ""
            )
            raise UnsupportedGraph(f"{label(node)} is not supported; {hint}supported: {SUPPORTED}")
        if not inputs:
            raise UnsupportedGraph(f"{label(node)} reads nothing")
        value = handlers[node.op_type](node, inputs)
        if isinstance(value, _Result):
            value.position = position
        self.values[node.output[0]] = value

    def _value(self, node: onnx.NodeProto, name: str) -> _Value | None:
        if not name:
            return None
        if name not in self.values and name in self.graph.initializers:
            self.values[name] = Constant(to_array(self.graph.initializers[name]))
        if name not in self.values:
            raise UnsupportedGraph(f"{label(node)} reads {name!r}, which no earlier node gives")
        return self.values[name]

    # Quantization

    def _quantize(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        scale, zero_point, dtype = activation_parameters(node, inputs)
        low, high = DTYPE_RANGE[dtype]
        value = node.output[0]
        match inputs[0]:
            case _Image(shape=shape):
                return _Codes(value, shape, scale, zero_point, dtype, low, high, None)
            case _View(tensor=tensor):
                if (scale, zero_point, dtype) != (tensor.scale, tensor.zero_point, tensor.dtype):
                    raise UnsupportedGraph(f"{label(node)} should keep the scale and zero point of {tensor.name}")
                return _Codes(value, tensor.shape, scale, zero_point, dtype, low, high, None, tensor)
            case _Result(codes=_Codes() as codes) if (codes.scale, codes.zero_point, codes.dtype) == (
                scale,
                zero_point,
                dtype,
            ):
                return codes  # quantized once for each reader, which onnxruntime merges
            case _Result() as result:
                self._take(node, result)
                if result.dtype != dtype:
                    raise UnsupportedGraph(
                        f"{label(node)} turns {result.dtype} into {dtype}; quantize both to one type"
                    )
                if result.keeps and (scale, zero_point) != (result.keeps.scale, result.keeps.zero_point):
                    raise UnsupportedGraph(
                        f"{label(node)} should keep the scale and zero point of {result.keeps.name!r}"
                    )
                is_needless = is_clip_needless(result.name, result.low, result.high, scale, zero_point, dtype)
                if result.source is not None and is_needless:
                    raise UnsupportedGraph(
                        f"{label(node)} quantizes {result.source!r} a second time; drop one of the two"
                    )
                if result.source is None and not is_needless:
                    raise UnsupportedGraph(
                        f"{label(node)}: a float clip to [{result.low:g}, {result.high:g}] before it cuts into its "
                        f"codes, which leaves layer {result.name!r} in float; clip the codes after QuantizeLinear"
                    )
                result.codes = _Codes(value, result.shape, scale, zero_point, dtype, low, high, result)
                return result.codes
        raise UnsupportedGraph(f"{label(node)} should read the image or a layer's float result")

    def _dequantize(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        match inputs[0]:
            case Constant() as codes:
                return dequantize_weights(node, codes, [value for value in inputs[1:] if isinstance(value, Constant)])
            case _Codes() as codes:
                if activation_parameters(node, inputs) != (codes.scale, codes.zero_point, codes.dtype):
                    raise UnsupportedGraph(
                        f"{label(node)} has another scale, zero point or type than its QuantizeLinear"
                    )
                return _Real(self._seal(node, codes))
        raise UnsupportedGraph(f"{label(node)} should read codes or constants")

    def _seal(self, node: onnx.NodeProto, codes: _Codes) -> QTensor:
        """The tensor of the codes, whose layer is now complete."""
        if codes.tensor is not None:
            return codes.tensor
        if codes.replaced:
            raise UnsupportedGraph(f"{label(node)} reads {codes.value!r} beside the Clip or Flatten after it")
        layer = codes.layer
        name = self._tensor_name(codes.value)
        bits = None
        if self.claims is not None:
            bits = self.claims.input_bits if layer is None else self.claims.act_bits.get(layer.name)
        if bits is None:
            bits = max(1, (codes.hi - codes.lo).bit_length())
        tensor = QTensor(name, codes.shape, codes.scale, codes.zero_point, bits, codes.lo, codes.hi, codes.dtype)
        if layer is None:
            if self.input is not None:
                raise UnsupportedGraph(f"{label(node)} quantizes the image a second time; quantize it once")
            self.input = tensor
        else:
            self.layers.append((layer.position, layer.make(tensor)))
        codes.tensor = tensor
        self.tensor_values[name] = codes.value
        return tensor

    def _tensor_name(self, value: str) -> str:
        name = value.removesuffix(CODES) if self.claims else value.removesuffix(FOREIGN)
        return value if not name or name in self.tensor_values else name

    # Layers

    def _weighted(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        source = self._real(node, inputs[0])
        weights, bias = [*inputs[1:3], None, None][:2]
        if not isinstance(weights, Weights):
            raise UnsupportedGraph(f"{label(node)}: its weights should come from DequantizeLinear of constants")
        if bias is not None and not isinstance(bias, Weights | Constant):
            raise UnsupportedGraph(f"{label(node)}: its bias should be constant")
        if source.dtype == "int8" and weights.is_unsigned:
            raise UnsupportedGraph(f"{label(node)}: unsigned weights beside int8 activations stay in float; use int8")
        name = self._layer_name(node)
        claimed = self.claims.weight_bits.get(name) if self.claims else None
        is_depthwise = bool(self.claims) and self.claims.kinds.get(name) == "QDepthwise"
        build = convolution if node.op_type == "Conv" else linear
        shape, make = build(node, name, source, weights, bias, claimed, is_depthwise)
        return _Result(name, shape, source.dtype, make)

    def _add(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        name = self._layer_name(node)
        match inputs:
            case [_Real(tensor=left), _Real(tensor=right)]:
                if left.dtype != right.dtype or left.shape != right.shape or left.name == right.name:
                    raise UnsupportedGraph(f"{label(node)} should add two tensors of one shape and type")
                return _Result(name, left.shape, left.dtype, lambda tensor: QAdd(name, left.name, right.name, tensor))
            case [_Real(tensor=left), Weights() as constant]:
                codes = broadcast(node, constant, left)
                scale, point = float(constant.scale.flat[0]), constant.zero_point
                return _Result(
                    name,
                    left.shape,
                    left.dtype,
                    lambda tensor: QAddConstant(name, left.name, tensor, codes, scale, point),
                )
        raise UnsupportedGraph(f"{label(node)} should add two quantized tensors, or a tensor and a quantized constant")

    def _clip(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        low, high = clip_bounds(node, inputs)
        match inputs[0]:
            case _Codes() as codes if node.op_type == "Clip":
                self._replace(node, codes)
                lo, hi = int(max(low, codes.lo)), int(min(high, codes.hi))
                if lo > hi:
                    raise UnsupportedGraph(f"{label(node)} leaves no codes between {lo} and {hi}")
                return replace(codes, value=node.output[0], lo=lo, hi=hi, replaced=False)
            case _Result() as result:
                self._take(node, result)
                if result.clips or result.keeps:
                    raise UnsupportedGraph(f"{label(node)} should follow a Conv, Gemm, MatMul, Add or DequantizeLinear")
                return _Result(result.name, result.shape, result.dtype, result.make, low, high, clips=1)
            case _Real(tensor=tensor):
                name = self._layer_name(node)
                return _Result(
                    name,
                    tensor.shape,
                    tensor.dtype,
                    lambda output: QClip(name, tensor.name, output, low, high),
                    low,
                    high,
                    clips=1,
                    source=tensor.name,
                )
        raise UnsupportedGraph(f"{label(node)} should read codes, a layer's float result or a dequantized tensor")

    def _max_pool(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        source = self._real(node, inputs[0])
        kernel, stride, padding = pooling_window(node, source)
        name = self._layer_name(node)
        shape = source.shape[:1] + window_sizes(name, source.shape, (kernel, kernel), stride, padding)
        return _Result(
            name,
            shape,
            source.dtype,
            lambda tensor: QMaxPool(name, source.name, tensor, kernel, stride, padding),
            keeps=source,
        )

    def _pool(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        source = self._real(node, inputs[0])
        name = self._layer_name(node)
        if len(source.shape) != 3:
            raise UnsupportedGraph(f"{label(node)} should read an image-like tensor, got shape {source.shape}")
        if node.op_type == "GlobalAveragePool":
            return _Result(name, source.shape[:1], source.dtype, lambda tensor: QPool(name, source.name, tensor))
        if node.op_type == "AveragePool":
            is_global = integers(node, "kernel_shape", ()) == source.shape[1:] and not any(integers(node, "pads", ()))
        else:
            axes = integers(node, "axes", ())
            if len(inputs) > 1 and isinstance(inputs[1], Constant):
                axes = tuple(int(axis) for axis in inputs[1].array.flat)
            is_global = sorted(axis % 4 for axis in axes) == [2, 3]
        if not is_global:
            raise UnsupportedGraph(f"{label(node)} should average over the whole height and width")
        return _Result(
            name,
            source.shape[:1],
            source.dtype,
            lambda tensor: QPool(name, source.name, tensor, method="float"),
            is_float=node.op_type == "ReduceMean",
        )

    def _view(self, node: onnx.NodeProto, inputs: list[_Value | None]) -> _Value:
        match inputs[0]:
            case _Codes(shape=(_,)) as codes:
                if codes.tensor is None:
                    self._replace(node, codes)
                return replace(codes, value=node.output[0], replaced=False)
            case _Real(tensor=tensor) if len(tensor.shape) == 1:
                return _View(tensor)
            case _Result(is_float=True, used=False) as result:
                self._take(node, result)
                return replace(result, used=False)
        raise UnsupportedGraph(
            f"{label(node)} is supported only on the pooling's result, (N, channels, 1, 1), once that is quantized"
        )

    # Guards

    def _real(self, node: onnx.NodeProto, value: _Value | None) -> QTensor:
        match value:
            case _Real(tensor=tensor):
                return tensor
            case _Result() as result:
                raise UnsupportedGraph(
                    f"{label(node)} reads the float result of {result.name!r}, which leaves it in float; put "
                    "QuantizeLinear and DequantizeLinear between"
                )
        raise UnsupportedGraph(f"{label(node)} should read a dequantized tensor; supported: {SUPPORTED}")

    def _layer_name(self, node: onnx.NodeProto) -> str:
        return node.name or node.output[0]

    def _take(self, node: onnx.NodeProto, result: _Result) -> None:
        """Mark a float result as read; onnxruntime fuses it only if it is read once."""
        if result.used:
            raise UnsupportedGraph(f"{label(node)} reads the float result of {result.name!r} a second time")
        result.used = True

    def _replace(self, node: onnx.NodeProto, codes: _Codes) -> None:
        if codes.replaced or codes.tensor is not None:
            raise UnsupportedGraph(f"{label(node)} reads {codes.value!r}, which another node reads as well")
        codes.replaced = True
