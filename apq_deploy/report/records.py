"""What the steps of a run have left behind, typed; what is missing says which command makes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apq_deploy.deployment import RunFolder
from apq_deploy.errors import UserError
from apq_deploy.files import read_json
from apq_deploy.model import PROVENANCE_SCHEMA, ModelFolder, find_model
from apq_deploy.report.provenance import STEPS, Step, steps_from_json
from apq_deploy.search import Front, SearchResult
from apq_deploy.search.front import SCHEMA as FRONT_SCHEMA
from apq_deploy.search.result import SCHEMA as SEARCH_SCHEMA


@dataclass(frozen=True, slots=True)
class Missing:
    """A part that cannot be shown: why, and the command that makes it (None where no single one does)."""

    reason: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Codes compared tensor by tensor with the NumPy reference: tensors by source, and each difference in words."""

    images: int
    tensors: Mapping[str, int]
    differing: Mapping[str, int]

    @property
    def is_equal(self) -> bool:
        return not any(self.differing.values())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Agreement:
        tensors = {str(source): int(count) for source, count in data["compared"].items()}
        differing = dict.fromkeys(tensors, 0)
        for difference in data["differences"]:
            differing[difference["source"]] += int(difference["differing"])
        return cls(int(data["images"]), tensors, differing)


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """One layer of the ONNX file as the audit saw it; None where the file does not say."""

    name: str
    kind: str
    claimed_weight_bits: int | None
    claimed_input_bits: int | None
    used_weight_bits: int | None
    weights: int
    storage_bits: int | None
    size_bytes: int
    kernel: str | None
    is_integer: bool | None


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one image: the median, and how far most runs lie."""

    runtime: str
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What `export` wrote and measured. accuracies: per cent, by what was measured, in the order of the steps."""

    model: str
    settings: Mapping[str, Any]
    images: Mapping[str, Any]
    accuracies: Mapping[str, float]
    agreement: Agreement
    file_bytes: int
    layers: tuple[StoredLayer, ...]
    false_claims: tuple[str, ...]
    float_timing: Timing
    cpu_seconds: float | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExportRecord:
        timing = data["torch_float_ms"]
        names = StoredLayer.__dataclass_fields__
        return cls(
            model=str(data["model"]),
            settings=dict(data["settings"]),
            images={name: data["images"][name] for name in ("source", "train", "test")},
            accuracies={str(name): float(value) for name, value in data["accuracy_percent"].items()},
            agreement=Agreement.from_json(data["parity"]),
            file_bytes=int(data["file_bytes"]),
            layers=tuple(StoredLayer(**{name: layer[name] for name in names}) for layer in data["layers"]),
            false_claims=tuple(str(claim) for claim in data["false_claims"]),
            float_timing=Timing("torch, float", 1, *(float(timing[name]) for name in ("median", "low", "high"))),
            cpu_seconds=_seconds(data),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The compiled library against onnxruntime and the NumPy reference. accuracy_percent: None without labels."""

    images: int
    source: str
    differing_logits: int
    same_class: int
    accuracy_percent: float | None
    tensors: Agreement

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        accuracy = data.get("accuracy_percent")
        return cls(
            int(data["images"]),
            str(data["source"]),
            int(data["differing_logits"]),
            int(data["same_class"]),
            None if accuracy is None else float(accuracy),
            Agreement.from_json(data["tensors"]),
        )


@dataclass(frozen=True, slots=True)
class CompileRecord:
    """What `compile` built. comparison: None where the library does not run on the machine that built it."""

    library: str
    target: str
    threads: int
    compile_seconds: float
    library_bytes: int
    comparison: Comparison | None
    timings: tuple[Timing, ...]
    cpu_seconds: float | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompileRecord:
        latency = data["latency"]
        timings = latency["timings"] if latency is not None else ()
        names = Timing.__dataclass_fields__
        return cls(
            library=str(data["library"]),
            target=str(data["target"]),
            threads=int(data["threads"]),
            compile_seconds=float(data["compile_seconds"]),
            library_bytes=int(data["library_bytes"]),
            comparison=None if data["agreement"] is None else Comparison.from_json(data["agreement"]),
            timings=tuple(Timing(**{name: timing[name] for name in names}) for timing in timings),
            cpu_seconds=_seconds(data),
        )


@dataclass(frozen=True, eq=False)
class RunRecords:
    """All records of a run. raw: what each file says, by its name, for the reader who wants to compute."""

    run: Path
    search: SearchResult
    search_cpu_seconds: float | None
    export: ExportRecord | Missing
    compiled: CompileRecord | Missing
    front: Front | Missing
    model: ModelFolder | Missing
    provenance: Mapping[str, Step] | Missing
    raw: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, run: Path, model: Path | None) -> RunRecords:
        """The records of the run folder and of the trained model.

        Raises: UserError if there is no search, or a record is damaged.
        """
        folder = RunFolder(run)
        if not folder.search.is_file():
            if folder.front.is_file():
                raise UserError(f"{run} holds a front but no chosen network; choose one with `apq-deploy pick`")
            raise UserError(f"there is no search in {run}; make one with `apq-deploy search`, or name another --run")
        raw: dict[str, Mapping[str, Any]] = {folder.search.name: read_json(folder.search, SEARCH_SCHEMA)}
        with _checked(folder.search, "search"):
            search = SearchResult.from_json(raw[folder.search.name])
            _check_search(search)
            search_cpu_seconds = _seconds(raw[folder.search.name])
        where = "" if run.name == str(run) == "apq-run" else f" --run {shlex.quote(str(run))}"
        exported: ExportRecord | Missing = Missing(
            "The network has not been exported.", f"apq-deploy export model.onnx{where}"
        )
        compiled: CompileRecord | Missing = Missing(
            "The network has not been compiled.", f"apq-deploy compile model.onnx -o model.so{where}"
        )
        front: Front | Missing = Missing("There is no front in the run folder.", f"apq-deploy search --pareto{where}")
        export_record = folder.exported(search)
        if export_record is not None:
            raw[folder.export.name] = export_record
            with _checked(folder.export, "export"):
                exported = ExportRecord.from_json(export_record)
        compile_record = folder.compiled(export_record)
        if compile_record is not None:
            raw[folder.compile.name] = compile_record
            with _checked(folder.compile, "compile"):
                compiled = CompileRecord.from_json(compile_record)
        if folder.front.is_file():
            raw[folder.front.name] = read_json(folder.front, FRONT_SCHEMA)
            with _checked(folder.front, "search --pareto"):
                front = Front.from_json(raw[folder.front.name])
                _check_front(front)
        found = _model(search, model)
        provenance: Mapping[str, Step] | Missing
        if isinstance(found, Missing):
            provenance = found
        elif not (path := found.provenance).is_file():
            command = f"apq-deploy train --space {shlex.quote(search.space)} --data DIR"
            provenance = Missing("The trained model does not say how it was made.", command)
        else:
            raw[path.name] = read_json(path, PROVENANCE_SCHEMA)
            with _checked(path, " or ".join(STEPS)):
                provenance = steps_from_json(raw[path.name])
        return cls(run, search, search_cpu_seconds, exported, compiled, front, found, provenance, raw)


def _model(search: SearchResult, model: Path | None) -> ModelFolder | Missing:
    """The folder of the trained model.

    Raises: UserError if it was named and is not there.
    """
    try:
        return find_model(search.search_space(), model)
    except UserError as error:
        if model is not None:
            raise
        return Missing(f"{error}.")


def _check_search(search: SearchResult) -> None:
    """Raises: ValueError if the genome is none of the space, or the costs or the history lack what every search has."""
    space = search.search_space()
    genes = search.genes
    if genes.shape != (space.n_genes,) or (genes < 0).any() or (genes >= space.cardinalities).any():
        raise ValueError("the genome is none of the space")
    if space.decode(genes) != search.arch:
        raise ValueError("genome and architecture differ")
    if search.scope not in search.costs or not len(search.history):
        raise ValueError("costs or history are empty")
    for costs in search.costs.values():
        for name in ("latency_ms", "bitops_g", "size_kb", "macs_m", *search.budget.limits):
            float(costs[name])


def _check_front(front: Front) -> None:
    """Raises: ValueError if the front is empty, or its parts are of different lengths."""
    n = len(front.accuracy)
    shapes = {front.accuracy.shape, front.genes.shape[:1], *(values.shape for values in front.costs.values())}
    if not n or not len(front.history) or shapes != {(n,)} or not set(front.objectives) <= set(front.costs):
        raise ValueError("networks, accuracies and costs do not match")


@contextmanager
def _checked(path: Path, command: str) -> Iterator[None]:
    """Raises: UserError for a record in which something is missing or of another kind."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected a whole record, got one with something missing or wrong ({error}); "
            f"run `apq-deploy {command}` again"
        ) from None


def _seconds(data: Mapping[str, Any]) -> float | None:
    """Processor time of a step, all its threads together, if its record says it."""
    seconds = data.get("cpu_seconds")
    return None if seconds is None else float(seconds)
