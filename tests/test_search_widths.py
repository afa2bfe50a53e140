"""Hardware that accepts some bit widths only: its table is built, searched with and explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apq_deploy import SearchSpace, UserError
from apq_deploy.search import Budget, SpaceCosts, search
from apq_deploy.search.explain import explain
from apq_deploy.search.pareto import pareto_search
from apq_deploy.search.watch import Evolution
from apq_deploy.workload import Widths, arch_layers, space_entries
from hwmodels import BitFusion, CostTable, build_table, load_hardware

FASHION = SearchSpace.load("fashion")


def narrow(weight_bits: tuple[int, ...], act_bits: tuple[int, ...]) -> BitFusion:
    hardware = load_hardware("bitfusion")
    assert isinstance(hardware, BitFusion)
    return replace(hardware, name="narrow", weight_bits=weight_bits, act_bits=act_bits)


def table_of(hardware: BitFusion) -> CostTable:
    return build_table(hardware, space_entries(FASHION, Widths.of(hardware.describe())))


def accuracy(features: np.ndarray) -> np.ndarray:
    """Fewer ones in the features of bits are no better: every search would like 4 bits."""
    return features @ np.linspace(0, 1, features.shape[1]).astype(np.float32)


@pytest.mark.parametrize(("weight_bits", "act_bits"), [((8,), (8,)), ((4, 8), (8,)), ((4,), (6, 8))])
def test_only_accepted_widths_are_chosen(weight_bits: tuple[int, ...], act_bits: tuple[int, ...]) -> None:
    # Stem, head and classifier are at 8 bits in every network, so the hardware must take those too.
    hardware = narrow(tuple({*weight_bits, 8}), tuple({*act_bits, 8}))
    costs = SpaceCosts.from_table(FASHION, table_of(hardware))
    result = search(costs, accuracy, Budget(latency_ms=0.1))
    for block in result.arch.blocks:
        assert block.bits is not None
        assert {block.bits.pointwise_weight, block.bits.depthwise_weight} <= {*weight_bits, 8}
        assert {block.bits.pointwise_act, block.bits.depthwise_act} <= {*act_bits, 8}
    layers = [(each.layer, each.precision) for each in arch_layers(FASHION, result.arch)]
    assert result.costs["full"]["latency_ms"] == pytest.approx(sum(c.latency_ms for c in hardware.layer_costs(layers)))
    assert "inf" not in " ".join(explain(costs, result.genes).sentences())


def test_a_front_holds_accepted_widths_only() -> None:
    """Warnings are errors, so no cost on the way is infinite either."""
    costs = SpaceCosts.from_hardware(FASHION, narrow((8,), (8,)))
    front = pareto_search(costs, accuracy, ("latency_ms",), settings=Evolution(generations=20))
    assert np.isfinite(costs.totals(front.genes)).all()
    assert costs.fits(FASHION.extreme(largest=False, bits=4)[None], np.full(len(costs.metrics), np.inf)).tolist() == [
        False
    ]


def test_widths_that_the_hardware_lacks_are_refused() -> None:
    costs = SpaceCosts.from_hardware(FASHION, narrow((8,), (8,)))
    with pytest.raises(UserError, match="the hardware accepts 8 bits for pointwise_weight"):
        search(costs, accuracy, Budget(latency_ms=0.1), bits=4)
