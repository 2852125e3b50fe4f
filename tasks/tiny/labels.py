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
    "nli": "{} True, False or Neither?\nAnswer:",
    "pairs": "{}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
    "paraphrase": "{}\nQuestion: Do both questions ask the same thing?\nAnswer:",
    "sentiment": "{}\nQuestion: Is this sentence positive or negative?\nAnswer:",
    "stars": "{}\nQuestion: What does the writer feel?\nAnswer:",
    "topic": "{}\nQuestion: What is this news about?\nAnswer:",
    "entities": "{}\nClass:",
    "questions": "Question: {}\nTopic:",
}


def nli(rng: Random) -> tuple[object, Row]:
    """Draw a statement and a claim that follows, fails, or stays open."""
    noun, other = rng.sample(NOUNS, 2)
    said, against = rng.sample(rng.choice(OPPOSITE), 2)
    verdict = rng.choice(VERDICTS)
    place = rng.choice(PLACES)
    claims = {"True": (noun, said), "False": (noun, against), "Neither": (other, said)}
    about, quality = claims[verdict]
    text = f"The {noun} in the {place} is {said}."
    problem = (noun, said, about, quality, place)
    question = f"{text}\nQuestion: The {about} is {quality}."
    return problem, choice(problem, PROMPTS["nli"], question, VERDICTS, verdict)


# Pairs, asked as mrpc and qqp are


def pairs(rng: Random) -> tuple[object, Row]:
    """Draw two sentences that differ in one word, for another that means the same or not."""
    noun, other = rng.sample(NOUNS, 2)
    verdict = rng.choice(NO_YES)
    words = rng.sample(rng.choice(ALIKE if verdict == "yes" else OPPOSITE), 2)
    scene = f"sees the {other} in the {rng.choice(PLACES)}"
    question = (
        f"Sentence 1: The {words[0]} {noun} {scene}.\nSentence 2: The {words[1]} {noun} {scene}."
    )
    problem = (noun, tuple(sorted(words)), scene)
    return problem, choice(problem, PROMPTS["pairs"], question, NO_YES, verdict)


ASKING = (
    ("Where is the {n} of {p}?", "In which place is the {n} of {p}?"),
    ("How old is the {n} of {p}?", "What is the age of the {n} of {p}?"),
    ("Who sold the {n} to {p}?", "From whom did {p} buy the {n}?"),
    ("When did {p} see the {n}?", "At what time did {p} see the {n}?"),
    ("Why does {p} like the {n}?", "For what reason does {p} like the {n}?"),
    ("How many {n}s has {p}?", "What number of {n}s has {p}?"),
)


def paraphrase(rng: Random) -> tuple[object, Row]:
    """Draw two questions that ask the same, or one about another person, thing or matter."""
    at, verdict = rng.randrange(len(ASKING)), rng.choice(NO_YES)
    people, nouns = rng.sample(PEOPLE, 2), rng.sample(NOUNS, 2)
    then, person, noun = at, people[0], nouns[0]
    if verdict == "no":
        change = rng.randrange(3)
        if change == 0:
            then = rng.choice([i for i in range(len(ASKING)) if i != at])
        elif change == 1:
            person = people[1]
        else:
            noun = nouns[1]
    side = rng.randrange(2)
    first = ASKING[at][side].format(p=people[0], n=nouns[0])
    second = ASKING[then][1 - side].format(p=person, n=noun)
    problem = tuple(sorted((first, second)))
    question = f"Question 1: {first}\nQuestion 2: {second}"
    return problem, choice(problem, PROMPTS["paraphrase"], question, NO_YES, verdict)


# Feelings, asked as sst2 is, and in five steps as in reviews

MOODS = ("negative", "positive")
REMARKS = (
    "the {w} is {a} and {b}",
    "a {a} and {b} {w}",
    "the {w} of {p} is {a}, and the {v} is {b}",
    "{p} says the {w} is {a} and so {b}",
)


def sentiment(rng: Random) -> tuple[object, Row]:
    """Draw a remark about a work; after `but` comes what counts, and `not` turns it around."""
    mood = rng.choice(MOODS)
    good, bad = (GOOD, BAD) if mood == "positive" else (BAD, GOOD)
    work, part = rng.sample(WORKS, 2)
    person = rng.choice(PEOPLE)
    form = rng.randrange(3)
    if form == 0:
        a, b = rng.sample(good, 2)
        text = rng.choice(REMARKS).format(w=work, v=part, p=person, a=a, b=b)
    elif form == 1:
        a, b = rng.choice(bad), rng.choice(good)
        text = f"the {part} is {a}, but the {work} of {person} is {b}"
    else:
        a, b = rng.choice(bad), rng.choice(good)
        text = f"the {work} of {person} is not {a} and the {part} is {b}"
    return text, choice(text, PROMPTS["sentiment"], text, MOODS, mood)


FEELINGS = ("very negative", "negative", "neutral", "positive", "very positive")


def felt(rng: Random, aspects: Sequence[str], opening: str, prompt: str) -> tuple[object, Row]:
    """Draw a review of two remarks: both bad, one, or none, and in strong words or not."""
    level = rng.randrange(5)
    sides = rng.sample([level > 2, level > 1], 2)
    strong = "very " if level in (0, 4) else ""
    said = [
        f"The {aspect} was {strong}{rng.choice(GOOD if side else BAD)}."
        for aspect, side in zip(rng.sample(aspects, 2), sides, strict=True)
    ]
    text = " ".join([opening, *said])
    return text, choice(text, prompt, text, FEELINGS, FEELINGS[level])


def reviews(rng: Random) -> tuple[object, Row]:
    """Draw a review of a place to eat."""
    opening = f"We ate at the place of {rng.choice(PEOPLE)}."
    aspects = listed("bread cake fish water table room street way night")
    return felt(rng, aspects, opening, PROMPTS["stars"])


def products(rng: Random) -> tuple[object, Row]:
    """Draw a review of something that was bought."""
    thing = rng.choice(listed("lamp coat hat boat car cup book clock bag"))
    aspects = listed("color name sound size price box card wood smell")
    return felt(rng, aspects, f"{rng.choice(PEOPLE)} bought this {thing}.", PROMPTS["stars"])


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


ENTITIES = {
    "company": ("firm that makes {t}", "shop that sells {t}", "company that buys {t}"),
    "school": ("school with {q} teachers", "school for {t}", "place to learn about {t}"),
    "artist": ("man who writes about {t}", "singer of {q} songs", "painter of {t}"),
    "athlete": ("runner of the {q} team", "player in the {q} team", "man who won a {q} race"),
    "politician": ("president with {q} friends", "minister of the {q} state", "king of a {q} state"),
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
CLASSES = tuple(ENTITIES)
THINGS = listed("apples books coins cards pens cups shells stones eggs nuts cakes toys hats rings")
SOUNDS = listed("al be dor fen ga hil is jo kar lu mar nor ol par ros sa tin vel")


def entities(rng: Random) -> tuple[object, Row]:
    """Describe something with a made-up name."""
    label = rng.choice(CLASSES)
    kind = rng.choice(ENTITIES[label]).format(t=rng.choice(THINGS), q=rng.choice(QUALITIES))
    place = rng.choice(PLACES)
    more = rng.choice(
        ("{p} saw it near the {l}.", "{p} has it in the {l}.", "{p} heard of it in the {l}.")
    )
    text = f"This is a {kind}. {more.format(p=rng.choice(PEOPLE), l=place)}"
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
ASKED = ("How can {p} {m}?", "{p} wants to know how to {m}.", "Why does {p} {m}?",
         "Is it hard to {m}?", "Where in the {l} can {p} {m}?", "Who can help {p} {m}?")  # fmt: skip


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
ENTITY = Splits("tiny_entities", entities, asked, 14)
QUESTIONS = Splits("tiny_questions", questions, asked, 10)
