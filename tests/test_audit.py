"""The audit tells true files from false ones and names the layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from float_models import quantize, small_mobilenet
from hypothesis import given
from hypothesis import strategies as st
from networks import random_network
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType

from exporters.audit import AuditReport, audit
from exporters.errors import ExportError
from exporters.onnx_reader import read_onnx
from exporters.onnx_weights import StoredConstant
from exporters.onnx_writer import build_model, write_onnx
from exporters.qnet import QuantizedNetwork


def audited(model: onnx.ModelProto, tmp_path: Path) -> AuditReport:
    onnx.save(model, tmp_path / "model.onnx")
    return audit(tmp_path / "model.onnx")


def relabel(model: onnx.ModelProto, layer: str, **bits: int) -> None:
    """Change what the file says about a layer, and nothing else."""
    content = json.loads(model.metadata_props[0].value)
    next(entry for entry in content["layers"] if entry["name"] == layer).update(bits)
    model.metadata_props[0].value = json.dumps(content)


@pytest.fixture
def net() -> QuantizedNetwork:
    return random_network(np.random.default_rng(2))


@pytest.mark.parametrize("pack_6bit", [False, True])
def test_true_file(net: QuantizedNetwork, tmp_path: Path, pack_6bit: bool) -> None:
    write_onnx(net, tmp_path / "net.onnx", pack_6bit=pack_6bit)
    report = audit(tmp_path / "net.onnx")
    assert report.is_true, report.false_claims
    assert [layer.name for layer in report.layers] == [layer.name for layer in net.layers]
    by_name = {layer.name: layer for layer in report.layers}
    for layer in net.weighted():
        found = by_name[layer.name]
        assert found.claimed_weight_bits == found.used_weight_bits == layer.weight_bits
        assert found.claimed_input_bits == found.used_input_bits == net.tensors[layer.input].bits
        assert found.claimed_output_bits == found.used_output_bits == layer.output.bits
        assert found.weights == layer.weight.size
        assert found.storage_bits == {4: 4, 6: 6 if pack_6bit else 8, 8: 8}[layer.weight_bits]
        # codes, scales and biases, and little else
        least = layer.weight.size * found.storage_bits / 8 + 12 * len(layer.bias)
        assert least <= found.size_bytes <= least + 420
        assert found.is_integer
    assert by_name["stage1.block1.depthwise"].kind == "Conv depthwise"
    assert report.size_bytes == (tmp_path / "net.onnx").stat().st_size
    assert report.size_bytes == report.other_bytes + sum(layer.size_bytes for layer in report.layers)
    assert json.loads(json.dumps(report.as_dict()))["is_true"] is True


def test_eight_bit_weights_labelled_four(tmp_path: Path) -> None:
    model = build_model(random_network(np.random.default_rng(3), [8], [8]))
    relabel(model, "stage1.block2.expand", weight_bits=4)
    report = audited(model, tmp_path)
    assert report.false_claims == ("layer stage1.block2.expand: weights claimed at 4 bits, but the values use 8",)
    with pytest.raises(ExportError, match=r"layer stage1\.block2\.expand: weight codes .* do not fit 4 bits"):
        read_onnx(tmp_path / "model.onnx")


def test_activations_labelled_too_low(tmp_path: Path) -> None:
    model = build_model(random_network(np.random.default_rng(4), [8], [6]))
    relabel(model, "stage1.block1.expand", act_bits=4)
    assert audited(model, tmp_path).false_claims == (
        "layer stage1.block1.expand: output claimed at 4 bits, but the values use 6",
        "layer stage1.block1.depthwise: input claimed at 4 bits, but the values use 6",
    )


def test_float_clip_before_quantization(tmp_path: Path) -> None:
    model = build_model(random_network(np.random.default_rng(5), [4], [4]))
    nodes = list(model.graph.node)
    quantizer = next(node for node in nodes if node.name == "stage1.block2.expand.quantize")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == quantizer.input[1])
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(0), "low"),
            numpy_helper.from_array(15 * numpy_helper.to_array(scale), "high"),
        ]
    )
    clip = helper.make_node("Clip", [quantizer.input[0], "low", "high"], ["clipped"], name="clip")
    quantizer.input[0] = "clipped"
    model.graph.node.insert(nodes.index(quantizer), clip)
    report = audited(model, tmp_path)
    assert len(report.false_claims) == 1
    assert report.false_claims[0].startswith(
        "layer stage1.block2.expand: quantized in the file, but onnxruntime runs it"
    )
    assert not next(layer for layer in report.layers if layer.name == "stage1.block2.expand").is_integer


def test_int4_straight_into_dequantize_runs_in_float(tmp_path: Path) -> None:
    model = build_model(random_network(np.random.default_rng(6), [4], [8]))
    cast = next(node for node in model.graph.node if node.name == "head.weight.codes")
    dequantize = next(node for node in model.graph.node if node.name == "head.weight.dequantize")
    dequantize.input[0] = cast.input[0]
    model.graph.node.remove(cast)
    report = audited(model, tmp_path)
    assert [line.split(":")[0] for line in report.false_claims] == ["layer head"]
    head = next(layer for layer in report.layers if layer.name == "head")
    assert (head.storage_bits, head.used_weight_bits) == (4, 4)


def test_layer_that_is_not_there(net: QuantizedNetwork, tmp_path: Path) -> None:
    model = build_model(net)
    content = json.loads(model.metadata_props[0].value)
    content["layers"].append({"name": "ghost", "kind": "QConv", "act_bits": 4, "weight_bits": 4})
    model.metadata_props[0].value = json.dumps(content)
    assert audited(model, tmp_path).false_claims == ("layer ghost: the file speaks of it, but has no such node",)


def test_files_of_other_tools(tmp_path: Path) -> None:
    small_mobilenet(tmp_path / "float.onnx", np.random.default_rng(0))
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", 18)
    plain, int8 = audit(tmp_path / "float.onnx"), audit(tmp_path / "int8.onnx")
    assert plain.is_true
    assert int8.is_true
    assert {(layer.storage_bits, layer.used_weight_bits) for layer in plain.layers if layer.weights} == {(32, None)}
    assert {(layer.storage_bits, layer.used_weight_bits) for layer in int8.layers if layer.weights} == {(8, 8)}
    assert all(layer.claimed_weight_bits is None for layer in (*plain.layers, *int8.layers))
    assert not any(layer.is_integer for layer in plain.layers)
    assert all(layer.is_integer for layer in int8.layers)
    assert [layer.weights for layer in plain.layers] == [layer.weights for layer in int8.layers]
    assert sum(layer.size_bytes for layer in int8.layers) < 0.6 * sum(layer.size_bytes for layer in plain.layers)


def test_int8_activations_that_onnxruntime_leaves_in_float(tmp_path: Path) -> None:
    # asked for 8 bit, silently got float: a residual network with int8 activations on x86
    small_mobilenet(tmp_path / "float.onnx", np.random.default_rng(0))
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", 18, activation=QuantType.QInt8)
    report = audit(tmp_path / "int8.onnx")
    in_float = {layer.name for layer in report.layers if layer.weights and not layer.is_integer}
    assert {line.split(":")[0].removeprefix("layer ") for line in report.false_claims} == in_float


def test_file_that_onnxruntime_cannot_load(net: QuantizedNetwork, tmp_path: Path) -> None:
    model = build_model(net)
    next(node for node in model.graph.node if node.op_type == "Add").domain = "elsewhere"
    report = audited(model, tmp_path)
    assert not report.is_true
    assert report.false_claims[0].startswith("onnxruntime cannot load the model")
    assert all(layer.is_integer is None for layer in report.layers)


@given(low=st.integers(-128, 127), high=st.integers(-128, 127))
def test_bits_used_are_the_fewest_that_hold_the_codes(low: int, high: int) -> None:
    low, high = min(low, high), max(low, high)
    bits = StoredConstant(np.array([low, high], np.int8), True, 0, 8, frozenset()).bits_used
    assert bits is not None
    assert -(2 ** (bits - 1)) <= low
    assert high < 2 ** (bits - 1)
    assert bits == 1 or low < -(2 ** (bits - 2)) or high >= 2 ** (bits - 2)
