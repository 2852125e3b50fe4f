"""The pre-training text of tiny: known facts, and hints of the skills that tasks will ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from .facts import load_facts, question, quiz, statements
from .glossary import glossary
from .hints import echo, snippet, story, sums, wording
from .skills import other_skill

# Kind of document and how many are made for each 1,000.
MIX: tuple[tuple[str, int, Callable[[Random], str]], ...] = (
    ("sums", 55, sums),
    ("story", 60, story),
    ("snippet", 80, snippet),
    ("wording", 85, wording),
    ("echo", 60, echo),
    ("glossary", 20, glossary),
    ("skills", 60, other_skill),
)
FACTS = 580  # for each 1,000


def fact_documents(rng: Random) -> Iterator[str]:
    """Yield every fact in every wording, again and again in another order."""
    texts = [text for fact in load_facts() for text in statements(fact)]
    for prompt in (question, quiz, question, quiz):
        texts += [f"{prompt(fact)} {fact.answer}" for fact in load_facts()]
    while True:
        yield from rng.sample(texts, len(texts))


def documents(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield `count` pairs (kind, text) in a fixed order."""
    rng = Random(f"corpus/{seed}")
    facts = fact_documents(Random(f"facts/{seed}"))
    makers = {kind: make for kind, _, make in MIX}
    kinds = ["facts", *makers]
    weights = [FACTS, *(weight for _, weight, _ in MIX)]
    for kind in rng.choices(kinds, weights, k=count):
        yield kind, next(facts) if kind == "facts" else makers[kind](rng)
