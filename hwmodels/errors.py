"""What goes wrong in hwmodels, as types."""

from __future__ import annotations


class HardwareError(ValueError):
    """A hardware description, a layer or a table that the models cannot work with."""


class TableError(HardwareError):
    """A cost table that cannot be read, or does not say what it should."""


class MissingEntry(HardwareError):
    """A layer and precision that a table holds no cost for."""
