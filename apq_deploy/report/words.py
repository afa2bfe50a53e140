"""Numbers with their units as a reader likes them: four digits, a fitting prefix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit to show values in: `factor` of it make one of the unit that the values come in."""

    name: str
    factor: float

    def text(self, value: float, digits: int = 3) -> str:
        return f"{number(value * self.factor, digits)} {self.name}"


def number(value: float, digits: int = 4) -> str:
    """To so many digits, never in powers of ten from 1e-4 up: `0.0493`, `18470`."""
    text = f"{value:.{digits}g}"
    if "e" in text and abs(value) >= 1:
        return f"{value:.0f}"
    return text


def _fitting(values: Iterable[float], units: Sequence[Unit]) -> Unit:
    """The first, coarsest unit in which the largest value is at least 0.1."""
    largest = max((abs(value) for value in values), default=0.0)
    for unit in units:
        if largest * unit.factor >= 0.1:
            return unit
    return units[-1] if largest else units[0]


def time_unit(milliseconds: Iterable[float]) -> Unit:
    """A unit for times that come in ms."""
    return _fitting(milliseconds, (Unit("ms", 1.0), Unit("µs", 1e3), Unit("ns", 1e6)))


def energy_unit(millijoules: Iterable[float]) -> Unit:
    """A unit for energies that come in mJ."""
    return _fitting(millijoules, (Unit("mJ", 1.0), Unit("µJ", 1e3), Unit("nJ", 1e6)))


def duration(seconds: float) -> str:
    """`42.1 s`, `15.1 min`, `3.2 h`."""
    if seconds < 120:
        return f"{number(seconds, 3)} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """Bytes in kB or MB, powers of ten."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    return f"{number(n_bytes / 1e3)} kB" if n_bytes < 1e6 else f"{number(n_bytes / 1e6)} MB"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * share:.{digits}f} %"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
