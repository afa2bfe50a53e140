"""The command line: the main job, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-W", "error::ResourceWarning", "-m", "apq_deploy.cli"]


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the main job was done."""
    folder = tmp_path_factory.mktemp("run")
    for arguments in (
        ("search", "--latency-ms", "0.05"),
        ("export", "model.onnx", "--finetune-steps", "2"),
        ("compile", "model.onnx", "-o", "model.so", "--no-time"),
    ):
        done = call(folder, *arguments)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_main_job(run: Path) -> None:
    search = json.loads((run / "apq-run" / "search.json").read_text())
    export = json.loads((run / "apq-run" / "export.json").read_text())
    compiled = json.loads((run / "apq-run" / "compile.json").read_text())
    assert search["costs"]["full"]["latency_ms"] <= 0.05
    assert export["images"]["test"] >= 2000
    assert export["parity"]["is_equal"]
    assert not export["false_claims"]
    assert export["accuracy_percent"]["onnxruntime"] > 80
    assert compiled["agreement"]["differing_logits"] == 0
    assert compiled["agreement"]["tensors"]["is_equal"]
    assert compiled["agreement"]["accuracy_percent"] == pytest.approx(export["accuracy_percent"]["onnxruntime"])


def test_the_file_holds_what_was_searched(run: Path) -> None:
    done = call(run, "audit", "model.onnx", "--json")
    assert done.returncode == 0
    layers = {layer["name"]: layer for layer in json.loads(done.stdout)["layers"]}
    arch = json.loads((run / "apq-run" / "search.json").read_text())["arch"]
    for s, stage in enumerate(arch["stages"], 1):
        for b, block in enumerate(stage, 1):
            bits = block["bits"]
            depthwise = layers[f"stage{s}.block{b}.depthwise"]
            assert depthwise["claimed_weight_bits"] == bits["depthwise_weight"]
            assert depthwise["claimed_input_bits"] == bits["depthwise_act"]
            assert layers[f"stage{s}.block{b}.expand"]["claimed_weight_bits"] == bits["pointwise_weight"]


def test_the_profile_of_the_file_is_the_cost_of_the_search(run: Path) -> None:
    profile = json.loads(call(run, "profile", "model.onnx", "--json").stdout)
    costs = json.loads((run / "apq-run" / "search.json").read_text())["costs"]["full"]
    for name in ("latency_ms", "energy_mj", "bitops_g", "macs_m"):
        assert profile["sums"]["full"][name] == pytest.approx(costs[name], rel=1e-9), name


def test_the_report_names_everything(run: Path) -> None:
    text = call(run, "report").stdout
    for words in (
        "budget",
        "predicted accuracy",
        "of the file, onnxruntime",
        "bit operations",
        "TVM against",
    ):
        assert words in text


def test_budgets_give_different_networks_within_them(tmp_path: Path) -> None:
    found = []
    for budget in ("0.04", "0.06", "0.12"):
        done = call(tmp_path, "search", "--latency-ms", budget, "--json", "--run", f"run{budget}")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["costs"]["full"]["latency_ms"] <= float(budget)
        found.append(result)
    assert len({tuple(result["genome"]) for result in found}) == 3
    accuracies = [result["predicted_accuracy"] for result in found]
    assert accuracies == sorted(accuracies)


def test_an_unreachable_budget_names_the_least(tmp_path: Path) -> None:
    done = call(tmp_path, "search", "--latency-ms", "0.001")
    assert done.returncode == 1
    assert "the least reachable is" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "apq-run" / "search.json").exists()


SPACE = Path(__file__).parent.parent / "apq_deploy" / "spaces" / "fashion.toml"


def spoil(folder: Path) -> None:
    """Files of every wrong kind."""
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "random.onnx").write_bytes(bytes(range(256)) * 40)
    (folder / "text.onnx").write_text("this is no model")
    (folder / "empty.csv").write_text("")
    (folder / "bad.toml").write_text("name = [")
    (folder / "nospace.toml").write_text('schema = 1\nname = "x"\n')
    (folder / "hardware.toml").write_text('model = "bitfusion"\nrows = 3\n')
    (folder / "other.toml").write_text(SPACE.read_text().replace('name = "fashion"', 'name = "mine"'))
    (folder / "nodata").mkdir()
    (folder / "nomodel").mkdir()
    (folder / "badmodel").mkdir()
    for name in ("supernet.safetensors", "predictor.safetensors", "samples.npz", "points.sqlite"):
        (folder / "badmodel" / name).write_bytes(b"garbage " * 50)
    (folder / "badrun").mkdir()
    (folder / "badrun" / "search.json").write_text('{"schema": ')
    (folder / "oldrun").mkdir()
    (folder / "oldrun" / "search.json").write_text('{"schema": "something else"}')


BAD = [
    ((), "search", "--space", "fashon", "--latency-ms", "1"),
    (("did you mean 'fashion'",), "search", "--space", "fashon"),
    (("not valid TOML",), "search", "--space", "bad.toml"),
    (("is missing",), "search", "--space", "nospace.toml"),
    (("No such file",), "search", "--space", "missing.toml"),
    (("no trained model yet", "apq-deploy train"), "search", "--space", "apq-imagenet"),
    (("no trained model yet",), "search", "--space", "other.toml"),
    (("did you mean", "bitfusion"), "search", "--hardware", "bitfuson"),
    (("hardware.toml",), "search", "--hardware", "hardware.toml"),
    (("scope",), "search", "--scope", "half"),
    (("algorithm",), "search", "--algorithm", "magic"),
    (("positive number",), "search", "--latency-ms", "-1"),
    (("latency-ms", "valid number"), "search", "--latency-ms", "fast"),
    (("bits",), "search", "--bits", "5"),
    (("model folder", "does not exist"), "search", "--model", "nowhere"),
    (("no predictor",), "search", "--model", "nomodel"),
    (("not a complete safetensors",), "search", "--model", "badmodel"),
    (("empty.csv",), "search", "--table", "empty.csv"),
    (("there is no search", "apq-deploy search"), "export", "model.onnx", "--run", "nowhere"),
    (("badrun",), "export", "model.onnx", "--run", "badrun"),
    (("something else",), "export", "model.onnx", "--run", "oldrun"),
    (("cannot read",), "compile", "missing.onnx"),
    (("empty.onnx",), "compile", "empty.onnx"),
    (("random.onnx",), "audit", "random.onnx"),
    (("text.onnx",), "profile", "text.onnx"),
    (("cannot read",), "profile", "missing.onnx"),
    (("nodata", "FashionMNIST"), "train", "--data", "nodata"),
    (("does not exist",), "train", "--data", "nowhere"),
    (("--data",), "train"),
    (("no supernet",), "collect", "--data", "nodata"),
    (("no points",), "fit"),
    (("not a database",), "fit", "--model", "badmodel"),
    (("device",), "train", "--data", "nodata", "--device", "abacus"),
    (("No such command",), "serch"),
    (("No such option",), "search", "--latncy-ms", "1"),
    (("exists already",), "hardware", "new", "bad.toml"),
    (("unknown hardware",), "hardware", "show", "abacus"),
    (("empty.csv",), "lut", "check", "empty.csv"),
    (("missing.csv",), "lut", "compare", "missing.csv", "empty.csv"),
    (("--pareto with --objective",), "search", "--objective", "latency_ms"),
    (("--pareto without --explain",), "search", "--pareto", "--explain"),
    (("--freeze with --network",), "search", "--network", "oldrun"),
    (("no front", "search --pareto"), "pick", "--latency-ms", "1", "--run", "nofront"),
    (("--layers", "one thread"), "compile", "empty.onnx", "-o", "a.c", "--layers"),
    (("unknown target",), "compile", "empty.onnx", "--target", "z80"),
    (("'host' with", "--subset"), "lut", "build", "bitfusion", "-o", "new.csv", "--subset", "10"),
    (("--space with --fit-missing",), "lut", "import", "empty.csv", "-o", "new.csv", "--fit-missing"),
    (("--held-out-images",), "collect", "--data", "nodata", "--held-out-images", "0"),
    (("learning rate above 0",), "train", "--data", "nodata", "--learning-rate", "nan"),
    (("device out of cpu, cuda",), "train", "--data", "nodata", "--device", "meta"),
    (("--largest-steps", "greater than or equal to 1"), "train", "--data", "nodata", "--largest-steps", "0"),
]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    spoil(folder)
    return folder


@pytest.mark.parametrize("case", BAD, ids=lambda case: " ".join(case[1:]))
def test_every_mistake_gets_one_line(spoilt: Path, case: tuple) -> None:
    words, *arguments = case
    before = sorted(spoilt.rglob("*"))
    done = call(spoilt, *arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert sorted(spoilt.rglob("*")) == before, "something was written"
