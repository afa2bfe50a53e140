"""Exact search for a network within several limits: partial networks, position by position, pruned and merged.

A multiple-choice knapsack with several constraints. A partial network is dropped if some limit is out of reach even
with the cheapest rest, if the Lagrangian bound of the rest is (so with good weights few are left), or if another
partial network with the same positions behind it costs no more in every limited metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_deploy.search.costs import ROUNDING
from apq_deploy.search.menu import Menu
from apq_deploy.space import Genes

# Pairs of partial network and block formed at a time.
CHUNK = 1_000_000
# Partial networks that each one is compared with, where more than two costs are limited.
CHAMPIONS = 256


@dataclass(frozen=True)
class _Partial:
    """`sums`: (n, limited costs + 1), relative to the limits, the weighted sum last; `rows`: chosen blocks."""

    sums: NDArray[np.float64]
    rows: NDArray[np.int32]
    depths: NDArray[np.int8]

    def keep(self, which: NDArray[np.int64]) -> _Partial:
        return _Partial(self.sums[which], self.rows[which], self.depths[which])


def find_within(
    menu: Menu, bounds: NDArray[np.float64], weights: NDArray[np.float64], state_limit: int
) -> tuple[Genes | None, bool]:
    """A genome (n_genes,) that keeps all bounds or None, and whether None is proved.

    `bounds`, `weights`: (n_metrics,), the weights zero where the bound is infinite. Beyond `state_limit` partial
    networks only those nearest to the bounds are followed, and None proves nothing.
    """
    space = menu.costs.space
    limited = np.flatnonzero(np.isfinite(bounds))
    to_relative = np.zeros((len(bounds), len(limited) + 1))
    to_relative[limited, np.arange(len(limited))] = 1.0 / bounds[limited]
    to_relative[:, -1] = weights
    limit = np.append(np.ones(len(limited)), weights[limited] @ bounds[limited]) * (1.0 + ROUNDING)
    options = [costs @ to_relative for costs in menu.group_costs]
    cheapest = [option.min(axis=0) for option in options]
    rest, within_stage = _rests(menu, cheapest)
    slack = limit[-1] - (menu.costs.constant @ to_relative)[-1] - rest[0][-1]
    kept = [_worthwhile(option, float(option[:, -1].min() + slack)) for option in options]
    state = _Partial(
        (menu.costs.constant @ to_relative)[None],
        np.zeros((1, space.n_blocks), np.int32),
        np.zeros((1, space.n_stages), np.int8),
    )
    complete = True
    for stage, positions in enumerate(menu.stage_positions):
        ended: list[_Partial] = []
        values = menu.depth_values[stage].tolist()
        for count, position in enumerate(positions[: max(values)].tolist(), 1):
            group = menu.group_of[position]
            room = limit - rest[stage + 1] - within_stage[stage][count]
            state = _extend(state, position, options[group], kept[group], room)
            state, whole = _thin(state, state_limit)
            complete &= whole
            if count in values:
                done = state.keep(np.flatnonzero((state.sums <= limit - rest[stage + 1]).all(axis=1)))
                done.depths[:, stage] = menu.depth_choices[stage][values.index(count)]
                ended.append(done)
        state, whole = _thin(_joined(ended), state_limit)
        complete &= whole
        if not len(state.sums):
            return None, complete
    found = _genome(menu, state, bounds)
    return found, complete and found is not None  # networks within rounding of a limit prove nothing


def _rests(
    menu: Menu, cheapest: list[NDArray[np.float64]]
) -> tuple[list[NDArray[np.float64]], list[list[NDArray[np.float64]]]]:
    """The least of each sum over the stages from each one on, and within a stage after each number of its blocks."""
    within: list[list[NDArray[np.float64]]] = []
    for stage, positions in enumerate(menu.stage_positions):
        steps = [cheapest[menu.group_of[p]] for p in positions]
        prefix = np.concatenate([np.zeros((1, len(steps[0]))), np.cumsum(steps, axis=0)])
        values = menu.depth_values[stage]
        within.append(
            [prefix[values[values >= count]].min(axis=0) - prefix[count] for count in range(int(values.max()) + 1)]
        )
    rest = [np.zeros_like(cheapest[0])]
    for stage in reversed(within):
        rest.insert(0, rest[0] + stage[0])
    return rest, within


def _worthwhile(option: NDArray[np.float64], most: float) -> NDArray[np.int64]:
    """Indices of the blocks that the bound leaves and no other dominates."""
    index = np.flatnonzero(option[:, -1] <= most * (1.0 + ROUNDING) + ROUNDING)
    return index[_undominated(option[index])]


def _undominated(sums: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of rows that no other row undercuts: all of them dropped safely for two limits, most of them for more."""
    limited = sums[:, :-1]
    if limited.shape[1] <= 2:
        order = np.lexsort(limited.T[::-1])
        second = limited[order, -1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return order[second < before]
    order = np.argsort(limited.sum(axis=1), kind="stable")
    ranked = limited[order]
    alive = np.ones(len(ranked), np.bool_)
    for number in range(min(CHAMPIONS, len(ranked))):
        if alive[number]:
            beaten = (ranked[number] <= ranked[number + 1 :]).all(axis=1)
            alive[number + 1 :] &= ~beaten
    return order[alive]


def _extend(
    state: _Partial, position: int, option: NDArray[np.float64], kept: NDArray[np.int64], room: NDArray[np.float64]
) -> _Partial:
    """Every partial network with every kept block added, those that fit into `room`."""
    step = max(1, CHUNK // max(1, len(kept)))
    pieces = []
    for start in range(0, max(1, len(state.sums)), step):
        sums = state.sums[start : start + step, None] + option[kept]
        parent, choice = np.nonzero((sums <= room).all(axis=2))
        rows = state.rows[start + parent]
        rows[:, position] = kept[choice]
        piece = _Partial(sums[parent, choice], rows, state.depths[start + parent])
        pieces.append(piece.keep(_undominated(piece.sums)))
    return _joined(pieces)


def _thin(state: _Partial, state_limit: int) -> tuple[_Partial, bool]:
    """The partial networks that none dominates, at most `state_limit`, and whether that was all of them."""
    state = state.keep(_undominated(state.sums))
    if len(state.sums) <= state_limit:
        return state, True
    return state.keep(np.argsort(state.sums[:, -1], kind="stable")[:state_limit]), False


def _joined(pieces: list[_Partial]) -> _Partial:
    return _Partial(
        np.concatenate([piece.sums for piece in pieces]),
        np.concatenate([piece.rows for piece in pieces]),
        np.concatenate([piece.depths for piece in pieces]),
    )


def _genome(menu: Menu, state: _Partial, bounds: NDArray[np.float64]) -> Genes | None:
    """The first of the whole networks that keeps the bounds when its costs are summed the usual way."""
    space = menu.costs.space
    order = np.argsort(state.sums[:, :-1].max(axis=1), kind="stable")
    genes = np.zeros((len(order), space.n_genes), np.int8)
    depths, blocks = space.split(genes)
    depths[:] = state.depths[order]
    for position, group in enumerate(menu.group_of):
        rows = menu.groups[group][state.rows[order, position]]
        blocks[:, position] = menu.costs.block_genes(position, rows)
    fits = menu.costs.fits(genes, bounds)
    return genes[int(fits.argmax())] if fits.any() else None
