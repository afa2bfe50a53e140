"""Costs of populations against sums over layers, extremes against all networks of a tiny space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import CHEAP_TINY, SEED, TINY, cost_of_layers, every_genome, made_up_costs, made_up_table

from apq_deploy import SearchSpace, UserError
from apq_deploy.search import METRICS, Choices, Menu, SpaceCosts
from apq_deploy.search.costs import stored_weight_bytes
from apq_deploy.search.explain import explain, explain_lines
from apq_deploy.workload import arch_layers
from hwmodels import BitFusion, ConvLayer, Cost, MissingEntry, Precision, build_table, load_hardware
from hwmodels.table import make_table


@pytest.fixture(scope="module")
def imagenet() -> SpaceCosts:
    return SpaceCosts.from_hardware(SearchSpace.load("apq-imagenet"), load_hardware("bitfusion"), "apq")


def test_weights_are_counted_as_they_are_stored() -> None:
    layer = ConvLayer(3, 5, 8, 1)  # 15 weights
    assert [stored_weight_bytes(layer, bits) for bits in (2, 4, 5, 6, 8)] == [8, 8, 15, 15, 15]


@pytest.mark.parametrize("name", ["apq-imagenet", "fashion"])
def test_gathers_equal_the_sums_over_layers(name: str) -> None:
    space = SearchSpace.load(name)
    table = made_up_table(space)
    costs = SpaceCosts.from_table(space, table)
    genes = space.sample(1000, np.random.default_rng(SEED))
    for scope in costs.scopes:
        gathered = costs.in_scope(scope).gather(genes)
        for i in range(1000):
            want = cost_of_layers(space, table, space.decode(genes[i]), scope)
            got = {metric: values[i] for metric, values in gathered.items()}
            assert got == pytest.approx(want, rel=1e-12)


def test_only_latency_and_energy_have_a_scope(imagenet: SpaceCosts) -> None:
    genome = imagenet.space.extreme(largest=True)
    full, apq = imagenet.in_scope("full").of(genome), imagenet.of(genome)
    assert full["latency_ms"] > apq["latency_ms"]
    assert full["energy_mj"] > apq["energy_mj"]
    assert [full[name] for name in METRICS[2:]] == [apq[name] for name in METRICS[2:]]


def test_a_space_without_parts_left_out_has_one_sum() -> None:
    costs = made_up_costs(TINY)
    assert costs.scopes == ("full",)
    with pytest.raises(UserError, match="left_out_of_sums"):
        costs.in_scope("apq")


def test_extremes_of_apq_are_the_published_ones(imagenet: SpaceCosts) -> None:
    menu = Menu.of(imagenet)
    least, most = menu.minimum("latency_ms"), menu.maximum("latency_ms")
    assert imagenet.of(least)["latency_ms"] == pytest.approx(2.959, abs=5e-4)
    assert imagenet.of(most)["latency_ms"] == pytest.approx(46.79, abs=5e-3)
    assert imagenet.of(menu.minimum("energy_mj"))["energy_mj"] == pytest.approx(5.107, abs=5e-4)
    assert imagenet.of(menu.maximum("energy_mj"))["energy_mj"] == pytest.approx(41.60, abs=5e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_extremes_equal_brute_force(metric: str) -> None:
    costs = made_up_costs(TINY)
    values = costs.gather(every_genome(TINY))[metric]  # type: ignore[index]
    menu = Menu.of(costs)
    assert costs.of(menu.minimum(metric))[metric] == pytest.approx(values.min(), rel=1e-11)  # type: ignore[index]
    assert costs.of(menu.maximum(metric))[metric] == pytest.approx(values.max(), rel=1e-11)  # type: ignore[index]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_extremes_of_some_choices_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = made_up_costs(TINY)
    allowed = rng.random((TINY.n_genes, int(TINY.cardinalities.max()))) < 0.7
    try:
        choices = Choices(TINY, allowed)
    except UserError:
        return
    genes = every_genome(TINY)
    genes = genes[choices.contains(genes)]
    menu = Menu.of(costs, choices)
    weights = rng.random(len(costs.metrics))
    genome, value = menu.least(weights)
    assert choices.contains(genome[None]).all()
    assert value == pytest.approx(float((costs.totals(genes) @ weights).min()), rel=1e-12)
    assert float(costs.totals(genome[None])[0] @ weights) == pytest.approx(value, rel=1e-12)


def test_forbidden_blocks_cost_infinity_and_are_never_least(imagenet: SpaceCosts) -> None:
    space = imagenet.space
    genes = space.extreme(largest=True)[None].copy()
    blocks = space.split(genes)[1]
    blocks[0, 3, -1] = 0  # 7x7 with 4-bit activations
    assert np.isinf(imagenet.gather(genes)["latency_ms"]).all()
    inactive = space.split(genes)[0]
    inactive[:] = 0  # position 3 is the fourth block of stage 1: out of use at depth 2
    assert np.isfinite(imagenet.gather(genes)["latency_ms"]).all()
    menu = Menu.of(imagenet)
    assert np.isfinite(imagenet.totals(menu.maximum("latency_ms")[None])).all()
    assert all(np.isfinite(rows).all() for rows in menu.group_costs)


def test_energy_that_was_not_measured_is_no_metric() -> None:
    whole = made_up_table(TINY)
    first = next(iter(whole))
    partly = make_table("phone", {"kind": "measured"}, {**whole.costs, first: Cost(latency_ms=1.0)})
    costs = SpaceCosts.from_table(TINY, partly)
    assert costs.metrics == ("latency_ms", "bitops_g", "size_kb", "macs_m")
    assert "energy_mj" not in costs.of(TINY.extreme(largest=True))
    with pytest.raises(UserError, match=r"energy is missing for 1 of \d+ layers in the table of phone; measure"):
        costs.column("energy_mj")
    none = {entry: replace(cost, energy_mj=None) for entry, cost in whole.costs.items()}
    for kind, where in (("measured", "measurements"), ("bitfusion", "TOML")):
        costs = SpaceCosts.from_table(TINY, make_table("phone", {"model": kind}, none))
        with pytest.raises(UserError, match=rf"phone has no energies; give them in its {where}, or budget another"):
            costs.column("energy_mj")


def test_energies_of_zero_have_no_shares() -> None:
    """Warnings are errors: nothing is divided by the zero, and no width is called wasteful for it."""
    whole = made_up_table(TINY)
    free = {entry: replace(cost, energy_mj=0.0) for entry, cost in whole.costs.items()}
    costs = SpaceCosts.from_table(TINY, make_table("phone", {}, free))
    found = explain(costs, TINY.extreme(largest=False))
    assert all(block.shares["energy_mj"] == 0 for block in found.blocks)
    assert all("energy_mj" not in {**width.saved, **width.costs} for width in found.widths)
    assert not any("energy_mj" in choice.wasted_on for block in found.blocks for choice in block.choices)
    assert "nan" not in " ".join(explain_lines(found))


def test_interpolated_layers_of_the_network_are_counted() -> None:
    whole = made_up_table(TINY)
    genome = TINY.extreme(largest=True)
    layers = [(each.layer, each.precision) for each in arch_layers(TINY, TINY.decode(genome))]
    fitted = {**whole.costs, layers[1]: replace(whole[layers[1]], source="interpolated")}
    found = explain(SpaceCosts.from_table(TINY, make_table("phone", {}, fitted)), genome)
    count = layers.count(layers[1])
    assert (found.layers, found.interpolated) == (len(layers), count)
    assert f"{count} of {len(layers)} layers" in found.sentences()[-1]
    assert not any("interpolated" in line for line in explain(made_up_costs(TINY), genome).sentences())


def test_used_rows_tell_networks_apart() -> None:
    genes = every_genome(CHEAP_TINY)
    costs = made_up_costs(CHEAP_TINY)
    networks = {CHEAP_TINY.decode(genome) for genome in genes}
    assert len(np.unique(costs.used_rows(genes), axis=0)) == len(networks)


def test_fewer_bits_never_cost_more_on_bitfusion(imagenet: SpaceCosts) -> None:
    space = imagenet.space
    genes = space.sample(200, np.random.default_rng(SEED))
    blocks = space.split(genes)[1]
    blocks[..., 2:] = np.maximum(blocks[..., 2:], 1)
    fewer = genes.copy()
    space.split(fewer)[1][..., 2:5] -= 1
    more, less = imagenet.gather(genes), imagenet.gather(fewer)
    assert (less["latency_ms"] <= more["latency_ms"] * (1 + 1e-12)).all()
    assert (less["size_kb"] <= more["size_kb"]).all()


def test_costs_follow_the_hardware() -> None:
    slow = load_hardware("bitfusion")
    assert isinstance(slow, BitFusion)
    fast = replace(slow, bandwidth_bits_per_cycle=2 * slow.bandwidth_bits_per_cycle)
    space = SearchSpace.load("fashion")
    genome = space.extreme(largest=True)
    pair = [SpaceCosts.from_hardware(space, hardware) for hardware in (slow, fast)]
    assert pair[0].of(genome)["latency_ms"] > pair[1].of(genome)["latency_ms"]
    assert pair[0].hardware_sha256 != pair[1].hardware_sha256


def test_missing_layers_are_named() -> None:
    table = build_table(load_hardware("bitfusion"), [(ConvLayer(1, 8, 28, 3), Precision(8, 8))])
    with pytest.raises(MissingEntry, match="no bitfusion cost for"):
        SpaceCosts.from_table(SearchSpace.load("fashion"), table)
