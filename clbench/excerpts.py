"""A text as a record keeps it to be looked at: whole, or without its middle, and its digest."""

from __future__ import annotations

from typing import Any

from clbench.digests import digest

MOST_KEPT = 4000  # characters; a prompt with worked examples has some 3,000


def excerpt(text: str) -> dict[str, Any]:
    """Return a text for the record, ready for JSON, with the length and digest of all of it."""
    return {"text": cut(text, MOST_KEPT), "characters": len(text), "digest": digest(text)}


def cut(text: str, most: int) -> str:
    """Return a text of at most some `most` characters: a longer one loses its middle."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [...] {text[-half:]}"
