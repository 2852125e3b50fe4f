"""Tiny classification: what a pair of sentences or one text is, as one of a few labels."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .choices import ALIKE, NO_YES, choice
from .skills import BAD, GOOD, NOUNS, OPPOSITE, PEOPLE, PLACES, QUALITIES, WORKS
from .splits import Row, Splits, asked, listed

# Inference, asked as mnli is

VERDICTS = ("True", "Neither", "False")
PROMPTS = {
    "nli": "True, False or Neither?\n{}\nAnswer:",
    "pairs": "Do both sentences mean the same thing?\n{}\nAnswer:",
    "paraphrase": "Do both questions ask the same thing?\n{}\nAnswer:",
    "sentiment": "Is this sentence positive or negative?\n{}\nAnswer:",
    "stars": "What does the writer feel?\n{}\nAnswer:",
    "topic": "{}\nQuestion: What is this news about?\nAnswer:",
    "entities": "{}\nClass:",
    "questions": "Question: {}\nTopic:",
}


def nli(rng: Random) -> tuple[object, Row]:
    """Draw a statement and a claim that says the same, the opposite, or something else."""
    verdict = rng.choice(VERDICTS)
    said, claimed = rng.sample(rng.choice(ALIKE if verdict == "True" else OPPOSITE), 2)
    if verdict == "Neither":
        claimed = f"in the {rng.choice(PLACES)}"
    who = f"The {rng.choice(NOUNS)} of {rng.choice(PEOPLE)} is"
    question = f"{who} {said}.\nQuestion: {who} {claimed}."
    return question, choice(question, PROMPTS["nli"], question, VERDICTS, verdict)


# Pairs, asked as mrpc and qqp are


def two(rng: Random, kind: str, text: str, prompt: str) -> tuple[object, Row]:
    """Draw two sentences that end in words that mean the same, or the opposite."""
    verdict = rng.choice(NO_YES)
    words = rng.sample(rng.choice(ALIKE if verdict == "yes" else OPPOSITE), 2)
    first, second = (text.format(word) for word in words)
    problem = (text, tuple(sorted(words)))
    question = f"{kind} 1: {first}\n{kind} 2: {second}"
    return problem, choice(problem, prompt, question, NO_YES, verdict)


def pairs(rng: Random) -> tuple[object, Row]:
    """Draw two statements about a thing somewhere."""
    text = f"The {rng.choice(NOUNS)} of {rng.choice(PEOPLE)} is {{}}."
    return two(rng, "Sentence", text, PROMPTS["pairs"])


def paraphrase(rng: Random) -> tuple[object, Row]:
    """Draw two questions about a thing."""
    text = rng.choice(("Is the {n} of {p} {{}}?", "Why is the {n} of {p} {{}}?"))
    text = text.format(n=rng.choice(NOUNS), p=rng.choice(PEOPLE))
    return two(rng, "Question", text, PROMPTS["paraphrase"])


# Feelings, asked as sst2 is, and in five steps as in reviews

MOODS = ("negative", "positive")
REMARKS = (
    "the {w} is {a} and {b}",
    "a {a} and {b} {w}",
    "the {w} of {p} is {a}, and the {v} is {b}",
    "{p} says the {w} is {a} and so {b}",
)


def sentiment(rng: Random) -> tuple[object, Row]:
    """Draw a remark about a work; `but` and `although` say which half counts."""
    mood = rng.choice(MOODS)
    good, bad = (GOOD, BAD) if mood == "positive" else (BAD, GOOD)
    work, part = rng.sample(WORKS, 2)
    words = {"w": work, "v": part, "p": rng.choice(PEOPLE), "a": rng.choice(good)}
    form = rng.randrange(5)
    if form < 2:
        text, words["b"] = rng.choice(REMARKS), rng.choice(good)
    elif form == 2:
        text, words["b"] = "the {v} is {b}, but the {w} of {p} is {a}", rng.choice(bad)
    elif form == 3:
        text, words["b"] = "{p} does not say that the {w} is {b}", rng.choice(bad)
    else:
        text, words["b"] = "the {w} of {p} is {a}, although the {v} is {b}", rng.choice(bad)
    text = text.format(**words)
    return text, choice(text, PROMPTS["sentiment"], text, MOODS, mood)


FEELINGS = ("very negative", "negative", "neutral", "positive", "very positive")


GRADED = (
    ("awful", "terrible", "horrible"), ("weak", "dull", "tedious"), ("normal", "usual", "middling"),
    ("nice", "good", "charming"), ("superb", "excellent", "brilliant"),
)  # fmt: skip


def felt(rng: Random, opening: str, aspects: Sequence[str]) -> tuple[object, Row]:
    """Draw a review with one remark, and before or after it the verdict, which is what counts."""
    level = rng.randrange(5)
    near = min(max(level + rng.choice((-1, 0, 1)), 0), 4)
    remark = f"The {rng.choice(aspects)} was {rng.choice(GRADED[near])}."
    verdict = f"In all it was {rng.choice(GRADED[level])}."
    text = " ".join([opening, *rng.sample([remark, verdict], 2)])
    return text, choice(text, PROMPTS["stars"], text, FEELINGS, FEELINGS[level])


def reviews(rng: Random) -> tuple[object, Row]:
    """Draw a review of a place to eat."""
    opening = f"We ate at the {rng.choice(PLACES)} with {rng.choice(PEOPLE)}."
    return felt(rng, opening, listed("bread cake fish water table room street way night"))


def products(rng: Random) -> tuple[object, Row]:
    """Draw a review of something that was bought."""
    thing = rng.choice(listed("lamp coat hat boat car cup book clock bag"))
    opening = f"We bought this {thing} with {rng.choice(PEOPLE)}."
    return felt(rng, opening, listed("color name sound size price box card wood smell"))


# Topics, of news and of questions, and classes of things

NEWS = {
    "world": (
        listed("minister president king government voters"),
        ("signed a treaty", "opened the border", "met the states", "won the vote", "made a law"),
    ),
    "sport": (
        listed("team player coach captain runner"),
        ("won the match", "scored a goal", "lost the race", "played again", "ran the first round"),
    ),
    "business": (
        listed("bank company firm shop seller"),
        ("raised its prices", "sold its shops", "hired workers", "made more money", "bought gold"),
    ),
    "science": (
        listed("lab scientist probe doctor teacher"),
        ("tested a drug", "measured light", "reached a planet", "made an atom", "found a new cell"),
    ),
}
TOPICS = tuple(NEWS)


def topic(rng: Random) -> tuple[object, Row]:
    """Draw news of one topic, told by somebody from another."""
    name, other = rng.sample(TOPICS, 2)
    who, did = rng.choice(NEWS[name][0]), rng.choice(NEWS[name][1])
    teller, place = rng.choice(NEWS[other][0]), rng.choice(PLACES)
    when = rng.choice(("Today", "This night", "This summer", "This winter"))
    text = f"{when} the {rng.choice(QUALITIES)} {who} {did}, says the {teller} in the {place}."
    return text, choice(text, PROMPTS["topic"], text, TOPICS, name)


DESCRIPTIONS = {
    "company": ("firm that makes {t}", "shop that sells {t}", "company that buys {t}"),
    "school": ("school with {q} teachers", "school for {t}", "place to learn about {t}"),
    "artist": ("man who writes about {t}", "singer of {q} songs", "painter of {t}"),
    "athlete": ("runner of the {q} team", "player in the {q} team", "man who won a {q} race"),
    "politician": (
        "president with {q} friends", "minister of the {q} state", "king of a {q} state",
    ),
    "transport": ("{q} ship that carries {t}", "{q} train", "bus with {t}"),
    "building": ("{q} hall with {t}", "museum of {t}", "library with {q} rooms"),
    "nature": ("{q} river", "lake with {q} water", "{q} forest"),
    "village": ("village with {q} houses", "{q} village", "village that sells {t}"),
    "animal": ("{q} dog", "bird that eats {t}", "{q} fish in the water"),
    "plant": ("{q} tree", "flower with {q} leaves", "plant that gives {t}"),
    "album": ("row of {q} songs", "album of {q} songs", "album about {t}"),
    "film": ("{q} film", "film about {t}", "film with a {q} end"),
    "book": ("book about {t}", "{q} novel", "{q} story in a book"),
}  # fmt: skip
CLASSES = tuple(DESCRIPTIONS)
THINGS = listed("apples books coins cards pens cups shells stones eggs nuts cakes toys hats rings")


def entities(rng: Random) -> tuple[object, Row]:
    """Describe something, often beside something else."""
    label, other = rng.sample(CLASSES, 2)
    fill = {"t": rng.choice(THINGS), "q": rng.choice(QUALITIES)}
    kind, beside = (rng.choice(DESCRIPTIONS[name]).format(**fill) for name in (label, other))
    more = "{p} saw it in the {l}." if rng.random() < 0.6 else "{p} saw it, and a {o}."
    more = more.format(p=rng.choice(PEOPLE), l=rng.choice(PLACES), o=beside)
    text = f"This is a {kind}. {more}"
    return text, choice(text, PROMPTS["entities"], text, CLASSES, label)


MATTERS = {
    "society": ("wear a hat in the hall", "thank a friend", "say good night"),
    "science": ("measure light", "find the mass of an atom", "see the moon"),
    "health": ("sleep at night", "get well soon", "find a doctor"),
    "school": ("learn new words", "pass a test", "ask the teacher"),
    "computers": ("save a file", "sort a list in code", "stop a function"),
    "sport": ("win a match", "score a goal", "run fast"),
    "business": ("sell a house", "get money from a bank", "pay workers"),
    "music": ("sing a song", "play the piano", "find that film"),
    "family": ("talk to my father", "be nice to my son", "find a husband"),
    "politics": ("vote for a president", "change a law", "write to the minister"),
}
FIELDS = tuple(MATTERS)
ASKED = (
    "How can {p} {m}?", "{p} wants to know how to {m}.", "Why does {p} {m}?", "Is it hard to {m}?",
    "Where in the {l} can {p} {m}?", "Who can help {p} {m}?",
)  # fmt: skip


def questions(rng: Random) -> tuple[object, Row]:
    """Draw a question about a matter, beside a remark that is about none."""
    label = rng.choice(FIELDS)
    person, place = rng.choice(PEOPLE), rng.choice(PLACES)
    text = rng.choice(ASKED).format(p=person, l=place, m=rng.choice(MATTERS[label]))
    aside = f"{rng.choice(PEOPLE)} is in the {rng.choice(PLACES)}."
    text = f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"
    return text, choice(text, PROMPTS["questions"], text, FIELDS, label)


NLI = Splits("tiny_nli", nli, asked, 3)
PAIRS = Splits("tiny_pairs", pairs, asked, 2)
PARAPHRASE = Splits("tiny_paraphrase", paraphrase, asked, 2)
SENTIMENT = Splits("tiny_sentiment", sentiment, asked, 2)
TOPIC = Splits("tiny_topic", topic, asked, 4)
REVIEWS = Splits("tiny_reviews", reviews, asked, 5)
PRODUCTS = Splits("tiny_products", products, asked, 5)
ENTITIES = Splits("tiny_entities", entities, asked, 14)
QUESTIONS = Splits("tiny_questions", questions, asked, 10)
