"""May another call be paid for? The budget of the local day and the local month.

Amounts are whole millionths of a US dollar: sums of them are exact.
"""

from dataclasses import dataclass
from typing import Literal

Period = Literal["day", "month"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent, in millionths of a US dollar; None: without limit."""

    per_day: int | None = None
    per_month: int | None = None


def micro(usd: float) -> int:
    """Return US dollars as whole millionths."""
    return round(usd * 1_000_000)


def reached(budget: Budget, *, today: int, month: int, price: int) -> Period | None:
    """Tell which budget leaves no room for one more call.

    Args:
        budget: The limits.
        today: Spent today, calls under way and unknown charges included.
        month: Spent this month, likewise.
        price: Of the call.

    Returns:
        The period to wait for, the longer one when both are used up; None when there is room.
    """
    if budget.per_month is not None and month + price > budget.per_month:
        return "month"
    if budget.per_day is not None and today + price > budget.per_day:
        return "day"
    return None
