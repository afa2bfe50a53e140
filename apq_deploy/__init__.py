"""From a once-for-all supernet to a compiled, mixed-precision network on given hardware (APQ, CVPR 2020)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apq_deploy.arch import Arch, Block, BlockBits, Stage
    from apq_deploy.errors import BudgetError, UserError
    from apq_deploy.space import SearchSpace

__version__ = "0.1.0"
__all__ = ["Arch", "Block", "BlockBits", "BudgetError", "SearchSpace", "Stage", "UserError"]
_HOME = {
    "Arch": "arch",
    "Block": "arch",
    "BlockBits": "arch",
    "BudgetError": "errors",
    "SearchSpace": "space",
    "Stage": "arch",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
