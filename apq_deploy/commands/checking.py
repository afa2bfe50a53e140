"""Command that judges a model file before it is deployed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer


def check(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="ONNX file.")],
    budget: Annotated[Path, typer.Option(help="Gates and their limits, a TOML file; docs/ci.md lists its fields.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Data set's folder, or .npz file with images and labels [the model's sample images]."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="JSON of earlier figures to compare with [the one that the budget names].")
    ] = None,
    write_baseline: Annotated[
        Path | None, typer.Option(help="Write this model's figures as a baseline, if no gate fails.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="GATE", help="Leave a gate out; repeatable.")] = None,
    output_format: Annotated[
        Literal["text", "json", "junit", "github", "markdown"], typer.Option("--format", help="Form of the outcome.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the outcome here, and print it as text.")
    ] = None,
) -> None:
    """Check a model against the gates of a budget file; exit code 1 if one fails."""
    from apq_deploy.check.outputs import WRITERS, append_summary
    from apq_deploy.check.run import run_check
    from apq_deploy.files import atomic

    report = run_check(model, budget, data, baseline, write_baseline, tuple(skip or ()))
    text = WRITERS[output_format](report)
    # shown first: an outcome that cannot be written is still seen
    print(text if output is None else WRITERS["text"](report))
    if output is not None:
        with atomic(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if output_format == "github" and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        append_summary(report, Path(summary))
    if not report.passed:
        raise typer.Exit(1)
