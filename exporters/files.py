"""Files written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from exporters.errors import ExportError
from hwmodels.files import read_within

MAX_FILE_BYTES = 2**30
"""Of an ONNX file with its side files, and of a compiled library. Protobuf itself ends at 2 GiB."""


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
        raise ExportError(
            f"cannot write {target}: {error.strerror}; choose a folder that exists and has room"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Bytes of the file.

    Raises: ExportError if it cannot be read, or is larger than MAX_FILE_BYTES.
    """
    try:
        return read_within(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ExportError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
