"""Budgets: upper limits on any of the costs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import BudgetError, UserError
from apq_deploy.search.costs import METRICS, Metric, SpaceCosts
from apq_deploy.space import Genes

_WORDS: dict[Metric, tuple[str, str]] = {
    "latency_ms": ("latency", "ms"),
    "energy_mj": ("energy", "mJ"),
    "bitops_g": ("BitOps", "G"),
    "size_kb": ("size", "kB"),
    "macs_m": ("MACs", "M"),
}


def in_words(name: Metric, value: float) -> str:
    """A cost with its unit, to four digits: `2.959 ms`."""
    return f"{value:.4g} {_WORDS[name][1]}" if value < 1000 else f"{value:.0f} {_WORDS[name][1]}"


def unit(name: Metric) -> str:
    """The unit of a metric: `ms`."""
    return _WORDS[name][1]


def metric_words(name: Metric) -> str:
    """What a metric measures: `latency`."""
    return _WORDS[name][0]


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a network may cost; None leaves a cost free.

    Milliseconds, millijoules, 10^9 BitOps, 10^3 bytes of stored weights, 10^6 multiply-accumulates.

    Raises: UserError for a limit that is not a positive number.
    """

    latency_ms: float | None = None
    energy_mj: float | None = None
    bitops_g: float | None = None
    size_kb: float | None = None
    macs_m: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not isfinite(limit) or limit <= 0:
                raise UserError(f"expected a positive number for the budget {name}, got {limit!r}")

    @property
    def limits(self) -> dict[Metric, float]:
        """The limits that are set, by metric."""
        values: dict[Metric, float | None] = {name: getattr(self, name) for name in METRICS}
        return {name: limit for name, limit in values.items() if limit is not None}

    def __str__(self) -> str:
        return ", ".join(f"{metric_words(n)} <= {limit:g} {_WORDS[n][1]}" for n, limit in self.limits.items()) or "none"

    def to_json(self) -> dict[str, float]:
        return {name: limit for name, limit in self.limits.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> Budget:
        """The budget that `to_json` wrote.

        Raises: UserError for an unknown cost or a limit that is no number.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or (unknown := set(data) - known):
            names = unknown if isinstance(data, Mapping) else data
            raise UserError(f"expected a budget out of {', '.join(METRICS)}, got {names!r}")
        return cls(**data)

    def bounds(self, costs: SpaceCosts) -> NDArray[np.float64]:
        """The limits in the order of the costs' metrics, infinity where there is none, (n_metrics,).

        Raises: UserError for a limit on energy that the table does not hold.
        """
        bounds = np.full(len(costs.metrics), np.inf)
        for name, limit in self.limits.items():
            bounds[costs.column(name)] = limit
        return bounds


class UnreachableBudget(BudgetError):
    """No network of the space meets the budget.

    `genome` is the network that comes nearest (the one of least cost, where a single limit is out of reach), `costs`
    what it costs. `proved` says whether it is certain that no network meets the budget; it is not where several limits
    are each within reach and the search for a network that meets all of them ended without either answer.
    """

    def __init__(self, message: str, genome: Genes, costs: Mapping[Metric, float], proved: bool = True) -> None:
        super().__init__(message)
        self.genome = genome
        self.costs = dict(costs)
        self.proved = proved
