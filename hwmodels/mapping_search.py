"""The best tiling and loop order of many convolutions at once, by exact pruning.

Every tiling has a lower bound of its cycles that needs no loop order. The tilings of the least bounds give a figure
that the best one cannot exceed; only tilings whose bound does not exceed it are looked at under all orders. Ties in
cycles are kept, so the result is the one of the full search: fewest cycles, then least energy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwmodels.tile_cost import Tiles, counters, cycles, energy_pj, least_cycles, tile_accesses, tiles
from hwmodels.tiling import (
    DEPENDS,
    Problems,
    Tilings,
    Whole,
    all_tilings,
    blocks,
    loop_orders,
    reuse,
    tiling_counts,
    trip_counts,
)

if TYPE_CHECKING:
    from hwmodels.bitfusion import BitFusion

# Tilings worked on at once: a dozen arrays of this many float64 stay within a megabyte-sized cache.
BLOCK_TILINGS = 1 << 13
# Bounds up to this much above the least are tried first. Any value gives the same result; this one is the fastest of
# those tried on the table of APQ's space (1, 1.005, 1.02, 1.05).
PROMISING = 1.02


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """The chosen mapping of each problem: `cycles` and `energy_pj` (n,), `counters` (n_counters, n), `tilings` (n,) and
    `orders` (n, n_loops), innermost loop first."""

    cycles: Whole
    energy_pj: Whole
    counters: Whole
    tilings: Tilings
    orders: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Tilings that fit, with their figures; all arrays end in (n,), `problem` ascending."""

    tilings: Tilings
    problems: Problems
    tiles: Tiles
    trips: Whole
    tile_count: Whole
    least_cycles: Whole

    def take(self, index: NDArray[np.intp]) -> _Candidates:
        tile = self.tiles
        return _Candidates(
            self.tilings.take(index),
            self.problems.take(index),
            Tiles(
                tile.traffic_bits[:, index],
                tile.needed_bits[:, index],
                tile.compute_cycles[index],
                tile.inputs_per_cycle[index],
                tile.passes[index],
                tile.columns[index],
            ),
            self.trips[:, index],
            self.tile_count[index],
            self.least_cycles[index],
        )

    @property
    def compute_cycles(self) -> Whole:
        return self.tiles.compute_cycles * self.tile_count


def _candidates(hardware: BitFusion, problems: Problems) -> _Candidates:
    """Every tiling that fits the buffers, with the lower bound of its cycles."""
    tilings = all_tilings(problems, hardware.cols)
    own = problems.take(tilings.problem)
    tile = tiles(hardware, own, tilings)
    usable = hardware.usable_bits[:, None]
    fits = np.flatnonzero((tile.needed_bits <= usable).all(axis=0))
    tilings, own = tilings.take(fits), own.take(fits)
    tile = Tiles(
        tile.traffic_bits[:, fits],
        tile.needed_bits[:, fits],
        tile.compute_cycles[fits],
        tile.inputs_per_cycle[fits],
        tile.passes[fits],
        tile.columns[fits],
    )
    trips = trip_counts(own, tilings)
    tile_count = trips.prod(axis=0)
    least_bits = tile.traffic_bits * np.stack([trips[depends].prod(axis=0) for depends in DEPENDS])
    bound = least_cycles(hardware, tile.compute_cycles * tile_count, least_bits, tile.traffic_bits)
    return _Candidates(tilings, own, tile, trips, tile_count, bound)


def _firsts(problem: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where each run of equal problem numbers starts."""
    return np.flatnonzero(np.r_[True, problem[1:] != problem[:-1]])


def best_mappings(hardware: BitFusion, problems: Problems) -> Mapped:
    """The mapping of every problem with the fewest cycles, then the least energy.

    Every problem must have a tiling that fits.
    """
    orders = loop_orders(batched=bool((problems.batch > 1).any()))
    parts = [
        _best_of_block(hardware, problems.take(np.arange(len(problems))[block]), orders)
        for block in blocks(tiling_counts(problems, hardware.cols), BLOCK_TILINGS)
    ]
    tilings = [part.tilings for part in parts]
    return Mapped(
        np.concatenate([part.cycles for part in parts]),
        np.concatenate([part.energy_pj for part in parts]),
        np.concatenate([part.counters for part in parts], axis=1),
        Tilings(
            np.arange(len(problems)),
            np.concatenate([each.batch for each in tilings]),
            np.concatenate([each.size for each in tilings]),
            np.concatenate([each.in_channels for each in tilings]),
            np.concatenate([each.out_channels for each in tilings]),
        ),
        np.concatenate([part.orders for part in parts]),
    )


def _cycles(hardware: BitFusion, found: _Candidates, orders: NDArray[np.intp]) -> tuple[Whole, Whole]:
    """Cycles (n_orders, n) of these tilings under every order, and their total traffic (3, n_orders, n)."""
    moved = reuse(found.tiles.traffic_bits, found.tiles.needed_bits, hardware.usable_bits, found.trips, orders)
    return cycles(hardware, found.compute_cycles, moved), moved.total_bits


def _best_of_block(hardware: BitFusion, problems: Problems, orders: NDArray[np.intp]) -> Mapped:
    found = _candidates(hardware, problems)
    starts = _firsts(found.tilings.problem)
    runs = np.diff(np.r_[starts, len(found.tilings)])
    lowest = np.minimum.reduceat(found.least_cycles, starts)
    promising = np.flatnonzero(found.least_cycles <= PROMISING * np.repeat(lowest, runs))
    tried = _cycles(hardware, found.take(promising), orders)[0].min(axis=0)
    reached = np.minimum.reduceat(tried, _firsts(found.tilings.problem[promising]))
    found = found.take(np.flatnonzero(found.least_cycles <= np.repeat(reached, runs)))

    all_cycles, total_bits = _cycles(hardware, found, orders)
    starts = _firsts(found.tilings.problem)
    runs = np.diff(np.r_[starts, len(found.tilings)])
    best = np.minimum.reduceat(all_cycles.min(axis=0), starts)
    tiling, order = np.nonzero((all_cycles == np.repeat(best, runs)).T)

    tied = found.take(tiling)
    counted = counters(
        total_bits[:, order, tiling],
        tile_accesses(hardware, tied.problems, tied.tilings, tied.tiles),
        tied.tile_count,
        tied.compute_cycles,
        all_cycles[order, tiling],
    )
    energy = energy_pj(hardware, counted)
    starts = _firsts(tied.tilings.problem)
    runs = np.diff(np.r_[starts, len(tied.tilings)])
    chosen = np.flatnonzero(energy == np.repeat(np.minimum.reduceat(energy, starts), runs))
    chosen = chosen[_firsts(tied.tilings.problem[chosen])]
    return Mapped(
        all_cycles[order[chosen], tiling[chosen]],
        energy[chosen],
        counted[:, chosen],
        tied.tilings.take(chosen),
        orders[order[chosen]],
    )
