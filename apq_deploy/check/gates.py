"""The gates: each looks at one side of a model and says what it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apq_deploy.check.figures import figure
from apq_deploy.check.findings import Finding, at_least, at_most, fact, problem
from apq_deploy.check.sections import (
    AccuracyGate,
    AuditGate,
    BitopsGate,
    EnergyGate,
    LatencyGate,
    MeasuredLatencyGate,
    OperatorsGate,
    OpsetGate,
    ParityGate,
    SizeGate,
)
from apq_deploy.check.subject import Subject
from exporters.audit import LayerAudit

FLOAT_BITS = 32  # what a layer in float is judged by
MOST_LISTED = 20


def opset(subject: Subject, gate: OpsetGate) -> list[Finding]:
    findings = []
    version = subject.opset()
    if gate.min is not None or gate.max is not None:
        if version is None:
            findings.append(problem("the file does not say which opset it uses; export it again"))
        else:
            if gate.min is not None:
                findings.append(at_least(version, gate.min, "", label="opset"))
            if gate.max is not None:
                findings.append(at_most(version, gate.max, "", label="opset"))
    if gate.max_ir_version is not None:
        findings.append(at_most(subject.model.ir_version, gate.max_ir_version, "", label="IR version"))
    return findings


def operators(subject: Subject, gate: OperatorsGate) -> list[Finding]:
    found = subject.operators()
    # ai.onnx.Conv and Conv are one
    allow, deny = ({name.removeprefix("ai.onnx.") for name in names or ()} for names in (gate.allow, gate.deny))
    findings = []
    for name, nodes in sorted(found.items()):
        where = f"{len(nodes)} node(s), the first is {nodes[0]!r}"
        if name in deny:
            findings.append(problem(f"{name} is denied, and used: {where}"))
        elif gate.allow is not None and name not in allow:
            findings.append(problem(f"{name} is not on the list of allowed operators, and used: {where}"))
    return findings or [fact(f"{len(found)} operators, all allowed: {', '.join(sorted(found))}")]


def audit(subject: Subject, gate: AuditGate) -> list[Finding]:
    report = subject.audit()
    layers = [layer for layer in report.layers if layer.weights]
    findings = [at_most(len(report.false_claims), gate.max_false_claims, "false claims")]
    if not findings[0].passed:
        findings += _cut([problem(claim) for claim in report.false_claims])
    wide: list[Finding] = []
    if gate.max_weight_bits is not None:
        wide += [
            problem(f"layer {layer.name}: weights of {_words(bits)}, at most {gate.max_weight_bits} bits")
            for layer in layers
            if (bits := _weight_bits(layer)) > gate.max_weight_bits
        ]
    if gate.max_act_bits is not None:
        wide += [
            problem(f"layer {layer.name}: reads {_words(bits)}, at most {gate.max_act_bits} bits")
            for layer in layers
            if (bits := _input_bits(layer)) > gate.max_act_bits
        ]
    by_name = {layer.name: layer for layer in layers}
    for name, most in (gate.weight_bits or {}).items():
        if name not in by_name:
            wide.append(problem(f"layer {name}: the file has no such layer with weights"))
        elif (bits := _weight_bits(by_name[name])) > most:
            wide.append(problem(f"layer {name}: weights of {_words(bits)}, at most {most} bits"))
    if gate.integer_kernels:
        wide += [
            problem(f"layer {layer.name}: onnxruntime runs it as {layer.kernel or 'part of a float node'}, in float")
            for layer in layers
            if not layer.is_integer
        ]
    if not wide:
        widths = sorted({_weight_bits(layer) for layer in layers})
        findings.append(fact(f"{len(layers)} layers with weights of {', '.join(map(str, widths))} bits"))
    return findings + _cut(wide)


def _weight_bits(layer: LayerAudit) -> int:
    """What a layer's weights cost: the more of what it claims and what its values need."""
    return FLOAT_BITS if layer.used_weight_bits is None else max(layer.used_weight_bits, layer.claimed_weight_bits or 0)


def _input_bits(layer: LayerAudit) -> int:
    return FLOAT_BITS if layer.used_input_bits is None else max(layer.used_input_bits, layer.claimed_input_bits or 0)


def _words(bits: int) -> str:
    return "32 bits (float)" if bits == FLOAT_BITS else f"{bits} bits"


def _cut(findings: list[Finding]) -> list[Finding]:
    """The first of them, and how many more there are."""
    more = len(findings) - MOST_LISTED
    return findings if more <= 0 else [*findings[:MOST_LISTED], problem(f"and {more} more")]


def size(subject: Subject, gate: SizeGate) -> list[Finding]:
    value = figure(subject, "size_bytes").value
    findings = []
    if gate.max_kb is not None:
        findings.append(at_most(value / 1000, gate.max_kb, "kB"))
    if gate.max_bytes is not None:
        findings.append(at_most(value, gate.max_bytes, "bytes"))
    return findings


def bitops(subject: Subject, gate: BitopsGate) -> list[Finding]:
    return _most(subject, "bitops_g", gate.max_g)


def latency(subject: Subject, gate: LatencyGate) -> list[Finding]:
    return _most(subject, "latency_ms", gate.max_ms)


def energy(subject: Subject, gate: EnergyGate) -> list[Finding]:
    return _most(subject, "energy_mj", gate.max_mj)


def accuracy(subject: Subject, gate: AccuracyGate) -> list[Finding]:
    found = figure(subject, "accuracy_percent")
    assert gate.min_percent is not None
    return [at_least(found.value, gate.min_percent, "%", found.of)]


def parity(subject: Subject, gate: ParityGate) -> list[Finding]:
    report = subject.parity()
    total = sum(each.differing for each in report.differences)
    compared = ", ".join(f"{source} in {count} tensors" for source, count in report.compared.items())
    note = f"NumPy against {compared}, {report.images} images, {subject.images().source}"
    finding = at_most(total, gate.max_differing, "codes differ", note)
    if finding.passed or report.first is None:
        return [finding]
    first = report.first
    where = f"first in layer {first.layer}" if first.layer is not None else "first in the image"
    return [finding, problem(f"{where}: {first}")]


def measured_latency(subject: Subject, gate: MeasuredLatencyGate) -> list[Finding]:
    findings = []
    if gate.max_ratio is not None:
        findings += _most(subject, "measured_ratio", gate.max_ratio)
    if gate.max_ms is not None:
        findings += _most(subject, "measured_ms", gate.max_ms)
    report = subject.timing()
    seen = (*map(str, report.timings), f"load of the machine {report.load:.1f}")
    return [*findings, *map(fact, seen)]


def _most(subject: Subject, name: str, bound: float | None) -> list[Finding]:
    found = figure(subject, name)
    assert bound is not None
    return [at_most(found.value, bound, found.unit, found.of)]


# The regression gate needs a baseline as well, and is called by itself
RUN: dict[str, Callable[[Subject, Any], list[Finding]]] = {
    "opset": opset,
    "operators": operators,
    "audit": audit,
    "size": size,
    "bitops": bitops,
    "latency": latency,
    "energy": energy,
    "accuracy": accuracy,
    "parity": parity,
    "measured_latency": measured_latency,
}
