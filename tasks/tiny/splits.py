"""Keep train and eval apart: by a hash of the underlying problem, and by shared word sequences."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

Row = dict[str, Any]

WINDOW = 13  # words in a row that count as shared text
SHORTEST = 6  # shorter probes are templates, not problems


def listed(text: str) -> tuple[str, ...]:
    """Return the words of `text`, for lists that read better as a line."""
    return tuple(text.split())


def split_of(problem: object) -> str:
    """Return "eval", "validation" or "train": decided by the problem alone, not its wording."""
    digest = hashlib.blake2b(repr(problem).encode(), digest_size=2).digest()
    bucket = int.from_bytes(digest, "big") % 100
    return "eval" if bucket < 20 else "validation" if bucket < 30 else "train"


def words(text: str) -> list[str]:
    """Normalize as the leak check does: NFKC, casefold, split at everything not alphanumeric."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def windows(tokens: list[str], size: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of `size` consecutive tokens."""
    return (tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


class SharedText:
    """The word sequences of the eval prompts that no training row may contain."""

    def __init__(self, prompts: Iterable[str]) -> None:
        """Collect windows of 13 words, leaving out those in more than 1 % of the prompts."""
        probes = [words(prompt) for prompt in prompts]
        seen = Counter(w for tokens in probes for w in set(windows(tokens, WINDOW)))
        self.long = {w for w, count in seen.items() if count <= max(1, len(probes) // 100)}
        self.whole: dict[tuple[str, ...], list[list[str]]] = {}
        for tokens in probes:
            if len(tokens) >= SHORTEST:
                self.whole.setdefault(tuple(tokens[:SHORTEST]), []).append(tokens)

    def found_in(self, text: str) -> bool:
        """Tell whether `text` holds a probe, or 13 words of one in a row."""
        tokens = words(text)
        if any(window in self.long for window in windows(tokens, WINDOW)):
            return True
        return any(
            tokens[i : i + len(probe)] == probe
            for i, start in enumerate(windows(tokens, SHORTEST))
            for probe in self.whole.get(start, ())
        )


def draw(
    make: Callable[[Random], tuple[object, Row]],
    split: str,
    count: int,
    seed: int,
    name: str,
    avoid: SharedText | None = None,
    num_labels: int = 1,
) -> list[Row]:
    """Draw `count` rows of distinct problems and prompts that belong to `split`.

    `make` returns (problem, row); rows whose text is in `avoid` are drawn again. Of several
    labels (`row["label"]`) each comes once in every `num_labels` rows.
    """
    rng = Random(f"{name}/{split}/{seed}")
    rows: list[Row] = []
    problems: set[str] = set()
    prompts: set[str] = set()
    while len(rows) < count:
        problem, row = make(rng)
        block = rows[len(rows) - len(rows) % num_labels :]
        if any(row["label"] == other["label"] for other in block):
            continue
        key = repr(problem)
        if key in problems or row["prompt"] in prompts or split_of(problem) != split:
            continue
        if avoid is not None and avoid.found_in(row["prompt"] + row["answer"]):
            continue
        problems.add(key)
        prompts.add(row["prompt"])
        rows.append({"id": f"{name}/{split}/{len(rows):05d}", **row})
    return rows


def whole(row: Row) -> tuple[str, ...]:
    """Return the prompt itself as the only text to keep out of training."""
    return (row["prompt"],)


def asked(row: Row) -> tuple[str, ...]:
    """Return what the template of a prompt is put around, as the text to keep out of training."""
    return (row["question"],)


@dataclass(frozen=True)
class Splits:
    """The rows of one task: fixed ones that are scored, and disjoint ones drawn around them."""

    name: str
    make: Callable[[Random], tuple[object, Row]]
    probes: Callable[[Row], tuple[str, ...]] = whole  # of an eval row; never in training
    num_labels: int = 1

    @cached_property
    def _eval_rows(self) -> list[Row]:
        return draw(self.make, "eval", 200, 0, self.name, None, self.num_labels)

    def eval_items(self) -> list[Row]:
        """Return the 200 fixed rows that are scored."""
        return [dict(row) for row in self._eval_rows]

    def train_examples(self, limit: int = 2000) -> list[Row]:
        """Return `limit` rows of the train split."""
        avoid = SharedText(text for row in self._eval_rows for text in self.probes(row))
        return draw(self.make, "train", limit, 0, self.name, avoid, self.num_labels)

    def validation_examples(self, limit: int = 100) -> list[Row]:
        """Return rows for choosing learning rates: neither trained on nor scored."""
        return draw(self.make, "validation", limit, 0, self.name, None, self.num_labels)
