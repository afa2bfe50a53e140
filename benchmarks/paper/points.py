"""The predictors' points of both arms, and fine-tuning again with other seeds, which tells how noisy a label is."""

from __future__ import annotations

import copy
from functools import cache

import torch

from apq_deploy.predictor.collect import CLIP_IMAGES, Laboratory, collect
from apq_deploy.predictor.store import GROUP, Kind, PointStore, is_held_out, planned_genome
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.finetune import FinetuneSettings
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.supernet.data import load_data
from apq_deploy.supernet.network import load_supernet
from apq_deploy.supernet.subnet import reestimate_batch_norm
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import ARMS, MAIN, QUANTIZED_POINTS, Plan


def run(plan: Plan, ledger: Ledger) -> None:
    """Collect every point, then repeat some held-out ones."""
    for arm in ARMS:
        counts: dict[Kind, int] = {"float": plan.float_points if arm == MAIN else 0, "quantized": QUANTIZED_POINTS[arm]}
        space, model = plan.space(arm), plan.model(arm)
        store = collect(space, model.supernet, plan.data, model.points, counts, plan.collect, plan.workers, plan.device)
        if arm != MAIN:
            _give_float_points(plan, store)
        store.close()
    keys = [(arm, n, again) for arm in ARMS for n in repeated(plan, arm) for again in range(1, plan.repeats + 1)]
    ledger.fill(plan, "repeats", keys, measure_again)


def repeated(plan: Plan, arm: str) -> list[int]:
    """Numbers of the points that are fine-tuned again: held-out ones with architecture and bits at random."""
    numbers = [n for n in range(QUANTIZED_POINTS[arm]) if is_held_out("quantized", n) and n % GROUP < GROUP // 2]
    return numbers[: plan.repeated_points]


def _give_float_points(plan: Plan, store: PointStore) -> None:
    """Bits change nothing in full precision: the points of the main arm are those of every arm."""
    source = PointStore(plan.model().points, plan.space())
    points = source.points("float")
    source.close()
    for number, genome, accuracy, seconds in zip(
        points.index.tolist(), points.genes, points.accuracy.tolist(), points.seconds.tolist(), strict=True
    ):
        assert (genome == planned_genome(store.space, "float", number, plan.seed)).all()
        store.add("float", number, genome, accuracy, seconds)


@cache
def laboratory(plan: Plan, arm: str) -> Laboratory:
    """Where the networks of an arm are measured."""
    space = plan.space(arm)
    network = load_supernet(space, plan.model(arm).supernet)
    return Laboratory(network, load_data(space, plan.data), plan.collect, plan.device)


def measure_again(plan: Plan, key: Key) -> Value:
    """The label of a quantized point after fine-tuning on other batches."""
    arm, number, again = str(key[0]), int(key[1]), int(key[2])
    own, space = laboratory(plan, arm), plan.space(arm)
    subnet = own.subnet(space.decode(planned_genome(space, "quantized", number, plan.seed)))
    network = QuantizedSubnet(copy.deepcopy(subnet))
    with torch.no_grad():
        calibrate(network, [own.calibration[0][:CLIP_IMAGES]])
        reestimate_batch_norm(network, own.calibration)
    settings = FinetuneSettings(plan.collect.finetune_steps, plan.collect.batch_size, seed=1_000_000 * again + number)
    own.finetune(network, subnet, settings)
    return {"accuracy": own.accuracy(network)}
