"""TRACE (arXiv 2310.06762), read from the folders it is published as, and scored as it scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from clbench.dataset import DataSet, Source, Template
from clbench.task import Eval, Task

from . import glue, real_math, scorers
from .real import greedy, learning, mean

TRAINED = 5000  # rows of a task
LINE = ("\n",)  # what ends a short answer; long ones end at the end of the sequence


def _task(
    folder: str,
    metric: str,
    score: Callable[..., dict[str, float]],
    about: str,
    *,
    epochs: float,
    stops: tuple[str, ...] = LINE,
    new_tokens: int = 16,
    name: str | None = None,
) -> Task:
    """Return the task of a folder that holds train.json and test.json.

    Each is a list of records with a `prompt` and an `answer`, put together as they are.
    """
    name = name or folder.lower()
    train, test = (
        DataSet(
            folder,
            split,
            files=(f"{folder}/{split}.json",),
            columns=("prompt", "answer"),
            place="folder",
        )
        for split in ("train", "test")
    )
    scored = Eval(
        id=name,
        version=1,
        config={
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "process_results": score,
            "generation_kwargs": greedy(stops, new_tokens),
            "metric_list": [mean(metric)],
        },
        metric=f"{metric},none",
        data={"test": test},
        prepare=document,
        about=about,
    )
    source = Source(train, Template("{prompt}", "{answer}"), limit=TRAINED)
    return replace(learning(name, source, (scored,), about), epochs=epochs)


def document(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document of a record."""
    return {"prompt": record["prompt"], "gold": record["answer"], "reference": record["answer"]}


def c_stance() -> Task:
    """Return C-STANCE."""
    about = "the stance of a Chinese text towards a target"
    return _task("C-STANCE", "accuracy", scorers.same_answer, about, epochs=5)


def fomc() -> Task:
    """Return FOMC."""
    about = "is a sentence of the central bank hawkish, dovish or neutral"
    return _task("FOMC", "accuracy", scorers.same_answer, about, epochs=3)


def meetingbank() -> Task:
    """Return MeetingBank."""
    about = "the summary of a council meeting"
    return _task("MeetingBank", "rougeL", scorers.rouge, about, epochs=7, stops=(), new_tokens=256)


def py150() -> Task:
    """Return Py150."""
    about = "the next line of a Python file"
    return _task(
        "Py150",
        "edit_similarity",
        scorers.edit_similarity,
        about,
        epochs=5,
        stops=("\n", "<EOL>"),
        new_tokens=64,
    )


def scienceqa() -> Task:
    """Return TRACE's ScienceQA, whose answers give a letter and then reasons."""
    about = "school science, the letter of one option and reasons"
    return _task(
        "ScienceQA", "accuracy", scorers.same_letter, about, epochs=3, name="trace-scienceqa"
    )


def numglue_cm() -> Task:
    """Return NumGLUE-cm."""
    about = "arithmetic with common sense"
    return _task("NumGLUE-cm", "accuracy", scorers.same_answer, about, epochs=5)


def numglue_ds() -> Task:
    """Return NumGLUE-ds."""
    about = "arithmetic with knowledge of a domain"
    return _task("NumGLUE-ds", "accuracy", scorers.same_answer, about, epochs=5)


def minuten() -> Task:
    """Return 20Minuten."""
    about = "a German news text in simpler words"
    return _task(
        "20Minuten", "sari", scorers.simplification, about, epochs=7, stops=(), new_tokens=256
    )


def medmcqa() -> Task:
    """Return MedMCQA in TRACE's layout, as I-LoRA (arXiv 2402.18865) reads it."""
    about = "questions of medical entrance exams, four options"
    return _task("medmcqa", "accuracy", scorers.same_letter, about, epochs=3)


def jecqa() -> Task:
    """Return JEC-QA in TRACE's layout, as I-LoRA (arXiv 2402.18865) reads it."""
    about = "questions of the Chinese bar exam"
    return _task("jecqa", "accuracy", scorers.same_answer, about, epochs=3)


def general_boolq() -> Eval:
    """Return BoolQ as one of TRACE's general abilities."""
    return replace(glue.boolq().evals[0], group="general")


def general_gsm8k() -> Eval:
    """Return GSM8K as one of TRACE's general abilities."""
    return replace(real_math.gsm8k(), group="general")
