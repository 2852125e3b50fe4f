"""Check responses against constraints, strictly and loosely, as ifeval does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

Constraint = Mapping[str, Any]  # {"kind": str, "args": {...}}

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def _count(word: str, text: str) -> int:
    """Count `word` as a whole word, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _holds(relation: str, found: int, number: int) -> bool:
    """Compare a count as the instruction asks: at least, at most or exactly."""
    return {"at least": found >= number, "at most": found <= number, "exactly": found == number}[
        relation
    ]


def existence(text: str, words: Sequence[str]) -> bool:
    """Every word occurs."""
    return all(_count(word, text) for word in words)


def frequency(text: str, word: str, relation: str, number: int) -> bool:
    """The word occurs so many times."""
    return _holds(relation, _count(word, text), number)


def forbidden_words(text: str, words: Sequence[str]) -> bool:
    """No word occurs."""
    return not any(_count(word, text) for word in words)


def number_words(text: str, relation: str, number: int) -> bool:
    """The response has so many words."""
    return _holds(relation, len(_WORD.findall(text)), number)


def number_sentences(text: str, relation: str, number: int) -> bool:
    """The response has so many sentences: pieces with a word that end in `.`, `!` or `?`."""
    pieces = re.split(r"[.!?]+", text)[:-1]
    return _holds(relation, sum(1 for piece in pieces if _WORD.search(piece)), number)


def bullet_lists(text: str, number: int) -> bool:
    """The response has exactly so many lines that start with `* ` or `- `."""
    return len(re.findall(r"^\s*[*-] +\S", text, re.MULTILINE)) == number


def title(text: str) -> bool:
    """A title stands in double angle brackets."""
    return re.search(r"<<[^\n<>]*\w[^\n<>]*>>", text) is not None


def json_format(text: str) -> bool:
    """The whole response is a JSON object or list."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) and bool(value)


def end_checker(text: str, phrase: str) -> bool:
    """The response ends in this phrase."""
    return text.strip().strip('"').casefold().endswith(phrase.casefold())


def quotation(text: str) -> bool:
    """The whole response stands in double quotes."""
    inner = text.strip()
    return len(inner) > 2 and inner[0] == inner[-1] == '"'


def english_lowercase(text: str) -> bool:
    """No letter is a capital, and there is a letter."""
    return text.islower()


def no_comma(text: str) -> bool:
    """There is no comma."""
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        existence,
        frequency,
        forbidden_words,
        number_words,
        number_sentences,
        bullet_lists,
        title,
        json_format,
        end_checker,
        quotation,
        english_lowercase,
        no_comma,
    )
}


def follow_strict(constraints: Sequence[Constraint], response: str) -> list[bool]:
    """Judge the response as it is; an empty one follows nothing."""
    if not response.strip():
        return [False] * len(constraints)
    return [CHECKS[item["kind"]](response, **item["args"]) for item in constraints]


def variants(response: str) -> list[str]:
    """Return the eight readings of the loose score: asterisks removed x outer lines dropped."""
    lines = response.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    whole = ["\n".join(cut) if cut is lines else "\n".join(cut).strip() for cut in cuts]
    return [text.replace("*", "") if bare else text for text, bare in product(whole, (False, True))]


def follow_loose(constraints: Sequence[Constraint], response: str) -> list[bool]:
    """Judge each constraint on every variant; one that passes is enough."""
    judged = [follow_strict(constraints, text) for text in variants(response)]
    return [any(column) for column in zip(*judged, strict=True)]
