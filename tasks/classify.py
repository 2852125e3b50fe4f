"""Texts to put into one of a few classes, asked in the words of O-LoRA (arXiv 2310.14152)."""

from __future__ import annotations

from clbench.dataset import DataSet, Values
from clbench.task import Task

from .choice import REFERENCE, Question, choice_task

MOST_CHARACTERS = 1500  # of a text, so that the question after it fits into 512 tokens
MOST_ROWS = 10_000  # drawn to train on; several of these files are sorted by class
ITEMS_PER_CLASS = 500  # drawn to be scored, times the number of classes

STARS = ("very negative", "negative", "neutral", "positive", "very positive")
SENTIMENT = "What is the sentiment of the following paragraph? Choose one from the option."
TOPIC = "What is the topic of the following paragraph? Choose one from the option."


def classification(
    name: str,
    data: DataSet,
    columns: tuple[str, ...],
    labels: dict[int, str],
    instruction: str,
    about: str,
    *,
    label: str = "label",
    scored: str = "test",
) -> Task:
    """Return a task that names the class of a text; `columns` are joined to make the text.

    `labels` maps the value of the column `label` to what the class is called; records of
    another value are left out. `scored` is the split of the eval.
    """
    classes = tuple(labels.values())
    values = tuple(labels)

    def ask(record: Values) -> Question | None:
        if record[label] not in labels:
            return None
        text = shortened("\n".join(record[key] for key in columns if record[key]))
        prompt = f"{instruction}\nOption: {', '.join(classes)}\n{text}\nAnswer:"
        return Question(text, prompt, classes, values.index(record[label]))

    def split(which: str, draw: int) -> DataSet:
        return DataSet(
            data.id,
            which,
            data.config,
            files=tuple(pattern.format(split=which) for pattern in data.files),
            columns=(*columns, label),
            revision=data.revision,
            license=data.license,
            draw=draw,
        )

    return choice_task(
        name,
        ask,
        train=split("train", MOST_ROWS),
        test=split(scored, ITEMS_PER_CLASS * len(classes)),
        chance=1 / len(classes),
        about=about,
    )


def shortened(text: str) -> str:
    """Return the beginning of a text, cut between words at MOST_CHARACTERS."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return text[:MOST_CHARACTERS].rpartition(" ")[0]


def ag_news() -> Task:
    """Return AG News: four topics."""
    return classification(
        "ag-news",
        DataSet("fancyzhx/ag_news"),
        ("text",),
        dict(enumerate(("World", "Sports", "Business", "Science or Technology"))),
        TOPIC,
        "the topic of a news item, four classes",
    )


def dbpedia() -> Task:
    """Return DBpedia: fourteen kinds of things; its files are sorted by class."""
    kinds = (
        *("Company", "Educational Institution", "Artist", "Athlete", "Office Holder"),
        *("Mean of Transportation", "Building", "Natural Place", "Village", "Animal"),
        *("Plant", "Album", "Film", "Written Work"),
    )
    return classification(
        "dbpedia",
        DataSet("fancyzhx/dbpedia_14"),
        ("title", "content"),
        dict(enumerate(kinds)),
        TOPIC,
        "what kind of thing an article is about, fourteen classes",
    )


def yahoo() -> Task:
    """Return Yahoo Answers: ten topics."""
    topics = (
        *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference"),
        *("Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music"),
        *("Family & Relationships", "Politics & Government"),
    )
    return classification(
        "yahoo",
        DataSet("community-datasets/yahoo_answers_topics"),
        ("question_title", "question_content", "best_answer"),
        dict(enumerate(topics)),
        TOPIC,
        "the topic of a question and its answer, ten classes",
        label="topic",
    )


def yelp() -> Task:
    """Return the reviews of Yelp: one to five stars."""
    return classification(
        "yelp",
        DataSet("Yelp/yelp_review_full"),
        ("text",),
        dict(enumerate(STARS)),
        SENTIMENT,
        "how good a review of a place is, five classes",
    )


def amazon() -> Task:
    """Return reviews of Amazon, one to five stars, from another sample than O-LoRA's."""
    return classification(
        "amazon",
        DataSet("SetFit/amazon_reviews_multi_en"),
        ("text",),
        dict(enumerate(STARS)),
        SENTIMENT,
        "how good a review of a product is, five classes",
    )


def imdb() -> Task:
    """Return the film reviews of IMDB; its files are sorted by class."""
    return classification(
        "imdb",
        DataSet("stanfordnlp/imdb"),
        ("text",),
        {1: "Good", 0: "Bad"},
        SENTIMENT,
        "is a film review positive",
    )


def sentiment140() -> Task:
    """Return tweets by sentiment, read from the hub's conversion of a repository with a script.

    The train split is sorted by class and has no neutral tweets; those of the test are left out.
    """
    return classification(
        "sentiment140",
        DataSet(
            "stanfordnlp/sentiment140",
            files=("sentiment140/{split}/*.parquet",),
            revision=REFERENCE,
        ),
        ("text",),
        {0: "negative", 4: "positive"},
        SENTIMENT,
        "is a tweet positive",
        label="sentiment",
    )
