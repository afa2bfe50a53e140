"""What a user can put right: each message says what was expected, what came and what to do."""

from hwmodels.errors import one_line


class UserError(ValueError):
    """The call or its input is wrong (exit code 2); the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class BudgetError(UserError):
    """No network of the space meets the budget (exit code 1)."""
