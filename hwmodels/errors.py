"""What goes wrong in hwmodels, as types."""

from __future__ import annotations

LONGEST = 1000


def one_line(message: str) -> str:
    """The message as one line of at most LONGEST characters that print: it may quote a broken file."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"


class HardwareError(ValueError):
    """A hardware description, a layer or a table that the models cannot work with; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class TableError(HardwareError):
    """A cost table that cannot be read, or does not say what it should."""


class MissingEntry(HardwareError):
    """A layer and precision that a table holds no cost for."""
