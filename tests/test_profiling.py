"""Profiles of ONNX files: on a model or by a table, what bounds a layer, and which sums are shown."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import random_network

from apq_deploy import SearchSpace, UserError
from apq_deploy.profiling import describe_profile, profile_model, write_csv
from exporters import write_onnx
from exporters.workload import network_layers
from hwmodels import MissingEntry, build_table, hardware_template, load_hardware
from hwmodels.table import make_table

NET = random_network(np.random.default_rng(0))
ENTRIES = [(layer, precision) for _, _, layer, precision in network_layers(NET)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_onnx(NET, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_rows_say_what_bounds_a_layer(model: Path) -> None:
    """Memory, where the DRAM's bits alone take longer than computing; bitfusion moves 192 of them a cycle."""
    found = profile_model(model, "bitfusion", None)
    for row, cost in zip(found["layers"], load_hardware("bitfusion").layer_costs(ENTRIES), strict=True):
        count = cost.counters
        assert row["dram_bits"] == count["dram_read_bits"] + count["dram_write_bits"]
        assert row["bound"] == ("memory" if row["dram_bits"] / 192 > count["compute_cycles"] else "compute")
    write_csv(found, model.with_suffix(".csv"))
    rows = list(csv.DictReader(model.with_suffix(".csv").read_text().splitlines()))
    assert [(row["bound"], int(row["dram_bits"])) for row in rows] == [
        (row["bound"], row["dram_bits"]) for row in found["layers"]
    ]
    assert describe_profile(found).splitlines()[0].endswith("bound")


def test_a_table_in_place_of_the_hardware(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    build_table(load_hardware("bitfusion"), ENTRIES).save(table)
    found, modelled = profile_model(model, "", None, table), profile_model(model, "bitfusion", None)
    assert found["sums"] == modelled["sums"]
    assert (found["hardware"], found["hardware_sha256"]) == ("bitfusion", modelled["hardware_sha256"])
    assert {row["bound"] for row in found["layers"]} == {None}
    assert "-" in describe_profile(found)
    build_table(load_hardware("bitfusion"), ENTRIES[:-1]).save(table)
    with pytest.raises(MissingEntry, match="build a table of this space"):
        profile_model(model, "", None, table)
    build_table(load_hardware("bitfusion"), ENTRIES, batch=4).save(table)
    with pytest.raises(UserError, match=r"expected a table of one image, .* is of batches of 4"):
        profile_model(model, "", None, table)


def test_energies_that_lack_are_told(model: Path, tmp_path: Path) -> None:
    text = "".join(line for line in hardware_template().splitlines(True) if "_pj_per_" not in line)
    (tmp_path / "chip.toml").write_text(text)
    words = "hardware my-accelerator has no energies; give them in its TOML"
    assert words in describe_profile(profile_model(model, str(tmp_path / "chip.toml"), None)).splitlines()[-1]
    table = build_table(load_hardware("bitfusion"), ENTRIES)
    costs = {**table.costs, ENTRIES[0]: replace(table[ENTRIES[0]], energy_mj=None)}
    make_table("board", {}, costs).save(tmp_path / "table.csv")
    lines = describe_profile(profile_model(model, "", None, tmp_path / "table.csv")).splitlines()
    assert lines[-1].startswith("energy is missing for ") and lines[-1].endswith(" layers on board")


def test_the_second_sum_is_that_of_the_space(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "APQ's sum" not in describe_profile(profile_model(model, "bitfusion", None)), "a file that names no space"
    write_onnx(replace(NET, metadata={"space": "fashion"}), model)
    assert "APQ's sum" not in describe_profile(profile_model(model, "bitfusion", None)), "a space with one sum"
    space = replace(SearchSpace.load("fashion"), left_out_of_sums=("classifier",))
    monkeypatch.setattr(SearchSpace, "load", lambda name: space)
    found = profile_model(model, "bitfusion", None)
    assert found["left_out_of_apq_sum"] == [row["name"] for row in found["layers"] if row["kind"] == "linear"]
    assert "APQ's sum (without classifier)" in describe_profile(found)


def test_totals_have_four_digits(model: Path) -> None:
    found = profile_model(model, "bitfusion", None)
    found["sums"]["full"] |= {"latency_ms": 0.00012357, "energy_mj": 12.3456, "macs_m": 12345.6}
    last = describe_profile(found).splitlines()[-1].split()
    assert last[-4:-1] == ["0.0001236", "12.35", "12346"]
