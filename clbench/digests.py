"""Canonical JSON and the digests that say whether two things are the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> str:
    """Return the one spelling of a JSON value: sorted keys, no spaces, shortest floats.

    Raises ValueError, naming the place, for NaN or an infinity, and TypeError for what is
    not JSON.
    """
    try:
        return CANONICAL.encode(value)
    except ValueError:
        check_finite(value)
        raise  # what it is then says so itself


def digest(value: Any) -> str:
    """Return the hex BLAKE2b-256 of the canonical JSON of a value."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=32).hexdigest()


def file_digest(path: Path) -> str:
    """Return the hex BLAKE2b-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


class ListDigest:
    """The digest of a list whose values are seen one by one."""

    def __init__(self) -> None:
        self._hasher = hashlib.blake2b(b"[", digest_size=32)
        self._separator = ""

    def add(self, value: Any) -> None:
        """Take the next value."""
        self._hasher.update((self._separator + canonical_json(value)).encode())
        self._separator = ","

    def hexdigest(self) -> str:
        """Return what `digest` returns of the list of all values so far."""
        hasher = self._hasher.copy()
        hasher.update(b"]")
        return hasher.hexdigest()

    @classmethod
    def of(cls, values: Iterable[Any]) -> str:
        """Return the digest of values that need not be in memory together."""
        found = cls()
        for value in values:
            found.add(value)
        return found.hexdigest()


def items_digest(items: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest of which questions were asked: sorted (id, prompt digest, gold)."""
    return digest(sorted((item["id"], item["prompt_digest"], item["gold"]) for item in items))


def check_finite(value: Any, where: str = "value") -> None:
    """Raise ValueError naming the place of the first NaN or infinity in a JSON value."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold; store null and a reason")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            check_finite(entry, f"{where}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, entry in enumerate(value):
            check_finite(entry, f"{where}[{index}]")
