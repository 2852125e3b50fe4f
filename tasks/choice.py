"""Tasks with given options: a model is trained to write the right one and scored by likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clbench.dataset import DataSet, Source, Template, Values
from clbench.task import Eval, Task

from .real import learning, mean

LETTERS = "ABCDEFGHIJ"
REFERENCE = "refs/convert/parquet"  # the hub's own conversion of a repository with a script


@dataclass(frozen=True)
class Question:
    """What is asked of one record: the question alone, the prompt around it, the options."""

    question: str
    prompt: str
    options: tuple[str, ...]
    gold: int  # position of the right option

    def document(self) -> dict[str, Any]:
        """Return the document of an eval."""
        return {
            "question": self.question,
            "prompt": self.prompt,
            "options": list(self.options),
            "gold": self.gold,
        }


Ask = Callable[[Values], Question | None]


def choice_task(
    name: str,
    ask: Ask,
    *,
    train: DataSet,
    test: DataSet,
    metric: str = "acc",
    chance: float,
    about: str,
    num_items: int | None = None,
    version: int = 1,
) -> Task:
    """Return a task that learns the right option's text and scores every option's likelihood.

    `ask` makes a question of a record and returns None to leave one out. `metric` is acc, or
    acc_norm where options differ in length. The training row continues the eval's own prompt.
    """

    def row(record: Values) -> Values | None:
        asked = ask(record)
        return None if asked is None else {"prompt": asked.prompt, "answer": answer_of(asked)}

    def document(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        asked = ask(record)
        return None if asked is None else asked.document()

    scored = Eval(
        id=name,
        version=version,
        config={
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "options",
            "doc_to_target": "gold",
            "metric_list": [mean("acc"), mean("acc_norm")],
        },
        metric=f"{metric},none",
        other_metrics=("acc_norm,none" if metric == "acc" else "acc,none",),
        chance=chance,
        data={"test": test},
        prepare=document,
        num_items=num_items,
        about=about,
    )
    source = Source(train, Template("{prompt}", " {answer}"), row, version=version)
    return learning(name, source, (scored,), about)


def answer_of(asked: Question) -> str:
    """Return the text of the right option."""
    return asked.options[asked.gold]


def lettered(passage: str, question: str, options: tuple[str, ...], gold: int) -> Question:
    """Return a question whose prompt lists the options by letter, as lm-eval's logiqa does."""
    lines = [f"Passage: {passage}"] if passage else []
    lines += [f"Question: {question}", "Choices:"]
    lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return Question("\n".join(lines), "\n".join([*lines, "Answer:"]), options, gold)


def logiqa() -> Task:
    """Return LogiQA, read from the hub's conversion of a repository that is a script."""

    def data(split: str) -> DataSet:
        return DataSet(
            "lucasmccabe/logiqa",
            split=split,
            files=(f"default/{split}/*.parquet",),
            columns=("context", "query", "options", "correct_option"),
            revision=REFERENCE,
            license="other (card); LogiQA 2.0 is CC BY-NC-SA 4.0",
        )

    def ask(record: Values) -> Question:
        return lettered(
            record["context"],
            record["query"],
            tuple(record["options"]),
            int(record["correct_option"]),
        )

    return choice_task(
        "logiqa",
        ask,
        train=data("train"),
        test=data("test"),
        metric="acc_norm",
        chance=0.25,
        about="reading and reasoning, four options",
        num_items=651,
    )


def scienceqa() -> Task:
    """Return the items of ScienceQA that show no picture; lm-eval has no such task."""

    def data(split: str) -> DataSet:
        return DataSet(
            "derek-thomas/ScienceQA",
            split=split,
            columns=("image", "question", "choices", "answer", "hint"),
            license="CC BY-NC-SA 4.0",
        )

    def ask(record: Values) -> Question | None:
        if record["image"] is not None:
            return None
        return lettered(
            record["hint"], record["question"], tuple(record["choices"]), int(record["answer"])
        )

    return choice_task(
        "scienceqa",
        ask,
        train=data("train"),
        test=data("test"),
        metric="acc_norm",
        chance=0.0,  # two to five options, by item
        about="school science without pictures, two to five options",
    )


def copa() -> Task:
    """Return COPA as a sentence to continue, with one space before the options.

    lm-eval's own copa writes two, because its options begin with one.
    """

    def ask(record: Values) -> Question:
        link = {"cause": "because", "effect": "therefore"}[record["question"]]
        prompt = f"{record['premise'].strip().removesuffix('.')} {link}"
        options = tuple(record[key][0].lower() + record[key][1:] for key in ("choice1", "choice2"))
        return Question(prompt, prompt, options, int(record["label"]))

    columns = ("premise", "choice1", "choice2", "question", "label")
    return choice_task(
        "copa",
        ask,
        train=DataSet("aps/super_glue", "train", "copa", columns=columns),
        test=DataSet("aps/super_glue", "validation", "copa", columns=columns),
        chance=0.5,
        about="which of two sentences is the cause or the effect",
        num_items=100,
    )


def multirc() -> Task:
    """Return MultiRC, one candidate answer at a time.

    lm-eval's own multirc lists "yes" before "no", while label 1 means a right answer.
    """

    def ask(record: Values) -> Question:
        question = f"{record['paragraph']}\nQuestion: {record['question']}"
        prompt = f"{question}\nCandidate: {record['answer']}\nIs the candidate right?\nAnswer:"
        return Question(
            f"{question} {record['answer']}",
            prompt,
            ("no", "yes"),
            int(record["label"]),
        )

    columns = ("paragraph", "question", "answer", "label")
    return choice_task(
        "multirc",
        ask,
        train=DataSet("aps/super_glue", "train", "multirc", columns=columns),
        test=DataSet("aps/super_glue", "validation", "multirc", columns=columns),
        chance=0.5,
        about="is this answer to a question about a paragraph right",
        num_items=4848,
    )


def mmlu() -> Eval:
    """Return MMLU, all subjects in one, with the prompt of lm-eval's zero-shot default."""

    def ask(record: Mapping[str, Any]) -> Mapping[str, Any]:
        question = record["question"].strip()
        lines = [
            f"{letter}. {text}" for letter, text in zip(LETTERS, record["choices"], strict=False)
        ]
        subject = record["subject"].replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        prompt = "\n".join([f"{head}{question}", *lines, "Answer:"])
        asked = "\n".join([question, *lines])
        return Question(asked, prompt, tuple(LETTERS[:4]), int(record["answer"])).document()

    data = DataSet("cais/mmlu", "test", "all", columns=("question", "subject", "choices", "answer"))
    return Eval(
        id="mmlu",
        version=1,
        config={
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "options",
            "doc_to_target": "gold",
            "metric_list": [mean("acc")],
        },
        metric="acc,none",
        chance=0.25,
        data={"test": data},
        prepare=ask,
        data_id=data.id,
        num_items=14_042,
        default_items=1000,
        group="general",
        about="57 subjects of school and profession, four options",
    )
