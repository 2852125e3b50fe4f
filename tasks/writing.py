"""Tasks whose answer is written out: word problems, summaries, translations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.dataset import DataSet, Source, Template, Values
from clbench.task import Eval, Task

from . import real_math
from .real import greedy, learning, mean
from .scorers import rouge

MOST_ROWS = 10_000  # drawn to train on, of 287,113 articles and of 4.5 million sentences


def gsm8k() -> Task:
    """Return GSM8K, trained on its own train split and asked as lm-eval asks, with five shots."""
    template = Template("Question: {question}\nAnswer:", " {answer}", "{question}")
    scored = real_math.gsm8k()
    return learning("gsm8k", Source(real_math.GSM8K["train"], template), (scored,), scored.about)


def cnn_dailymail() -> Task:
    """Return CNN/DailyMail 3.0.0, scored by ROUGE alone."""
    columns = ("article", "highlights")
    prompt = "Summarize the following article:\n\n{article}\n\nSummary:"
    license = "Apache-2.0 (card); articles of their publishers"
    train = DataSet(
        "abisee/cnn_dailymail", "train", "3.0.0", columns=columns, license=license, draw=MOST_ROWS
    )
    test = DataSet("abisee/cnn_dailymail", "test", "3.0.0", columns=columns, license=license)

    def document(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "prompt": prompt.format_map(record),
            "question": record["article"],
            "gold": record["highlights"],
            "reference": record["highlights"],
        }

    scored = Eval(
        id="cnn-dailymail",
        version=1,
        config={
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "process_results": rouge,
            "generation_kwargs": greedy(("\n\n",), 128),
            "metric_list": [mean(key) for key in ("rougeL", "rouge1", "rouge2")],
        },
        metric="rougeL,none",
        other_metrics=("rouge1,none", "rouge2,none"),
        data={"test": test},
        prepare=document,
        num_items=11_490,
        default_items=500,
        data_id=test.id,
        about="the highlights of a news article",
    )
    source = Source(train, Template(prompt, " {highlights}"))
    return learning("cnn-dailymail", source, (scored,), scored.about)


def wmt16_de_en() -> Task:
    """Return German news to be put into English, asked and scored as lm-eval does."""
    license = "not stated; news test sets, for research"
    train = DataSet(
        "wmt/wmt16", "train", "de-en", columns=("translation",), license=license, draw=MOST_ROWS
    )
    test = DataSet("wmt/wmt16", "test", "de-en", columns=("translation",), license=license)

    def row(record: Values) -> Values:
        return dict(record["translation"])

    scored = Eval(
        id="wmt16-de-en",
        version=1,
        config="wmt16-de-en",
        metric="chrf,none",
        other_metrics=("bleu,none",),
        data={"test": test},
        num_items=2999,
        default_items=1000,
        about="German news in English",
    )
    source = Source(train, Template("German phrase: {de}\nEnglish phrase:", " {en}"), row)
    return learning("wmt16-de-en", source, (scored,), scored.about)
