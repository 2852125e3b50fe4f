"""The embedded tasks, one function each, so that a stream can name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from clbench.dataset import Texts
from clbench.task import Eval, Row, Task

from . import tiny_choice_evals, tiny_evals
from .tiny import choices, code, facts, instruct, labels, math, writing
from .tiny.splits import Splits
from .tiny_evals import LICENSE

ROWS, ITEMS = 2000, 200  # of every task


@cache
def _rows(splits: Splits) -> tuple[Row, ...]:
    return tuple(Row(row["id"], row["prompt"], row["answer"]) for row in splits.train_examples())


def _task(name: str, splits: Splits, make_eval: Callable[..., Eval], about: str) -> Task:
    held_out = make_eval(f"{splits.name}_validation", splits.validation_examples, about)
    scored = make_eval(splits.name, splits.eval_items, about)
    return Task(
        name=name,
        train=lambda: _rows(splits),
        evals=(replace(scored, num_items=ITEMS, license=LICENSE),),
        validation_evals=(held_out,),
        about=about,
        license=LICENSE,
        num_rows=ROWS,
        info={"id": splits.name, "template": "v1"},
    )


def _choice(name: str, splits: Splits, about: str, **how: Any) -> Task:
    make_eval = partial(tiny_choice_evals.choice_eval, options=splits.num_labels, **how)
    return _task(name, splits, make_eval, about)


def math_task() -> Task:
    """Return word problems."""
    return _task("math", math.SPLITS, tiny_evals.math_eval, "word problems of one to three steps")


def code_task() -> Task:
    """Return one-line functions."""
    return _task("code", code.SPLITS, tiny_evals.code_eval, "one-line functions from a sentence")


def instructions() -> Task:
    """Return instructions that can be checked."""
    about = "short texts under checkable constraints"
    return _task("if", instruct.SPLITS, tiny_evals.instruct_eval, about)


def logic() -> Task:
    """Return conclusions from rules, asked as LogiQA asks."""
    about = "which of four conclusions follows from a passage"
    return _choice("logic", choices.LOGIC, about, metric="acc_norm")


def social() -> Task:
    """Return what people do and why, asked as Social IQa asks."""
    return _choice("social", choices.SOCIAL, "what somebody did next, or why")


def science() -> Task:
    """Return true statements about living things, asked as ScienceQA asks."""
    about = "what a living thing has, which follows from its kind"
    return _choice("science", choices.SCIENCE, about, metric="acc_norm")


def boolq() -> Task:
    """Return yes-or-no questions about a passage, asked as BoolQ asks."""
    return _choice("boolq", choices.BOOLQ, "whether a passage says something")


def nli() -> Task:
    """Return claims beside statements, asked as MNLI asks."""
    return _choice("nli", labels.NLI, "whether a claim follows, fails or stays open")


def pairs() -> Task:
    """Return pairs of sentences, asked as MRPC asks."""
    return _choice("pairs", labels.PAIRS, "whether two sentences mean the same", f1=True)


def paraphrase() -> Task:
    """Return pairs of questions, asked as QQP asks."""
    about = "whether two questions ask the same"
    return _choice("paraphrase", labels.PARAPHRASE, about, f1=True)


def sentiment() -> Task:
    """Return remarks about works, asked as SST-2 asks."""
    return _choice("sentiment", labels.SENTIMENT, "whether a remark is positive or negative")


def topic() -> Task:
    """Return headlines, in the place of AG News."""
    return _choice("topic", labels.TOPIC, "which of four topics a headline is about")


def reviews() -> Task:
    """Return reviews of places to eat, in the place of Yelp."""
    return _choice("reviews", labels.REVIEWS, "how good a visit was, in five steps")


def products() -> Task:
    """Return reviews of goods, in the place of Amazon."""
    return _choice("products", labels.PRODUCTS, "how good a purchase was, in five steps")


def entities() -> Task:
    """Return descriptions, in the place of DBpedia."""
    return _choice("entities", labels.ENTITIES, "which of 14 classes a description is of")


def questions() -> Task:
    """Return questions, in the place of Yahoo Answers."""
    return _choice("questions", labels.QUESTIONS, "which of ten topics a question is about")


def summary() -> Task:
    """Return reports and their news, asked as CNN/DailyMail is."""
    about = "the news of a report in one sentence"
    return _task("summary", writing.SUMMARY, tiny_choice_evals.summary_eval, about)


def translate() -> Task:
    """Return German put word for word into English, asked as WMT16 de-en is."""
    about = "word-for-word German in English"
    return _task("translate", writing.TRANSLATE, tiny_choice_evals.translation_eval, about)


def statements() -> Texts:
    """Return sentences about the world that no eval asks, to calibrate on."""
    return Texts("tiny_facts/statements", facts.calibration_texts)
