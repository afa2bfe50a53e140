"""Objects -> shared library, with the metadata and a check of the CPU inside."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.tvm.metadata import SYMBOL, Metadata
from exporters.tvm.targets import AMX_TILE, REQUEST_TILES, CompileTarget

SUPPORTED = "apq_deploy_supported"

# What a C or C++ program asks before it runs the model; Python reads the metadata instead. Plain code for any CPU of
# the architecture, so that asking is always safe.
_HWCAP = {"asimddp": "1 << 20"}
_CPUID = {
    "avx": "avx",
    "avx2": "avx2",
    "bmi1": "bmi",
    "bmi2": "bmi2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512_vnni": "avx512vnni",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
}


def support_source(name: str, architecture: str, features: Sequence[str]) -> str:
    """C code of `int NAME(void)`: 1 if this CPU has the features, and the system, once asked, lets them be used."""
    includes, start, checks = "", "", []
    if architecture == "aarch64":
        checks = [f"(getauxval(16) & {_HWCAP[feature]})" for feature in features]
        includes = "#include <sys/auxv.h>\n" if checks else ""
    else:
        checks = [f'__builtin_cpu_supports("{_CPUID[feature]}")' for feature in features if feature in _CPUID]
        start = "__builtin_cpu_init();\n    " if checks else ""
    if AMX_TILE in features:
        includes = "long syscall(long, ...);\n"
        checks.append(f"!syscall({', '.join(f'{number}L' for number in REQUEST_TILES)})")
    return f"{includes}int {name}(void) {{\n    {start}return {' && '.join(checks) or '1'};\n}}\n"


def metadata_source(metadata: Metadata) -> str:
    """C code with the metadata and `int apq_deploy_supported(void)`, 1 if this CPU can run the model."""
    content = ",".join(map(str, metadata.to_bytes()))
    public = '__attribute__((visibility("default")))'
    return (
        f"{public} extern const char {SYMBOL}[];\nconst char {SYMBOL}[] = {{{content}}};\n"
        f"{public} int {SUPPORTED}(void);\n"
        f"{support_source(SUPPORTED, metadata.architecture, metadata.features)}"
    )


def compiler(target: CompileTarget) -> list[str]:
    """The command that compiles C and links for `target`.

    Raises: ExportError if it is not installed.
    """
    if target.architecture == platform.machine():
        found = shutil.which("g++")
        if found is None:
            raise ExportError("linking a compiled model needs g++; install it (Debian: apt install g++)")
        return [found]
    if find_spec("ziglang") is None:
        raise ExportError(f"linking for {target.name} on another machine needs zig; run `pip install ziglang`")
    return [sys.executable, "-m", "ziglang", "cc", "-target", target.zig]


def linker(target: CompileTarget, metadata: Metadata) -> Callable[..., None]:
    """What TVM's `export_library` calls with the library's name and the objects it is made of."""

    def link(output: str, objects: Sequence[str], **_: Any) -> None:
        command = compiler(target)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "metadata.c"
            source.write_text(metadata_source(metadata))
            run([*command, "-shared", "-fPIC", "-O1", "-s", "-o", output, *objects, "-x", "c", str(source)])

    link.output_format = "so"  # type: ignore[attr-defined]
    return link


def run(command: Sequence[str]) -> None:
    """Run a tool of the build.

    Raises: ExportError with the first line of what it complained of.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines() or ["?"]
        raise ExportError(f"{Path(command[0]).name} could not link the model: {lines[0].strip()}")
