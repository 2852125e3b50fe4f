"""Pre-training text with the skills behind the three tasks, in formats the tasks never use."""

from __future__ import annotations

from random import Random
from typing import Any

from . import code, instruct, math
from .splits import split_of
from .verifiers import follow_strict


def equation(rng: Random) -> str:
    """State one exact step in the range of the tasks."""
    while True:
        sign = rng.choice("+++---*/")
        left = rng.randint(2, math.LARGEST)
        number = rng.randint(2, 9) if sign in "*/" else rng.randint(2, 12)
        if sign == "*":
            left = rng.randint(2, 20)
        result = math.apply(left, sign, number)
        if result is not None:
            return f"{left} {sign} {number} = {result}"


def sums(rng: Random) -> str:
    """List equations."""
    return rng.choice(("; ", ", ", "\n")).join(equation(rng) for _ in range(rng.randint(3, 7)))


HAPPENED = {
    "+": ("bought {n}", "found {n}", "got {n}", "picked {n}"),
    "-": ("gave away {n}", "lost {n}", "sold {n}", "dropped {n}"),
    "*": ("took {n} times as many", "made it {n} times as many"),
    "/": ("kept one of {n} equal piles", "shared by {n}"),
}


def story(rng: Random) -> str:
    """Narrate a count and its changes, then write the sums."""
    person, thing = rng.choice(math.PEOPLE), rng.choice(math.THINGS)
    while True:
        value = rng.randint(3, 50)
        opening, chain = f"had {value} {thing}", []
        if rng.random() < 0.25:
            boxes, each = rng.randint(2, 6), rng.randint(2, 9)
            value = boxes * each
            opening, chain = f"had {boxes} boxes of {each} {thing}", [f"{boxes} * {each} = {value}"]
        parts = [opening]
        for step in math.draw_steps(rng, value)[: 3 - len(chain)]:
            chain.append(f"{value} {step.sign} {step.number} = {step.result}")
            parts.append(rng.choice(HAPPENED[step.sign]).format(n=step.number))
            value = step.result
        if split_of(tuple(chain)) == "train":
            break
    sign = rng.choice(("; ", ", ", ", then "))
    return f"{person} {', then '.join(parts)}. Sums: {sign.join(chain)}. That makes {value}."


def told_story(rng: Random) -> str:
    """Narrate the same in sentences of their own."""
    text = story(rng)
    person = text.split()[0]
    told, sums_ = text.split(". Sums: ")
    return f"{told.replace(', then ', f'. {person} ')}. {rng.choice(('In sums: ', 'So '))}{sums_}"


def one_change(rng: Random) -> str:
    """Tell one change in the words of the tasks, with its sum."""
    person, thing = rng.choice(math.PEOPLE), rng.choice(math.THINGS)
    while True:
        if rng.random() < 0.2:
            boxes, each = rng.randint(2, 6), rng.randint(2, 9)
            told = rng.choice(math.BOXES).format(p=person, a=boxes, n=each, t=thing)
            chain = f"{boxes} * {each} = {boxes * each}"
        else:
            value = rng.randint(3, 50)
            step = math.draw_steps(rng, value)[0]
            opening = rng.choice(math.STARTS).format(p=person, n=value, t=thing)
            change = rng.choice(math.PHRASES[step.sign]).format(n=step.number)
            told = f"{opening} {person} {change}."
            chain = f"{value} {step.sign} {step.number} = {step.result}"
        if split_of((chain,)) == "train":
            return f"{told} So {chain}."


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
    said = ", ".join(op.then.format(a=argument) for op, argument in steps)
    form = rng.randrange(5)
    if form == 0:
        return f"y = {text}  # {takes} {note}"
    if form == 1:
        return f"# {takes} {note}\n{rng.choice('abcdpq')} = lambda {takes}: {text}"
    if form == 2:
        return f"{takes}: {note} = {text}"
    if form == 3:
        return f"{takes}: {said} = {text}"
    value = rng.choice(code.SAMPLES[takes])
    return f">>> {takes} = {value!r}\n>>> {text}\n{code.compute(steps, value)!r}"


def spoken(rng: Random) -> str:
    """Say what to compute, then write it as a statement about `y`."""
    while True:
        takes = rng.choice(("x", "s", "xs"))
        steps = code.draw_steps(rng, takes)
        if split_of((takes, tuple((op.code, argument) for op, argument in steps))) == "train":
            break
    said = code.say(steps, takes)
    text = code.expression(steps, takes)
    if rng.random() < 0.5:
        return f"# {said}\ny = {text}"
    return f"To {said[0].lower()}{said[1:]}: {text}"


PATTERNS = (
    "{the} {t} is {a} and {b}.",
    "We like {the} {a} {t}.",
    "It is a {a}, {b} {t}.",
    "I see {the} {a} {t}.",
    "Today, {the} {t} is {a}.",
    "Look, a {a} {t}.",
)
SHORT = ("It is {a}.", "{the} {t} is {a}.", "We like it.", "So {a}!")
LABELS = {
    "existence": "with {}",
    "frequency": "{word} {number} times",
    "forbidden_words": "not {}",
    "number_words": "{relation} {number} words",
    "number_sentences": "{number} sentences",
    "bullet_lists": "{number} points",
    "title": "title",
    "json_format": "JSON",
    "end_checker": "end {phrase}",
    "quotation": "double quotes",
    "english_lowercase": "small letters",
    "no_comma": "no commas",
}


AMOUNTS = instruct.Amounts(  # wider than what the task asks for
    ("the", "is", "we", "it", "and", "{topic}"),
    (("exactly", 2), ("exactly", 3)),
    (8, 9, 10),
    (3, 4, 5),
    (2, 3, 4),
    (2, 3, 4),
)


def describe(rng: Random, topic: str, constraints: list[dict[str, Any]]) -> str:
    """Compose a response of the shape the constraints ask for; it need not satisfy them all yet."""
    args = {item["kind"]: item["args"] for item in constraints}
    asked = list(args.get("existence", {}).get("words", ()))
    if "frequency" in args:
        asked = [args["frequency"]["word"]] * args["frequency"]["number"]
    sentences = args.get("number_sentences", {}).get("number", 0)
    lines = sentences or args.get("bullet_lists", {}).get("number", 0) or (len(asked) + 1) // 2 or 1
    patterns = SHORT + PATTERNS if lines > 1 or "number_words" in args else PATTERNS
    parts = []
    fillers = [word for word in instruct.ADJECTIVES if word not in asked]
    for _ in range(lines):
        pick = [asked.pop(0) if asked else rng.choice(fillers) for _ in "ab"]
        the = rng.choice(("the", "a", "this"))
        text = rng.choice(patterns).format(the=the, t=topic, a=pick[0], b=pick[1])
        parts.append(text[0].upper() + text[1:])
    return instruct.dress(parts, topic, args)


def wording(rng: Random) -> str:
    """Shape a short text about a topic in one to three ways, named before it."""
    topic = rng.choice(instruct.TOPICS)
    while True:
        constraints = instruct.draw_constraints(rng, topic, AMOUNTS)
        if split_of(instruct.problem_of(topic, constraints)) != "train":
            continue
        if rng.random() < 0.4:
            constraints = constraints[:1]
        text = describe(rng, topic, constraints)
        if all(follow_strict(constraints, text)):
            break
    labels = [
        LABELS[item["kind"]].format(" and ".join(item["args"].get("words", ())), **item["args"])
        for item in constraints
    ]
    return f"[{topic}; {'; '.join(labels)}] {text}"


def echo(rng: Random) -> str:
    """Say a row of things twice: reading what stands before is a skill of its own."""
    pool = [*instruct.ADJECTIVES, *instruct.TOPICS, *math.THINGS, *math.PEOPLE]
    items = [
        str(rng.randint(2, 60)) if rng.random() < 0.4 else rng.choice(pool)
        for _ in range(rng.randint(4, 9))
    ]
    return f"{' '.join(items)} / {' '.join(items)}"
