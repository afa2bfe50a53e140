"""A network as a C file or a static library with one function, for programs without any runtime."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.files import replace_file
from exporters.qnet import QuantizedNetwork
from exporters.tvm.families import family_of
from exporters.tvm.link import compiler, run, support_source
from exporters.tvm.lowering import LOGITS, Program, plan
from exporters.tvm.metadata import network_sha256
from exporters.tvm.pipeline import PIPELINE
from exporters.tvm.plain import NUMBER_FROM_BITS
from exporters.tvm.targets import C_SOURCE, CompileTarget, resolve_target

ALIGNMENT = 64
_C_TYPES = {"uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float"}
_SUFFIXES = (".c", ".a")


def compile_standalone(net: QuantizedNetwork, path: str | os.PathLike[str], target: str = "c") -> None:
    """Write the network to `path`, and a header beside it with the one function to call.

    path: NAME.c for C source (target "c"), NAME.a for a static library of any target. The function,
    `void NAME_run(const float *image, float *logits)`, takes one image and is not reentrant: activations lie in static
    memory. One thread. `int NAME_supported(void)` is to be called before it: 1 if this CPU can run it.

    Raises: ExportError if the path or the target does not fit, or a tool is missing.
    """
    place = Path(path)
    chosen = C_SOURCE if target == C_SOURCE.name else resolve_target(target)
    if place.suffix not in _SUFFIXES:
        raise ExportError(f"the path must end in {' or '.join(_SUFFIXES)}, got {place.name}")
    if place.suffix == ".c" and chosen is not C_SOURCE:
        raise ExportError(f'C source needs target "c", got {chosen.name!r}; or write a library, NAME.a')
    if not re.fullmatch(r"[A-Za-z]\w*", place.stem):
        raise ExportError(f"the file's name becomes a C function's: use letters, digits and _, got {place.stem!r}")
    if place.suffix == ".a":
        compiler(chosen)
    program = plan(net, chosen.isa)
    kernels, is_source = _kernels(program, place.stem, chosen)
    header = _header(net, place.stem, chosen)
    replace_file(place.with_suffix(".h"), header.encode())
    driver = _driver(
        net, program, place.stem, header, "" if not is_source else _clean(kernels.inspect_source()), chosen
    )
    if place.suffix == ".c":
        replace_file(place, driver.encode())
    else:
        replace_file(place, _archive(driver, None if is_source else kernels, chosen))


def _kernel_names(program: Program, name: str) -> dict[Any, str]:
    """C names of the kernels: those of several networks in one program differ."""
    return {spec: f"{name}_{kernel}" for spec, kernel in program.kernel_names().items()}


def _kernels(program: Program, name: str, target: CompileTarget) -> tuple[Any, bool]:
    """TVM's module with the kernels as C functions, and whether it is C source."""
    family = family_of(target.isa)
    functions = {
        each: family.kernel(target.isa, spec, 1).c_function(each) for spec, each in _kernel_names(program, name).items()
    }
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.tirx.build(tvm.IRModule(functions), target=tvm.target.Target(dict(target.llvm)), pipeline=PIPELINE)
    return module, module.kind == "c"


def _clean(source: str) -> str:
    """TVM's C source without what ties it to its runtime."""
    lines = [
        line for line in source.splitlines() if not line.startswith(("#include", "#define", "// tvm", "void* __tvm"))
    ]
    return (
        "\n".join(lines).replace("TVM_DLL ", "static ").replace('#ifdef __cplusplus\nextern "C"\n#endif\n', "") + "\n"
    )


@dataclass
class _Slot:
    start: int
    end: int
    last_use: int


def plan_memory(program: Program) -> tuple[dict[str, int], int]:
    """Offset of each activation in one block of memory, and the block's size; those alive together never overlap."""
    last_use = {name: index for index, step in enumerate(program.steps) for name in step.sources}
    offsets: dict[str, int] = {}
    alive: list[_Slot] = []
    size = 0
    for index, step in enumerate(program.steps):
        if step.target == LOGITS:
            continue
        alive = [slot for slot in alive if slot.last_use >= index]
        needed = -(-program.layouts[step.target].size // ALIGNMENT) * ALIGNMENT
        start = 0
        for slot in sorted(alive, key=lambda slot: slot.start):
            if start + needed <= slot.start:
                break
            start = max(start, slot.end)
        offsets[step.target] = start
        alive.append(_Slot(start, start + needed, last_use.get(step.target, index)))
        size = max(size, start + needed)
    return offsets, size


def _header(net: QuantizedNetwork, name: str, target: CompileTarget) -> str:
    shape, count = " x ".join(map(str, net.input.shape)), int(np.prod(net.output.shape))
    maker = f"apq-deploy {version('apq-deploy')}"
    return (
        f"/* {_comment(net.name)}, by {maker} for {target.name}; network {network_sha256(net)} */\n"
        f"#ifndef {name.upper()}_H\n#define {name.upper()}_H\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n'
        f"/* image: {shape} floats (channels, rows, columns), scaled as the network was trained: pixels / 255 for\n"
        f"   networks of `apq-deploy export`. logits: {count} floats. Not reentrant. */\n"
        f"void {name}_run(const float *image, float *logits);\n"
        "/* 1 if this CPU can run it; ask before the first run. */\n"
        f"int {name}_supported(void);\n"
        "#ifdef __cplusplus\n}\n#endif\n#endif\n"
    )


def _comment(text: str) -> str:
    return re.sub(r"[^ -)+-.0-~]", "?", text)  # printable, without * and /


def _driver(
    net: QuantizedNetwork, program: Program, name: str, header: str, kernels: str, target: CompileTarget
) -> str:
    """C source: constants, memory, the kernels or their declarations, and the function that calls them in turn."""
    names = _kernel_names(program, name)
    offsets, size = plan_memory(program)
    lines = ["#include <stdint.h>\n#include <string.h>\n", header]
    lines.append(support_source(f"{name}_supported", target.architecture, target.features))
    if kernels:
        body = "float x; memcpy(&x, &bits, 4); return x;"
        lines += [f"static inline float {NUMBER_FROM_BITS}(uint32_t bits) {{ {body} }}", kernels]
    declared: set[str] = set()
    constants: dict[int, str] = {}
    calls = []
    for step in program.steps:
        kernel = names[step.spec]
        for array in step.constants:
            if id(array) not in constants:
                constants[id(array)] = f"constant_{len(constants)}"
                lines.append(_array(constants[id(array)], array))
        sources = [f"memory + {offsets[source]}" for source in step.sources] or ["(float *)image"]
        last = "logits" if step.target == LOGITS else f"memory + {offsets[step.target]}"
        arguments = [*sources, *(f"(void *){constants[id(array)]}" for array in step.constants), last]
        if not kernels and kernel not in declared:
            lines.append(f"extern void {kernel}({', '.join(['void *'] * len(arguments))});")
            declared.add(kernel)
        calls.append(f"    {kernel}({', '.join(arguments)});")
    lines.append(f"static uint8_t memory[{size}] __attribute__((aligned({ALIGNMENT})));")
    lines.append(f"void {name}_run(const float *image, float *logits) {{")
    return "\n".join([*lines, *calls, "}\n"])


def _array(name: str, array: NDArray[Any]) -> str:
    """A constant; floats by their bits, so that none is rounded."""
    if array.dtype == np.float32:
        values, kind = array.view(np.uint32), "uint32_t"
    else:
        values, kind = array, _C_TYPES[str(array.dtype)]
    text = ",".join(map(str, values.tolist()))
    return f"static const {kind} {name}[] __attribute__((aligned({ALIGNMENT}))) = {{{text}}};"


def _archive(driver: str, kernels: Any | None, target: CompileTarget) -> bytes:
    """The bytes of a static library."""
    with tempfile.TemporaryDirectory() as folder:
        source, objects = Path(folder) / "driver.c", [Path(folder) / "driver.o"]
        source.write_text(driver)
        command = compiler(target)
        run([*command, "-x", "c", "-c", "-O3", "-fPIC", "-fno-strict-aliasing", "-o", str(objects[0]), str(source)])
        if kernels is not None:
            objects.append(Path(folder) / "kernels.o")
            kernels.write_to_file(str(objects[-1]))
        archive = Path(folder) / "model.a"
        archiver = [*command[:-3], "ar"] if "ziglang" in command else [shutil.which("ar") or "ar"]
        run([*archiver, "rcs", str(archive), *map(str, objects)])
        return archive.read_bytes()
