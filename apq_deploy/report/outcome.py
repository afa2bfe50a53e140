"""The page's first part: what was asked for, what came out, and whether the budget is kept."""

from __future__ import annotations

from apq_deploy.report.markup import Markup, data_table, joined, note, paragraph, tag
from apq_deploy.report.records import Missing, RunRecords
from apq_deploy.report.words import number, percent, size, time_unit
from apq_deploy.search import METRICS, Metric, SearchResult
from apq_deploy.search.budget import in_words, metric_words


def file_accuracy(records: RunRecords) -> float | None:
    """Measured accuracy of the exported file in per cent, None before the export."""
    return None if isinstance(records.export, Missing) else records.export.accuracies.get("onnxruntime")


def outcome(records: RunRecords) -> Markup:
    result = records.search
    costs = result.costs[result.scope]
    met = all(costs[name] <= limit * (1 + 1e-9) for name, limit in result.budget.limits.items())
    if not result.budget.limits:
        verdict = "No budget was set: the search looked for accuracy alone."
    else:
        shares = ", ".join(
            f"{metric_words(name)} {in_words(name, costs[name])} of {limit:g} ({percent(costs[name] / limit)})"
            for name, limit in result.budget.limits.items()
        )
        verdict = f"The network {'keeps' if met else 'does not keep'} its budget: {shares}."
    return joined(
        [
            tag("p", {"class": "verdict"}, tag("strong", None, "✓ " if met else "✗ "), verdict),
            tag("div", {"class": "tiles"}, *_tiles(records)),
            _budget(result),
            _scope_note(result),
        ]
    )


def _tile(name: str, value: str, remark: str) -> Markup:
    return tag(
        "div",
        {"class": "tile"},
        tag("span", {"class": "name"}, name),
        tag("span", {"class": "value"}, value),
        tag("span", {"class": "remark"}, remark),
    )


def _tiles(records: RunRecords) -> list[Markup]:
    result = records.search
    costs = result.costs[result.scope]
    predicted = f"predicted {100 * result.predicted_accuracy:.2f} %"
    measured = file_accuracy(records)
    if measured is None or isinstance(records.export, Missing):
        tiles = [_tile("Accuracy", f"{100 * result.predicted_accuracy:.2f} %", "predicted; not measured yet")]
    else:
        images = f"{records.export.images['test']} test images"
        tiles = [_tile("Accuracy of the file", f"{measured:.2f} %", f"{predicted}; {images}")]
    for name in ("latency_ms", "energy_mj"):
        if name in costs:
            words = metric_words(name).capitalize()
            tiles.append(_tile(words, _with_unit(name, costs[name]), f"on {result.hardware}, one image"))
    stored = f"weights as stored {in_words('size_kb', costs['size_kb'])}"
    if isinstance(records.export, Missing):
        tiles.append(_tile("Size", in_words("size_kb", costs["size_kb"]), "weights as they will be stored"))
    else:
        tiles.append(_tile("ONNX file", size(records.export.file_bytes), stored))
    if not isinstance(records.compiled, Missing):
        medians = {timing.runtime: timing for timing in records.compiled.timings}
        if "compiled" in medians:
            ours = medians["compiled"].median_ms
            remark = "compiled, one image"
            if "onnxruntime" in medians:
                remark += f"; {ours / medians['onnxruntime'].median_ms:.2f} of onnxruntime's time"
            tiles.append(_tile("On the CPU", time_unit([ours]).text(ours), remark))
    return tiles


def _budget(result: SearchResult) -> Markup:
    costs = result.costs[result.scope]
    rows = []
    for name in METRICS:
        if name not in costs:
            continue
        limit = result.budget.limits.get(name)
        used = "" if limit is None else percent(costs[name] / limit)
        rows.append((_label(name), _with_unit(name, costs[name]), "free" if limit is None else f"≤ {limit:g}", used))
    return data_table(("cost", "found", "budget", "used"), rows)


def _label(name: Metric) -> str:
    words = {"bitops_g": "bit operations", "size_kb": "weights as stored", "macs_m": "multiply-accumulates"}
    return words.get(name, metric_words(name))


def _with_unit(name: Metric, value: float) -> str:
    return in_words(name, value) if value >= 1e-4 else number(value)


def _scope_note(result: SearchResult) -> Markup:
    if len(result.costs) == 1:
        return note("Latency and energy are sums over every layer.")
    other = "apq" if result.scope == "full" else "full"
    sums = {"full": "every layer", "apq": "the layers of APQ's released table"}
    costs = result.costs[other]
    words = ", ".join(in_words(name, costs[name]) for name in ("latency_ms", "energy_mj") if name in costs)
    return paragraph(f"Latency and energy sum {sums[result.scope]}; over {sums[other]} they are {words}.")
