"""Cost tables of a space: from a hardware model, from this machine, or from measurements taken elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from apq_deploy.errors import UserError
from apq_deploy.progress import progress
from apq_deploy.space import SearchSpace
from apq_deploy.text import table
from apq_deploy.workload import ALL_WIDTHS, Widths, space_entries
from hwmodels import CostTable, Entry, build_table, load_hardware
from hwmodels.compare import Coverage, ErrorStatistics, compare_tables
from hwmodels.compare import coverage as table_coverage
from hwmodels.measured import MeasuredDevice, TimingPlan, interpolate_missing, measured_table
from hwmodels.measurements_file import import_measurements
from hwmodels.table import Progress

HOST = "host"
REPEATS = 20
MISSING_SHOWN = 10


def build_model_table(
    hardware: str,
    output: Path,
    space_name: str,
    subset: int | None,
    threads: int,
    repeats: int,
    ray: str | None = None,
) -> str:
    """What was built, for a reader; the table is in `output`. The machines of a `ray` cluster time a host's layers.

    Raises: UserError or HardwareError for a space, a hardware or a file that cannot be used.
    """
    if hardware != HOST and (ray is not None or subset is not None or (threads, repeats) != (1, REPEATS)):
        raise UserError(
            f"expected the hardware {HOST!r} with --ray, --subset, --threads or --repeats, got {hardware!r}; a model's "
            "table is computed, in a second"
        )
    space = SearchSpace.load(space_name)
    widths = ALL_WIDTHS if hardware == HOST else Widths.of(load_hardware(hardware).describe())
    entries = space_entries(space, widths)
    with progress(f"cost table of {hardware}", len(entries)) as advance:
        if hardware == HOST:
            built, error = _host_table(
                entries, output, subset, threads, repeats, ray, lambda done, _: advance(done, "")
            )
        else:
            model = load_hardware(hardware)
            built, error = build_table(model, entries, lambda done, _: advance(done, "")), None
    built.save(output)
    lines = [
        ("table", str(output)),
        ("hardware", built.hardware_name),
        *_coverage_rows(table_coverage(built, entries), space.name),
    ]
    if error is not None:
        lines += [("cross-validated error of the fit", f"{error.mean_absolute_percent:.1f} %")]
    return table(lines)


def _host_table(
    entries: list[Entry],
    output: Path,
    subset: int | None,
    threads: int,
    repeats: int,
    ray: str | None,
    advance: Progress,
) -> tuple[CostTable, ErrorStatistics | None]:
    from apq_deploy.cluster import RayWorkers
    from apq_deploy.host import host_device, measure_compiled, timer_of

    journal = output.with_suffix(".journal.csv")
    device, plan = host_device(threads), TimingPlan(repeats=repeats)
    # machines that time nothing else meanwhile: layers timed side by side would slow each other down
    timer = timer_of(RayWorkers(ray, whole_machines=True), device, threads, plan) if ray is not None else None
    found = measured_table(
        measure_compiled(threads),
        device,
        entries,
        plan,
        np.random.default_rng(0),
        subset,
        journal,
        advance,
        timer,
    )
    return found.table, found.cross_validated


def import_measured_table(measurements: Path, output: Path, space_name: str | None, fit_missing: bool) -> str:
    """What was imported, for a reader; the table is in `output`."""
    if fit_missing and space_name is None:
        raise UserError("expected --space with --fit-missing: it says which layers are missing")
    entries = space_entries(SearchSpace.load(space_name)) if space_name is not None else None
    device = MeasuredDevice(measurements.stem, {"file": measurements.name})
    found = import_measurements(measurements, device, entries)
    built, error = found.table, None
    if fit_missing and entries is not None:
        fitted = interpolate_missing(built, entries, np.random.default_rng(0))
        built, error = fitted.table, fitted.cross_validated
    built.save(output)
    lines = [("table", str(output)), ("rows read", str(found.rows)), ("entries", str(len(built)))]
    if entries is not None and space_name is not None:
        lines += _coverage_rows(table_coverage(built, entries), space_name)
    if error is not None:
        lines += [("cross-validated error of the fit", f"{error.mean_absolute_percent:.1f} %")]
    return table(lines)


def coverage(path: Path, space_name: str) -> tuple[str, bool]:
    """What a search of the space would miss, for a reader, and whether that is nothing."""
    space = SearchSpace.load(space_name)
    loaded = CostTable.load(path)
    found = table_coverage(loaded, space_entries(space, Widths.of(loaded.description)))
    text = table(_coverage_rows(found, space.name))
    missing = [f"missing: {layer} at {precision}" for layer, precision in found.missing[:MISSING_SHOWN]]
    if len(found.missing) > MISSING_SHOWN:
        missing.append(f"... and {len(found.missing) - MISSING_SHOWN} more")
    return "\n".join([text, *missing]), found.is_complete


def comparison(predicted: Path, actual: Path, worst: int) -> tuple[dict[str, Any], str]:
    """Error statistics of one table against another, as data and for a reader."""
    found = compare_tables(CostTable.load(predicted), CostTable.load(actual), worst)
    rows = [("entries in both", str(found.shared)), *_error_rows("latency", found.latency)]
    if found.energy is not None:
        rows += _error_rows("energy", found.energy)
    entries = [
        (f"{each.entry[0]} at {each.entry[1]}", f"{each.first_ms:.5f}", f"{each.second_ms:.5f}", f"{each.percent:+.1f}")
        for each in found.worst
    ]
    head = ("worst entries", f"{found.first_name}, ms", f"{found.second_name}, ms", "error, %")
    text = table(rows) + (f"\n\n{table(entries, head)}" if entries else "")
    data = asdict(found) | {
        "worst": [
            asdict(each) | {"entry": {"layer": asdict(each.entry[0]), "precision": asdict(each.entry[1])}}
            for each in found.worst
        ]
    }
    return data, text


def _error_rows(name: str, error: ErrorStatistics) -> list[tuple[str, str]]:
    return [
        (f"{name}: mean absolute error", f"{error.mean_absolute_percent:.2f} %"),
        (f"{name}: root mean square error", f"{error.rmspe_percent:.2f} %"),
        (f"{name}: mean error", f"{error.mean_percent:+.2f} %"),
        (f"{name}: within 5 %", f"{error.within_5_percent:.1f} %"),
        (f"{name}: within 10 %", f"{error.within_10_percent:.1f} %"),
    ]


def _coverage_rows(found: Coverage, space: str) -> list[tuple[str, str]]:
    kinds = {"modelled": found.modelled, "measured": found.measured, "interpolated": found.interpolated}
    sources = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    return [
        (f"covers of {space}", f"{found.covered} of {found.needed} layers ({found.percent:.1f} %): {sources or 'none'}")
    ]
