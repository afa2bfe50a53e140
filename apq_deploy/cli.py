"""The command line: gathers the commands, and turns what users can mend into one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from apq_deploy import __version__
from apq_deploy.commands import checking, exporting, hardware, learning, searching
from apq_deploy.errors import BudgetError, UserError

app = typer.Typer(name="apq-deploy", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
INTERRUPTED = 130


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
):
    app.command()(command)
app.command("compile")(exporting.compile_library)
app.add_typer(hardware.hardware_app, name="hardware")
app.add_typer(hardware.lut_app, name="lut")


def main() -> None:
    """Run the command line; every user's mistake is one line on stderr."""
    # Threads of torch that wait for each other should not take the processor from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code = app(standalone_mode=False) or 0
    except typer.Abort:
        code = INTERRUPTED
    except typer.TyperException as error:
        print(f"error: {error.format_message()} (see `apq-deploy --help`)", file=sys.stderr)
        sys.exit(2)
    except ValueError as error:
        if not _is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, BudgetError) else 2)
    if code == INTERRUPTED:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
    sys.exit(code)


def _is_users(error: ValueError) -> bool:
    from exporters.errors import ExportError
    from hwmodels import HardwareError

    return isinstance(error, UserError | ExportError | HardwareError)


if __name__ == "__main__":
    main()
