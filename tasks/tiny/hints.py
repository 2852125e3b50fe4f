"""Pre-training text with the skills behind the three tasks, in formats the tasks never use."""

from __future__ import annotations

import json
from random import Random

from . import code, instruct, math
from .splits import split_of


def equation(rng: Random) -> str:
    """State one exact step with numbers up to 99."""
    while True:
        sign = rng.choice("+++---*/")
        left = rng.randint(2, 99)
        number = rng.randint(2, 9) if sign in "*/" else rng.randint(2, 60)
        if sign == "*":
            left = rng.randint(2, 49)
        result = math.apply(left, sign, number)
        if result is not None:
            return f"{left}{sign}{number}={result}"


def sums(rng: Random) -> str:
    """List equations."""
    return rng.choice(("; ", ", ", "\n")).join(equation(rng) for _ in range(rng.randint(3, 7)))


HAPPENED = {
    "+": ("found {n}", "bought {n}", "was given {n}", "picked up {n}"),
    "-": ("gave {n} away", "lost {n}", "sold {n}", "dropped {n}"),
    "*": ("made {n} times that", "took it times {n}"),
    "/": ("split by {n}", "shared by {n}"),
}


def story(rng: Random) -> str:
    """Narrate a count and its changes, sum by sum."""
    person, thing = rng.choice(math.PEOPLE), rng.choice(math.THINGS)
    while True:
        value = rng.randint(3, 60)
        steps = math.draw_steps(rng, value)
        chain = []
        parts = []
        if rng.random() < 0.25:
            boxes, each = rng.randint(2, 9), rng.randint(2, 9)
            if boxes * each == value:
                chain.append(f"{boxes}*{each}={value}")
        start = value
        for step in steps:
            chain.append(f"{value}{step.sign}{step.number}={step.result}")
            did = rng.choice(HAPPENED[step.sign]).format(n=step.number)
            parts.append(f"{did}: {chain[-1]}")
            value = step.result
        if split_of(tuple(chain)) == "train":
            break
    return f"In the story of {person} {start} {thing} came first; then {'; then '.join(parts)}."


def packs(rng: Random) -> str:
    """Narrate a product."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    thing = rng.choice(math.THINGS)
    return f"{a} packs of {b} {thing} make {a}*{b}={a * b} {thing}."


NOTES = {
    "{e} + {a}": "plus {a}",
    "{e} - {a}": "minus {a}",
    "{e} * {a}": "times {a}",
    "{e} // {a}": "over {a}",
    "{e} % {a}": "rest of {a}",
    "{e} ** 2": "squared",
    "-{e}": "sign flipped",
    "max({e}, {a})": "{a} or more",
    "min({e}, {a})": "{a} or less",
    "str({e})": "as text",
    "{e}[::-1]": "backwards",
    "{e}.upper()": "in capitals",
    "{e}.lower()": "in small letters",
    "{e} + '{a}'": "with {a} behind",
    "'{a}' + {e}": "with {a} in front",
    "{e}[:{a}]": "first {a} only",
    "{e}[{a}:]": "without first {a}",
    "len({e})": "length",
    "{e}.count('{a}')": "how many {a}",
    "{e}.count({a})": "how many {a}",
    "sorted({e})": "in order",
    "{e} + [{a}]": "with {a} behind",
    "sum({e})": "total",
    "max({e})": "largest",
    "min({e})": "smallest",
}


def snippet(rng: Random) -> str:
    """Show an expression: assigned with a note, as a lambda, or at the prompt of an interpreter."""
    while True:
        takes = rng.choice(("x", "s", "xs"))
        steps = code.draw_steps(rng, takes)
        if split_of((takes, tuple((op.code, argument) for op, argument in steps))) == "train":
            break
    text = code.expression(steps, takes)
    note = ", ".join(NOTES[op.code].format(a=argument) for op, argument in steps)
    form = rng.randrange(4)
    if form == 0:
        return f"y = {text}  # {takes} {note}"
    if form == 1:
        return f"# {takes} {note}\n{rng.choice('abcdpq')} = lambda {takes}: {text}"
    if form == 2:
        return f"{takes} {note}: {text}"
    value = rng.choice(code.SAMPLES[takes])
    return f">>> {takes} = {value!r}\n>>> {text}\n{code.compute(steps, value)!r}"


def sentence(rng: Random, topic: str, words: list[str] | None = None) -> str:
    """Say something about a topic, with the given adjectives if any."""
    pick = list(words or [])
    while len(pick) < 2:
        pick.append(rng.choice(instruct.ADJECTIVES))
    patterns = instruct.PATTERNS + (() if words else instruct.SHORT)
    pattern = rng.choice([p for p in patterns if "{b}" in p] if len(words or []) > 1 else patterns)
    the = rng.choice(("the", "a", "this"))
    text = pattern.format(the=the, t=topic, a=pick[0], b=pick[1])
    return text[0].upper() + text[1:]


def wording(rng: Random) -> str:
    """Show one way of shaping a text, under its name."""
    topic = rng.choice(instruct.TOPICS)
    text = sentence(rng, topic)
    form = rng.randrange(12)
    if form == 0:
        return f"small letters | {text} | {text.lower()}"
    if form == 1:
        return f"JSON | {topic} | {json.dumps({topic: text})}"
    if form == 2:
        return f'double quotes | {topic} | "{text}"'
    if form == 3:
        count = rng.randint(2, 4)
        lines = "\n".join(f"* {sentence(rng, topic)}" for _ in range(count))
        return f"{count} bullet points | {topic} |\n{lines}"
    if form == 4:
        return f"title | {topic} | <<{topic.capitalize()}>> {text}"
    if form == 5:
        closing = rng.choice(instruct.CLOSINGS)
        return f"end {closing} | {topic} | {text} {closing.capitalize()}"
    if form == 6:
        asked = rng.sample(instruct.ADJECTIVES, rng.choice((1, 2)))
        return f"words {' '.join(asked)} | {topic} | {sentence(rng, topic, asked)}"
    if form == 7:
        count = rng.randint(2, 4)
        said = " ".join(sentence(rng, topic) for _ in range(count))
        return f"{count} sentences | {topic} | {said}"
    if form == 8:
        word = rng.choice(instruct.ADJECTIVES)
        return f"{word} 2 times | {topic} | {sentence(rng, topic, [word, word])}"
    if form == 9:
        text = sentence(rng, topic)
        return f"no commas | {text} | {text.replace(',', '')}"
    if form == 10:
        return f"short | {topic} | {rng.choice(('It is', 'So'))} {rng.choice(instruct.ADJECTIVES)}."
    return " ".join(sentence(rng, topic) for _ in range(rng.randint(1, 3)))
