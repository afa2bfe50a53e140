"""What an ONNX file costs on a hardware model, layer by layer, and what an audit of it says."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from apq_deploy.errors import UserError
from apq_deploy.files import atomic
from apq_deploy.text import table
from exporters.audit import AuditReport
from exporters.errors import UnsupportedGraph
from exporters.onnx_reader import read_onnx
from exporters.workload import Workload, float_layers, network_layers
from hwmodels import Precision, load_hardware

SCHEMA = "apq-deploy/profile/1"
COLUMNS = (
    "name",
    "kind",
    "layer",
    "weight_bits",
    "act_bits",
    "macs",
    "bitops",
    "latency_ms",
    "energy_mj",
    "share_percent",
)


def profile_model(model: Path, hardware: str, bits: int | None) -> dict[str, Any]:
    """Costs of every layer and both sums: of all layers, and as APQ's released table has them.

    bits: the width of every layer, for a file in float.

    Raises: UserError for a file in float without `bits`; ExportError for a file that cannot be read.
    """
    chosen = load_hardware(hardware)
    layers = _workload(model, bits)
    costs = chosen.layer_costs([(layer, precision) for _, _, layer, precision in layers])
    total = sum(cost.latency_ms for cost in costs)
    left_out = _left_out(layers)
    rows = [
        {
            "name": name,
            "kind": kind,
            "layer": str(layer),
            "weight_bits": precision.weight_bits,
            "act_bits": precision.act_bits,
            "macs": layer.macs,
            "bitops": layer.bitops(precision),
            "latency_ms": cost.latency_ms,
            "energy_mj": cost.energy_mj,
            "share_percent": 100 * cost.latency_ms / total,
            "in_apq_sum": name not in left_out,
        }
        for (name, kind, layer, precision), cost in zip(layers, costs, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "model": model.name,
        "hardware": chosen.name,
        "sums": {"full": _sum(rows), "apq": _sum([row for row in rows if row["in_apq_sum"]])},
        "left_out_of_apq_sum": sorted(left_out),
        "layers": rows,
    }


def _workload(model: Path, bits: int | None) -> Workload:
    if bits is not None:
        return float_layers(model, Precision(bits, bits))
    try:
        return network_layers(read_onnx(model))
    except UnsupportedGraph as error:
        raise UserError(f"{error}; for a file in float say how many bits its layers get, as in `--bits 8`") from None


def _left_out(layers: Workload) -> set[str]:
    """The layers that APQ's released table has no entries for: a first block without expansion, and the classifier.

    Source: APQ's table, whose `head` is the first convolution and whose `tail` is the last 1x1 convolution alone.
    """
    names = {name for name, kind, _, _ in layers if kind == "linear"}
    if len(layers) > 2 and layers[1][1] == "depthwise":
        names |= {layers[1][0], layers[2][0]}
    return names


def _sum(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    known = all(row["energy_mj"] is not None for row in rows)
    return {
        "latency_ms": sum(row["latency_ms"] for row in rows),
        "energy_mj": sum(row["energy_mj"] for row in rows) if known else None,
        "macs_m": sum(row["macs"] for row in rows) / 1e6,
        "bitops_g": sum(row["bitops"] for row in rows) / 1e9,
    }


def describe_profile(found: dict[str, Any]) -> str:
    """The profile for a reader."""
    rows = [
        (
            row["name"],
            row["layer"],
            f"W{row['weight_bits']}A{row['act_bits']}",
            f"{row['macs'] / 1e6:.3f}",
            f"{row['bitops'] / 1e9:.4f}",
            f"{row['latency_ms']:.5f}",
            _energy(row["energy_mj"], 5),
            f"{row['share_percent']:.1f}",
        )
        for row in found["layers"]
    ]
    layers = table(rows, ("name", "layer", "bits", "M MACs", "G BitOps", "ms", "mJ", "% of ms"))
    sums = [
        (
            words,
            f"{s['latency_ms']:.3f}",
            _energy(s["energy_mj"], 3),
            f"{s['macs_m']:.1f}",
            f"{s['bitops_g']:.2f}",
        )
        for words, s in (
            ("every layer", found["sums"]["full"]),
            ("APQ's sum (without first block and classifier)", found["sums"]["apq"]),
        )
    ]
    head = (f"on {found['hardware']}", "ms", "mJ", "M MACs", "G BitOps")
    return f"{layers}\n\n{table(sums, head)}"


def describe_audit(report: AuditReport) -> str:
    """An audit for a reader: per layer the bits claimed and used, the storage, and the kernel; then false claims."""
    rows = [
        (
            layer.name,
            layer.kind,
            _bits(layer.claimed_weight_bits, layer.claimed_input_bits),
            _bits(layer.used_weight_bits, layer.used_input_bits),
            "-" if layer.storage_bits is None else f"{layer.storage_bits} bit",
            layer.size_bytes,
            layer.kernel or "-",
            "integer" if layer.is_integer else "float" if layer.is_integer is not None else "-",
        )
        for layer in report.layers
    ]
    layers = table(rows, ("layer", "kind", "claimed", "used", "stored", "bytes", "onnxruntime", "runs in"))
    total = f"{report.size_bytes} bytes, {report.other_bytes} of them outside of the layers' weights"
    claims = [f"false: {claim}" for claim in report.false_claims] or ["every claim is true"]
    return "\n".join([layers, "", total, *claims])


def _bits(weight: int | None, act: int | None) -> str:
    words = [f"W{weight}"] if weight is not None else []
    return "".join([*words, f"A{act}" if act is not None else ""]) or "-"


def _energy(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_csv(found: dict[str, Any], path: Path) -> None:
    """Write the layers as CSV, units in the column names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found["layers"])
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
