"""From a once-for-all supernet to a compiled, mixed-precision network on given hardware (APQ, CVPR 2020)."""

from apq_deploy.arch import Arch, Block, BlockBits, Stage
from apq_deploy.errors import BudgetError, UserError
from apq_deploy.space import SearchSpace

__version__ = "0.1.0"
__all__ = ["Arch", "Block", "BlockBits", "BudgetError", "SearchSpace", "Stage", "UserError"]
