"""Measurements that a user brings: a CSV of layers with their latency, in a unit that the column names."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwmodels.cost import Cost
from hwmodels.errors import TableError
from hwmodels.files import MAX_ROWS
from hwmodels.hardware import Entry, Setting
from hwmodels.layers import ConvLayer, Precision
from hwmodels.measured import MeasuredDevice, summarise
from hwmodels.settings import nearest
from hwmodels.table import CostTable, make_table
from hwmodels.table_file import LAYER_COLUMNS, check_separator, entry_cells, positive, read_text, write_text

REQUIRED = ("in_channels", "out_channels", "in_size", "kernel_size", "weight_bits", "act_bits")
DEFAULTS = {"stride": 1, "padding": 0, "groups": 1, "im2col": 0}
# Milliseconds and millijoules in one unit. Case is ignored in headers: `energy_mJ` is millijoules.
LATENCY_UNITS = {"latency_s": 1e3, "latency_ms": 1.0, "latency_us": 1e-3, "latency_ns": 1e-6}
ENERGY_UNITS = {"energy_j": 1e3, "energy_mj": 1.0, "energy_uj": 1e-3, "energy_nj": 1e-6}


@dataclass(frozen=True, slots=True, eq=False)
class ImportedTable:
    """A table of imported measurements, of which `rows` were read."""

    table: CostTable
    rows: int


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the figures stand: names of the columns, and the factors to ms and mJ."""

    latency: str
    to_ms: float
    energy: str | None
    to_mj: float


def import_measurements(path: str | Path, device: MeasuredDevice, more: Sequence[Path] = ()) -> ImportedTable:
    """The table of a CSV of measurements, and of `more` of one device: files may have different columns and units.

    A file has a header line; lines that start with # are comments. Columns: those of REQUIRED, any of DEFAULTS, one
    latency column whose name ends in its unit (LATENCY_UNITS), at most one energy column (ENERGY_UNITS). Several rows
    of one layer are repeats: their median is kept, with half the interquartile range as spread. Energy is the mean of
    the repeats where every one has it, and unknown otherwise. The table's description names the files, the hash of what
    they hold and the bit widths that occur.

    Raises: TableError for unknown or missing columns, with the nearest name, and for rows that cannot be read.
    """
    files = [Path(path), *more]
    texts = [read_text(file) for file in files]
    rows = [row for file, text in zip(files, texts, strict=True) for row in _rows(file, text)]
    latencies: dict[Entry, list[float]] = {}
    energies: dict[Entry, list[float | None]] = {}
    for entry, latency_ms, energy_mj in rows:
        latencies.setdefault(entry, []).append(latency_ms)
        energies.setdefault(entry, []).append(energy_mj)
    costs = {entry: _cost(latencies[entry], energies[entry]) for entry in latencies}
    description: dict[str, Setting] = device.describe() | {
        "measurements": ", ".join(file.name for file in files),
        "measurements_sha256": hashlib.sha256("".join(texts).encode()).hexdigest(),
        "weight_bits": tuple(sorted({precision.weight_bits for _, precision in costs})),
        "act_bits": tuple(sorted({precision.act_bits for _, precision in costs})),
    }
    return ImportedTable(make_table(device.name, description, costs), len(rows))


def _rows(file: Path, text: str) -> Iterator[tuple[Entry, float, float | None]]:
    """Entry, latency in ms and energy in mJ of each row of a file."""
    # Blank and comment lines keep their numbers, for the messages.
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(numbered) < 2:
        raise TableError(f"{file}: expected a header line and rows, got {len(numbered)} lines; add measurements")
    if len(numbered) > MAX_ROWS:
        raise TableError(f"{file}: expected at most {MAX_ROWS} lines, got {len(numbered)}; keep the median of repeats")
    try:
        names = [name.strip().lower() for name in next(csv.reader([numbered[0][1]]))]
    except csv.Error as error:
        raise TableError(f"{file}: line {numbered[0][0]}: {error}; correct the line") from None
    check_separator(file, names)
    columns = _columns(file, names)
    for number, line in numbered[1:]:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line]))]
            if len(cells) != len(names):
                more = "; numbers have points, not commas" if len(cells) > len(names) else ""
                raise ValueError(f"expected {len(names)} cells, got {len(cells)}{more}")
            row = dict(zip(names, cells, strict=True))
            entry = _entry(row)
            latency_ms = positive(row[columns.latency], columns.latency) * columns.to_ms
            cell = row[columns.energy] if columns.energy is not None else ""
            energy_mj = positive(cell, str(columns.energy)) * columns.to_mj if cell else None
        except (ValueError, csv.Error) as error:
            raise TableError(f"{file}: line {number}: {error}; correct the line") from None
        yield entry, latency_ms, energy_mj


def write_missing(path: Path, entries: Iterable[Entry]) -> None:
    """Writes entries as a CSV for `import_measurements`, in which the latencies are still to be filled in.

    Raises: TableError if it cannot be written.
    """
    lines = [",".join((*LAYER_COLUMNS, "latency_ms")), *(",".join([*entry_cells(*entry), ""]) for entry in entries)]
    write_text(path, "\n".join(lines) + "\n")


def _cost(latency_ms: Sequence[float], energy_mj: Sequence[float | None]) -> Cost:
    known = [each for each in energy_mj if each is not None]
    energy = float(np.mean(known)) if len(known) == len(energy_mj) else None
    if len(latency_ms) == 1:
        # One figure, perhaps already a median: its spread is unknown, not zero.
        return Cost(latency_ms=latency_ms[0], energy_mj=energy, source="measured")
    return replace(summarise(latency_ms), energy_mj=energy)


def _columns(file: Path, names: Sequence[str]) -> _Columns:
    known = [*REQUIRED, *DEFAULTS, *LATENCY_UNITS, *ENERGY_UNITS]
    for name in names:
        if name not in known:
            units = LATENCY_UNITS if name.startswith("latency") else ENERGY_UNITS if name.startswith("energy") else None
            hint = nearest(name, known) if units is None else f"; the name says the unit: {', '.join(units)}"
            raise TableError(f'{file}: unknown column "{name}"{hint}')
    repeated, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise TableError(f'{file}: expected every column once, got "{repeated}" twice; drop one')
    for name in REQUIRED:
        if name not in names:
            raise TableError(f'{file}: missing column "{name}"; add it to the header and every row')
    latency = [name for name in names if name in LATENCY_UNITS]
    energy = [name for name in names if name in ENERGY_UNITS]
    if len(latency) != 1 or len(energy) > 1:
        raise TableError(
            f"{file}: expected one column of {', '.join(LATENCY_UNITS)} and at most one of {', '.join(ENERGY_UNITS)}, "
            f"got {', '.join(latency + energy) or 'none'}; the name says the unit"
        )
    return _Columns(
        latency[0],
        LATENCY_UNITS[latency[0]],
        energy[0] if energy else None,
        ENERGY_UNITS[energy[0]] if energy else 1.0,
    )


def _whole(cell: str, name: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {cell!r}") from None


def _entry(row: dict[str, str]) -> Entry:
    sizes = {name: _whole(row[name], name) for name in REQUIRED}
    sizes |= {name: _whole(row[name], name) if row.get(name) else default for name, default in DEFAULTS.items()}
    if sizes["im2col"] not in (0, 1):
        raise ValueError(f"im2col must be 0 or 1, got {sizes['im2col']}")
    return (
        ConvLayer(
            sizes["in_channels"],
            sizes["out_channels"],
            sizes["in_size"],
            sizes["kernel_size"],
            sizes["stride"],
            sizes["padding"],
            sizes["groups"],
            im2col=sizes["im2col"] == 1,
        ),
        Precision(sizes["weight_bits"], sizes["act_bits"]),
    )
