"""Subnets trained alone from random weights, for comparison with those that the supernet holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from apq_deploy.supernet.data import augment, to_unit
from apq_deploy.supernet.subnet import Subnet
from apq_deploy.supernet.train import batch_indices
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import Plan
from benchmarks.paper.shrinking import arch_of, splits_of, test_percent


def run(plan: Plan, ledger: Ledger) -> None:
    """The first of the random subnets, each trained alone."""
    ledger.fill(plan, "alone", [(n,) for n in range(2, 2 + plan.alone_subnets)], train_alone)


def train_alone(plan: Plan, key: Key) -> Value:
    """Test accuracy of one subnet trained from random weights, as the largest network is before it shrinks."""
    torch.manual_seed(plan.seed)
    splits = splits_of(plan)
    settings = replace(plan.train, largest_steps=plan.alone_steps)
    subnet = Subnet(plan.space(), arch_of(plan, int(key[0]))).to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in subnet.parameters() if p.ndim > 1]
    others = [p for p in subnet.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    )
    subnet.train()
    for step in range(plan.alone_steps):
        rng = np.random.default_rng((plan.seed, 21, step))
        chosen = batch_indices(len(splits.train), settings.batch_size, step, (plan.seed, 22))
        x = to_unit(augment(splits.train.images(chosen), rng), plan.device)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate("largest", step)
        optimizer.zero_grad()
        F.cross_entropy(subnet(x), splits.train.labels(chosen).to(plan.device)).backward()
        torch.nn.utils.clip_grad_norm_(subnet.parameters(), 5.0)
        optimizer.step()
    return {"percent": test_percent(plan, subnet.eval(), splits)}
