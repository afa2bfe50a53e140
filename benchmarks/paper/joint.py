"""Joint search against staged pipelines and fixed networks, each at the same budgets, measured by the exported file.

Source: APQ (CVPR 2020), figures 5 and 6 and table 2. Where the paper names other systems, their place is taken by a
search with some choices held fixed: ProxylessNAS by an architecture search at 8 bits, AMC by a search of widths, HAQ by
a search of bits.
"""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from apq_deploy.predictor.collect import CLIP_IMAGES
from apq_deploy.predictor.fit import FitSettings, fit_quantized
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.store import PointStore
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.finetune import FinetuneSettings
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.search import Budget, SpaceCosts, UnreachableBudget, search
from apq_deploy.search.costs import Metric
from apq_deploy.space import Genes, SearchSpace
from apq_deploy.supernet.data import load_data, to_unit, whole
from apq_deploy.supernet.subnet import reestimate_batch_norm
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import ARMS, Plan
from benchmarks.paper.points import laboratory
from exporters.onnx_writer import write_onnx
from exporters.runtime import run_onnx
from hwmodels import load_hardware

LIMITED: tuple[Metric, ...] = ("latency_ms", "energy_mj", "bitops_g")
HARDWARE = "bitfusion"
# Of the final budget: ProxylessNAS has 13.14 ms, pruned by AMC 9.77 ms, quantized by HAQ 8.45 ms. Source: APQ, table 2.
ARCHITECTURE_SHARE, WIDTH_SHARE = 13.14 / 8.45, 9.77 / 8.45
NETWORKS = ("largest", "middle", "smallest")
UNTRANSFERRED = "joint without transfer"
REFINED = ", refined"
"""What follows the name of a method that searches by the refined predictor."""
WITH_REFINED = tuple(name + REFINED for name in ("joint", "staged", "uniform 8 bit"))


def methods(arm: str) -> list[str]:
    """What is compared, by name."""
    uniform = [f"uniform {bits} bit" for bits in reversed(ARMS[arm])]
    return ["joint", UNTRANSFERRED, "staged", *(f"bits of the {name}" for name in NETWORKS), *uniform, *WITH_REFINED]


def run(plan: Plan, ledger: Ledger) -> None:
    """Search at every budget, fine-tune and measure what was found."""
    keys: list[Key] = [
        (arm, metric, share, method)
        for arm in ARMS
        for metric in LIMITED
        for share in plan.budget_shares
        for method in methods(arm)
    ]
    found = ledger.fill(plan, "search", keys, search_one)
    networks: list[Key] = [
        (str(key[0]), " ".join(map(str, value["genome"])), seed)
        for arm in ARMS
        for seed in range(plan.seeds)
        for key in keys
        if key[0] == arm and "genome" in (value := found[key])
    ]
    ledger.fill(plan, "final", networks, measure)


@cache
def costs_of(plan: Plan, arm: str) -> SpaceCosts:
    return SpaceCosts.from_hardware(plan.space(arm), load_hardware(HARDWARE), "full")


def limit(plan: Plan, arm: str, metric: Metric, share: float) -> float:
    """The budget that a share of random networks meets, to three digits."""
    costs = costs_of(plan, arm)
    genes = costs.space.sample(10_000, np.random.default_rng((plan.seed, 40)))
    return float(f"{np.quantile(costs.totals(genes)[:, costs.column(metric)], share):.3g}")


@cache
def predictor_of(plan: Plan, arm: str, kind: str) -> Predictor:
    """The predictor that a method searches by: the paper's transfer, but where its name says otherwise."""
    space, model = plan.space(arm), plan.model(arm)
    if kind == REFINED:
        return Predictor.load(model.predictor, space)
    store = PointStore(model.points, space)
    points = store.points("quantized")
    store.close()
    used = ~points.held_out
    source = None if kind == UNTRANSFERRED else Predictor.load(model.float_predictor, space)
    return fit_quantized(space, points.genes[used], points.accuracy[used], FitSettings(seed=plan.seed), source)


def network(space: SearchSpace, name: str) -> Genes:
    """The largest, the smallest, or the network in the middle of every choice, (n_genes,)."""
    if name == "middle":
        return (space.cardinalities // 2).astype(np.int8)
    return space.extreme(largest=name == "largest")


def search_one(plan: Plan, key: Key) -> Value:
    """What one method finds within one budget, or that it finds nothing."""
    arm, metric, share, method = str(key[0]), key[1], float(key[2]), str(key[3])
    seed, costs, most = plan.seed, costs_of(plan, arm), limit(plan, arm, metric, float(share))  # type: ignore[arg-type]
    kind = REFINED if method.endswith(REFINED) else UNTRANSFERRED if method == UNTRANSFERRED else "joint"
    accuracy = predictor_of(plan, arm, kind)
    method = method.removesuffix(REFINED)
    budget = Budget(**{str(metric): most})
    try:
        if method == "staged":
            genome = None
            for factor, freeze, bits in (
                (ARCHITECTURE_SHARE, ("channels",), 8),
                (WIDTH_SHARE, ("depths", "kernels"), 8),
            ):
                looser = Budget(**{str(metric): most * factor})
                try:
                    genome = search(costs, accuracy, looser, seed=seed, freeze=freeze, bits=bits, network=genome).genes
                except UnreachableBudget as error:
                    genome = error.genome  # the cheapest network of this stage: the next one has to save more
            result = search(costs, accuracy, budget, seed=seed, freeze=("architecture",), network=genome)
        elif method.startswith("bits of the "):
            fixed = network(costs.space, method.removeprefix("bits of the "))
            result = search(costs, accuracy, budget, seed=seed, freeze=("architecture",), network=fixed)
        elif method.startswith("uniform "):
            result = search(costs, accuracy, budget, seed=seed, bits=int(method.split()[1]))
        else:
            result = search(costs, accuracy, budget, seed=seed)
    except UnreachableBudget as error:
        return {"limit": most, "least": error.costs}
    return {
        "limit": most,
        "genome": list(result.genome),
        "predicted": result.predicted_accuracy,
        "costs": result.costs["full"],
    }


def measure(plan: Plan, key: Key) -> Value:
    """Test accuracy of a searched network's ONNX file in onnxruntime, after calibration and fine-tuning."""
    arm, genome, seed = str(key[0]), np.array(str(key[1]).split(), np.int8), int(key[2])
    own, space = laboratory(plan, arm), plan.space(arm)
    subnet = own.subnet(space.decode(genome))
    quantized = QuantizedSubnet(copy.deepcopy(subnet))
    calibrate(quantized, [own.calibration[0][:CLIP_IMAGES]])
    reestimate_batch_norm(quantized, own.calibration)
    own.finetune(quantized, subnet, FinetuneSettings(plan.final_steps, plan.collect.batch_size, seed=seed))
    test = whole(load_data(space, plan.data).test)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(to_integers(quantized.cpu()), file)
        right = [
            (run_onnx(file, to_unit(test.pixels[i : i + 1000]).contiguous().numpy()).argmax(1)
             == test.classes[i : i + 1000].numpy()).sum()
            for i in range(0, len(test), 1000)
        ]  # fmt: skip
        return {"percent": 100 * float(sum(right)) / len(test), "file_bytes": file.stat().st_size}
