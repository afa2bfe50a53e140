"""Compiled models as files: saved, loaded, refused, described, timed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from networks import random_image, random_network

from apq_deploy.compiling import compile_model, describe_layers
from exporters import CompiledModel, ExportError, QuantizedNetwork, compile_tvm, write_onnx
from exporters.reference import reference_logits, run_reference
from exporters.tvm import targets, versions
from exporters.tvm.conv import _runs
from exporters.tvm.link import metadata_source
from exporters.tvm.lowering import LOGITS, plan
from exporters.tvm.metadata import Metadata, network_sha256
from exporters.tvm.plain import PLAIN
from exporters.tvm.standalone import compile_standalone, plan_memory
from exporters.tvm.targets import TARGETS, resolve_target
from exporters.tvm.timing import run_in_turn, time_compiled


@pytest.fixture(scope="module")
def net() -> QuantizedNetwork:
    return random_network(np.random.default_rng(1), size=9)


@pytest.fixture(scope="module")
def images(net: QuantizedNetwork) -> np.ndarray:
    return random_image(net, 3, np.random.default_rng(2))


@pytest.fixture(scope="module")
def logits(net: QuantizedNetwork, images: np.ndarray) -> np.ndarray:
    return reference_logits(net, run_reference(net, images))


@pytest.fixture(scope="module")
def model(net: QuantizedNetwork) -> CompiledModel:
    return compile_tvm(net, source_sha256="0" * 64)


@pytest.fixture
def saved(model: CompiledModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model.so")
    return tmp_path / "model.so"


def test_a_saved_model_gives_the_same_logits(saved: Path, images: np.ndarray, logits: np.ndarray) -> None:
    loaded = CompiledModel.load(saved)
    found = loaded(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits)
    assert loaded(images[:0]).shape == (0, *logits.shape[1:])


def test_metadata_is_read_from_the_bytes_alone(saved: Path, net: QuantizedNetwork, model: CompiledModel) -> None:
    metadata = Metadata.find(saved.read_bytes(), "model.so")
    assert metadata == model.metadata
    assert metadata.sha256 == "0" * 64
    assert metadata.target in TARGETS
    assert metadata.image_shape == net.input.shape
    told = [(layer.name, layer.weight_bits, layer.act_bits) for layer in metadata.layers[1:-1]]
    assert told == [(layer.name, getattr(layer, "weight_bits", None), layer.output.bits) for layer in net.layers]


def test_the_hash_of_a_network_depends_on_its_weights(net: QuantizedNetwork) -> None:
    layer = net.layers[0]
    changed = replace(layer, weight=layer.weight.copy())
    changed.weight.flat[0] ^= 1
    other = replace(net, layers=(changed, *net.layers[1:]))
    assert network_sha256(net) == network_sha256(replace(net, metadata={"a": "b"}))
    assert network_sha256(net) != network_sha256(other)


@pytest.mark.parametrize("damage", [lambda b: b[:-1000], lambda b: b[:9000] + b"x" + b[9001:], lambda b: b[:200]])
def test_damaged_files_are_refused(saved: Path, damage) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ExportError, match="compile it again"):
        CompiledModel.load(saved)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    with pytest.raises(ExportError, match="cannot read"):
        CompiledModel.load(path)
    path.write_bytes(b"\x7fELF nothing")
    with pytest.raises(ExportError, match="no model compiled by apq-deploy"):
        CompiledModel.load(path)


def test_a_cpu_without_the_instructions_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset({"sse2"}))
    metadata = Metadata.find(saved.read_bytes(), "model.so")
    if metadata.features:
        with pytest.raises(ExportError, match=f"this CPU lacks {metadata.features[0]}"):
            CompiledModel.load(saved)
    monkeypatch.setattr(targets.platform, "machine", lambda: "riscv64")
    with pytest.raises(ExportError, match=f"lacks the {metadata.architecture} architecture"):
        CompiledModel.load(saved)


def test_the_host_is_the_first_target_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    for features, expected in (
        (TARGETS["x86-64-vnni"].features, "x86-64-vnni"),
        (TARGETS["x86-64-avx2"].features, "x86-64-avx2"),
        ((), "x86-64"),
    ):
        monkeypatch.setattr(targets, "cpu_features", lambda found=features: frozenset(found))
        assert resolve_target("host").name == expected
    monkeypatch.setattr(targets.platform, "machine", lambda: "riscv64")
    with pytest.raises(ExportError, match="no target runs on this machine"):
        resolve_target("host")


def test_wrong_calls_are_told_in_one_line(
    net: QuantizedNetwork, model: CompiledModel, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match=r"unknown target 'z80'; supported are host, x86-64-amx, x86-64-vnni"):
        compile_tvm(net, "z80")
    with pytest.raises(ExportError, match="threads must be from 1"):
        compile_tvm(net, threads=0)
    with pytest.raises(ExportError, match=r"images should be \(n, 3, 9, 9\), got \(3, 3, 9\)"):
        model(images[:, :, 0])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match=r"needs g\+\+"):
        compile_tvm(net)


def test_another_version_of_tvm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.check_versions()
    monkeypatch.setattr(versions, "version", lambda package: "0.1.15.post2")
    with pytest.raises(ExportError, match=r"needs apache-tvm 0\.27.*pip install"):
        versions.check_versions()


def test_the_profile_names_every_layer(net: QuantizedNetwork, model: CompiledModel, images: np.ndarray) -> None:
    profile = model.profile(images[:1], repeats=3)
    assert [entry.layer.name for entry in profile] == ["quantize", *(layer.name for layer in net.layers), "dequantize"]
    assert all(entry.microseconds >= 0 for entry in profile)
    assert sum(entry.microseconds for entry in profile) > 0
    assert sum(entry.share for entry in profile) == pytest.approx(1)
    model(images)  # the model still runs


def test_the_command_measures_every_layer(tmp_path: Path, net: QuantizedNetwork) -> None:
    write_onnx(net, tmp_path / "model.onnx")
    report = compile_model(
        tmp_path / "model.onnx", tmp_path / "model.so", "host", 1, False, False, None, per_layer=True
    )
    assert [row["name"] for row in report["layers"][1:-1]] == [layer.name for layer in net.layers]
    assert sum(row["share_percent"] for row in report["layers"]) == pytest.approx(100, abs=1)
    lines = describe_layers(report["layers"]).splitlines()
    stem = next(line.split() for line in lines if line.startswith("stem"))
    assert stem[1:4] == ["QConv", str(net.layers[0].weight_bits), str(net.layers[0].output.bits)]
    assert report["agreement"]["differing_logits"] == 0


def test_timing_runs_in_processes_of_their_own(saved: Path) -> None:
    report = time_compiled(saved, repeats=5, rounds=1)
    (timing,) = report.timings
    assert timing.repeats == 5
    assert 0 < timing.low_ms <= timing.median_ms <= timing.high_ms
    assert report.ratio("compiled", "compiled") == 1
    with pytest.raises(ExportError, match="cannot read"):
        time_compiled(saved.with_name("none.so"))
    with pytest.raises(ExportError, match="timing x failed: oh no"):
        run_in_turn({"x": [sys.executable, "-c", "import sys; sys.exit('oh no')"]}, 1, 1)


def test_memory_of_living_activations_never_overlaps(net: QuantizedNetwork) -> None:
    program = plan(net, PLAIN)
    offsets, size = plan_memory(program)
    sizes = {name: program.layouts[name].size for name in offsets}
    assert max(offsets[name] + sizes[name] for name in offsets) <= size < sum(sizes.values())
    for index, step in enumerate(program.steps):
        written = {earlier.target for earlier in program.steps[: index + 1]} - {LOGITS}
        needed = {name for later in program.steps[index:] for name in later.sources}
        alive = [name for name in written if name in needed or name == step.target]
        for a in alive:
            for b in alive:
                assert a == b or offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]


def test_stores_write_each_place_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        offsets = np.cumsum(rng.choice([16, 16, 32], 4)).tolist()[: int(rng.integers(1, 5))]
        places = [(part + i, offset + i) for part, offset, length in _runs(offsets, 16) for i in range(length)]
        expected = [(16 * index + i, offset + i) for index, offset in enumerate(offsets) for i in range(16)]
        assert sorted(places) == sorted(expected)


MAIN = """#include <stdio.h>
#include "net.h"
int main(void) {{
    static float a[{image} + 1], b[{logits} + 1], *x = a + 1, *y = b + 1;  /* aligned as floats are, no more */
    while (fread(x, 4, {image}, stdin) == {image}) {{ net_run(x, y); fwrite(y, 4, {logits}, stdout); }}
    return 0;
}}
"""


def run_standalone(
    folder: Path, images: np.ndarray, logits: np.ndarray, compiler: list[str], emulator: list[str]
) -> np.ndarray:
    """What a C program around net.c or net.a prints for the images."""
    (folder / "main.c").write_text(MAIN.format(image=images[0].size, logits=logits[0].size))
    model = "net.c" if (folder / "net.c").exists() else "net.a"
    subprocess.run([*compiler, "-O2", "main.c", model, "-o", "net"], cwd=folder, check=True, capture_output=True)
    result = subprocess.run([*emulator, str(folder / "net")], input=images.tobytes(), capture_output=True, check=True)
    return np.frombuffer(result.stdout, np.float32).reshape(logits.shape)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(("name", "target"), [("net.c", "c"), ("net.a", "c"), ("net.a", "host")])
def test_c_programs_give_the_same_logits(
    tmp_path: Path, net: QuantizedNetwork, images: np.ndarray, logits: np.ndarray, name: str, target: str
) -> None:
    compile_standalone(net, tmp_path / name, target)
    found = run_standalone(tmp_path, images, logits, ["gcc", "-Wall", "-Werror"], [])
    np.testing.assert_array_equal(found, logits)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_two_networks_go_into_one_program(tmp_path: Path, net: QuantizedNetwork) -> None:
    for name in ("first", "second"):
        compile_standalone(net, tmp_path / f"{name}.a", "host")
    (tmp_path / "main.c").write_text(
        '#include "first.h"\n#include "second.h"\n'
        "int main(void) { return !(first_supported() && second_supported()) || !first_run || !second_run; }\n"
    )
    subprocess.run(["gcc", "main.c", "first.a", "second.a", "-o", "both"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "both"]).returncode == 0


@pytest.mark.parametrize("shift", [4, 16, 20, 32])
def test_images_lie_anywhere_in_memory(
    model: CompiledModel, images: np.ndarray, logits: np.ndarray, shift: int
) -> None:
    memory = np.zeros(images.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    shifted = memory[start : start + images.nbytes].view(np.float32).reshape(images.shape)
    shifted[:] = images
    assert shifted.ctypes.data % 64 == shift
    np.testing.assert_array_equal(model(shifted), logits)
    shifted.flags.writeable = False
    np.testing.assert_array_equal(model(shifted), logits)


def test_images_of_pixels_are_refused(model: CompiledModel, images: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"pixels / 255 .* got uint8"):
        model((255 * images).astype(np.uint8))  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("ziglang") is None, reason="needs `pip install ziglang` to link for aarch64")
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-user to run aarch64 programs")
@pytest.mark.parametrize(("target", "cpu"), [("aarch64-dotprod", "cortex-a76"), ("aarch64", "cortex-a53")])
def test_aarch64_programs_give_the_same_logits(
    tmp_path: Path, net: QuantizedNetwork, images: np.ndarray, logits: np.ndarray, target: str, cpu: str
) -> None:
    compile_standalone(net, tmp_path / "net.a", target)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static"]
    found = run_standalone(tmp_path, images, logits, zig, ["qemu-aarch64", "-cpu", cpu])
    np.testing.assert_array_equal(found, logits)


@pytest.mark.skipif(find_spec("ziglang") is None, reason="needs `pip install ziglang` to link for aarch64")
def test_a_library_for_another_cpu_is_made_but_not_run(tmp_path: Path, net: QuantizedNetwork) -> None:
    model = compile_tvm(net, "aarch64-dotprod")
    model.save(tmp_path / "model.so")
    assert (tmp_path / "model.so").read_bytes()[18:20] == b"\xb7\x00"  # ELF's number for aarch64
    if not TARGETS["aarch64-dotprod"].runs_here:
        with pytest.raises(ExportError, match="compiled for aarch64-dotprod, and this CPU lacks"):
            CompiledModel.load(tmp_path / "model.so")


def test_standalone_refuses_what_does_not_fit(tmp_path: Path, net: QuantizedNetwork) -> None:
    for name, target, message in (
        ("net.so", "c", r"must end in \.c or \.a"),
        ("net.c", "x86-64", 'C source needs target "c"'),
        ("2-nets.c", "c", "use letters, digits and _"),
        ("net.a", "z80", "unknown target"),
    ):
        with pytest.raises(ExportError, match=message):
            compile_standalone(net, tmp_path / name, target)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_c_programs_can_ask_whether_the_cpu_will_do(tmp_path: Path, model: CompiledModel) -> None:
    metadata = replace(model.metadata, architecture="x86_64", features=TARGETS["x86-64-avx2"].features)
    expected = 11 if targets.missing_features(metadata.architecture, metadata.features) else 10
    source = metadata_source(metadata) + "int main(void) { return apq_deploy_supported() ? 10 : 11; }\n"
    (tmp_path / "ask.c").write_text(source)
    subprocess.run(["gcc", "-static", "ask.c", "-o", "ask"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "ask"]).returncode == expected
    if shutil.which("qemu-x86_64"):
        assert subprocess.run(["qemu-x86_64", "-cpu", "Nehalem", tmp_path / "ask"]).returncode == 11
