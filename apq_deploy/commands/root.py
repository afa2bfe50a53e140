"""The command `apq-deploy` itself: gathers the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from apq_deploy import __version__
from apq_deploy.commands import checking, exporting, hardware, learning, searching

app = typer.Typer(name="apq-deploy", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """From a once-for-all supernet to a compiled, mixed-precision network on given hardware."""
    if version:
        print(f"apq-deploy {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (
    searching.search,
    searching.pick,
    exporting.export,
    exporting.audit,
    exporting.report,
    checking.check,
    exporting.profile,
    learning.train,
    learning.collect,
    learning.fit,
    learning.refine,
):
    app.command()(command)
app.command("compile")(exporting.compile_library)
app.add_typer(hardware.hardware_app, name="hardware")
app.add_typer(hardware.lut_app, name="lut")
