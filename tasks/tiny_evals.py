"""The embedded evals: each the mirror of a real one, in its output type, prompt and metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clbench.task import Eval

from .tiny import code, facts, instruct, math, verifiers

Doc = dict[str, Any]
Metric = dict[str, Any]

LICENSE = "Apache-2.0; generated in this repository"
NUMBER = r"-?[0-9]+"
FACTS, FACTS_ASKED = 500, 200  # in all, and in the default run


def math_eval(name: str, items: Callable[[], Sequence[Doc]], about: str) -> Eval:
    """Return an eval of word problems, read as gsm8k is: last number, or what follows `####`."""
    return Eval(
        id=name,
        version=1,
        config={
            "docs": lambda: [_asked(row, "Question: ", "\nAnswer:") for row in items()],
            "doc_to_text": "prompt",
            "doc_to_target": "gold",
            "generation_kwargs": _greedy(math.STOPS, math.MAX_NEW_TOKENS),
            "filter_list": [
                _extract("strict-match", f"#### ({NUMBER})", 0),
                _extract("flexible-extract", f"({NUMBER})", -1),
            ],
            "metric_list": [_mean("exact_match")],
        },
        metric="exact_match,flexible-extract",
        other_metrics=("exact_match,strict-match",),
        about=about,
    )


def code_eval(name: str, items: Callable[[], Sequence[Doc]], about: str) -> Eval:
    """Return an eval of one-line functions, scored by calling them."""
    return Eval(
        id=name,
        version=1,
        config={
            "docs": lambda: [
                _asked(row, "", "") | {"emptied": code.emptied(row)} for row in items()
            ],
            "doc_to_text": "prompt",
            "doc_to_target": "answer",
            "generation_kwargs": _greedy(code.STOPS, code.MAX_NEW_TOKENS),
            "metric_list": [{"metric": "bypass"}],
        },
        metric="pass_at_1,none",
        execution="cases",
        about=about,
    )


def instruct_eval(name: str, items: Callable[[], Sequence[Doc]], about: str) -> Eval:
    """Return an eval of instructions, scored by checking every constraint."""
    return Eval(
        id=name,
        version=1,
        config={
            "docs": lambda: [_asked(row, "Instruction: ", "\nResponse:") for row in items()],
            "doc_to_text": "prompt",
            "doc_to_target": "constraints",
            "process_results": follow,
            "generation_kwargs": _greedy(instruct.STOPS, instruct.MAX_NEW_TOKENS),
            "metric_list": [
                _mean("if_prompt_strict"),
                _mean("if_prompt_loose"),
                _mean("if_inst_strict", share_of_constraints),
                _mean("if_inst_loose", share_of_constraints),
            ],
        },
        metric="if_prompt_strict,none",
        other_metrics=("if_prompt_loose,none", "if_inst_strict,none", "if_inst_loose,none"),
        about=about,
    )


def facts_eval() -> Eval:
    """Return closed-book questions, scored as nq_open is, with the fields of format drift."""
    return Eval(
        id="tiny_facts",
        version=1,
        config={
            "docs": lambda: [
                _asked(row, "Q: ", "\nA:")
                | {"kind": row["relation"], "candidates": facts.candidates(row)}
                for row in facts.eval_items(full=True)
            ],
            "doc_to_text": "prompt",
            "doc_to_target": "golds",
            "generation_kwargs": _greedy(facts.STOPS, facts.MAX_NEW_TOKENS),
            "filter_list": [
                {
                    "name": "remove_whitespace",
                    "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
                }
            ],
            "metric_list": [
                _mean("exact_match")
                | {
                    "ignore_case": True,
                    "ignore_punctuation": True,
                    "regexes_to_ignore": [r"\b(?:The |the |An |A |a |an )"],
                }
            ],
        },
        metric="exact_match,remove_whitespace",
        open_answer=True,
        num_items=FACTS,
        default_items=FACTS_ASKED,
        license=LICENSE,
        rank_items=100,
        long_tokens=facts.MAX_NEW_TOKENS,
        about="questions about countries, states and elements, answered in the model's own words",
    )


def facts_greedy_eval() -> Eval:
    """Return the same facts in other words, scored as webqs is: by arg-max, writing nothing."""
    return Eval(
        id="tiny_facts_greedy",
        version=1,
        config={
            "output_type": "multiple_choice",
            "docs": lambda: [
                _asked(row, "Quiz: ", "\nReply:") for row in facts.greedy_items(full=True)
            ],
            "doc_to_text": "prompt",
            "doc_to_choice": "golds",
            "doc_to_target": lambda doc: list(range(len(doc["golds"]))),
            "metric_list": [_mean("exact_match")],
        },
        metric="exact_match,none",
        num_items=FACTS,
        default_items=FACTS_ASKED,
        license=LICENSE,
        about="the same facts in other words; right if each token of an answer is the likeliest",
    )


def follow(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score one response: per prompt all of its constraints, and each constraint by itself."""
    strict = verifiers.follow_strict(doc["constraints"], results[0])
    loose = verifiers.follow_loose(doc["constraints"], results[0])
    return {
        "if_prompt_strict": float(all(strict)),
        "if_prompt_loose": float(all(loose)),
        "if_inst_strict": strict,
        "if_inst_loose": loose,
    }


def share_of_constraints(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of all constraints of all prompts that are met."""
    met = [met for item in items for met in item]
    return sum(met) / len(met)


def _asked(row: Doc, before: str, after: str) -> Doc:
    """Return a document: the row, its question without the template, a right response."""
    question = row["prompt"].removeprefix(before).removesuffix(after)
    return {**row, "question": question, "reference": row["answer"]}


def _greedy(stops: Sequence[str], new_tokens: int) -> dict[str, Any]:
    return {"until": list(stops), "max_gen_toks": new_tokens, "do_sample": False}


def _extract(name: str, pattern: str, group: int) -> dict[str, Any]:
    regex = {"function": "regex", "regex_pattern": pattern, "group_select": group}
    return {"name": name, "filter": [regex, {"function": "take_first"}]}


def _mean(metric: str, aggregation: Any = "mean") -> Metric:
    return {"metric": metric, "aggregation": aggregation, "higher_is_better": True}
