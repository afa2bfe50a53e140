"""Joint search of architecture, channels and bits within budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apq_deploy.search.accuracy import Accuracy, GeneScorer
from apq_deploy.search.budget import Budget, UnreachableBudget
from apq_deploy.search.choices import FREEZABLE, Choices
from apq_deploy.search.costs import METRICS, SCOPES, Metric, Scope, SpaceCosts
from apq_deploy.search.explain import Explanation, explain, explain_lines
from apq_deploy.search.front import Front
from apq_deploy.search.history import History
from apq_deploy.search.menu import Menu
from apq_deploy.search.result import SearchResult
from apq_deploy.search.run import ALGORITHMS, DEFAULT_ALGORITHM, search
from apq_deploy.search.watch import Evolution, Outcome

if TYPE_CHECKING:
    from apq_deploy.search.pareto import pareto_search

__all__ = [
    "ALGORITHMS",
    "DEFAULT_ALGORITHM",
    "FREEZABLE",
    "METRICS",
    "SCOPES",
    "Accuracy",
    "Budget",
    "Choices",
    "Evolution",
    "Explanation",
    "Front",
    "GeneScorer",
    "History",
    "Menu",
    "Metric",
    "Outcome",
    "Scope",
    "SearchResult",
    "SpaceCosts",
    "UnreachableBudget",
    "explain",
    "explain_lines",
    "pareto_search",
    "search",
]


def __getattr__(name: str) -> Any:
    # pymoo is loaded when a front is asked for, not by every search
    if name == "pareto_search":
        from apq_deploy.search.pareto import pareto_search

        return pareto_search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
