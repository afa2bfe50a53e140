"""Damaged files are read or refused in one line: `make fuzz` for a while, and what it has found before."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnx
import pytest
from fuzzing import ROOT, Hang, Target, attempt, targets, time_limit
from hypothesis import given, settings
from hypothesis import strategies as st

from apq_deploy import SearchSpace, UserError
from exporters.errors import ExportError
from exporters.onnx_graph import Graph, parse_model
from exporters.onnx_reader import read_network
from exporters.onnx_weights import stored_constant
from exporters.workload import float_layers
from hwmodels import CostTable, HardwareError, Precision, load_hardware
from hwmodels.errors import LONGEST


@pytest.mark.parametrize("name", targets())
def test_damaged_files(name: str) -> None:
    target = targets()[name]
    tries = {"read": 0, "refused": 0}

    @settings(max_examples=700 if name in ("onnx", "table") else 200, deadline=None, database=None)
    @given(seed=st.integers(0, 2**40))
    def try_seed(seed: int) -> None:
        tries["read" if attempt(target, target.damaged(seed)) else "refused"] += 1

    try_seed()
    assert min(tries.values()) > 0, f"all alike, so nothing was tried: {tries}"


def test_whole_files_are_read() -> None:
    for target in targets().values():
        for content in target.files:
            assert attempt(target, content), target.name


def test_a_crash_and_a_hang_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(content: bytes) -> None:
        raise KeyError(content)

    with pytest.raises(KeyError):
        attempt(Target("crash", (b"",), crash, lambda content, rng: content), b"")
    with pytest.raises(AssertionError, match="more than a line"):
        attempt(Target("lines", (b"",), _two_lines, lambda content, rng: content), b"")
    monkeypatch.setattr("fuzzing.LIMIT_S", 0.05)
    with pytest.raises(Hang):
        attempt(Target("hang", (b"",), lambda _: time.sleep(60), lambda content, rng: content), b"")


def _two_lines(content: bytes) -> None:
    error = UserError("one")
    error.args = ("one\ntwo",)
    raise error


# What was found, each once more ----------------------------------------------------------------------------------


def _model(name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ParseFromString(targets()[name].files[0])
    return model


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Protobuf hands them on as bytes, and fails where they are written back."""
    content = targets()["onnx-float"].files[1].replace(b"classifier", b"clas\xdaifier")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="UTF-8"):
        float_layers(tmp_path / "model.onnx", Precision(8, 8))


def test_an_image_of_undefined_type() -> None:
    model = _model("onnx")
    model.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(ExportError, match="got UNDEFINED"):
        read_network(model)


def test_groups_that_no_convolution_has(tmp_path: Path) -> None:
    model = _model("onnx-float")
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = 0
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError):
        float_layers(tmp_path / "model.onnx", Precision(8, 8))


def test_constants_that_read_each_other_many_times() -> None:
    """Each value is computed once: 64 readers of 64 readers, 16 deep, would never end."""
    one = onnx.helper.make_tensor("c0", onnx.TensorProto.INT8, [1], [1])
    nodes = [onnx.helper.make_node("Add", [f"c{i}"] * 64, [f"c{i + 1}"]) for i in range(14)]
    output = onnx.helper.make_tensor_value_info("c14", onnx.TensorProto.INT8, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "deep", [], [output], [one]))
    with time_limit(), pytest.raises(ExportError):
        stored_constant(Graph(parse_model(model.SerializeToString())), "c14")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("head_channels = 64", f"head_channels = {10**30}", "head_channels of at most"),
        ("head_channels = 64", "head_channels = 64\nfirst_block_channels = 0", "first_block_channels from 1"),
        ("depths = [2, 3, 4]", "depths = [2, 3, 4000000000000]", "at most 64 in stage"),
        ("expand_max = 6", "expand_max = 16000", "at most 127 widths"),
    ],
)
def test_spaces_of_absurd_size(tmp_path: Path, old: str, new: str, match: str) -> None:
    """A gene is an int8: more choices than it holds were an error of NumPy's in the middle of a search."""
    text = (ROOT / "apq_deploy/spaces/fashion.toml").read_text()
    assert old in text
    (tmp_path / "space.toml").write_text(text.replace(old, new))
    with time_limit(), pytest.raises(UserError, match=match):
        SearchSpace.load(tmp_path / "space.toml")


@pytest.mark.parametrize("value", ["9" * 400, "[{a = 1}]", "1e400"])
def test_hardware_with_numbers_beyond_floats(tmp_path: Path, value: str) -> None:
    text = (ROOT / "hwmodels/presets/bitfusion.toml").read_text()
    lines = text.splitlines()
    numbers = [i for i, line in enumerate(lines) if "=" in line and line.split("=")[1].split("#")[0].strip().isdigit()]
    for place in numbers[1:]:
        changed = [*lines[:place], f"{lines[place].split('=')[0]}= {value}", *lines[place + 1 :]]
        (tmp_path / "hardware.toml").write_text("\n".join(changed))
        with pytest.raises(HardwareError):
            load_hardware(tmp_path / "hardware.toml")


@pytest.mark.parametrize(
    ("name", "key"), [("search.json", "seed"), ("search.json", "predicted_accuracy"), ("baseline.json", "value")]
)
@pytest.mark.parametrize("value", ["NaN", "9" * 400, "[]"])
def test_records_with_numbers_beyond_floats(name: str, key: str, value: str) -> None:
    target = targets()[name]
    data = json.loads(target.files[0])
    place = data["figures"]["size_bytes"] if key == "value" else data
    place[key] = "HERE"
    attempt(target, json.dumps(data).replace('"HERE"', value).encode())


def test_messages_that_quote_a_file_stay_short(tmp_path: Path) -> None:
    content = targets()["table"].files[0].decode().replace("modelled", "x" * 5000 + "\u2028", 1)
    (tmp_path / "table.csv").write_text(content, encoding="utf-8")
    with pytest.raises(HardwareError, match=r" \.\.\. ") as caught:
        CostTable.load(tmp_path / "table.csv")
    assert len(str(caught.value)) == LONGEST
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("build the table again with `apq-deploy lut build`")
