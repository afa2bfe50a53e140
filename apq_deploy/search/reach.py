"""Whether any network meets a budget, answered with a network or with a proof.

One limit: the exact minimum. Several: for any weights w >= 0 the least of w . (cost - limit) over all networks is found
exactly (`Menu.least`); where it is positive no network meets all limits (a Lagrangian bound). The networks found on the
way are candidates. Where the bound leaves a gap, an exact enumeration over the positions decides, pruned by the same
bound and by dominance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_deploy.search.budget import Budget, UnreachableBudget, in_words, metric_words
from apq_deploy.search.costs import ROUNDING
from apq_deploy.search.exact import find_within
from apq_deploy.search.menu import Menu
from apq_deploy.space import Genes

BOUND_STEPS = 150
# States that the exact enumeration may hold at a time before it gives up without an answer.
STATE_LIMIT = 20_000


@dataclass(frozen=True)
class Reach:
    """The answer about one set of limits.

    `genome`: a network within all of them, or else the nearest one seen. `reachable` is None where neither a network
    nor a proof was found. `weights`: (n_metrics,), those of the best bound.
    """

    genome: Genes
    reachable: bool | None
    weights: NDArray[np.float64]


def require_reachable(menu: Menu, budget: Budget) -> Genes:
    """A canonical genome within the budget, (n_genes,).

    Raises: UnreachableBudget, with the least that can be reached and its network.
    """
    costs = menu.costs
    bounds = budget.bounds(costs)
    for name, limit in budget.limits.items():
        genome = menu.minimum(name)
        values = costs.of(genome)
        if not costs.fits(genome[None], Budget(**{name: limit}).bounds(costs))[0]:
            raise UnreachableBudget(
                f"no network of {_the_space(menu)} meets {metric_words(name)} <= {in_words(name, limit)}: "
                f"the least reachable is {in_words(name, values[name])}; raise the budget",
                genome,
                values,
            )
    answer = reach(menu, bounds)
    if answer.reachable:
        return answer.genome
    values = costs.of(answer.genome)
    raise UnreachableBudget(_joint_message(menu, budget, answer), answer.genome, values, answer.reachable is False)


def _the_space(menu: Menu) -> str:
    name = repr(menu.costs.space.name)
    scope = ", sums of scope 'apq'" if menu.costs.scope == "apq" else ""
    return (name if menu.choices.is_everything else f"{name} with the frozen choices") + scope


def _joint_message(menu: Menu, budget: Budget, answer: Reach) -> str:
    values = menu.costs.of(answer.genome)
    alone = ", ".join(in_words(n, menu.costs.of(menu.minimum(n))[n]) for n in budget.limits)
    nearest = ", ".join(in_words(name, values[name]) for name in budget.limits)
    verdict = (
        "no network meets" if answer.reachable is False else "found no network, and no proof that there is none, for"
    )
    return (
        f"{verdict} {budget} together in {_the_space(menu)}: the least reachable alone is {alone}; "
        f"the nearest network found has {nearest}; raise one of the limits"
    )


def reach(menu: Menu, bounds: NDArray[np.float64], *, state_limit: int = STATE_LIMIT) -> Reach:
    """Whether any network keeps all `bounds` (n_metrics,), infinity where there is no limit."""
    limited = np.flatnonzero(np.isfinite(bounds))
    weights = np.zeros(len(bounds))
    if not len(limited):
        return Reach(_canonical(menu, menu.least(weights)[0]), True, weights)
    scale = 1.0 / bounds[limited]
    best_weights, best_bound = weights, -np.inf
    nearest, least_excess = menu.least(weights)[0], np.inf
    dual = np.full(len(limited), 1.0 / len(limited))
    for step in range(BOUND_STEPS):
        weights = np.zeros(len(bounds))
        weights[limited] = dual * scale
        genome, value = menu.least(weights)
        relative = menu.costs.totals(genome[None])[0, limited] * scale - 1.0
        if relative.max() < least_excess:
            nearest, least_excess = genome, float(relative.max())
        if menu.costs.fits(genome[None], bounds)[0]:
            return Reach(_canonical(menu, genome), True, weights)
        bound = value - 1.0  # the dual weights sum to 1, so the limits weigh 1
        if bound > best_bound:
            best_weights, best_bound = weights, bound
        if best_bound > ROUNDING or len(limited) == 1:
            break
        # multiplicative weights: limits that were exceeded weigh more
        dual = dual * np.exp(np.clip(relative, -1.0, 1.0) * 4.0 / np.sqrt(1.0 + step))
        dual = np.maximum(dual / dual.sum(), 1e-9)
        dual /= dual.sum()
    if best_bound > ROUNDING:
        return Reach(_canonical(menu, nearest), False, best_weights)
    found, complete = find_within(menu, bounds, best_weights, state_limit)
    if found is not None:
        return Reach(_canonical(menu, found), True, best_weights)
    return Reach(_canonical(menu, nearest), False if complete else None, best_weights)


def _canonical(menu: Menu, genome: Genes) -> Genes:
    return menu.costs.space.canonical(genome[None])[0]
