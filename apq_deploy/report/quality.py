"""Parts of the page about the exported network: accuracies, agreement of all who compute it, sizes and speed."""

from __future__ import annotations

from math import sqrt

from apq_deploy.report.evidence import HeldOut
from apq_deploy.report.markup import Markup, data_table, figure, folded, grid, joined, note, tag
from apq_deploy.report.missing import missing
from apq_deploy.report.outcome import file_accuracy
from apq_deploy.report.plot import Row, Series, bars, chart, dots
from apq_deploy.report.records import Agreement, CompileRecord, ExportRecord, Missing, RunRecords
from apq_deploy.report.words import percent, plural, size, time_unit

_STEPS = {
    "float": "float, torch",
    "calibrated": "calibrated, torch",
    "finetuned": "fine-tuned, torch",
    "onnxruntime": "file, onnxruntime",
}
_RUNTIMES = {"compiled": "compiled, TVM", "onnxruntime": "onnxruntime"}
# Two-sided 95 % of the normal distribution.
_DEVIATIONS = 1.96


def margin_percent(accuracy_percent: float, images: int) -> float:
    """Half the 95 % interval of an accuracy measured on so many images, in per cent (normal approximation)."""
    share = accuracy_percent / 100
    return 100 * _DEVIATIONS * sqrt(share * (1 - share) / images)


def accuracy_part(records: RunRecords, points: HeldOut | Missing) -> Markup:
    """Predicted accuracy beside every measured one, and the predictor on points that it has not seen."""
    figures = [_steps(records)]
    remarks = []
    if isinstance(points, Missing):
        remarks.append(missing(points, "The predictor is not shown on held-out points."))
    else:
        figures.append(_scatter(records, points))
        remarks.append(
            note(
                f"On {plural(len(points.measured), 'network')} held out of its training, the predictor is off by "
                f"{100 * points.rmse:.2f} points (root mean square) and ranks {percent(points.pairs_ranked_right)} of "
                "all pairs right."
            )
        )
    remarks += _scores(records)
    if isinstance(records.export, Missing):
        remarks.insert(0, missing(records.export))
    else:
        images = records.export.images
        remarks.insert(
            0,
            note(
                f"Measured on {plural(images['test'], 'test image')}, calibrated and fine-tuned on "
                f"{plural(images['train'], 'training image')} ({images['source']}). Whiskers: 95 % intervals for so "
                "many test images."
            ),
        )
    return joined([grid(*figures), *remarks])


def _scores(records: RunRecords) -> list[Markup]:
    """How predictors of the same points compare on held-out points, as `fit` noted it."""
    if isinstance(records.provenance, Missing) or "fit" not in records.provenance:
        return []
    rows = [
        (
            name,
            str(score.points),
            percent(score.pairwise_accuracy),
            f"{score.kendall_tau:.3f}",
            f"{score.mean_error_points:.2f}",
        )
        for name, score in records.provenance["fit"].scores.items()
    ]
    head = ("predictor", "held-out points", "pairs ranked right", "Kendall's tau", "mean error, points")
    return [folded("Predictors with and without transfer", data_table(head, rows))] if rows else []


def _steps(records: RunRecords) -> Markup:
    predicted = 100 * records.search.predicted_accuracy
    rows = [Row("predicted", predicted, f"{predicted:.2f} %", 2, is_hollow=True)]
    if not isinstance(records.export, Missing):
        images = int(records.export.images["test"])
        for step, value in records.export.accuracies.items():
            rows.append(_measured(_STEPS.get(step, step), value, images))
    if not isinstance(records.compiled, Missing) and (found := records.compiled.comparison) is not None:
        value = found.accuracy_percent
        if value is not None:
            rows.append(_measured("library, TVM", value, found.images))
    summary = "Accuracies: " + ", ".join(f"{row.name} {row.words}" for row in rows)
    return figure("Predicted and measured accuracy, %", dots(rows, summary))


def _measured(name: str, value: float, images: int) -> Row:
    margin = margin_percent(value, images)
    return Row(name, value, f"{value:.2f} %", 1, span=(value - margin, value + margin))


def _scatter(records: RunRecords, points: HeldOut) -> Markup:
    series = [
        Series(
            "network held out of the training",
            (100 * points.predicted).tolist(),
            (100 * points.measured).tolist(),
            "circles",
            1,
        )
    ]
    measured = file_accuracy(records)
    if measured is not None:
        series.append(Series("chosen", [100 * records.search.predicted_accuracy], [measured], "diamond", 2))
    summary = f"Predicted against measured accuracy of {plural(len(points.measured), 'network')}."
    drawn = chart(series, "predicted, %", "measured, %", summary, height=300.0, diagonal=True)
    return figure("The predictor on networks that it has not seen", drawn)


def agreement_part(records: RunRecords) -> Markup:
    """Who computes the same codes as the NumPy reference, and whether every layer carries its bits."""
    parts: list[str] = []
    rows: list[list[str]] = []
    if isinstance(records.export, Missing):
        parts.append(missing(records.export))
    else:
        rows += _agreement_rows(records.export.agreement)
    if isinstance(records.compiled, Missing):
        parts.append(missing(records.compiled))
    elif (found := records.compiled.comparison) is None:
        parts.append(note(f"The library is for {records.compiled.target}, which this machine cannot run."))
    else:
        rows += _agreement_rows(found.tensors)
        logits = f"{found.differing_logits} logits"
        rows.append(["TVM with onnxruntime", _verdict(found.differing_logits), logits, f"{found.images}"])
        parts.append(
            note(
                f"The compiled library and onnxruntime choose the same class for {found.same_class} of {found.images} "
                f"images ({found.source})."
            )
        )
    if rows:
        parts.insert(0, data_table(("compared", "equal", "differing", "images"), rows))
    if not isinstance(records.export, Missing):
        parts.append(_audit(records.export))
    return joined(parts)


def _verdict(differing: int) -> Markup:
    return tag("span", {"class": "bad" if differing else "good"}, "✗ no" if differing else "✓ yes")


def _agreement_rows(found: Agreement) -> list[list[str]]:
    return [
        [
            f"{source} with NumPy",
            _verdict(found.differing[source]),
            f"{found.differing[source]} codes, {tensors} tensors",
            str(found.images),
        ]
        for source, tensors in found.tensors.items()
    ]


def _audit(export: ExportRecord) -> Markup:
    claims = [tag("p", None, tag("span", {"class": "bad"}, "✗ "), claim) for claim in export.false_claims]
    if not claims:
        text = "An audit of the file finds the bits that it claims in every layer."
        claims = [tag("p", None, tag("span", {"class": "good"}, "✓ "), text)]
    rows = [
        (
            layer.name,
            layer.kind,
            _bits(layer.claimed_weight_bits, layer.claimed_input_bits),
            "-" if layer.used_weight_bits is None else f"W{layer.used_weight_bits}",
            "-" if layer.storage_bits is None else f"{layer.storage_bits} bit",
            str(layer.weights),
            str(layer.size_bytes),
            layer.kernel or "-",
            "-" if layer.is_integer is None else "integer" if layer.is_integer else "float",
        )
        for layer in export.layers
    ]
    head = ("layer", "kind", "claimed", "used", "stored", "weights", "bytes", "onnxruntime", "runs in")
    return joined([*claims, folded("The audit, layer by layer", data_table(head, rows))])


def _bits(weight: int | None, act: int | None) -> str:
    return ("" if weight is None else f"W{weight}") + ("" if act is None else f"A{act}") or "-"


def sizes_part(records: RunRecords) -> Markup:
    """Bytes of the weights, the file and the library; milliseconds of one image."""
    export, compiled = records.export, records.compiled
    figures, remarks = [], []
    if not isinstance(export, Missing):
        figures.append(_sizes(export, None if isinstance(compiled, Missing) else compiled))
    timings = [] if isinstance(export, Missing) else [export.float_timing]
    timings += [] if isinstance(compiled, Missing) else list(compiled.timings)
    if timings:
        unit = time_unit(timing.median_ms for timing in timings)
        rows = [
            Row(
                _RUNTIMES.get(timing.runtime, timing.runtime),
                timing.median_ms,
                unit.text(timing.median_ms),
                1 if timing.runtime == "compiled" else 4,
            )
            for timing in timings
        ]
        summary = "Latency of one image: " + ", ".join(f"{row.name} {row.words}" for row in rows)
        figures.append(figure("Latency of one image on a CPU, median", bars(rows, summary, values=72.0)))
        spreads = "; ".join(
            f"{row.name} {unit.text(timing.low_ms)} to {unit.text(timing.high_ms)}, {plural(timing.threads, 'thread')}"
            for row, timing in zip(rows, timings, strict=True)
        )
        remarks.append(note(f"Spread (torch: quartiles; the others: 10 to 90 %): {spreads}."))
    remarks += [missing(each) for each in (export, compiled) if isinstance(each, Missing)]
    return joined([grid(*figures), *remarks])


def _sizes(export: ExportRecord, compiled: CompileRecord | None) -> Markup:
    weights = sum(layer.weights for layer in export.layers)
    stored = sum(layer.weights * (layer.storage_bits or 32) for layer in export.layers) / 8
    rows = [
        Row("weights in float32", 4.0 * weights, size(4 * weights), 4),
        Row("weights as stored", stored, size(stored), 1),
        Row("ONNX file", float(export.file_bytes), size(export.file_bytes), 1),
    ]
    if compiled is not None:
        name = f"library ({compiled.target})"
        rows.append(Row(name, float(compiled.library_bytes), size(compiled.library_bytes), 2))
    summary = "Sizes: " + ", ".join(f"{row.name} {row.words}" for row in rows)
    return figure("Sizes", bars(rows, summary, names=140.0, values=72.0))
