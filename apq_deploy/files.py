"""Files that are whole or absent: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from apq_deploy.errors import UserError
from hwmodels.files import MAX_TEXT_BYTES, read_within

MAX_WEIGHTS_BYTES = 2**31
"""Of a safetensors file, or of the images in an .npz file once unpacked."""
MAX_JSON_BYTES = 2**26
"""Of a record: a front of ten thousand networks takes a tenth of it."""
TEMPORARY = ".tmp"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; gone if anything goes wrong.

    Raises: UserError if the file cannot be written.
    """
    # named before it is made, so that an interrupt at any moment finds what to delete
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    except SafetensorError as error:  # how its writer tells of a full disk
        raise UserError(f"cannot write {path}: {error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """`folder` for this process alone, made if it is not there; gone again if it stays empty.

    Where another process has it, wait for that one to end, or else refuse. What a killed process has left half-written
    is deleted. The lock is the folder's own and ends with the process, however that ends.

    Raises: UserError if the folder is in use, or cannot be written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        handle = _lock(folder, wait)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another folder") from None
    try:
        for remains in folder.glob(f".*{TEMPORARY}"):
            remains.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()
        os.close(handle)


def _lock(folder: Path, wait: bool) -> int:
    """The open folder, locked. Raises: UserError if it is in use, OSError if it cannot be made or written."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not os.access(folder, os.W_OK):
                raise PermissionError(0, "no permission to write")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise UserError(
                        f"{folder} is in use by another command; wait until it ends, or use another folder"
                    ) from None
                print(f"waiting for another command to leave {folder}", file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the other command has found nothing to keep and taken the folder away: make it anew


def write_json(path: Path, data: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """The content of a JSON file whose "schema" is `schema`.

    Raises: UserError for a file that is missing, damaged, too large or of another schema.
    """
    text = read_text(path, MAX_JSON_BYTES)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not complete JSON ({error})") from None
    if not isinstance(data, dict) or data.get("schema") != schema:
        came = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: expected schema {schema!r}, got {came!r}")
    return data


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises: UserError for a file that is missing, damaged or too large.
    """
    text = read_text(path, MAX_TEXT_BYTES)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def load_arrays(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """The named arrays of an .npz file; nothing in it is run.

    Raises: UserError for one that is larger than MAX_WEIGHTS_BYTES, packed or not; what NumPy and zipfile raise.
    """
    check_size(path, MAX_WEIGHTS_BYTES)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_WEIGHTS_BYTES:
        raise UserError(f"cannot read {path}: larger than {MAX_WEIGHTS_BYTES} bytes once it is unpacked")
    with np.load(path, allow_pickle=False) as file:
        return [file[name] for name in names]


def sha256(path: Path) -> str:
    """Hash of a file's bytes.

    Raises: UserError for a file that is missing or may not be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def check_size(path: Path, limit_bytes: int) -> None:
    """Raises: UserError for a file that is larger, before any of it is read, or that may not be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if size > limit_bytes:
        raise UserError(f"cannot read {path}: larger than the {limit_bytes} bytes that are read of such a file")


def check_output(output: Path, *inputs: str | Path) -> None:
    """Raises: UserError where `output` is one of the files that are read, by whatever name."""
    for each in inputs:
        with suppress(OSError):
            if output.samefile(each):
                raise UserError(f"{output} is read by this command, and would be replaced; name another file to write")


def read_text(path: Path, limit_bytes: int) -> str:
    """The text of a file of at most `limit_bytes`, without the mark that Excel puts before it.

    Raises: UserError for a file that is missing, larger, or not text in UTF-8.
    """
    try:
        return read_within(path, limit_bytes).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a text file in UTF-8, got other bytes") from None
