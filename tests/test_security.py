"""Files are data: nothing that is read is run, but the compiled library, and that only where it is named."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from endurance import Place

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for part in ("apq_deploy", "exporters", "hwmodels", "benchmarks") for path in (ROOT / part).rglob("*.py")
)
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "jsonpickle"}
# How a file's content could come to run, or a shell to read a name out of it.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"),
    *("subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "pty.spawn", "code.interact"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("np.fromstring", "numpy.fromstring", "onnx.load_model_from_string", "runpy.run_path"),
}
# The one place where machine code is loaded: `CompiledModel`, for a library that the user names or has just compiled.
LOADERS = {"load_module", "CDLL", "LoadLibrary", "load_library"}
MAY_LOAD = {"exporters/tvm/compiled.py"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Calls of a file by their dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def offences(path: Path) -> list[str]:
    """What a source file may not do."""
    found = [f"imports {name}" for name in sorted(imported(path) & PICKLES)]
    where = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    for name, call in calls(path):
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in FORBIDDEN:
            found.append(f"calls {name}")
        # a library without a name is this process itself
        is_own = len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value is None
        if (
            name.rpartition(".")[2] in LOADERS
            and not is_own
            and where not in MAY_LOAD
            and not where.startswith("benchmarks/")
        ):
            found.append(f"loads machine code with {name}")
        if "shell" in words and not (isinstance(words["shell"], ast.Constant) and words["shell"].value is False):
            found.append(f"gives {name} a shell")
        if name in ("np.load", "numpy.load"):
            allowed = words.get("allow_pickle")
            if not isinstance(allowed, ast.Constant) or allowed.value is not False:
                found.append(f"calls {name} without allow_pickle=False")
    return [f"{where}:{each}" for each in found]


def test_no_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 100
    assert [each for path in SOURCES for each in offences(path)] == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import pickle", "imports pickle"),
        ("from yaml import load", "imports yaml"),
        ("import torch\ntorch.load('x')", "calls torch.load"),
        ("import torch\ntorch.load('x', weights_only=False)", "calls torch.load"),
        ("import numpy as np\nnp.load('x')", "without allow_pickle=False"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "without allow_pickle=False"),
        ("import subprocess\nsubprocess.run('x', shell=True)", "a shell"),
        ("import os\nos.system('x')", "calls os.system"),
        ("eval('1')", "calls eval"),
        ("import tvm\ntvm.runtime.load_module('x')", "machine code"),
    ],
)
def test_each_offence_would_be_seen(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    assert any(words in each for each in offences(tmp_path / "bad.py"))


# Notes what happens below us, in NumPy, torch, onnx, onnxruntime and TVM too: Python tells of every class that an
# unpickler looks up, and of every shell.
WATCHED = """
import json, sys
seen = []
def watch(event, arguments):
    is_shell = event == "subprocess.Popen" and str(arguments[0]).rpartition("/")[2] in ("sh", "bash")
    if is_shell or event in ("pickle.find_class", "os.system", "os.exec"):
        seen.append(f"{event} {arguments}")
sys.addaudithook(watch)
from commands import call_here
from pathlib import Path
codes = [call_here(Path(sys.argv[1]), *each).code for each in json.loads(sys.argv[2])]
print(json.dumps([codes, seen]))
"""


def test_no_library_below_unpickles_or_calls_a_shell(tmp_path: Path) -> None:
    """Workers of `collect` are not here: Python sends its own objects to its own processes as pickles."""
    Place.make(tmp_path / "place")
    steps = ["--largest-steps", "2", "--kernel-steps", "1", "--depth-steps", "1", "--width-steps", "1"]
    (tmp_path / "place" / "deploy.toml").write_text("schema = 1\n[size]\nmax_kb = 100\n[audit]\n")
    commands = [
        ["search", "--latency-ms", "0.06"],
        ["export", "model.onnx", "--finetune-steps", "0"],
        ["compile", "model.onnx", "--no-time"],
        ["check", "model.onnx", "--budget", "deploy.toml"],
        ["report", "-o", "report.html"],
        ["train", "--space", "tiny.toml", "--data", "data", *steps],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "place"), json.dumps(commands)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert done.returncode == 0, done.stderr
    codes, seen = json.loads(done.stdout)
    assert codes == [0] * len(commands)
    assert seen == []
