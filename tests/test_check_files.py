"""What `check` reads and writes: budgets, baselines, and the forms of the outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from check_cases import Case, at_eight_bits, four_bit_network, make_case
from hypothesis import given
from hypothesis import strategies as st

from apq_deploy.check.baseline import read_baseline
from apq_deploy.check.budget_file import GATES, SECTIONS, read_budget
from apq_deploy.check.figures import FIGURES
from apq_deploy.check.findings import CheckReport, Figure, GateResult, problem
from apq_deploy.check.outputs import WRITERS, as_github, as_junit, as_markdown
from apq_deploy.check.run import run_check
from apq_deploy.check.sections import RegressionGate, field_docs
from apq_deploy.errors import UserError
from exporters import write_onnx

ROOT = Path(__file__).parent.parent
NET = four_bit_network()
SIZE = "[size]\nmax_kb = 1000"


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return make_case(tmp_path, NET)


# Budgets


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"expected schema = 1 at the top, got None"),
        ("schema = 2\n" + SIZE, r"expected schema = 1 at the top, got 2"),
        ("schema = true\n" + SIZE, r"expected schema = 1 at the top, got True"),
        ("schema = 1", r"sets no gate, so nothing could fail"),
        ("schema = 1\n[compiled]\nthreads = 1", r"sets no gate, so nothing could fail"),
        ("schema = 1\n[size", r"expected TOML, got"),
        ("schema = 1\n[sise]\nmax_kb = 1", r'unknown section or field "sise"; did you mean "size"\?'),
        ("schema = 1\nmax_kb = 1", r'unknown section or field "max_kb"; it belongs under \[size\]'),
        ("schema = 1\nsize = 3", r"\[size\] must be a section with fields, got 3"),
        ("schema = 1\n[size]\nmax_mb = 1", r'unknown field "max_mb" in \[size\]; did you mean "max_kb"\?'),
        ("schema = 1\n[size]", r"\[size\] sets no limit; add max_kb or max_bytes"),
        (
            "schema = 1\n[size]\nmax_kb = -1",
            r"\[size\] max_kb: expected a number of at least 0 \(10\^3 bytes\), got -1",
        ),
        ("schema = 1\n[size]\nmax_kb = nan", r"expected a number of at least 0 .*, got nan"),
        ("schema = 1\n[size]\nmax_kb = inf", r"expected a number of at least 0 .*, got inf"),
        ("schema = 1\n[size]\nmax_kb = true", r"expected a number of at least 0 .*, got True"),
        ("schema = 1\n[size]\nmax_bytes = 1.5", r"expected a whole number of at least 0 \(bytes\), got 1\.5"),
        ("schema = 1\n[accuracy]\nmin_percent = 101", r"expected a number from 0 to 100 \(%\), got 101"),
        ("schema = 1\n[accuracy]\nimages = 5", r"\[accuracy\] sets no limit; add min_percent"),
        ("schema = 1\n[opset]\nmin = 5\nmax = 4", r"expected min <= max, got 5 and 4"),
        ("schema = 1\n[operators]\nallow = []", r"expected a list of different names, got \[\]"),
        ("schema = 1\n[operators]\nallow = ['Conv', 'Conv']", r"expected a list of different names"),
        ("schema = 1\n[operators]\ndeny = ['Looop']", r'ONNX has no operator "Looop"; did you mean "Loop"\?'),
        ("schema = 1\n[audit]\nweight_bits = 4", r"expected a table of layer names and whole numbers"),
        ("schema = 1\n[audit.weight_bits]\nhead = 'four'", r"expected a table of layer names and whole numbers"),
        ("schema = 1\n[audit]\ninteger_kernels = 1", r"expected true or false, got 1"),
        ("schema = 1\n[parity]\nruntimes = ['tensorrt']", r'expected a list out of "onnxruntime", "tvm", "torch"'),
        ("schema = 1\n[hardware]\nmodel = 'bitfusio'\n[size]\nmax_kb = 1", r'did you mean "bitfusion"\?'),
        ("schema = 1\n[hardware]\nsum = 'all'\n[size]\nmax_kb = 1", r'expected one of "full", "apq", got \'all\''),
        (
            "schema = 1\n[hardware]\nmodel = 'bitfusion'\ntable = 'x.csv'\n[size]\nmax_kb = 1",
            r"\[hardware\] expected a model or a table, got both; remove one",
        ),
        ("schema = 1\n[compiled]\nlibrary = 'no.so'\n[parity]", r"\[compiled\] library: there is no file .*no\.so"),
        ("schema = 1\n[regression]\nbaseline = 'b.json'", r"\[regression\] sets no limit; add accuracy_points or"),
    ],
)
def test_budget_that_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "deploy.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=match) as caught:
        read_budget(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_budget_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the budget .*: No such file"):
        read_budget(tmp_path / "deploy.toml")
    with pytest.raises(UserError, match=r"cannot read the budget .*: Is a directory"):
        read_budget(tmp_path)
    (tmp_path / "deploy.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="expected a TOML file in UTF-8"):
        read_budget(tmp_path / "deploy.toml")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_budget_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(b"schema = 1\n" + content)
    with pytest.raises(UserError) as caught:
        read_budget(path)
    assert "\n" not in str(caught.value)


def test_paths_are_seen_from_the_budget_file(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"")
    (tmp_path / "deploy.toml").write_text(
        'schema = 1\n[hardware]\nmodel = "board/x.toml"\n[compiled]\nlibrary = "lib.so"\n'
        '[regression]\nbaseline = "base.json"\nsize_percent = 1\n'
    )
    budget = read_budget(tmp_path / "deploy.toml")
    assert budget.hardware.model == str(tmp_path / "board/x.toml")
    text = 'schema = 1\n[hardware]\ntable = "board/x.csv"\n[size]\nmax_kb = 1\n'
    (tmp_path / "table.toml").write_text(text)
    assert read_budget(tmp_path / "table.toml").hardware.table == tmp_path / "board/x.csv"
    assert budget.compiled.library == tmp_path / "lib.so"
    assert budget.regression is not None
    assert budget.regression.baseline == tmp_path / "base.json"
    assert dict(budget.lines) == {"hardware": 2, "compiled": 4, "regression": 6}


def test_every_tolerance_has_a_figure() -> None:
    assert {kind.tolerance for kind in FIGURES.values()} == set(RegressionGate.needs)
    for section in SECTIONS.values():
        assert set(section.needs) <= set(field_docs(section))


def test_documentation_names_every_field_with_its_unit() -> None:
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        part = text.split(f"### `[{name}]`", 1)[1].split("###", 1)[0]
        for field, doc in field_docs(section).items():
            row = re.search(rf"^\| `{field}` \| ([^|]*) \|", part, re.MULTILINE)
            assert row is not None, f"docs/ci.md: [{name}] {field}"
            assert doc.unit in row[1], f"docs/ci.md: [{name}] {field}: {doc.unit}"
        assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == list(field_docs(section))


def test_example_sets_every_gate(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "deploy.toml").read_text(encoding="utf-8")
    (tmp_path / "deploy.toml").write_text(text)
    assert read_budget(tmp_path / "deploy.toml").gates == GATES
    workflow = (ROOT / "examples" / "github-workflow.yml").read_text(encoding="utf-8")
    assert "apq-deploy check model.onnx --budget deploy.toml" in workflow
    assert "\t" not in workflow


# Baselines


def test_baseline_is_written_and_compared(case: Case) -> None:
    base = case.folder / "base.json"
    gate = "[regression]\nsize_percent = 0\nbitops_percent = 0\nenergy_percent = 0"
    report = case.check(SIZE, gate, skip=["regression"], baseline_output=base)
    assert report.notes == (f"baseline written to {base}: size_bytes, bitops_g, energy_mj",)
    assert set(read_baseline(base).figures) == {"size_bytes", "bitops_g", "energy_mj"}
    assert case.check(gate, baseline_path=base).passed
    write_onnx(at_eight_bits(NET), case.model)
    kept = base.read_bytes()
    report = case.check(gate, baseline_path=base, baseline_output=base)
    assert report.notes == (f"baseline not written to {base}: gates failed",)
    assert base.read_bytes() == kept
    assert report.of_status("failed") == ["regression"]


def test_figures_of_other_things_are_not_compared(case: Case) -> None:
    base = case.folder / "base.json"
    gate = "[regression]\nlatency_percent = 1000\naccuracy_points = 100"
    case.check(gate, data=True, skip=["regression"], baseline_output=base)
    hardware = '[hardware]\nmodel = "bitfusion-isca18"'
    fewer = "[accuracy]\nmin_percent = 0\nimages = 10"
    report = case.check(gate, hardware, fewer, data=True, baseline_path=base)
    texts = next(result.texts for result in report.gates if result.gate == "regression")
    assert [text.split(":")[0] for text in texts] == ["latency_ms", "accuracy_percent"]
    assert all("write the baseline anew" in text for text in texts)


def test_accuracy_may_fall_by_points(case: Case) -> None:
    base = case.folder / "base.json"
    gate = "[regression]\naccuracy_points = 5"
    case.check(gate, data=True, skip=["regression"], baseline_output=base)
    content = json.loads(base.read_text())
    for before, passes in ((85, True), (90, True), (90.5, False)):
        content["figures"]["accuracy_percent"]["value"] = before
        base.write_text(json.dumps(content))
        assert case.check(gate, data=True, baseline_path=base).passed is passes


def test_baseline_that_is_wrong(case: Case) -> None:
    base = case.folder / "base.json"
    gate = "[regression]\nsize_percent = 1"
    with pytest.raises(UserError, match="give `--baseline FILE`"):
        case.check(gate)
    with pytest.raises(UserError, match=r"there is no baseline .*base\.json"):
        case.check(gate, baseline_path=base)
    with pytest.raises(UserError, match=r"has no \[regression\]"):
        case.check(SIZE, baseline_path=base)
    head = '{"schema": "apq-deploy/baseline/1"'
    for text, match in (
        ("{", "not complete JSON"),
        ('{"schema": "other/1"}', "expected schema"),
        (head + "}", "expected figures by name"),
        (head + ', "figures": {"speed": {}}}', "unknown figure 'speed'"),
        (head + ', "figures": {"size_bytes": 3}}', "should hold a value"),
        (head + ', "figures": {"size_bytes": {"value": NaN, "unit": "bytes", "of": ""}}}', "should hold a value"),
    ):
        base.write_text(text)
        with pytest.raises(UserError, match=match):
            case.check(gate, baseline_path=base)
    base.write_text(head + ', "figures": {}}')
    report = case.check(gate, baseline_path=base)
    assert [result.texts for result in report.gates if result.status == "failed"] == [
        ["size_bytes: base.json does not hold it; write the baseline anew"]
    ]
    with pytest.raises(UserError, match=r"no gate failed, but the baseline .* cannot be written"):
        case.check(SIZE, baseline_output=case.model / "base.json")


# Forms of the outcome


def test_skips_and_unset_gates_are_seen_in_every_form(case: Case) -> None:
    case.budget("[size]\nmax_kb = 0.001", "[opset]\nmax = 21")
    shown = {form: case.command("--skip", "size", "--skip", "parity", "--format", form) for form in WRITERS}
    assert {result.exit_code for result in shown.values()} == {0}
    text = shown["text"].stdout
    assert re.search(r"^size +skipped +by --skip size$", text, re.MULTILINE)
    assert re.search(r"^parity +skipped +by --skip parity, and not set either$", text, re.MULTILINE)
    assert re.search(r"^latency +not set +no \[latency\] in the budget$", text, re.MULTILINE)
    assert text.splitlines()[-1] == "passed: 1 gates; skipped by name: size, parity"
    gates = {gate["gate"]: gate["status"] for gate in json.loads(shown["json"].stdout)["gates"]}
    assert list(gates) == list(GATES)
    assert (gates["size"], gates["parity"], gates["latency"]) == ("skipped", "skipped", "not set")
    root = ElementTree.fromstring(shown["junit"].stdout)
    messages = {each.get("name"): each.find("skipped") for each in root.iter("testcase")}
    assert messages["opset"] is None
    assert messages["size"] is not None
    assert messages["size"].get("message") == "by --skip size"
    assert "::notice " in shown["github"].stdout
    assert "skipped by --skip size" in shown["github"].stdout
    assert "not set: operators, audit, bitops," in shown["github"].stdout
    assert "| size | skipped | by --skip size |" in shown["markdown"].stdout


def test_failures_in_every_form(case: Case) -> None:
    budget = case.budget("[opset]\nmax = 20", "[size]\nmax_kb = 0.001")
    shown = {form: case.command("--format", form) for form in WRITERS}
    assert {result.exit_code for result in shown.values()} == {1}
    assert shown["text"].stdout.splitlines()[-1] == "failed: 2 of 2 gates (opset, size)"
    data = json.loads(shown["json"].stdout)
    assert (data["schema"], data["passed"]) == ("apq-deploy/check/1", False)
    opset = data["gates"][0]["findings"][0]
    assert (opset["value"], opset["bound"], opset["excess"], opset["passed"]) == (21, 20, 1, False)
    root = ElementTree.fromstring(shown["junit"].stdout)
    assert (root.get("failures"), root.get("skipped"), root.get("tests")) == ("2", "9", "11")
    failures = [each.get("message") for each in root.iter("failure")]
    assert failures[0] == "opset 21, at most 20: 1 over"
    lines = shown["github"].stdout.splitlines()
    file = str(budget).replace(":", "%3A")
    assert lines[0] == f"::error file={file},line=2,title=apq-deploy check%3A opset::opset 21, at most 20: 1 over"
    assert lines[1].startswith(f"::error file={file},line=4,title=apq-deploy check%3A size::")
    assert lines[1].endswith(" %25 over")
    assert "| opset | **FAILED** | opset 21, at most 20: 1 over |" in shown["markdown"].stdout


def test_outcome_in_a_file(case: Case) -> None:
    case.budget(SIZE)
    result = case.command("--format", "junit", "-o", str(case.folder / "out" / "check.xml"))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "passed: 1 gates"
    assert ElementTree.parse(case.folder / "out" / "check.xml").getroot().tag == "testsuites"


def test_github_gets_a_job_summary(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = case.folder / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    case.budget(SIZE)
    assert case.command("--format", "text").exit_code == 0
    assert summary.read_text() == "before\n"
    assert case.command("--format", "github").exit_code == 0
    assert summary.read_text().startswith("before\n### apq-deploy check: passed\n")


@given(st.text())
def test_any_name_keeps_every_form_whole(name: str) -> None:
    gate = GateResult("audit", "failed", (problem(name + "x"),))
    report = CheckReport(name, name, (gate,), {"latency_ms": Figure(1.5, "ms", name)}, {}, ())
    root = ElementTree.fromstring(as_junit(report).encode())
    assert len(list(root.iter("failure"))) == 1
    lines = as_github(report).split("\n")
    assert len(lines) == 2
    assert lines[0].startswith("::error file=")
    rows = [line for line in as_markdown(report).splitlines() if line.startswith("| audit")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0].replace("\\\\", ""))) == 4


def test_heavy_parts_load_only_where_a_gate_needs_them(case: Case) -> None:
    import subprocess
    import sys

    budget = case.budget(SIZE, "[opset]\nmax = 21", "[latency]\nmax_ms = 10")
    program = (
        "import sys; from pathlib import Path; from apq_deploy.check.run import run_check; "
        f"assert run_check(Path({str(case.model)!r}), Path({str(budget)!r})).passed; "
        "print([name for name in ('tvm', 'torch', 'matplotlib', 'pymoo') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_gate_at_once(case: Case) -> None:
    (case.folder / "deploy.toml").write_text((ROOT / "examples" / "deploy.toml").read_text())
    report = run_check(case.model, case.folder / "deploy.toml", case.data, skip=[*GATES[6:]])
    assert len(report.gates) == len(GATES)
    assert report.of_status("not set") == []
