"""How far two cost tables are apart, and what a table misses of a space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hwmodels.errors import TableError
from hwmodels.hardware import Entry
from hwmodels.table import CostTable


@dataclass(frozen=True, slots=True)
class ErrorStatistics:
    """Relative errors of predictions, in percent of what they predict, by the measures that nn-Meter reports.

    Source: Zhang et al., "nn-Meter", MobiSys 2021, section 6 (RMSE, RMSPE, 5% and 10% accuracy).
    """

    count: int
    mean_absolute_percent: float
    median_absolute_percent: float
    largest_absolute_percent: float
    mean_percent: float
    rmspe_percent: float
    rmse: float
    within_5_percent: float
    within_10_percent: float


def error_statistics(predicted: ArrayLike, actual: ArrayLike) -> ErrorStatistics:
    """Statistics of predictions (n,) against positive actual figures (n,).

    `mean_percent` is signed: above zero, the predictions are too high. `rmse` has the unit of the figures;
    `within_5_percent` and `within_10_percent` are shares of the entries, in percent.

    Raises: TableError for no entries, and for an actual figure of zero.
    """
    guess, truth = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if truth.size == 0:
        raise TableError(
            "an error needs at least one entry that both sides hold, got none; compare tables of one space"
        )
    if (truth <= 0).any():
        raise TableError("relative errors need positive figures, got a zero or less; drop such entries")
    relative = 100 * (guess - truth) / truth
    size = np.abs(relative)
    return ErrorStatistics(
        count=int(truth.size),
        mean_absolute_percent=float(size.mean()),
        median_absolute_percent=float(np.median(size)),
        largest_absolute_percent=float(size.max()),
        mean_percent=float(relative.mean()),
        rmspe_percent=float(np.sqrt((relative**2).mean())),
        rmse=float(np.sqrt(((guess - truth) ** 2).mean())),
        within_5_percent=float(100 * (size <= 5).mean()),
        within_10_percent=float(100 * (size <= 10).mean()),
    )


@dataclass(frozen=True, slots=True)
class EntryError:
    """One entry of two tables: both latencies and the error of the first, in percent of the second."""

    entry: Entry
    first_ms: float
    second_ms: float
    percent: float


@dataclass(frozen=True, slots=True)
class TableComparison:
    """The first table against the second, which counts as the truth.

    `energy` is None where a shared entry has none in either table, or a truth of zero. `worst` is ordered by the
    size of the error.
    """

    first_name: str
    second_name: str
    shared: int
    only_first: int
    only_second: int
    latency: ErrorStatistics
    energy: ErrorStatistics | None
    worst: tuple[EntryError, ...]


def compare_tables(first: CostTable, second: CostTable, worst: int = 10) -> TableComparison:
    """Error statistics of the first table against the second, over the entries that both hold.

    Raises: TableError where no entry is in both, and where the tables are for different batches.
    """
    if first.batch != second.batch:
        raise TableError(
            f"both tables must be for one batch, got {first.batch} and {second.batch}; build one of them again"
        )
    shared = [entry for entry in first if entry in second]
    if not shared:
        raise TableError(
            f"the tables of {first.hardware_name} and {second.hardware_name} must share entries, got none; "
            f"build both for one space"
        )
    ours, theirs = first.lookup(shared), second.lookup(shared)
    percent = 100 * (ours.latency_ms - theirs.latency_ms) / theirs.latency_ms
    order = np.argsort(-np.abs(percent), kind="stable")[:worst].tolist()
    energy = None
    # A hardware file may leave all energies at zero: then there is nothing to be relative to.
    if ours.energy_mj is not None and theirs.energy_mj is not None and (theirs.energy_mj > 0).all():
        energy = error_statistics(ours.energy_mj, theirs.energy_mj)
    return TableComparison(
        first.hardware_name,
        second.hardware_name,
        len(shared),
        len(first) - len(shared),
        len(second) - len(shared),
        error_statistics(ours.latency_ms, theirs.latency_ms),
        energy,
        tuple(
            EntryError(shared[at], float(ours.latency_ms[at]), float(theirs.latency_ms[at]), float(percent[at]))
            for at in order
        ),
    )


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a table holds of the entries that a space needs, by which source, and of how many it knows no energy."""

    needed: int
    modelled: int
    measured: int
    interpolated: int
    missing: tuple[Entry, ...]
    unused: int
    without_energy: int

    @property
    def covered(self) -> int:
        """Needed entries that the table holds."""
        return self.modelled + self.measured + self.interpolated

    @property
    def percent(self) -> float:
        """Share of the needed entries that the table holds."""
        return 100 * self.covered / self.needed

    @property
    def is_complete(self) -> bool:
        """Whether a search would miss nothing."""
        return not self.missing


def coverage(table: CostTable, entries: Iterable[Entry]) -> Coverage:
    """What the table holds of these entries, each counted once.

    Raises: TableError for no entries.
    """
    needed = list(dict.fromkeys(entries))
    if not needed:
        raise TableError("coverage needs at least one entry, got none; name a space that has layers")
    held = [table[entry] for entry in needed if entry in table]
    sources = [cost.source for cost in held]
    return Coverage(
        needed=len(needed),
        modelled=sources.count("modelled"),
        measured=sources.count("measured"),
        interpolated=sources.count("interpolated"),
        missing=tuple(table.missing(needed)),
        unused=len(table) - len(sources),
        without_energy=sum(cost.energy_mj is None for cost in held),
    )
