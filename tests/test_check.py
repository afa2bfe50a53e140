"""The gates of `check`: each seeded defect fails with the right reason, and nothing passes unseen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from check_cases import Case, at_eight_bits, four_bit_network, make_case, with_other_weights
from float_models import small_mobilenet
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from apq_deploy.check.budget_file import read_budget
from apq_deploy.check.figures import figure
from apq_deploy.check.findings import CheckReport, at_least, at_most
from apq_deploy.check.subject import Subject
from apq_deploy.errors import UserError
from apq_deploy.model import Samples
from apq_deploy.space import SearchSpace
from exporters import QConv, QLinear, QPool, QTensor, QuantizedNetwork, compile_tvm, write_onnx
from exporters.errors import ExportError
from exporters.onnx_writer import build_model
from exporters.workload import network_layers
from hwmodels import HardwareError, build_table, load_hardware

NET = four_bit_network()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path, NET)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NET, compiled: the compiler is slow, and one library serves every test."""
    path = tmp_path_factory.mktemp("library") / "model.so"
    compile_tvm(NET).save(path)
    return path


def failed(report: CheckReport) -> dict[str, str]:
    """What failed: gate and its lines."""
    return {gate.gate: "; ".join(gate.texts) for gate in report.gates if gate.status == "failed"}


def status(report: CheckReport) -> dict[str, str]:
    return {gate.gate: gate.status for gate in report.gates}


def measure(case: Case, name: str) -> float:
    """A figure of the case's model, taken without a check."""
    return figure(Subject(case.model, read_budget(case.budget("[size]\nmax_kb = 1")), ExitStack()), name).value


def export_at_eight_bits(case: Case) -> None:
    write_onnx(at_eight_bits(NET), case.model)


# Seven seeded defects: the sound model passes, the defective one fails that gate alone and says by how much


def check_defect(case: Case, section: str, seed: Callable[[Case], None], reason: str) -> None:
    gate = section[1 : section.index("]")]
    others = [text for text in ("[opset]\nmax = 21", "[accuracy]\nmin_percent = 1") if not text.startswith(f"[{gate}]")]
    assert failed(case.check(*others, section, data=True)) == {}
    seed(case)
    found = failed(case.check(*others, section, data=True))
    assert list(found) == [gate]
    assert re.search(reason, found[gate]), found[gate]
    result = case.command("--data", str(case.data))
    assert result.exit_code == 1
    assert re.search(rf"^{gate} +FAILED ", result.stdout, re.MULTILINE)


def test_defect_in_accuracy(case: Case) -> None:
    def forget(case: Case) -> None:
        with np.load(case.data) as file:
            images, labels = file["images"], file["labels"].copy()
        labels[3:5] = (labels[3:5] + 1) % NET.output.shape[0]
        np.savez(case.data, images=images, labels=labels)

    reason = r"^75 % \(15 of 20 images, images\.npz\), at least 85 %: 10 points short$"
    check_defect(case, "[accuracy]\nmin_percent = 85", forget, reason)


def test_defect_in_latency(case: Case) -> None:
    section = f"[latency]\nmax_ms = {measure(case, 'latency_ms')!r}"
    reason = r"^0\.0\d+ ms \(bitfusion, every layer\), at most 0\.0\d+ ms: 0\.0\d+ ms, [\d.]+ % over$"
    check_defect(case, section, export_at_eight_bits, reason)


def test_defect_in_size(case: Case) -> None:
    limit, wide = case.model.stat().st_size, build_model(at_eight_bits(NET)).ByteSize()
    reason = rf"^{wide} bytes, at most {limit} bytes: {wide - limit} bytes, [\d.]+ % over$"
    check_defect(case, f"[size]\nmax_bytes = {limit}", export_at_eight_bits, reason)


def test_defect_in_bits(case: Case) -> None:
    def claim_less(case: Case) -> None:
        model = build_model(replace(NET, layers=NET.layers))
        content = json.loads(model.metadata_props[0].value)
        next(entry for entry in content["layers"] if entry["name"] == "head")["weight_bits"] = 3
        model.metadata_props[0].value = json.dumps(content)
        onnx.save(model, case.model)

    reason = "^1 false claims, at most 0: 1 over; layer head: weights claimed at 3 bits, but the values use 4$"
    check_defect(case, "[audit]", claim_less, reason)


def test_defect_in_parity(case: Case, library: Path) -> None:
    def export_a_later_training(case: Case) -> None:
        write_onnx(with_other_weights(NET), case.model)

    section = f'[parity]\nimages = 2\n[compiled]\nlibrary = "{library}"'
    reason = (
        r"^\d+ codes differ \(NumPy against onnxruntime in 16 tensors, TVM in 16 tensors, 2 images, images\.npz\), "
        r"at most 0: \d+ over; first in layer head: TVM: tensor head differs in \d+ of \d+ codes"
    )
    check_defect(case, section, export_a_later_training, reason)


def test_defect_in_operators(case: Case) -> None:
    def add_operator(case: Case) -> None:
        model = build_model(NET)
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("HardSwish", ["before"], ["logits"], name="tail"))
        onnx.save(model, case.model)

    section = (
        '[operators]\nallow = ["Add", "Cast", "Clip", "ai.onnx.Conv", "DequantizeLinear", "Flatten", "Gemm", '
        '"GlobalAveragePool", "QuantizeLinear"]'
    )
    reason = "^HardSwish is not on the list of allowed operators, and used: 1 node\\(s\\), the first is 'tail'$"
    check_defect(case, section, add_operator, reason)


def test_defect_in_regression(case: Case) -> None:
    baseline = case.folder / "base.json"
    sections = '[regression]\nbaseline = "base.json"\nsize_percent = 1\nlatency_percent = 2\naccuracy_points = 0.5'
    case.check(sections, data=True, baseline_output=baseline, skip=["regression"])
    before = case.model.stat().st_size
    reason = (
        rf"^size_bytes \d+ bytes \(was {before}\), at most {before * 1.01:.6g} bytes: [\d.]+ bytes, [\d.]+ % over; "
        r"latency_ms 0\.0\d+ ms \(was 0\.0\d+\), at most .* over$"
    )
    check_defect(case, sections, export_at_eight_bits, reason)


# The other gates


def test_energy_and_bitops(case: Case) -> None:
    energy, bitops = measure(case, "energy_mj"), measure(case, "bitops_g")
    assert failed(case.check(f"[energy]\nmax_mj = {energy!r}", f"[bitops]\nmax_g = {bitops!r}")) == {}
    found = failed(case.check(f"[energy]\nmax_mj = {energy / 2!r}", f"[bitops]\nmax_g = {bitops / 4!r}"))
    assert list(found) == ["bitops", "energy"]
    assert found["energy"].endswith(", 100 % over")
    assert found["bitops"].endswith(", 300 % over")


def test_a_table_in_place_of_a_model(case: Case) -> None:
    entries = [(layer, precision) for _, _, layer, precision in network_layers(case.net)]
    build_table(load_hardware("bitfusion"), entries).save(case.folder / "board.csv")
    expected, gates = measure(case, "latency_ms"), "[latency]\nmax_ms = 1"
    assert case.check('[hardware]\ntable = "board.csv"', gates).figures["latency_ms"].value == expected
    (case.folder / "board.csv").unlink()
    with pytest.raises(HardwareError, match="no such table"):
        case.check('[hardware]\ntable = "board.csv"', gates)


def test_sum_of_the_released_table_leaves_layers_out(case: Case) -> None:
    gate = "[bitops]\nmax_g = 0"
    full, apq = (case.check(f'[hardware]\nsum = "{which}"', gate).figures["bitops_g"] for which in ("full", "apq"))
    assert apq.value < full.value
    assert (full.of, apq.of) == ("every layer", "APQ's sum")


def test_opset_and_file_format(case: Case) -> None:
    found = failed(case.check("[opset]\nmin = 22\nmax_ir_version = 9"))
    assert found == {"opset": "opset 21, at least 22: 1 short; IR version 10, at most 9: 1 over"}
    assert failed(case.check("[opset]\nmin = 13\nmax = 20")) == {"opset": "opset 21, at most 20: 1 over"}


def test_bits_of_layers(case: Case) -> None:
    assert failed(case.check("[audit]\nmax_weight_bits = 4\nmax_act_bits = 8\ninteger_kernels = true")) == {}
    found = failed(case.check("[audit]\nmax_weight_bits = 3\n[audit.weight_bits]\nhead = 2\nhaed = 4"))["audit"]
    assert "layer stem: weights of 4 bits, at most 3 bits" in found
    assert "layer head: weights of 4 bits, at most 2 bits" in found
    assert "layer haed: the file has no such layer with weights" in found
    small_mobilenet(case.model, np.random.default_rng(0), 10)
    found = failed(case.check("[audit]\nmax_weight_bits = 8\nmax_act_bits = 8\ninteger_kernels = true"))["audit"]
    assert "layer stem: weights of 32 bits (float), at most 8 bits" in found
    assert "layer block0.project: reads 32 bits (float), at most 8 bits" in found
    assert found.endswith("; and 16 more")
    found = failed(case.check("[audit]\ninteger_kernels = true"))["audit"]
    assert re.search("layer stem: onnxruntime runs it as .*, in float", found)


def test_operators_in_branches_and_of_other_domains(case: Case) -> None:
    def branch(name: str, op_type: str, domain: str = "") -> onnx.GraphProto:
        value = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)
        node = helper.make_node(op_type, ["x"], [f"{name}.y"], name=f"{name}\nnode", domain=domain)
        return helper.make_graph([node], name, [], [value])

    condition = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("then", "Sqrt"), else_branch=branch("else", "Foo", "com.acme")
    )
    onnx.save(helper.make_model(helper.make_graph([condition], "g", [], [])), case.model)
    found = failed(case.check('[operators]\nallow = ["If"]'))["operators"]
    assert "Sqrt is not on the list" in found
    assert "com.acme.Foo is not on the list" in found
    assert "\n" not in found
    assert failed(case.check('[operators]\nallow = ["If", "Sqrt", "com.acme.Foo"]')) == {}
    assert list(failed(case.check('[operators]\ndeny = ["com.acme.Foo"]'))) == ["operators"]


def test_size_counts_side_files(case: Case) -> None:
    onnx.save(build_model(NET), case.model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    sizes = [(case.folder / name).stat().st_size for name in ("model.onnx", "weights.bin")]
    report = case.check(f"[size]\nmax_bytes = {sum(sizes)}\nmax_kb = {sum(sizes) / 1000}")
    assert failed(report) == {}
    assert report.figures["size_bytes"].value == sum(sizes)
    (case.folder / "weights.bin").unlink()
    assert "No such file" in failed(case.check("[size]\nmax_kb = 1"))["size"]


def test_measured_latency(case: Case, library: Path) -> None:
    compiled = f'[compiled]\nlibrary = "{library}"\nrepeats = 5\nrounds = 1'
    report = case.check(compiled, "[measured_latency]\nmax_ratio = 1e6\nmax_ms = 0")
    text = failed(report)["measured_latency"]
    assert re.search(
        r"^[\d.e-]+ ms \(the given library, 1 thread\(s\), median\), at most 0 ms: [\d.e-]+ ms over$", text
    )
    assert report.figures["measured_ratio"].value > 0
    found = failed(case.check(compiled, "threads = 2", "[measured_latency]\nmax_ms = 1e6"))["measured_latency"]
    assert "compiled for 1 threads" in found
    write_onnx(with_other_weights(NET), case.model)
    assert "from another model" in failed(case.check(compiled, "[measured_latency]\nmax_ms = 1e6"))["measured_latency"]


def test_torch_takes_part_in_parity(case: Case) -> None:
    report = case.check('[parity]\nruntimes = ["torch", "onnxruntime"]\nimages = 3')
    text = next(gate.texts[0] for gate in report.gates if gate.gate == "parity")
    assert text == (
        "0 codes differ (NumPy against onnxruntime in 16 tensors, torch in 16 tensors, 3 images, random images), "
        "at most 0"
    )


# Images


def test_accuracy_on_the_first_images(case: Case) -> None:
    found = failed(case.check("[accuracy]\nmin_percent = 50\nimages = 5", data=True))
    assert found == {"accuracy": "40 % (2 of 5 images, images.npz), at least 50 %: 10 points short"}
    assert "there are only 20" in failed(case.check("[accuracy]\nmin_percent = 1\nimages = 21", data=True))["accuracy"]
    assert "give them with `--data DIR`" in failed(case.check("[accuracy]\nmin_percent = 1"))["accuracy"]


def test_accuracy_of_a_model_of_fixed_batch_size(case: Case) -> None:
    model = build_model(NET)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, case.model)
    assert case.check("[accuracy]\nmin_percent = 0", data=True).figures["accuracy_percent"].value == 85


def test_accuracy_on_image_folders(case: Case) -> None:
    from PIL import Image

    from apq_deploy.check.images import ImageFormat, given_images
    from exporters import run_onnx

    rng = np.random.default_rng(3)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (case.folder / part / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(case.folder / part / name / f"{index}.png")
    images = given_images(case.folder, ImageFormat((3, 10, 10), 12, None))
    assert images.labels is not None
    right = run_onnx(case.model, images.fetch(0, 4)).argmax(1) == images.labels
    budget = read_budget(case.budget("[accuracy]\nmin_percent = 0"))
    subject = Subject(case.model, budget, ExitStack())
    subject.given = images
    assert figure(subject, "accuracy_percent").value == 25 * right.sum()
    assert images.source == "test images of ImageFolder"


def test_accuracy_on_the_samples_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    image = QTensor("image", (1, 28, 28), 1 / 255, 0, 8, 0, 255)
    weight = rng.integers(-7, 8, (10, 1, 7, 7)).astype(np.int8)
    stem = QTensor("stem", (10, 4, 4), 0.1, 0, 8, 0, 255)
    scale, bias = np.full(10, 0.05, np.float32), np.zeros(10, np.int32)
    matrix = rng.integers(-7, 8, (10, 10)).astype(np.int8)
    net = QuantizedNetwork(
        "tiny",
        image,
        (
            QConv("stem", "image", stem, weight, scale, 4, bias, 7),
            QPool("pool", "stem", QTensor("pool", (10,), 0.1, 0, 8, 0, 255)),
            QLinear("classifier", "pool", QTensor("y", (10,), 0.1, 128, 8, 0, 255), matrix, scale, 4, bias),
        ),
        {"space": "fashion"},
    )
    case = make_case(tmp_path, net)
    pixels = rng.integers(0, 256, (8, 1, 28, 28), dtype=np.uint8)
    from exporters import run_onnx

    labels = run_onnx(case.model, pixels.astype(np.float32) / np.float32(255)).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    Samples(pixels[:1], labels[:1], pixels, labels).save(tmp_path / "apq-models" / "fashion" / "samples.npz")
    monkeypatch.chdir(tmp_path)
    assert SearchSpace.load("fashion").input_size == 28
    found = case.check("[accuracy]\nmin_percent = 0").figures["accuracy_percent"]
    assert (found.value, found.of) == (87.5, "7 of 8 images, test images of the model")


# What cannot be measured, and what is wrong


def test_gate_that_cannot_be_measured_fails_and_the_others_are_told(case: Case) -> None:
    small_mobilenet(case.model, np.random.default_rng(0), 10)
    report = case.check("[parity]", "[latency]\nmax_ms = 1", "[size]\nmax_kb = 1000", "[measured_latency]\nmax_ms = 1")
    found = failed(report)
    assert list(found) == ["latency", "parity", "measured_latency"]
    assert "as in [hardware] bits = 8" in found["latency"]
    assert status(report)["size"] == "passed"
    report = case.check("[hardware]\nbits = 8", "[latency]\nmax_ms = 1")
    assert failed(report) == {}


def test_compiler_that_fails_is_a_failed_gate(case: Case) -> None:
    report = case.check(
        '[compiled]\ntarget = "z80"', "[parity]\nimages = 1", "[measured_latency]\nmax_ms = 1", "[audit]"
    )
    assert list(failed(report)) == ["parity", "measured_latency"]
    assert "z80" in failed(report)["parity"]


def test_error_of_any_type_is_a_reason(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path) -> None:
        raise RuntimeError("the tool\nbroke")

    monkeypatch.setattr("exporters.audit.audit", crash)
    report = case.check("[audit]", "[size]\nmax_kb = 1000")
    assert failed(report) == {"audit": "RuntimeError: the tool broke"}
    assert status(report)["size"] == "passed"


def test_bits_of_a_file_that_has_its_own_are_refused(case: Case) -> None:
    found = failed(case.check("[hardware]\nbits = 4", "[latency]\nmax_ms = 1"))
    assert found == {"latency": "[hardware] bits is for files in float, and this one carries its own; remove it"}


@pytest.mark.parametrize("content", [b"", b"not a model", build_model(NET).SerializeToString()[:-50]])
def test_file_that_is_no_model(case: Case, content: bytes) -> None:
    case.model.write_bytes(content)
    with pytest.raises(ExportError):
        case.check("[size]\nmax_kb = 1000")
    case.model.unlink()
    with pytest.raises(ExportError, match="cannot read"):
        case.check("[size]\nmax_kb = 1000")


def test_wrong_inputs(case: Case) -> None:
    gate = "[accuracy]\nmin_percent = 1"
    with pytest.raises(UserError, match=r'no gate "acuracy"; did you mean "accuracy"\?'):
        case.check(gate, skip=["acuracy"])
    with pytest.raises(UserError, match=r"every gate of .* skipped"):
        case.check(gate, skip=["accuracy"])
    with pytest.raises(HardwareError, match="no such file"):
        case.check('[hardware]\nmodel = "mine.toml"', "[latency]\nmax_ms = 1")
    from apq_deploy.check.run import run_check

    with pytest.raises(UserError, match="there is no folder or file nowhere"):
        run_check(case.model, case.folder / "deploy.toml", Path("nowhere"))
    budget = case.budget(gate)
    with pytest.raises(UserError, match="there is no folder"):
        run_check(case.model, budget, case.folder / "nowhere")
    shapes: list[dict[str, np.ndarray]] = [
        {"images": np.zeros((2, 3, 9, 9), np.uint8), "labels": np.zeros(2, int)},
        {"images": np.zeros((2, 3, 10, 10), np.float64), "labels": np.zeros(2, int)},
        {"images": np.zeros((2, 3, 10, 10), np.uint8), "labels": np.zeros(3, int)},
        {"images": np.zeros((2, 3, 10, 10), np.uint8), "labels": np.full(2, 1000)},
        {"images": np.full((2, 3, 10, 10), np.nan, np.float32), "labels": np.zeros(2, int)},
        {"images": np.zeros((2, 3, 10, 10), np.uint8)},
        {"images": np.array([{}], dtype=object), "labels": np.zeros(1, int)},
    ]
    for arrays in shapes:
        np.savez(case.data, **arrays)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"images\.npz"):
            run_check(case.model, budget, case.data)
    case.data.write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"images\.npz"):
        run_check(case.model, budget, case.data)


@given(value=st.floats(allow_nan=False, allow_infinity=False), bound=st.floats(0, 1e12))
def test_a_bound_is_met_exactly_when_it_is(value: float, bound: float) -> None:
    assert at_most(value, bound, "ms").passed == (value <= bound)
    assert at_least(value, bound, "%").passed == (value >= bound)
    for finding in (at_most(value, bound, "ms"), at_least(value, bound, "%")):
        assert finding.excess is not None
        assert (finding.excess > 0) == (not finding.passed)


def test_a_figure_that_is_no_number_meets_no_bound() -> None:
    assert not at_most(float("nan"), 1, "ms").passed
    assert not at_least(float("nan"), 1, "%").passed
