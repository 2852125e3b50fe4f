"""The embedded evals of the further tasks: choices, labels, summaries and translations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clbench.task import Eval

from .scorers import rouge
from .tiny import writing

Doc = dict[str, Any]
Items = Callable[[], Sequence[Doc]]


def choice_eval(
    name: str, items: Items, about: str, *, options: int, metric: str = "acc", f1: bool = False
) -> Eval:
    """Return an eval that picks the likeliest of the options; `f1` is of the second one."""
    metrics = list(dict.fromkeys((metric, "acc", *["f1"] * f1)))
    return Eval(
        id=name,
        version=1,
        config={
            "output_type": "multiple_choice",
            "docs": lambda: [{**row, "reference": row["answer"]} for row in items()],
            "doc_to_text": "prompt",
            "doc_to_choice": "options",
            "doc_to_target": "label",
            "metric_list": [_scored(key, "f1" if key == "f1" else "mean") for key in metrics],
        },
        metric=f"{metric},none",
        other_metrics=tuple(f"{key},none" for key in metrics[1:]),
        chance=1 / options,
        about=about,
    )


def summary_eval(name: str, items: Items, about: str) -> Eval:
    """Return an eval of summaries, scored by the words that they share with the reference."""
    return Eval(
        id=name,
        version=1,
        config={
            "docs": lambda: [{**row, "reference": row["answer"]} for row in items()],
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "process_results": rouge,
            "generation_kwargs": _greedy("\n\n"),
            "metric_list": [_scored(key, "mean") for key in ("rougeL", "rouge1", "rouge2")],
        },
        metric="rougeL,none",
        other_metrics=("rouge1,none", "rouge2,none"),
        about=about,
    )


def translation_eval(name: str, items: Items, about: str) -> Eval:
    """Return an eval of translations, scored as a whole by chrF and BLEU."""
    return Eval(
        id=name,
        version=1,
        config={
            "docs": lambda: [{**row, "reference": row["answer"]} for row in items()],
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "generation_kwargs": _greedy("\n"),
            "metric_list": [_scored(key, key) for key in ("chrf", "bleu")],
        },
        metric="chrf,none",
        other_metrics=("bleu,none",),
        about=about,
    )


def _greedy(stop: str) -> dict[str, Any]:
    return {"until": [stop], "max_gen_toks": writing.MAX_NEW_TOKENS, "do_sample": False}


def _scored(metric: str, aggregation: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": aggregation, "higher_is_better": True}
