"""`deploy.toml`: read, checked field by field, refused with the nearest name where one is unknown."""

from __future__ import annotations

import math
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apq_deploy.check.sections import (
    AccuracyGate,
    AuditGate,
    BitopsGate,
    CompiledSettings,
    EnergyGate,
    FieldDoc,
    HardwareSettings,
    LatencyGate,
    MeasuredLatencyGate,
    OperatorsGate,
    OpsetGate,
    ParityGate,
    RegressionGate,
    SizeGate,
    field_docs,
)
from apq_deploy.errors import UserError
from hwmodels import list_hardware
from hwmodels.files import MAX_TEXT_BYTES, read_within
from hwmodels.settings import nearest

SCHEMA = 1
SETTINGS: dict[str, type] = {"hardware": HardwareSettings, "compiled": CompiledSettings}
GATE_SECTIONS: dict[str, type] = {
    "opset": OpsetGate,
    "operators": OperatorsGate,
    "audit": AuditGate,
    "size": SizeGate,
    "bitops": BitopsGate,
    "latency": LatencyGate,
    "energy": EnergyGate,
    "accuracy": AccuracyGate,
    "parity": ParityGate,
    "measured_latency": MeasuredLatencyGate,
    "regression": RegressionGate,
}
GATES = tuple(GATE_SECTIONS)
SECTIONS = SETTINGS | GATE_SECTIONS
DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class DeployBudget:
    """A budget file. A gate that it does not set is None. lines: where each section begins, from 1."""

    path: Path
    lines: Mapping[str, int]
    hardware: HardwareSettings
    compiled: CompiledSettings
    opset: OpsetGate | None = None
    operators: OperatorsGate | None = None
    audit: AuditGate | None = None
    size: SizeGate | None = None
    bitops: BitopsGate | None = None
    latency: LatencyGate | None = None
    energy: EnergyGate | None = None
    accuracy: AccuracyGate | None = None
    parity: ParityGate | None = None
    measured_latency: MeasuredLatencyGate | None = None
    regression: RegressionGate | None = None

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates that are set, in the order they run."""
        return tuple(name for name in GATES if getattr(self, name) is not None)


def read_budget(path: Path) -> DeployBudget:
    """The budget in a TOML file.

    Raises: UserError for a file that cannot be read, another schema, unknown fields, and values out of range.
    """
    try:
        text = read_within(path, MAX_TEXT_BYTES).decode("utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read the budget {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a TOML file in UTF-8, got other bytes") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path}: expected TOML, got: {error or 'values nested too deep'}") from None
    schema = document.pop("schema", None)
    if type(schema) is not int or schema != SCHEMA:
        raise UserError(f"{path}: expected schema = {SCHEMA} at the top, got {schema!r}; see docs/ci.md")
    sections = {name: _section(name, values, path) for name, values in document.items()}
    settings = {name: sections.pop(name, None) or SETTINGS[name]() for name in SETTINGS}
    if not sections:
        raise UserError(f"{path}: sets no gate, so nothing could fail; add at least one of {', '.join(GATES)}")
    library = settings["compiled"].library
    if library is not None and not library.is_file():
        raise UserError(f"{path}: [compiled] library: there is no file {library}")
    lines = {name: _line(text, name) for name in document}
    return DeployBudget(path, lines, **settings, **sections)


def _section(name: str, values: object, path: Path) -> Any:
    """One section as its dataclass."""
    if name not in SECTIONS:
        owners = [f"[{section}] {field}" for section, cls in SECTIONS.items() for field in field_docs(cls)]
        meant = next((owner for owner in owners if owner.endswith(f"] {name}")), None)
        hint = f"; it belongs under {meant.split()[0]}" if meant else nearest(name, SECTIONS)
        raise UserError(f'{path}: unknown section or field "{name}"{hint}')
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: [{name}] must be a section with fields, got {values!r}")
    cls = SECTIONS[name]
    docs = field_docs(cls)
    checked: dict[str, Any] = {}
    for field, value in values.items():
        if field not in docs:
            raise UserError(f'{path}: unknown field "{field}" in [{name}]{nearest(field, docs)}')
        checked[field] = _value(value, docs[field], f"{path}: [{name}] {field}")
    if cls.needs and not checked.keys() & set(cls.needs):
        raise UserError(f"{path}: [{name}] sets no limit; add {' or '.join(cls.needs)}")
    if name == "operators":
        for listed in checked.values():
            for operator in listed:
                _check_operator(operator, path)
    if name == "opset" and checked.get("min", 0) > checked.get("max", math.inf):
        raise UserError(f"{path}: [opset] expected min <= max, got {checked['min']} and {checked['max']}")
    # paths are as seen from the budget file, so that it means the same wherever the check is started
    for field in ("library", "baseline", "table"):
        if field in checked:
            checked[field] = path.parent / checked[field]
    if name == "hardware" and {"model", "table"} <= checked.keys():
        raise UserError(f"{path}: [hardware] expected a model or a table, got both; remove one")
    if name == "hardware" and checked.get("model") not in (None, *list_hardware()):
        checked["model"] = _hardware_path(checked["model"], path)
    return cls(**checked)


def _hardware_path(model: str, path: Path) -> str:
    if not model.endswith(".toml") and "/" not in model:
        raise UserError(f'{path}: [hardware] unknown model "{model}"{nearest(model, list_hardware())}')
    return str(path.parent / model)


def _value(value: object, doc: FieldDoc, place: str) -> Any:
    """The value as the type that the field holds."""
    if not _is_valid(value, doc):
        unit = f" ({doc.unit})" if doc.unit else ""
        raise UserError(f"{place}: expected {doc.expected}{unit}, got {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _is_valid(value: object, doc: FieldDoc) -> bool:
    match doc.kind:
        case "flag":
            return isinstance(value, bool)
        case "text":
            return _is_text(value) and (not doc.choices or value in doc.choices)
        case "texts":
            return (
                isinstance(value, list)
                and len(value) > 0
                and all(_is_text(each) and (not doc.choices or each in doc.choices) for each in value)
                and len(set(value)) == len(value)
            )
        case "widths":
            return (
                isinstance(value, dict)
                and len(value) > 0
                and all(type(bits) is int and 1 <= bits <= 32 for bits in value.values())
            )
        case "whole" | "number":
            if isinstance(value, bool) or not isinstance(value, int if doc.kind == "whole" else int | float):
                return False
            in_range = (doc.low is None or value >= doc.low) and (doc.high is None or value <= doc.high)
            return in_range and abs(value) <= sys.float_info.max


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _check_operator(operator: str, path: Path) -> None:
    """A misspelt operator on a list would make a gate that never fails, or always.

    Operators of other domains are written with their domain, `com.microsoft.QLinearAdd`, and cannot be looked up.
    """
    domain, _, name = operator.rpartition(".")
    if domain in DEFAULT_DOMAINS:
        from onnx import defs

        known = sorted({schema.name for schema in defs.get_all_schemas() if schema.domain in DEFAULT_DOMAINS})
        if name not in known:
            near = nearest(name, known) if len(name) > 2 else "; see onnx.ai/onnx/operators"
            raise UserError(f'{path}: [operators] ONNX has no operator "{operator}"{near[:200]}')


def _line(text: str, section: str) -> int:
    """Number of the line in which a section begins, from 1."""
    pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(section)}["']?\s*[\].=]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
