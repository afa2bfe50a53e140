"""Files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from exporters.errors import ExportError


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, then rename, so that no half-written file is ever seen.

    Raises: ExportError if the folder does not exist or cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExportError(f"cannot write {target}: {error.strerror}; choose a folder that exists") from error


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Bytes of the file.

    Raises: ExportError if it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
