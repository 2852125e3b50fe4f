"""World knowledge on published data: TriviaQA, NQ-open and WebQS, and NQ-open's train split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.dataset import DataSet, Source, Template
from clbench.task import Eval

from .real import parquet

NQ_OPEN = {
    split: parquet(
        "google-research-datasets/nq_open",
        split,
        "nq_open",
        columns=("question", "answer"),
        license="CC BY-SA 3.0",
    )
    for split in ("train", "validation")
}
TRIVIAQA = parquet(
    "mandarjoshi/trivia_qa",
    "validation",
    "rc.nocontext",
    columns=("question", "question_id", "answer"),
)
WEBQS = parquet("stanfordnlp/web_questions", "test", columns=("question", "answers"))
RANK_ITEMS = 500


def nq_open_train() -> Source:
    """Return what LoRA-Null and CorDA calibrate on: questions alone, without their answers."""
    return Source(NQ_OPEN["train"], Template(prompt="", answer="{question}"))


def triviaqa() -> Eval:
    """Return lm-eval's triviaqa; a question that two of its parts share is one unit."""
    return Eval(
        id="triviaqa",
        version=3,
        config="triviaqa",
        metric="exact_match,remove_whitespace",
        shots=0,
        data={"validation": TRIVIAQA},
        num_items=17_944,
        prepare=trivia_question,
        open_answer=True,
        rank_items=RANK_ITEMS,
        data_id=TRIVIAQA.id,
        about="trivia questions, answered in the model's own words",
    )


def nq_open() -> Eval:
    """Return lm-eval's nq_open."""
    return Eval(
        id="nq_open",
        version=4,
        config="nq_open",
        metric="exact_match,remove_whitespace",
        shots=0,
        data={"validation": NQ_OPEN["validation"]},
        num_items=3610,
        open_answer=True,
        rank_items=RANK_ITEMS,
        about="questions that people asked a search engine, answered in the model's own words",
    )


def webqs() -> Eval:
    """Return lm-eval's webqs, which generates nothing: is an accepted answer the likeliest text?"""
    return Eval(
        id="webqs",
        version=2,
        config="webqs",
        metric="exact_match,none",
        shots=0,
        data={"test": WEBQS},
        num_items=2032,
        about="questions; right if each token of an accepted answer is the likeliest",
    )


def wikitext() -> Eval:
    """Return the word perplexity of WikiText-2 (arXiv 1609.07843), its test split, raw."""
    data = DataSet(
        "EleutherAI/wikitext_document_level",
        "test",
        "wikitext-2-raw-v1",
        files=("wikitext-2-raw-v1/*test*.parquet",),
        columns=("page",),
        license="CC BY-SA 3.0",
    )
    return Eval(
        id="wikitext",
        version=2,
        config="wikitext",
        metric="word_perplexity,none",
        other_metrics=("byte_perplexity,none", "bits_per_byte,none"),
        shots=0,
        data={"test": data},
        diagnostic=True,
        about="articles of an encyclopedia, how likely per word",
    )


def trivia_question(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a TriviaQA record, its usual answer before the other names of it."""
    answer = record["answer"]
    aliases = sorted(answer["aliases"], key=lambda alias: alias != answer["value"])
    return {
        "question": record["question"],
        "cluster": record["question_id"],
        "kind": answer["type"],
        "answer": {**answer, "aliases": aliases},
    }
