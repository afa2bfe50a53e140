"""Fronts of accuracy against costs, and the accounts of a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import SEED, TINY, cost_of_layers, every_genome, made_up_costs, made_up_table, random_predictor

from apq_deploy import BudgetError, SearchSpace, UserError
from apq_deploy.search import Budget, Evolution, Front, SearchResult, SpaceCosts, explain, explain_lines
from apq_deploy.search.pareto import crowding_distance, hypervolume, pareto_search, rank_and_crowding, survivors
from hwmodels import load_hardware

FASHION = SearchSpace.load("fashion")
TABLE = made_up_table(FASHION)
COSTS = SpaceCosts.from_table(FASHION, TABLE)
PREDICTOR = random_predictor(FASHION)


@pytest.fixture(scope="module")
def front() -> Front:
    limit = float(np.median(COSTS.gather(FASHION.sample(300, np.random.default_rng(SEED)))["energy_mj"]))
    return pareto_search(
        COSTS, PREDICTOR, ["latency_ms", "size_kb"], Budget(energy_mj=limit), seed=1, settings=Evolution(generations=30)
    )


def test_no_point_of_the_front_beats_another(front: Front) -> None:
    losses = np.column_stack([-front.accuracy, front.costs["latency_ms"], front.costs["size_kb"]])
    no_worse = (losses[:, None] <= losses[None]).all(axis=2)
    better = (losses[:, None] < losses[None]).any(axis=2)
    assert not (no_worse & better).any()
    assert (np.diff(front.costs["latency_ms"]) >= 0).all()
    assert len(front) > 20


def test_every_point_is_in_its_budget_layer_by_layer(front: Front) -> None:
    for i, genome in enumerate(front.genes):
        sums = cost_of_layers(FASHION, TABLE, FASHION.decode(genome), "full")
        assert sums["energy_mj"] <= front.budget.limits["energy_mj"] * (1 + 1e-12)
        assert {name: values[i] for name, values in front.costs.items()} == pytest.approx(sums, rel=1e-12)
    assert front.accuracy == pytest.approx(PREDICTOR(FASHION.encode(front.genes)), rel=1e-5)


def test_hypervolume_never_shrinks(front: Front) -> None:
    assert front.checkpoints[0] == 0
    assert front.checkpoints[-1] == 30
    assert (np.diff(front.hypervolume) >= -1e-9).all()
    assert front.hypervolume[-1] > front.hypervolume[0] > 0


def test_same_seed_same_front(front: Front) -> None:
    again = pareto_search(
        COSTS, PREDICTOR, ["latency_ms", "size_kb"], front.budget, seed=1, settings=Evolution(generations=30)
    )
    assert again.to_json() == front.to_json()


def test_a_tiny_front_equals_brute_force() -> None:
    costs, predictor = made_up_costs(TINY), random_predictor(TINY)
    genes = every_genome(TINY)
    losses = np.column_stack([-predictor(TINY.encode(genes)).astype(float), costs.gather(genes)["latency_ms"]])
    beaten = ((losses[None] <= losses[:, None]).all(axis=2) & (losses[None] < losses[:, None]).any(axis=2)).any(axis=1)
    found = pareto_search(costs, predictor, ["latency_ms"], seed=1, settings=Evolution(generations=150))
    assert sorted(map(tuple, found.genes.tolist())) == sorted(map(tuple, genes[~beaten].tolist()))


def test_picks_are_the_most_accurate_within_the_budget(front: Front) -> None:
    limit = float(np.median(front.costs["latency_ms"]))
    index = front.pick(Budget(latency_ms=limit))
    inside = front.costs["latency_ms"] <= limit
    assert front.accuracy[index] == front.accuracy[inside].max()
    result = front.result(index, COSTS)
    assert SearchResult.from_json(result.to_json()).genome == tuple(front.genes[index].tolist())
    with pytest.raises(BudgetError, match="the least on it is"):
        front.pick(Budget(latency_ms=float(front.costs["latency_ms"].min()) * 0.99))
    with pytest.raises(UserError, match="expected costs of the space 'fashion' on made-up"):
        front.result(index, SpaceCosts.from_hardware(FASHION, load_hardware("bitfusion")))


def test_fronts_survive_their_files(front: Front, tmp_path: Path) -> None:
    front.save(tmp_path / "front.json")
    assert Front.load(tmp_path / "front.json").to_json() == front.to_json()
    front.save_csv(tmp_path / "front.csv")
    lines = [line for line in (tmp_path / "front.csv").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "number,predicted_accuracy,latency_ms,energy_mj,bitops_g,size_kb,macs_m,genome"
    assert len(lines) == len(front) + 1
    assert [int(gene) for gene in lines[1].split(",")[-1].split()] == front.genes[0].tolist()
    (tmp_path / "front.json").write_text('{"schema": "other"}')
    with pytest.raises(UserError, match="expected schema"):
        Front.load(tmp_path / "front.json")


def test_plots_are_the_same_for_the_same_front(front: Front, tmp_path: Path) -> None:
    from apq_deploy.search.plot import draw_front, save_front_plot

    for name in ("first.svg", "again.svg"):
        save_front_plot(front, tmp_path / name, picked=3)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    panels = draw_front(front).axes
    assert [panel.get_xlabel() for panel in panels] == ["latency, ms", "size, kB"]
    assert panels[0].lines[0].get_xydata()[:, 0].tolist() == front.costs["latency_ms"].tolist()
    with pytest.raises(UserError, match=r"expected a plot named .*\.svg, got front.bmp"):
        save_front_plot(front, tmp_path / "front.bmp")


@pytest.mark.parametrize("objectives", [[], ["latency_ms", "latency_ms"], ["price"]])
def test_objectives_are_checked(objectives: list[str]) -> None:
    with pytest.raises(UserError):
        pareto_search(COSTS, PREDICTOR, objectives)


def test_crowding_by_hand() -> None:
    losses = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    # the second point: (3 - 0) / 4 in the first objective, (4 - 1) / 4 in the second
    assert crowding_distance(losses).tolist() == [np.inf, 1.5, 1.5, np.inf]
    assert survivors(np.concatenate([losses, [[5.0, 5.0]]]), 4).tolist() == [0, 3, 1, 2]
    assert rank_and_crowding(np.concatenate([losses, [[5.0, 5.0]]]))[0].tolist() == [0, 0, 0, 0, 1]


def test_hypervolume_by_hand() -> None:
    reference = (np.array([4.0, 4.0]), np.array([1.0, 2.0]))
    # (1, 3) covers 3 x 1, (3, 1) covers 1 x 3, they share 1 x 1; a unit of the second loss is 2
    assert hypervolume(np.array([[1.0, 3.0], [3.0, 1.0], [5.0, 0.0]]), reference) == pytest.approx(5.0 / 2.0)
    assert hypervolume(np.array([[4.0, 0.0]]), reference) == 0.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_ranks_equal_brute_force(points: list[tuple[int, int, int]]) -> None:
    losses = np.array(points, float)
    rank = rank_and_crowding(losses)[0]
    left, number = set(range(len(points))), 0
    while left:
        best = {
            i for i in left if not any((losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left)
        }
        assert {i for i in range(len(points)) if rank[i] == number} == best
        left, number = left - best, number + 1


# Accounts ------------------------------------------------------------------------------------------------------------


def test_alternatives_cost_what_they_say() -> None:
    genome = FASHION.canonical(FASHION.sample(1, np.random.default_rng(SEED)))[0]
    account = explain(COSTS, genome)
    here = COSTS.of(genome)
    assert account.costs == here
    positions = np.flatnonzero(FASHION.active(genome[None])[0])
    names = [p.name for p in FASHION.positions]
    for block, position in zip(account.blocks, positions, strict=True):
        assert block.name == names[position]
        for gene, choice in enumerate(block.choices):
            values = [FASHION.kernel_sizes, FASHION.positions[position].channels, *[FASHION.bits] * 4][gene]
            assert choice.value == values[genome[FASHION.n_stages + 6 * position + gene]]
            assert len(choice.alternatives) == len(values) - 1
            for other in choice.alternatives:
                changed = genome.copy()
                changed[FASHION.n_stages + 6 * position + gene] = values.index(other.value)
                want = {name: cost - here[name] for name, cost in COSTS.of(changed).items()}
                assert other.added == pytest.approx(want, abs=1e-9)
    parts = np.sum([[block.costs[name] for name in COSTS.metrics] for block in account.blocks], axis=0)
    assert parts + np.array(list(account.fixed.values())) == pytest.approx(list(here.values()))


def test_depths_cost_what_they_say() -> None:
    genome = FASHION.extreme(largest=True)
    account = explain(COSTS, genome)
    for number, stage in enumerate(account.stages):
        assert stage.depth == 4
        for other in stage.alternatives:
            changed = genome.copy()
            changed[number] = FASHION.stages[number].depths.index(other.value)
            want = COSTS.of(changed)["latency_ms"] - COSTS.of(genome)["latency_ms"]
            assert other.added["latency_ms"] == pytest.approx(want, abs=1e-9)


def test_six_bits_do_not_pay_on_bitfusion() -> None:
    space = SearchSpace.load("apq-imagenet")
    costs = SpaceCosts.from_hardware(space, load_hardware("bitfusion"))
    genome = space.extreme(largest=True, bits=6)
    account = explain(costs, genome)
    paid = {(bits, name): share for bits, name, share in account.does_not_pay()}
    assert 0.0 < paid[6, "latency_ms"] < 0.02
    assert paid[6, "size_kb"] == 0.0
    assert (4, "latency_ms") not in paid
    assert all("size_kb" in choice.wasted_on for block in account.blocks for choice in block.choices[2:])
    text = "\n".join(explain_lines(account))
    assert "6 bits do not pay in latency on bitfusion" in text
    assert "6 bits do not pay in size in the file: everywhere in this network, 6 saves nothing against 8" in text
    assert account.to_json()["sentences"] == account.sentences()
