"""Hardware by name and by file: presets, templates, what is refused, and classes from other packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from commands import call_here
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import (
    BitFusion,
    ConvLayer,
    Cost,
    CostTable,
    Entry,
    Hardware,
    HardwareError,
    Precision,
    build_table,
    description_sha256,
    hardware_template,
    hardware_text,
    list_hardware,
    load_hardware,
)
from hwmodels.settings import model_from_document

LAYER = ConvLayer(16, 96, 56, 1)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(path: Path) -> BitFusion:
    hardware = load_hardware(path)
    assert isinstance(hardware, BitFusion)
    return hardware


def test_the_two_presets_are_listed_and_are_one_model() -> None:
    assert list_hardware()[:2] == ["bitfusion", "bitfusion-isca18"]
    first, second = load_hardware("bitfusion"), load_hardware("bitfusion-isca18")
    assert type(first) is type(second) is BitFusion
    assert isinstance(first, Hardware)
    differing = {name for name, value in first.describe().items() if second.describe()[name] != value}
    assert differing == {
        "name",
        "description",
        "unit_pj_per_cycle",
        "static_pj_per_cycle",
        "obuf_read_pj_per_bit",
        "obuf_write_pj_per_bit",
        "tile_traffic",
        "tile_capacity",
        "transfer_overlap",
        "tile_accesses",
    }


def test_the_template_is_the_preset_under_another_name(tmp_path: Path) -> None:
    mine = loaded(written(tmp_path, hardware_template()))
    assert mine.name == "my-accelerator"
    preset = load_hardware("bitfusion")
    assert replace(mine, name="bitfusion", description=str(preset.describe()["description"])) == preset
    # Every field stands below a comment.
    lines = hardware_template().splitlines()
    for each in fields(BitFusion):
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{each.name} ="))
        assert lines[place - 1].startswith("# ")
        assert ". Takes " in lines[place - 1]


@pytest.mark.parametrize("name", ["bitfusion", "bitfusion-isca18"])
def test_shown_hardware_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    hardware = load_hardware(name)
    again = load_hardware(written(tmp_path, hardware_text(hardware)))
    assert again == hardware
    assert description_sha256(again.describe()) == description_sha256(hardware.describe())


EIGHT_BIT_ONLY = {
    "rows = 16": "rows = 8",
    "cols = 32": "cols = 64",
    "frequency_hz = 500_000_000": "frequency_hz = 1_000_000_000",
    "wbuf_bytes = 65536": "wbuf_bytes = 2_097_152",
    "weight_bits = [1, 2, 3, 4, 5, 6, 7, 8]": "weight_bits = [8]",
    "act_bits = [1, 2, 3, 4, 5, 6, 7, 8]": "act_bits = [8]",
    "min_bits = 2": "min_bits = 8",
}


def test_an_accelerator_of_another_size(tmp_path: Path) -> None:
    text = hardware_template()
    for old, new in EIGHT_BIT_ONLY.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    mine = loaded(written(tmp_path, text))
    assert (mine.rows, mine.cols, mine.wbuf_bytes, mine.frequency_hz) == (8, 64, 2 * 2**20, 1e9)
    cost = mine.layer_cost(LAYER, Precision(8, 8))
    assert cost.cycles is not None
    assert cost.latency_ms == pytest.approx(cost.cycles / 1e6, rel=1e-12)
    # 56 * 56 pixels, two passes of 64 columns for 96 channels, two of 8 rows for 16.
    assert cost.counters["compute_cycles"] == 56 * 56 * 2 * 2
    table = build_table(mine, [(LAYER, Precision(8, 8))])
    assert table[LAYER, Precision(8, 8)] == cost
    with pytest.raises(HardwareError, match=r"my-accelerator computes weights of 8 bits, got 4"):
        mine.layer_cost(LAYER, Precision(4, 8))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("wbuf_bytes =", "wbuf_byte =", r'unknown field "wbuf_byte" in \[buffers\]; did you mean "wbuf_bytes"\?'),
        ("[buffers]", "[buffer]", r'unknown field "buffer"; did you mean "buffers"\?'),
        ("psum_bits = 32\n", "", r'missing field "psum_bits" in \[precision\]: width of a partial sum'),
        ('name = "my-accelerator"\n', "", r'missing field "name" at the top: short name'),
        ("psum_bits = 32", 'psum_bits = 32\ntile_traffic = "exact"', r'"tile_traffic".*belongs under \[mapping\]'),
        ("rows = 16", "rows = 0", r"rows must be a whole number from 1 to 1e\+06 \(Fusion Units\), got 0"),
        ("rows = 16", "rows = 16.5", r"rows must be a whole number .* got 16.5"),
        ("rows = 16", "rows = true", r"rows must be a whole number .* got True"),
        ("frequency_hz = 500_000_000", "frequency_hz = nan", r"frequency_hz must be a number .* \(Hz\), got nan"),
        ("dram_read_pj_per_bit = 15", "dram_read_pj_per_bit = -1", r"dram_read_pj_per_bit must be a number from 0 to"),
        (
            'tile_traffic = "exact"',
            'tile_traffic = "padded"',
            r'must be one of "exact", "array-padded", got \'padded\'',
        ),
        ("double_buffered = true", "double_buffered = 1", r"double_buffered must be true or false, got 1"),
        ("weight_bits = [1,", "weight_bits = [1, 1,", r"weight_bits must be a list of one or more diff.*got \[1, 1, "),
        (
            "weight_bits = [1, 2, 3, 4, 5, 6, 7, 8]",
            "weight_bits = []",
            r"weight_bits must be a list of one or more .*\(bits\), got \[\]",
        ),
        ("weight_bits = [1, 2, 3, 4, 5, 6, 7, 8]", "weight_bits = [16]", r"weight_bits must not exceed max_bits = 8"),
        ("min_bits = 2", "min_bits = 9", r"min_bits must not exceed max_bits = 8, got 9"),
        ("schema = 1", "schema = 2", r"expected schema = 1, got 2; start from a fresh template"),
        ("schema = 1", "schema = true", r"expected schema = 1, got True"),
        ("frequency_hz = 500_000_000", "frequency_hz = 500", r"frequency_hz must be a number from 1000 to .* \(Hz\)"),
        (
            "read_pj_per_bit = 15",
            "read_pj_per_bit = 1e7",
            r"dram_read_pj_per_bit must be .* \(pJ per bit\), got 10000000",
        ),
        ("wbuf_bytes = 65536", "wbuf_bytes = 10_000_000_000_000", r"wbuf_bytes must be .* \(bytes\)"),
        ("dram_read_pj_per_bit = 15\n", "", r"all 10 energies or none, missing dram_read_pj_per_bit; add them"),
        ("schema = 1\n", "", r"expected schema = 1, got 'none'"),
        ('model = "bitfusion"', 'model = "bitfuson"', r'unknown model "bitfuson"; did you mean "bitfusion"\?'),
        ('model = "bitfusion"\n', "", r"expected a model = NAME line at the top, one of bitfusion"),
        ("[array]", "[array", r"expected TOML, got: "),
        ("[memory]\n", "[[memory]]\n", r"\[memory\] must be a section with fields, got \["),
        ('name = "my-accelerator"', 'name = " "', r"name must be text on one line, got ' '"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = hardware_template()
    assert old in text
    path = written(tmp_path, text.replace(old, new, 1))
    with pytest.raises(HardwareError, match=message) as raised:
        load_hardware(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_without_energies_energy_is_unknown(tmp_path: Path) -> None:
    text = "".join(line for line in hardware_template().splitlines(True) if "_pj_per_" not in line)
    mine = loaded(written(tmp_path, "\ufeff" + text))  # with the mark that Excel puts before a text
    assert not mine.has_energy
    assert not any("_pj_" in name for name in mine.describe())
    assert loaded(written(tmp_path, hardware_text(mine))) == mine
    known, cost = loaded_preset().layer_cost(LAYER, Precision(8, 8)), mine.layer_cost(LAYER, Precision(8, 8))
    assert (cost.cycles, cost.latency_ms, cost.energy_mj) == (known.cycles, known.latency_ms, None)


def test_unknown_names_get_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r'unknown hardware "bitfusion-isca"; did you mean "bitfusion-isca18"\?'):
        load_hardware("bitfusion-isca")
    with pytest.raises(HardwareError, match=r"known are bitfusion, bitfusion-isca18"):
        load_hardware("gpu")
    with pytest.raises(HardwareError, match=r"no such file; write one with `apq-deploy hardware new"):
        load_hardware(tmp_path / "mine.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HardwareError, match="expected a readable UTF-8 text file"):
        load_hardware(binary)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        lambda rows, hz, share, pj: replace(
            loaded_preset(), rows=rows, frequency_hz=hz, double_buffered=share, dram_read_pj_per_bit=pj
        ),
        st.integers(1, 10**6),
        st.floats(1e3, 1e12),
        st.booleans(),
        st.floats(0, 1e6),
    )
)
def test_any_hardware_survives_its_own_text(hardware: BitFusion) -> None:
    assert model_from_document(BitFusion, tomllib.loads(hardware_text(hardware)), "text") == hardware


def loaded_preset() -> BitFusion:
    hardware = load_hardware("bitfusion")
    assert isinstance(hardware, BitFusion)
    return hardware


def test_the_hash_follows_every_setting_and_no_spelling() -> None:
    hardware = loaded_preset()
    first = description_sha256(hardware.describe())
    assert description_sha256(replace(hardware, frequency_hz=500_000_000).describe()) == first
    assert description_sha256(replace(hardware, weight_bits=list(hardware.weight_bits)).describe()) == first  # type: ignore[arg-type]
    changed = {
        str: lambda value: {"exact": "array-padded", "array-padded": "traffic", "bounded": "stall"}.get(
            value, "per-mac"
        ),
        bool: lambda value: not value,
        int: lambda value: value + 1 if value != 8 else 7,
        float: lambda value: value + 1,
        tuple: lambda value: value[:-1],
    }
    hashes = {first}
    for name, value in hardware.describe().items():
        if name == "model":
            continue
        try:
            hashes.add(description_sha256(replace(hardware, **{name: changed[type(value)](value)}).describe()))
        except HardwareError:
            # max_bits alone cannot fall below the widths that are accepted.
            assert name == "max_bits"
    assert len(hashes) == len(hardware.describe()) - 1


@dataclass(frozen=True)
class Constant:
    """A model that another package might bring: the same latency for everything."""

    name: str = "constant"
    latency_ms: float = 1.0

    @classmethod
    def from_document(cls, document: Mapping[str, object], origin: str) -> Constant:
        if not isinstance(document.get("latency_ms"), float):
            raise HardwareError(f"{origin}: latency_ms must be a number; add it")
        return cls(str(document["name"]), float(str(document["latency_ms"])))

    def describe(self) -> Mapping[str, str | float]:
        return {"model": "constant", "name": self.name, "latency_ms": self.latency_ms}

    def layer_cost(self, layer: ConvLayer, precision: Precision, batch: int = 1) -> Cost:
        return Cost(self.latency_ms * batch)

    def layer_costs(self, entries: Sequence[Entry], batch: int = 1) -> list[Cost]:
        return [self.layer_cost(layer, precision, batch) for layer, precision in entries]


@dataclass(frozen=True)
class Faulty(Constant):
    """A model that fails for layers with 4-bit weights: it raises, or gives what is no cost."""

    gives: object = None

    def layer_cost(self, layer: ConvLayer, precision: Precision, batch: int = 1) -> Cost:
        if precision.weight_bits > 4:
            return Cost(1.0)
        return {}["speed"] if self.gives is None else self.gives  # type: ignore[return-value]


class Raising:
    """A model whose object cannot be made, and from whose file neither."""

    def __init__(self) -> None:
        raise RuntimeError("no licence")

    @classmethod
    def from_document(cls, document: Mapping[str, object], origin: str) -> Raising:
        return cls()


class Speechless(Constant):
    def describe(self) -> Mapping[str, str | float]:
        return {"speed": float("nan")}


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (None, r":Faulty fails for 16->96 k1 s1 at 56x56 at W4A8 with KeyError: 'speed'; mend the class"),
        (Cost(-1.0), r":Faulty: latency_ms must be a positive number, got -1.0 for 16->96 .* at W4A8"),
        (Cost(1.0, float("inf")), r":Faulty: energy_mj must be .* got inf for 16->96 k1"),
        (3.0, r":Faulty: expected a Cost, got 3.0 for 16->96"),
    ],
)
def test_what_a_class_does_wrong_is_one_line(gives: object, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        build_table(Faulty(gives=gives), [(LAYER, Precision(8, 8)), (LAYER, Precision(4, 8))])


def test_numbers_of_numpy_survive_the_file(tmp_path: Path) -> None:
    cost = Cost(np.float64(0.5), np.float32(0.25), np.int64(7))  # type: ignore[arg-type]
    table = build_table(Faulty(gives=cost), [(LAYER, Precision(4, 8))])
    table.save(tmp_path / "table.csv")
    assert CostTable.load(tmp_path / "table.csv")[LAYER, Precision(4, 8)] == Cost(0.5, 0.25, 7)


@pytest.fixture
def installed_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package on the path whose metadata names entry points, as an installed one has."""
    metadata = tmp_path / "site" / "constant_model-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: constant-model\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[apq_deploy.hardware]\nconstant = {__name__}:Constant\nabsent = no_such_module_here:Model\n"
        f"wrong = {__name__}:LAYERLESS\nnothing = {__name__}:written\n"
        f"raising = {__name__}:Raising\nspeechless = {__name__}:Speechless\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


LAYERLESS = dict


@pytest.mark.usefixtures("installed_plugin")
def test_another_package_brings_its_own_model(tmp_path: Path) -> None:
    assert list_hardware() == [
        *("bitfusion", "bitfusion-isca18", "absent", "constant", "nothing", "raising", "speechless", "wrong")
    ]
    assert load_hardware("constant") == Constant()
    path = written(tmp_path, 'schema = 1\nmodel = "constant"\nname = "two"\nlatency_ms = 2.0\n')
    hardware = load_hardware(path)
    assert hardware == Constant("two", 2.0)
    assert hardware_text(hardware) == 'model = "constant"\nname = "two"\nlatency_ms = 2\n'
    table = build_table(hardware, [(LAYER, Precision(8, 8))])
    assert table[LAYER, Precision(8, 8)].latency_ms == 2.0
    assert table[LAYER, Precision(8, 8)].energy_mj is None
    with pytest.raises(HardwareError, match="latency_ms must be a number"):
        load_hardware(written(tmp_path, 'schema = 1\nmodel = "constant"\nname = "two"\n'))


@pytest.mark.usefixtures("installed_plugin")
def test_a_broken_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r'"absent" comes from no_such_module_here:Model, which does not load'):
        load_hardware("absent")
    with pytest.raises(HardwareError, match=r"expected name, describe, layer_cost and layer_costs, got a dict"):
        load_hardware("wrong")
    with pytest.raises(HardwareError, match=r'"nothing": stands for no hardware of its own'):
        load_hardware("nothing")
    with pytest.raises(HardwareError, match=r'"wrong" must have a from_document class method'):
        load_hardware(written(tmp_path, 'model = "wrong"\n'))
    with pytest.raises(HardwareError, match=r'"raising" fails with RuntimeError: no licence'):
        load_hardware("raising")
    with pytest.raises(HardwareError, match=r"mine.toml: .*:Raising fails with RuntimeError: no licence"):
        load_hardware(written(tmp_path, 'model = "raising"\n'))
    with pytest.raises(HardwareError, match=r"describe\(\) of .*:Speechless must give settings that JSON can write"):
        load_hardware("speechless")


@pytest.mark.usefixtures("installed_plugin")
def test_broken_packages_leave_the_others_listed(tmp_path: Path) -> None:
    done = call_here(tmp_path, "hardware", "list")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert "16x32 at 500 MHz" in lines["bitfusion"]
    assert "does not load" in lines["absent"]
    assert "no licence" in lines["raising"]


def test_importing_hwmodels_loads_nothing_heavy() -> None:
    code = (
        "import sys, hwmodels; print(sorted({'torch', 'onnx', 'onnxruntime', 'tvm', 'apq_deploy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
