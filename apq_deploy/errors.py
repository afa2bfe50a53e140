"""What a user can put right: each message says what was expected, what came and what to do."""


class UserError(ValueError):
    """The call or its input is wrong (exit code 2)."""


class BudgetError(UserError):
    """No network of the space meets the budget (exit code 1)."""
