"""Commands that make and judge model files: export, compile, audit, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apq_deploy.commands.options import (
    DEFAULT_RUN,
    HardwareOption,
    JsonOption,
    ModelOption,
    RunOption,
    SeedOption,
    show,
)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="ONNX file.")]


def export(
    output: ModelFile,
    run: RunOption = DEFAULT_RUN,
    model: ModelOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set to calibrate, fine-tune and measure on [the model's sample images].")
    ] = None,
    finetune_steps: Annotated[int, typer.Option(min=0, help="Steps of quantization-aware fine-tuning.")] = 20,
    weight_method: Annotated[str | None, typer.Option(help="Clips of weights: kl, mse, max or percentile.")] = None,
    act_method: Annotated[str | None, typer.Option(help="Clips of activations: the same.")] = None,
    power_of_two: Annotated[bool, typer.Option(help="Round every scale to a power of two.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Export the network of the last search: extract, calibrate, fine-tune, write ONNX, measure its accuracy."""
    from apq_deploy.deployment import RunFolder, describe_export
    from apq_deploy.files import locked

    folder = RunFolder(run)
    with locked(run, wait=True):
        result = folder.result()

        from apq_deploy.exporting import ExportSettings, export_network
        from apq_deploy.model import find_model
        from apq_deploy.supernet.network import load_supernet

        settings = ExportSettings(finetune_steps, weight_method, act_method, power_of_two, seed)  # type: ignore[arg-type]
        found = find_model(result.search_space(), model)
        load_supernet(result.search_space(), found.supernet)  # a file that is none is told as such
        folder.check_model(found)
        report = export_network(result, found, output, folder.export, settings, data)
    show(report, describe_export(report), as_json)


def compile_library(
    model: ModelFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: .so for TVM's runtime, .c or .a without any.")
    ] = Path("model.so"),
    target: Annotated[
        str, typer.Option(help="CPU to compile for: host, x86-64-amx, x86-64-vnni, x86-64-avx2, x86-64, ...")
    ] = "host",
    threads: Annotated[int, typer.Option(min=1, help="Threads that the kernels are split over.")] = 1,
    pack_weights: Annotated[bool, typer.Option(help="Keep 4-bit weights two to a byte in the library.")] = False,
    time: Annotated[bool, typer.Option(help="Time the library beside onnxruntime, each in its own process.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Show the time of every layer of the library.")] = False,
    run: RunOption = DEFAULT_RUN,
    as_json: JsonOption = False,
) -> None:
    """Compile an ONNX file through TVM, and compare the library with onnxruntime."""
    from apq_deploy.compiling import compile_model, describe_layers
    from apq_deploy.deployment import RunFolder, describe_compile
    from apq_deploy.files import locked

    with locked(run, wait=True):
        record = RunFolder(run).compile
        report = compile_model(model, output, target, threads, pack_weights, time, record, per_layer=layers)
    text = describe_compile(report)
    if report["layers"]:
        text += f"\n\n{describe_layers(report['layers'])}"
    show(report, text, as_json)


def report(
    run: RunOption = DEFAULT_RUN,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write one self-contained HTML page.")
    ] = None,
    model: ModelOption = None,
    hardware: Annotated[str | None, typer.Option(help="Hardware of the page's figures [the search's].")] = None,
    table: Annotated[Path | None, typer.Option(help="Cost table in place of --hardware.")] = None,
) -> None:
    """Show what the steps of a run have found, as one table or as a page."""
    from apq_deploy.deployment import describe_run

    text = describe_run(run)
    if output is not None:
        from apq_deploy.report import write_report

        write_report(run, output, model, hardware, table)
        text += f"\n\npage: {output}"
    print(text)


def audit(
    model: ModelFile,
    as_json: JsonOption = False,
) -> None:
    """Check that every layer carries the bits it claims; exit code 1 if not."""
    from dataclasses import asdict

    from apq_deploy.profiling import describe_audit
    from exporters.audit import audit as inspect

    report = inspect(model)
    show(asdict(report), describe_audit(report), as_json)
    if report.false_claims:
        raise typer.Exit(1)


def profile(
    model: ModelFile,
    hardware: HardwareOption = "bitfusion",
    table: Annotated[Path | None, typer.Option(help="Cost table to use in place of --hardware.")] = None,
    bits: Annotated[int | None, typer.Option(min=1, max=16, help="Bits of every layer, for a file in float.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the layers to this CSV file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Profile a model on a hardware model or a table: ms, mJ, MACs, BitOps and bits per layer, and what bounds it."""
    from apq_deploy.files import check_output
    from apq_deploy.profiling import describe_profile, profile_model, write_csv

    if csv is not None:
        check_output(csv, model, *([hardware] if Path(hardware).suffix else []), *([table] if table else []))
    found = profile_model(model, hardware, bits, table)
    if csv is not None:
        write_csv(found, csv)
    show(found, describe_profile(found), as_json)
