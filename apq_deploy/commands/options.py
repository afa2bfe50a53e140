"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SpaceOption = Annotated[str, typer.Option(help="Search space: a preset's name or the path of a TOML file.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="Folder of the trained model [apq-models/SPACE, else the embedded one]."),
]
DataOption = Annotated[
    Path, typer.Option(help="Folder with FashionMNIST/, cifar-10-batches-py/, or train/ and val/ image folders.")
]
DeviceOption = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, cuda:1.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes that measure at the same time.")]
RayOption = Annotated[
    str | None,
    typer.Option(
        help="Address of a Ray cluster that does the work, as 10.0.0.1:6379; `local` starts one here [no Ray]."
    ),
]
RunOption = Annotated[Path, typer.Option("--run", help="Folder that the steps of one deployment share.")]
HardwareOption = Annotated[str, typer.Option(help="Hardware model: a preset's name or the path of a TOML file.")]

DEFAULT_RUN = Path("apq-run")


def show(data: Any, text: str, as_json: bool) -> None:
    """Print a result, for a reader or for a machine."""
    print(json.dumps(data, indent=1) if as_json else text)
