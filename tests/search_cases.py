"""Spaces, tables and predictors that the tests of the search share."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from apq_deploy import Arch, SearchSpace
from apq_deploy.search import SpaceCosts
from apq_deploy.space import DepthwiseRule, Genes, StageChoices
from apq_deploy.workload import arch_layers, space_entries
from hwmodels import Cost, CostTable
from hwmodels.table import make_table

SEED = 7


def _space(name: str, bits: tuple[int, ...], depths: tuple[int, ...]) -> SearchSpace:
    return SearchSpace(
        name=name,
        input_channels=1,
        input_size=8,
        num_classes=3,
        stem_channels=4,
        head_channels=8,
        kernel_sizes=(3, 7),
        expand_min=1,
        expand_max=2,
        channel_step=4,
        bits=bits,
        fixed_bits=8,
        stages=(StageChoices(4, 1, depths),),
        forbidden_depthwise=(DepthwiseRule(7, 4),),
    )


# 2 positions, 2 kernels, 2 widths, 16 bit policies: 2,352 networks, all of which the tests can look at.
TINY = _space("tiny", (4, 8), (1, 2))
CHEAP_TINY = _space("shallow", (4, 8), (1,))


def every_genome(space: SearchSpace) -> Genes:
    """All genomes of a small space whose blocks exist, canonical and distinct, (n, n_genes)."""
    genes = np.array(list(itertools.product(*(range(n) for n in space.cardinalities))), np.int8)
    blocks = space.split(genes)[1]
    exists = space.allowed_depthwise[blocks[..., 0], blocks[..., -1]]
    return np.unique(space.canonical(genes[exists.all(axis=1)]), axis=0)


def made_up_table(space: SearchSpace, seed: int = SEED) -> CostTable:
    """Random latency and energy for every layer of a space: unlike a model's, they pull in different directions."""
    rng = np.random.default_rng(seed)
    entries = space_entries(space)
    figures = rng.uniform(0.1, 1.0, (len(entries), 2)).tolist()
    costs = {entry: Cost(latency_ms=ms, energy_mj=mj) for entry, (ms, mj) in zip(entries, figures, strict=True)}
    return make_table("made-up", {"seed": seed}, costs)


def made_up_costs(space: SearchSpace, seed: int = SEED) -> SpaceCosts:
    return SpaceCosts.from_table(space, made_up_table(space, seed))


def cost_of_layers(space: SearchSpace, table: CostTable, arch: Arch, scope: str) -> dict[str, float]:
    """Costs of a network layer by layer: the plain way."""
    sums = dict.fromkeys(("latency_ms", "energy_mj", "bitops_g", "size_kb", "macs_m"), 0.0)
    for item in arch_layers(space, arch):
        counted = scope == "full" or item.part not in space.left_out_of_sums
        cost = table[item.layer, item.precision]
        sums["latency_ms"] += cost.latency_ms * counted
        sums["energy_mj"] += (cost.energy_mj or 0.0) * counted
        sums["macs_m"] += item.layer.macs / 1e6
        sums["bitops_g"] += item.layer.macs * item.precision.weight_bits * item.precision.act_bits / 1e9
        packed = item.precision.weight_bits <= 4
        sums["size_kb"] += (item.layer.weights + 1) // 2 / 1e3 if packed else item.layer.weights / 1e3
    return sums


def random_predictor(space: SearchSpace, seed: int = SEED):
    """A fixed random network on the features, smooth enough to be searched."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((space.n_features, 32)).astype(np.float32)
    second = rng.standard_normal(32).astype(np.float32)

    def accuracy(features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.maximum(features @ first, 0) @ second

    return accuracy
