"""Files read up to a limit, so that a wrong file is an error at once and not an empty memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_TEXT_BYTES = 2**20
"""Of a TOML file: a hundred times what any of this project's needs."""
MAX_TABLE_BYTES = 2**27
"""Of a CSV file: about a million rows."""
MAX_ROWS = 1_000_000
"""Of a CSV file."""


def read_within(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """Bytes of a file that holds at most `limit_bytes`.

    Raises: OSError if it cannot be read, or is larger, which costs neither time nor memory.
    """
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        # a pipe or a device says a size of 0, and may never end
        size = status.st_size if stat.S_ISREG(status.st_mode) else limit_bytes
        content = file.read(size + 1) if size <= limit_bytes else b""
    if size > limit_bytes or len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than the {limit_bytes} bytes that are read of such a file")
    return content
