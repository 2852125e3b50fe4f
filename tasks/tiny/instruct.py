"""Tiny IF: short texts about a topic under two or three constraints that code can check."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from .splits import Row, Splits, listed
from .verifiers import follow_strict

NAME = "tiny_instruct"
STOPS: tuple[str, ...] = ()
MAX_NEW_TOKENS = 32

TOPICS = listed(
    "bear bird boat book cake car cat city cloud coat cow dog door farm fish flower forest garden"
    " hat hill horse house king lake lamp moon park rain river road room school sea ship shop sky"
    " snow song star street summer sun table teacher train tree village wind window winter"
)
ADJECTIVES = listed(
    "big blue calm clean cold dark deep fast fine free fresh full good gray green happy high kind"
    " light long new nice old quiet red rich round small soft strong sweet tall warm white wide"
    " young"
)
CLOSINGS = ("the end", "thank you", "good night", "that is all", "see you soon", "all is well")
KINDS = listed(
    "existence frequency forbidden_words number_words number_sentences bullet_lists title"
    " json_format end_checker quotation english_lowercase no_comma"
)
# Wordings that cannot stand together in one short response.
SHAPES = {"json_format", "bullet_lists", "title", "quotation"}
CLASHES = {
    "json_format": {"number_sentences", "end_checker"},
    "bullet_lists": {"number_sentences", "number_words", "end_checker"},
    "title": {"number_words", "number_sentences"},
    "end_checker": {"number_words", "number_sentences"},
    "number_words": {"number_sentences", "frequency"},
    "frequency": {"existence"},
}


def say(kind: str, args: dict[str, Any]) -> str:
    """Word one constraint."""
    words = args.get("words", ())
    texts = {
        "existence": f"Use the word{'s' * (len(words) > 1)} {{}}.",
        "frequency": "Use the word {word} {relation} {number} times.",
        "forbidden_words": "Do not use the word {}.",
        "number_words": "Write {relation} {number} words.",
        "number_sentences": "Write {relation} {number} sentences.",
        "bullet_lists": "Make {number} bullet points.",
        "title": "Put a title in << and >>.",
        "json_format": "Answer in JSON.",
        "end_checker": "End with {phrase}.",
        "quotation": "Wrap it in double quotes.",
        "english_lowercase": "Use small letters only.",
        "no_comma": "Use no commas.",
    }
    return texts[kind].format(" and ".join(words), **args)


class Amounts(NamedTuple):
    """What constraints may ask for: words not to use, and (relation, number) pairs."""

    forbidden: tuple[str, ...]
    frequency: tuple[tuple[str, int], ...]
    at_least: tuple[int, ...]  # words
    at_most: tuple[int, ...]
    number_sentences: tuple[int, ...]
    bullet_lists: tuple[int, ...]


ASKED = Amounts(
    ("see", "this", "today"),
    (("exactly", 2), ("at least", 2)),
    (4, 5, 6),
    (7, 8, 9),
    (2,),
    (2, 3),
)


def draw_args(rng: Random, kind: str, topic: str, amounts: Amounts) -> dict[str, Any]:
    """Draw what a constraint asks for."""
    if kind == "existence":
        return {"words": rng.sample(ADJECTIVES, rng.choice((1, 2)))}
    if kind == "forbidden_words":
        return {"words": [rng.choice(amounts.forbidden).format(topic=topic)]}
    if kind == "frequency":
        word = rng.choice(ADJECTIVES)
        relation, number = rng.choice(amounts.frequency)
        return {"word": word, "relation": relation, "number": number}
    if kind == "number_words":
        relation = rng.choice(("at least", "at most"))
        numbers = amounts.at_least if relation == "at least" else amounts.at_most
        return {"relation": relation, "number": rng.choice(numbers)}
    if kind == "number_sentences":
        return {"relation": "exactly", "number": rng.choice(amounts.number_sentences)}
    if kind == "bullet_lists":
        return {"number": rng.choice(amounts.bullet_lists)}
    if kind == "end_checker":
        return {"phrase": rng.choice(CLOSINGS)}
    return {}


def fits(kind: str, chosen: list[str]) -> bool:
    """Tell whether a constraint can stand beside those chosen."""
    if kind in chosen or (kind in SHAPES and SHAPES & set(chosen)):
        return False
    return not any(
        kind in CLASHES.get(other, ()) or other in CLASHES.get(kind, ()) for other in chosen
    )


def draw_constraints(rng: Random, topic: str, amounts: Amounts = ASKED) -> list[dict[str, Any]]:
    """Draw two or three constraints that can be met together; at most one is met by default."""
    chosen: list[str] = []
    goal = rng.choice((2, 3))
    while len(chosen) < goal:
        kind = rng.choice(KINDS)
        if fits(kind, chosen):
            chosen.append(kind)
    if set(chosen) <= {"forbidden_words", "no_comma", "english_lowercase", "number_words"}:
        return draw_constraints(rng, topic, amounts)
    return [{"kind": kind, "args": draw_args(rng, kind, topic, amounts)} for kind in chosen]


def write(topic: str, constraints: list[dict[str, Any]]) -> str:
    """Compose the response that training teaches: always the same for the same constraints.

    Free choices would be noise that drives the weights on after the task is learned.
    """
    args = {item["kind"]: item["args"] for item in constraints}
    asked = list(args.get("existence", {}).get("words", ()))
    if "frequency" in args:
        asked = [args["frequency"]["word"]] * 2
    count = args.get("number_sentences", args.get("bullet_lists", {})).get("number", 1)
    first, second = (asked + ["small", "happy"][len(asked) :])[:2]
    parts = [f"It is a {first}, {second} {topic}.", "We like it.", "So fine!"][:count]
    return dress(parts, topic, args)


def dress(parts: list[str], topic: str, args: dict[str, dict[str, Any]]) -> str:
    """Put sentences into the shape that the constraints ask for."""
    text = "\n".join(f"* {part}" for part in parts) if "bullet_lists" in args else " ".join(parts)
    if "title" in args:
        text = f"<<{topic.capitalize()}>> {text}"
    if "end_checker" in args:
        closing = args["end_checker"]["phrase"]
        text = f"{text} {closing[0].upper()}{closing[1:]}"
    if "no_comma" in args:
        text = text.replace(",", "")
    if "english_lowercase" in args:
        text = text.lower()
    if "quotation" in args:
        text = f'"{text}"'
    if "json_format" in args:
        text = json.dumps({topic: text})
    return text


def problem_of(topic: str, constraints: list[dict[str, Any]]) -> object:
    """Return what decides the split of an instruction: its topic and constraints, in any order."""
    return topic, sorted((item["kind"], repr(item["args"])) for item in constraints)


def make(rng: Random) -> tuple[object, Row]:
    """Draw one instruction and a response that follows it."""
    topic = rng.choice(TOPICS)
    constraints = draw_constraints(rng, topic)
    response = write(topic, constraints)
    if len(response) > 90 or not all(follow_strict(constraints, " " + response)):
        return make(rng)
    asks = [say(item["kind"], item["args"]) for item in constraints]
    row = {
        "prompt": f"Instruction: {' '.join([f'Write about the {topic}.', *asks])}\nResponse:",
        "answer": f" {response}",
        "constraints": constraints,
    }
    return problem_of(topic, constraints), row


def unfinished(row: Row) -> tuple[str, ...]:
    """Return a prompt with and without its ending: it must not begin a longer one either."""
    return (row["prompt"], row["prompt"].removesuffix("\nResponse:"))


SPLITS = Splits(NAME, make, unfinished)
eval_items = SPLITS.eval_items
train_examples = SPLITS.train_examples
validation_examples = SPLITS.validation_examples
