"""Kernels with AMX tiles: the same codes, on an emulator of the tiles where the CPU has none; refused where it must be.

The emulator shows that the codes are right, not how long real tiles take.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from networks import BITS, random_image, random_network
from test_tvm_model import run_standalone

from exporters import CompiledModel, ExportError, compile_tvm
from exporters.reference import reference_logits, run_reference
from exporters.tvm import targets, tiles
from exporters.tvm.conv import ConvSpec
from exporters.tvm.layout import Clamp, Layout
from exporters.tvm.standalone import compile_standalone
from exporters.tvm.targets import TARGETS, resolve_target
from exporters.tvm.tiles import Chunks, choose_pixels, configuration

TARGET = TARGETS["x86-64-amx"]
HERE = Path(__file__).parent
needs_emulator = pytest.mark.skipif(
    not TARGETS["x86-64-vnni"].runs_here or shutil.which("gcc") is None,
    reason="needs a CPU with AVX512-VNNI, and gcc for the emulator of the rest",
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("emulator") / "amx_emulator.so"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", str(HERE / "amx_emulator.c")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module")
def results(emulator: Path) -> dict[str, tuple[int, int]]:
    """Differing codes and tile instructions of every case, from a process with the emulator."""
    environment = {**os.environ, "LD_PRELOAD": str(emulator), "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "amx_cases.py"), str(emulator), str(emulator.parent)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


CASES = [
    "small MobileNetV2",
    "uneven chunks",
    *(f"odd layers {seed}" for seed in range(3)),
    *(f"bits {weight} x {act}" for weight, act in product(BITS, BITS)),
]


@needs_emulator
@pytest.mark.parametrize("case", CASES)
def test_tiles_give_the_same_codes(results: dict[str, tuple[int, int]], case: str) -> None:
    differing, instructions = results[case]
    assert differing == 0
    assert instructions > 100  # the tiles were used, by this case too


@needs_emulator
def test_a_c_program_with_tiles_gives_the_same_logits(
    tmp_path: Path, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LEAST_PRODUCTS", 0)
    rng = np.random.default_rng(4)
    net = random_network(rng, size=12)
    images = random_image(net, 2, rng)
    logits = reference_logits(net, run_reference(net, images))
    compile_standalone(net, tmp_path / "net.a", TARGET.name)
    emulated = ["env", f"LD_PRELOAD={emulator}"]
    np.testing.assert_array_equal(run_standalone(tmp_path, images, logits, ["gcc"], emulated), logits)


@needs_emulator
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("0xc4, 0xe2, 0x53, 0x5e, 0xc4", "a product other than TDPBUSD"),  # tdpbssd tmm0, tmm4, tmm5
        ("0xc4, 0xe2, 0x51, 0x5e, 0xc4", "no configuration"),  # tdpbusd without LDTILECFG
        ("0xc4, 0xe2, 0x79, 0x4b, 0x04, 0x08", "no configuration of the tile"),  # tileloaddt1
        ("0x0f, 0x0b", "no tile instruction"),  # ud2
    ],
)
def test_the_emulator_stops_at_what_it_does_not_know(tmp_path: Path, emulator: Path, code: str, message: str) -> None:
    if TARGET.runs_here:
        # such a CPU carries the instructions out itself: the emulator, needed elsewhere alone, never sees them
        pytest.skip("this CPU has AMX, and refuses less")
    (tmp_path / "main.c").write_text(f'int main(void) {{ __asm__(".byte {code}, 0, 0, 0, 0"); return 0; }}')
    subprocess.run(["gcc", "main.c", "-o", "main"], cwd=tmp_path, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(emulator)}
    result = subprocess.run([tmp_path / "main"], env=environment, capture_output=True, text=True)
    assert result.returncode == 3
    assert f"amx_emulator: {message}:" in result.stderr


def test_a_cpu_without_tiles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compile_tvm(random_network(np.random.default_rng(0), size=9), TARGET.name)
    model.save(tmp_path / "model.so")
    image = np.zeros((1, *model.metadata.image_shape), np.float32)
    everything = frozenset(TARGET.features)
    for features, message in (
        (everything - {"amx_tile"}, "this CPU lacks amx_tile;"),
        (everything - {"amx_int8"}, "this CPU lacks amx_int8;"),
        (everything, r"lacks Linux's permission to use AMX \(5\.16"),
    ):
        monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(targets, "cpu_features", lambda found=features: found)
        monkeypatch.setattr(targets, "request_tiles", lambda: False)
        with pytest.raises(ExportError, match=message):
            CompiledModel.load(tmp_path / "model.so")
        with pytest.raises(ExportError, match=message):
            model(image)


def test_the_host_has_tiles_only_if_linux_permits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset(TARGET.features))
    for permitted, expected in ((True, "x86-64-amx"), (False, "x86-64-vnni")):
        monkeypatch.setattr(targets, "request_tiles", lambda answer=permitted: answer)
        assert resolve_target("host").name == expected


def test_linux_is_asked_for_tiles_only_where_the_cpu_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(targets, "request_tiles", asked)
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset(TARGETS["x86-64-vnni"].features))
    assert targets.missing_features("x86_64", TARGET.features) == ("amx_tile", "amx_int8")


def pointwise(height: int, width: int, channels: int, border: int = 0) -> ConvSpec:
    source = Layout(channels, height, width, -(-channels // 16) * 16, (border, border, border, border))
    target = Layout(64, height, width, 64, (0, 0, 0, 0))
    return ConvSpec(source, target, (1, 1), 1, (0, 0), Clamp(0, 0, 255))


def test_pixels_of_a_tile_are_evenly_spaced() -> None:
    assert choose_pixels(pointwise(112, 112, 16)) == (1, 16)
    assert choose_pixels(pointwise(56, 56, 16)) == (1, 14)
    assert choose_pixels(pointwise(7, 7, 16)) == (2, 7)  # rows without a border between them
    assert choose_pixels(pointwise(8, 8, 16)) == (2, 8)
    assert choose_pixels(pointwise(7, 7, 16, border=1)) == (1, 7)
    assert choose_pixels(pointwise(3, 3, 16)) == (3, 3)
    assert choose_pixels(pointwise(1, 1, 16)) == (1, 1)
    assert choose_pixels(pointwise(1, 49, 16)) == (1, 13)  # 4 tiles, 3 pixels twice


def test_a_run_of_words_is_cut_into_chunks_that_fit_a_tile() -> None:
    assert Chunks.of(24) == Chunks(2, 12, 0)
    assert Chunks.of(40) == Chunks(2, 16, 8)
    for words in range(1, 400):
        chunks = Chunks.of(words)
        assert chunks.count * chunks.words + chunks.last == words
        assert 0 < chunks.words <= 16 > chunks.last
        assert chunks.count + bool(chunks.last) == -(-words // 16)


def test_the_configuration_by_hand() -> None:
    content = np.array(configuration(13, Chunks(2, 16, 5)), np.int32).view(np.uint8)
    assert content[0] == 1
    assert content[48:56].tolist() == [13, 13, 13, 13, 13, 16, 13, 5]  # rows
    assert content[16:32:2].tolist() == [64, 64, 64, 64, 64, 64, 20, 64]  # bytes of a row
    assert content[1:16].sum() == content[17:32:2].sum() == content[32:48].sum() == content[56:].sum() == 0


def test_tiles_are_for_large_products() -> None:
    assert tiles.pays(pointwise(14, 14, 96))
    assert tiles.pays(pointwise(112, 112, 16))
    assert not tiles.pays(pointwise(1, 1, 1280))  # a fully connected layer: each weight is used once
    assert not tiles.pays(pointwise(112, 112, 3))
