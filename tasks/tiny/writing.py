"""Tiny writing: the news of a report in one sentence, and German word for word in English."""

from __future__ import annotations

from random import Random

from .skills import GERMAN, NOUNS, PEOPLE, PLACES, QUALITIES
from .splits import Row, Splits, asked, listed

MAX_NEW_TOKENS = 40

# Summaries, asked as cnn_dailymail is

WHO = (
    "the team", "the player", "the coach", "the bank", "the company", "the firm",
    "the scientists", "the lab", "the minister", "the king", "the teacher", "the doctor",
)  # fmt: skip
DID = listed("praised met hired tested raised opened sold signed measured reached chose saw")
WHAT = (
    "the match", "the workers", "the shops", "a drug", "a planet", "a treaty", "the border",
    "the rates", "a president", "the race", "the light", "the states",
)  # fmt: skip
ASIDES = (
    "{p} heard it in the {l}.",
    "{p} and {o} asked about it.",
    "It was {q} in the {l}.",
    "The {n} was {q}.",
    "{p} had a {q} {n}.",
)


def summary(rng: Random) -> tuple[object, Row]:
    """Draw a report with one piece of news, and where it happened, among asides."""
    news = f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)}"
    place = rng.choice(PLACES)
    asides = []
    for text in rng.sample(ASIDES, 2):
        people, others = rng.sample(PEOPLE, 2), [p for p in PLACES if p != place]
        quality, noun = rng.choice(QUALITIES), rng.choice(NOUNS)
        words = {"p": people[0], "o": people[1], "l": rng.choice(others), "q": quality, "n": noun}
        asides.append(text.format(**words))
    told = [f"Today {news}.", f"This was in the {place}."]
    order = sorted(rng.sample(range(4), 2))
    article = list(asides)
    for at, sentence in zip(order, told, strict=True):
        article.insert(at, sentence)
    gold = f"{news[0].upper()}{news[1:]} in the {place}."
    question = " ".join(article)
    problem = (news, place)
    return problem, {
        "prompt": f"Summarize the following article:\n\n{question}\n\nSummary:",
        "answer": f" {gold}",
        "question": question,
        "gold": gold,
        "cluster": repr(problem),
    }


# Translations, asked as wmt16-de-en is

PATTERNS = (
    "the {a} {n} is {b} and {c}",
    "the {n} is very {b} and the {m} is not {c}",
    "the {a} {n} sees the {b} {m} here",
    "today the {n} sees the {a} {m}",
    "today the {a} {n} is not very {b}",
    "here is the {a} {n} and near is the {b} {m}",
)


def translation(rng: Random) -> tuple[object, Row]:
    """Draw an English sentence of one clause or two and put it, word for word, into German."""
    clauses = []
    for pattern in rng.sample(PATTERNS, rng.choice((1, 2))):
        a, b, c = rng.sample(QUALITIES, 3)
        n, m = rng.sample(NOUNS, 2)
        clauses.append(pattern.format(a=a, b=b, c=c, n=n, m=m))
    gold = " and ".join(clauses)
    german = " ".join(GERMAN[word] for word in gold.split())
    return gold, {
        "prompt": f"German phrase: {german}\nEnglish phrase:",
        "answer": f" {gold}",
        "question": german,
        "gold": gold,
        "cluster": repr(gold),
    }


SUMMARY = Splits("tiny_summary", summary, asked)
TRANSLATE = Splits("tiny_translate", translation, asked)
