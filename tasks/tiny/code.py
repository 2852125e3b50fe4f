"""Tiny Code: one-line functions from a docstring or a sentence, scored by hidden calls."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from .splits import Row, Splits

NAME = "tiny_code"
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MAX_NEW_TOKENS = 48

FUNCTIONS = ("f", "g", "h")
LETTERS = "abcdeiorst"
WORDS = ("ab", "cat", "no", "red", "sun", "to", "up", "yes")
SAMPLES: dict[str, tuple[Any, ...]] = {
    "x": (0, 1, -3, 5, 8, 13, 24, 55),
    "s": ("Tree", "banana", "stone Cat", "abcde", "Noise", "rabbit", "DIRECTOR"),
    "xs": (
        [3, 1, 2, 8],
        [10, -4, 7, 7],
        [5, 8, 2, 9, 1],
        [6, 6, 2, 6, 3],
        [-1, 12, 4, 0],
        [9, 4, 5, 4, 30],
    ),
}


class Op(NamedTuple):
    """One operation: what it takes and gives (x, s or xs), how it is said, and how it computes."""

    takes: str
    gives: str
    first: str  # wording on the parameter {v}
    then: str  # wording on the result so far
    code: str  # {e} is the expression so far, {a} an argument
    arguments: tuple[Any, ...]
    apply: Callable[..., Any]


SMALL = tuple(range(2, 10))
FEW = (1, 2, 3)

OPS = (
    Op("x", "x", "Add {a} to {v}", "add {a}", "{e} + {a}", SMALL, lambda v, a: v + a),
    Op("x", "x", "Subtract {a} from {v}", "subtract {a}", "{e} - {a}", SMALL, lambda v, a: v - a),
    Op("x", "x", "Multiply {v} by {a}", "multiply by {a}", "{e} * {a}", SMALL, lambda v, a: v * a),
    Op("x", "x", "Divide {v} by {a}", "divide by {a}", "{e} // {a}", SMALL, lambda v, a: v // a),
    Op("x", "x", "Take {v} modulo {a}", "take modulo {a}", "{e} % {a}", SMALL, lambda v, a: v % a),
    Op("x", "x", "Square {v}", "square", "{e} ** 2", (0,), lambda v, a: v**2),
    Op("x", "x", "Negate {v}", "negate", "-{e}", (0,), lambda v, a: -v),
    Op("x", "x", "Raise {v} to at least {a}", "raise to at least {a}", "max({e}, {a})", SMALL,
       lambda v, a: max(v, a)),
    Op("x", "x", "Cap {v} at {a}", "cap at {a}", "min({e}, {a})", SMALL, lambda v, a: min(v, a)),
    Op("x", "s", "Spell {v}", "spell", "str({e})", (0,), lambda v, a: str(v)),
    Op("s", "s", "Turn {v} around", "turn around", "{e}[::-1]", (0,), lambda v, a: v[::-1]),
    Op("s", "s", "Capitalize {v}", "capitalize", "{e}.upper()", (0,), lambda v, a: v.upper()),
    Op("s", "s", "Lower {v}", "lower", "{e}.lower()", (0,), lambda v, a: v.lower()),
    Op("s", "s", "Repeat {v} {a} times", "repeat {a} times", "{e} * {a}", (2, 3, 4),
       lambda v, a: v * a),
    Op("s", "s", "Append '{a}' to {v}", "append '{a}'", "{e} + '{a}'", WORDS, lambda v, a: v + a),
    Op("s", "s", "Prepend '{a}' to {v}", "prepend '{a}'", "'{a}' + {e}", WORDS, lambda v, a: a + v),
    Op("s", "s", "Keep the first {a} of {v}", "keep the first {a}", "{e}[:{a}]", FEW,
       lambda v, a: v[:a]),
    Op("s", "s", "Drop the first {a} of {v}", "drop the first {a}", "{e}[{a}:]", FEW,
       lambda v, a: v[a:]),
    Op("s", "x", "Measure {v}", "measure", "len({e})", (0,), lambda v, a: len(v)),
    Op("s", "x", "Count '{a}' in {v}", "count '{a}'", "{e}.count('{a}')", tuple(LETTERS),
       lambda v, a: v.count(a)),
    Op("xs", "xs", "Sort {v}", "sort", "sorted({e})", (0,), lambda v, a: sorted(v)),
    Op("xs", "xs", "Turn {v} around", "turn around", "{e}[::-1]", (0,), lambda v, a: v[::-1]),
    Op("xs", "xs", "Keep the first {a} of {v}", "keep the first {a}", "{e}[:{a}]", FEW,
       lambda v, a: v[:a]),
    Op("xs", "xs", "Drop the first {a} of {v}", "drop the first {a}", "{e}[{a}:]", FEW,
       lambda v, a: v[a:]),
    Op("xs", "xs", "Append {a} to {v}", "append {a}", "{e} + [{a}]", SMALL, lambda v, a: [*v, a]),
    Op("xs", "x", "Sum {v}", "sum", "sum({e})", (0,), lambda v, a: sum(v)),
    Op("xs", "x", "Find the largest of {v}", "find the largest", "max({e})", (0,),
       lambda v, a: max(v)),
    Op("xs", "x", "Find the smallest of {v}", "find the smallest", "min({e})", (0,),
       lambda v, a: min(v)),
    Op("xs", "x", "Measure {v}", "measure", "len({e})", (0,), lambda v, a: len(v)),
    Op("xs", "x", "Count {a} in {v}", "count {a}", "{e}.count({a})", SMALL,
       lambda v, a: v.count(a)),
)  # fmt: skip


def expression(steps: list[tuple[Op, Any]], name: str) -> str:
    """Write the steps as one Python expression of `name`, with the parentheses it needs."""
    text, is_operation = name, False
    for op, argument in steps:
        in_call = "({e}" in op.code
        text = op.code.format(e=f"({text})" if is_operation and not in_call else text, a=argument)
        is_operation = op.code.startswith(("{e} ", "-", "'"))
    return text


def say(steps: list[tuple[Op, Any]], name: str) -> str:
    """Word the steps as one instruction about `name`."""
    said = [steps[0][0].first.format(v=name, a=steps[0][1])]
    return ", then ".join([*said, *(op.then.format(a=argument) for op, argument in steps[1:])])


def draw_steps(rng: Random, takes: str) -> list[tuple[Op, Any]]:
    """Draw one or two operations whose result is not the same for every sample."""
    while True:
        steps: list[tuple[Op, Any]] = []
        kind = takes
        for _ in range(rng.choice((1, 2, 2, 2))):
            op = rng.choice([op for op in OPS if op.takes == kind])
            steps.append((op, rng.choice(op.arguments)))
            kind = op.gives
        if len({repr(compute(steps, value)) for value in SAMPLES[takes]}) > 1:
            return steps


def make(rng: Random) -> tuple[object, Row]:
    """Draw a function and one of the two prompt styles."""
    takes = rng.choice(("x", "s", "xs"))
    steps = draw_steps(rng, takes)
    name = rng.choice(FUNCTIONS)
    task = say(steps, takes)
    body = f"    return {expression(steps, takes)}\n"
    head = f"def {name}({takes}):\n"
    if rng.random() < 0.5:
        style, prompt, answer = "docstring", f'{head}    """{task}."""\n', body
    else:
        sentence = task[0].lower() + task[1:]
        style = "sentence"
        prompt, answer = f"Write a function {name}({takes}) to {sentence}.\n", head + body
    row = {
        "prompt": prompt,
        "answer": answer,
        "style": style,
        "entry_point": name,
        "prefix": prompt if style == "docstring" else "",
        "cases": [[[value], compute(steps, value)] for value in SAMPLES[takes]],
    }
    return (takes, tuple((op.code, argument) for op, argument in steps)), row


def compute(steps: list[tuple[Op, Any]], value: Any) -> Any:
    """Apply the steps to `value`."""
    for op, argument in steps:
        value = op.apply(value, argument)
    return value


SPLITS = Splits(NAME, make)
eval_items = SPLITS.eval_items
train_examples = SPLITS.train_examples
validation_examples = SPLITS.validation_examples


def program(row: Row, completion: str) -> str:
    """Put the program together that the hidden calls run."""
    return str(row["prefix"]) + completion


def emptied(row: Row) -> str:
    """Return a completion whose body does nothing: it must fail."""
    return str(row["answer"]).split("    return")[0] + "    pass\n"
