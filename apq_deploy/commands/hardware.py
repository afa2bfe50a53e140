"""Commands about hardware models and cost tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apq_deploy.commands.options import JsonOption, RayOption, SpaceOption, show

hardware_app = typer.Typer(help="Hardware models: list, show, or begin a new one.", rich_markup_mode=None)
lut_app = typer.Typer(help="Cost tables: build, import, check against a space, compare.", rich_markup_mode=None)

OutputOption = Annotated[Path, typer.Option("-o", "--output", help="File to write.")]


@hardware_app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the hardware models that can be named."""
    from apq_deploy.text import table
    from hwmodels import HardwareError, list_hardware, load_hardware

    models: dict[str, dict[str, Any]] = {}
    for name in list_hardware():
        try:
            models[name] = dict(load_hardware(name).describe())
        except HardwareError as error:  # one package that is broken takes no other away
            models[name] = {"error": str(error)}
    rows = [(name, settings.get("description") or settings.get("error", "")) for name, settings in models.items()]
    show(models, table(rows, ("name", "description")), as_json)


@hardware_app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="Preset's name or path of a TOML file.")], as_json: JsonOption = False
) -> None:
    """Show a hardware model whole, as the TOML file that it is."""
    from hwmodels import load_hardware
    from hwmodels.registry import hardware_text

    model = load_hardware(name)
    show(dict(model.describe()), hardware_text(model).rstrip(), as_json)


@hardware_app.command("new")
def new_model(file: Annotated[Path, typer.Argument(help="TOML file to write.")]) -> None:
    """Write a commented template of an accelerator."""
    from apq_deploy.errors import UserError
    from apq_deploy.files import atomic
    from hwmodels import hardware_template

    if file.exists():
        raise UserError(f"{file} exists already; choose another name or move it away")
    with atomic(file) as temporary:
        temporary.write_text(hardware_template(), encoding="utf-8")
    print(f"{file}: change the values, then `apq-deploy lut build {file} --space SPACE -o table.csv`")


@lut_app.command("build")
def build(
    hardware: Annotated[
        str, typer.Argument(help="Preset's name, path of a TOML file, or `host`: this machine, timed.")
    ],
    output: OutputOption,
    space: SpaceOption = "fashion",
    subset: Annotated[
        int | None, typer.Option(help="host: time this many layers, spread over the space, and fit the rest.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="host: threads of the compiled code.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="host: counted runs of every layer.")] = 20,
    ray: RayOption = None,
) -> None:
    """Build the cost table of every layer of a space."""
    from apq_deploy.tables import build_model_table

    print(build_model_table(hardware, output, space, subset, threads, repeats, ray))


@lut_app.command("import")
def import_table(
    measurements: Annotated[
        list[Path], typer.Argument(help="CSV files of your measurements, units in the column names.")
    ],
    output: OutputOption,
    space: Annotated[
        str | None, typer.Option(help="Space to report the coverage of, and to fit missing layers of.")
    ] = None,
    fit_missing: Annotated[
        bool, typer.Option(help="Interpolate the layers of the space that were not measured.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the hardware that was measured [the first file's].")] = None,
) -> None:
    """Make a table of measurements taken elsewhere; --fit-missing keeps to the bit widths that were measured."""
    from apq_deploy.tables import import_measured_table

    print(import_measured_table(measurements, output, space, fit_missing, name))


@lut_app.command("check")
def check_table(
    table: Annotated[Path, typer.Argument(help="Table file.")],
    space: SpaceOption = "fashion",
    missing: Annotated[
        Path | None, typer.Option(help="Write the missing layers to this CSV, to fill in their latency and import.")
    ] = None,
) -> None:
    """List what a search of a space would miss in a table; exit code 1 if any layer, energies may be missing."""
    from apq_deploy.tables import coverage

    text, complete = coverage(table, space, missing)
    print(text)
    if not complete:
        raise typer.Exit(1)


@lut_app.command("compare")
def compare(
    predicted: Annotated[Path, typer.Argument(help="Table whose costs are judged.")],
    actual: Annotated[Path, typer.Argument(help="Table taken as the truth.")],
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst entries to list.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Compare two tables: error statistics and the worst entries."""
    from apq_deploy.tables import comparison

    data, text = comparison(predicted, actual, worst)
    show(data, text, as_json)
