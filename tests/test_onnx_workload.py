"""Networks and files as hardware models see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from float_models import quantize, small_mobilenet, small_resnet
from networks import random_network

from exporters.errors import ExportError, UnsupportedGraph
from exporters.onnx_reader import read_onnx
from exporters.workload import float_layers, network_layers, square_layer
from hwmodels.layers import ConvLayer, Precision


def test_layers_of_a_network() -> None:
    net = random_network(np.random.default_rng(0))
    found = network_layers(net)
    layers = list(net.weighted())
    assert [name for name, *_ in found] == [layer.name for layer in layers]
    assert {kind for _, kind, _, _ in found} == {"conv", "depthwise", "linear"}
    for (_, kind, layer, precision), own in zip(found, layers, strict=True):
        assert precision == Precision(own.weight_bits, net.tensors[own.input].bits)
        assert layer.weights == own.weight.size
        assert layer.is_depthwise == (kind == "depthwise")
        assert (layer.out_channels, layer.out_size) == (*own.output.shape[:1], (*own.output.shape, 1, 1)[2])
    assert [layer.im2col for _, _, layer, _ in found] == [True] + [False] * (len(found) - 1)
    assert found[0][2] == ConvLayer(3, net.layers[0].weight.shape[0], 14, 3, stride=2, padding=1, im2col=True)


@pytest.mark.parametrize("build", [small_mobilenet, small_resnet])
def test_float_file_and_its_quantized_one_are_one_workload(tmp_path: Path, build) -> None:
    build(tmp_path / "float.onnx", np.random.default_rng(0))
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", 18)
    expected = network_layers(read_onnx(tmp_path / "int8.onnx"))
    assert float_layers(tmp_path / "int8.onnx", Precision(8, 8)) == expected
    # quantize_static may order the two arms of a block anew
    assert sorted(float_layers(tmp_path / "float.onnx", Precision(8, 8))) == sorted(expected)


def test_padding_on_one_side_becomes_padding_on_all() -> None:
    # 18 pixels padded by one below and to the right give 9, as one on each side does
    layer = square_layer("l", shape=(3, 18, 18), out_shape=(4, 9, 9), kernel=(3, 3), stride=2, groups=1, is_first=False)
    assert (layer.padding, layer.out_size) == (1, 9)


def test_layers_that_are_not_square_are_named() -> None:
    with pytest.raises(ExportError, match="layer l: hardware models take square layers"):
        square_layer("l", shape=(3, 8, 9), out_shape=(4, 8, 9), kernel=(1, 1), stride=1, groups=1, is_first=False)
    with pytest.raises(ExportError, match="layer l: hardware models take square layers"):
        square_layer("l", shape=(3, 8, 8), out_shape=(4, 8, 6), kernel=(1, 3), stride=1, groups=1, is_first=False)


def test_open_image_size_is_refused_with_a_remedy(tmp_path: Path) -> None:
    small_mobilenet(tmp_path / "float.onnx", np.random.default_rng(0))
    model = onnx.load(tmp_path / "float.onnx")
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "size"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(UnsupportedGraph, match="Conv node 'stem': the shape of 'image' is not known; export with"):
        float_layers(tmp_path / "open.onnx", Precision(8, 8))


def test_file_without_layers_is_refused(tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(UnsupportedGraph, match="has no Conv, Gemm or MatMul"):
        float_layers(tmp_path / "relu.onnx", Precision(8, 8))
