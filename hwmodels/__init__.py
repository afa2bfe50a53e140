"""Hardware models: what a convolution costs, by layer and bit widths. Knows no network; needs NumPy only."""

from __future__ import annotations

from hwmodels.bitfusion import BitFusion
from hwmodels.cost import Cost, LoopNest
from hwmodels.errors import HardwareError, MissingEntry, TableError
from hwmodels.hardware import Entry, Hardware, description_sha256
from hwmodels.layers import ConvLayer, Precision
from hwmodels.registry import hardware_template, list_hardware, load_hardware
from hwmodels.table import CostArrays, CostTable, build_table

__all__ = [
    "BitFusion",
    "ConvLayer",
    "Cost",
    "CostArrays",
    "CostTable",
    "Entry",
    "Hardware",
    "HardwareError",
    "LoopNest",
    "MissingEntry",
    "Precision",
    "TableError",
    "build_table",
    "description_sha256",
    "hardware_template",
    "list_hardware",
    "load_hardware",
]
