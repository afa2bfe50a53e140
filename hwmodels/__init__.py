"""Hardware models: what a convolution costs, by layer and bit widths. Knows no network; needs NumPy only."""

from __future__ import annotations

from hwmodels.bitfusion import BitFusion
from hwmodels.compare import Coverage, ErrorStatistics, TableComparison, compare_tables, coverage, error_statistics
from hwmodels.cost import Cost, LoopNest
from hwmodels.errors import HardwareError, MissingEntry, TableError
from hwmodels.hardware import Entry, Hardware, description_sha256
from hwmodels.layers import ConvLayer, Precision
from hwmodels.measured import MeasuredDevice, MeasuredTable, TimingPlan, interpolate_missing, measured_table
from hwmodels.measurements_file import ImportedTable, import_measurements
from hwmodels.registry import hardware_template, hardware_text, list_hardware, load_hardware
from hwmodels.table import CostArrays, CostTable, build_table

__all__ = [
    "BitFusion",
    "ConvLayer",
    "Cost",
    "CostArrays",
    "CostTable",
    "Coverage",
    "Entry",
    "ErrorStatistics",
    "Hardware",
    "HardwareError",
    "ImportedTable",
    "LoopNest",
    "MeasuredDevice",
    "MeasuredTable",
    "MissingEntry",
    "Precision",
    "TableComparison",
    "TableError",
    "TimingPlan",
    "build_table",
    "compare_tables",
    "coverage",
    "description_sha256",
    "error_statistics",
    "hardware_template",
    "hardware_text",
    "import_measurements",
    "interpolate_missing",
    "list_hardware",
    "load_hardware",
    "measured_table",
]
