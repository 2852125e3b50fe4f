"""Code on published data: CodeFeedback to learn from, HumanEval and MBPP run in the sandbox.

Prompts and stops are those of lm-eval's tasks, which are not used: importing them runs code
outside any isolation.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any

from clbench.dataset import DataSet, Source, Template
from clbench.task import Eval, Task

from . import alpaca
from .real import ROWS, greedy, learning, parquet

CODEFEEDBACK = Source(
    DataSet(
        "m-a-p/CodeFeedback-Filtered-Instruction",
        files=("CodeFeedback-Filtered-Instruction.jsonl",),
        columns=("query", "answer"),
        license="Apache-2.0",
    ),
    Template(
        prompt=alpaca.PROMPT.format(instruction="{query}"), answer="{answer}", request="{query}"
    ),
    limit=ROWS,
)
MAGICODER = Source(
    DataSet(
        "ise-uiuc/Magicoder-Evol-Instruct-110K",
        files=("*.jsonl",),
        columns=("instruction", "response"),
        license="Apache-2.0",
    ),
    Template(prompt=alpaca.PROMPT, answer="{response}", request="{instruction}"),
    limit=ROWS,
)
HUMANEVAL = parquet(
    "openai/openai_humaneval",
    "test",
    "openai_humaneval",
    columns=("task_id", "prompt", "canonical_solution", "test", "entry_point"),
    license="MIT",
)
MBPP = {
    split: parquet(
        "google-research-datasets/mbpp",
        split,
        "full",
        columns=("task_id", "text", "code", "test_list", "test_setup_code"),
        license="CC BY 4.0",
    )
    for split in ("prompt", "test")
}
MBPP_EXAMPLES = (2, 3, 4)  # task ids, of the ten in the split "prompt"
MBPP_FIRST_TEST = 11
MBPP_SLOW = {123: 30.0}  # task id: processor seconds; its reference takes 5, no other 0.3
BY_SANDBOX = {"metric_list": [{"metric": "bypass"}]}


def codefeedback() -> Task:
    """Return the task of answering requests for code."""
    return _coding("codefeedback", CODEFEEDBACK, "requests for code, answered with explanations")


def magicoder() -> Task:
    """Return the task of answering evolved requests for code, the other published choice."""
    return _coding("magicoder", MAGICODER, "requests for code made harder step by step")


def humaneval() -> Eval:
    """Return HumanEval: complete a function from its docstring; pass@1 by its own tests."""
    return Eval(
        id="humaneval",
        version=1,
        config={
            "doc_to_text": "prompt",
            "doc_to_target": "reference",
            "generation_kwargs": greedy(("\nclass", "\ndef", "\n#", "\nif", "\nprint"), 1024),
            **BY_SANDBOX,
        },
        metric="pass_at_1,none",
        shots=0,
        data={"test": HUMANEVAL},
        num_items=164,
        prepare=function_to_complete,
        execution="program",
        about="functions to complete from a docstring, run on their tests in the sandbox",
    )


def mbpp() -> Eval:
    """Return MBPP: write a function for a sentence and three asserts, after three examples."""
    return Eval(
        id="mbpp",
        version=1,
        config={
            "doc_to_text": "prompt",
            "doc_to_target": "example",
            "target_delimiter": "",
            "fewshot_split": "prompt",
            "fewshot_config": {"sampler": "first_n"},
            "generation_kwargs": greedy(("[DONE]",), 256),
            **BY_SANDBOX,
        },
        metric="pass_at_1,none",
        shots=3,
        data=MBPP,
        num_items=500,
        prepare=function_to_write,
        execution="program",
        data_id=MBPP["test"].id,
        about="functions to write for a sentence, run on three asserts in the sandbox",
    )


def function_to_complete(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a HumanEval record; the program is prompt, completion and tests."""
    return {
        "id": record["task_id"],
        "prompt": record["prompt"],
        "prefix": record["prompt"],
        "suffix": f"\n{record['test']}\ncheck({record['entry_point']})\n",
        "reference": record["canonical_solution"],
        "emptied": "    pass\n",
    }


def function_to_write(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the document of an MBPP record; the program is completion, setup and asserts.

    The setup comes second because it makes objects of classes that the completion defines. Of
    the records that may be shown as examples only the three usual ones are kept.
    """
    number = record["task_id"]
    if number < MBPP_FIRST_TEST and number not in MBPP_EXAMPLES:
        return None
    asserts = "\n".join(record["test_list"][:3])
    slow = {"cpu_seconds": MBPP_SLOW[number]} if number in MBPP_SLOW else {}
    return slow | {
        "id": str(number),
        "question": record["text"],
        "prompt": (
            f"You are an expert Python programmer, and here is your task: {record['text']} "
            f"Your code should pass these tests:\n\n{asserts}\n[BEGIN]\n"
        ),
        "example": f"{record['code']}\n[DONE]",
        "suffix": f"\n{record['test_setup_code']}\n{asserts}\n",
        "reference": record["code"],
        "emptied": without_bodies(record["code"]),
    }


def without_bodies(code: str) -> str:
    """Return a program whose functions do nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # escapes such as "\d" in published code
        warnings.simplefilter("ignore", DeprecationWarning)
        tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def _coding(name: str, source: Source, about: str) -> Task:
    return learning(name, source, (humaneval(), mbpp()), about)
