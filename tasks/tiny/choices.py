"""Tiny multiple choice: conclusions, behavior, true science, and yes or no about a passage."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .skills import CLASSES, LETTERS, NEEDS, NOUNS, OPPOSITE, PEOPLE, PLACES, QUALITIES, SAME
from .splits import Row, Splits, asked, listed

NO_YES = ("no", "yes")
ALIKE = tuple(pair for pair in SAME if pair[0] not in ("begin", "end", "buy"))


def choice(problem: object, prompt: str, question: str, options: Sequence[str], right: str) -> Row:
    """Return the row of a problem; `{}` in the prompt is where the question stands."""
    return {
        "prompt": prompt.format(question),
        "answer": f" {right}",
        "question": question,
        "options": list(options),
        "label": list(options).index(right),
        "cluster": repr(problem),
    }


def listed_choice(rng: Random, problem: object, question: str, options: Sequence[str]) -> Row:
    """Return a row whose prompt lists the options, shuffled; the first one given is right."""
    shuffled = rng.sample(options, len(options))
    lines = [f"\n{letter}. {text}" for letter, text in zip(LETTERS, shuffled, strict=True)]
    question = f"{question}\nChoices:{''.join(lines)}"
    return choice(problem, "{}\nAnswer:", question, shuffled, options[0])


# Conclusions, asked as logiqa is

KINDS = tuple(kind for _, kind in CLASSES)


def logic(rng: Random) -> tuple[object, Row]:
    """Draw a conclusion from a rule and what something is, beside a rule that does not matter."""
    (thing, kind), (other, other_kind) = rng.sample(CLASSES, 2)
    qualities = rng.sample(QUALITIES, 4)
    rule = f"Every {kind} here is {qualities[0]}. A {thing} is a kind of {kind}."
    aside = f"{rng.choice(PEOPLE)} has a {other} in the {rng.choice(PLACES)}."
    passage = f"{rule} {aside}" if rng.random() < 0.5 else f"{aside} {rule}"
    problem = (kind, tuple(qualities), other)
    question = f"Passage: {passage}\nQuestion: The {thing} is what?"
    return problem, listed_choice(rng, problem, question, qualities)


# Behavior, asked as social_iqa is

STATES = tuple(state for state, _ in NEEDS)
ACTS = dict(NEEDS)


def social(rng: Random) -> tuple[object, Row]:
    """Say what one of two persons did next, or how that person was before."""
    who, other = rng.sample(PEOPLE, 2)
    after = rng.random() < 0.5
    told, options = rng.sample(STATES, 3), rng.sample(STATES, 3)
    told = options[0] if after else ACTS[options[0]]
    if after:
        options = [ACTS[state] for state in options]
    aside = f"{other} was in the {rng.choice(PLACES)}."
    asks = f"What did {who} do then?" if after else f"Why did {who} do that?"
    question = (
        f"{aside} {who} {told}. {asks}" if rng.random() < 0.5 else f"{who} {told}. {aside} {asks}"
    )
    problem = (who, other, told, tuple(options))
    return problem, choice(problem, "Q: {}\nA:", question, rng.sample(options, 3), options[0])


# True statements of science, asked as ScienceQA is

MEMBERS = {
    "bird": listed("eagle crow goose owl swan robin"),
    "fish": listed("salmon trout carp tuna cod herring"),
    "insect": listed("ant bee fly wasp moth beetle"),
    "tree": listed("oak pine birch elm maple willow"),
    "flower": listed("rose tulip lily daisy poppy orchid"),
    "metal": listed("gold iron copper tin silver zinc"),
    "planet": listed("Mars Venus Saturn Jupiter Neptune Uranus"),
    "instrument": listed("piano flute drum violin harp trumpet"),
    "vehicle": listed("bus car train ship boat truck"),
}
ASKS = {
    "bird": "has feathers", "fish": "has gills", "insect": "has six legs",
    "tree": "has bark", "flower": "has bright petals", "metal": "is a chemical element",
    "planet": "is larger than the moon", "instrument": "is played by musicians",
    "vehicle": "carries people on the road, on rails or on water",
}  # fmt: skip


def science(rng: Random) -> tuple[object, Row]:
    """Ask which of four things belongs to a class, by its name or by what its members have."""
    kinds = rng.sample(sorted(MEMBERS), 4)
    things = [rng.choice(MEMBERS[kind]) for kind in kinds]
    asks = f"is a kind of {kinds[0]}" if rng.random() < 0.5 else ASKS[kinds[0]]
    problem = (kinds[0], things[0], tuple(sorted(things[1:])))
    question = f"Question: Which of these {asks}?"
    return problem, listed_choice(rng, problem, question, things)


# Yes or no, asked as boolq is


def boolq(rng: Random) -> tuple[object, Row]:
    """Ask whether a passage says something, in other words: the same or the opposite."""
    noun, other = rng.sample(NOUNS, 2)
    verdict = rng.choice(NO_YES)
    said, asks = rng.sample(rng.choice(ALIKE if verdict == "yes" else OPPOSITE), 2)
    aside = f"{rng.choice(PEOPLE)} has a {other} in the {rng.choice(PLACES)}."
    told = f"The {noun} is {said}."
    passage = f"{told} {aside}" if rng.random() < 0.5 else f"{aside} {told}"
    question = f"{passage}\nQuestion: is the {noun} {asks}?"
    problem = (noun, said, asks, aside)
    return problem, choice(problem, "{}\nAnswer:", question, NO_YES, verdict)


LOGIC = Splits("tiny_logic", logic, asked, 4)
SOCIAL = Splits("tiny_social", social, asked, 3)
SCIENCE = Splits("tiny_science", science, asked, 4)
BOOLQ = Splits("tiny_boolq", boolq, asked, 2)
