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


def num_rules(rng: Random) -> int:
    """Draw how many rules a passage has: one can be followed, of several few models find theirs."""
    return rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 2, 3))


def logic(rng: Random) -> tuple[object, Row]:
    """Draw a conclusion from a rule and the kind that a thing is of; some have rules too many."""
    classes, qualities = rng.sample(CLASSES, num_rules(rng)), rng.sample(QUALITIES, 4)
    thing, kind = classes[0]
    rules = [f"Every {kind} here is {q}." for (_, kind), q in zip(classes, qualities, strict=False)]
    person = rng.choice(PEOPLE)
    problem = (tuple(sorted(rules)), kind, person, tuple(sorted(qualities)))
    passage = " ".join([*rng.sample(rules, len(rules)), f"A {thing} is a kind of {kind}."])
    question = f"Passage: {passage}\nQuestion: {person} has a {thing} from here. It is what?"
    return problem, listed_choice(rng, problem, question, qualities)


# Behavior, asked as social_iqa is

STATES = tuple(state for state, _ in NEEDS)
ACTS = dict(NEEDS)


def social(rng: Random) -> tuple[object, Row]:
    """Say what somebody did next, or why; three in ten tell of the other person too."""
    who, other = rng.sample(PEOPLE, 2)
    states = rng.sample(STATES, 3)
    acts = [ACTS[state] for state in states]
    after = rng.random() < 0.5
    told, options = (states, acts) if after else (acts, states)
    aside = f"{other} was in the {rng.choice(PLACES)}."
    if rng.random() < 0.3:
        aside = f"{other} {told[1]}."
    story = f"{who} {told[0]}."
    story = f"{aside} {story}" if rng.random() < 0.5 else f"{story} {aside}"
    question = f"{story} What did {who} do then?" if after else f"{story} Why did {who} do that?"
    return question, choice(question, "Q: {}\nA:", question, rng.sample(options, 3), options[0])


# True statements of science, asked as ScienceQA is

MEMBERS = {
    "bird": listed("eagle crow goose owl swan robin hawk gull duck"),
    "fish": listed("salmon trout carp tuna cod herring eel pike shark"),
    "insect": listed("ant bee fly wasp moth beetle gnat flea cricket"),
    "tree": listed("oak pine birch elm maple willow ash fir beech"),
    "mammal": listed("dog cat horse cow bear goat sheep fox wolf"),
    "mollusc": listed("snail slug clam squid mussel oyster octopus whelk cockle"),
}
HAVE = {
    "bird": "feathers", "fish": "gills", "insect": "six legs", "tree": "a trunk",
    "mammal": "hair", "mollusc": "a mantle",
}  # fmt: skip


def science(rng: Random) -> tuple[object, Row]:
    """Ask what a thing has, which follows from its kind; one hint in ten says more than that."""
    kinds = rng.sample(sorted(MEMBERS), 4)
    thing, person = rng.choice(MEMBERS[kinds[0]]), rng.choice(PEOPLE)
    num_said = 2 if rng.random() < 0.1 else 1
    rules = [f"Every {kind} has {HAVE[kind]}." for kind in kinds[:num_said]]
    hint = " ".join([*rng.sample(rules, len(rules)), f"The {thing} is a kind of {kinds[0]}."])
    options = [HAVE[kind] for kind in kinds]
    problem = (thing, person, tuple(sorted(rules)), tuple(sorted(options)))
    question = f"Hint: {hint}\nQuestion: {person} sees the {thing}. The {thing} has what?"
    return problem, listed_choice(rng, problem, question, options) | {"cluster": thing}


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
