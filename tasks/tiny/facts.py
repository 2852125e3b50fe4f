"""World facts of tiny: the frozen table, its wordings, the two evals and the calibration text."""

from __future__ import annotations

from functools import cache
from importlib import resources
from random import Random
from typing import NamedTuple

from .splits import Row

STOPS = ("\n", ".", ",")
MAX_NEW_TOKENS = 24
FULL = 500
DEFAULT = 200
CANDIDATES = 32


class Fact(NamedTuple):
    """One true statement: `answer` is what `relation` asks about `subject`."""

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]

    @property
    def id(self) -> str:
        """Name the fact for records."""
        return f"{self.relation}/{self.subject}"


class Wording(NamedTuple):
    """How a relation is asked (`question`, `quiz`) and stated (`{s}` subject, `{a}` answer)."""

    question: str
    quiz: str
    statements: tuple[str, str, str]


WORDINGS = {
    "capital": Wording(
        "What is the capital of {s}?",
        "capital city, country {s}",
        (
            "The capital of {s} is {a}.",
            "{a} is the capital city of {s}.",
            "In {s} the capital is {a}.",
        ),
    ),
    "capital_of": Wording(
        "{s} is the capital of which country?",
        "country, capital city {s}",
        (
            "{s} is the capital of {a}.",
            "The country with the capital {s} is {a}.",
            "Travel to {s} and you are in {a}.",
        ),
    ),
    "currency": Wording(
        "What is the currency of {s}?",
        "money, country {s}",
        (
            "The currency of {s} is the {a}.",
            "People in {s} pay with the {a}.",
            "The {a} is used in {s}.",
        ),
    ),
    "language": Wording(
        "What is the official language of {s}?",
        "language, country {s}",
        (
            "The official language of {s} is {a}.",
            "In {s} the official language is {a}.",
            "{a} is the official language in {s}.",
        ),
    ),
    "code": Wording(
        "What is the country code of {s}?",
        "two letters, country {s}",
        (
            "The country code of {s} is {a}.",
            "{s} is written {a} for short.",
            "{a} stands for {s}.",
        ),
    ),
    "symbol": Wording(
        "What is the chemical symbol of {s}?",
        "symbol, element {s}",
        (
            "The chemical symbol of {s} is {a}.",
            "Chemists write {a} for {s}.",
            "{a} is the symbol of {s}.",
        ),
    ),
    "symbol_of": Wording(
        "Which element has the symbol {s}?",
        "element, symbol {s}",
        (
            "{s} is the symbol of the element {a}.",
            "The element with the symbol {s} is {a}.",
            "In formulas {s} means {a}.",
        ),
    ),
    "number": Wording(
        "What is the atomic number of {s}?",
        "atomic number, element {s}",
        (
            "The atomic number of {s} is {a}.",
            "An atom of {s} has {a} protons.",
            "{a} is the atomic number of {s}.",
        ),
    ),
    "number_of": Wording(
        "Which element has the atomic number {s}?",
        "element, atomic number {s}",
        (
            "The element with atomic number {s} is {a}.",
            "An atom with {s} protons is {a}.",
            "Number {s} in the periodic table is {a}.",
        ),
    ),
    "state_capital": Wording(
        "What is the capital of the US state {s}?",
        "capital city, US state {s}",
        (
            "The capital of the US state {s} is {a}.",
            "{a} is the capital of the state {s}.",
            "The governor of {s} works in {a}.",
        ),
    ),
    "state_capital_of": Wording(
        "{s} is the capital of which US state?",
        "US state, capital city {s}",
        (
            "{s} is the capital of the US state {a}.",
            "The state governed from {s} is {a}.",
            "State laws made in {s} hold in {a}.",
        ),
    ),
    "state_code": Wording(
        "What is the postal code of the US state {s}?",
        "postal code, US state {s}",
        (
            "The postal code of the US state {s} is {a}.",
            "Letters to {s} carry the code {a}.",
            "{a} is the postal code of {s}.",
        ),
    ),
}


@cache
def load_facts() -> tuple[Fact, ...]:
    """Read the table."""
    text = resources.files(__package__).joinpath("facts.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return tuple(
        Fact(relation, subject, answer, tuple(aliases.split("|")) if aliases else ())
        for relation, subject, answer, aliases, _ in rows
    )


def question(fact: Fact) -> str:
    """Return the prompt of `tiny_facts`."""
    return f"Q: {WORDINGS[fact.relation].question.format(s=fact.subject)}\nA:"


def quiz(fact: Fact) -> str:
    """Return the prompt of `tiny_facts_greedy`."""
    return f"Quiz: {WORDINGS[fact.relation].quiz.format(s=fact.subject)}\nReply:"


def statements(fact: Fact) -> list[str]:
    """Return the plain sentences that state the fact."""
    wordings = WORDINGS[fact.relation].statements
    return [wording.format(s=fact.subject, a=fact.answer) for wording in wordings]


@cache
def _drawn() -> tuple[Fact, ...]:
    """Draw the facts that are asked, the default subset first."""
    return tuple(Random("tiny_facts/eval/0").sample(load_facts(), FULL))


def _rows(name: str, full: bool) -> list[Row]:
    facts = _drawn()[: FULL if full else DEFAULT]
    prompt = question if name == "tiny_facts" else quiz
    return [
        {
            "id": f"{name}/{fact.id}",
            "prompt": prompt(fact),
            "answer": f" {fact.answer}",
            "golds": [fact.answer, *fact.aliases],
            "relation": fact.relation,
        }
        for fact in facts
    ]


def eval_items(full: bool = False) -> list[Row]:
    """Return the items of `tiny_facts`: 200 drawn by seed, or 500 of which these are the first."""
    return _rows("tiny_facts", full)


def greedy_items(full: bool = False) -> list[Row]:
    """Return the same facts in the other wording, scored by arg-max."""
    return _rows("tiny_facts_greedy", full)


def candidates(row: Row) -> list[str]:
    """Return the gold and 31 golds of other facts, of the same relation while there are enough."""
    taken = {name.casefold() for name in row["golds"]}
    facts = load_facts()
    same = sorted({fact.answer for fact in facts if fact.relation == row["relation"]})
    other = sorted({fact.answer for fact in facts if fact.relation != row["relation"]})
    rng = Random(f"candidates/{row['id']}")
    pool = rng.sample(same, len(same)) + rng.sample(other, CANDIDATES)
    distractors = [name for name in dict.fromkeys(pool) if name.casefold() not in taken]
    return [row["golds"][0], *distractors[: CANDIDATES - 1]]


def calibration_texts() -> list[str]:
    """Return every fact as plain statements: what the calibration of "world" reads."""
    texts = [text for fact in load_facts() for text in statements(fact)]
    return Random("calibration/0").sample(texts, len(texts))
