"""This machine as a hardware that is measured, not modelled."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from exporters.tvm.measure import layer_seconds
from exporters.tvm.targets import resolve_target
from hwmodels import ConvLayer, Precision
from hwmodels.measured import Measure, MeasuredDevice


def host_device(threads: int) -> MeasuredDevice:
    """What the figures depend on: processor, compile target, threads."""
    settings = {"processor": processor_name(), "target": resolve_target("host").name, "threads": threads}
    return MeasuredDevice("host", settings)


def measure_compiled(threads: int) -> Measure:
    """Seconds of a layer's own compiled kernel, run after run."""

    def measure(layer: ConvLayer, precision: Precision) -> Iterator[float]:
        return layer_seconds(layer, precision, threads)

    return measure


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
