"""Imports point down only, and packages stay cheap to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each package may import of this project; a longer name comes before the package that holds it.
ALLOWED = {
    "hwmodels": {"hwmodels"},
    "exporters": {"exporters", "hwmodels"},
    "apq_deploy/arch.py": {"apq_deploy.errors"},
    "apq_deploy/encoding.py": {"apq_deploy.space"},
    "apq_deploy/space.py": {"apq_deploy.arch", "apq_deploy.encoding", "apq_deploy.errors", "apq_deploy.files"},
    "apq_deploy/workload.py": {"apq_deploy.arch", "apq_deploy.errors", "apq_deploy.space", "hwmodels"},
}
NUMPY_ONLY = {
    "hwmodels": {"numpy"},
    "exporters": {"numpy", "onnx", "onnxruntime", "tvm", "tvm_ffi", "ml_dtypes", "google"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_down(part: str) -> None:
    for path in sources(part):
        for name in imports(path):
            if name.split(".")[0] in ("apq_deploy", "exporters", "hwmodels"):
                assert any(name == a or name.startswith(a + ".") for a in ALLOWED[part]), f"{path}: {name}"


@pytest.mark.parametrize("part", NUMPY_ONLY)
def test_lower_packages_need_few_libraries(part: str) -> None:
    for path in sources(part):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in NUMPY_ONLY[part] | {part, "hwmodels", "__future__"} | sys.stdlib_module_names, (
                f"{path}: {name}"
            )


def test_search_needs_no_torch() -> None:
    for path in [
        *sources("apq_deploy/search"),
        ROOT / "apq_deploy/deployment.py",
        ROOT / "apq_deploy/predictor/model.py",
    ]:
        assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision")}, path


def test_nobody_imports_the_command_line() -> None:
    for part in ("apq_deploy", "exporters", "hwmodels"):
        for path in sources(part):
            assert "apq_deploy.cli" not in imports(path), path


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'tvm', 'onnx', 'onnxruntime', 'matplotlib', 'pymoo'}"
    code = f"import apq_deploy.commands.root, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
