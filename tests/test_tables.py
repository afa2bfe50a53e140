"""Cost tables on the command line: built, measured on this machine, imported, checked, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import SMALL
from test_cli import call

from apq_deploy.workload import space_entries
from hwmodels import CostTable, load_hardware

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
    assert done.returncode == 2


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
