"""Candidate tilings and loop orders of a convolution, and how often each operand is fetched under them.

Whole numbers are held as float64 here, which is exact below 2**53 and several times faster to divide than int64.
Source: Sharma et al., "Bit Fusion", ISCA 2018, section 5 (loop tiling and ordering), in the form that reproduces the
published tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.float64]

LOOPS = ("batch", "rows", "columns", "in_channels", "out_channels")
# Which loops each operand depends on: weights, activations, outputs; columns as in LOOPS.
DEPENDS = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]], dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Problems:
    """Dense convolutions, one per position of each array; all arrays have shape (n,)."""

    batch: Whole
    in_channels: Whole
    out_channels: Whole
    out_size: Whole
    kernel_size: Whole
    stride: Whole
    im2col: NDArray[np.bool_]
    weight_bits: Whole
    act_bits: Whole

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index: NDArray[np.intp]) -> Problems:
        """The problems at these positions, in their order."""
        return Problems(*(getattr(self, column.name)[index] for column in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Tilings:
    """Tile sizes, one tiling per position; `problem` says which problem it belongs to, in ascending order."""

    problem: NDArray[np.intp]
    batch: Whole
    size: Whole
    in_channels: Whole
    out_channels: Whole

    def __len__(self) -> int:
        return len(self.problem)

    def take(self, index: NDArray[np.intp]) -> Tilings:
        """The tilings at these positions, in their order."""
        return Tilings(*(getattr(self, column.name)[index] for column in fields(self)))


def doublings(full: Whole, first: Whole) -> NDArray[np.intp]:
    """How many tile sizes `first, 2 first, 4 first, .. full` there are, the last capped at the full size: (n,)."""
    ratio = np.ceil(full / first).astype(np.int64)
    # bit_length(ratio - 1): exact, unlike a logarithm.
    return (np.frexp((ratio - 1).astype(np.float64))[1] + 1).astype(np.intp)


def first_out_channels(problems: Problems, cols: int) -> Whole:
    """Smallest tile of output channels, before capping: the columns of the array, or 1 with im2col."""
    return np.where(problems.im2col, 1.0, float(cols))


def smallest_tilings(problems: Problems, cols: int) -> Tilings:
    """The smallest tiling of every problem. No other tiling needs less of any buffer."""
    one = np.ones(len(problems))
    smallest = np.minimum(first_out_channels(problems, cols), problems.out_channels)
    return Tilings(np.arange(len(problems)), one, one, one, smallest)


def tiling_counts(problems: Problems, cols: int) -> NDArray[np.intp]:
    """How many tilings each problem has, fitting or not: (n,)."""
    one = np.ones(len(problems))
    return (
        doublings(problems.batch, one)
        * doublings(problems.out_size, one)
        * doublings(problems.in_channels, one)
        * doublings(problems.out_channels, first_out_channels(problems, cols))
    )


def all_tilings(problems: Problems, cols: int) -> Tilings:
    """Every tiling of every problem. The kernel is never tiled, and a tile of pixels is square."""
    one = np.ones(len(problems))
    first = first_out_channels(problems, cols)
    counts = tiling_counts(problems, cols)
    problem = np.repeat(np.arange(len(problems)), counts)
    rest = np.arange(len(problem)) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes: list[Whole] = []
    for full, start in (
        (problems.out_channels, first),
        (problems.in_channels, one),
        (problems.out_size, one),
        (problems.batch, one),
    ):
        count = doublings(full, start)[problem]
        quotient = rest // count
        sizes.append(np.minimum(np.ldexp(start[problem], rest - quotient * count), full[problem]))
        rest = quotient
    out_channels, in_channels, size, batch = sizes
    return Tilings(problem, batch, size, in_channels, out_channels)


def trip_counts(problems: Problems, tilings: Tilings) -> Whole:
    """Trips of each loop over tiles: (5, n), rows as in LOOPS. `problems` are those of the tilings, one each."""
    pixels = np.ceil(problems.out_size / tilings.size)
    return np.stack(
        [
            np.ceil(problems.batch / tilings.batch),
            pixels,
            pixels,
            np.ceil(problems.in_channels / tilings.in_channels),
            np.ceil(problems.out_channels / tilings.out_channels),
        ]
    )


@cache
def loop_orders(batched: bool) -> NDArray[np.intp]:
    """Distinct loop orders, innermost first, as positions in LOOPS: (12, 4), or (60, 5) with a loop over the batch.

    Rows and columns have equal trips, so orders that differ by their exchange cost the same and only one is listed;
    a loop of one trip changes nothing anywhere, so the batch loop is left out where it has one trip.
    """
    loops = range(len(LOOPS)) if batched else range(1, len(LOOPS))
    rows, columns = LOOPS.index("rows"), LOOPS.index("columns")
    orders = np.array([order for order in permutations(loops) if order.index(rows) < order.index(columns)])
    orders.setflags(write=False)
    return orders


@dataclass(frozen=True, slots=True, eq=False)
class Reuse:
    """Bits moved in total, and bits of the largest resident set, by operand and order: both (3, n_orders, n)."""

    total_bits: Whole
    resident_bits: Whole


def reuse(traffic_bits: Whole, needed_bits: Whole, usable_bits: Whole, trips: Whole, orders: NDArray[np.intp]) -> Reuse:
    """Traffic of every tiling under every loop order, with each operand kept in its buffer as long as it fits.

    From the innermost loop outwards: a loop that an operand depends on multiplies its traffic and what it needs of its
    buffer; a loop that it does not depend on is free while the operand is resident, and repeats the traffic after that.

    Shapes: `traffic_bits` and `needed_bits` of one tile (3, n), rows weights, activations, outputs; `usable_bits` (3,);
    `trips` (5, n); `orders` (n_orders, n_loops).
    """
    shape = (3, len(orders), trips.shape[1])
    total = np.broadcast_to(traffic_bits[:, None, :], shape).copy()
    needed = np.broadcast_to(needed_bits[:, None, :], shape).copy()
    usable = usable_bits[:, None, None]
    resident = total.copy()
    fits = needed <= usable
    for loop in orders.T:
        trip = trips[loop]
        depends = DEPENDS[:, loop, None]
        np.multiply(total, trip, out=total, where=depends | ~fits)
        np.multiply(needed, trip, out=needed, where=depends)
        np.less_equal(needed, usable, out=fits)
        np.copyto(resident, total, where=fits)
    return Reuse(total, resident)


def blocks(counts: NDArray[np.intp], limit: int) -> Iterator[slice]:
    """Consecutive runs of problems whose tilings number at most `limit` together, or single problems beyond that."""
    start, held = 0, 0
    for position, count in enumerate(counts.tolist()):
        if held and held + count > limit:
            yield slice(start, position)
            start, held = position, 0
        held += count
    if held:
        yield slice(start, len(counts))
