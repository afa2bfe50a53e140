"""What is written runs in integers in onnxruntime, gives the reference's codes, and reads back unchanged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from networks import BITS, random_image, random_network

from exporters import runtime
from exporters.errors import ExportError
from exporters.onnx_reader import read_onnx
from exporters.onnx_writer import build_model, write_onnx
from exporters.parity import parity
from exporters.qnet import QConv, QDepthwise, QLayer, QLinear, QTensor, QuantizedNetwork
from exporters.reference import reference_logits, run_reference
from exporters.runtime import kernels, run_onnx, tensors_onnx

PAIRS = list(product(BITS, BITS))


def is_same(left: QLayer, right: QLayer) -> bool:
    """Whether two layers are of one kind and equal in every field, arrays in type and value."""
    if type(left) is not type(right):
        return False
    for entry in fields(left):
        a, b = getattr(left, entry.name), getattr(right, entry.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or not np.array_equal(a, b):
                return False
        elif a != b:
            return False
    return True


def assert_proven(net: QuantizedNetwork, path: Path, images: np.ndarray, *, pack_6bit: bool = False) -> None:
    """No float convolution in the optimised graph, no differing code in any tensor, nothing lost in the file."""
    write_onnx(net, path, pack_6bit=pack_6bit)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    found = kernels(model)
    assert all(found[layer.name].is_integer for layer in net.layers)
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Add"} & {kernel.op_type for kernel in found.values()}
    report = parity(net, path, images)
    assert report.is_equal, report
    assert report.compared == {"onnxruntime": len(net.tensors)}
    back = read_onnx(path)
    assert (back.name, back.input, back.metadata) == (net.name, net.input, net.metadata)
    assert len(back.layers) == len(net.layers)
    for layer, other in zip(net.layers, back.layers, strict=True):
        assert is_same(layer, other), layer.name


@pytest.mark.parametrize(("weight_bits", "act_bits"), PAIRS)
def test_every_pair_of_bits(tmp_path: Path, weight_bits: int, act_bits: int) -> None:
    rng = np.random.default_rng(100 * weight_bits + act_bits)
    net = random_network(rng, [weight_bits], [act_bits])
    assert {layer.weight_bits for layer in net.weighted()} == {weight_bits}
    assert_proven(net, tmp_path / "net.onnx", random_image(net, 16, rng))


@pytest.mark.parametrize("seed", range(20))
def test_random_mixes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = random_network(rng, size=int(rng.integers(10, 24)), power_of_two=seed % 5 == 4)
    assert_proven(net, tmp_path / "net.onnx", random_image(net, 16, rng), pack_6bit=seed % 2 == 1)


def test_power_of_two_scales_are_equal_unoptimised_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    net = random_network(rng, power_of_two=True)
    images = random_image(net, 8, rng)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(build_model(net).SerializeToString(), options)
    logits = session.run(["logits"], {"image": images})[0]
    assert np.array_equal(logits, reference_logits(net, run_reference(net, images)))


def test_logits_of_path_and_bytes_are_the_reference_for_any_batch_and_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    net = random_network(rng)
    write_onnx(net, tmp_path / "net.onnx")
    content = (tmp_path / "net.onnx").read_bytes()
    for count, threads in ((1, 1), (5, 2)):
        images = random_image(net, count, rng)
        expected = reference_logits(net, run_reference(net, images))
        assert np.array_equal(run_onnx(tmp_path / "net.onnx", images, threads), expected)
        assert np.array_equal(run_onnx(content, images, threads), expected)


def test_file_is_what_it_should_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    net = random_network(rng, [4], [4])
    write_onnx(net, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "N"
    assert [value.name for value in model.graph.output] == ["logits"]
    # two codes of 4 bits in a byte
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in net.weighted():
        packed = stored[f"{layer.name}.weight.codes.int4"]
        assert packed.data_type == onnx.TensorProto.INT4
        assert len(packed.raw_data) == -(-layer.weight.size // 2)
    # widths are there for the session's user, and on the nodes
    session = ort.InferenceSession(tmp_path / "net.onnx")
    claims = json.loads(session.get_modelmeta().custom_metadata_map["apq-deploy"])
    assert claims["layers"][0] == {"name": "stem", "kind": "QConv", "act_bits": 4, "weight_bits": 4}
    stem = next(node for node in model.graph.node if node.name == "stem")
    props = {prop.key: prop.value for prop in stem.metadata_props}
    assert props == {"input_bits": "8", "weight_bits": "4", "output_bits": "4"}
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_six_bits_take_six_bits_when_packed(tmp_path: Path) -> None:
    net = random_network(np.random.default_rng(6), [6], [8])
    model = build_model(net, pack_6bit=True)
    assert (model.opset_import[0].version, model.ir_version) == (25, 13)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in net.weighted():
        name = f"{layer.name}.weight.codes"
        high, low = stored[f"{name}.high.packed"], stored[f"{name}.low.packed"]
        assert len(high.raw_data) == -(-layer.weight.size // 2)
        assert len(low.raw_data) == -(-layer.weight.size // 4)
        assert name not in stored


def test_every_code_survives_storage(tmp_path: Path) -> None:
    # all codes of the narrow range and the lowest of the full one, in an odd number
    image = QTensor("image", (1, 1, 1), 1 / 255, 0, 8, 0, 255)
    for bits, pack in ((4, False), (5, True), (6, False), (6, True), (8, False)):
        codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.int8)[:-1]
        channels = len(codes)
        layer = QConv(
            "conv",
            "image",
            QTensor("out", (channels, 1, 1), 0.01, 128, 8, 0, 255),
            codes.reshape(-1, 1, 1, 1),
            np.full(channels, 0.01, np.float32),
            bits,
            np.zeros(channels, np.int32),
        )
        net = QuantizedNetwork("codes", image, (layer,))
        path = tmp_path / "codes.onnx"
        write_onnx(net, path, pack_6bit=pack)
        assert np.array_equal(read_onnx(path).layers[0].weight, layer.weight)
        assert parity(net, path, np.ones((1, 1, 1, 1), np.float32)).is_equal


def test_single_channel_depthwise_stays_depthwise(tmp_path: Path) -> None:
    image = QTensor("image", (1, 4, 4), 1 / 255, 0, 8, 0, 255)
    layer = QDepthwise(
        "depthwise",
        "image",
        replace(image, name="out"),
        np.ones((1, 1, 3, 3), np.int8),
        np.ones(1, np.float32),
        4,
        np.zeros(1, np.int32),
        padding=(1, 1, 1, 1),
    )
    write_onnx(QuantizedNetwork("one", image, (layer,)), tmp_path / "one.onnx")
    assert isinstance(read_onnx(tmp_path / "one.onnx").layers[0], QDepthwise)


def test_int8_activations_with_clamps(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    image = QTensor("image", (3, 6, 6), 1 / 127, 0, 8, -128, 127, "int8")
    first = QConv(
        "first",
        "image",
        QTensor("first", (5, 6, 6), 0.05, 0, 4, -8, 7, "int8"),
        rng.integers(-7, 8, (5, 3, 1, 1)).astype(np.int8),
        np.full(5, 0.05, np.float32),
        4,
        np.zeros(5, np.int32),
    )
    second = QDepthwise(
        "second",
        "first",
        QTensor("second", (5, 6, 6), 0.1, -20, 6, -50, 13, "int8"),
        rng.integers(-31, 32, (5, 1, 3, 3)).astype(np.int8),
        np.full(5, 0.05, np.float32),
        6,
        np.arange(5, dtype=np.int32),
        padding=(1, 1, 1, 1),
    )
    net = QuantizedNetwork("int8", image, (first, second))
    write_onnx(net, tmp_path / "net.onnx")
    report = parity(net, tmp_path / "net.onnx", random_image(net, 4, rng) * 2 - 1)
    assert report.is_equal, report
    assert read_onnx(tmp_path / "net.onnx").tensors == net.tensors


def test_cpu_without_vnni_takes_the_exact_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = tmp_path / "cpuinfo"
    monkeypatch.setattr(runtime, "CPU_DESCRIPTION", description)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert runtime.products_saturate()
    description.write_text("flags : avx2 avx512f avx512_vnni")
    assert not runtime.products_saturate()
    description.write_text("flags : sse4_1 avx2 fma")
    assert runtime.products_saturate()
    # the other kernels are exact where they are not needed, too
    rng = np.random.default_rng(12)
    net = random_network(rng, [8], [8])
    write_onnx(net, tmp_path / "net.onnx")
    assert parity(net, tmp_path / "net.onnx", random_image(net, 4, rng)).is_equal
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not runtime.products_saturate()


def test_parity_names_the_first_tensor_that_differs(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    net = random_network(rng)
    path, images = tmp_path / "net.onnx", random_image(net, 3, rng)
    write_onnx(net, path)
    wrong = {name: codes.copy() for name, codes in tensors_onnx(path, images).items()}
    tensor = net.layers[2].output
    place = (1, 2, 0, 1)
    wrong[tensor.name][place] ^= 2
    wrong[net.output.name] ^= 1
    report = parity(net, path, images, {"other": wrong})
    assert not report.is_equal
    assert report.first is not None
    assert (report.first.source, report.first.tensor, report.first.layer) == ("other", tensor.name, net.layers[2].name)
    assert (report.first.position, report.first.largest, report.first.differing) == (place, 2, 1)
    expected = run_reference(net, images)[tensor.name][place]
    text = f"differs in 1 of {wrong[tensor.name].size} codes, by up to 2; first at image 1, channel 2, y 0, x 1: "
    assert f"{text}{expected ^ 2} instead of {expected}" in str(report)
    assert report.differences[1].tensor == net.output.name
    assert json.loads(json.dumps(report.as_dict()))["is_equal"] is False


def test_parity_of_another_network_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    net = random_network(rng)
    images = random_image(net, 1, rng)
    write_onnx(net, tmp_path / "net.onnx")
    renamed = replace(net.layers[-1], output=replace(net.output, name="elsewhere"))
    other = replace(net, layers=(*net.layers[:-1], renamed))
    with pytest.raises(ExportError, match="has no tensor 'elsewhere'; it holds another network"):
        parity(other, tmp_path / "net.onnx", images)
    with pytest.raises(ExportError, match="gives tensor 'nowhere', which network random does not have"):
        parity(net, None, images, {"torch": {"nowhere": images}})
    with pytest.raises(ExportError, match="torch: tensor stem is"):
        parity(net, None, images, {"torch": {"stem": np.zeros((1, 1), np.uint8)}})
    with pytest.raises(ExportError, match="torch gives no tensors"):
        parity(net, None, images, {"torch": {}})


def test_kernels_are_the_integer_ones(tmp_path: Path) -> None:
    net = random_network(np.random.default_rng(11))
    found = kernels(build_model(net))
    expected = {QConv: "QLinearConv", QDepthwise: "QLinearConv", QLinear: "QGemm"}
    assert all(found[layer.name].op_type == expected[type(layer)] for layer in net.weighted())
    counts = Counter(found[layer.name].op_type for layer in net.layers)
    assert counts["QLinearAdd"] == 2
    assert counts["QLinearGlobalAveragePool"] == 1


def test_names_that_run_into_each_other_are_refused() -> None:
    image = QTensor("image", (1, 1, 1), 1.0, 0, 8, 0, 255)
    layer = QConv(
        "a",
        "image",
        replace(image, name="a.weight"),
        np.ones((1, 1, 1, 1), np.int8),
        np.ones(1, np.float32),
        8,
        np.zeros(1, np.int32),
    )
    with pytest.raises(ExportError, match=r"two values of the file would be named 'a\.weight\.scale'"):
        build_model(QuantizedNetwork("clash", image, (layer,)))


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    net = random_network(np.random.default_rng(0))
    with pytest.raises(ExportError, match=r"cannot write .*: No such file or directory; choose a folder that exists"):
        write_onnx(net, tmp_path / "nowhere" / "net.onnx")


def test_network_without_layers() -> None:
    with pytest.raises(ExportError, match="has no layers"):
        build_model(QuantizedNetwork("empty", QTensor("image", (1, 1, 1), 1.0, 0, 8, 0, 255), ()))


def test_onnxruntime_errors_are_one_line(tmp_path: Path) -> None:
    net = random_network(np.random.default_rng(0))
    write_onnx(net, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="onnxruntime cannot run the model on images"):
        run_onnx(tmp_path / "net.onnx", np.zeros((1, 3, 9, 9), np.float32))
    with pytest.raises(ExportError, match="onnxruntime cannot load the model") as caught:
        run_onnx(b"no model", np.zeros((1, 3, 9, 9), np.float32))
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="threads must be at least 1"):
        run_onnx(tmp_path / "net.onnx", np.zeros((1, 3, 14, 14), np.float32), threads=0)
