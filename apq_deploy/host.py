"""This machine as a hardware that is measured, not modelled."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from apq_deploy.errors import UserError
from apq_deploy.workers import Workers
from exporters.tvm.measure import layer_seconds
from exporters.tvm.targets import resolve_target
from hwmodels import ConvLayer, Entry, Precision
from hwmodels.cost import Cost
from hwmodels.hardware import Setting
from hwmodels.measured import Measure, MeasuredDevice, Timer, TimingPlan, time_entry


def host_device(threads: int) -> MeasuredDevice:
    """What the figures depend on: processor, compile target, threads."""
    settings = {"processor": processor_name(), "target": resolve_target("host").name, "threads": threads}
    return MeasuredDevice("host", settings)


def measure_compiled(threads: int) -> Measure:
    """Seconds of a layer's own compiled kernel, run after run."""

    def measure(layer: ConvLayer, precision: Precision) -> Iterator[float]:
        return layer_seconds(layer, precision, threads)

    return measure


def timer_of(workers: Workers, device: MeasuredDevice, threads: int, plan: TimingPlan) -> Timer:
    """Costs of entries that `workers` time, each on a machine that is `device`."""

    def timed(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Cost]]:
        if not entries:
            return
        settings = dict(device.settings)
        with workers:
            for (entry, *_), cost in workers.results(_time_as, [(e, settings, threads, plan) for e in entries]):
                yield entry, cost

    return timed


def _time_as(entry: Entry, settings: dict[str, Setting], threads: int, plan: TimingPlan) -> Cost:
    found = dict(host_device(threads).settings)
    if found != settings:
        raise UserError(
            f"a table is of one kind of machine: expected {settings}, {platform.node()} is {found}; build a table of "
            "its own for each kind"
        )
    return time_entry(measure_compiled(threads), entry, plan)


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
