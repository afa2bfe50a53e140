"""First populations within a budget, by construction: drawn from the distribution nearest to random sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apq_deploy.search.budget import Budget
from apq_deploy.search.choices import expand_places
from apq_deploy.search.costs import SpaceCosts
from apq_deploy.search.menu import Menu
from apq_deploy.search.reach import require_reachable
from apq_deploy.space import Genes

# Sweeps over the limits, halvings of one weight, rounds of drawing.
SWEEPS = 4
HALVINGS = 14
ROUNDS = 12
# Mean costs between the least and that of random sampling at which a spread population is drawn.
LEVELS = 10


class Seen:
    """Networks that a search has met, each once."""

    def __init__(self, costs: SpaceCosts) -> None:
        self._costs = costs
        self._keys: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def fresh(self, genes: Genes, most: int | None = None) -> Genes:
        """The first `most` genomes whose networks were not met before, nor come earlier among these."""
        return genes[self.fresh_rows(self._costs.used_rows(genes), most)]

    def fresh_rows(self, used: NDArray[np.int64], most: int | None = None) -> NDArray[np.int64]:
        """`fresh` for the used rows of genomes: their indices."""
        if not len(used):
            return np.zeros(0, np.int64)
        keys = np.ascontiguousarray(used, np.int32).view(np.dtype((np.void, 4 * used.shape[1]))).ravel().tolist()
        new: list[int] = []
        for i, key in enumerate(keys):
            if len(new) == most:
                break
            if key not in self._keys:
                self._keys.add(key)
                new.append(i)
        return np.array(new, dtype=np.int64)


def balancing_weights(menu: Menu, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (n_metrics,) >= 0 of the tilt whose mean costs keep `bounds`; zero for limits that do not bind.

    One limit after the other is bisected with the others held, a few times over. It is the dual of the nearest
    distribution to random sampling under limits on its means, which is convex.
    """
    weights = np.zeros(len(bounds))
    for sweep in range(SWEEPS):
        before = weights.copy()
        for metric in np.flatnonzero(np.isfinite(bounds)):
            weights[metric] = _balanced(menu, weights, int(metric), float(bounds[metric]))
        if (sweep and np.allclose(weights, before, rtol=1e-2)) or np.count_nonzero(np.isfinite(bounds)) == 1:
            break
    return weights


def _balanced(menu: Menu, weights: NDArray[np.float64], metric: int, bound: float) -> float:
    """The least weight of one metric, the others held, at which its mean keeps the bound."""

    def mean(weight: float) -> float:
        trial = weights.copy()
        trial[metric] = weight
        return float(menu.tilt(trial).mean[metric])

    if mean(0.0) <= bound:
        return 0.0
    low, high = 0.0, 1.0 / bound
    while mean(high) > bound and high * bound < 1e6:
        low, high = high, 4.0 * high
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean(middle) > bound else (low, middle)
    return high


def feasible_starts(menu: Menu, budget: Budget, n: int, rng: np.random.Generator) -> Genes:
    """Distinct networks within the budget, (at most n, n_genes), at least one.

    They are drawn from the tilted distribution whose mean costs lie at the limits, so about half of the draws fit one
    limit; the others are dropped. If that gives too few, the tilt is sharpened and the networks found are varied block
    by block. Fewer than n come back where the budget leaves hardly any network.

    Raises: UnreachableBudget if no network meets the budget.
    """
    space, bounds = menu.costs.space, budget.bounds(menu.costs)
    reachable = require_reachable(menu, budget)
    weights = balancing_weights(menu, bounds)
    found, seen = np.zeros((0, space.n_genes), np.int8), Seen(menu.costs)
    for number in range(ROUNDS):
        tilt = menu.tilt(weights * (1.0 + 0.25 * number))
        drawn = menu.draw(tilt, 3 * n, rng)
        if number >= 2:
            drawn = np.concatenate([drawn, _varied(menu, np.append(found, reachable[None], axis=0), drawn, rng)])
        fits = drawn[menu.costs.fits(drawn, bounds)]
        found = np.concatenate([found, seen.fresh(fits, n - len(found))])
        if len(found) == n:
            return found
    return np.concatenate([found, seen.fresh(reachable[None])])


def spread_starts(menu: Menu, budget: Budget, metrics: Sequence[str], n: int, rng: np.random.Generator) -> Genes:
    """Distinct networks within the budget, (at most n, n_genes), spread over the whole range of some metrics.

    The cheapest and the dearest network in every metric where the budget allows them, then networks drawn at mean costs
    from the least to that of random sampling, then `feasible_starts`.

    Raises: UnreachableBudget if no network meets the budget.
    """
    costs, bounds = menu.costs, budget.bounds(menu.costs)
    plain = feasible_starts(menu, budget, n, rng)
    random_mean = menu.tilt(np.zeros(len(bounds))).mean
    pieces = [np.stack([extreme(name) for name in metrics for extreme in (menu.minimum, menu.maximum)])]
    for name in metrics:
        column = costs.column(name)
        least = costs.one(name, menu.minimum(name))
        for level in np.linspace(0.0, 1.0, LEVELS + 1)[1:]:
            limits = np.full(len(bounds), np.inf)
            limits[column] = least + level**2 * (min(float(random_mean[column]), float(bounds[column])) - least)
            tilt = menu.tilt(balancing_weights(menu, limits))
            pieces.append(menu.draw(tilt, max(1, n // (LEVELS * len(metrics))), rng))
    drawn = np.concatenate(pieces)
    return Seen(costs).fresh(np.concatenate([drawn[costs.fits(drawn, bounds)], plain]), n)


def _varied(menu: Menu, found: Genes, drawn: Genes, rng: np.random.Generator) -> Genes:
    """Networks of `found`, as many as `drawn`, each with about one block or depth taken from `drawn`."""
    space = menu.costs.space
    base = found[rng.integers(0, len(found), len(drawn))]
    places = space.n_stages + space.n_blocks
    taken = rng.random((len(drawn), places)) < 1.0 / places
    return np.where(expand_places(space, taken), drawn, base)
