"""Processor time of the units that a deployment is made of, each measured a few times on one core."""

from __future__ import annotations

import numpy as np
import torch

from apq_deploy.predictor.fit import FitSettings, fit_correction, fit_float, fit_quantized
from apq_deploy.predictor.store import PointStore, planned_genome
from apq_deploy.search import Budget, search
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.train import PHASES, distillation_loss, sample_archs
from benchmarks.paper.joint import REFINED, costs_of, limit, measure, predictor_of
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import MAIN, Plan
from benchmarks.paper.points import laboratory

UNITS = (*(f"training step, {phase}" for phase in PHASES), "float", "quantized", "fit", "search", "finish")
TIMES = 3
STEPS = 20


def run(plan: Plan, ledger: Ledger) -> None:
    """Every unit, one worker at a time: two would share caches and memory."""
    ledger.fill(plan, "cost", [(unit, n) for unit in UNITS for n in range(-1, TIMES)], measure_unit, workers=1)


def measure_unit(plan: Plan, key: Key) -> Value:
    """Do one unit of work; the ledger notes what it takes. Number -1 loads everything and is left out."""
    unit, n = str(key[0]), int(key[1])
    space, own = plan.space(), laboratory(plan, MAIN)
    if unit.startswith("training step"):
        _steps(plan, unit.removeprefix("training step, "))
        return {"units": STEPS}
    if unit == "fit":
        store = PointStore(plan.model().points, space)
        cheap, dear = store.points("float"), store.points("quantized")
        store.close()
        base = fit_float(space, cheap.genes, cheap.accuracy, FitSettings())
        fit_correction(space, dear.genes, dear.accuracy, base)
        fit_quantized(space, dear.genes, dear.accuracy, FitSettings(), None)
    elif unit in ("search", "finish"):
        costs = costs_of(plan, MAIN)
        most = limit(plan, MAIN, "latency_ms", 0.4)
        if unit == "search":
            search(costs, predictor_of(plan, MAIN, REFINED), Budget(latency_ms=most), seed=max(n, 0))
        else:
            genome = space.sample(1, np.random.default_rng((plan.seed, 50, n + 1)))[0]
            measure(plan, (MAIN, " ".join(map(str, genome)), 0))
    else:
        own.measure(unit, n + 1, planned_genome(space, unit, n + 1, plan.seed))  # type: ignore[arg-type]
    return {"units": 1}


def _steps(plan: Plan, phase: str) -> None:
    """Steps of training from random weights, which take as long as any."""
    space, own, settings = plan.space(), laboratory(plan, MAIN), plan.train
    network = Supernet(space).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters())
    x = own.calibration[0][: settings.batch_size]
    target = torch.zeros(len(x), space.num_classes)
    rng = np.random.default_rng(plan.seed)
    for _ in range(STEPS):
        optimizer.zero_grad()
        n = 1 if phase == "largest" else settings.subnets_per_step
        for arch in sample_archs(space, phase, n, rng):  # type: ignore[arg-type]
            distillation_loss(network(x, arch), target).backward()
        if phase != "largest":
            own.network(x, sample_archs(space, "largest", 1, rng)[0])  # the teacher's part
        optimizer.step()
