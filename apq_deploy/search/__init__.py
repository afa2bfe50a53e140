"""Joint search of architecture, channels and bits within budgets."""

from __future__ import annotations

from apq_deploy.search.accuracy import Accuracy, GeneScorer
from apq_deploy.search.budget import Budget, UnreachableBudget
from apq_deploy.search.choices import FREEZABLE, Choices
from apq_deploy.search.costs import METRICS, SCOPES, Metric, Scope, SpaceCosts
from apq_deploy.search.history import History
from apq_deploy.search.menu import Menu
from apq_deploy.search.result import SearchResult
from apq_deploy.search.run import ALGORITHMS, search
from apq_deploy.search.watch import Evolution, Outcome

__all__ = [
    "ALGORITHMS",
    "FREEZABLE",
    "METRICS",
    "SCOPES",
    "Accuracy",
    "Budget",
    "Choices",
    "Evolution",
    "GeneScorer",
    "History",
    "Menu",
    "Metric",
    "Outcome",
    "Scope",
    "SearchResult",
    "SpaceCosts",
    "UnreachableBudget",
    "search",
]
