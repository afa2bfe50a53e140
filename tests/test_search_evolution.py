"""Algorithms, choices, fronts and results of the search."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import CHEAP_TINY, SEED, TINY, every_genome, made_up_costs, made_up_table, random_predictor

from apq_deploy import SearchSpace, UserError
from apq_deploy.search import (
    ALGORITHMS,
    Budget,
    Choices,
    Evolution,
    Menu,
    SearchResult,
    SpaceCosts,
    UnreachableBudget,
    search,
)
from apq_deploy.search.accuracy import Evaluator
from apq_deploy.search.evolution import Brood, evolve
from apq_deploy.space import CHANNEL_GENE

FASHION = SearchSpace.load("fashion")
COSTS = made_up_costs(FASHION)
PREDICTOR = random_predictor(FASHION)
SHORT = Evolution(generations=12)
MEDIAN_MS = float(np.median(COSTS.gather(FASHION.sample(500, np.random.default_rng(SEED)))["latency_ms"]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_seed_same_result(algorithm: str) -> None:
    budget = Budget(latency_ms=MEDIAN_MS)
    first, again = (search(COSTS, PREDICTOR, budget, algorithm=algorithm, seed=3, settings=SHORT) for _ in range(2))
    other = search(COSTS, PREDICTOR, budget, algorithm=algorithm, seed=4, settings=SHORT)
    assert first.to_json() == again.to_json()
    assert first.history.mean.tolist() != other.history.mean.tolist()


@given(
    st.sampled_from(ALGORITHMS),
    st.integers(0, 2**32 - 1),
    st.dictionaries(st.sampled_from(["latency_ms", "energy_mj", "bitops_g", "size_kb", "macs_m"]), st.floats(0.05, 1)),
)
@settings(max_examples=25, deadline=None)
def test_no_returned_candidate_is_over_budget(algorithm: str, seed: int, quantiles: dict[str, float]) -> None:
    genes = FASHION.sample(300, np.random.default_rng(SEED))
    sums = COSTS.gather(genes)
    limits = {name: float(np.quantile(sums[name], q)) for name, q in quantiles.items()}  # type: ignore[index]
    budget = Budget(**limits)
    try:
        result = search(COSTS, PREDICTOR, budget, algorithm=algorithm, seed=seed, settings=Evolution(generations=2))
    except UnreachableBudget:
        assert not COSTS.fits(genes, budget.bounds(COSTS)).any()
        return
    for name, limit in limits.items():
        assert result.costs["full"][name] <= limit * (1 + 1e-12)  # type: ignore[index]


def test_every_network_of_a_population_keeps_the_budget_and_is_new() -> None:
    menu, budget = Menu.of(COSTS), Budget(latency_ms=MEDIAN_MS)
    asked: list[np.ndarray] = []

    class Watched:
        def score_genes(self, genes: np.ndarray, /) -> np.ndarray:
            asked.append(genes.copy())
            return PREDICTOR(FASHION.encode(genes))

    outcome = evolve(menu, budget, Evaluator(FASHION, Watched()), SHORT, np.random.default_rng(SEED))
    genes = np.concatenate(asked)
    assert COSTS.fits(genes, budget.bounds(COSTS)).all()
    assert len(np.unique(COSTS.used_rows(genes), axis=0)) == len(genes) == outcome.history.evaluations[-1]
    assert outcome.history.evaluations[:3].tolist() == [100, 200, 300]
    assert outcome.history.size.tolist() == [100] + 12 * [125]
    assert len(outcome.history) == 13


def test_children_of_crossover_can_survive() -> None:
    """With no mutants, the best network of the next generation is a child of two parents, better than both."""
    target = FASHION.extreme(largest=True)
    asked: list[np.ndarray] = []

    class ShareRight:
        def score_genes(self, genes: np.ndarray, /) -> np.ndarray:
            asked.append(genes.copy())
            return (genes == target).mean(axis=1)

    once = Evolution(mutants=0, crossed=50, generations=1)
    outcome = evolve(Menu.of(COSTS), Budget(), Evaluator(FASHION, ShareRight()), once, np.random.default_rng(SEED))
    starts, children = asked
    assert len(children) == 50
    assert outcome.scores[0] > (starts == target).mean(axis=1).max()
    assert (outcome.genes[0] == children).all(axis=1).any()
    before = FASHION.split(starts)[1]
    for position, block in enumerate(FASHION.split(outcome.genes)[1][0]):
        assert (before[:, position] == block).all(axis=1).any()


def test_crossed_children_mix_their_parents_whole_blocks() -> None:
    rng = np.random.default_rng(SEED)
    mothers, fathers = FASHION.sample(50, rng), FASHION.sample(50, rng)
    children = Choices.everything(FASHION).cross(mothers, fathers, rng)
    blocks, mother_blocks, father_blocks = (FASHION.split(g)[1] for g in (children, mothers, fathers))
    from_mother, from_father = (blocks == mother_blocks).all(axis=2), (blocks == father_blocks).all(axis=2)
    assert (from_mother | from_father).all()
    assert 0.3 < from_mother.mean() < 0.7


def test_mutation_redraws_a_tenth_of_the_blocks() -> None:
    rng = np.random.default_rng(SEED)
    genes = FASHION.sample(2000, rng)
    mutants = Choices.everything(FASHION).mutate(genes, 0.1, rng)
    changed = (FASHION.split(genes)[1] != FASHION.split(mutants)[1]).any(axis=2).mean()
    assert changed == pytest.approx(0.1, abs=0.01)  # a redrawn block is hardly ever the same block
    one_gene = (Choices.everything(FASHION).mutate_genes(genes, 2.0, rng) != genes).sum(axis=1).mean()
    # a redrawn gene keeps its value about one time in three
    assert 1.0 < one_gene < 2.0


def test_broods_redraw_until_enough_children_fit() -> None:
    menu = Menu.of(COSTS)
    bounds = Budget(latency_ms=MEDIAN_MS).bounds(COSTS)
    brood = Brood(menu, bounds, np.random.default_rng(SEED))
    parents = FASHION.sample(400, np.random.default_rng(SEED))
    parents = parents[COSTS.fits(parents, bounds)][:25]
    assert len(brood.mutants(parents, 50, 0.1)) == 50
    assert len(brood.crossed(parents, 50)) == 50


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_small_spaces_are_solved_and_say_why_they_stopped(algorithm: str) -> None:
    costs, predictor = made_up_costs(CHEAP_TINY), random_predictor(CHEAP_TINY)
    genes = every_genome(CHEAP_TINY)
    limit = float(np.median(costs.gather(genes)["latency_ms"]))
    fits = costs.fits(genes, Budget(latency_ms=limit).bounds(costs))
    want = predictor(CHEAP_TINY.encode(genes[fits])).max()
    result = search(costs, predictor, Budget(latency_ms=limit), algorithm=algorithm, seed=SEED)
    assert result.predicted_accuracy == pytest.approx(want, rel=1e-5)
    assert "no new network" in result.stop_reason or "further islands" in result.stop_reason


def test_patience_and_generations_are_given_as_reasons() -> None:
    flat = search(COSTS, lambda f: np.ones(len(f)), Budget(), algorithm="apq", settings=Evolution(patience=5), seed=1)
    assert flat.stop_reason == "no better network in 5 generations"
    assert len(flat.history) == 6
    whole = search(COSTS, PREDICTOR, Budget(), algorithm="apq", settings=Evolution(generations=3), seed=1)
    assert whole.stop_reason == "all 3 generations done"


def test_islands_ask_as_often_as_the_paper() -> None:
    result = search(
        COSTS, PREDICTOR, Budget(latency_ms=MEDIAN_MS), algorithm="islands", settings=Evolution(generations=40)
    )
    assert result.evaluations <= Evolution(generations=40).evaluations == 4100
    assert (np.diff(result.history.best) >= 0).all()


def test_the_paper_setting_is_the_default() -> None:
    paper = Evolution()
    assert (paper.population, paper.parents, paper.mutants, paper.crossed) == (100, 25, 50, 50)
    assert (paper.mutation_probability, paper.generations, paper.patience) == (0.1, 500, None)


@pytest.mark.parametrize(
    "bad", [{"population": 0}, {"generations": -1}, {"mutation_probability": 0.0}, {"patience": 0}, {"parents": 0}]
)
def test_settings_are_checked(bad: dict) -> None:
    with pytest.raises(UserError, match="expected a"):
        Evolution(**bad)


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [(lambda f: np.zeros((len(f), 2)), "got shape"), (lambda f: np.full(len(f), np.nan), "finite")],
)
def test_bad_predictors_are_refused(accuracy: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(COSTS, accuracy, Budget())  # type: ignore[arg-type]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown algorithm 'magic'; known are apq"):
        search(COSTS, PREDICTOR, Budget(), algorithm="magic")
    with pytest.raises(UserError, match="cannot freeze 'stem'"):
        search(COSTS, PREDICTOR, Budget(), freeze=["stem"])
    with pytest.raises(UserError, match=r"has bits \[4, 6, 8\], got 5"):
        search(COSTS, PREDICTOR, Budget(), bits=5)
    with pytest.raises(UserError, match="seed of 0 or more"):
        search(COSTS, PREDICTOR, Budget(), seed=-1)


# Frozen choices ------------------------------------------------------------------------------------------------------


def _parts(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Architecture without widths, widths, and bits of canonical genomes."""
    depths, blocks = FASHION.split(FASHION.canonical(genes))
    kernels = np.concatenate([depths, blocks[..., 0]], axis=1)
    return kernels, blocks[..., CHANNEL_GENE], blocks[..., CHANNEL_GENE + 1 :].reshape(len(genes), -1)


@pytest.mark.parametrize(
    ("freeze", "bits", "free"),
    [
        (["architecture"], None, {"bits"}),  # what HAQ searches
        (["depths", "kernels", "bits"], None, {"channels"}),  # AMC
        (["bits"], None, {"kernels", "channels"}),  # ProxylessNAS
        ([], 8, {"kernels", "channels"}),
        (["channels"], None, {"kernels", "bits"}),
        (["architecture", "bits"], None, set()),
    ],
)
def test_frozen_parts_stay_as_they_are(freeze: list[str], bits: int | None, free: set[str]) -> None:
    network = FASHION.extreme(largest=True)
    choices = Choices.of(FASHION, freeze=freeze, bits=bits, network=network)
    rng = np.random.default_rng(SEED)
    genes = choices.sample(50, rng)
    genes = np.concatenate([genes, choices.mutate(genes, 0.5, rng), choices.mutate_genes(genes, 9.0, rng)])
    assert choices.contains(genes).all()
    for name, got, held in zip(("kernels", "channels", "bits"), _parts(genes), _parts(network[None]), strict=True):
        in_use = got[(FASHION.depths(genes) == 4).all(axis=1)]
        assert (in_use == held).all() == (name not in free), name


def test_freezing_a_shallow_network_leaves_unused_blocks_free() -> None:
    network = FASHION.extreme(largest=False, bits=8)
    choices = Choices.of(FASHION, freeze=["channels"], network=network)
    counts = choices.counts[FASHION.n_stages :].reshape(FASHION.n_blocks, 6)[:, CHANNEL_GENE]
    active = FASHION.active(network[None])[0]
    assert (counts[active] == 1).all()
    assert (counts[~active] > 1).all()


def test_kernels_without_allowed_bits_are_taken_away() -> None:
    choices = Choices.of(TINY, bits=4)  # 7x7 has no 4-bit activations here
    assert (TINY.split(choices.sample(50, np.random.default_rng(SEED)))[1][..., 0] == 0).all()
    with pytest.raises(UserError, match=r"the kernel size of stage1.block1 is left without an allowed choice"):
        Choices.of(TINY, bits=4, freeze=["kernels"], network=TINY.extreme(largest=True))


def test_a_fully_frozen_search_returns_its_network() -> None:
    network = FASHION.extreme(largest=True)
    result = search(
        COSTS, PREDICTOR, Budget(), freeze=["architecture", "bits"], network=network, seed=1, algorithm="apq"
    )
    assert result.genome == tuple(network.tolist())
    assert result.evaluations == 1
    assert "no new network" in result.stop_reason


def test_neighbours_are_all_single_changes() -> None:
    genome = FASHION.sample(1, np.random.default_rng(SEED))[0]
    genes, gene, value = Choices.everything(FASHION).neighbours(genome)
    assert ((genes != genome).sum(axis=1) == 1).all()
    assert (genes[np.arange(len(genes)), gene] == value).all()
    in_use = np.concatenate([np.ones(3, bool), np.repeat(FASHION.active(genome[None])[0], 6)])
    assert len(genes) == int((FASHION.cardinalities - 1)[in_use].sum())


# Results -------------------------------------------------------------------------------------------------------------


def test_results_survive_their_file(tmp_path: Path) -> None:
    result = search(COSTS, PREDICTOR, Budget(latency_ms=MEDIAN_MS), settings=SHORT, seed=2)
    path = tmp_path / "search.json"
    result.save(path)
    assert [item.name for item in tmp_path.iterdir()] == ["search.json"]
    again = SearchResult.load(path)
    assert again.to_json() == result.to_json()
    assert again.search_space() == FASHION
    assert FASHION.decode(again.genes) == result.arch
    assert COSTS.of(again.genes) == result.costs["full"]
    assert result.predicted_accuracy == pytest.approx(float(PREDICTOR(FASHION.encode(again.genes[None]))[0]), rel=1e-6)


@pytest.mark.parametrize(
    "change", [{"schema": "other"}, {"genome": None}, {"arch": {}}, {"history": {}}, {"budget": 3}]
)
def test_other_files_are_refused(tmp_path: Path, change: dict) -> None:
    result = search(COSTS, PREDICTOR, Budget(), settings=Evolution(generations=1), seed=2)
    path = tmp_path / "search.json"
    path.write_text(json.dumps(result.to_json() | change))
    with pytest.raises(UserError, match="expected"):
        SearchResult.load(path)


def test_results_name_their_hardware_and_both_sums() -> None:
    space = SearchSpace.load("apq-imagenet")
    table = made_up_table(space)
    costs = SpaceCosts.from_table(space, table, "apq")
    result = search(costs, lambda f: f.mean(axis=1), Budget(), settings=Evolution(generations=1))
    assert (result.scope, result.hardware, result.hardware_sha256) == ("apq", "made-up", table.sha256)
    assert result.costs["full"]["latency_ms"] > result.costs["apq"]["latency_ms"]


def test_the_search_loads_neither_torch_nor_pymoo() -> None:
    code = "import sys, apq_deploy.search as s; s.search; print({'torch', 'pymoo', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
