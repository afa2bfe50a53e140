"""A baseline: figures of an earlier model, written by `--write-baseline` and compared with by the regression gate."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from apq_deploy.check.figures import FIGURES, comparable, figure
from apq_deploy.check.findings import Figure, Finding, at_least, at_most, number, problem
from apq_deploy.check.sections import RegressionGate
from apq_deploy.check.subject import Subject
from apq_deploy.errors import UserError
from apq_deploy.files import read_json, write_json

SCHEMA = "apq-deploy/baseline/1"
LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Baseline:
    """figures: by name; `of` says what a figure was measured on."""

    path: Path
    figures: dict[str, Figure]


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file.

    Raises: UserError for a file that is missing, damaged, of another schema, or holds unknown or impossible figures.
    """
    data = read_json(path, SCHEMA)
    entries = data.get("figures")
    if not isinstance(entries, dict):
        raise UserError(f"{path}: expected figures by name, got {type(entries).__name__}; write the baseline anew")
    figures = {}
    for name, entry in entries.items():
        if name not in FIGURES:
            raise UserError(f"{path}: unknown figure {name!r}; known are {', '.join(FIGURES)}")
        figures[name] = _figure(entry, f"{path}: {name}")
    return Baseline(path, figures)


def _figure(entry: object, place: str) -> Figure:
    match entry:
        case {"value": int() | float() as value, "unit": str() as unit, "of": str() as of} if 0 <= value <= LARGEST:
            return Figure(float(value), unit, of)
    raise UserError(f"{place} should hold a value of at least 0, unit and of, got {entry!r}; write the baseline anew")


def write_baseline(path: Path, subject: Subject) -> list[str]:
    """Names of the figures written: those that gates measured, and those that [regression] has a tolerance for.

    Raises: UserError if the file cannot be written; UserError, ExportError or HardwareError for a figure that cannot
    be measured.
    """
    gate = subject.budget.regression
    for name, kind in FIGURES.items():
        if gate is not None and getattr(gate, kind.tolerance) is not None:
            figure(subject, name)
    entries = {
        name: {"value": found.value, "unit": found.unit, "of": comparable(subject, name, found)}
        for name, found in subject.figures.items()
    }
    if not entries:
        raise UserError("no gate measured a figure")
    write_json(path, {"schema": SCHEMA, "model": subject.path.name, "figures": entries})
    return list(entries)


def regression(subject: Subject, gate: RegressionGate, baseline: Baseline) -> list[Finding]:
    """A finding for each figure that has a tolerance."""
    findings = []
    for name, kind in FIGURES.items():
        tolerance = getattr(gate, kind.tolerance)
        if tolerance is None:
            continue
        before = baseline.figures.get(name)
        if before is None:
            findings.append(problem(f"{name}: {baseline.path.name} does not hold it; write the baseline anew"))
            continue
        try:
            found = figure(subject, name)
            of = comparable(subject, name, found)
        except Exception as error:
            findings.append(problem(f"{name}: {error}"))
            continue
        if of != before.of:
            findings.append(
                problem(f"{name}: the baseline's is of {before.of!r}, this one of {of!r}; write the baseline anew")
            )
            continue
        note = f"was {number(before.value)}"
        slack = tolerance if kind.absolute else before.value * tolerance / 100
        if kind.higher_is_better:
            findings.append(at_least(found.value, before.value - slack, found.unit, note, label=name))
        else:
            findings.append(at_most(found.value, before.value + slack, found.unit, note, label=name))
    return findings
