"""The CPUs that can be compiled for, what each of them must have, and which of them this machine is."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.tvm.arm import NEON, NEON_DOT
from exporters.tvm.isa import Isa
from exporters.tvm.plain import PLAIN
from exporters.tvm.x86 import AMX, AVX2, SSE2, VNNI

# Names as Linux lists them in /proc/cpuinfo; a level of x86-64 is the features LLVM may use at that -mcpu.
X86_64_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
X86_64_V4 = (*X86_64_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
AMX_TILE = "amx_tile"
# Linux lets a process use the tiles once it has asked: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
REQUEST_TILES = (158, 0x1023, 18)


@dataclass(frozen=True)
class CompileTarget:
    """What `--target NAME` stands for.

    architecture: as `platform.machine` has it. features: what the CPU must have beyond its architecture.
    llvm: TVM's target. A library for another architecture is linked by zig, whose triple is `zig`.
    """

    name: str
    description: str
    isa: Isa
    architecture: str
    features: tuple[str, ...]
    llvm: Mapping[str, Any] = field(hash=False)
    zig: str = ""

    @property
    def runs_here(self) -> bool:
        return not self.missing()

    def missing(self) -> tuple[str, ...]:
        """What this machine lacks to run the target's code; empty if nothing."""
        return missing_features(self.architecture, self.features)


def missing_features(architecture: str, features: tuple[str, ...]) -> tuple[str, ...]:
    """What this machine lacks of an architecture and its features."""
    if platform.machine() != architecture:
        return (f"the {architecture} architecture",)
    available = cpu_features()
    missing = tuple(name for name in features if name not in available)
    if AMX_TILE in features and not missing and not request_tiles():
        return ("Linux's permission to use AMX (5.16 and later give it)",)
    return missing


def request_tiles() -> bool:
    """Whether Linux lets this process use AMX, now that it has been asked; without that, tiles end the process."""
    return ctypes.CDLL(None).syscall(*REQUEST_TILES) == 0


@cache
def cpu_features() -> frozenset[str]:
    """Instruction set extensions of this machine, as the kernel names them.

    Raises: ExportError where the kernel does not list them.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError as error:
        raise ExportError(
            "cannot read /proc/cpuinfo to learn what this CPU can do; compiled models need Linux"
        ) from error
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


TARGETS = {
    target.name: target
    for target in (
        CompileTarget(
            "x86-64-amx",
            "AMX for bytes, beside AVX512 with VNNI: Intel Xeon from Sapphire Rapids",
            AMX,
            "x86_64",
            (*X86_64_V4, "avx512_vnni", AMX_TILE, "amx_int8"),
            {"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni", "+amx-tile", "+amx-int8"]},
        ),
        CompileTarget(
            "x86-64-vnni",
            "AVX512 with VNNI: Intel from Cascade Lake, AMD from Zen 4",
            VNNI,
            "x86_64",
            (*X86_64_V4, "avx512_vnni"),
            {"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
        ),
        CompileTarget(
            "x86-64-avx2",
            "AVX2 and FMA: Intel from Haswell, AMD from Zen",
            AVX2,
            "x86_64",
            X86_64_V3,
            {"kind": "llvm", "mcpu": "x86-64-v3"},
        ),
        CompileTarget("x86-64", "every 64-bit x86 CPU", SSE2, "x86_64", (), {"kind": "llvm", "mcpu": "x86-64"}),
        CompileTarget(
            "aarch64-dotprod",
            "64-bit Arm with dot products: Cortex-A55 and -A76, Neoverse N1, and later",
            NEON_DOT,
            "aarch64",
            ("asimddp",),
            {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]},
            zig="aarch64-linux-gnu",
        ),
        CompileTarget(
            "aarch64",
            "every 64-bit Arm CPU",
            NEON,
            "aarch64",
            (),
            {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
            zig="aarch64-linux-gnu",
        ),
    )
}
C_SOURCE = CompileTarget(
    "c", "C source for any compiler, as a static library or a file", PLAIN, platform.machine(), (), {"kind": "c"}
)
HOST = "host"


def resolve_target(name: str) -> CompileTarget:
    """The target called `name`; "host" is the first that this machine can run, fastest first.

    Raises: ExportError naming the supported targets.
    """
    if name == HOST:
        for target in TARGETS.values():
            if target.runs_here:
                return target
        raise ExportError(f"no target runs on this machine ({platform.machine()}); choose one of {', '.join(TARGETS)}")
    if name not in TARGETS:
        raise ExportError(f"unknown target {name!r}; supported are {HOST}, {', '.join(TARGETS)}")
    return TARGETS[name]
