"""Commands that search: search, pick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apq_deploy.commands.options import (
    DEFAULT_RUN,
    HardwareOption,
    JsonOption,
    ModelOption,
    RunOption,
    SeedOption,
    SpaceOption,
    show,
)

LatencyOption = Annotated[float | None, typer.Option(help="Latency budget on the hardware, ms.")]
EnergyOption = Annotated[float | None, typer.Option(help="Energy budget on the hardware, mJ.")]
BitOpsOption = Annotated[float | None, typer.Option(help="Budget of bit operations, 10^9.")]
SizeOption = Annotated[float | None, typer.Option(help="Budget of stored weights, 10^3 bytes.")]
MacsOption = Annotated[float | None, typer.Option(help="Budget of multiply-accumulates, 10^6.")]
TableOption = Annotated[Path | None, typer.Option(help="Cost table to use in place of --hardware.")]


def search(
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    bitops_g: BitOpsOption = None,
    size_kb: SizeOption = None,
    macs_m: MacsOption = None,
    space: SpaceOption = "fashion",
    hardware: HardwareOption = "bitfusion",
    table: TableOption = None,
    scope: Annotated[
        str, typer.Option(help="Sums of every layer (full) or as APQ's released table has them (apq).")
    ] = "full",
    model: ModelOption = None,
    algorithm: Annotated[str, typer.Option(help="islands, or apq: the paper's.")] = "islands",
    freeze: Annotated[
        list[str] | None, typer.Option(help="Hold fixed: architecture, depths, kernels, channels or bits; repeatable.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="One bit width for every block.")] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="Run folder whose network gives what --freeze holds fixed [the largest network]."),
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Search the whole front; `apq-deploy pick` chooses.")
    ] = False,
    objective: Annotated[
        list[str] | None, typer.Option(help="Cost of the front, latency_ms by default; repeatable.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what every choice costs.")] = False,
    seed: SeedOption = 0,
    run: RunOption = DEFAULT_RUN,
    as_json: JsonOption = False,
) -> None:
    """Search the most accurate network within a budget; the result is kept for `export`."""
    from apq_deploy.deployment import (
        SearchRequest,
        describe_arch,
        describe_front,
        describe_search,
        search_front,
        search_network,
    )
    from apq_deploy.errors import UserError
    from apq_deploy.files import locked
    from apq_deploy.search import Budget, UnreachableBudget
    from apq_deploy.search.explain import explain_lines
    from apq_deploy.search.run import DEFAULT_ALGORITHM
    from apq_deploy.space import SearchSpace

    if pareto and (explain or algorithm != DEFAULT_ALGORITHM):
        raise UserError("expected --pareto without --explain and --algorithm: a front is searched by one algorithm")
    if objective and not pareto:
        raise UserError("expected --pareto with --objective; without it the budget says what is searched")
    if network is not None and not freeze:
        raise UserError("expected --freeze with --network: it says what of that network is held fixed")
    budget = Budget(latency_ms, energy_mj, bitops_g, size_kb, macs_m)
    request = SearchRequest(
        space, budget, hardware, table, scope, model, algorithm, tuple(freeze or ()), bits, network, seed
    )
    try:
        with locked(run, wait=True):
            if pareto:
                front = search_front(request, tuple(objective or ("latency_ms",)), run)
                show(front.to_json(), describe_front(front), as_json)
                return
            result, explanation = search_network(request, run)
    except UnreachableBudget as error:
        if not as_json:
            print(f"the nearest network:\n{describe_arch(SearchSpace.load(space).decode(error.genome))}")
        raise
    notes = explain_lines(explanation) if explain else explanation.sentences()
    show(result.to_json(), describe_search(result, notes), as_json)


def pick(
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    bitops_g: BitOpsOption = None,
    size_kb: SizeOption = None,
    macs_m: MacsOption = None,
    hardware: HardwareOption = "bitfusion",
    table: TableOption = None,
    run: RunOption = DEFAULT_RUN,
    as_json: JsonOption = False,
) -> None:
    """Pick the most accurate network within a budget from the front of `search --pareto`."""
    from apq_deploy.deployment import describe_search, pick_from_front
    from apq_deploy.files import locked
    from apq_deploy.search import Budget

    with locked(run, wait=True):
        result = pick_from_front(Budget(latency_ms, energy_mj, bitops_g, size_kb, macs_m), hardware, table, run)
    show(result.to_json(), describe_search(result, []), as_json)
