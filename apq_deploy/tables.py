"""Cost tables of a space: from a hardware model, from this machine, or from measurements taken elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from apq_deploy.errors import UserError
from apq_deploy.files import check_output
from apq_deploy.progress import progress
from apq_deploy.space import SearchSpace
from apq_deploy.text import table
from apq_deploy.workload import ALL_WIDTHS, Widths, space_entries
from hwmodels import CostTable, Entry, Precision, build_table, load_hardware
from hwmodels.compare import Coverage, ErrorStatistics, compare_tables
from hwmodels.compare import coverage as table_coverage
from hwmodels.measured import MeasuredDevice, MeasuredTable, TimingPlan, interpolate_missing, measured_table
from hwmodels.measurements_file import import_measurements, write_missing
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
    check_output(output, *(each for each in (hardware, space_name) if Path(each).suffix))
    space = SearchSpace.load(space_name)
    model = None if hardware == HOST else load_hardware(hardware)
    widths = ALL_WIDTHS if model is None else Widths.of(model.describe())
    entries = space_entries(space, widths)
    journal = output.with_suffix(".journal.csv")
    with progress(f"cost table of {hardware}", len(entries)) as advance:
        if model is None:
            found = _host_table(entries, journal, subset, threads, repeats, ray, lambda done, _: advance(done, ""))
        else:
            found = MeasuredTable(build_table(model, entries, lambda done, _: advance(done, "")), None)
    built = found.table
    built.save(output)
    lines = [
        ("table", str(output)),
        ("hardware", built.hardware_name),
        *_coverage_rows(table_coverage(built, entries), space, widths),
        *_error_row(found.cross_validated),
    ]
    if found.from_journal:
        timed = sum(cost.source == "measured" for cost in built.costs.values())
        lines += [
            (
                "measured earlier",
                f"{found.from_journal} of {timed} timed layers come from {journal}; delete it to measure anew",
            )
        ]
    return table(lines)


def _host_table(
    entries: list[Entry],
    journal: Path,
    subset: int | None,
    threads: int,
    repeats: int,
    ray: str | None,
    advance: Progress,
) -> MeasuredTable:
    from apq_deploy.cluster import RayWorkers
    from apq_deploy.host import host_device, measure_compiled, timer_of

    device, plan = host_device(threads), TimingPlan(repeats=repeats)
    # machines that time nothing else meanwhile: layers timed side by side would slow each other down
    timer = timer_of(RayWorkers(ray, whole_machines=True), device, threads, plan) if ray is not None else None
    return measured_table(
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


def import_measured_table(
    measurements: Sequence[Path], output: Path, space_name: str | None, fit_missing: bool, name: str | None = None
) -> str:
    """What was imported, for a reader; the table is in `output`. `name` is the hardware's, else the first file's."""
    if fit_missing and space_name is None:
        raise UserError("expected --space with --fit-missing: it says which layers are missing")
    if name is not None and not (name.strip() and name.isprintable()):
        raise UserError(f"expected a --name of text on one line, got {name!r}")
    check_output(output, *measurements, *([space_name] if space_name is not None and Path(space_name).suffix else []))
    space = SearchSpace.load(space_name) if space_name is not None else None
    found = import_measurements(measurements[0], MeasuredDevice(name or measurements[0].stem, {}), measurements[1:])
    built, lines = found.table, [("table", str(output)), ("rows read", str(found.rows))]
    if space is None:
        built.save(output)
        return table([*lines, ("entries", str(len(built)))])
    widths = Widths.of(built.description)
    entries = space_entries(space, widths)
    error = None
    if fit_missing:
        fitted = interpolate_missing(built, entries, np.random.default_rng(0))
        built, error = fitted.table, fitted.cross_validated
    built.save(output)
    covered = table_coverage(built, entries)
    lines += [("entries", str(len(built))), *_coverage_rows(covered, space, widths), *_error_row(error)]
    if fit_missing and covered.missing:
        kinds = sorted({f"{'depthwise ' if e[0].is_depthwise else ''}{e[1]}" for e in covered.missing})
        lines += [("not fitted", f"{len(covered.missing)} layers: none was measured at {', '.join(kinds)}")]
    return "\n".join([table(lines), *_hint(built, covered)])


def coverage(path: Path, space_name: str, missing_rows: Path | None = None) -> tuple[str, bool]:
    """What a search of the space would miss, for a reader, and whether that is nothing: energy may be missing.

    missing_rows: where to write the missing layers as rows for `lut import`, their latency left to be filled in.
    """
    if missing_rows is not None:
        check_output(missing_rows, path, *([space_name] if Path(space_name).suffix else []))
    space = SearchSpace.load(space_name)
    loaded = CostTable.load(path)
    widths = Widths.of(loaded.description)
    found = table_coverage(loaded, space_entries(space, widths))
    rows = _coverage_rows(found, space, widths)
    if found.without_energy:
        rows += [("energy", f"missing for {found.without_energy} of {found.covered} layers: no budget on energy")]
    if missing_rows is not None:
        write_missing(missing_rows, found.missing)
        rows += [("rows to fill in", f"{missing_rows}, {len(found.missing)} layers")]
    text = "\n".join([table(rows), *_hint(loaded, found)])
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


def _error_row(error: ErrorStatistics | None) -> list[tuple[str, str]]:
    return [] if error is None else [("cross-validated error of the fit", f"{error.mean_absolute_percent:.1f} %")]


def _hint(built: CostTable, found: Coverage) -> list[str]:
    if not built.lacks_im2col(found.missing):
        return []
    return [f"the first layer is there without im2col: its row needs im2col = 1, as {found.missing[0][0]}"]


def _coverage_rows(found: Coverage, space: SearchSpace, widths: Widths) -> list[tuple[str, str]]:
    kinds = {"modelled": found.modelled, "measured": found.measured, "interpolated": found.interpolated}
    sources = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    rows = [
        (
            f"covers of {space.name}",
            f"{found.covered} of {found.needed} layers ({found.percent:.1f} %): {sources or 'none'}",
        )
    ]
    if all(widths.accept(Precision(bits, bits)) for bits in space.bits):
        return rows
    return [*rows, ("bit widths", f"{widths} alone; the space has {', '.join(map(str, space.bits))}")]
