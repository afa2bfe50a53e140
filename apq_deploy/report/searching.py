"""Parts of the page about the search: the front with the chosen network, and how the search went."""

from __future__ import annotations

import numpy as np

from apq_deploy.report.markup import Markup, data_table, figure, folded, grid, joined, note, tag
from apq_deploy.report.outcome import file_accuracy
from apq_deploy.report.plot import Series, chart
from apq_deploy.report.records import RunRecords
from apq_deploy.report.words import number
from apq_deploy.search import Front, Metric, SearchResult
from apq_deploy.search.budget import in_words, metric_words

_UNITS: dict[Metric, str] = {"latency_ms": "ms", "energy_mj": "mJ", "bitops_g": "G", "size_kb": "kB", "macs_m": "M"}
# Generations in the table of the history.
_ROWS = 20
# Networks of a front that are drawn as dots on its line; more would hide it.
_DOTS = 60


def front_part(records: RunRecords, front: Front, is_made_here: bool) -> Markup:
    """Accuracy against each cost that the front trades it for."""
    result = records.search
    chosen = result.costs[front.scope] if front.scope in result.costs else result.costs[result.scope]
    figures = []
    for name in front.objectives:
        order = np.argsort(front.costs[name], kind="stable")
        x, y = front.costs[name][order], 100 * front.accuracy[order]
        mark = "steps" if len(front.objectives) == 1 else "circles"
        words = f"front, {len(front)} networks"
        series = [Series(words, x.tolist(), y.tolist(), mark, 1)]
        if mark == "steps" and len(front) <= _DOTS:
            series.append(Series("a network of the front", x.tolist(), y.tolist(), "circles", 1))
        predicted = 100 * result.predicted_accuracy
        series.append(Series("chosen, as predicted", [chosen[name]], [predicted], "diamond", 2))
        if (measured := file_accuracy(records)) is not None:
            series.append(Series("chosen, the file as measured", [chosen[name]], [measured], "square", 3))
        summary = (
            f"Front of predicted accuracy against {metric_words(name)}, {in_words(name, float(x[0]))} to "
            f"{in_words(name, float(x[-1]))}; chosen: {predicted:.2f} % at {in_words(name, chosen[name])}."
        )
        label = f"{metric_words(name)}, {_UNITS[name]}"
        drawn = chart(series, label, "accuracy, %", summary, x_limit=result.budget.limits.get(name))
        figures.append(figure(f"Accuracy against {metric_words(name)}", drawn))
    picked = _picked(front)
    rated = f"{int(front.history.evaluations[-1]):,}"
    if is_made_here:
        remark = note(
            f"Made for this page: NSGA-II rated {rated} networks over the whole range of the space, where the search "
            f"rated {result.evaluations:,} for one budget, so the chosen network may lie above the front. ",
            tag("code", None, "apq-deploy search --pareto"),
            " keeps a front in the run folder.",
        )
    else:
        remark = note(f"NSGA-II rated {rated} networks; {front.stop_reason}; seed {front.seed}.")
    table = folded(
        "Networks of the front",
        data_table(
            ("predicted accuracy", *(f"{metric_words(n)}, {_UNITS[n]}" for n in front.costs)),
            [
                (f"{100 * front.accuracy[i]:.2f}", *(number(float(front.costs[n][i])) for n in front.costs))
                for i in picked
            ],
            row_heads=False,
        ),
        printed=False,
    )
    return joined([grid(*figures), remark, table])


def _picked(front: Front) -> list[int]:
    """At most 20 networks of the front, evenly spread, the ends among them."""
    return sorted({round(i) for i in np.linspace(0, len(front) - 1, min(_ROWS, len(front)))})


def history_part(result: SearchResult) -> Markup:
    """Best, mean and diversity by generation."""
    history = result.history
    generations = list(range(len(history)))
    best, mean = (100 * history.best).tolist(), (100 * history.mean).tolist()
    accuracy = chart(
        [
            Series("best so far", generations, best, "steps", 1),
            Series("mean of the population", generations, mean, "dashed", 2),
        ],
        "generation",
        "predicted accuracy, %",
        f"Predicted accuracy over {len(history) - 1} generations: best {best[0]:.2f} to {best[-1]:.2f} %.",
    )
    diversity = chart(
        [Series("chance that two networks differ in a gene", generations, history.diversity.tolist(), "line", 3)],
        "generation",
        "diversity",
        f"Diversity of the population, {history.diversity[0]:.2f} at first, {history.diversity[-1]:.2f} at the end.",
    )
    last = int(np.flatnonzero(np.diff(history.best) > 0)[-1]) + 1 if len(history) > 1 and best[-1] > best[0] else 0
    picked = sorted({round(i) for i in np.linspace(0, len(history) - 1, min(_ROWS, len(history)))})
    rows = [
        (
            str(i),
            f"{best[i]:.2f}",
            f"{mean[i]:.2f}",
            f"{history.diversity[i]:.3f}",
            str(int(history.evaluations[i])),
            str(int(history.size[i])),
        )
        for i in picked
    ]
    head = ("generation", "best, %", "mean, %", "diversity", "networks rated", "population")
    words = (
        f"{result.evaluations:,} networks rated, {result.stop_reason}; the best was found in generation {last}. "
        f"Algorithm {result.algorithm}, seed {result.seed}."
    )
    if result.algorithm == "islands":
        words += " Where the mean falls and the diversity rises, a new island begins."
    return joined(
        [
            grid(figure("Predicted accuracy", accuracy), figure("Diversity of the population", diversity)),
            note(words),
            folded("Numbers by generation", data_table(head, rows), printed=False),
        ]
    )
