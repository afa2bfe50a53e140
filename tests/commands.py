"""Commands called one after the other in one process: their exit codes, what they print, and what they leave.

As a script, for a process of other rights or with a disk of its own: reads {"folder", "commands"} as JSON, and writes
what became of each command.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from apq_deploy.cli import main

LARGE = 2**30


@dataclass(frozen=True)
class Done:
    """One command. changed: files that it made, changed or took away."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    changed: tuple[str, ...]

    @property
    def line(self) -> str:
        """The one line on stderr. Raises: AssertionError if there is another number of them."""
        assert self.err.count("\n") == 1, self
        assert len(self.err) < 1100, self
        return self.err.rstrip("\n")


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder by its hash; of those that are gigabytes of nothing, or unreadable, the size."""
    found = {}
    for path in sorted(folder.rglob("*")):
        size = path.stat().st_size
        if path.is_dir():
            found[str(path.relative_to(folder))] = "folder"
        elif size >= LARGE or not os.access(path, os.R_OK):
            found[str(path.relative_to(folder))] = str(size)
        else:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def call_here(folder: Path, *arguments: str) -> Done:
    """What becomes of a command that is called in `folder`, within this process."""
    before = tree(folder)
    out, err = io.StringIO(), io.StringIO()
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["apq-deploy", *arguments]),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
    after = tree(folder)
    changed = tuple(name for name in sorted(before.keys() | after) if before.get(name) != after.get(name))
    return Done(arguments, code, out.getvalue(), err.getvalue(), changed)


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump([asdict(call_here(Path(request["folder"]), *each)) for each in request["commands"]], sys.stdout)
