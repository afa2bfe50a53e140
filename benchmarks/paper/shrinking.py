"""Progressive shrinking against plain sampling of subnets.

Source: OFA (ICLR 2020), section 4.1, at the size that trains here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from safetensors.torch import save_file

from apq_deploy.arch import Arch
from apq_deploy.files import atomic
from apq_deploy.learn import train_model
from apq_deploy.quantize.network import accuracy
from apq_deploy.supernet.data import DataSplits, load_data, whole
from apq_deploy.supernet.network import load_supernet
from apq_deploy.supernet.subnet import Subnet, reestimate_batch_norm
from apq_deploy.supernet.train import SUPERNET_SCHEMA, calibration_batches
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import ARMS, MAIN, Plan


def run(plan: Plan, ledger: Ledger) -> None:
    """Train both supernets, measure the same subnets of each; test images."""
    ledger.fill(plan, "train", [("shrinking",), ("plain",)], train)
    for arm in ARMS:
        if arm != MAIN and not plan.model(arm).supernet.is_file():
            _give_supernet(plan, arm)
    keys: list[Key] = [(how, n) for n in range(2 + plan.random_subnets) for how in ("shrinking", "plain")]
    ledger.fill(plan, "subnets", keys, measure)


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
        save_file(tensors, temporary, {"schema": SUPERNET_SCHEMA, **plan.space(arm).identity})
    with atomic(folder.samples) as temporary:
        temporary.write_bytes(plan.model().samples.read_bytes())


def arch_of(plan: Plan, number: int) -> Arch:
    """The largest subnet, the smallest, then random ones."""
    space = plan.space()
    if number < 2:
        return space.decode(space.extreme(largest=number == 0), quantized=False)
    return space.decode(space.sample(1, np.random.default_rng((plan.seed, 20, number)))[0], quantized=False)


@cache
def splits_of(plan: Plan) -> DataSplits:
    """The data set, loaded once per process."""
    return load_data(plan.space(), plan.data)


def measure(plan: Plan, key: Key) -> Value:
    """Test accuracy of one subnet of one supernet, with its own batch-norm statistics."""
    how, number = key
    splits, folder = splits_of(plan), plan.model() if how == "shrinking" else plan.plain
    subnet = load_supernet(plan.space(), folder.supernet).extract(arch_of(plan, int(number))).eval()
    return {"percent": test_percent(plan, subnet.to(memory_format=torch.channels_last), splits)}  # type: ignore[call-overload]


def test_percent(plan: Plan, subnet: Subnet, splits: DataSplits) -> float:
    """Accuracy on the test images, batch-norm statistics re-estimated."""
    reestimate_batch_norm(subnet, calibration_batches(splits.train, plan.seed, plan.device))
    test = whole(splits.test)
    return 100 * accuracy(subnet, test.pixels, test.classes)
