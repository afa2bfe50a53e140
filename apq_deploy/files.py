"""Files that are whole or absent: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apq_deploy.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; gone if anything goes wrong.

    Raises: UserError if the file cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """The content of a JSON file whose "schema" is `schema`.

    Raises: UserError for a file that is missing, damaged or of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not complete JSON ({error})") from None
    if not isinstance(data, dict) or data.get("schema") != schema:
        came = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: expected schema {schema!r}, got {came!r}")
    return data
