"""docs/results.md, its plots and its CSV files, from what has been measured."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apq_deploy.files import atomic
from apq_deploy.search.budget import metric_words, unit
from benchmarks.paper import tables
from benchmarks.paper.joint import LIMITED, REFINED
from benchmarks.paper.ledger import Ledger
from benchmarks.paper.plan import ARMS, QUANTIZED_POINTS, Plan
from benchmarks.paper.statistics import Mean

DOCS = Path("docs")
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888", "#8c6d31",
           "#332288")  # fmt: skip
MARKERS = "osD^vP*Xd<"


def run(plan: Plan, ledger: Ledger) -> None:
    """Write everything; nothing is measured here."""
    folder = DOCS / "results"
    folder.mkdir(parents=True, exist_ok=True)
    sections = {
        "shrinking": tables.shrinking(plan, ledger),
        "transfer": tables.transfer(plan, ledger),
        "joint": tables.joint(plan, ledger),
    }
    for name, section in sections.items():
        with atomic(folder / f"{name}.csv") as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(section.rows)
    _save(_transfer_plot(plan, ledger), folder / "transfer.svg")
    _save(_joint_plot(plan, ledger), folder / "joint.svg")
    template = Template((resources.files("benchmarks.paper") / "results.md.template").read_text(encoding="utf-8"))
    parts = {name: _text(section) for name, section in sections.items()}
    parts |= {"predicted": _text(tables.predicted(plan, ledger)), "cost": _text(tables.cost(plan, ledger))}
    parts |= {"refined": _text(tables.refined(plan))}
    text = template.substitute(
        parts,
        seed=plan.seed,
        float_points=plan.float_points,
        quantized_points=", ".join(f"{QUANTIZED_POINTS[arm]} with bits {tables.arm_words(arm)}" for arm in ARMS),
        versions=", ".join(f"{name} {version}" for name, version in plan.model().recorded("train")["versions"].items()),
        finetune_steps=plan.collect.finetune_steps,
        shares=", ".join(f"{100 * share:.0f} %" for share in plan.budget_shares),
        seeds=plan.seeds,
        chosen_points=plan.chosen_points,
        rounds=plan.rounds,
        final_steps=plan.final_steps,
        alone_steps=plan.alone_steps,
    )
    with atomic(DOCS / "results.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{DOCS / 'results.md'}; {tables.unmeasured(plan, ledger)} searched networks not measured with every seed")


def _text(section: tables.Section) -> str:
    return "\n".join(section.lines).rstrip()


def _save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "results"}), atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _transfer_plot(plan: Plan, ledger: Ledger) -> Figure:
    found = ledger.of("transfer")
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(ARMS), sharey=True)
    for panel, arm in zip(panels, ARMS, strict=True):
        mine = {key: value["scores"] for key, value in found.items() if key[0] == arm}
        sizes = sorted({int(key[2]) for key in mine})
        for place, name in enumerate(tables.PREDICTORS):
            means = [
                Mean.of([100 * s[name]["pairwise_accuracy"] for key, s in mine.items() if key[2] == n]) for n in sizes
            ]
            panel.errorbar(
                sizes, [m.mean for m in means], [m.half_width for m in means], label=name, capsize=2, markersize=4,
                color=COLOURS[place], marker=MARKERS[place], linewidth=1.2,
            )  # fmt: skip
        ceiling = 100 * tables.noise(plan, ledger, arm)[2]
        panel.axhline(ceiling, color="#444444", linestyle="--", linewidth=1)
        panel.annotate("noise of the labels", (sizes[0], ceiling), fontsize=8, va="bottom")
        panel.set_xscale("log")
        panel.set_xticks(sizes, list(map(str, sizes)))
        panel.minorticks_off()
        panel.set_title(f"bits {tables.arm_words(arm)}", fontsize=10)
        panel.set_xlabel("fine-tuned quantized points")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("pairs ranked right, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    return figure


def _joint_plot(plan: Plan, ledger: Ledger) -> Figure:
    found = [f for f in tables.searched(plan, ledger) if f.percent]
    figure = Figure(figsize=(12, 3.6 * len(ARMS)), layout="constrained")
    grid = figure.subplots(len(ARMS), len(LIMITED), sharey="row", squeeze=False)
    for row, arm in zip(grid, ARMS, strict=True):
        for panel, metric in zip(row, LIMITED, strict=True):
            _budget_panel(panel, [f for f in found if f.arm == arm and f.metric == metric], tables.methods(arm))
            panel.set_xlabel(f"{metric_words(metric)}, {unit(metric)}")
        row[0].set_ylabel(f"test accuracy, %\nbits {tables.arm_words(arm)}")
    handles = {name: each for row in grid for each, name in zip(*row[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _budget_panel(panel: Axes, found: list[tables.Found], names: list[str]) -> None:
    known = list(dict.fromkeys(name for arm in ARMS for name in tables.methods(arm) if not name.endswith(REFINED)))
    for name in names:
        place = known.index(name.removesuffix(REFINED))
        mine = sorted((f for f in found if f.method == name), key=lambda f: f.limit)
        means = [float(np.mean(f.percent)) for f in mine]
        panel.plot(
            [f.limit for f in mine], means, label=name, color=COLOURS[place], marker=MARKERS[place], markersize=4,
            linewidth=2 if name == "joint" else 1, linestyle="--" if name.endswith(REFINED) else "-",
        )  # fmt: skip
    panel.grid(alpha=0.25)
