"""What guards refuse: fields out of range, and what they look for in an adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from clbench.errors import UserError
from clbench.strategy import Strategy


def check_number(part: Strategy, field: str, allowed: Callable[[float], bool], words: str) -> None:
    """Raise UserError unless a field is a finite number that is `allowed`, as `words` has it."""
    value = getattr(part, field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and allowed(value)):
        raise UserError(f"{part.name()}: {field} {value!r} is not {words}")


def check_strength(part: Strategy) -> None:
    """Raise UserError unless the `strength` of a penalty is a number from 0 up."""
    check_number(part, "strength", lambda value: value >= 0, "a number from 0 up")


def check_count(part: Strategy, field: str) -> None:
    """Raise UserError unless a field is a positive integer."""
    value = getattr(part, field)
    if type(value) is not int or value < 1:
        raise UserError(f"{part.name()}: {field} {value!r} is not a positive integer")


def check_choice(part: Strategy, field: str, *choices: str) -> None:
    """Raise UserError unless a field is one of the choices."""
    value = getattr(part, field)
    if value not in choices:
        raise UserError(
            f"{part.name()}: {field} {value!r} is unknown; choices: {', '.join(choices)}"
        )


def carries(others: Sequence[Strategy]) -> Strategy | None:
    """Return the adapter among the parts if its factors live on for the whole stream."""
    return next((o for o in others if getattr(o, "between_tasks", None) == "carry"), None)
