"""The CSV file of a cost table: a commented header with schema, units and hardware, then one line per entry."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path
from typing import Any, cast

from hwmodels.cost import SOURCES, Cost, Source
from hwmodels.errors import TableError
from hwmodels.files import MAX_ROWS, MAX_TABLE_BYTES, read_within
from hwmodels.hardware import Entry, Setting, canonical_json, description_sha256
from hwmodels.layers import ConvLayer, Precision

SCHEMA = "apq-deploy cost table 1"

LAYER_COLUMNS = (
    "in_channels",
    "out_channels",
    "in_size",
    "kernel_size",
    "stride",
    "padding",
    "groups",
    "im2col",
    "weight_bits",
    "act_bits",
)
COST_COLUMNS = ("cycles", "latency_ms", "energy_mj", "source", "spread_ms", "repeats")
COLUMNS = (*LAYER_COLUMNS, *COST_COLUMNS)
_UNITS = (
    "sizes in pixels, bits per operand, cycles of the hardware clock, latency and spread in ms, energy in mJ, "
    "per batch; empty: not known"
)
_REBUILD = "build the table again with `apq-deploy lut build`"


@dataclass(frozen=True, slots=True, eq=False)
class TableHeader:
    """What the header of a table file says."""

    hardware_name: str
    description: Mapping[str, Setting]
    batch: int
    created: str
    tool: str
    notes: Mapping[str, str]


def tool_version() -> str:
    """The tool and its version as files name it."""
    try:
        return f"apq-deploy {version('apq-deploy')}"
    except PackageNotFoundError:
        return "apq-deploy (not installed)"


def write_text(path: Path, text: str) -> None:
    """Writes a text file under a temporary name in the same folder, then renames it.

    Raises: TableError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def entry_cells(layer: ConvLayer, precision: Precision) -> list[str]:
    """The cells of LAYER_COLUMNS."""
    return [
        *(str(getattr(layer, name)) for name in LAYER_COLUMNS[:7]),
        str(int(layer.im2col)),
        str(precision.weight_bits),
        str(precision.act_bits),
    ]


def _cell(value: float | int | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    # also NumPy's numbers, which a class of another package may give
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))


def write_table(path: Path, header: TableHeader, costs: Mapping[Entry, Cost]) -> None:
    """Writes a table file."""
    body = io.StringIO()
    writer = csv.writer(body, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (layer, precision), cost in costs.items():
        writer.writerow(entry_cells(layer, precision) + [_cell(getattr(cost, name)) for name in COST_COLUMNS])
    lines = {
        "schema": SCHEMA,
        "tool": header.tool,
        "created": header.created,
        "units": _UNITS,
        "batch": str(header.batch),
        "hardware_name": json.dumps(header.hardware_name),
        "hardware": canonical_json(header.description),
        "hardware_sha256": description_sha256(header.description),
        "notes": json.dumps(dict(header.notes), sort_keys=True),
        "entries": str(len(costs)),
        "rows_sha256": hashlib.sha256(body.getvalue().encode()).hexdigest(),
    }
    write_text(path, "".join(f"# {key}: {value}\n" for key, value in lines.items()) + body.getvalue())


def read_table(path: Path) -> tuple[TableHeader, dict[Entry, Cost]]:
    """Header and costs of a table file.

    Raises: TableError for a file that cannot be read, another schema, a hash that does not match its description or its
    rows, and rows that are cut off or garbled.
    """
    text = read_text(path)
    lines, body = _split_header(text)
    if "schema" not in lines and "latency" in (names := body.partition("\n")[0].lower()) and "source" not in names:
        raise TableError(
            f"{path}: expected a cost table, got measurements; make a table of them with "
            f"`apq-deploy lut import {path} -o TABLE.csv`"
        )
    if lines.get("schema") != SCHEMA:
        found = lines.get("schema", "no schema line")
        raise TableError(f'{path}: expected schema "{SCHEMA}", got "{found}"; {_REBUILD}')
    try:
        description: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(lines["hardware"]).items()
        }
        header = TableHeader(
            str(json.loads(lines["hardware_name"])),
            description,
            int(lines["batch"]),
            lines["created"],
            lines["tool"],
            {str(key): str(value) for key, value in json.loads(lines["notes"]).items()},
        )
        stated_hash, stated_rows, entries = lines["hardware_sha256"], lines["rows_sha256"], int(lines["entries"])
        found_hash = description_sha256(description)
    except KeyError as error:
        raise TableError(f"{path}: expected a header line {error}, got none; {_REBUILD}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise TableError(f"{path}: the header is garbled ({error}); {_REBUILD}") from None
    if found_hash != stated_hash:
        raise TableError(
            f"{path}: expected the hardware of hash {stated_hash[:12]}, got a description of hash {found_hash[:12]}: "
            f"one of the two was changed; {_REBUILD}"
        )
    costs = _read_rows(path, body)
    if len(costs) != entries:
        raise TableError(f"{path}: expected {entries} entries, got {len(costs)}: the file is cut off; {_REBUILD}")
    if hashlib.sha256(body.encode()).hexdigest() != stated_rows:
        raise TableError(
            f"{path}: expected rows of hash {stated_rows[:12]}, got others: rows were changed after writing; "
            f"{_REBUILD}, or bring your own figures in with `apq-deploy lut import`"
        )
    return header, costs


def read_text(path: Path) -> str:
    """The text of a file, without the mark that Excel puts before it.

    Raises: TableError where there is none, or one larger than any table.
    """
    try:
        return read_within(path, MAX_TABLE_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise TableError(f"{path}: no such table; {_REBUILD.replace('the table again', 'it')}") from None
    except OSError as error:
        raise TableError(f"{path}: expected a readable UTF-8 text file, got: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: expected a readable UTF-8 text file, got: {error}") from None


def check_separator(path: Path, names: Sequence[str]) -> None:
    """Raises: TableError where a header line was not separated by commas."""
    for separator, words in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise TableError(
                f"{path}: expected cells separated by commas, got {words}; save the file with commas between cells and "
                f"points in numbers"
            )


def _split_header(text: str) -> tuple[dict[str, str], str]:
    """The `# key: value` lines, and the rest."""
    lines: dict[str, str] = {}
    start = 0
    while text.startswith("#", start):
        end = text.find("\n", start)
        if end < 0:
            end = len(text)
        key, _, value = text[start + 1 : end].partition(":")
        lines[key.strip()] = value.strip()
        start = min(end + 1, len(text))
    return lines, text[start:]


def _read_rows(path: Path, body: str) -> dict[Entry, Cost]:
    if not body.endswith("\n"):
        raise TableError(f"{path}: expected a last line that is whole, got a file that is cut off; {_REBUILD}")
    rows = csv.reader(io.StringIO(body))
    try:
        names = next(rows)
    except csv.Error as error:
        raise TableError(f"{path}: the names of the columns are garbled: {error}; {_REBUILD}") from None
    check_separator(path, names)
    if tuple(names) != COLUMNS:
        raise TableError(f"{path}: expected the columns {','.join(COLUMNS)}, got {','.join(names)}; {_REBUILD}")
    costs: dict[Entry, Cost] = {}
    try:
        for row in rows:
            if len(row) != len(COLUMNS):
                raise ValueError(f"expected {len(COLUMNS)} cells, got {len(row)}")
            entry = parse_entry(row[: len(LAYER_COLUMNS)])
            if entry in costs:
                raise ValueError(f"{entry[0]} at {entry[1]} stands there twice")
            if len(costs) == MAX_ROWS:
                raise ValueError(f"expected at most {MAX_ROWS} rows")
            costs[entry] = _parse_cost(row[len(LAYER_COLUMNS) :])
    except (ValueError, csv.Error) as error:
        raise TableError(f"{path}: row {rows.line_num} is garbled: {error}; {_REBUILD}") from None
    return costs


def parse_entry(cells: list[str]) -> Entry:
    """Layer and precision of the cells of LAYER_COLUMNS. Raises: ValueError."""
    if cells[7] not in ("0", "1"):
        raise ValueError(f"im2col must be 0 or 1, got {cells[7]!r}")
    sizes = [int(cell) for cell in cells]
    return ConvLayer(*sizes[:7], im2col=cells[7] == "1"), Precision(sizes[8], sizes[9])


def positive(cell: str, name: str, *, or_zero: bool = False) -> float:
    """A finite number above zero. Raises: ValueError naming the column."""
    try:
        value = float(cell)
    except ValueError:
        remedy = f"; write {cell.replace(',', '.')}, with a point" if "," in cell else ""
        raise ValueError(f"{name} must be a number, got {cell!r}{remedy}") from None
    if not math.isfinite(value) or value < 0 or (value == 0 and not or_zero):
        raise ValueError(f"{name} must be a positive number, got {cell!r}")
    return value


def _parse_cost(cells: list[str]) -> Cost:
    all_cycles, latency, energy, source, spread, repeats = cells
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return Cost(
        latency_ms=positive(latency, "latency_ms"),
        energy_mj=positive(energy, "energy_mj", or_zero=True) if energy else None,
        cycles=int(positive(all_cycles, "cycles")) if all_cycles else None,
        source=cast(Source, source),
        spread_ms=positive(spread, "spread_ms", or_zero=True) if spread else None,
        repeats=int(positive(repeats, "repeats")) if repeats else None,
    )
