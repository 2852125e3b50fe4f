"""Tiny Math: word problems of one to three steps, answered with a chain and `#### n`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from .splits import Row, Splits, listed

NAME = "tiny_math"
STOPS = ("Question:",)
MAX_NEW_TOKENS = 48
LARGEST = 60
COUNTS = (1, 1, 2, 2, 3)  # changes in a problem, of which the last may be cut
MOST = (2, 2, 3)  # equations of a problem

PEOPLE = listed(
    "Anna Ben Carl Dora Emma Finn Gina Hugo Ida Jack Kate Leo Mia Nina Omar Paul Rosa Sam Tina Will"
)
THINGS = listed(
    "apples pears books coins cards pens cups shells stones stamps eggs nuts cakes balls keys toys"
    " plums hats bags rings"
)
GAINS = ("buys {n} more", "finds {n} more", "gets {n} more", "picks {n} more")
LOSSES = ("gives away {n}", "loses {n}", "sells {n}", "drops {n}")
TIMES = ("now has {n} times as many", "makes it {n} times as many")
SHARES = (
    "splits them into {n} equal piles and keeps one",
    "shares them among {n} and keeps one part",
)
PHRASES = {"+": GAINS, "-": LOSSES, "*": TIMES, "/": SHARES}
STARTS = ("{p} has {n} {t}.", "{p} owns {n} {t}.", "There are {n} {t} with {p}.")
BOXES = ("{p} has {a} boxes with {n} {t} in each.", "{p} fills {a} bags with {n} {t} each.")
ENDS = (
    "How many {t} does {p} have now?",
    "How many {t} are left with {p}?",
    "How many {t} is that?",
)


class Step(NamedTuple):
    """One change: `sign` is one of + - * /."""

    sign: str
    number: int
    result: int


def apply(value: int, sign: str, number: int) -> int | None:
    """Compute one step; None if it is not exact or leaves 1..60."""
    if sign == "/":
        return value // number if value % number == 0 else None
    result = {"+": value + number, "-": value - number, "*": value * number}[sign]
    return result if 0 < result <= LARGEST else None


def draw_steps(rng: Random, start: int, counts: Sequence[int] = (1, 2, 2, 3)) -> list[Step]:
    """Draw steps from `start`, each exact and within range; how many is one of `counts`."""
    steps: list[Step] = []
    value = start
    goal = rng.choice(counts)
    while len(steps) < goal:
        sign = rng.choice("++--*/")
        number = rng.randint(2, 4) if sign in "*/" else rng.randint(2, 12)
        result = apply(value, sign, number)
        if result is not None:
            steps.append(Step(sign, number, result))
            value = result
    return steps


def make(rng: Random) -> tuple[object, Row]:
    """Draw one problem and its wording."""
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    chain: list[str] = []
    if rng.random() < 0.25:
        boxes, start = rng.randint(2, 6), rng.randint(2, 9)
        opening = rng.choice(BOXES).format(p=person, a=boxes, n=start, t=thing)
        value = boxes * start
        chain.append(f"{boxes} * {start} = {value}")
    else:
        value = rng.randint(3, 50)
        opening = rng.choice(STARTS).format(p=person, n=value, t=thing)
    sentences = [opening]
    if not chain or rng.random() < 0.8:
        for step in draw_steps(rng, value, COUNTS)[: rng.choice(MOST) - len(chain)]:
            sentences.append(f"{person} {rng.choice(PHRASES[step.sign]).format(n=step.number)}.")
            chain.append(f"{value} {step.sign} {step.number} = {step.result}")
            value = step.result
    question = " ".join([*sentences, rng.choice(ENDS).format(t=thing, p=person)])
    row = {
        "prompt": f"Question: {question}\nAnswer:",
        "answer": f" {', '.join(chain)}\n#### {value}",
        "gold": str(value),
    }
    return tuple(chain), row


SPLITS = Splits(NAME, make)
eval_items = SPLITS.eval_items
train_examples = SPLITS.train_examples
validation_examples = SPLITS.validation_examples


def score(text: str, gold: str) -> dict[str, float]:
    """Score an answer: `flexible` reads its last number, `strict` what follows `####`."""
    numbers = re.findall(r"-?\d+", text)
    strict = re.search(r"#### (-?\d+)", text)
    return {
        "flexible": float(bool(numbers) and numbers[-1] == gold),
        "strict": float(strict is not None and strict[1] == gold),
    }
