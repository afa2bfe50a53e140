"""The steps of one deployment: search a network, export it, compile it. Each leaves its record in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_deploy.arch import Arch
from apq_deploy.errors import UserError
from apq_deploy.files import read_json, sha256, write_json
from apq_deploy.model import ModelFolder, find_model
from apq_deploy.predictor.model import Predictor
from apq_deploy.progress import cpu_seconds
from apq_deploy.search import Accuracy, Budget, SearchResult, SpaceCosts, search
from apq_deploy.search.explain import Explanation, explain
from apq_deploy.search.front import SCHEMA as FRONT_SCHEMA
from apq_deploy.search.front import Front
from apq_deploy.search.pareto import pareto_search
from apq_deploy.search.result import SCHEMA as SEARCH_SCHEMA
from apq_deploy.search.run import DEFAULT_ALGORITHM
from apq_deploy.space import Genes, SearchSpace
from apq_deploy.text import table
from hwmodels import CostTable, load_hardware

EXPORT_SCHEMA = "apq-deploy/export/2"
COMPILE_SCHEMA = "apq-deploy/compile/2"


@dataclass(frozen=True)
class RunFolder:
    """Where the steps of one deployment keep their records."""

    path: Path

    @property
    def search(self) -> Path:
        return self.path / "search.json"

    def result(self) -> SearchResult:
        """The run's search result.

        Raises: UserError if there is none, or it is damaged.
        """
        if not self.search.exists():
            raise UserError(f"there is no search in {self.path}; begin with `apq-deploy search --run {self.path}`")
        return SearchResult.load(self.search)

    def check_model(self, model: ModelFolder) -> None:
        """Nothing, if `model` has the weights that the network was searched for.

        Raises: UserError otherwise.
        """
        searched = read_json(self.search, SEARCH_SCHEMA).get("supernet_sha256")
        if searched is not None and searched != sha256(model.supernet):
            raise UserError(
                f"the network was searched for another supernet than {model.supernet}; name the model of the search "
                "with --model, or search again"
            )

    @property
    def front(self) -> Path:
        return self.path / "front.json"

    def exported(self, result: SearchResult) -> dict[str, Any] | None:
        """What `export` recorded of the searched network; None if nothing, or of another network."""
        record = _record(self.export, EXPORT_SCHEMA, "export", ("genome", "model_sha256"))
        return record if record is not None and record["genome"] == list(result.genome) else None

    def compiled(self, exported: dict[str, Any] | None) -> dict[str, Any] | None:
        """What `compile` recorded of the exported file; None if nothing, or of another file."""
        record = _record(self.compile, COMPILE_SCHEMA, "compile", ("model_sha256",))
        if record is None or exported is None:
            return None
        return record if record["model_sha256"] == exported["model_sha256"] else None

    @property
    def export(self) -> Path:
        return self.path / "export.json"

    @property
    def compile(self) -> Path:
        return self.path / "compile.json"


def _record(path: Path, schema: str, command: str, names: tuple[str, ...]) -> dict[str, Any] | None:
    """What a step has left, if it was done. Raises: UserError for a damaged record, or one without these `names`."""
    if not path.is_file():
        return None
    record = read_json(path, schema)
    for name in names:
        if name not in record:
            raise UserError(
                f"{path}: expected a whole record, got one without {name!r}; run `apq-deploy {command}` again"
            )
    return record


@dataclass(frozen=True)
class SearchRequest:
    """What is searched, and on which hardware: a model's name or file, or a cost table in its place.

    `scope` says which layers the sums of latency and energy cover; `freeze` and `bits` hold choices fixed, as they are
    in the network of the run folder `network`, or in the largest.
    """

    space: str
    budget: Budget
    hardware: str = "bitfusion"
    cost_table: Path | None = None
    scope: str = "full"
    model: Path | None = None
    algorithm: str = DEFAULT_ALGORITHM
    freeze: tuple[str, ...] = ()
    bits: int | None = None
    network: Path | None = None
    seed: int = 0

    def frozen(self, space: SearchSpace) -> Genes | None:
        """The genome that frozen choices come from, (n_genes,)."""
        return None if self.network is None else space.genome(RunFolder(self.network).result().arch)

    def costs(self, space: SearchSpace) -> SpaceCosts:
        """Costs of the space's blocks.

        Raises: UserError or HardwareError for a hardware, a table or a scope that cannot be used.
        """
        if self.cost_table is not None:
            return SpaceCosts.from_table(space, CostTable.load(self.cost_table), self.scope)  # type: ignore[arg-type]
        return SpaceCosts.from_hardware(space, load_hardware(self.hardware), self.scope)  # type: ignore[arg-type]

    def supernet_sha256(self, space: SearchSpace) -> str | None:
        """Hash of the weights that the predictor is about; None where there are none beside it."""
        path = find_model(space, self.model).supernet
        return sha256(path) if path.is_file() else None

    def accuracy(self, space: SearchSpace) -> Accuracy:
        """The predictor, loaded on first use: a budget that cannot be met is answered without a trained model."""

        @cache
        def predictor() -> Predictor:
            return Predictor.load(find_model(space, self.model).predictor, space)

        def rate(features: NDArray[np.float32]) -> NDArray[np.float32]:
            return predictor()(features)

        return rate


def search_network(request: SearchRequest, run: Path) -> tuple[SearchResult, Explanation]:
    """The best network within the budget, kept in the run folder, and what every choice of it costs.

    Raises: UserError for what cannot be searched; BudgetError where no network meets the budget.
    """
    space = SearchSpace.load(request.space)
    costs = request.costs(space)
    result = search(
        costs,
        request.accuracy(space),
        request.budget,
        algorithm=request.algorithm,
        seed=request.seed,
        freeze=request.freeze,
        bits=request.bits,
        network=request.frozen(space),
    )
    _keep(result, run, request.supernet_sha256(space))
    return result, explain(costs, result.genes)


def search_front(request: SearchRequest, objectives: tuple[str, ...], run: Path) -> Front:
    """The front of predicted accuracy against `objectives`, kept in the run folder as JSON, CSV and a plot."""
    from apq_deploy.search.plot import save_front_plot

    space = SearchSpace.load(request.space)
    front = pareto_search(
        request.costs(space),
        request.accuracy(space),
        objectives,
        request.budget,
        seed=request.seed,
        freeze=request.freeze,
        bits=request.bits,
        network=request.frozen(space),
    )
    run.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(run)
    write_json(folder.front, front.to_json() | {"supernet_sha256": request.supernet_sha256(space)})
    front.save_csv(folder.front.with_suffix(".csv"))
    save_front_plot(front, folder.front.with_suffix(".svg"))
    return front


def pick_from_front(budget: Budget, hardware: str, cost_table: Path | None, run: Path) -> SearchResult:
    """The most accurate network of the run's front within a budget, kept as the run's search result."""
    path = RunFolder(run).front
    if not path.is_file():
        raise UserError(f"there is no front in {run}; make one with `apq-deploy search --pareto --run {run}`")
    front = Front.load(path)
    request = SearchRequest(front.space.name, budget, hardware, cost_table, front.scope)
    result = replace(front.result(front.pick(budget), request.costs(front.space)), budget=budget)
    _keep(result, run, read_json(path, FRONT_SCHEMA).get("supernet_sha256"))
    return result


def _keep(result: SearchResult, run: Path, supernet_sha256: str | None) -> None:
    run.mkdir(parents=True, exist_ok=True)
    facts = {"cpu_seconds": cpu_seconds(), "supernet_sha256": supernet_sha256}
    write_json(RunFolder(run).search, result.to_json() | facts)


def describe_front(front: Front, shown: int = 20) -> str:
    """Networks of a front spread over it, for a reader."""
    chosen = sorted({round(i) for i in np.linspace(0, len(front) - 1, min(shown, len(front)))})
    rows = [
        (i, f"{100 * front.accuracy[i]:.2f}", *(f"{front.costs[name][i]:.4g}" for name in front.costs)) for i in chosen
    ]
    head = ("number", "predicted %", *front.costs)
    return f"{table(rows, head)}\n\n{len(front)} networks, hypervolume {front.hypervolume[-1]:.4g}; {front.stop_reason}"


def describe_arch(arch: Arch) -> str:
    """Architecture and bits, a line per block."""
    rows = []
    for s, stage in enumerate(arch.stages, 1):
        for b, block in enumerate(stage.blocks, 1):
            bits = block.bits
            assert bits is not None
            rows.append(
                (
                    f"stage{s}.block{b}",
                    f"{block.in_channels}-{block.mid_channels}-{block.out_channels}",
                    f"{block.kernel_size}x{block.kernel_size}",
                    block.stride,
                    f"W{bits.pointwise_weight}A{bits.pointwise_act}",
                    f"W{bits.depthwise_weight}A{bits.depthwise_act}",
                )
            )
    return table(rows, ("block", "channels", "kernel", "stride", "pointwise", "depthwise"))


def describe_costs(result: SearchResult) -> list[tuple[str, str]]:
    """Predicted accuracy and costs as labelled lines; where a space has two sums, each says which it is."""
    rows = [("predicted accuracy", f"{100 * result.predicted_accuracy:.2f} %")]
    for scope, costs in result.costs.items():
        note = "" if len(result.costs) == 1 else " (every layer)" if scope == "full" else " (APQ's sum)"
        rows += [(f"latency, {result.hardware}{note}", f"{costs['latency_ms']:.4g} ms")]
        if "energy_mj" in costs:
            rows += [(f"energy, {result.hardware}{note}", f"{costs['energy_mj']:.4g} mJ")]
    costs = result.costs["full"]
    rows += [
        ("bit operations", f"{costs['bitops_g']:.4g} G"),
        ("multiply-accumulates", f"{costs['macs_m']:.4g} M"),
        ("stored weights", f"{costs['size_kb']:.4g} kB"),
    ]
    return rows


def describe_search(result: SearchResult, notes: list[str]) -> str:
    """The whole result for a reader, with `notes` below."""
    lines = [("space", result.space), ("budget", str(result.budget)), *describe_costs(result)]
    lines += [("networks rated", str(result.evaluations)), ("stopped", result.stop_reason)]
    return "\n".join([describe_arch(result.arch), "", table(lines), *(["", *notes] if notes else [])])


def describe_export(report: dict[str, Any]) -> str:
    """What was exported, for a reader: bits and bytes per layer, then accuracies and agreement."""
    rows = [
        (
            layer["name"],
            layer["kind"],
            f"W{layer['claimed_weight_bits']}A{layer['claimed_input_bits']}",
            layer["weights"],
            f"{layer['storage_bits']} bit",
            layer["size_bytes"],
        )
        for layer in report["layers"]
        if layer["weights"]
    ]
    layers = table(rows, ("layer", "kind", "bits", "weights", "stored", "bytes"))
    return f"{layers}\n\n{table(export_figures(report))}"


ACCURACIES = {
    "float": "accuracy in float, torch",
    "calibrated": "after calibration, torch",
    "finetuned": "after fine-tuning, torch",
    "onnxruntime": "of the file, onnxruntime",
}


def export_figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Accuracies, agreement and size as labelled lines."""
    images = report["images"]
    rows = [("predicted accuracy", f"{report['predicted_accuracy_percent']:.2f} %")]
    rows += [
        (words, f"{report['accuracy_percent'][k]:.2f} %")
        for k, words in ACCURACIES.items()
        if k in report["accuracy_percent"]
    ]
    parity = report["parity"]
    differing = sum(d["differing"] for d in parity["differences"])
    tensors = max(parity["compared"].values())
    return [
        *rows,
        ("measured on", f"{images['test']} test images ({images['source']})"),
        ("torch, NumPy, onnxruntime", f"{differing} codes differ, {tensors} tensors, {parity['images']} images"),
        ("file", f"{report['model']}, {report['file_bytes']} bytes"),
    ]


def describe_compile(report: dict[str, Any]) -> str:
    """What was compiled, for a reader."""
    return table(
        [
            ("library", f"{report['library']}, {report['library_bytes']} bytes, in {report['compile_seconds']} s"),
            ("target", f"{report['target']}, {report['threads']} thread(s)"),
            *compile_figures(report),
        ]
    )


def compile_figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Agreement and latency as labelled lines."""
    agreement, latency = report["agreement"], report["latency"]
    if agreement is None:
        return [
            ("agreement", "neither run nor compared here: made for another machine, or to be linked into a program")
        ]
    tensors = agreement["tensors"]
    differing = sum(d["differing"] for d in tensors["differences"])
    rows = [
        (
            "TVM against onnxruntime",
            f"{agreement['differing_logits']} logits differ, {agreement['same_class']} of {agreement['images']} images "
            f"in the same class ({agreement['source']})",
        ),
        (
            "TVM against NumPy",
            f"{differing} codes differ, {tensors['compared']['TVM']} tensors, {tensors['images']} images",
        ),
    ]
    if "accuracy_percent" in agreement:
        rows.append(("of the library, TVM", f"{agreement['accuracy_percent']:.2f} %"))
    if latency is not None:
        medians = {timing["runtime"]: timing["median_ms"] for timing in latency["timings"]}
        words = {"compiled": "latency of one image, TVM", "onnxruntime": "latency of one image, onnxruntime"}
        for timing in latency["timings"]:
            rows.append(
                (
                    words[timing["runtime"]],
                    f"{timing['median_ms']:.3f} ms ({timing['low_ms']:.3f} to {timing['high_ms']:.3f}), "
                    f"{timing['threads']} thread(s)",
                )
            )
        rows.append(("TVM's share of onnxruntime's time", f"{medians['compiled'] / medians['onnxruntime']:.2f}"))
    return rows


def describe_run(run: Path) -> str:
    """Everything that a run has found so far, as one table.

    Raises: UserError if the run has not even searched.
    """
    folder = RunFolder(run)
    result = folder.result()
    rows = [("space", result.space), ("budget", str(result.budget)), *describe_costs(result)]
    report = folder.exported(result)
    if report is not None:
        rows += export_figures(report)[1:]
        timing = report["torch_float_ms"]
        rows.append(
            (
                "latency of one image, torch in float",
                f"{timing['median']:.3f} ms ({timing['low']:.3f} to {timing['high']:.3f})",
            )
        )
    built = folder.compiled(report)
    if built is not None:
        rows += compile_figures(built)
    text = f"{describe_arch(result.arch)}\n\n{table(rows)}"
    for path, found, command in ((folder.export, report, "export"), (folder.compile, built, "compile")):
        if found is None and path.is_file():
            text += f"\n\nnot shown: {path}, which is of another network; run `apq-deploy {command}` again"
    return text
