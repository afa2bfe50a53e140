"""Files that are no model, or no longer one: one clear line, never another exception."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_network

from exporters.errors import ExportError
from exporters.onnx_graph import load_model, parse_model
from exporters.onnx_metadata import METADATA_KEY, read_claims
from exporters.onnx_reader import read_network, read_onnx
from exporters.onnx_writer import build_model
from exporters.workload import network_layers

MODELS = {
    pack: build_model(random_network(np.random.default_rng(1), size=10), pack_6bit=pack) for pack in (False, True)
}
CONTENTS = {pack: model.SerializeToString() for pack, model in MODELS.items()}


def read(content: bytes) -> None:
    """Read, allowing ExportError of one line only."""
    message = ""
    try:
        network_layers(read_network(parse_model(content)).net)
    except ExportError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"model\.onnx: holds no ONNX graph \(0 bytes\); export it again"),
        (b"not a model at all", r"model\.onnx: not an ONNX model, or cut short"),
        (CONTENTS[False][:-100], r"model\.onnx: not an ONNX model, or cut short"),
        (np.random.default_rng(0).bytes(5000), r"model\.onnx: not an ONNX model, or cut short"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=match):
        read_onnx(tmp_path / "model.onnx")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read .*nothing\.onnx: No such file or directory"):
        read_onnx(tmp_path / "nothing.onnx")
    with pytest.raises(ExportError, match="Is a directory"):
        read_onnx(tmp_path)


def test_side_file_that_is_not_there(tmp_path: Path) -> None:
    # a model whose weights were moved out to a side file, which was then left behind
    onnx.save(
        MODELS[False],
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=64,
    )
    assert read_onnx(tmp_path / "model.onnx").name == "random"
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match="its weights lie in a side file that cannot be read"):
        load_model(tmp_path / "model.onnx")


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    content = bytearray(CONTENTS[data.draw(st.booleans())])
    positions = st.integers(0, len(content) - 1)
    match data.draw(st.sampled_from(["replace", "cut", "delete", "repeat"])):
        case "replace":
            for position in data.draw(st.lists(positions, min_size=1, max_size=6)):
                content[position] = data.draw(st.integers(0, 255))
        case "cut":
            del content[data.draw(positions) :]
        case "delete":
            start = data.draw(positions)
            del content[start : start + data.draw(st.integers(1, 50))]
        case "repeat":
            start, source = data.draw(positions), data.draw(positions)
            length = data.draw(st.integers(1, 60))
            content[start : start + length] = content[source : source + length]
    read(bytes(content))


ODD_NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 7, 100, 2**31, 2**40, 2**63 - 1])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_graphs(data: st.DataObject) -> None:
    """As above, but each change leaves a well-formed file, so that it reaches the reader's own checks."""
    model = onnx.ModelProto()
    model.CopyFrom(MODELS[data.draw(st.booleans())])
    graph = model.graph
    for _ in range(data.draw(st.integers(1, 3))):
        node = data.draw(st.sampled_from(list(graph.node)))
        tensor = data.draw(st.sampled_from(list(graph.initializer)))
        values = [output for other in graph.node for output in other.output] + [t.name for t in graph.initializer]
        match data.draw(st.integers(0, 10)):
            case 0 if node.input:
                position = data.draw(st.integers(0, len(node.input) - 1))
                node.input[position] = data.draw(st.sampled_from([*values, "", "nowhere"]))
            case 1:
                node.output[0] = data.draw(st.sampled_from([*values, ""]))
            case 2:
                node.op_type = data.draw(st.sampled_from(["Conv", "Gemm", "Add", "Clip", "Relu", "MaxPool", "Flatten"]))
            case 3 if node.attribute:
                attribute = node.attribute[data.draw(st.integers(0, len(node.attribute) - 1))]
                if attribute.ints:
                    attribute.ints[0] = data.draw(ODD_NUMBERS)
                else:
                    attribute.i = data.draw(ODD_NUMBERS)
            case 4 if node.attribute:
                node.attribute[0].type = data.draw(st.integers(0, 11))
            case 5:
                tensor.data_type = data.draw(st.integers(0, 26))
            case 6 if tensor.dims:
                tensor.dims[0] = data.draw(ODD_NUMBERS)
            case 7 if tensor.raw_data:
                tensor.raw_data = data.draw(st.binary(min_size=len(tensor.raw_data), max_size=len(tensor.raw_data)))
            case 8 if len(graph.node) > 1:
                graph.node.remove(node)
            case 9:
                sizes = graph.input[0].type.tensor_type.shape.dim
                sizes[data.draw(st.integers(0, 3))].dim_value = data.draw(ODD_NUMBERS)
            case 10:
                extra = data.draw(st.sampled_from(["group", "pads", "axis", "auto_pad", "dilations", "block_size"]))
                value = data.draw(st.sampled_from([0, 2, -3, [1, 1], [1, 2, 3, 4], "SAME_UPPER", 1.5]))
                node.attribute.append(onnx.helper.make_attribute(extra, value))
    read(model.SerializeToString())


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80) | st.from_regex(r"\{[\"a-z:0-9,\[\]{}]*\}", fullmatch=True))
def test_changed_metadata(text: str) -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=text)
    with pytest.raises(ExportError, match="metadata should be JSON of schema 1"):
        read_claims(model)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"schema":1', '"schema":2', "it has schema 2; export the network anew"),
        ('"input_bits":8', '"input_bits":"8"', "bits must be a whole number from 1 to 8, got '8'"),
        ('"input_bits":8', '"input_bits":99', "bits must be a whole number from 1 to 8, got 99"),
        ('"metadata":{', '"metadata":{"a":1,', "expected text, got 1"),
    ],
)
def test_metadata_that_is_wrong_in_one_place(old: str, new: str, match: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(MODELS[False])
    entry = model.metadata_props[0]
    assert entry.key == METADATA_KEY
    assert old in entry.value
    entry.value = entry.value.replace(old, new)
    with pytest.raises(ExportError, match=match):
        read_network(model)
