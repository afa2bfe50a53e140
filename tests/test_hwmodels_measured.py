"""Measured tables: statistics, resuming, the designed subset and its fit, and imported measurements."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import (
    ConvLayer,
    Cost,
    CostTable,
    Entry,
    HardwareError,
    MeasuredDevice,
    Precision,
    TableError,
    TimingPlan,
    build_table,
    coverage,
    import_measurements,
    interpolate_missing,
    load_hardware,
    measured_table,
)
from hwmodels.interpolation import LEAST_MEASURED, _kernel, designed_subset, fit_latency, fitted_kind, layer_features
from hwmodels.measured import measure_entries, summarise
from hwmodels.measurements_file import write_missing
from hwmodels.table import make_table

DEVICE = MeasuredDevice("bench", {"processor": "paper", "threads": 1})
PLAN = TimingPlan(warm_up=2, repeats=5)
ENTRIES: list[Entry] = [(ConvLayer(8, width, 4, 1), Precision(8, 8)) for width in (8, 16, 24)]


class Stopwatch:
    """A measurement that is known: 1, 2, 3, .. times a second per output channel; remembers what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[Entry] = []
        self.runs = 0
        self.fail_after = fail_after

    def __call__(self, layer: ConvLayer, precision: Precision) -> Iterator[float]:
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append((layer, precision))
        for run in range(1, 100):
            self.runs += 1
            yield run * layer.out_channels


def test_median_and_spread_by_hand() -> None:
    """Of 3, 4, 5, 6, 7 s the median is 5 s, the quartiles 4 and 6; the two warm-up runs do not count."""
    watch = Stopwatch()
    costs = measure_entries(watch, DEVICE, [(ConvLayer(8, 1, 4, 1), Precision(8, 8))], PLAN)
    (cost,) = costs.values()
    assert cost == Cost(5000.0, source="measured", spread_ms=1000.0, repeats=5)
    assert cost.energy_mj is None
    # The generator is asked for no run too many.
    assert watch.runs == 7


@pytest.mark.parametrize("samples", [[], [0.0], [-1.0, 1.0], [float("nan")]])
def test_impossible_times_are_refused(samples: list[float]) -> None:
    with pytest.raises(HardwareError, match="needs positive times"):
        summarise(samples)


def test_too_few_runs_and_wrong_plans_are_refused() -> None:
    with pytest.raises(HardwareError, match=r"8->8 k1 s1 at 4x4 at W8A8 must give 7 runs, got 2"):
        measure_entries(lambda layer, precision: [1.0, 2.0], DEVICE, ENTRIES, PLAN)
    with pytest.raises(HardwareError, match="at least 1 repeat"):
        TimingPlan(repeats=0)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = tmp_path / "runs" / "journal.csv"
    with pytest.raises(KeyboardInterrupt):
        measure_entries(Stopwatch(fail_after=2), DEVICE, ENTRIES, PLAN, journal)
    # A kill in the middle of a line loses that line only.
    with journal.open("a") as file:
        file.write("8,24,4,1,1,0,1,0,8,8,12")
    watch, seen = Stopwatch(), []
    costs = measure_entries(watch, DEVICE, ENTRIES, PLAN, journal, lambda done, total: seen.append((done, total)))
    assert watch.asked == ENTRIES[2:]
    assert list(costs) == ENTRIES
    assert costs == measure_entries(Stopwatch(), DEVICE, ENTRIES, PLAN)
    assert seen == [(2, 3), (3, 3)]
    again = Stopwatch(fail_after=0)
    assert measure_entries(again, DEVICE, ENTRIES, PLAN, journal) == costs
    assert len(journal.read_text().splitlines()) == 3 + len(ENTRIES)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.csv"
    measure_entries(Stopwatch(), DEVICE, ENTRIES, PLAN, journal)
    other = MeasuredDevice("bench", {"processor": "paper", "threads": 2})
    with pytest.raises(TableError, match="expected measurements of bench with this plan and these settings"):
        measure_entries(Stopwatch(), other, ENTRIES, PLAN, journal)
    with pytest.raises(TableError, match="with this plan"):
        measure_entries(Stopwatch(), DEVICE, ENTRIES, TimingPlan(repeats=6), journal)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], lines[3].replace("8,8,4", "8,x,4"), *lines[4:]]) + "\n")
    with pytest.raises(TableError, match="line 4 is garbled"):
        measure_entries(Stopwatch(), DEVICE, ENTRIES, PLAN, journal)
    journal.write_text("a,b\n1,2\n")
    with pytest.raises(TableError, match="expected an apq-deploy measurement journal 1, got another file"):
        measure_entries(Stopwatch(), DEVICE, ENTRIES, PLAN, journal)
    journal.write_text("")
    assert list(measure_entries(Stopwatch(), DEVICE, ENTRIES, PLAN, journal)) == ENTRIES


def many_entries() -> list[Entry]:
    return [
        entry
        for size, channels, bits in product((7, 14, 28), (24, 48, 96, 160), (4, 8))
        for width in (channels * 4, channels * 6)
        for entry in (
            (ConvLayer(channels, width, size, 1), Precision(bits, 8)),
            (ConvLayer(width, width, size, 3, padding=1, groups=width), Precision(bits, 8)),
            (ConvLayer(width, width, size, 5, padding=2, groups=width), Precision(bits, 8)),
        )
    ]


def smooth_ms(layer: ConvLayer, precision: Precision) -> float:
    """An imagined device: work at a speed by kind, traffic, and a fixed start."""
    speed = 2e6 if layer.groups > 1 else 2e7
    return 0.01 + layer.macs / speed + (layer.weights * precision.weight_bits + layer.out_size**2) / 1e8


def test_a_designed_subset_spreads_and_repeats() -> None:
    entries = many_entries()
    subset = designed_subset(entries, 40)
    assert subset == designed_subset(entries * 2, 40)
    assert len(set(subset)) == 40
    small = designed_subset(entries, LEAST_MEASURED)
    assert set(map(fitted_kind, small)) == set(map(fitted_kind, entries))
    # Every kind, size and width of bits is there.
    assert {(layer.kernel_size, layer.in_size, bits.weight_bits) for layer, bits in subset} == set(
        product((1, 3, 5), (7, 14, 28), (4, 8))
    )
    # Nearest neighbours within the design are farther apart than in random subsets of that size.
    features = layer_features(entries)
    points = {
        entry: row
        for entry, row in zip(entries, (features - features.mean(0)) / features.std(0).clip(1e-9), strict=True)
    }

    def least_distance(chosen: list[Entry]) -> float:
        rows = np.array([points[entry] for entry in chosen])
        apart = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
        return float(apart[np.triu_indices(len(rows), 1)].min())

    rng = np.random.default_rng(0)
    drawn = [[entries[at] for at in rng.choice(len(entries), 40, replace=False)] for _ in range(20)]
    assert least_distance(subset) > max(map(least_distance, drawn))
    with pytest.raises(HardwareError, match=rf"from {LEAST_MEASURED} to {len(entries)} entries, got 3"):
        designed_subset(entries, 3)


def test_the_rest_is_fitted_and_marked(tmp_path: Path) -> None:
    entries = many_entries()
    found = measured_table(
        lambda layer, precision: [smooth_ms(layer, precision) / 1e3] * 3,
        DEVICE,
        entries,
        TimingPlan(warm_up=1, repeats=2),
        np.random.default_rng(0),
        subset=60,
    )
    found.table.save(tmp_path / "table.csv")
    table = CostTable.load(tmp_path / "table.csv")
    marks = table.lookup(entries)
    assert int(marks.measured.sum()) == 60
    assert int(marks.interpolated.sum()) == len(entries) - 60
    assert not table.has_energy
    assert found.cross_validated is not None
    assert found.cross_validated.count == 60
    assert table.notes["cross_validated_mean_absolute_percent"] == f"{found.cross_validated.mean_absolute_percent:.2f}"
    truth = np.array([smooth_ms(*entry) for entry in entries])
    error = 100 * np.abs(marks.latency_ms / truth - 1)
    assert error[marks.measured].max() < 1e-9
    assert error[marks.interpolated].mean() < 5
    # The stated error is no flattery: on a design that spreads, held-out points are farther off than points in between.
    assert error[marks.interpolated].mean() < found.cross_validated.mean_absolute_percent


def test_everything_measured_needs_no_fit() -> None:
    found = measured_table(Stopwatch(), DEVICE, ENTRIES, PLAN, np.random.default_rng(0))
    assert found.cross_validated is None
    assert found.table.notes == {}
    assert found.table.description == {
        "model": "measured",
        "name": "bench",
        "processor": "paper",
        "threads": 1,
        "warm_up": 2,
        "repeats": 5,
    }
    assert found.table.lookup(ENTRIES).measured.all()
    with pytest.raises(HardwareError, match="at least one layer"):
        measured_table(Stopwatch(), DEVICE, [], PLAN, np.random.default_rng(0))


def test_noise_shows_in_the_cross_validated_error() -> None:
    """Noise of 10% cannot be predicted, so the stated error must be about its mean size, 8%."""
    rng = np.random.default_rng(5)
    noisy = {
        entry: Cost(smooth_ms(*entry) * float(np.exp(rng.normal(0, 0.1))), source="measured")
        for entry in many_entries()[::2]
    }
    error = fit_latency(noisy, np.random.default_rng(0)).cross_validated.mean_absolute_percent
    assert 5 < error < 14


def test_leave_one_out_equals_leaving_one_out() -> None:
    """The closed form behind the choice of kernel, against fits that really leave each point out."""
    entries = many_entries()[::4]
    features = layer_features(entries)
    points = (features - features.mean(0)) / features.std(0).clip(1e-9)
    target = np.log([smooth_ms(*entry) for entry in entries])
    kernel, noise = _kernel(points, points, 2.0), 1e-3
    values, vectors = np.linalg.eigh(kernel)
    inverse = 1 / (values + noise)
    closed = (vectors @ (inverse * (vectors.T @ target))) / (vectors**2 @ inverse)
    for held in range(len(entries)):
        rest = np.arange(len(entries)) != held
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + noise * np.eye(int(rest.sum())), target[rest])
        assert closed[held] == pytest.approx(target[held] - kernel[held, rest] @ weights, abs=1e-6)


def test_a_fit_needs_enough_points() -> None:
    few = {entry: Cost(1.0, source="measured") for entry in many_entries()[: LEAST_MEASURED - 1]}
    with pytest.raises(HardwareError, match=rf"at least {LEAST_MEASURED} measured entries, got {LEAST_MEASURED - 1}"):
        fit_latency(few, np.random.default_rng(0))


def test_a_fit_follows_a_modelled_accelerator() -> None:
    """BitFusion's own table, fitted from a third of it: how far a smooth fit gets on a model with tile edges."""
    entries = many_entries()
    modelled = build_table(load_hardware("bitfusion"), entries)
    chosen = designed_subset(entries, len(entries) // 3)
    measured = {entry: Cost(modelled[entry].latency_ms, source="measured") for entry in chosen}
    fit = fit_latency(measured, np.random.default_rng(0))
    rest = [entry for entry in entries if entry not in measured]
    truth = modelled.lookup(rest).latency_ms
    assert float(np.abs(fit.predict_ms(rest) / truth - 1).mean()) < 0.15


HEADER = "in_channels,out_channels,in_size,kernel_size,weight_bits,act_bits"


def imported(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "measurements.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("unit", "factor"), [("s", 1e-3), ("ms", 1.0), ("us", 1e3), ("ns", 1e6)])
def test_measurements_are_imported_in_their_unit(unit: str, factor: float, tmp_path: Path) -> None:
    path = imported(tmp_path, f"# my board\n{HEADER},latency_{unit}\n\n8,16,4,1,8,8,{2.5 * factor}\n")
    found = import_measurements(path, DEVICE)
    entry = (ConvLayer(8, 16, 4, 1), Precision(8, 8))
    assert found.table[entry].latency_ms == pytest.approx(2.5, rel=1e-12)
    assert found.table[entry].source == "measured"
    assert found.table[entry].energy_mj is None
    assert found.table[entry].spread_ms is None
    assert found.rows == 1
    description = found.table.description
    assert (description["measurements"], description["weight_bits"], description["act_bits"]) == (
        "measurements.csv",
        (8,),
        (8,),
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # the mark that Excel puts before a text
    assert import_measurements(path, DEVICE).table.sha256 == found.table.sha256
    path.write_text(path.read_text(encoding="utf-8-sig").replace("2.5", "2.75").replace("25", "26"))
    assert import_measurements(path, DEVICE).table.sha256 != found.table.sha256, "other figures are another hardware"


def test_repeated_rows_are_repeats_and_coverage_is_reported(tmp_path: Path) -> None:
    lines = [
        f"{HEADER},stride,padding,groups,im2col,latency_ms,energy_uJ",
        *(f"8,16,4,1,8,8,,,,,{ms},{uj}" for ms, uj in ((3, 10), (4, 20), (5, 30), (6, 40), (7, 50))),
        "16,16,8,3,4,8,2,1,16,0,1.5,",
        "3,8,8,3,8,8,1,1,1,1,2.5,9",
    ]
    entries = [(ConvLayer(8, 16, 4, 1), Precision(8, 8)), (ConvLayer(8, 24, 4, 1), Precision(8, 8))]
    found = import_measurements(imported(tmp_path, "\n".join(lines)), DEVICE)
    cost = found.table[entries[0]]
    assert (cost.latency_ms, cost.spread_ms, cost.repeats) == (5.0, 1.0, 5)
    assert cost.energy_mj == pytest.approx(0.03)
    depthwise = found.table[ConvLayer(16, 16, 8, 3, 2, 1, groups=16), Precision(4, 8)]
    assert (depthwise.latency_ms, depthwise.energy_mj) == (1.5, None)
    assert (ConvLayer(3, 8, 8, 3, 1, 1, im2col=True), Precision(8, 8)) in found.table
    assert found.rows == 7
    covered = coverage(found.table, entries)
    assert (covered.needed, covered.measured, covered.unused, covered.missing) == (2, 1, 2, (entries[1],))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header line and rows, got 0 lines"),
        (f"{HEADER},latency_ms\n", "expected a header line and rows, got 1 lines"),
        (f"{HEADER},latency\n8,8,4,1,8,8,1\n", r'"latency"; the name says the unit: latency_s, latency_ms, lat'),
        (f"{HEADER},energy,latency_ms\n8,8,4,1,8,8,1,1\n", r'"energy"; the name says the unit: energy_j, energy_mj'),
        (f"{HEADER},latency_ms\n".replace(",", ";") + "8;8;4;1;8;8;1,5\n", "separated by commas, got semicolons"),
        (f"{HEADER},latency_ms\n".replace(",", "\t") + "8\n", "separated by commas, got tabs; save the file with"),
        (f"{HEADER},latency_ms\n8,8,4,1,8,8,1,5\n", "line 2: expected 7 cells, got 8; numbers have points, not commas"),
        (f'{HEADER},latency_ms\n8,8,4,1,8,8,"1,5"\n', "got '1,5'; write 1.5, with a point"),
        (f"{HEADER},latency_ms\n8,8,4,1,8,8,\n", "line 2: latency_ms must be a number, got ''"),
        (f"{HEADER},latency_ms,stride,stride\n8,8,4,1,8,8,1,1,1\n", 'every column once, got "stride" twice'),
        ("in_channels,latency_ms\n8,1\n", 'missing column "out_channels"'),
        (f"{HEADER}\n8,8,4,1,8,8\n", "expected one column of latency_s, latency_ms, .* got none"),
        (f"{HEADER},latency_ms,latency_s\n8,8,4,1,8,8,1,1\n", "expected one column of latency_s"),
        (f"{HEADER},latency_ms\n8,8,4,1,8,8\n", "line 2: expected 7 cells, got 6"),
        (f"# c\n{HEADER},latency_ms\n\n8,8,4,1,8,eight,1\n", "line 4: act_bits must be a whole number, got 'eight'"),
        (f"{HEADER},latency_ms\n8,8,4,1,8,17,1\n", "line 2: act_bits must be an integer from 1 to 16, got 17"),
        (f"{HEADER},latency_ms\n8,8,4,1,8,8,0\n", "line 2: latency_ms must be a positive number, got '0'"),
        (f"{HEADER},latency_ms\n8,8,4,1,8,8,fast\n", "line 2: latency_ms must be a number, got 'fast'"),
        (f"{HEADER},latency_ms,im2col\n8,8,4,1,8,8,1,2\n", "line 2: im2col must be 0 or 1, got 2"),
    ],
)
def test_a_wrong_measurements_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = imported(tmp_path, text)
    with pytest.raises(TableError, match=message) as raised:
        import_measurements(path, DEVICE)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_an_imported_table_can_be_completed(tmp_path: Path) -> None:
    entries = many_entries()
    chosen = designed_subset(entries, 50)
    rows = [
        f"{layer.in_channels},{layer.out_channels},{layer.in_size},{layer.kernel_size},{bits.weight_bits},"
        f"{bits.act_bits},{layer.padding},{layer.groups},{smooth_ms(layer, bits)}"
        for layer, bits in chosen
    ]
    path = imported(tmp_path, "\n".join([f"{HEADER},padding,groups,latency_ms", *rows]))
    found = import_measurements(path, DEVICE)
    assert len(found.table.missing(entries)) == len(entries) - 50
    completed = interpolate_missing(found.table, entries, np.random.default_rng(0))
    assert completed.table.missing(entries) == []
    assert completed.table.description == found.table.description
    assert completed.cross_validated is not None


def test_a_fit_keeps_to_the_precisions_that_were_measured() -> None:
    """From layers of 8 bits nothing follows about 4; nor from depthwise layers of 4 bits about others of 4 bits."""
    entries = many_entries()
    timed = [e for e in entries if e[1].weight_bits == 8 or e[0].is_depthwise][::2]
    table = make_table("bench", {}, {e: Cost(smooth_ms(*e), source="measured") for e in timed})
    completed = interpolate_missing(table, entries, np.random.default_rng(0))
    assert {(e[0].is_depthwise, e[1]) for e in completed.table.missing(entries)} == {(False, Precision(4, 8))}
    assert all(entry in completed.table for entry in entries if (entry[0].is_depthwise or entry[1].weight_bits == 8))


def test_missing_layers_are_written_to_be_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "missing.csv"
    entries = [*many_entries()[:3], (ConvLayer(3, 8, 8, 3, 1, 1, im2col=True), Precision(4, 8))]
    write_missing(path, entries)
    path.write_text("\n".join(f"{line}2.5" if line.endswith(",") else line for line in path.read_text().splitlines()))
    assert import_measurements(path, DEVICE).table.costs == {e: Cost(2.5, source="measured") for e in entries}


def test_entries_from_a_journal_are_counted(tmp_path: Path) -> None:
    journal, rng = tmp_path / "journal.csv", np.random.default_rng(0)
    assert measured_table(Stopwatch(), DEVICE, ENTRIES[:2], PLAN, rng, journal=journal).from_journal == 0
    assert measured_table(Stopwatch(), DEVICE, ENTRIES, PLAN, rng, journal=journal).from_journal == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_the_summary_lies_within_its_samples(samples: list[float]) -> None:
    cost = summarise(samples)
    assert min(samples) <= cost.latency_ms * (1 + 1e-12)
    assert cost.latency_ms <= max(samples) * (1 + 1e-12)
    assert cost.spread_ms is not None
    assert 0 <= cost.spread_ms <= (max(samples) - min(samples)) / 2 + 1e-12
    assert cost.repeats == len(samples)
