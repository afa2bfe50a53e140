"""Damaged files for the readers, and whether each is read or refused in one line: run by test_fuzz.py and `make fuzz`.

A trial is a reader, a whole file and a seed. Bytes are flipped, cut, spliced and repeated; ONNX files are also changed
field by field as protobuf sees them, tables cell by cell, and JSON and TOML value by value. What a reader may do is
return, or raise its own error in one short line, within LIMIT_S. All else is a crash, and the seed brings it back.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from float_models import quantize, small_mobilenet, two_convolutions
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from networks import random_network
from search_cases import TINY, made_up_table

from apq_deploy import SearchSpace, UserError
from apq_deploy.check.baseline import SCHEMA as BASELINE_SCHEMA
from apq_deploy.check.baseline import read_baseline
from apq_deploy.check.budget_file import read_budget
from apq_deploy.predictor.store import PointStore, planned_genome
from apq_deploy.search import Budget, SearchResult, SpaceCosts, search
from apq_deploy.search.watch import Evolution
from exporters.errors import ExportError
from exporters.onnx_graph import parse_model
from exporters.onnx_reader import read_network
from exporters.onnx_writer import build_model
from exporters.workload import float_layers, network_layers
from hwmodels import CostTable, HardwareError, Precision, build_table, load_hardware
from hwmodels.layers import ConvLayer
from hwmodels.measured import MeasuredDevice
from hwmodels.measurements_file import import_measurements

LIMIT_S = 5.0
LONGEST_LINE = 2000
ERRORS = (UserError, ExportError, HardwareError)
ROOT = Path(__file__).parent.parent

ODD_INTEGERS = (0, 1, -1, 2, 3, 7, 8, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63))
ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 3e38, float("inf"), float("-inf"), float("nan"))
ODD_TEXTS = ("", "\0", "\n", "é", "nowhere", "a" * 300, "../../etc/passwd", "%s", "-1", "1e999", "nan")
OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("ReduceMean", "Flatten", "Reshape", "Squeeze", "Transpose", "Cast", "Identity", "Constant"),
    *("QuantizeLinear", "DequantizeLinear", "Loop"),
)
ATTRIBUTES = ("axis", "axes", "block_size", "dilations", "group", "keepdims", "kernel_shape", "pads", "perm", "strides")


@dataclass(frozen=True)
class Target:
    """A reader, whole files that it reads, and how they are changed beyond their bytes."""

    name: str
    files: tuple[bytes, ...]
    read: Callable[[bytes], object]
    change: Callable[[bytes, random.Random], bytes]

    def damaged(self, seed: int) -> bytes:
        """The file of a seed."""
        rng = random.Random(seed)
        content = rng.choice(self.files)
        kind = rng.random()
        if kind < 0.02:
            return rng.randbytes(rng.randrange(2000))
        if kind < 0.75:
            content = self.change(content, rng)
        if kind > 0.65:
            content = changed_bytes(content, rng, self.files)
        return content


class Hang(Exception):
    """A reader took longer than LIMIT_S."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raises: Hang in the block when its time is up."""

    def ring(*_: object) -> None:
        raise Hang(f"longer than {LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(target: Target, content: bytes) -> bool:
    """Whether the file was read; False if it was refused as it should be. Raises: anything else."""
    with time_limit(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            target.read(content)
        except ERRORS as error:
            message = str(error)
            assert "\n" not in message, f"more than a line: {message!r}"
            assert 0 < len(message) < LONGEST_LINE, f"a line of {len(message)} characters: {message[:200]!r}..."
            return False
    return True


# Changes ---------------------------------------------------------------------------------------------------------


def changed_bytes(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    """A few bytes flipped, cut, repeated, deleted, or taken from another file."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 2, 4, 8, 40, 400))
        match rng.randrange(6):
            case 0 if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            case 1:
                changed[place : place + 1] = rng.randbytes(1)
            case 2 if rng.random() < 0.3:
                del changed[place:]
            case 3:
                del changed[place : place + length]
            case 4:
                start = rng.randrange(len(changed) + 1)
                changed[place:place] = changed[start : start + length]
            case 5:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                changed[place : place + length] = other[start : start + length]
    return bytes(changed)


def changed_model(content: bytes, rng: random.Random) -> bytes:
    """An ONNX file with one to six fields of its protobuf changed, or nodes as no exporter writes them."""
    model = onnx.ModelProto()
    model.ParseFromString(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.25 and model.graph.node:
            _change_node(model, rng)
        else:
            _change_field(model, rng)
    return model.SerializeToString()


def _change_node(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    values = [output for other in model.graph.node for output in other.output]
    values += [tensor.name for tensor in model.graph.initializer] + ["", "nowhere"]
    match rng.randrange(6):
        case 0 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(values)
        case 1:
            node.input.append(rng.choice(values))
        case 2 if node.output:
            node.output[0] = rng.choice(values)
        case 3:
            node.op_type = rng.choice(OPERATORS)
        case 4:
            value = rng.choice(([], [0], [1, 1], [2, 2, 2, 2], [-1, -2], [rng.choice(ODD_INTEGERS)], 0, 1, 2.5, "x"))
            name = rng.choice(ATTRIBUTES)
            if value == []:
                node.attribute.add(name=name, type=onnx.AttributeProto.INTS)
            else:
                node.attribute.append(onnx.helper.make_attribute(name, value))
        case 5:
            model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), rng.choice(model.graph.node))


def _change_field(model: onnx.ModelProto, rng: random.Random) -> None:
    """Walk down the message at random, and change a field there."""
    message: Message = model
    while True:
        present = message.ListFields()
        inner = [(f, v) for f, v in present if f.type == FieldDescriptor.TYPE_MESSAGE]
        if not inner or rng.random() < 0.2:
            break
        field, value = rng.choice(inner)
        if not field.is_repeated:
            message = value
        elif len(value):
            message = rng.choice(value)
    fields = list(message.DESCRIPTOR.fields) if rng.random() < 0.3 else [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = rng.choice(fields)
    name = field.name
    if field.is_repeated:
        values = getattr(message, name)
        match rng.randrange(4):
            case 0 if len(values):
                del values[rng.randrange(len(values))]
            case 1 if field.type == FieldDescriptor.TYPE_MESSAGE:
                values.add().CopyFrom(rng.choice(values)) if len(values) else values.add()
            case 1:
                values.append(_odd(field, rng))
            case 2 if len(values) and field.type != FieldDescriptor.TYPE_MESSAGE:
                values[rng.randrange(len(values))] = _odd(field, rng)
            case 3:
                del values[rng.randrange(len(values) + 1) :]
    elif field.type == FieldDescriptor.TYPE_MESSAGE or rng.random() < 0.2:
        message.ClearField(name)
    elif field.type == FieldDescriptor.TYPE_BYTES and (data := getattr(message, name)):
        setattr(message, name, changed_bytes(data, rng, (data,)))
    else:
        setattr(message, name, _odd(field, rng))


def _odd(field: FieldDescriptor, rng: random.Random) -> object:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = rng.choice((*ODD_TEXTS, *OPERATORS[:6]))
            return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(ODD_FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice([rng.randrange(27), *(n for n in ODD_INTEGERS if -(2**31) <= n < 2**31)])
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice([n for n in ODD_INTEGERS if n >= 0])
    return rng.choice(ODD_INTEGERS)


def changed_cells(content: bytes, rng: random.Random) -> bytes:
    """A CSV with cells, rows or header lines changed; the hash of its rows is mended, so that they are read at all."""
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not lines:
            break
        row = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[row]
            case 1:
                lines.insert(rng.randrange(len(lines) + 1), lines[row])
            case 2:
                lines[row] = re.sub(r": .*", lambda _: ": " + rng.choice(ODD_TEXTS).strip("\n\0"), lines[row], count=1)
            case _:
                cells = lines[row].split(",")
                odd = (*map(str, ODD_INTEGERS), *map(str, ODD_FLOATS), *ODD_TEXTS, '"', "9" * 5000, "0x1", "1_0", "٣")
                match rng.randrange(4):
                    case 0:
                        del cells[rng.randrange(len(cells))]
                    case 1:
                        cells.append(rng.choice(odd))
                    case _:
                        cells[rng.randrange(len(cells))] = rng.choice(odd)
                lines[row] = ",".join(cells)
    changed = "\n".join(lines) + "\n"
    head = "".join(f"{line}\n" for line in lines if line.startswith("#"))
    if changed.startswith(head):
        changed = _with_hash(changed, len(head))
    return changed.encode()


def _with_hash(text: str, start: int) -> str:
    from hashlib import sha256

    body = text[start:]
    head = re.sub(r"(?m)^# entries: \d+", f"# entries: {max(0, body.count(chr(10)) - 1)}", text[:start])
    return re.sub(r"(# rows_sha256: )\w+", rf"\g<1>{sha256(body.encode()).hexdigest()}", head) + body


def changed_tokens(content: bytes, rng: random.Random) -> bytes:
    """JSON or TOML with some values, names or brackets changed."""
    text = content.decode()
    words = (
        "0",
        "-1",
        "1.5",
        "1e400",
        "NaN",
        "null",
        "true",
        '"x"',
        "[]",
        "{}",
        "[[]]",
        '{"a": 1}',
        "9" * 400,
        '"\\ud800"',
    )
    for _ in range(rng.choice((1, 1, 2, 4))):
        tokens = list(re.finditer(r'"(?:[^"\\]|\\.)*"|-?[\d.]+(?:e-?\d+)?|true|false|null|[\[\]{},:=]', text))
        if not tokens:
            break
        token = rng.choice(tokens)
        new = rng.choice(words) if rng.random() < 0.8 else rng.choice(tokens).group()
        if rng.random() < 0.03:
            new = "[" * rng.choice((10, 5000))
        text = text[: token.start()] + new + text[token.end() :]
    return text.encode()


def changed_rows(content: bytes, rng: random.Random) -> bytes:
    """A database of points with cells changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.sqlite"
        path.write_bytes(content)
        db = sqlite3.connect(path)
        odd = (
            None,
            0,
            -1,
            2.5,
            1e300,
            2**62,
            "",
            "x",
            "[]",
            "[1,2]",
            "[" * 3000,
            "{}",
            "null",
            b"\xff",
            "[999]",
            "[NaN]",
        )
        statement, keys = rng.choice(
            (("UPDATE points SET {} = ? WHERE rowid = ?", ("kind", "number", "genes", "accuracy", "seconds")),) * 3
            + (("UPDATE header SET {} = ? WHERE rowid = ?", ("key", "value")),)
        )
        try:
            db.execute(statement.format(rng.choice(keys)), (rng.choice(odd), rng.randrange(1, 4)))
            db.commit()
        except sqlite3.IntegrityError:
            pass
        db.close()
        return path.read_bytes()


# Readers ---------------------------------------------------------------------------------------------------------


@cache
def targets() -> dict[str, Target]:
    """All readers by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {target.name: target for target in (*_onnx(folder), *_texts(folder), _points(folder))}


def _by_file(read: Callable[[Path], object], suffix: str) -> Callable[[bytes], object]:
    def read_bytes(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{suffix}"
            path.write_bytes(content)
            return read(path)

    return read_bytes


def _onnx(folder: Path) -> list[Target]:
    rng = np.random.default_rng(1)
    files = [build_model(random_network(rng, size=10), pack_6bit=pack).SerializeToString() for pack in (False, True)]
    small_mobilenet(folder / "float.onnx", rng, 12)
    two_convolutions(folder / "two.onnx", rng, "average", "matmul-add")
    floats = tuple((folder / f"{name}.onnx").read_bytes() for name in ("float", "two"))
    quantize(folder / "two.onnx", folder / "foreign.onnx", 10)
    files.append((folder / "foreign.onnx").read_bytes())

    def quantized(content: bytes) -> object:
        return network_layers(read_network(parse_model(content)).net)

    width = Precision(8, 8)
    return [
        Target("onnx", tuple(files), quantized, changed_model),
        Target("onnx-float", (*floats, files[0]), _by_file(lambda p: float_layers(p, width), ".onnx"), changed_model),
    ]


def _texts(folder: Path) -> list[Target]:
    layers = [ConvLayer(3, 8, 12, 3), ConvLayer(8, 8, 6, 3, 2, 1, 8), ConvLayer.linear(8, 3)]
    entries = [(layer, Precision(bits, 8)) for layer in layers for bits in (4, 6, 8)]
    build_table(load_hardware("bitfusion"), entries).save(folder / "table.csv")
    measurements = "in_channels,out_channels,in_size,kernel_size,stride,weight_bits,act_bits,latency_us,energy_uJ\n" + (
        "# a comment\n3,8,12,3,1,8,8,12.5,3.25\n3,8,12,3,1,8,8,12.25,3\n8,8,6,3,2,4,4,2.5,\n"
    )
    costs = SpaceCosts.from_table(TINY, made_up_table(TINY), "full")
    found = search(costs, lambda features: features.mean(axis=1), Budget(), settings=Evolution(generations=2))
    found.save(folder / "search.json")
    figures = {"size_bytes": {"value": 25.0, "unit": "kB", "of": "bytes on disk"}}
    baseline = json.dumps({"schema": BASELINE_SCHEMA, "model": "model.onnx", "figures": figures})
    space = (ROOT / "apq_deploy/spaces/fashion.toml").read_bytes()
    hardware = (ROOT / "hwmodels/presets/bitfusion.toml").read_bytes()
    budget = (ROOT / "examples/deploy.toml").read_bytes()
    device = MeasuredDevice("mine", {"file": "mine.csv"})
    return [
        Target("table", ((folder / "table.csv").read_bytes(),), _by_file(CostTable.load, ".csv"), changed_cells),
        Target(
            "measurements",
            (measurements.encode(),),
            _by_file(lambda path: import_measurements(path, device), ".csv"),
            changed_cells,
        ),
        Target(
            "search.json",
            ((folder / "search.json").read_bytes(),),
            _by_file(SearchResult.load, ".json"),
            changed_tokens,
        ),
        Target("baseline.json", (baseline.encode(),), _by_file(read_baseline, ".json"), changed_tokens),
        Target("space.toml", (space,), _by_file(SearchSpace.load, ".toml"), changed_tokens),
        Target("hardware.toml", (hardware,), _by_file(load_hardware, ".toml"), changed_tokens),
        Target("budget.toml", (budget,), _by_file(read_budget, ".toml"), changed_tokens),
    ]


def _points(folder: Path) -> Target:
    space = SearchSpace.load("fashion")
    store = PointStore(folder / "points.sqlite", space, {"seed": 0})
    for number in range(3):
        store.add("float", number, planned_genome(space, "float", number, 0), 0.8, 1.0)
    store.close()

    def read(path: Path) -> object:
        store = PointStore(path, space)
        try:
            return [store.points(kind) for kind in ("float", "quantized")]
        finally:
            store.close()

    return Target("points", ((folder / "points.sqlite").read_bytes(),), _by_file(read, ".sqlite"), changed_rows)


# The long run ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Try damaged files until the time is up; the exit code is 1 if a reader crashed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="first seed; every trial takes the next")
    parser.add_argument("--only", choices=list(targets()), help="one reader alone, its crashes whole")
    arguments = parser.parse_args()
    chosen = [targets()[arguments.only]] if arguments.only else list(targets().values())
    # the readers that strangers' files reach first get most of the time
    weights = [8 if target.name in ("onnx", "table") else 1 for target in chosen]
    picks = random.Random(arguments.seed)
    tries: Counter[str] = Counter()
    read: Counter[str] = Counter()
    crashes: dict[str, tuple[int, str, int]] = {}
    started = time.monotonic()
    seed = arguments.seed
    while time.monotonic() - started < 60 * arguments.minutes:
        target = picks.choices(chosen, weights)[0]
        seed += 1
        tries[target.name] += 1
        try:
            read[target.name] += attempt(target, target.damaged(seed))
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
            place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"
            kind = f"{target.name}: {type(error).__name__} at {place}"
            if kind not in crashes:
                print(f"CRASH seed {seed} {kind}: {' '.join(str(error).split())[:200]}", flush=True)
                if arguments.only:
                    traceback.print_exc()
            first, words, count = crashes.get(kind, (seed, str(error), 0))
            crashes[kind] = (first, words, count + 1)
    minutes = (time.monotonic() - started) / 60
    for name in tries:
        print(f"{name:14} {tries[name]:8} tries, {read[name]:7} read, the others refused or crashed")
    total = sum(tries.values())
    print(f"{total} tries in {minutes:.1f} min, {total / minutes:.0f} per minute; {len(crashes)} different crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    sys.exit(main())
