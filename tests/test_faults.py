"""A full disk, folders without permission, interrupts, and two commands at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Done, call_here
from endurance import ROOT, Place, rows
from networks import random_network

from apq_deploy import SearchSpace
from apq_deploy.files import TEMPORARY
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.train import save_supernet
from exporters.onnx_writer import write_onnx

TRAIN = ("train", "--largest-steps", "3", "--kernel-steps", "1", "--depth-steps", "1", "--width-steps", "1")
COLLECT = ("collect", "--float-points", "4", "--quantized-points", "2", "--held-out-images", "40")
TINY = ("--space", "tiny.toml", "--data", "data")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny data set, a model without points, a finished run, an ONNX file."""
    place = Place.make(tmp_path_factory.mktemp("place"))
    save_supernet(
        Supernet(SearchSpace.load(place.path / "tiny.toml")), _made(place.path / "model/supernet.safetensors")
    )
    write_onnx(random_network(np.random.default_rng(1), size=10), place.path / "model.onnx")
    assert call_here(place.path, "search", "--latency-ms", "0.06", "--run", "run").code == 0
    return place


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def elsewhere(folder: Path, commands: list[tuple[str, ...]], *prefix: str) -> list[Done]:
    """What becomes of the commands in a process that is started by `prefix`."""
    done = subprocess.run(
        [*prefix, sys.executable, str(ROOT / "tests" / "commands.py")],
        input=json.dumps({"folder": str(folder), "commands": commands}),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return [Done(**{**each, "changed": tuple(each["changed"])}) for each in json.loads(done.stdout)]


def writers(folder: str) -> list[tuple[str, ...]]:
    """Commands that write below a folder, which holds a run and a model."""
    return [
        ("search", "--latency-ms", "0.06", "--run", f"{folder}/run"),
        ("export", f"{folder}/model.onnx", "--run", "run", "--finetune-steps", "0"),
        ("compile", "model.onnx", "-o", f"{folder}/model.so", "--no-time"),
        ("compile", "model.onnx", "-o", f"{folder}/model.c"),
        ("report", "--run", "run", "-o", f"{folder}/report.html"),
        ("check", "model.onnx", "--budget", "deploy.toml", "-o", f"{folder}/check.txt"),
        ("profile", "model.onnx", "--csv", f"{folder}/profile.csv"),
        ("lut", "build", "bitfusion", "--space", "tiny.toml", "-o", f"{folder}/table.csv"),
        ("hardware", "new", f"{folder}/mine.toml"),
        (*TRAIN, *TINY, "--model", f"{folder}/model"),
        (*COLLECT, *TINY, "--model", f"{folder}/model"),
    ]


def refused(done: list[Done], *words: str) -> None:
    for each in done:
        assert each.code == 2, each
        lines = [line for line in each.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and each.err.endswith(f"{lines[0]}\n"), each
        assert any(word in lines[0] for word in words), each
        assert not each.changed, each


@pytest.fixture
def target(place: Place) -> Path:
    """An empty folder within the place, and what fills it: a run and a model."""
    (place.path / "deploy.toml").write_text("schema = 1\n[size]\nmax_kb = 100\n")
    folder = place.path / "target"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)
    for each in folder.rglob("*"):
        each.chmod(0o755)
    shutil.rmtree(folder)


def test_a_full_disk(place: Place, target: Path) -> None:
    fill = (
        'mount -t tmpfs -o size=512k tmpfs "$0" && cp -r run model "$0" && '
        '{ head -c 1M /dev/zero > "$0/filling" 2>/dev/null; true; } && exec "$@"'
    )
    disk = ("unshare", "-rm", "sh", "-c", fill, str(target))
    if shutil.which("unshare") is None or _run(place, *disk, "true") != 0:
        # only a file system of a known size can be filled without harm to others, and mounting one takes these rights
        pytest.skip("a disk of its own needs unshare and user namespaces")
    refused(
        elsewhere(place.path, writers("target"), "env", "-C", str(place.path), *disk), "No space", "full", "os error 28"
    )


def _run(place: Place, *command: str) -> int:
    return subprocess.run(command, cwd=place.path, capture_output=True).returncode


def without_privileges() -> tuple[str, ...]:
    """What starts a process that obeys permissions: root's are taken from it."""
    if os.getuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        # nothing would be refused, and the test would fail for no fault of the program; it runs for any other user
        pytest.skip("root obeys no permissions, and there is no setpriv to make it")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_a_folder_that_cannot_be_written(place: Place, target: Path) -> None:
    shutil.copytree(place.path / "run", target / "run")
    shutil.copytree(place.path / "model", target / "model")
    for folder in (target / "run", target / "model", target):
        folder.chmod(0o555)
    commands = [
        each for each in writers("target") if each[0] not in ("export", "compile", "train")
    ]  # as on a full disk
    refused(elsewhere(place.path, commands, *without_privileges()), "ermission", "unable to open")


def test_files_that_may_not_be_read(place: Place, target: Path) -> None:
    for name in (
        "no.onnx",
        "no.csv",
        "no.toml",
        "run/search.json",
        "model/points.sqlite",
        "model/predictor.safetensors",
    ):
        _made(target / name).write_text("x")
        (target / name).chmod(0)
    commands = [
        ("audit", "target/no.onnx"),
        ("compile", "target/no.onnx"),
        ("search", "--table", "target/no.csv"),
        ("search", "--space", "target/no.toml"),
        ("check", "model.onnx", "--budget", "target/no.toml"),
        ("hardware", "show", "target/no.toml"),
        ("export", "new.onnx", "--run", "target/run"),
        ("fit", "--model", "target/model"),
        ("search", "--latency-ms", "0.06", "--model", "target/model"),
    ]
    refused(elsewhere(place.path, commands, *without_privileges()), "ermission", "unable to open", "not readable")


def test_output_that_cannot_be_printed(place: Place) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "apq_deploy.cli", "hardware", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot print the result: No space left on device\n"


# Interrupts ------------------------------------------------------------------------------------------------------


def processes(session: int) -> set[int]:
    """Processes of a session that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def gone(session: int, seconds: float = 20) -> bool:
    """Whether all processes of a session end within some seconds."""
    until = time.monotonic() + seconds
    while processes(session):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("signum", "to_all", "code"),
    [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130), (signal.SIGKILL, False, -9)],
    ids=["terminated", "interrupted at the terminal", "driver killed"],
)
def test_no_worker_outlives_a_collection(place: Place, signum: int, to_all: bool, code: int) -> None:
    model = place.path / f"model-{code}"
    shutil.copytree(place.path / "model", model)
    many = (
        "collect",
        "--float-points",
        "100000",
        "--quantized-points",
        "0",
        "--held-out-images",
        "40",
        "--workers",
        "2",
    )
    driver = place.start(*many, model=model)
    try:
        while not rows(model):
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        before = rows(model)
        assert len(processes(driver.pid)) >= 3
        (os.killpg if to_all else os.kill)(driver.pid, signum)
        _, errors = driver.communicate(timeout=60)
        assert driver.returncode == code, errors
        assert gone(driver.pid)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    if code > 0:
        last = [line for line in errors.splitlines() if not line.startswith("collect:")]
        assert last == ["interrupted; what was finished is kept, the same command goes on from there"]
    assert set(before) <= set(rows(model))
    assert not list(model.glob(f"*{TEMPORARY}"))


def listens(process: int) -> bool:
    """Whether a process has a handler for SIGTERM: the command line has begun."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("signum", "delay"),
    [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.2), (signal.SIGINT, 0.7), (signal.SIGTERM, 2.0)],
)
def test_an_interrupt_leaves_what_was_there(place: Place, signum: int, delay: float) -> None:
    """Whenever it comes once the command line is there; earlier, Python alone answers."""
    run = place.path / "interrupted"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place.path / "run", run)
    before = (run / "search.json").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "apq_deploy.cli", "search", "--pareto", "--run", "interrupted"],
        cwd=place.path,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not listens(process.pid):
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, errors
    assert errors.count("\n") == 1, errors
    assert sorted(path.name for path in run.iterdir()) == ["search.json"]
    assert (run / "search.json").read_bytes() == before


def test_an_interrupt_within_exec_keeps_the_exit_code(tmp_path: Path) -> None:
    """Dataclasses are made by `exec`, and Python ends by SIGINT after a KeyboardInterrupt that came through one."""
    (tmp_path / "within.py").write_text(
        "import os, signal\n"
        "from apq_deploy import cli\n"
        "cli._run = lambda: exec('os.kill(os.getpid(), signal.SIGTERM)')\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-m", "within"], cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 128 + signal.SIGTERM


# Two at once -----------------------------------------------------------------------------------------------------


def test_two_searches_in_one_run_wait_for_each_other(place: Place) -> None:
    command = [sys.executable, "-m", "apq_deploy.cli", "search", "--json", "--run", "shared", "--latency-ms"]
    started = [
        subprocess.Popen(
            [*command, budget],
            cwd=place.path,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for budget in ("0.05", "0.06", "0.07")
    ]
    printed = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    kept = json.loads((place.path / "shared" / "search.json").read_text())
    assert {name: value for name, value in kept.items() if name in printed[0]} in printed
    assert sorted(path.name for path in (place.path / "shared").iterdir()) == ["search.json"]


@pytest.mark.parametrize("command", [TRAIN, COLLECT], ids=lambda command: command[0])
def test_a_second_run_in_a_model_folder_is_refused(place: Place, command: tuple[str, ...]) -> None:
    model = place.path / f"two-{command[0]}"
    shutil.copytree(place.path / "model", model)
    endless = (command[0], "--largest-steps" if command is TRAIN else "--float-points", "1000000")
    first = (
        place.start(*endless, "--held-out-images", "40", model=model)
        if command is COLLECT
        else place.start(*endless, model=model)
    )
    try:
        while not _is_locked(model):
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        second = call_here(place.path, *command, *TINY, "--model", str(model))
        assert second.code == 2
        assert second.line.endswith("is in use by another command; wait until it ends, or use another folder")
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert gone(first.pid)
    (model / f".supernet.safetensors.1{TEMPORARY}").write_text("half")
    third = call_here(place.path, *command, *TINY, "--model", str(model))
    assert third.code in (0, 2), third
    assert not list(model.glob(f".*{TEMPORARY}")), "what a killed run has left is deleted"


def _is_locked(folder: Path) -> bool:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
