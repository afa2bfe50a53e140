"""The search at the scale of APQ's space against a plain loop over candidates with the same rules.

    python -m benchmarks.search [--seeds 10] [--budgets 6.2 8.4 12.2] [--plain-seeds 10]

Everything on one core: costs of the preset `bitfusion` in the sums of APQ's own table, and a fixed random network
772-400-400-400-1 as the predictor, so that scores say how well each search maximises a rugged function, no more. Prints
the processor time of 500 generations, its ratio to the plain loop, the time to the first population, and the best score
after the same number of evaluations over the seeds: median and range.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from apq_deploy import SearchSpace
from apq_deploy.search import Budget, Evolution, Menu, SpaceCosts, UnreachableBudget, search
from apq_deploy.search.starts import feasible_starts
from apq_deploy.space import BIT_GENES
from apq_deploy.workload import block_layers, fixed_layers, space_entries
from hwmodels import CostTable, Precision, build_table, load_hardware

Genome = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]


def random_network(n_features: int, seed: int = 0) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The fixed random predictor, He initialisation."""
    rng = np.random.default_rng(seed)
    sizes = (n_features, 400, 400, 400, 1)
    weights = [(rng.standard_normal(shape) * np.sqrt(2 / shape[0])).astype(np.float32) for shape in pairwise(sizes)]

    def accuracy(features: NDArray[np.float32]) -> NDArray[np.float32]:
        hidden = features
        for matrix in weights[:-1]:
            hidden = np.maximum(hidden @ matrix, 0)
        return (hidden @ weights[-1])[:, 0]

    return accuracy


class PlainSearch:
    """The same evolution, candidate by candidate: Python tuples, table look-ups, one prediction at a time."""

    def __init__(self, space: SearchSpace, table: CostTable, accuracy: Callable, limit_ms: float, seed: int) -> None:
        self.space, self.accuracy, self.limit_ms = space, accuracy, limit_ms
        self.rng = random.Random(seed)
        self.latency = {entry: table[entry].latency_ms for entry in space_entries(space)}
        fixed = [item for part in fixed_layers(space) for item in part if item.part not in space.left_out_of_sums]
        self.constant = sum(self.latency[item.layer, item.precision] for item in fixed)
        self.precision = {(w, a): Precision(w, a) for w in space.bits for a in space.bits}
        self.layers = {
            (i, k, c): block_layers(position, mid, kernel)
            for i, position in enumerate(space.positions)
            for k, kernel in enumerate(space.kernel_sizes)
            for c, mid in enumerate(position.channels)
        }
        self.seen: set[tuple] = set()
        self.evaluations = 0

    def used(self, genome: Genome) -> list[tuple[int, tuple[int, ...]]]:
        depths, blocks = genome
        return [
            (i, blocks[i])
            for i, p in enumerate(self.space.positions)
            if p.index < self.space.stages[p.stage].depths[depths[p.stage]]
        ]

    def latency_ms(self, genome: Genome) -> float:
        total, bits = self.constant, self.space.bits
        for i, (kernel, channel, *widths) in self.used(genome):
            expand, depthwise, project = self.layers[i, kernel, channel]
            pointwise = self.precision[bits[widths[0]], bits[widths[1]]]
            total += self.latency[expand, pointwise] + self.latency[project, pointwise]
            total += self.latency[depthwise, self.precision[bits[widths[2]], bits[widths[3]]]]
        return total

    def score(self, genome: Genome) -> float:
        self.evaluations += 1
        row = np.array([[*genome[0], *(gene for block in genome[1] for gene in block)]], np.int8)
        return float(self.accuracy(self.space.encode(row))[0])

    def random_block(self, i: int) -> tuple[int, ...]:
        space = self.space
        kernel = self.rng.randrange(len(space.kernel_sizes))
        channel = self.rng.randrange(len(space.positions[i].channels))
        widths = [self.rng.randrange(len(space.bits)) for _ in BIT_GENES]
        while not space.allowed_depthwise[kernel, widths[-1]]:
            widths[-1] = self.rng.randrange(len(space.bits))
        return (kernel, channel, *widths)

    def mutated(self, genome: Genome, probability: float) -> Genome:
        depths = tuple(
            self.rng.randrange(len(stage.depths)) if self.rng.random() < probability else depth
            for stage, depth in zip(self.space.stages, genome[0], strict=True)
        )
        blocks = tuple(
            self.random_block(i) if self.rng.random() < probability else block for i, block in enumerate(genome[1])
        )
        return depths, blocks

    def crossed(self, mother: Genome, father: Genome) -> Genome:
        depths = tuple(self.rng.choice(pair) for pair in zip(mother[0], father[0], strict=True))
        return depths, tuple(self.rng.choice(pair) for pair in zip(mother[1], father[1], strict=True))

    def fresh(self, make: Callable[[], Genome], draws: int) -> Genome | None:
        for _ in range(draws):
            child = make()
            key = (child[0], tuple(self.used(child)))
            if self.latency_ms(child) <= self.limit_ms and key not in self.seen:
                self.seen.add(key)
                return child
        return None

    def child_of_two(self, parents: list[tuple[float, Genome]]) -> Genome | None:
        return self.fresh(lambda: self.crossed(*(self.rng.choice(parents)[1] for _ in range(2))), draws=3)

    def mutant(self, parents: list[tuple[float, Genome]], probability: float) -> Genome | None:
        return self.fresh(lambda: self.mutated(self.rng.choice(parents)[1], probability), draws=1000)

    def run(self, starts: list[Genome], settings: Evolution) -> float:
        """The best score after all generations."""
        population = [(self.score(genome), genome) for genome in starts]
        for _ in range(settings.generations):
            population.sort(key=lambda item: -item[0])
            parents = population[: settings.parents]
            drawn = [self.child_of_two(parents) for _ in range(settings.crossed)]
            children = [child for child in drawn if child is not None]
            while len(children) < settings.mutants + settings.crossed:
                child = self.mutant(parents, settings.mutation_probability)
                if child is None:
                    break
                children.append(child)
            population = parents + [(self.score(child), child) for child in children]
        return max(score for score, _ in population)


def plain_genome(space: SearchSpace, row: NDArray[np.int8]) -> Genome:
    depths, blocks = space.split(row[None])
    return tuple(depths[0].tolist()), tuple(tuple(block) for block in blocks[0].tolist())


def summary(scores: list[float]) -> str:
    return f"{np.median(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--plain-seeds", type=int, default=10)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--budgets", type=float, nargs="+", default=[6.2, 8.4, 12.2], help="latency, ms")
    arguments = parser.parse_args()
    space = SearchSpace.load("apq-imagenet")
    table = build_table(load_hardware("bitfusion"), space_entries(space))
    costs = SpaceCosts.from_table(space, table, "apq")
    menu, accuracy = Menu.of(costs), random_network(space.n_features)
    settings = Evolution(generations=arguments.generations)
    for name in ("latency_ms", "energy_mj"):
        print(
            f"least and most {name}: {costs.of(menu.minimum(name))[name]:.3f}, {costs.of(menu.maximum(name))[name]:.2f}"
        )
    start = time.perf_counter()
    try:
        feasible_starts(menu, Budget(latency_ms=2.5), 100, np.random.default_rng(0))
    except UnreachableBudget as error:
        print(f"2.5 ms in {1e3 * (time.perf_counter() - start):.1f} ms: {error}")
    for limit in (3.2, 6.2):
        start = time.perf_counter()
        found = feasible_starts(menu, Budget(latency_ms=limit), 100, np.random.default_rng(0))
        print(f"{len(found)} first networks within {limit} ms in {1e3 * (time.perf_counter() - start):.0f} ms")
    genes = space.sample(100, np.random.default_rng(0))
    start = time.perf_counter()
    for _ in range(100):
        costs.totals(genes)
    print(f"all costs of 100 candidates: {1e4 * (time.perf_counter() - start):.0f} us\n")
    for limit in arguments.budgets:
        budget = Budget(latency_ms=limit)
        for algorithm in ("apq", "islands"):
            scores, seconds = [], []
            for seed in range(arguments.seeds):
                start = time.process_time()
                result = search(costs, accuracy, budget, algorithm=algorithm, seed=seed, settings=settings)
                seconds.append(time.process_time() - start)
                scores.append(result.predicted_accuracy)
            print(
                f"{limit} ms, {algorithm}: {np.median(seconds):.2f} s (least {min(seconds):.2f}), "
                f"{result.evaluations} evaluations, best {summary(scores)}",
                flush=True,
            )
            if algorithm == "apq":
                ours = float(np.median(seconds))
        plain_scores, plain_seconds = [], []
        for seed in range(arguments.plain_seeds):
            plain = PlainSearch(space, table, accuracy, limit, seed)
            starts = feasible_starts(menu, budget, settings.population, np.random.default_rng(seed))
            start = time.process_time()
            plain_scores.append(plain.run([plain_genome(space, row) for row in starts], settings))
            plain_seconds.append(time.process_time() - start)
        if plain_seconds:
            print(
                f"{limit} ms, plain loop: {np.median(plain_seconds):.1f} s, {plain.evaluations} evaluations, "
                f"best {summary(plain_scores)}; ratio {np.median(plain_seconds) / ours:.1f}\n",
                flush=True,
            )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
