"""Files of other tools: onnxruntime's `quantize_static`, and graphs that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from float_models import quantize, small_mobilenet, small_resnet, two_convolutions
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType

from exporters.errors import ExportError, UnsupportedGraph
from exporters.onnx_reader import read_onnx
from exporters.onnx_writer import write_onnx
from exporters.parity import parity
from exporters.qnet import QAdd, QAddConstant, QClip, QDepthwise, QMaxPool, QPool
from exporters.runtime import kernels

U8, S8 = QuantType.QUInt8, QuantType.QInt8
STYLES = {
    "per-channel": {},
    "per-tensor": {"per_channel": False},
    "int8 activations": {"activation": S8},
    "int8 symmetric activations": {"activation": S8, "options": {"ActivationSymmetric": True}},
    "uint8 symmetric activations": {"options": {"ActivationSymmetric": True}},
    "uint8 weights": {"weight": U8, "per_channel": False},
    "weights quantized at load": {"options": {"AddQDQPairToWeight": True}},
    "float bias": {"options": {"QuantizeBias": False}},
    "a pair for each reader": {"options": {"DedicatedQDQPair": True}},
    "asymmetric weights": {"per_channel": False, "options": {"WeightSymmetric": False}},
}
SIZE = 18


def images(count: int = 4, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(7).random((count, 3, size, size), dtype=np.float32)


@pytest.fixture(scope="module")
def float_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("float")
    small_mobilenet(folder / "mobilenet.onnx", np.random.default_rng(1), SIZE)
    small_resnet(folder / "resnet.onnx", np.random.default_rng(2), SIZE)
    return {name: folder / f"{name}.onnx" for name in ("mobilenet", "resnet")}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", ["mobilenet", "resnet"])
def test_quantize_static_is_read_and_equals_onnxruntime(
    float_files: dict[str, Path], tmp_path: Path, family: str, style: str
) -> None:
    target = tmp_path / "quantized.onnx"
    quantize(float_files[family], target, SIZE, **STYLES[style])
    net = read_onnx(target)
    report = parity(net, target, images())
    assert report.is_equal, report
    kinds = {type(layer) for layer in net.layers}
    assert QAdd in kinds
    assert (QDepthwise if family == "mobilenet" else QMaxPool) in kinds
    assert (QClip in kinds) == ("symmetric activations" in style)
    # what was read can be written in this project's own patterns, with nothing changed
    write_onnx(net, tmp_path / "again.onnx")
    assert parity(net, tmp_path / "again.onnx", images(2)).is_equal


def test_asymmetric_padding_and_names_survive(float_files: dict[str, Path], tmp_path: Path) -> None:
    quantize(float_files["mobilenet"], tmp_path / "quantized.onnx", SIZE)
    layers = {layer.name: layer for layer in read_onnx(tmp_path / "quantized.onnx").layers}
    assert layers["stem"].padding == (0, 0, 1, 1)
    assert layers["block1.depthwise"].padding == (1, 1, 2, 2)
    assert layers["block1.depthwise"].stride == 2
    assert layers["block0.depthwise"].output.name == "block0.depthwise.clip"
    assert layers["block2.depthwise"].weight.shape == (22, 1, 7, 7)


ENDS = [
    (pool, head) for pool in ("global", "average", "mean", "mean-keep") for head in ("gemm", "matmul", "matmul-add")
]


@pytest.mark.parametrize(("pool", "head"), [*ENDS, ("global", "conv")])
def test_other_ends_of_the_network(tmp_path: Path, pool: str, head: str) -> None:
    two_convolutions(tmp_path / "float.onnx", np.random.default_rng(3), pool, head)
    quantize(tmp_path / "float.onnx", tmp_path / "quantized.onnx", 10)
    net = read_onnx(tmp_path / "quantized.onnx")
    report = parity(net, tmp_path / "quantized.onnx", images(16, 10))
    if pool.startswith("mean"):
        # onnxruntime runs ReduceMean in float, in an order of its own: at most one code, and only from there on
        assert all(difference.largest <= 1 for difference in report.differences[:1])
        assert {difference.layer for difference in report.differences} <= {"pool", "classifier", "bias"}
    else:
        assert report.is_equal, report
    assert any(isinstance(layer, QAddConstant) for layer in net.layers) == (head == "matmul-add")
    assert [layer.method for layer in net.layers if isinstance(layer, QPool)] == [
        "integer" if pool == "global" else "float"
    ]


def quantized_model(tmp_path: Path) -> onnx.ModelProto:
    two_convolutions(tmp_path / "float.onnx", np.random.default_rng(3), "global", "gemm")
    quantize(tmp_path / "float.onnx", tmp_path / "quantized.onnx", 10)
    return onnx.load(tmp_path / "quantized.onnx")


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def refuses(model: onnx.ModelProto, tmp_path: Path, match: str) -> None:
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(UnsupportedGraph, match=match):
        read_onnx(tmp_path / "changed.onnx")


def test_fixed_batch_is_run_as_often_as_it_takes(tmp_path: Path) -> None:
    model = quantized_model(tmp_path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    net = read_onnx(tmp_path / "two.onnx")
    assert parity(net, tmp_path / "two.onnx", images(4, 10)).is_equal
    with pytest.raises(ExportError, match="the model takes 2 images at a time, got 3"):
        parity(net, tmp_path / "two.onnx", images(3, 10))


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    model = quantized_model(tmp_path)
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="last"))
    model.graph.output[0].name = "probabilities"
    refuses(model, tmp_path, "Softmax node 'last' is not supported; supported: Conv")


def test_float_clip_before_quantization_is_refused_as_onnxruntime_keeps_it_in_float(tmp_path: Path) -> None:
    model = quantized_model(tmp_path)
    quantizer = node(model, "conv2.relu_QuantizeLinear")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == quantizer.input[1])
    high = 200 * float(numpy_helper.to_array(scale))
    for name, bound in (("low", 0.0), ("high", high)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(bound), name))
    model.graph.node.insert(
        list(model.graph.node).index(quantizer),
        helper.make_node("Clip", [quantizer.input[0], "low", "high"], ["clipped"], name="clip"),
    )
    quantizer.input[0] = "clipped"
    assert kernels(model)["conv2"].op_type in ("Conv", "FusedConv")
    refuses(model, tmp_path, "leaves layer 'conv2' in float")
    # a clip that cuts nothing off is dropped by onnxruntime, and read
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.float32(2 * high), "high"))
    assert kernels(model)["conv2"].op_type == "QLinearConv"
    onnx.save(model, tmp_path / "changed.onnx")
    net = read_onnx(tmp_path / "changed.onnx")
    assert parity(net, tmp_path / "changed.onnx", images(4, 10)).is_equal


@pytest.mark.parametrize(
    ("name", "attribute", "match"),
    [
        ("conv1", helper.make_attribute("dilations", [2, 2]), "Conv node 'conv1'.*dilations"),
        ("conv1", helper.make_attribute("strides", [1, 2]), "Conv node 'conv1' has strides"),
        ("conv2", helper.make_attribute("group", 3), "Conv node 'conv2' has 3 groups"),
        ("classifier", helper.make_attribute("alpha", 2.0), "Gemm node 'classifier'.*alpha"),
    ],
)
def test_attributes_that_are_not_supported(
    tmp_path: Path, name: str, attribute: onnx.AttributeProto, match: str
) -> None:
    model = quantized_model(tmp_path)
    changed = node(model, name)
    kept = [other for other in changed.attribute if other.name != attribute.name]
    del changed.attribute[:]
    changed.attribute.extend([*kept, attribute])
    refuses(model, tmp_path, match)


def test_bias_of_another_scale_is_refused(tmp_path: Path) -> None:
    model = quantized_model(tmp_path)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.bias_quantized_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    refuses(model, tmp_path, "Conv node 'conv2': its bias should have the scale")


def test_float_model_is_refused_with_a_remedy(float_files: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedGraph, match="Conv node 'stem' should read a dequantized tensor"):
        read_onnx(float_files["mobilenet"])


def test_same_padding_by_name(tmp_path: Path) -> None:
    model = quantized_model(tmp_path)
    changed = node(model, "conv1")
    kept = [attribute for attribute in changed.attribute if attribute.name != "pads"]
    del changed.attribute[:]
    changed.attribute.extend([*kept, helper.make_attribute("auto_pad", "SAME_UPPER")])
    onnx.save(model, tmp_path / "same.onnx")
    net = read_onnx(tmp_path / "same.onnx")
    # 10 pixels, kernel 3, stride 2: five outputs take 11 pixels, and the odd one goes below and to the right
    assert net.layers[0].padding == (0, 0, 1, 1)
    assert parity(net, tmp_path / "same.onnx", images(2, 10)).is_equal
