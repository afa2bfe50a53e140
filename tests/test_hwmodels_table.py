"""Cost tables: built, written, read back, refused when changed, compared; and the sums of APQ's space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hwmodels import (
    ConvLayer,
    Cost,
    CostTable,
    Entry,
    HardwareError,
    MissingEntry,
    Precision,
    TableError,
    build_table,
    compare_tables,
    coverage,
    description_sha256,
    error_statistics,
    load_hardware,
)
from hwmodels.table import make_table

BITS = tuple(Precision(w, a) for w, a in product((4, 6, 8), repeat=2))
STEM = ConvLayer(3, 32, 224, 3, stride=2, padding=1, im2col=True)
TAIL = ConvLayer(320, 1280, 7, 1)
FEW = [(ConvLayer(16, width, 56, 1), bits) for width in (64, 96) for bits in BITS] + [
    (ConvLayer(96, 96, 56, 3, padding=1, groups=96), bits) for bits in BITS
]


@dataclass(frozen=True)
class Block:
    """One of the 21 searched blocks: what every choice costs by itself."""

    in_channels: int
    out_channels: int
    in_size: int
    stride: int
    is_optional: bool

    def pointwise(self) -> Iterator[tuple[ConvLayer, ConvLayer]]:
        for mid in range(4 * self.in_channels, 6 * self.in_channels + 1, 8):
            out_size = self.in_size // self.stride
            yield ConvLayer(self.in_channels, mid, self.in_size, 1), ConvLayer(mid, self.out_channels, out_size, 1)

    def depthwise(self) -> Iterator[tuple[ConvLayer, Precision]]:
        """The released table has no 7x7 with activations of 4 bits."""
        for (expand, _), kernel, bits in product(self.pointwise(), (3, 5, 7), BITS):
            mid = expand.out_channels
            if kernel < 7 or bits.act_bits > 4:
                yield ConvLayer(mid, mid, self.in_size, kernel, self.stride, kernel // 2, groups=mid), bits

    def entries(self) -> Iterator[Entry]:
        for pair, bits in product(self.pointwise(), BITS):
            yield from ((layer, bits) for layer in pair)
        yield from self.depthwise()


def apq_blocks() -> list[Block]:
    """The searched blocks of APQ's space at 224x224, after the stem and the first block.

    Source: Wang et al., "APQ", CVPR 2020, section 4.
    """
    blocks, size = [], 112
    for in_channels, out_channels, stride, depth in (
        (16, 24, 2, 4),
        (24, 40, 2, 4),
        (40, 80, 2, 4),
        (80, 96, 1, 4),
        (96, 192, 2, 4),
        (192, 320, 1, 1),
    ):
        blocks.append(Block(in_channels, out_channels, size, stride, False))
        size //= stride
        for index in range(1, depth):
            blocks.append(Block(out_channels, out_channels, size, 1, index >= 2))
    return blocks


@pytest.fixture(scope="module")
def apq_table() -> CostTable:
    entries = [entry for block in apq_blocks() for entry in block.entries()]
    ends = [(STEM, Precision(8, 8)), (TAIL, Precision(8, 8))]
    return build_table(load_hardware("bitfusion"), entries + ends)


def test_the_whole_table_of_apq(apq_table: CostTable) -> None:
    """6,567 entries as released, and the two ends that are the same in every network."""
    assert len(apq_table) == 6_567 + 2
    assert apq_table[STEM, Precision(8, 8)].cycles == 147_952
    assert apq_table[TAIL, Precision(8, 8)].cycles == 40_804


def test_least_and_most_of_apqs_space(apq_table: CostTable) -> None:
    """Every block chooses kernel, width and bits by itself; the least takes two blocks of each stage, the most all.

    Expand and project share their bits; the sums leave out the first block and the classifier, as APQ's do.
    """
    for column, least, most in (("latency_ms", "2.959", "46.79"), ("energy_mj", "5.107", "41.60")):
        low = high = sum(getattr(apq_table[layer, Precision(8, 8)], column) for layer in (STEM, TAIL))
        for block in apq_blocks():
            pairs = [
                getattr(apq_table[expand, bits], column) + getattr(apq_table[project, bits], column)
                for (expand, project), bits in product(block.pointwise(), BITS)
            ]
            depthwise = [getattr(apq_table[entry], column) for entry in block.depthwise()]
            low += 0 if block.is_optional else min(pairs) + min(depthwise)
            high += max(pairs) + max(depthwise)
        assert f"{low:.3f}" == least
        assert f"{high:.2f}" == most


@pytest.fixture
def table() -> CostTable:
    return build_table(load_hardware("bitfusion"), FEW)


def without_details(cost: Cost) -> Cost:
    """What a file keeps of a cost."""
    return Cost(
        cost.latency_ms,
        cost.energy_mj,
        cost.cycles,
        source=cost.source,
        spread_ms=cost.spread_ms,
        repeats=cost.repeats,
    )


def test_a_table_survives_its_file(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.csv"
    table.save(path)
    again = CostTable.load(path)
    assert list(again) == list(table) == FEW
    for entry in FEW:
        assert again[entry] == without_details(table[entry])
    assert (again.hardware_name, again.batch, again.created, again.tool) == (
        "bitfusion",
        1,
        table.created,
        table.tool,
    )
    assert again.description == table.description
    assert again.sha256 == table.sha256 == description_sha256(load_hardware("bitfusion").describe())
    assert [each.name for each in path.parent.iterdir()] == ["table.csv"]
    again.save(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # the mark that Excel puts before a text
    assert CostTable.load(path).costs == again.costs


def test_measured_entries_keep_their_spread_and_invent_nothing(tmp_path: Path) -> None:
    first, second, third = FEW[:3]
    costs = {
        first: Cost(0.1 + 0.2, source="measured", spread_ms=0.01, repeats=20),
        second: Cost(1e-7, source="interpolated"),
        third: Cost(2.0, energy_mj=0.5, cycles=7),
    }
    table = make_table("device", {"model": "measured", "threads": 1}, costs, batch=4, notes={"fit": "one, two"})
    table.save(tmp_path / "table.csv")
    again = CostTable.load(tmp_path / "table.csv")
    assert dict(again.costs) == costs
    assert (again.batch, again.notes) == (4, {"fit": "one, two"})
    assert not again.has_energy
    assert again.lookup([first, third]).energy_mj is None
    assert again.lookup([third]).energy_mj == pytest.approx([0.5])


def test_lookup_gives_arrays_in_order(table: CostTable) -> None:
    wanted = [FEW[5], FEW[0], FEW[5]]
    found = table.lookup(wanted)
    assert found.latency_ms.tolist() == [table[entry].latency_ms for entry in wanted]
    assert found.energy_mj is not None
    assert found.energy_mj.tolist() == [table[entry].energy_mj for entry in wanted]
    assert found.cycles is not None
    assert found.cycles.tolist() == [table[entry].cycles for entry in wanted]
    assert not found.measured.any()
    assert not found.interpolated.any()
    assert table.lookup([]).latency_ms.shape == (0,)


def test_a_missing_entry_names_itself_and_its_command(table: CostTable, tmp_path: Path) -> None:
    absent = (ConvLayer(16, 72, 56, 1), Precision(4, 8))
    with pytest.raises(
        MissingEntry, match=r"no bitfusion cost for 16->72 k1 s1 at 56x56 at W4A8; build a table of this"
    ):
        table[absent]
    table.save(tmp_path / "t.csv")
    with pytest.raises(
        MissingEntry, match=rf"W4A8 \(and 1 more\) in {tmp_path}/t\.csv; .*lut build HARDWARE --space SPACE -o NEW\.csv"
    ):
        CostTable.load(tmp_path / "t.csv").lookup([FEW[0], absent, (STEM, Precision(8, 8)), absent])
    assert table.missing([absent, FEW[0], absent]) == [absent]
    measured = make_table("cpu", {"model": "measured"}, {FEW[0]: Cost(1.0, source="measured")})
    with pytest.raises(MissingEntry, match="apq-deploy lut import FILE"):
        measured[absent]
    rolled = make_table("cpu", {"model": "measured"}, {(replace(STEM, im2col=False), BITS[0]): Cost(1.0)})
    with pytest.raises(MissingEntry, match="the table has it without im2col"):
        rolled[STEM, BITS[0]]


@pytest.mark.parametrize("cost", [Cost(float("inf")), Cost(0.0), Cost(1.0, float("nan")), Cost(1.0, -1.0)])
def test_no_table_holds_a_cost_that_is_none(cost: Cost) -> None:
    with pytest.raises(
        HardwareError, match=r"^cpu: (latency_ms|energy_mj) must be .* for 16->64 k1 s1 at 56x56 at W4A4"
    ):
        make_table("cpu", {}, {FEW[0]: cost})


def test_progress_ends_at_the_number_of_distinct_entries() -> None:
    seen: list[tuple[int, int]] = []
    entries = [(ConvLayer(width, 8, 4, 1), bits) for width in range(1, 101) for bits in BITS]
    built = build_table(load_hardware("bitfusion"), entries + entries, lambda done, total: seen.append((done, total)))
    assert len(built) == 900
    assert seen == [(512, 900), (900, 900)]
    with pytest.raises(HardwareError, match="at least one layer, got none"):
        build_table(load_hardware("bitfusion"), [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cost table 1", "cost table 2", r'expected schema "apq-deploy cost table 1", got "apq-deploy cost table 2"'),
        ("# schema: ", "# shema: ", r"got \"no schema line\""),
        ('"cols":32', '"cols":64', r"expected the hardware of hash \w{12}, got a description of hash \w{12}"),
        ("# entries: 27", "# entries: 28", r"expected 28 entries, got 27: the file is cut off"),
        ("# batch: 1\n", "", r"expected a header line 'batch', got none"),
        ("# batch: 1\n", "# batch: one\n", r"the header is garbled"),
        ('# hardware: {"', '# hardware: ["', r"the header is garbled"),
        ("in_channels,", "in_channels;", r"expected the columns in_channels,"),
        ("latency_ms,energy_mj", "energy_mj,latency_ms", r"expected the columns in_channels,"),
        ("modelled", "guessed", r"row 2 is garbled: source must be one of modelled, measured, interpolated"),
        ("16,64,56,1", "16,64,56", r"row 2 is garbled: expected 16 cells, got 15"),
        ("16,64,56,1", "0,64,56,1", r"row 2 is garbled: in_channels must be a positive integer, got 0"),
        ("16,64,56,1", "16,96,56,1", r"row \d+ is garbled: 16->96 k1 s1 at 56x56 at W4A4 stands there twice"),
        ("16,64,56,1", "16,72,56,1", r"expected rows of hash \w{12}, got others: rows were changed after writing"),
    ],
)
def test_a_changed_file_is_refused_in_one_line(
    old: str, new: str, message: str, table: CostTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    table.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(TableError, match=message) as raised:
        CostTable.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert "`apq-deploy lut build`" in str(raised.value)


def test_a_file_cut_off_anywhere_is_refused(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(TableError):
            CostTable.load(path)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(TableError, match="expected a readable UTF-8 text file"):
        CostTable.load(path)
    with pytest.raises(TableError, match="no such table; build it with"):
        CostTable.load(tmp_path / "absent.csv")


def test_error_statistics_by_hand() -> None:
    """Errors of +10%, -4%, 0 and +20% of 10, 50, 1 and 5."""
    found = error_statistics([11.0, 48.0, 1.0, 6.0], [10.0, 50.0, 1.0, 5.0])
    assert found.count == 4
    assert found.mean_absolute_percent == pytest.approx(34 / 4)
    assert found.median_absolute_percent == pytest.approx(7)
    assert found.largest_absolute_percent == pytest.approx(20)
    assert found.mean_percent == pytest.approx(26 / 4)
    assert found.rmspe_percent == pytest.approx(((100 + 16 + 400) / 4) ** 0.5)
    assert found.rmse == pytest.approx(((1 + 4 + 1) / 4) ** 0.5)
    assert found.within_5_percent == 50
    assert found.within_10_percent == 75
    with pytest.raises(TableError, match="got none"):
        error_statistics([], [])
    with pytest.raises(TableError, match="need positive figures"):
        error_statistics([1.0], [0.0])


def test_tables_are_compared_over_what_they_share(table: CostTable) -> None:
    slower = {entry: replace(cost, latency_ms=cost.latency_ms * 1.04) for entry, cost in table.costs.items()}
    del slower[FEW[0]]
    slower[FEW[3]] = replace(slower[FEW[3]], latency_ms=table[FEW[3]].latency_ms * 0.5)
    slower[TAIL, BITS[0]] = Cost(1.0, 1.0)
    other = make_table("slower", {}, slower)
    found = compare_tables(other, table, worst=2)
    assert (found.first_name, found.second_name) == ("slower", "bitfusion")
    assert (found.shared, found.only_first, found.only_second) == (26, 1, 1)
    assert found.latency.within_5_percent == pytest.approx(100 * 25 / 26)
    assert found.latency.mean_absolute_percent == pytest.approx((25 * 4 + 50) / 26)
    assert found.energy is not None
    assert found.energy.largest_absolute_percent == 0
    assert found.worst[0].entry == FEW[3]
    assert found.worst[0].percent == pytest.approx(-50)
    assert len(found.worst) == 2
    with pytest.raises(TableError, match="must share entries"):
        compare_tables(make_table("none", {}, {(TAIL, BITS[0]): Cost(1.0)}), table)
    with pytest.raises(TableError, match="must be for one batch, got 2 and 1"):
        compare_tables(make_table("two", {}, slower, batch=2), table)
    silent = make_table("silent", {}, {FEW[1]: Cost(1.0)})
    assert compare_tables(silent, table).energy is None


def test_coverage_lists_what_a_search_would_miss(table: CostTable) -> None:
    absent = (TAIL, Precision(8, 8))
    found = coverage(table, [FEW[0], FEW[1], absent, FEW[0]])
    assert (found.needed, found.covered, found.missing, found.unused) == (3, 2, (absent,), len(FEW) - 2)
    assert found.percent == pytest.approx(200 / 3)
    assert not found.is_complete
    assert found.without_energy == 0
    bare = make_table("cpu", {}, {FEW[0]: Cost(1.0), FEW[1]: Cost(1.0, 2.0)})
    assert coverage(bare, FEW).without_energy == 1
    assert coverage(table, FEW).is_complete
    with pytest.raises(TableError, match="at least one entry"):
        coverage(table, [])


def test_batches_scale_what_is_counted(tmp_path: Path) -> None:
    built = build_table(load_hardware("bitfusion-isca18"), FEW, batch=16)
    built.save(tmp_path / "table.csv")
    again = CostTable.load(tmp_path / "table.csv")
    assert again.batch == 16
    one = build_table(load_hardware("bitfusion-isca18"), FEW)
    ratio = np.array([(again[entry].cycles or 0) / (one[entry].cycles or 1) for entry in FEW])
    # Weights are shared by a batch, so sixteen images never cost more than sixteen times one.
    assert (ratio <= 16).all()
    assert (ratio > 1).all()
