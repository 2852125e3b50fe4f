"""Pre-training text with skills that later streams build on: choices, pairs, moods, translation."""

from __future__ import annotations

from random import Random

from .splits import listed

PEOPLE = listed(
    "Anna Ben Carl Dora Emma Finn Gina Hugo Ida Jack Kate Leo Mia Nina Omar Paul Rosa Sam"
)
PLACES = listed("kitchen garden school park shop station office library hall barn museum")
SAME = (
    ("big", "large"), ("small", "little"), ("fast", "quick"), ("glad", "happy"),
    ("cold", "chilly"), ("begin", "start"), ("end", "stop"), ("rich", "wealthy"),
    ("quiet", "silent"), ("near", "close"), ("smart", "clever"), ("hard", "difficult"),
    ("sad", "unhappy"), ("buy", "purchase"),
)  # fmt: skip
OPPOSITE = (
    ("big", "small"), ("fast", "slow"), ("hot", "cold"), ("old", "new"), ("rich", "poor"),
    ("happy", "sad"), ("light", "dark"), ("open", "closed"), ("full", "empty"), ("early", "late"),
    ("strong", "weak"), ("near", "far"), ("clean", "dirty"), ("loud", "quiet"),
)  # fmt: skip
GOOD = listed("great lovely wonderful superb charming excellent delightful brilliant")
BAD = listed("awful boring terrible weak dull horrible clumsy tedious")
WORKS = listed("film book song play story show album novel")
TOPICS = {
    "sport": ("the team won the match", "the player scored a goal", "the race was close",
              "the coach praised the team"),
    "business": ("the bank raised its rates", "the company sold its shops", "prices fell again",
                 "the firm hired workers"),
    "science": ("the probe reached the planet", "the lab tested a drug", "a new atom was made",
                "the scientists measured light"),
    "world": ("the minister met the king", "the states signed a treaty", "voters chose a president",
              "the border was opened"),
}  # fmt: skip
GERMAN = {
    "the": "der", "is": "ist", "and": "und", "not": "nicht", "here": "hier", "very": "sehr",
    "dog": "Hund", "man": "Mann", "tree": "Baum", "table": "Tisch", "garden": "Garten",
    "king": "König", "friend": "Freund", "river": "Fluss", "moon": "Mond", "train": "Zug",
    "day": "Tag", "father": "Vater", "son": "Sohn", "teacher": "Lehrer", "big": "groß",
    "small": "klein", "old": "alt", "new": "neu", "good": "gut", "cold": "kalt", "warm": "warm",
    "red": "rot", "green": "grün", "long": "lang", "young": "jung", "tired": "müde",
    "strong": "stark", "quiet": "leise", "today": "heute", "sees": "sieht", "near": "nah",
}  # fmt: skip
NOUNS = listed("dog man tree table garden king friend river moon train day father son teacher")
QUALITIES = listed("big small old new good cold warm red green long young tired strong quiet")
CLASSES = (
    ("dog", "animal"), ("oak", "tree"), ("rose", "flower"), ("gold", "metal"), ("bus", "vehicle"),
    ("apple", "fruit"), ("eagle", "bird"), ("salmon", "fish"), ("piano", "instrument"),
    ("ant", "insect"),
)  # fmt: skip
NEEDS = (
    ("was hungry", "ate some bread"), ("was tired", "went to bed"), ("was cold", "put on a coat"),
    ("was thirsty", "drank some water"), ("was late", "ran to the bus"),
    ("was sick", "saw a doctor"), ("was lost", "asked for the way"), ("was bored", "read a book"),
)  # fmt: skip
LETTERS = "ABCD"


def options(rng: Random, right: str, wrong: list[str]) -> tuple[str, str]:
    """Shuffle choices; return them lettered, and the right letter with its text."""
    shuffled = rng.sample([right, *wrong], 1 + len(wrong))
    letter = LETTERS[shuffled.index(right)]
    text = " ".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(shuffled))
    return text, f"({letter}) {right}"


def reading(rng: Random) -> str:
    """Pick where a person is from a short text."""
    people, places = rng.sample(PEOPLE, 3), rng.sample(PLACES, 3)
    at = dict(zip(people, places, strict=True))
    text = " ".join(f"{person} is in the {place}." for person, place in at.items())
    who = rng.choice(people)
    choices, pick = options(rng, at[who], [place for place in places if place != at[who]])
    return f"{text} {who} is where: {choices} -> {pick}"


def passage(rng: Random) -> str:
    """Say yes or no to a statement about a short text."""
    noun, other = rng.sample(NOUNS, 2)
    first, second = rng.sample(QUALITIES, 2)
    asked = rng.choice((first, second))
    verdict = "yes" if asked == first else "no"
    return f"The {noun} is {first}. The {other} is {second}. {noun} {asked}? {verdict}"


def logic(rng: Random) -> str:
    """Draw a conclusion from two premises."""
    thing, kind = rng.choice(CLASSES)
    quality = rng.choice(QUALITIES)
    wrong = rng.sample([q for q in QUALITIES if q != quality], 2)
    choices, pick = options(rng, quality, wrong)
    rule = f"Every {kind} here is {quality}. A {thing} is a kind of {kind}."
    return f"{rule} The {thing}: {choices} -> {pick}"


def social(rng: Random) -> str:
    """Say what somebody did next."""
    state, act = rng.choice(NEEDS)
    wrong = rng.sample([other for _, other in NEEDS if other != act], 2)
    choices, pick = options(rng, act, wrong)
    person = rng.choice(PEOPLE)
    return f"{person} {state}. So {person}: {choices} -> {pick}"


def pair(rng: Random) -> str:
    """Tell whether two sentences mean the same."""
    noun = rng.choice(NOUNS)
    alike = rng.random() < 0.5
    first, second = rng.choice(SAME if alike else OPPOSITE)
    return f"The {noun}: {first} = The {noun}: {second}? {'same' if alike else 'different'}"


def inference(rng: Random) -> str:
    """Tell whether a statement follows, fails or stays open."""
    noun, other = rng.sample(NOUNS, 2)
    first, second = rng.choice(OPPOSITE)
    kind = rng.choice(("follows", "fails", "open"))
    claim = {"follows": (noun, first), "fails": (noun, second), "open": (other, first)}[kind]
    return f"Given: the {noun} is {first}, so the {claim[0]} is {claim[1]}: {kind}"


def mood(rng: Random) -> str:
    """Name the mood of a remark about a work."""
    good = rng.random() < 0.5
    words = rng.sample(GOOD if good else BAD, 2)
    work = rng.choice(WORKS)
    return f"a {words[0]} and {words[1]} {work} => {'positive' if good else 'negative'}"


def topic(rng: Random) -> str:
    """Name the topic of a headline."""
    name = rng.choice(sorted(TOPICS))
    return f"{rng.choice(TOPICS[name])} [{name}]"


def summary(rng: Random) -> str:
    """Keep the news of a short report."""
    name = rng.choice(sorted(TOPICS))
    news = rng.choice(TOPICS[name])
    who, place = rng.choice(PEOPLE), rng.choice(PLACES)
    parts = [
        f"{who} heard it in the {place}.",
        f"Today {news}.",
        f"It was {rng.choice(QUALITIES)}.",
    ]
    return f"{' '.join(rng.sample(parts, 3))} In short: {news}."


def translation(rng: Random) -> str:
    """Give a sentence in German and, word for word, in English."""
    noun, quality, other = rng.choice(NOUNS), rng.choice(QUALITIES), rng.choice(NOUNS)
    english = rng.choice(
        (
            f"the {noun} is {quality}",
            f"the {noun} is very {quality}",
            f"the {noun} sees the {other}",
            f"today the {noun} is not {quality}",
            f"the {noun} is here and the {other} is {quality}",
        )
    )
    german = " ".join(GERMAN[word] for word in english.split())
    return f"Deutsch: {german} / Englisch: {english}"


MAKERS = (
    reading, passage, logic, social, pair, inference, mood, topic, summary, translation
)  # fmt: skip


def other_skill(rng: Random) -> str:
    """Draw one document of any of these skills."""
    return rng.choice(MAKERS)(rng)
