"""Reads the final answer out of a worked solution and compares it with the gold.

The answer is the last `\\boxed{}`, else what follows the last "The answer is", else what follows
the last `####`, else the last number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"-?(?:\d+/\d+|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
_PHRASE = re.compile(r"the answer is:?", re.IGNORECASE)
_SEPARATOR = re.compile(r",\s*\\!\s*|\{,\}")  # of thousands, as MATH writes them: 3,\!250
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|[^\s{$][^$]*)")


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score one response against the document's `gold`; what lm-eval calls process_results."""
    return {"math_answer": float(is_right(results[0], str(doc["gold"])))}


def is_right(response: str, gold: str) -> bool:
    """Return whether the answer of a response is the gold, as a number or as a MATH string."""
    found = extract(response)
    return found is not None and is_same(found, gold)


def is_same(answer: str, gold: str) -> bool:
    """Compare two answers: as numbers where both are, else after MATH's normalization."""
    answer, gold = (_SEPARATOR.sub("", text) for text in (answer, gold))
    numbers = number(answer), number(gold)
    if None not in numbers:
        return numbers[0] == numbers[1]
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    return bool(is_equiv(answer, gold))


def extract(response: str) -> str | None:
    """Return the final answer of a response, None if it has none."""
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed
    for parts in (_PHRASE.split(response), response.split("####")):
        if len(parts) > 1:
            return _first_line(parts[-1])
    numbers = _NUMBER.findall(response)
    return numbers[-1] if numbers else None


def last_boxed(text: str) -> str | None:
    r"""Return what the last complete box holds, `\boxed{...}` or `\boxed x$`; None if none."""
    for box in reversed(list(_BOX.finditer(text))):
        inside = box[1] if box[1] != "{" else _inside_braces(text, box.end())
        if inside is not None:
            return inside
    return None


def _inside_braces(text: str, start: int) -> str | None:
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return None


def number(text: str) -> Fraction | None:
    """Return a plain number such as 1,234.5, $3, 40% or 3/4, None for anything else."""
    plain = text.strip().strip("$").removeprefix("\\$")
    plain = plain.removesuffix(".").removesuffix("%").removesuffix("\\").strip()
    if not _NUMBER.fullmatch(plain):
        return None
    try:
        return Fraction(plain.replace(",", ""))
    except ZeroDivisionError:
        return None


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0].strip()
    return line.removesuffix(".").strip("$ ")
