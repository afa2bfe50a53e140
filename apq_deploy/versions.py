"""Versions of what a figure was made with, for records."""

from __future__ import annotations

import platform
from importlib import metadata


def versions(*packages: str) -> dict[str, str]:
    """Versions of apq-deploy, of Python, and of the named packages."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in ("apq-deploy", *packages)}
