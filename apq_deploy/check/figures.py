"""The figures that gates bound, that baselines hold and that regressions are judged by."""

from __future__ import annotations

from dataclasses import dataclass

from apq_deploy.check.findings import Figure
from apq_deploy.check.subject import FigureSource, Subject
from apq_deploy.errors import UserError

SUMS = {"full": "every layer", "apq": "APQ's sum"}


@dataclass(frozen=True, slots=True)
class FigureKind:
    """How a figure is measured, and the tolerance in [regression] that it is compared under.

    absolute: whether the tolerance is in the figure's own unit, and not in percent of the baseline.
    """

    measure: FigureSource
    tolerance: str
    higher_is_better: bool = False
    absolute: bool = False


def figure(subject: Subject, name: str) -> Figure:
    """The named figure of the model, measured on the first call.

    Raises: UserError, ExportError or HardwareError where it cannot be had.
    """
    if name not in subject.figures:
        subject.figures[name] = FIGURES[name].measure(subject)
    return subject.figures[name]


def _accuracy(subject: Subject) -> Figure:
    right, count, source = subject.correct()
    return Figure(100 * right / count, "%", f"{right} of {count} images, {source}")


def _size(subject: Subject) -> Figure:
    return Figure(subject.file_bytes(), "bytes", "")


def _modelled(subject: Subject, name: str, unit: str) -> Figure:
    settings = subject.budget.hardware
    found = subject.profile()
    value = found["sums"][settings.sum][name]
    if value is None:
        raise UserError(f"the hardware {found['hardware']} knows no energy; remove the gate or use another hardware")
    return Figure(value, unit, f"{found['hardware']}, {SUMS[settings.sum]}")


def _latency(subject: Subject) -> Figure:
    return _modelled(subject, "latency_ms", "ms")


def _energy(subject: Subject) -> Figure:
    return _modelled(subject, "energy_mj", "mJ")


def _bitops(subject: Subject) -> Figure:
    found = _modelled(subject, "bitops_g", "G")
    return Figure(found.value, found.unit, SUMS[subject.budget.hardware.sum])


def _measured_ms(subject: Subject) -> Figure:
    from exporters.tvm.timing import COMPILED

    timing = next(each for each in subject.timing().timings if each.runtime == COMPILED)
    return Figure(timing.median_ms, "ms", f"{_build(subject)}, median")


def _measured_ratio(subject: Subject) -> Figure:
    from exporters.tvm.timing import COMPILED, ONNXRUNTIME

    return Figure(subject.timing().ratio(COMPILED, ONNXRUNTIME), "of onnxruntime's time", _build(subject))


def _build(subject: Subject) -> str:
    settings = subject.budget.compiled
    built = "the given library" if settings.library is not None else f"compiled for {settings.target}"
    return f"{built}, {settings.threads} thread(s)"


FIGURES = {
    "size_bytes": FigureKind(_size, "size_percent"),
    "bitops_g": FigureKind(_bitops, "bitops_percent"),
    "latency_ms": FigureKind(_latency, "latency_percent"),
    "energy_mj": FigureKind(_energy, "energy_percent"),
    "accuracy_percent": FigureKind(_accuracy, "accuracy_points", higher_is_better=True, absolute=True),
    "measured_ratio": FigureKind(_measured_ratio, "measured_ratio_percent"),
    "measured_ms": FigureKind(_measured_ms, "measured_ms_percent"),
}


def comparable(subject: Subject, name: str, found: Figure) -> str:
    """What must be the same in a baseline for a figure to be compared with it."""
    if name == "accuracy_percent":
        _, count, source = subject.correct()
        return f"{count} images, {source}"
    if name in ("latency_ms", "energy_mj"):
        # a hardware file that was changed costs differently, whatever the network does
        return f"{found.of}, description {subject.profile()['hardware_sha256'][:12]}"
    return found.of
