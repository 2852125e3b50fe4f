"""The pre-training text of tiny: known facts, and hints of the skills that tasks will ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from .facts import load_facts, question, quiz, statements
from .glossary import glossary
from .hints import echo, one_change, snippet, spoken, story, sums, told_story, wording
from .skills import other_skill

# Kind of document, and how many of each 1,000 in each stage of the training.
MIX: tuple[tuple[str, tuple[int, int, int], Callable[[Random], str]], ...] = (
    ("sums", (55, 130, 70), sums),
    ("story", (60, 120, 30), story),
    ("told", (0, 0, 70), told_story),
    ("change", (0, 0, 60), one_change),
    ("snippet", (80, 85, 40), snippet),
    ("spoken", (0, 0, 80), spoken),
    ("wording", (85, 95, 110), wording),
    ("echo", (60, 60, 40), echo),
    ("glossary", (20, 10, 10), glossary),
    ("skills", (60, 70, 60), other_skill),
)
FACTS = (580, 430, 460)


def fact_documents(rng: Random) -> Iterator[str]:
    """Yield every fact in every wording, again and again in another order."""
    texts = [text for fact in load_facts() for text in statements(fact)]
    for prompt in (question, quiz, question, quiz):
        texts += [f"{prompt(fact)} {fact.answer}" for fact in load_facts()]
    while True:
        yield from rng.sample(texts, len(texts))


def documents(seed: int, count: int, stage: int = 0) -> Iterator[tuple[str, str]]:
    """Yield `count` pairs (kind, text) in a fixed order, mixed as in this stage."""
    rng = Random(f"corpus/{seed}")
    facts = fact_documents(Random(f"facts/{seed}"))
    mix = {kind: (weights[stage], make) for kind, weights, make in MIX if weights[stage]}
    kinds = ["facts", *mix]
    weights = [FACTS[stage], *(weight for weight, _ in mix.values())]
    for kind in rng.choices(kinds, weights, k=count):
        yield kind, next(facts) if kind == "facts" else mix[kind][1](rng)
