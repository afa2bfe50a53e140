"""Networks as hardware models see them: one `ConvLayer` and its bits for each layer with weights."""

from __future__ import annotations

import os

import numpy as np
import onnx
from onnx import shape_inference

from exporters.errors import ExportError, UnsupportedGraph
from exporters.onnx_graph import Graph, attributes, integers, label, load_model, name_nodes
from exporters.onnx_weights import stored_constant
from exporters.qnet import QDepthwise, QLinear, QuantizedNetwork
from hwmodels.layers import ConvLayer, Precision

Workload = list[tuple[str, str, ConvLayer, Precision]]


def network_layers(net: QuantizedNetwork) -> Workload:
    """(name, kind, layer, precision) of each layer with weights, in order; kind: conv, depthwise or linear.

    The precision is the weights' bits and those of the tensor the layer reads. The first convolution is unrolled
    (im2col), as BitFusion does.

    Raises: ExportError for a convolution that is not square.
    """
    tensors = net.tensors
    found: Workload = []
    for layer in net.weighted():
        source = tensors[layer.input]
        precision = Precision(layer.weight_bits, source.bits)
        if isinstance(layer, QLinear):
            out_features, in_features = layer.weight.shape
            found.append((layer.name, "linear", ConvLayer.linear(in_features, out_features), precision))
            continue
        is_depthwise = isinstance(layer, QDepthwise)
        description = square_layer(
            layer.name,
            shape=source.shape,
            out_shape=layer.output.shape,
            kernel=layer.weight.shape[2:],
            stride=layer.stride,
            groups=source.shape[0] if is_depthwise else 1,
            is_first=not any(kind != "linear" for _, kind, _, _ in found),
        )
        found.append((layer.name, "depthwise" if is_depthwise else "conv", description, precision))
    return found


def float_layers(path: str | os.PathLike[str], precision: Precision) -> Workload:
    """The same for any ONNX file whose shapes can be inferred, float or quantized; every layer gets `precision`.

    Raises: UnsupportedGraph naming a node whose shapes or weights are not known; ExportError if the file is broken.
    """
    model = load_model(path)
    name_nodes(model)
    shapes = _shapes(model)
    graph = Graph(model)
    found: Workload = []
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight = stored_constant(graph, node.input[1]) if len(node.input) > 1 else None
        if weight is None:
            raise UnsupportedGraph(f"{label(node)}: its weights should be constants of the file")
        if node.op_type == "Conv":
            found.append(_float_convolution(node, weight.array.shape, shapes, precision, not found))
            continue
        if weight.array.ndim != 2:
            raise UnsupportedGraph(f"{label(node)}: its weights should be a matrix, got {weight.array.shape}")
        is_transposed = bool(attributes(node).get("transB", 0))
        out_features, in_features = weight.array.shape if is_transposed else weight.array.shape[::-1]
        if len(_known(node, node.input[0], shapes)) != 2:
            raise UnsupportedGraph(f"{label(node)} should read (N, {in_features})")
        found.append((node.name, "linear", ConvLayer.linear(in_features, out_features), precision))
    if not found:
        raise UnsupportedGraph(f"{os.fspath(path)} has no Conv, Gemm or MatMul")
    return found


def square_layer(
    name: str,
    *,
    shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int,
    groups: int,
    is_first: bool,
) -> ConvLayer:
    """The convolution with equal padding on all sides that gives the same output size.

    shape, out_shape: (channels, height, width).
    Raises: ExportError if sizes or kernel are not square, or no equal padding gives the output size.
    """
    if shape[1] != shape[2] or kernel[0] != kernel[1]:
        raise ExportError(f"layer {name}: hardware models take square layers, got {kernel} on {shape[1:]}")
    # the least padding that gives the size: where a file pads one side more, this is the larger side
    padding = max(0, -(-((out_shape[1] - 1) * stride + kernel[0] - shape[1]) // 2))
    try:
        layer = ConvLayer(
            in_channels=shape[0],
            out_channels=out_shape[0],
            in_size=shape[1],
            kernel_size=kernel[0],
            stride=stride,
            padding=padding,
            groups=groups,
            im2col=is_first,
        )
    except ValueError as error:
        raise ExportError(f"layer {name} is none that can be computed: {error}") from None
    if layer.out_size != out_shape[1]:
        raise ExportError(f"layer {name}: no padding on all sides takes {shape[1:]} to {out_shape[1:]}")
    return layer


def _float_convolution(
    node: onnx.NodeProto,
    weight: tuple[int, ...],
    shapes: dict[str, tuple[int, ...]],
    precision: Precision,
    is_first: bool,
) -> tuple[str, str, ConvLayer, Precision]:
    shape, out_shape = _known(node, node.input[0], shapes), _known(node, node.output[0], shapes)
    groups, strides = attributes(node).get("group", 1), integers(node, "strides", (1, 1))
    if len(weight) != 4 or not isinstance(groups, int) or len(set(strides)) != 1:
        raise UnsupportedGraph(f"{label(node)}: supported: 2-D convolutions with one stride")
    if any(dilation != 1 for dilation in integers(node, "dilations", (1, 1))):
        raise UnsupportedGraph(f"{label(node)}: dilations are not supported")
    layer = square_layer(
        node.name,
        shape=shape[1:],
        out_shape=out_shape[1:],
        kernel=weight[2:],
        stride=strides[0],
        groups=groups,
        is_first=is_first,
    )
    return node.name, "depthwise" if layer.is_depthwise else "conv", layer, precision


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by value; open sizes are 0."""
    try:
        inferred = shape_inference.infer_shapes(model)
    except Exception as error:  # whatever the checker finds in a broken graph
        raise ExportError(f"shapes cannot be inferred: {' '.join(str(error).split())[:200]}") from error
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim) for value in values
    }


def _known(node: onnx.NodeProto, value: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of a value, of which only the batch may be open."""
    shape = shapes.get(value, ())
    if len(shape) < 2 or np.min(shape[1:]) < 1:
        raise UnsupportedGraph(f"{label(node)}: the shape of {value!r} is not known; export with a fixed image size")
    return shape
