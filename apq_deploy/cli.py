"""The command line: turns what users can mend, and interrupts, into one line and an exit code.

Nothing is imported here that takes time, so that an interrupt is understood from the first moment.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

SIGNALLED = 128
"""Added to a signal's number in the exit code of a command that it ended: 130 for an interrupt, 143 for SIGTERM."""


class Interrupted(KeyboardInterrupt):
    """Not KeyboardInterrupt itself: after one that passed through `exec`, Python ends by SIGINT, whatever the code."""


def main() -> None:
    """Run the command line; every user's mistake is one line on stderr, and so is an interrupt."""
    # Threads of torch that wait for each other should not take the processor from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    received: list[int] = []
    code, words = 0, ""

    def stop(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process at once
        raise Interrupted

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    try:
        code, words = _run()
    except BaseException:
        if not received:
            raise
    if received:
        # whatever became of the exception on its way through other libraries
        code = SIGNALLED + received[0]
        words = "interrupted; what was finished is kept, the same command goes on from there"
    if words:
        print(words, file=sys.stderr)
    sys.exit(code)


def _run() -> tuple[int, str]:
    """The exit code of the command that was called, and the line that says what the user can mend."""
    import typer

    from apq_deploy.commands.root import app

    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
        return code, ""
    except typer.TyperException as error:
        return 2, f"error: {error.format_message()} (see `apq-deploy --help`)"
    except ValueError as error:
        if not _is_users(error):
            raise
        from apq_deploy.errors import BudgetError

        return 1 if isinstance(error, BudgetError) else 2, f"error: {error}"
    except OSError as error:
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the rest is tried again at the end
        return 2, f"error: {error.filename or 'cannot print the result'}: {error.strerror or error}"
    except MemoryError:
        return 2, "error: out of memory; give the command more, or a smaller input"


def _is_users(error: ValueError) -> bool:
    from apq_deploy.errors import UserError
    from exporters.errors import ExportError
    from hwmodels import HardwareError

    return isinstance(error, UserError | ExportError | HardwareError)


if __name__ == "__main__":
    main()
