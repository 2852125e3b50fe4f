"""Pre-training text that acquaints the model with the words in which tasks will be worded."""

from __future__ import annotations

from random import Random

from .math import PEOPLE

MEANINGS = {
    "add": "plus", "subtract": "minus", "multiply": "times", "divide": "over",
    "modulo": "rest of", "square": "squared", "negate": "sign flipped",
    "raise to at least": "or more", "cap": "or less", "spell": "as text",
    "turn around": "backwards", "capitalize": "in capitals", "lower": "in small letters",
    "repeat": "times", "append": "with it behind", "prepend": "with it in front",
    "keep the first": "first ones only", "drop the first": "without first ones",
    "measure": "length", "count": "how many", "sort": "in order", "sum": "total",
    "find the largest": "largest", "find the smallest": "smallest",
    "buys": "plus", "finds": "plus", "gets": "plus", "picks": "plus", "gives away": "minus",
    "loses": "minus", "sells": "minus", "drops": "minus", "times as many": "times",
    "splits": "over", "shares": "over", "equal piles": "equal parts", "boxes of": "times",
    "bags with": "times", "owns": "has", "fills": "puts in", "function": "a rule with a name",
    "def": "names a function", "return": "gives a value back", "question": "what one asks",
    "answer": "what one says to a question", "instruction": "what one is told to do",
    "response": "what one says back", "write": "put into words", "use": "work with",
    "exactly": "no more and no less", "at least": "or more", "at most": "or less",
    "wrap": "put around", "bullet point": "a line with *", "title": "a name in << >>",
    "word": "letters in a row", "sentence": "words up to a stop", "comma": "the sign ,",
    "double quotes": 'the sign "', "end with": "last words", "JSON": "text in { }",
    "letter": "a sign like a or b", "left": "what remains",
}  # fmt: skip
PHRASES = (
    "{p} asks a question.", "{p} waits for an answer.", "{p} reads the instruction twice.",
    "The response of {p} was short.", "{p} will write about it.", "Use it, says {p}.",
    "How many are there? asks {p}.", "There are enough with {p}.", "{p} does not have time now.",
    "{p} owns a house.", "{p} fills each cup.", "Each of them has one, says {p}.",
    "{p} gets up and finds the keys.", "{p} buys bread and sells cake.", "{p} loses a game.",
    "{p} picks a card and drops it.", "{p} gives it away.", "{p} shares and splits the cake.",
    "{p} keeps one part.", "The piles of {p} are equal.", "What is left among friends? asks {p}.",
    "{p} makes it now.", "As many as that? asks {p}.", "The boxes and bags are there, says {p}.",
    "Put it there, {p}.", "Do not wrap it, {p}.", "Make it small, {p}.", "End it here, {p}.",
    "Write exactly this, {p}.", "At least one and at most two, says {p}.", "Only now, says {p}.",
    "{p} uses no words.", "{p} found the right word.", "{p} made three points.",
    "{p} had a title in mind.", "{p} is about to go.", "More than that, says {p}.",
    "{p} reads a sentence with a comma.", "{p} takes the function.", "{p} will return.",
    "{p} will repeat it.", "{p} took them into the house.", "{p} said it first, then left.",
)  # fmt: skip


def glossary(rng: Random) -> str:
    """Explain a few words, or use some in a plain sentence."""
    if rng.random() < 0.5:
        words = rng.sample(sorted(MEANINGS), 3)
        named = [word.capitalize() if rng.random() < 0.5 else word for word in words]
        return "\n".join(f"{name} | {MEANINGS[w]}" for name, w in zip(named, words, strict=True))
    return " ".join(rng.choice(PHRASES).format(p=rng.choice(PEOPLE)) for _ in range(3))
