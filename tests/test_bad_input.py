"""Files of the wrong kind, space, schema or size: each command answers in one line, and leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import call_here
from endurance import SPACE, Place
from networks import random_network
from safetensors.numpy import load_file, safe_open, save_file

from apq_deploy import SearchSpace
from apq_deploy.model import embedded
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.store import PointStore, planned_genome
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.train import save_supernet
from exporters.onnx_writer import build_model, write_onnx
from hwmodels import Precision, build_table, load_hardware
from hwmodels.layers import ConvLayer

FASHION = SearchSpace.load("fashion")
GIB = 2**30


def with_metadata(source: Path, target: Path, **changes: str) -> None:
    """A copy of a safetensors file in which some metadata are others."""
    with safe_open(source, framework="np") as file:
        metadata = dict(file.metadata()) | changes
    save_file(load_file(source), target, metadata)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def model_folder(folder: Path, **files: Path) -> None:
    """A copy of the embedded model in which some files are others; names without their suffix."""
    own = embedded(FASHION)
    assert own is not None
    shutil.copytree(own.path, folder)
    for name, source in files.items():
        (target,) = folder.glob(f"{name}.*")
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole files and with bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    own = embedded(FASHION)
    assert own is not None
    tiny = SearchSpace.load(_written(folder / "tiny.toml", SPACE))
    Place.make(folder / "images")
    # whole files of every kind
    net = random_network(np.random.default_rng(1), size=10)
    write_onnx(net, folder / "model.onnx")
    save_supernet(Supernet(tiny), folder / "tiny.safetensors")
    widths = ((1, 8, tiny.n_features), (1, 1, 8))
    weights = tuple(np.zeros(shape, np.float32) for shape in widths)
    biases = tuple(np.zeros(shape[:2], np.float32) for shape in widths)
    Predictor(tiny, weights, biases, 0.5, 0.1, True).save(folder / "tiny-predictor.safetensors")
    store = PointStore(folder / "tiny.sqlite", tiny, {"seed": 0})
    store.add("float", 0, planned_genome(tiny, "float", 0, 0), 0.5, 1.0)
    store.close()
    build_table(load_hardware("bitfusion"), [(ConvLayer(3, 8, 12, 3), Precision(8, 8))]).save(folder / "other.csv")
    _written(folder / "search.json", json.dumps({"schema": "apq-deploy/search/9"}))
    _written(folder / "plain.json", '{"a": 1}')
    np.savez(folder / "arrays.npz", images=np.zeros(3), labels=np.zeros(3))
    sparse(folder / "sparse.npz", 3 * GIB)
    with zipfile.ZipFile(folder / "bomb.npz", "w") as archive:
        archive.writestr("images.npy", b"")
        archive.infolist()[0].file_size = 3 * GIB  # what the directory at the end will say
    _written(folder / "accuracy.toml", "schema = 1\n[accuracy]\nmin_percent = 1\n")
    _written(folder / "deploy.toml", "schema = 1\n[size]\nmax_kb = 100\n")

    # ONNX
    content = (folder / "model.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[:-1000])
    (folder / "zeros.onnx").write_bytes(bytes(5000))
    (folder / "random.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    shutil.copy(folder / "tiny.safetensors", folder / "weights.onnx")
    shutil.copy(folder / "tiny.sqlite", folder / "database.onnx")
    shutil.copy(folder / "other.csv", folder / "table.onnx")
    sparse(folder / "sparse.onnx", 3 * GIB)
    _odd_models(folder, build_model(net))

    # tables
    shutil.copy(folder / "tiny.sqlite", folder / "database.csv")
    shutil.copy(folder / "model.onnx", folder / "model.csv")
    text = (folder / "other.csv").read_text()
    _written(folder / "new.csv", text.replace("cost table 1", "cost table 2"))
    _written(folder / "changed.csv", text.replace(",modelled,", ",measured,"))
    _written(folder / "cutoff.csv", text[:-20])
    sparse(folder / "sparse.csv", 3 * GIB)
    _written(folder / "columns.csv", ",".join(f"column{i}" for i in range(50_000)) + "\n1\n")
    _written(folder / "repeated.csv", ",".join(["in_channels"] * 200_000) + "\n1\n")
    _written(folder / "rows.csv", "in_channels,out_channels\n" + "1,1\n" * 1_000_001)
    _written(folder / "longname.csv", "x" * 200_000 + "\n1\n")
    _written(folder / "longhead.csv", text[: text.index("in_channels")] + "x" * 200_000 + "\n")
    _written(folder / "longcell.csv", text.rstrip("\n") + "9" * 200_000 + "\n")
    (folder / "latin.csv").write_bytes(b"in_channels,\xe9\n1,2\n")

    # TOML and JSON
    _written(folder / "deep.toml", "schema = 1\nbits = " + "[" * 20_000 + "]" * 20_000 + "\n")
    _written(folder / "deepkeys.toml", "[" + ".".join("a" * 3000) + "]\n")
    _written(folder / "new.toml", (folder / "tiny.toml").read_text().replace("schema = 1", "schema = 2"))
    _written(folder / "json.toml", '{"schema": 1}')
    shutil.copy(folder / "model.onnx", folder / "model.toml")
    sparse(folder / "sparse.toml", 3 * GIB)
    _written(
        folder / "wide.toml",
        SPACE.replace("channel_step = 4", "channel_step = 1").replace("out_channels = 4", "out_channels = 64"),
    )
    _written(folder / "newhardware.toml", 'schema = 9\nmodel = "bitfusion"\n')
    _written(folder / "newbudget.toml", "schema = 9\n[size]\nmax_kb = 1\n")
    for name, words in (
        ("newbaseline", '{"schema": "apq-deploy/baseline/9"}'),
        ("notbaseline", '{"schema": "apq-deploy/search/2"}'),
    ):
        _written(folder / f"{name}.json", words)
    _written(folder / "regression.toml", "schema = 1\n[regression]\nsize_percent = 1\n")
    _written(folder / "withlibrary.toml", 'schema = 1\n[compiled]\nlibrary = "model.csv"\n[parity]\n')

    # runs
    for name, file, words in (
        ("newrun", "search", '{"schema": "apq-deploy/search/9"}'),
        ("deeprun", "search", "[" * 100_000),
        ("emptyrun", "search", ""),
        ("cutrun", "search", '{"schema": "apq-deploy/search/1", "genome": [1, 2'),
        ("exportrun", "search", '{"schema": "apq-deploy/export/2"}'),
        ("frontrun", "front", '{"schema": "apq-deploy/search/1"}'),
        ("newfront", "front", '{"schema": "apq-deploy/front/9"}'),
    ):
        (folder / name).mkdir()
        _written(folder / name / f"{file}.json", words)
    (folder / "sparserun").mkdir()
    sparse(folder / "sparserun" / "search.json", 3 * GIB)

    # models
    model_folder(folder / "whole")
    model_folder(folder / "predictor-onnx", predictor=folder / "model.onnx")
    model_folder(folder / "predictor-supernet", predictor=own.supernet)
    model_folder(folder / "predictor-tiny", predictor=folder / "tiny-predictor.safetensors")
    for name, changes in (
        ("new", {"schema": "apq-deploy/predictor/9"}),
        ("garbled", {"predictor": "{"}),
        ("bare", {"predictor": "{}"}),
    ):
        model_folder(folder / f"predictor-{name}")
        with_metadata(own.predictor, folder / f"predictor-{name}" / "predictor.safetensors", **changes)
    model_folder(folder / "predictor-empty")
    with safe_open(own.predictor, framework="np") as file:
        save_file({}, folder / "predictor-empty" / "predictor.safetensors", dict(file.metadata()))
    model_folder(folder / "supernet-tiny", supernet=folder / "tiny.safetensors")
    model_folder(folder / "supernet-onnx", supernet=folder / "model.onnx")
    model_folder(folder / "supernet-new")
    with_metadata(own.supernet, folder / "supernet-new" / "supernet.safetensors", schema="apq-deploy/supernet/9")
    model_folder(folder / "supernet-sparse")
    sparse(folder / "supernet-sparse" / "sparse.safetensors", 3 * GIB)
    (folder / "supernet-sparse" / "supernet.safetensors").unlink()
    (folder / "supernet-sparse" / "sparse.safetensors").rename(folder / "supernet-sparse" / "supernet.safetensors")
    model_folder(folder / "samples-text", samples=folder / "plain.json")
    model_folder(folder / "samples-other", samples=folder / "arrays.npz")
    model_folder(folder / "points-csv", points=folder / "other.csv")
    model_folder(folder / "points-tiny", points=folder / "tiny.sqlite")
    for name, statement in (
        ("new", "UPDATE header SET value = 'apq-deploy/points/9' WHERE key = 'schema'"),
        ("genes", "UPDATE points SET genes = '[1, 2]' WHERE number = 3"),
        ("high", "UPDATE points SET accuracy = 85.0 WHERE number = 3"),
        ("foreign", "DROP TABLE header"),
    ):
        model_folder(folder / f"points-{name}")
        with sqlite3.connect(folder / f"points-{name}" / "points.sqlite") as db:
            db.execute(statement)
        db.close()
    model_folder(folder / "provenance-new", provenance=folder / "plain.json")
    for name, source in (("onnx", folder / "model.onnx"), ("supernet", folder / "tiny.safetensors")):
        (folder / f"training-{name}").mkdir()
        shutil.copy(source, folder / f"training-{name}" / "training.safetensors")
    (folder / "collecting").mkdir()
    shutil.copy(folder / "tiny.safetensors", folder / "collecting" / "supernet.safetensors")
    shutil.copy(folder / "tiny.sqlite", folder / "collecting" / "points.sqlite")
    return folder


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _odd_models(folder: Path, model: onnx.ModelProto) -> None:
    """Weights outside of the folder, a side file of gigabytes, sizes without data, an image larger than any."""
    (folder.parent / "secret.bin").write_bytes(bytes(1 << 20))
    sparse(folder / "sparse.bin", 3 * GIB)

    def outside(tensor: onnx.TensorProto, location: str) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    for name, location in (("up", "../secret.bin"), ("absolute", "/etc/passwd"), ("large", "sparse.bin"), ("none", "")):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        outside(changed.graph.initializer[0], location)
        (folder / f"side-{name}.onnx").write_bytes(changed.SerializeToString())
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    outside(changed.graph.initializer[0], "link.bin")
    (folder / "side-link.onnx").write_bytes(changed.SerializeToString())
    for name, dims in (("huge", [2**40, 2**20]), ("negative", [-1, 4])):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        weights = max(changed.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.dims[:] = dims
        weights.ClearField("raw_data")
        (folder / f"dims-{name}.onnx").write_bytes(changed.SerializeToString())
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40
    (folder / "image-huge.onnx").write_bytes(changed.SerializeToString())


FIT = ("fit", "--model")
SEARCH = ("search", "--latency-ms", "0.06", "--model")
EXPORT = ("export", "new.onnx", "--run", "good", "--model")
TRAIN = ("train", "--space", "tiny.toml", "--data", "images/data", "--model")
CHECK = ("check", "model.onnx", "--budget")
CASES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # what stands there is no ONNX file, or one that nobody should load
    *(
        ((command, f"{name}.onnx"), words)
        for command in ("compile", "profile", "audit")
        for name, words in (
            ("cut", ("not an ONNX model, or cut short",)),
            ("weights", ("not an ONNX model, or cut short",)),
            ("sparse", ("larger than", "bytes")),
            ("side-up", ("side file", "outside")),
            ("dims-huge", ("cannot be read",)),
        )
    ),
    (("audit", "zeros.onnx"), ("not an ONNX model",)),
    (("audit", "random.onnx"), ("not an ONNX model",)),
    (("audit", "database.onnx"), ("not an ONNX model",)),
    (("audit", "table.onnx"), ("not an ONNX model",)),
    (("audit", "."), ("Is a directory",)),
    (("audit", "side-absolute.onnx"), ("side file",)),
    (("audit", "side-link.onnx"), ("side file",)),
    (("audit", "side-none.onnx"), ("side file",)),
    (("audit", "side-large.onnx"), ("side file", "more than")),
    (("compile", "dims-negative.onnx"), ("scales do not fit",)),
    (("profile", "image-huge.onnx"), ("larger than any image",)),
    # tables
    (("search", "--table", "database.csv"), ("UTF-8",)),
    (("search", "--table", "model.csv"), ("UTF-8",)),
    (("search", "--table", "plain.json"), ("expected schema",)),
    (("search", "--table", "new.csv"), ("cost table 1", "cost table 2")),
    (("search", "--table", "changed.csv"), ("rows were changed",)),
    (("search", "--table", "cutoff.csv"), ("cut off",)),
    (("search", "--table", "other.csv"), ("other.csv",)),
    (("search", "--table", "sparse.csv"), ("larger than",)),
    (("lut", "check", "longcell.csv"), ("garbled",)),
    (("lut", "import", "columns.csv", "-o", "new-table.csv"), ('unknown column "column0"',)),
    (("lut", "import", "longname.csv", "-o", "new-table.csv"), ("line 1",)),
    (("lut", "check", "longhead.csv"), ("names of the columns",)),
    (("lut", "import", "repeated.csv", "-o", "new-table.csv"), ("every column once",)),
    (("lut", "import", "rows.csv", "-o", "new-table.csv"), ("at most 1000000 lines",)),
    (("lut", "import", "latin.csv", "-o", "new-table.csv"), ("UTF-8",)),
    (("lut", "import", "sparse.csv", "-o", "new-table.csv"), ("larger than",)),
    (("lut", "compare", "other.csv", "model.csv"), ("UTF-8",)),
    # TOML
    (("search", "--space", "new.toml"), ("expected schema = 1",)),
    (("search", "--space", "deep.toml"), ("not valid TOML",)),
    (("search", "--space", "deepkeys.toml"), ("expected schema = 1",)),
    (("search", "--space", "json.toml"), ("not valid TOML",)),
    (("search", "--space", "model.toml"), ("UTF-8",)),
    (("search", "--space", "sparse.toml"), ("larger than",)),
    (("search", "--space", "wide.toml"), ("at most 127 widths", "channel_step")),
    (("hardware", "show", "newhardware.toml"), ("expected schema = 1", "9")),
    (("hardware", "show", "deep.toml"), ("expected TOML",)),
    (("hardware", "show", "model.toml"), ("UTF-8",)),
    (("hardware", "show", "sparse.toml"), ("larger than",)),
    ((*CHECK, "newbudget.toml"), ("expected schema = 1", "9")),
    ((*CHECK, "deep.toml"), ("expected TOML",)),
    ((*CHECK, "sparse.toml"), ("larger than",)),
    # baselines, data, libraries
    ((*CHECK, "regression.toml", "--baseline", "newbaseline.json"), ("apq-deploy/baseline/1", "apq-deploy/baseline/9")),
    ((*CHECK, "regression.toml", "--baseline", "notbaseline.json"), ("apq-deploy/baseline/1", "apq-deploy/search/2")),
    ((*CHECK, "regression.toml", "--baseline", "model.onnx"), ("UTF-8",)),
    ((*CHECK, "accuracy.toml", "--data", "arrays.npz"), ("expected images",)),
    ((*CHECK, "accuracy.toml", "--data", "sparse.npz"), ("expected an .npz file", "larger than")),
    ((*CHECK, "accuracy.toml", "--data", "bomb.npz"), ("expected an .npz file", "unpacked")),
    (("check", "cut.onnx", "--budget", "deploy.toml"), ("not an ONNX model",)),
    # records of a run
    (("export", "new.onnx", "--run", "newrun"), ("apq-deploy/search/9",)),
    (("export", "new.onnx", "--run", "deeprun"), ("not complete JSON",)),
    (("export", "new.onnx", "--run", "emptyrun"), ("not complete JSON",)),
    (("export", "new.onnx", "--run", "cutrun"), ("not complete JSON",)),
    (("export", "new.onnx", "--run", "exportrun"), ("apq-deploy/export/2",)),
    (("report", "--run", "sparserun"), ("larger than",)),
    (("pick", "--run", "frontrun"), ("apq-deploy/search/1",)),
    (("pick", "--run", "newfront"), ("apq-deploy/front/9",)),
    # models
    ((*SEARCH, "predictor-onnx"), ("not a complete safetensors file",)),
    ((*SEARCH, "predictor-supernet"), ("apq-deploy/predictor/2", "apq-deploy/supernet/1")),
    ((*SEARCH, "predictor-tiny"), ("'tiny'", "expected 'fashion'")),
    ((*SEARCH, "predictor-new"), ("apq-deploy/predictor/9",)),
    ((*SEARCH, "predictor-garbled"), ("fit it again",)),
    ((*SEARCH, "predictor-bare"), ("fit it again",)),
    ((*SEARCH, "predictor-empty"), ("fit it again",)),
    ((*EXPORT, "supernet-tiny"), ("'tiny'", "expected 'fashion'")),
    ((*EXPORT, "supernet-onnx"), ("not a complete safetensors file",)),
    ((*EXPORT, "supernet-new"), ("apq-deploy/supernet/9",)),
    ((*EXPORT, "supernet-sparse"), ("larger than",)),
    ((*EXPORT, "samples-text"), ("sample images",)),
    ((*EXPORT, "samples-other"), ("sample images",)),
    ((*FIT, "points-csv"), ("not a database",)),
    ((*FIT, "points-tiny"), ("'tiny'", "expected 'fashion'")),
    ((*FIT, "points-new"), ("apq-deploy/points/9",)),
    ((*FIT, "points-genes"), ("garbled",)),
    ((*FIT, "points-high"), ("from 0 to 1",)),
    ((*FIT, "points-foreign"), ("expected schema",)),
    ((*TRAIN, "training-onnx"), ("not a complete safetensors file",)),
    ((*TRAIN, "training-supernet"), ("not a checkpoint",)),
    (("collect", *TRAIN[1:], "collecting"), ("another", "use another folder")),
    (("refine", *TRAIN[1:], "collecting"), ("does not say with which", "collect anew")),
    (("refine", *TRAIN[1:], "new"), ("there are no points at new/points.sqlite", "apq-deploy collect")),
]


@pytest.fixture(scope="module")
def good(bad: Path) -> None:
    """A run to export from."""
    from apq_deploy.deployment import SearchRequest, search_network
    from apq_deploy.search import Budget

    search_network(SearchRequest("fashion", Budget(latency_ms=0.06)), bad / "good")


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[0]))
def test_one_line_and_nothing_touched(bad: Path, case: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    arguments, words = case
    done = call_here(bad, *arguments)
    assert done.code == 2, done
    assert done.line.startswith("error: ")
    for word in words:
        assert word in done.line
    assert not done.changed
