"""All stages in their order, or those that are named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from apq_deploy.errors import UserError
from benchmarks.paper.ledger import Ledger
from benchmarks.paper.plan import Plan

STAGES = ("shrinking", "points", "transfer", "refine", "joint", "cost", "alone", "writing")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)} [all]")
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where measurements are kept [results]")
    parser.add_argument("--workers", type=int, default=2, help="processes that measure at the same time [2]")
    parser.add_argument("--device", default="cpu", help="where networks are computed [cpu]")
    asked = parser.parse_args()
    if unknown := set(asked.stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; known are {', '.join(STAGES)}")
    plan = Plan(asked.folder, asked.data, asked.workers, asked.device)
    ledger = Ledger(plan.ledger)
    for stage in STAGES:
        if not asked.stages or stage in asked.stages:
            print(f"== {stage}", flush=True)
            run: Callable[[Plan, Ledger], None] = import_module(f"benchmarks.paper.{stage}").run
            try:
                run(plan, ledger)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
