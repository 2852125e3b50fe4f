"""Math on published data: MetaMathQA to learn from, GSM8K and MATH to be scored on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clbench.dataset import DataSet, Source, Template
from clbench.task import Eval, Task

from . import alpaca, math_answer
from .real import ROWS, greedy, learning, mean, parquet

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
METAMATH = Source(
    DataSet(
        "meta-math/MetaMathQA",
        files=("MetaMathQA-395K.json",),
        columns=("query", "response"),
        license="MIT",
    ),
    Template(
        prompt=alpaca.STEP_BY_STEP.format(instruction="{query}"),
        answer="{response}",
        request="{query}",
    ),
    limit=ROWS,
)
GSM8K = {
    split: parquet("openai/gsm8k", split, "main", columns=("question", "answer"), license="MIT")
    for split in ("train", "test")
}
MATH = tuple(
    parquet(
        "EleutherAI/hendrycks_math",
        "test",
        subject,
        columns=("problem", "solution"),
        license="MIT",
    )
    for subject in SUBJECTS
)
MATH500 = DataSet(
    "HuggingFaceH4/MATH-500", "test", files=("test.jsonl",), columns=("problem", "solution")
)


def metamath() -> Task:
    """Return the task of solving word problems step by step, read by the final answer."""
    return learning(
        "metamath",
        METAMATH,
        (math_answer_gsm8k(), math_answer_math()),
        "word problems and competition problems, solved step by step",
    )


def gsm8k() -> Eval:
    """Return lm-eval's gsm8k: five examples, then the last number of the answer."""
    return Eval(
        id="gsm8k",
        version=3,
        config="gsm8k",
        metric="exact_match,flexible-extract",
        other_metrics=("exact_match,strict-match",),
        shots=5,
        num_items=1319,
        data=GSM8K,
        data_id="openai/gsm8k",
        about="grade-school word problems after five examples; the last number counts",
    )


def hendrycks_math() -> Eval:
    """Return lm-eval's seven MATH tasks as one: all problems together, each counting the same."""
    return _hendrycks("hendrycks_math", "hendrycks_math_algebra", MATH, 5000)


def hendrycks_math500() -> Eval:
    """Return lm-eval's task on the 500 problems of MATH that are often used alone."""
    return _hendrycks("hendrycks_math500", "hendrycks_math500", (MATH500,), 500)


def math_answer_gsm8k() -> Eval:
    """Return GSM8K as the LoRA-Null paper asks it: no examples, and the final answer counts."""
    return _final_answer(
        "math_answer_gsm8k",
        (GSM8K["test"],),
        word_problem,
        512,
        1319,
        "grade-school word problems; the final answer of a step-by-step solution counts",
    )


def math_answer_math() -> Eval:
    """Return MATH as the LoRA-Null paper asks it: no examples, and the final answer counts."""
    return _final_answer(
        "math_answer_math",
        MATH,
        competition_problem,
        1024,
        5000,
        "competition problems; the final answer of a step-by-step solution counts",
    )


def word_problem(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a GSM8K record; its answer ends in `#### number`."""
    solution = record["answer"]
    return _asked(record["question"], solution, solution.rpartition("####")[2].strip())


def competition_problem(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the document of a MATH record, None for a solution without a boxed answer."""
    gold = math_answer.last_boxed(record["solution"])
    return None if gold is None else _asked(record["problem"], record["solution"], gold)


def _asked(question: str, solution: str, gold: str) -> dict[str, Any]:
    prompt = alpaca.STEP_BY_STEP.format(instruction=question)
    return {"question": question, "prompt": prompt, "gold": gold, "reference": f" {solution}"}


def _final_answer(
    name: str,
    data: tuple[DataSet, ...],
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    new_tokens: int,
    num_items: int,
    about: str,
) -> Eval:
    return Eval(
        id=name,
        version=1,
        config={
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "process_results": math_answer.score,
            "generation_kwargs": greedy(("### Instruction:",), new_tokens),
            "metric_list": [mean("math_answer")],
        },
        metric="math_answer,none",
        request="question",
        shots=0,
        data={"test": data},
        prepare=prepare,
        num_items=num_items,
        data_id=data[0].id,
        about=about,
    )


def _hendrycks(name: str, config: str, data: tuple[DataSet, ...], num_items: int) -> Eval:
    return Eval(
        id=name,
        version=1,
        config=config,
        metric="exact_match,none",
        shots=0,
        data={"test": data},
        prepare=lambda record: {**record, "question": record["problem"]},
        num_items=num_items,
        data_id=data[0].id,
        about="competition problems; what stands between the first and the last $ counts",
    )
