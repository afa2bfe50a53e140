"""Rounds of points that a search chooses, in both arms; their predictors are those of `apq-deploy refine`."""

from __future__ import annotations

from apq_deploy.learn import refine_model
from apq_deploy.predictor.fit import FitSettings
from apq_deploy.workers import Processes
from benchmarks.paper.joint import costs_of
from benchmarks.paper.ledger import Ledger
from benchmarks.paper.plan import ARMS, Plan


def run(plan: Plan, ledger: Ledger) -> None:
    """Measure and fit; the points and what each round told are kept in the model folders, not in the ledger."""
    for arm in ARMS:
        refine_model(
            costs_of(plan, arm), plan.data, plan.model(arm), FitSettings(seed=plan.seed),
            plan.chosen_points, plan.rounds, Processes(plan.workers), plan.device,
        )  # fmt: skip
