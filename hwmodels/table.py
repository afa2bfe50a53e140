"""Cost tables: what every layer of a space costs at every precision, with the hardware that the costs come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import Cost
from hwmodels.errors import HardwareError, MissingEntry
from hwmodels.hardware import Entry, Hardware, Setting, checked_costs, description_sha256
from hwmodels.table_file import TableHeader, read_table, tool_version, write_table

# Entries between two reports of progress.
_CHUNK = 512

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class CostArrays:
    """Costs of a list of entries as arrays of shape (n,).

    `energy_mj` and `cycles` are None where any of the entries has none; `measured` and `interpolated` mark the source,
    and what is neither is modelled.
    """

    latency_ms: NDArray[np.float64]
    energy_mj: NDArray[np.float64] | None
    cycles: NDArray[np.int64] | None
    measured: NDArray[np.bool_]
    interpolated: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Costs by layer and precision, with their provenance.

    `description` is the whole hardware as it described itself, `batch` the images that a cost is for, `notes` what else
    is known about the costs (the error of a fit, say), `created` the date and `tool` what wrote them.

    `table[layer, precision]` is one cost; iterating gives the entries in their order.
    """

    hardware_name: str
    description: Mapping[str, Setting]
    costs: Mapping[Entry, Cost]
    batch: int
    created: str
    tool: str
    notes: Mapping[str, str]
    path: Path | None = None

    @property
    def sha256(self) -> str:
        """Hash of the hardware description."""
        return description_sha256(self.description)

    @property
    def has_energy(self) -> bool:
        """Whether every entry has an energy."""
        return all(cost.energy_mj is not None for cost in self.costs.values())

    def __len__(self) -> int:
        return len(self.costs)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.costs)

    def __contains__(self, entry: object) -> bool:
        return entry in self.costs

    def __getitem__(self, entry: Entry) -> Cost:
        """Cost of one entry. Raises: MissingEntry, with the command that adds it."""
        cost = self.costs.get(entry)
        if cost is None:
            raise self._missing([entry])
        return cost

    def missing(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries that the table holds no cost for, each once, in their order."""
        return [entry for entry in dict.fromkeys(entries) if entry not in self.costs]

    def lacks_im2col(self, missing: Iterable[Entry]) -> bool:
        """Whether the first of the missing entries is there, but as a layer that is not unrolled."""
        first = next(iter(missing), None)
        return first is not None and first[0].im2col and (replace(first[0], im2col=False), first[1]) in self.costs

    def lookup(self, entries: Sequence[Entry]) -> CostArrays:
        """Costs of many entries as arrays. Raises: MissingEntry if any is missing, saying how many."""
        try:
            found = [self.costs[entry] for entry in entries]
        except KeyError:
            raise self._missing(self.missing(entries)) from None
        energies = [cost.energy_mj for cost in found]
        all_cycles = [cost.cycles for cost in found]
        return CostArrays(
            np.array([cost.latency_ms for cost in found], dtype=np.float64),
            None if None in energies else np.array(energies, dtype=np.float64),
            None if None in all_cycles else np.array(all_cycles, dtype=np.int64),
            np.array([cost.source == "measured" for cost in found], dtype=np.bool_),
            np.array([cost.source == "interpolated" for cost in found], dtype=np.bool_),
        )

    def _missing(self, entries: Sequence[Entry]) -> MissingEntry:
        layer, precision = entries[0]
        others = f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
        place = f" in {self.path}" if self.path is not None else ""
        if self.lacks_im2col(entries):
            remedy = "the table has it without im2col: measurements mark the first layer of a network by im2col = 1"
        elif self.description.get("model") == "measured":
            remedy = "measure it, add it to the measurements and `apq-deploy lut import FILE -o NEW.csv`"
        else:
            remedy = "build a table of this space: `apq-deploy lut build HARDWARE --space SPACE -o NEW.csv`"
        return MissingEntry(f"no {self.hardware_name} cost for {layer} at {precision}{others}{place}; {remedy}")

    def save(self, path: str | Path) -> None:
        """Writes the table as CSV with a commented header, under a temporary name first."""
        header = TableHeader(
            self.hardware_name, self.description, self.batch, self.created, self.tool, dict(self.notes)
        )
        write_table(Path(path), header, self.costs)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """The table of a file that `save` wrote. Counters and mappings are not kept in files.

        Raises: TableError for another schema, a hash that does not match, and a truncated or garbled file.
        """
        header, costs = read_table(Path(path))
        return cls(
            header.hardware_name,
            header.description,
            costs,
            header.batch,
            header.created,
            header.tool,
            header.notes,
            Path(path),
        )


def make_table(
    hardware_name: str,
    description: Mapping[str, Setting],
    costs: Mapping[Entry, Cost],
    batch: int = 1,
    notes: Mapping[str, str] | None = None,
) -> CostTable:
    """A table of these costs, dated now. Raises: HardwareError for a cost that is negative or not finite."""
    for (layer, precision), cost in costs.items():
        if (fault := cost.fault()) is not None:
            raise HardwareError(f"{hardware_name}: {fault} for {layer} at {precision}; correct the figure")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return CostTable(hardware_name, dict(description), dict(costs), batch, created, tool_version(), dict(notes or {}))


def build_table(
    hardware: Hardware, entries: Iterable[Entry], progress: Progress | None = None, batch: int = 1
) -> CostTable:
    """The table of a hardware model for these entries, repeated ones once.

    `progress(done, total)` is called between chunks. Raises: HardwareError where the model cannot cost an entry.
    """
    wanted = list(dict.fromkeys(entries))
    if not wanted:
        raise HardwareError("a table needs at least one layer, got none; name a space that has layers")
    step = len(wanted) if progress is None else _CHUNK
    costs: dict[Entry, Cost] = {}
    for start in range(0, len(wanted), step):
        part = wanted[start : start + step]
        costs.update(zip(part, checked_costs(hardware, part, batch), strict=True))
        if progress is not None:
            progress(len(costs), len(wanted))
    return make_table(hardware.name, hardware.describe(), costs, batch)
