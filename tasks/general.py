"""BBH and TyDiQA as lm-eval asks them: a group of its tasks each, and one column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.dataset import DataSet
from clbench.task import Eval

from .real import parquet

ITEMS = 500  # scored in the default run, drawn from all
BBH = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
LANGUAGES = ("ar", "bn", "en", "fi", "id", "ko", "ru", "sw", "te")
TYDIQA = DataSet(
    "google-research-datasets/tydiqa",
    "validation",
    "secondary_task",
    columns=("id", "title", "context", "question", "answers"),
)


def bbh() -> Eval:
    """Return BBH (arXiv 2210.09261) with reasons: three worked examples before each question."""
    return Eval(
        id="bbh",
        version=4,
        config="bbh_cot_fewshot",
        metric="exact_match,get-answer",
        parts=tuple(_bbh_part(name) for name in BBH),
        data_id="SaylorTwift/bbh",
        num_items=6511,
        default_items=ITEMS,
        group="general",
        about="27 kinds of hard questions, answered after reasons",
    )


def _bbh_part(name: str) -> Eval:
    return Eval(
        id=name,
        version=4,
        config=f"bbh/cot_fewshot/{name}.yaml",
        metric="exact_match,get-answer",
        data={"test": parquet("SaylorTwift/bbh", "test", name, columns=("input", "target"))},
        prepare=reasoned,
    )


def reasoned(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document of a BBH record; an answer is read after "the answer is"."""
    return {
        **record,
        "probe": record["input"],
        "reference": f"So the answer is {record['target']}.",
    }


def tydiqa() -> Eval:
    """Return TyDiQA with the passage that holds the answer, in nine languages, without examples."""
    return Eval(
        id="tydiqa",
        version=1,
        config="tydiqa_goldp",
        metric="f1,none",
        other_metrics=("exact_match,none",),
        parts=tuple(_tydiqa_part(language) for language in LANGUAGES),
        data_id=TYDIQA.id,
        num_items=5077,
        default_items=ITEMS,
        group="general",
        about="an answer from a passage, in nine languages",
    )


def _tydiqa_part(language: str) -> Eval:
    return Eval(
        id=language,
        version=1,
        config=f"tydiqa/tydiqa_goldp_{language}.yaml",
        metric="f1,none",
        shots=0,
        data={"validation": TYDIQA},
    )
