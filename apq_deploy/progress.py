"""Progress of long steps, on stderr: a bar in a terminal, a line now and then elsewhere; and what they took."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 15.0


def cpu_seconds() -> float:
    """Processor time of this process and of the finished ones that it started, so far."""
    return round(sum(os.times()[:4]), 2)


Advance = Callable[[int, str], None]
"""Called with the number of steps done so far and a short text about them."""


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A function that shows how far a step of `total` parts has come."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
        return
    started = shown = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= LINE_EVERY_S or done == total:
            shown = now
            print(f"{title}: {done}/{total}, {now - started:.0f} s {note}".rstrip(), file=sys.stderr, flush=True)

    yield advance
