"""What an ONNX file costs on a hardware model, layer by layer, and what an audit of it says."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from apq_deploy.errors import UserError
from apq_deploy.files import atomic
from apq_deploy.space import SearchSpace
from apq_deploy.text import table
from exporters.audit import AuditReport
from exporters.errors import UnsupportedGraph
from exporters.onnx_reader import read_onnx
from exporters.workload import Workload, float_layers, network_layers
from hwmodels import Cost, CostTable, Hardware, Precision, description_sha256, load_hardware
from hwmodels.hardware import Setting, checked_costs

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
    "bound",
    "dram_bits",
)


def profile_model(model: Path, hardware: str, bits: int | None, cost_table: Path | None = None) -> dict[str, Any]:
    """Costs of every layer and both sums: of all layers, and as APQ's released table has them.

    bits: the width of every layer, for a file in float. cost_table: in place of the hardware model. A layer's `bound`
    and `dram_bits` are None where the hardware does not count DRAM's bits.

    Raises: UserError for a file in float without `bits`, and a table of batches; HardwareError for a layer that the
    hardware or the table does not have; ExportError for a file that cannot be read.
    """
    layers, space = _workload(model, bits)
    entries = [(layer, precision) for _, _, layer, precision in layers]
    chosen = load_costs(hardware, cost_table)
    if isinstance(chosen, CostTable):
        if chosen.batch != 1:
            raise UserError(f"expected a table of one image, {cost_table} is of batches of {chosen.batch}")
        chosen.lookup(entries)
        costs, name, description = [chosen[entry] for entry in entries], chosen.hardware_name, chosen.description
    else:
        costs, name, description = checked_costs(chosen, entries), chosen.name, chosen.describe()
    total = sum(cost.latency_ms for cost in costs)
    left_out = _left_out(layers, space)
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
            **_transfers(cost, description.get("bandwidth_bits_per_cycle")),
            "in_apq_sum": name not in left_out,
        }
        for (name, kind, layer, precision), cost in zip(layers, costs, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "model": model.name,
        "hardware": name,
        "hardware_sha256": description_sha256(description),
        "space_leaves_out": [] if space is None else list(space.left_out_of_sums),
        "sums": {"full": _sum(rows), "apq": _sum([row for row in rows if row["in_apq_sum"]])},
        "left_out_of_apq_sum": sorted(left_out),
        "layers": rows,
    }


def load_costs(hardware: str, cost_table: Path | None) -> Hardware | CostTable:
    """What costs are asked of: a table, or a hardware model in its absence."""
    return load_hardware(hardware) if cost_table is None else CostTable.load(cost_table)


def _transfers(cost: Cost, bandwidth: Setting | None) -> dict[str, Any]:
    """Which takes longer by itself, computing or moving the layer's DRAM bits, and how many these are."""
    counted = cost.counters
    if (
        not isinstance(bandwidth, int | float)
        or not {"compute_cycles", "dram_read_bits", "dram_write_bits"} <= counted.keys()
    ):
        return {"bound": None, "dram_bits": None}
    bits = counted["dram_read_bits"] + counted["dram_write_bits"]
    is_memory = bits > counted["compute_cycles"] * bandwidth
    return {"bound": "memory" if is_memory else "compute", "dram_bits": bits}


def _workload(model: Path, bits: int | None) -> tuple[Workload, SearchSpace | None]:
    """The layers, and the space that the file's metadata names, where it is a known one."""
    if bits is not None:
        return float_layers(model, Precision(bits, bits)), None
    try:
        net = read_onnx(model)
        name = net.metadata.get("space")
        return network_layers(net), SearchSpace.load(name) if name in SearchSpace.presets() else None
    except UnsupportedGraph as error:
        raise UserError(
            f"{error}; say how many bits all of its layers get, as in `--bits 8`, to profile it so"
        ) from None


def _left_out(layers: Workload, space: SearchSpace | None) -> set[str]:
    """The layers that APQ's released table has no entries for: a first block without expansion, and the classifier.

    Where the file is of a known space that leaves parts out of its sums, those parts.
    Source: APQ's table, whose `head` is the first convolution and whose `tail` is the last 1x1 convolution alone.
    """
    if space is not None and space.left_out_of_sums:
        return {name for name, *_ in layers if name.partition(".")[0] in space.left_out_of_sums}
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
            row["bound"] or "-",
        )
        for row in found["layers"]
    ]
    layers = table(rows, ("name", "layer", "bits", "M MACs", "G BitOps", "ms", "mJ", "% of ms", "bound"))
    wanted = [("every layer", found["sums"]["full"])]
    if found["space_leaves_out"]:
        parts = " and ".join(part.replace("_", " ") for part in found["space_leaves_out"])
        wanted += [(f"APQ's sum (without {parts})", found["sums"]["apq"])]
    sums = [
        (
            words,
            *(
                "-" if s[name] is None else _digits(s[name])
                for name in ("latency_ms", "energy_mj", "macs_m", "bitops_g")
            ),
        )
        for words, s in wanted
    ]
    head = (f"on {found['hardware']}", "ms", "mJ", "M MACs", "G BitOps")
    return "\n".join([layers, "", table(sums, head), *_no_energy(found)])


def _no_energy(found: dict[str, Any]) -> list[str]:
    missing = sum(row["energy_mj"] is None for row in found["layers"])
    if not missing:
        return []
    if missing == len(found["layers"]):
        return [f"hardware {found['hardware']} has no energies; give them in its TOML or its measurements"]
    return [f"energy is missing for {missing} of {len(found['layers'])} layers on {found['hardware']}"]


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
    claims = [f"false: {claim}" for claim in report.false_claims]
    if not claims:
        bits = [(each.claimed_weight_bits, each.claimed_input_bits, each.claimed_output_bits) for each in report.layers]
        says = any(width is not None for claimed in bits for width in claimed)
        claims = ["every claim is true" if says else "the file claims no bits; what runs in float is said above"]
    return "\n".join([layers, "", total, *claims])


def _bits(weight: int | None, act: int | None) -> str:
    words = [f"W{weight}"] if weight is not None else []
    return "".join([*words, f"A{act}" if act is not None else ""]) or "-"


def _digits(value: float) -> str:
    """Four digits, and no fewer before the point."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


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
