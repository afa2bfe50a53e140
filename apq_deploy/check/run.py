"""A check from start to end: inputs first, then every gate, then the baseline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from apq_deploy.check.baseline import Baseline, read_baseline, regression, write_baseline
from apq_deploy.check.budget_file import GATES, DeployBudget, read_budget
from apq_deploy.check.findings import CheckReport, GateResult, one_line, problem
from apq_deploy.check.gates import RUN
from apq_deploy.check.images import given_images
from apq_deploy.check.subject import Subject
from apq_deploy.errors import UserError
from apq_deploy.profiling import load_costs
from apq_deploy.progress import progress
from exporters.errors import ExportError
from hwmodels import HardwareError
from hwmodels.settings import nearest

USES_IMAGES = {"accuracy", "parity", "regression"}
USES_HARDWARE = {"latency", "energy", "bitops", "regression"}


def run_check(
    model: Path,
    budget_path: Path,
    data: Path | None = None,
    baseline_path: Path | None = None,
    baseline_output: Path | None = None,
    skip: Sequence[str] = (),
) -> CheckReport:
    """What every gate of the budget found. A gate that cannot be measured is a failed gate with the reason.

    data: a data set's folder or an .npz file, in place of the sample images of the model.
    baseline_path: in place of the one that the budget names. baseline_output: where to write this model's figures,
    which is done only if no gate fails.

    Raises: UserError, ExportError or HardwareError where an input is wrong: the model is no ONNX file, the budget, the
    data or the baseline cannot be used, a gate to skip is not known.
    """
    budget = read_budget(budget_path)
    for name in skip:
        if name not in GATES:
            raise UserError(f'--skip: there is no gate "{name}"{nearest(name, GATES)}')
    active = set(budget.gates) - set(skip)
    if not active and baseline_output is None:
        raise UserError(f"expected a gate to run, got every gate of {budget_path} skipped; skip fewer")
    if data is not None and not data.exists():
        raise UserError(f"there is no folder or file {data}")
    baseline = _baseline(budget, baseline_path, active)
    # a baseline holds a figure for each tolerance, whether they are compared now or not
    measured = active if baseline_output is None else active | {"regression"}
    if measured & USES_HARDWARE:
        load_costs(budget.hardware.model, budget.hardware.table)
    with ExitStack() as cleanup:
        subject = Subject(model, budget, cleanup)
        if data is not None and measured & USES_IMAGES:
            _load_data(subject, data)
        results = []
        with progress("check", len(GATES)) as advance:
            for done, name in enumerate(GATES):
                advance(done, name)
                results.append(_result(subject, name, skip, baseline))
            advance(len(GATES), "")
        notes = () if baseline_output is None else (_write_baseline(baseline_output, subject, results),)
    return CheckReport(str(model), str(budget_path), tuple(results), subject.figures, dict(budget.lines), notes)


def _baseline(budget: DeployBudget, path: Path | None, active: set[str]) -> Baseline | None:
    """The baseline to compare with, if the regression gate runs."""
    if "regression" not in active:
        if path is not None and budget.regression is None:
            raise UserError(
                f"--baseline: {budget.path} has no [regression] that says how far figures may move; add it, "
                f"as in `size_percent = 1`"
            )
        return None
    assert budget.regression is not None
    chosen = path or budget.regression.baseline
    if chosen is None:
        raise UserError(
            f"{budget.path} sets [regression]: give `--baseline FILE`; to write a first one, "
            f"`--skip regression --write-baseline FILE`"
        )
    if not chosen.is_file():
        raise UserError(
            f"there is no baseline {chosen}; write a first one with `--skip regression --write-baseline {chosen}`"
        )
    return read_baseline(chosen)


def _load_data(subject: Subject, data: Path) -> None:
    try:
        wanted = subject.image_format()
    except ExportError:
        return  # each gate that needs images fails with this reason
    subject.given = given_images(data, wanted)


def _result(subject: Subject, name: str, skip: Sequence[str], baseline: Baseline | None) -> GateResult:
    gate = getattr(subject.budget, name)
    if name in skip:
        return GateResult(name, "skipped", reason=f"by --skip {name}" + ("" if gate else ", and not set either"))
    if gate is None:
        return GateResult(name, "not set", reason=f"no [{name}] in the budget")
    started = time.perf_counter()
    try:
        if name == "regression":
            assert baseline is not None
            findings = regression(subject, gate, baseline)
        else:
            findings = RUN[name](subject, gate)
        reason = None
    except Exception as error:  # whatever a gate stumbles over, the others are still told
        reason = _reason(error)
        findings = [problem(reason)]
    failed = not findings or not all(each.passed for each in findings)
    seconds = time.perf_counter() - started
    return GateResult(name, "failed" if failed else "passed", tuple(findings), reason, round(seconds, 3))


def _reason(error: Exception) -> str:
    """The error in one line; what is not one of ours also by its type."""
    text = one_line(str(error))[:500]
    if isinstance(error, UserError | ExportError | HardwareError):
        return text
    return f"{type(error).__name__}: {text}"


def _write_baseline(path: Path, subject: Subject, results: Sequence[GateResult]) -> str:
    if any(each.status == "failed" for each in results):
        return f"baseline not written to {path}: gates failed"
    try:
        names = write_baseline(path, subject)
    except Exception as error:
        raise UserError(f"no gate failed, but the baseline {path} cannot be written: {_reason(error)}") from None
    return f"baseline written to {path}: {', '.join(names)}"
