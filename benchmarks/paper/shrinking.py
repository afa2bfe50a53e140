"""Progressive shrinking against plain sampling of subnets, and against subnets that are trained alone.

Source: OFA (ICLR 2020), section 4.1, at the size that trains here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from apq_deploy.arch import Arch
from apq_deploy.files import atomic
from apq_deploy.learn import train_model
from apq_deploy.quantize.network import accuracy
from apq_deploy.supernet.data import DataSplits, augment, load_data, to_unit, whole
from apq_deploy.supernet.network import load_supernet
from apq_deploy.supernet.subnet import Subnet, reestimate_batch_norm
from apq_deploy.supernet.train import SUPERNET_SCHEMA, batch_indices, calibration_batches
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import ARMS, MAIN, Plan


def run(plan: Plan, ledger: Ledger) -> None:
    """Train both supernets, measure the same subnets of each, and train some of them alone; test images."""
    ledger.fill(plan, "train", [("shrinking",), ("plain",)], train)
    for arm in ARMS:
        if arm != MAIN and not plan.model(arm).supernet.is_file():
            _give_supernet(plan, arm)
    keys: list[Key] = [(how, n) for n in range(2 + plan.random_subnets) for how in ("shrinking", "plain")]
    ledger.fill(plan, "subnets", keys, measure)
    ledger.fill(plan, "alone", [(n,) for n in range(2, 2 + plan.alone_subnets)], train_alone)


def train(plan: Plan, key: Key) -> Value:
    """Train one supernet; a checkpoint in its folder lets it go on."""
    shrinking = key[0] == "shrinking"
    folder = plan.model() if shrinking else plan.plain
    return train_model(plan.space(), plan.data, folder, replace(plan.train, shrinking=shrinking), plan.device)


def _give_supernet(plan: Plan, arm: str) -> None:
    """The supernet again, under the name of another arm's space; its sample images too."""
    network = load_supernet(plan.space(), plan.model().supernet)
    folder = plan.model(arm)
    folder.path.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    with atomic(folder.supernet) as temporary:
        save_file(tensors, temporary, {"schema": SUPERNET_SCHEMA, "space": plan.space(arm).name})
    with atomic(folder.samples) as temporary:
        temporary.write_bytes(plan.model().samples.read_bytes())


def arch_of(plan: Plan, number: int) -> Arch:
    """The largest subnet, the smallest, then random ones."""
    space = plan.space()
    if number < 2:
        return space.decode(space.extreme(largest=number == 0), quantized=False)
    return space.decode(space.sample(1, np.random.default_rng((plan.seed, 20, number)))[0], quantized=False)


@cache
def _splits(plan: Plan) -> DataSplits:
    return load_data(plan.space(), plan.data)


def measure(plan: Plan, key: Key) -> Value:
    """Test accuracy of one subnet of one supernet, with its own batch-norm statistics."""
    how, number = key
    splits, folder = _splits(plan), plan.model() if how == "shrinking" else plan.plain
    subnet = load_supernet(plan.space(), folder.supernet).extract(arch_of(plan, int(number))).eval()
    return {"percent": _finish(plan, subnet.to(memory_format=torch.channels_last), splits)}  # type: ignore[call-overload]


def train_alone(plan: Plan, key: Key) -> Value:
    """Test accuracy of one subnet trained from random weights, as the largest network is before it shrinks."""
    torch.manual_seed(plan.seed)
    splits = _splits(plan)
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
    return {"percent": _finish(plan, subnet.eval(), splits)}


def _finish(plan: Plan, subnet: Subnet, splits: DataSplits) -> float:
    reestimate_batch_norm(subnet, calibration_batches(splits.train, plan.seed, plan.device))
    test = whole(splits.test)
    return 100 * accuracy(subnet, test.pixels, test.classes)
