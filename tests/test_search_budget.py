"""Budgets: what can be reached, proofs of what cannot, and first populations."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import SEED, TINY, every_genome, made_up_costs

from apq_deploy import BudgetError, SearchSpace, UserError
from apq_deploy.search import Budget, Choices, Menu, SpaceCosts, UnreachableBudget
from apq_deploy.search.exact import find_within
from apq_deploy.search.reach import reach, require_reachable
from apq_deploy.search.starts import Seen, balancing_weights, feasible_starts, spread_starts
from hwmodels import load_hardware

TINY_GENES = every_genome(TINY)


@pytest.fixture(scope="module")
def imagenet() -> Menu:
    space = SearchSpace.load("apq-imagenet")
    return Menu.of(SpaceCosts.from_hardware(space, load_hardware("bitfusion"), "apq"))


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), True, "3"])
def test_limits_are_positive_numbers(limit: object) -> None:
    with pytest.raises(UserError, match="positive number for the budget latency_ms"):
        Budget(latency_ms=limit)  # type: ignore[arg-type]


def test_budgets_survive_json_and_refuse_other_costs() -> None:
    budget = Budget(latency_ms=8.4, size_kb=900)
    assert Budget.from_json(budget.to_json()) == budget
    assert str(budget) == "latency <= 8.4 ms, size <= 900 kB"
    with pytest.raises(UserError, match="power_w"):
        Budget.from_json({"power_w": 3.0})


@pytest.mark.parametrize(("budget", "words"), [(Budget(latency_ms=2.5), "2.959 ms"), (Budget(energy_mj=5), "5.107 mJ")])
def test_out_of_reach_is_said_at_once_with_the_least(imagenet: Menu, budget: Budget, words: str) -> None:
    start = time.process_time()
    with pytest.raises(UnreachableBudget, match=f"the least reachable is {words}") as caught:
        feasible_starts(imagenet, budget, 100, np.random.default_rng(SEED))
    assert time.process_time() - start < 1.0
    assert isinstance(caught.value, BudgetError)
    assert caught.value.proved
    name = next(iter(budget.limits))
    assert caught.value.costs[name] == imagenet.costs.of(imagenet.minimum(name))[name]
    assert imagenet.costs.of(caught.value.genome) == caught.value.costs


def test_the_least_itself_is_reachable(imagenet: Menu) -> None:
    least = imagenet.costs.of(imagenet.minimum("latency_ms"))["latency_ms"]
    starts = feasible_starts(imagenet, Budget(latency_ms=least), 100, np.random.default_rng(SEED))
    assert len(starts) >= 1
    assert imagenet.costs.fits(starts, Budget(latency_ms=least).bounds(imagenet.costs)).all()


@pytest.mark.parametrize("limit", [3.2, 6.2, 12.2])
def test_a_whole_population_starts_within_tight_budgets(imagenet: Menu, limit: float) -> None:
    starts = feasible_starts(imagenet, Budget(latency_ms=limit), 100, np.random.default_rng(SEED))
    assert imagenet.costs.fits(starts, Budget(latency_ms=limit).bounds(imagenet.costs)).all()
    assert len(np.unique(imagenet.costs.used_rows(starts), axis=0)) == 100


def test_loose_budgets_start_as_random_sampling_does(imagenet: Menu) -> None:
    bounds = Budget(latency_ms=40.0).bounds(imagenet.costs)
    assert not balancing_weights(imagenet, bounds).any()
    drawn = imagenet.draw(imagenet.tilt(np.zeros(5)), 4000, np.random.default_rng(SEED))
    sampled = imagenet.costs.space.sample(4000, np.random.default_rng(SEED))
    assert imagenet.costs.space.depths(drawn).mean() == pytest.approx(
        imagenet.costs.space.depths(sampled).mean(), abs=0.03
    )
    assert imagenet.costs.totals(drawn)[:, 0].mean() == pytest.approx(
        imagenet.costs.totals(sampled)[:, 0].mean(), rel=0.02
    )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_tilts_have_the_mean_and_the_chances_they_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    menu = Menu.of(made_up_costs(TINY))
    weights = rng.uniform(-1, 3, 5) * np.array([1, 1, 0, 0, 0])
    # brute force: a network's chance is that of its choices under uniform drawing, times the factor
    kernel, active = TINY.split(TINY_GENES)[1][..., 0], TINY.active(TINY_GENES)
    one_block = np.where(kernel == 0, 1 / (2 * 2 * 16), 1 / (2 * 2 * 8))  # 7x7 exists at one of two activation widths
    chance = 0.5 * np.where(active, one_block, 1.0).prod(axis=1) * np.exp(-(menu.costs.totals(TINY_GENES) @ weights))
    chance /= chance.sum()
    tilt = menu.tilt(weights)
    assert tilt.mean == pytest.approx(chance @ menu.costs.totals(TINY_GENES), rel=1e-9)
    drawn = menu.draw(tilt, 4000, rng)
    assert menu.choices.contains(drawn).all()
    assert menu.costs.totals(drawn)[:, 0].mean() == pytest.approx(tilt.mean[0], abs=0.1)


@given(st.integers(0, 50), st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5), st.integers(1, 31))
@settings(max_examples=60, deadline=None)
def test_joint_reach_equals_brute_force(seed: int, quantiles: list[float], which: int) -> None:
    menu = Menu.of(made_up_costs(TINY, seed))
    totals = menu.costs.totals(TINY_GENES)
    bounds = np.array([np.quantile(column, q**2) for column, q in zip(totals.T, quantiles, strict=True)])
    bounds[[i for i in range(5) if not which >> i & 1]] = np.inf
    answer = reach(menu, bounds)
    want = bool((totals <= bounds * (1 + 1e-12)).all(axis=1).any())
    assert answer.reachable is want
    assert menu.costs.fits(answer.genome[None], bounds)[0] == want


@given(st.integers(0, 50), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_the_exact_search_alone_equals_brute_force(seed: int, first: float, second: float) -> None:
    menu = Menu.of(made_up_costs(TINY, seed))
    totals = menu.costs.totals(TINY_GENES)
    bounds = np.full(5, np.inf)
    bounds[:2] = np.quantile(totals[:, 0], first**2), np.quantile(totals[:, 1], second**2)
    weights = np.where(np.isfinite(bounds), 0.5 / bounds, 0.0)
    found, complete = find_within(menu, bounds, weights, 20_000)
    assert complete
    assert (found is not None) == bool((totals <= bounds * (1 + 1e-12)).all(axis=1).any())


def test_joint_budgets_out_of_reach_are_refuted_with_the_nearest() -> None:
    menu = Menu.of(made_up_costs(TINY))
    alone = Budget(
        latency_ms=menu.costs.of(menu.minimum("latency_ms"))["latency_ms"] * 1.001,
        energy_mj=menu.costs.of(menu.minimum("energy_mj"))["energy_mj"] * 1.001,
    )
    with pytest.raises(UnreachableBudget, match=r"together .* the least reachable alone is") as caught:
        require_reachable(menu, alone)
    assert caught.value.proved
    assert menu.costs.of(caught.value.genome) == caught.value.costs


def test_a_search_cut_short_says_that_it_proved_nothing() -> None:
    space = SearchSpace.load("fashion")
    menu = Menu.of(made_up_costs(space))
    bounds = np.full(5, np.inf)
    bounds[0] = menu.costs.of(menu.minimum("latency_ms"))["latency_ms"] * 1.2
    low, high = (
        menu.costs.of(menu.minimum("energy_mj"))["energy_mj"],
        menu.costs.of(reach(menu, bounds).genome)["energy_mj"],
    )
    for _ in range(12):  # to just below the least energy within the latency
        bounds[1] = (low + high) / 2
        low, high = (low, bounds[1]) if reach(menu, bounds).reachable else (bounds[1], high)
    bounds[1] = low
    answer = reach(menu, bounds, state_limit=1)
    assert answer.reachable in (None, False)
    whole = reach(menu, bounds)
    assert whole.reachable is not True or menu.costs.fits(whole.genome[None], bounds)[0]


def test_frozen_choices_have_their_own_least(imagenet: Menu) -> None:
    space = imagenet.costs.space
    wide = Menu.of(imagenet.costs, Choices.of(space, bits=8))
    least = wide.minimum("latency_ms")
    assert {space.bits[i] for i in space.split(least[None])[1][0][:, 2:].ravel() if i} == {8}
    assert imagenet.costs.of(least)["latency_ms"] > imagenet.costs.of(imagenet.minimum("latency_ms"))["latency_ms"]
    with pytest.raises(UnreachableBudget, match="with the frozen choices"):
        require_reachable(wide, Budget(latency_ms=3.0))


def test_spread_starts_cover_the_range(imagenet: Menu) -> None:
    budget = Budget(energy_mj=12.0)
    starts = spread_starts(imagenet, budget, ["latency_ms"], 100, np.random.default_rng(SEED))
    assert imagenet.costs.fits(starts, budget.bounds(imagenet.costs)).all()
    latency = imagenet.costs.gather(starts)["latency_ms"]
    assert latency.min() == pytest.approx(2.959, abs=1e-3)
    assert latency.max() > 7.0


def test_seen_keeps_the_first_of_each_network() -> None:
    costs = made_up_costs(TINY)
    genes = TINY.sample(500, np.random.default_rng(SEED))
    seen = Seen(costs)
    first = seen.fresh(genes, 3)
    assert (first == genes[:3]).all()
    rest = seen.fresh(genes)
    assert len(first) + len(rest) == len(np.unique(TINY.canonical(genes), axis=0)) == len(seen)
    assert not len(seen.fresh(genes))
