"""Tables of measured latencies: timing with warm-up and repeats, a journal to resume from, and a fit for the rest.

What is timed, and how a layer is compiled, is the caller's: anything that yields seconds. Energy stays unknown.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from hwmodels.compare import ErrorStatistics
from hwmodels.cost import Cost
from hwmodels.errors import HardwareError, TableError
from hwmodels.hardware import Entry, Setting, canonical_json
from hwmodels.interpolation import designed_subset, fit_latency, fitted_kind
from hwmodels.layers import ConvLayer, Precision
from hwmodels.table import CostTable, Progress, make_table
from hwmodels.table_file import LAYER_COLUMNS, entry_cells, parse_entry, positive, read_text

# Seconds of one run after another. A generator may compile the layer before its first run; only as many runs are asked
# for as are needed.
Measure = Callable[[ConvLayer, Precision], Iterable[float]]

# Entries with their costs, in any order, as they come in: for measurements on several machines.
Timer = Callable[[Sequence[Entry]], Iterable[tuple[Entry, Cost]]]

_JOURNAL_SCHEMA = "apq-deploy measurement journal 1"
_JOURNAL_COLUMNS = (*LAYER_COLUMNS, "latency_ms", "spread_ms", "repeats")


@dataclass(frozen=True, slots=True)
class TimingPlan:
    """How often a layer is run: the first `warm_up` runs are thrown away, the median of `repeats` is kept."""

    warm_up: int = 3
    repeats: int = 20

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.repeats < 1:
            raise HardwareError(
                f"timing needs a warm_up of at least 0 and at least 1 repeat, got {self.warm_up} and {self.repeats}; "
                f"raise them"
            )


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """What was measured: its name, and every setting that the figures depend on (processor, threads, library, ..)."""

    name: str
    settings: Mapping[str, Setting]

    def describe(self) -> dict[str, Setting]:
        """Every setting by name, as a table's header holds it."""
        return {"model": "measured", "name": self.name} | dict(self.settings)


def summarise(samples_ms: Sequence[float]) -> Cost:
    """Median and half the interquartile range of samples in milliseconds, as a measured cost.

    Raises: HardwareError for no samples, and for times that are not positive.
    """
    samples = np.asarray(samples_ms, dtype=np.float64)
    if samples.size == 0 or not (np.isfinite(samples) & (samples > 0)).all():
        raise HardwareError(f"a measurement needs positive times, got {list(samples_ms)[:5]!r}; check the timer")
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return Cost(
        latency_ms=float(median),
        source="measured",
        spread_ms=float(high - low) / 2,
        repeats=int(samples.size),
    )


def time_entry(measure: Measure, entry: Entry, plan: TimingPlan) -> Cost:
    """The measured cost of one entry.

    Raises: HardwareError where the measurement gives fewer runs than the plan needs.
    """
    wanted = plan.warm_up + plan.repeats
    samples_s = list(islice(measure(*entry), wanted))
    if len(samples_s) < wanted:
        raise HardwareError(
            f"measuring {entry[0]} at {entry[1]} must give {wanted} runs, got {len(samples_s)}; "
            f"lower warm_up or repeats"
        )
    return summarise([each * 1e3 for each in samples_s[plan.warm_up :]])


def measure_entries(
    measure: Measure,
    device: MeasuredDevice,
    entries: Iterable[Entry],
    plan: TimingPlan,
    journal: Path | None = None,
    progress: Progress | None = None,
    timer: Timer | None = None,
) -> dict[Entry, Cost]:
    """Measured costs of all entries, in their order, each timed once.

    With a `journal` every result is on disk before the next layer is begun, and results of an earlier call with the
    same device and plan are not measured again: a killed run loses at most the layer in work. A `timer` takes the place
    of `measure`, one entry after the other.

    Raises: TableError for a journal of another device or plan.
    """
    wanted = list(dict.fromkeys(entries))
    done = {} if journal is None else _open_journal(journal, _identity(device, plan))
    missing = [entry for entry in wanted if entry not in done]
    known = len(wanted) - len(missing)
    if progress is not None and known:
        progress(known, len(wanted))
    found = timer(missing) if timer is not None else ((e, time_entry(measure, e, plan)) for e in missing)
    for position, (entry, cost) in enumerate(found, start=known + 1):
        done[entry] = cost
        if journal is not None:
            _append(journal, entry, cost)
        if progress is not None:
            progress(position, len(wanted))
    return {entry: done[entry] for entry in wanted}


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredTable:
    """A table of measurements, and the cross-validated error of its fit: None where nothing was fitted.

    `from_journal` is how many of the measured entries were timed by an earlier call.
    """

    table: CostTable
    cross_validated: ErrorStatistics | None
    from_journal: int = 0


def measured_table(
    measure: Measure,
    device: MeasuredDevice,
    entries: Iterable[Entry],
    plan: TimingPlan,
    rng: np.random.Generator,
    subset: int | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
    timer: Timer | None = None,
) -> MeasuredTable:
    """The table of a device for these entries.

    `subset` is how many entries are timed, chosen to spread over the space; the others are fitted and marked
    interpolated. None: all are timed.
    """
    wanted = list(dict.fromkeys(entries))
    if not wanted:
        raise HardwareError("a table needs at least one layer, got none; name a space that has layers")
    timed = wanted if subset is None or subset >= len(wanted) else designed_subset(wanted, subset)
    earlier = {} if journal is None else _open_journal(journal, _identity(device, plan))
    measured = measure_entries(measure, device, timed, plan, journal, progress, timer)
    table = make_table(device.name, device.describe() | asdict(plan), measured)
    return replace(interpolate_missing(table, wanted, rng), from_journal=sum(entry in earlier for entry in timed))


def interpolate_missing(table: CostTable, entries: Iterable[Entry], rng: np.random.Generator) -> MeasuredTable:
    """The table with further ones of these entries interpolated by a fit on its measured ones.

    Only at precisions that were measured, of depthwise layers and of others: how a latency follows the bits cannot be
    known from layers of other bits, and the cross-validated error would not tell.
    """
    measured = {entry: cost for entry, cost in table.costs.items() if cost.source == "measured"}
    kinds = set(map(fitted_kind, measured))
    rest = [entry for entry in table.missing(entries) if fitted_kind(entry) in kinds]
    if not rest:
        return MeasuredTable(table, None)
    fit = fit_latency(measured, rng)
    latency_ms = fit.predict_ms(rest).tolist()
    costs = dict(table.costs) | {
        entry: Cost(latency_ms=each, source="interpolated") for entry, each in zip(rest, latency_ms, strict=True)
    }
    error = fit.cross_validated
    notes = {
        "fit": f"{len(rest)} of {len(costs)} entries interpolated from {len(measured)} measured ones",
        "cross_validated_mean_absolute_percent": f"{error.mean_absolute_percent:.2f}",
        "cross_validated_within_5_percent": f"{error.within_5_percent:.1f}",
        "cross_validated_within_10_percent": f"{error.within_10_percent:.1f}",
    }
    return MeasuredTable(
        make_table(table.hardware_name, table.description, costs, table.batch, dict(table.notes) | notes), error
    )


def _identity(device: MeasuredDevice, plan: TimingPlan) -> str:
    return canonical_json(device.describe() | asdict(plan))


def _open_journal(journal: Path, identity: str) -> dict[Entry, Cost]:
    """What a journal holds so far; writes its header where there is none.

    A journal is appended to, not renamed: a line that a kill cut off is dropped here and measured again.
    """
    header = [f"# schema: {_JOURNAL_SCHEMA}", f"# measured: {identity}", ",".join(_JOURNAL_COLUMNS)]
    if not journal.exists():
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text("\n".join(header) + "\n", encoding="utf-8")
        return {}
    text = read_text(journal)
    whole = text[: text.rfind("\n") + 1]
    lines = whole.splitlines()
    if not lines:
        journal.write_text("\n".join(header) + "\n", encoding="utf-8")
        return {}
    if lines[0] != header[0] or lines[2:3] != header[2:3]:
        raise TableError(f"{journal}: expected an {_JOURNAL_SCHEMA}, got another file; name another journal")
    if lines[1] != header[1]:
        raise TableError(
            f"{journal}: expected measurements of {json.loads(identity)['name']} with this plan and these settings, "
            f"got others; name another journal or delete it"
        )
    done: dict[Entry, Cost] = {}
    for number, row in enumerate(csv.reader(lines[3:]), start=4):
        try:
            cells, (latency, spread, repeats) = row[: len(LAYER_COLUMNS)], row[len(LAYER_COLUMNS) :]
            done[parse_entry(cells)] = Cost(
                latency_ms=positive(latency, "latency_ms"),
                source="measured",
                spread_ms=positive(spread, "spread_ms", or_zero=True),
                repeats=int(repeats),
            )
        except (ValueError, IndexError) as error:
            raise TableError(f"{journal}: line {number} is garbled: {error}; delete the line") from None
    if len(whole) < len(text):
        with journal.open("r+b") as file:
            file.truncate(len(whole.encode()))
    return done


def _append(journal: Path, entry: Entry, cost: Cost) -> None:
    cells = [*entry_cells(*entry), repr(cost.latency_ms), repr(cost.spread_ms), str(cost.repeats)]
    with journal.open("a", encoding="utf-8") as file:
        file.write(",".join(cells) + "\n")
        file.flush()
        os.fsync(file.fileno())
