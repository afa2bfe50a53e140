"""Command that searches."""

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


def search(
    latency_ms: Annotated[float | None, typer.Option(help="Latency budget on the hardware, ms.")] = None,
    energy_mj: Annotated[float | None, typer.Option(help="Energy budget on the hardware, mJ.")] = None,
    bitops_g: Annotated[float | None, typer.Option(help="Budget of bit operations, 10^9.")] = None,
    size_kb: Annotated[float | None, typer.Option(help="Budget of stored weights, 10^3 bytes.")] = None,
    macs_m: Annotated[float | None, typer.Option(help="Budget of multiply-accumulates, 10^6.")] = None,
    space: SpaceOption = "fashion",
    hardware: HardwareOption = "bitfusion",
    table: Annotated[Path | None, typer.Option(help="Cost table to use in place of --hardware.")] = None,
    scope: Annotated[
        str, typer.Option(help="Sums of every layer (full) or as APQ's released table has them (apq).")
    ] = "full",
    model: ModelOption = None,
    algorithm: Annotated[str, typer.Option(help="Search algorithm; apq is the paper's.")] = "apq",
    freeze: Annotated[
        list[str] | None, typer.Option(help="Hold fixed: architecture, depths, kernels, channels or bits; repeatable.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="One bit width for every block.")] = None,
    seed: SeedOption = 0,
    run: RunOption = DEFAULT_RUN,
    as_json: JsonOption = False,
) -> None:
    """Search the most accurate network within a budget; the result is kept for `export`."""
    from apq_deploy.deployment import describe_search, search_network
    from apq_deploy.search import Budget

    budget = Budget(latency_ms, energy_mj, bitops_g, size_kb, macs_m)
    result = search_network(
        space, budget, hardware, table, scope, model, algorithm, tuple(freeze or ()), bits, seed, run
    )
    show(result.to_json(), describe_search(result), as_json)
