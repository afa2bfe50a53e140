"""Cost tables on the command line: built, measured on this machine, imported, checked, compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from commands import call_here
from small import SMALL
from test_cli import call

from apq_deploy.search import Budget, SpaceCosts, search
from apq_deploy.workload import Widths, arch_layers, space_entries
from hwmodels import ConvLayer, CostTable, Entry, Precision, hardware_template, load_hardware
from hwmodels.table_file import LAYER_COLUMNS, entry_cells

CHECK = ("lut", "check", "--space", "small.toml")

SPACE = """schema = 1
name = "small"
input_channels = 1
input_size = 12
num_classes = 3
stem_channels = 4
head_channels = 8
kernel_sizes = [3, 5, 7]
expand_min = 2
expand_max = 4
channel_step = 4
bits = [4, 6, 8]
fixed_bits = 8
stages = [
    { out_channels = 4, stride = 1, depths = [1, 2] },
    { out_channels = 6, stride = 2, depths = [1, 2] },
]
"""


def zeros(features: np.ndarray) -> np.ndarray:
    """An accuracy that is the same for every network."""
    return np.zeros(len(features), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SPACE)
    return tmp_path


def test_a_modelled_table_covers_the_space(folder: Path) -> None:
    done = call(folder, "lut", "build", "bitfusion", "--space", "small.toml", "-o", "table.csv")
    assert done.returncode == 0, done.stderr
    entries = space_entries(SMALL)
    table = CostTable.load(folder / "table.csv")
    assert list(table) == entries
    costs = load_hardware("bitfusion").layer_costs(entries)
    assert [table[entry].latency_ms for entry in entries] == [cost.latency_ms for cost in costs]
    assert call(folder, "lut", "check", "table.csv", "--space", "small.toml").returncode == 0


def test_a_check_lists_what_a_search_would_miss(folder: Path) -> None:
    call(folder, "lut", "build", "bitfusion", "--space", "small.toml", "-o", "table.csv")
    done = call(folder, "lut", "check", "table.csv", "--space", "fashion")
    assert done.returncode == 1
    assert "missing: " in done.stdout
    assert "of 903 layers" in done.stdout
    done = call(folder, "search", "--table", "table.csv", "--latency-ms", "1")
    assert done.returncode == 2
    assert "lut build" in done.stderr


def test_this_machine_is_timed_in_part_and_fitted(folder: Path) -> None:
    arguments = ("lut", "build", "host", "--space", "small.toml", "--subset", "20", "--repeats", "2", "-o", "host.csv")
    done = call(folder, *arguments)
    assert done.returncode == 0, done.stderr
    table = CostTable.load(folder / "host.csv")
    sources = [table[entry].source for entry in space_entries(SMALL)]
    assert sources.count("measured") == 20
    assert sources.count("interpolated") == len(sources) - 20
    assert not table.has_energy
    assert "cross-validated error" in done.stdout
    again = call(folder, *arguments)  # the journal holds every measurement: nothing is timed again
    assert again.returncode == 0
    assert "20 of 20 timed layers come from host.journal.csv; delete it to measure anew" in again.stdout
    later = CostTable.load(folder / "host.csv")
    assert [later[entry].latency_ms for entry in table] == [table[entry].latency_ms for entry in table]


def test_measurements_are_imported_and_compared(folder: Path) -> None:
    call(folder, "lut", "build", "bitfusion", "--space", "small.toml", "-o", "table.csv")
    table = CostTable.load(folder / "table.csv")
    rows = ["in_channels,out_channels,in_size,kernel_size,stride,padding,groups,im2col,weight_bits,act_bits,latency_us"]
    for layer, precision in list(table)[:40]:
        fields = (layer.in_channels, layer.out_channels, layer.in_size, layer.kernel_size, layer.stride, layer.padding)
        cells = (*fields, layer.groups, int(layer.im2col), precision.weight_bits, precision.act_bits)
        rows.append(",".join(map(str, (*cells, 1100 * table[layer, precision].latency_ms))))
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    done = call(folder, "lut", "import", "mine.csv", "--space", "small.toml", "-o", "mine-table.csv")
    assert done.returncode == 0, done.stderr
    assert f"40 of {len(table)} layers" in done.stdout
    done = call(folder, "lut", "compare", "mine-table.csv", "table.csv", "--json")
    found = json.loads(done.stdout)
    assert found["shared"] == 40
    assert found["latency"]["mean_absolute_percent"] == pytest.approx(10)
    done = call(folder, "search", "--table", "mine-table.csv", "--space", "small.toml", "--energy-mj", "1")
    assert done.returncode == 2  # of 40 layers alone


def measurements(folder: Path, name: str, wanted: Callable[[ConvLayer, Precision], bool]) -> list[Entry]:
    """The entries of the small space that were measured, by BitFusion, and their file."""
    entries = [entry for entry in space_entries(SMALL) if wanted(*entry)]
    costs = load_hardware("bitfusion").layer_costs(entries)
    rows = [",".join((*LAYER_COLUMNS, "latency_ms"))]
    rows += [
        ",".join([*entry_cells(*entry), repr(cost.latency_ms)]) for entry, cost in zip(entries, costs, strict=True)
    ]
    (folder / name).write_text("\n".join(rows) + "\n")
    return entries


def test_measurements_of_one_width_are_searched_at_that_width(folder: Path) -> None:
    is_odd = cycle((True, False))
    every = measurements(folder, "only8.csv", lambda _, bits: bits == Precision(8, 8))
    call_here(folder, "lut", "import", "only8.csv", "--name", "board", "-o", "board.csv")
    table = CostTable.load(folder / "board.csv")
    assert (table.hardware_name, Widths.of(table.description)) == ("board", Widths((8,), (8,)))
    costs = SpaceCosts.from_table(SMALL, table)
    bits = {layer.precision for layer in arch_layers(SMALL, search(costs, zeros, Budget()).arch)}
    assert bits == {Precision(8, 8)}
    assert "weights of 8 and activations of 8 bits alone" in call_here(folder, *CHECK, "board.csv").out

    measurements(folder, "half.csv", lambda layer, bits: bits == Precision(8, 8) and (layer.im2col or next(is_odd)))
    call_here(folder, "lut", "import", "half.csv", "-o", "half-table.csv")
    done = call_here(folder, *CHECK, "half-table.csv", "--missing", "missing.csv")
    table = CostTable.load(folder / "half-table.csv")
    assert (done.code, len(table.missing(every))) == (1, len((folder / "missing.csv").read_text().splitlines()) - 1)
    assert table.missing(every)
    filled = (folder / "missing.csv").read_text().replace("latency_ms", "latency_us").replace(",\n", ",9.5\n")
    (folder / "missing.csv").write_text(filled)
    call_here(folder, "lut", "import", "half.csv", "missing.csv", "-o", "whole.csv")
    whole = CostTable.load(folder / "whole.csv")
    assert {whole[entry].latency_ms for entry in table.missing(every)} == {0.0095}
    assert call_here(folder, *CHECK, "whole.csv").code == 0


def test_a_fit_invents_no_widths(folder: Path) -> None:
    measurements(
        folder, "some.csv", lambda layer, bits: bits == Precision(8, 8) or (layer.is_depthwise and bits.act_bits > 4)
    )
    arguments = ("lut", "import", "some.csv", "--space", "small.toml", "--fit-missing", "-o", "table.csv")
    done = call_here(folder, *arguments)
    assert done.code == 0, done
    assert "none was measured at W4A6, W4A8, W6A6, W6A8, W8A6" in done.out
    assert {e[1] for e in CostTable.load(folder / "table.csv") if not e[0].is_depthwise} == {Precision(8, 8)}


def test_widths_that_a_space_does_not_have(folder: Path) -> None:
    (folder / "wide.csv").write_text(
        "in_channels,out_channels,in_size,kernel_size,weight_bits,act_bits,latency_ms\n1,4,12,3,16,16,1\n"
    )
    call_here(folder, "lut", "import", "wide.csv", "-o", "table.csv")
    assert "weights of 16 and activations of 16 bits: no width in common" in call_here(folder, *CHECK, "table.csv").line


def test_energy_and_im2col_that_lack_are_told(folder: Path) -> None:
    measurements(folder, "mine.csv", lambda _, bits: bits == Precision(8, 8))
    rows = [line.split(",") for line in (folder / "mine.csv").read_text().splitlines()]
    place = rows[0].index("im2col")
    (folder / "mine.csv").write_text("\n".join(",".join(row[:place] + row[place + 1 :]) for row in rows))
    done = call_here(folder, "lut", "import", "mine.csv", "--space", "small.toml", "-o", "table.csv")
    assert "its row needs im2col = 1" in done.out
    done = call_here(folder, *CHECK, "table.csv")
    assert f"missing for {len(rows) - 2} of {len(rows) - 2} layers" in done.out
    assert "its row needs im2col = 1" in done.out
    assert "im2col = 1" in call_here(folder, "search", "--space", "small.toml", "--table", "table.csv").line


def test_energy_alone_does_not_fail_a_check(folder: Path) -> None:
    text = hardware_template()
    (folder / "small.toml").write_text("\ufeff" + SPACE)  # with the mark that some editors put before a text
    (folder / "chip.toml").write_text("\n".join(line for line in text.splitlines() if "_pj_per_" not in line))
    call_here(folder, "lut", "build", "chip.toml", "--space", "small.toml", "-o", "chip.csv")
    done = call_here(folder, *CHECK, "chip.csv")
    assert (done.code, "energy" in done.out) == (0, True)
    done = call_here(folder, "search", "--space", "small.toml", "--table", "chip.csv", "--energy-mj", "1")
    assert "hardware my-accelerator has no energies; give them in its TOML" in done.line


@pytest.mark.parametrize(
    "arguments",
    [
        ("lut", "build", "chip.toml", "-o", "chip.toml"),
        ("lut", "build", "bitfusion", "--space", "small.toml", "-o", "./small.toml"),
        ("lut", "import", "mine.csv", "-o", "link.csv"),
        ("lut", "check", "mine.csv", "--missing", "mine.csv"),
        ("profile", "mine.csv", "--csv", "mine.csv"),
        ("profile", "model.onnx", "--hardware", "chip.toml", "--csv", "chip.toml"),
        ("profile", "model.onnx", "--table", "mine.csv", "--csv", "mine.csv"),
    ],
    ids=" ".join,
)
def test_no_command_writes_over_what_it_reads(folder: Path, arguments: tuple[str, ...]) -> None:
    (folder / "chip.toml").write_text(hardware_template())
    (folder / "mine.csv").write_text("measured\n")
    (folder / "link.csv").symlink_to("mine.csv")
    done = call_here(folder, *arguments)
    assert (done.code, done.changed) == (2, ())
    assert "is read by this command" in done.line


def test_measurements_in_place_of_a_table_are_told(folder: Path) -> None:
    measurements(folder, "mine.csv", lambda *_: True)
    for arguments in ((*CHECK, "mine.csv"), ("search", "--space", "small.toml", "--table", "mine.csv")):
        assert "`apq-deploy lut import mine.csv -o TABLE.csv`" in call_here(folder, *arguments).line


def test_a_new_accelerator_from_the_template(folder: Path) -> None:
    assert call(folder, "hardware", "new", "chip.toml").returncode == 0
    text = (folder / "chip.toml").read_text().replace("rows = 16", "rows = 8").replace("cols = 32", "cols = 64")
    (folder / "chip.toml").write_text(text)
    assert "rows = 8" in call(folder, "hardware", "show", "chip.toml").stdout
    done = call(folder, "lut", "build", "chip.toml", "--space", "small.toml", "-o", "chip.csv")
    assert done.returncode == 0, done.stderr
    (folder / "chip.csv").write_text((folder / "chip.csv").read_text().replace('"rows":8', '"rows":9'))
    done = call(folder, "lut", "check", "chip.csv", "--space", "small.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
