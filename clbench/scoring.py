"""Scores of our own for a data set of the user's: each an lm-eval task made of two templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clbench.dataset import Columns, DataSet, Template, Values, fields_of
from clbench.errors import UserError
from clbench.task import Eval

Doc = Mapping[str, Any]

SHORTEST = 5  # words of a question that a leak check finds by itself, without the template
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ARTICLES = r"\b(?:The |the |An |A |a |an )"


@dataclass(frozen=True)
class Question:
    """Makes a document of a record: the prompt, the right answers, and the options if any."""

    template: Template
    columns: Columns

    def __call__(self, record: Values) -> dict[str, Any] | None:
        """Return the document, None for an empty answer; raises UserError for a missing value."""
        values = self.columns(record)
        if not self.template.row("", values).answer.strip():
            return None
        answers = [self.template.answer.format_map(v) for v in self._answered(record, values)]
        prompt = self.template.prompt.format_map(values)
        asked = " ".join(str(values[name]) for name in fields_of(self.template.prompt))
        document: dict[str, Any] = {
            "prompt": prompt,
            "question": asked if len(asked.split()) >= SHORTEST else prompt,
            "golds": [answer.strip() for answer in answers],
            "reference": answers[0],
        }
        if self.template.request:
            document["request"] = self.template.request.format_map(values)
        if self.columns.options:
            options = self.columns.choices(record)
            texts = [self._answer(values, option).lstrip() for option in options]
            document |= {"options": texts, "label": texts.index(document["golds"][0])}
        return document

    def _answered(self, record: Values, values: Values) -> list[Values]:
        name = self.columns.answer
        if name is None:
            return [values]
        return [{**values, name: text} for text in self.columns.accepted(record)]

    def _answer(self, values: Values, option: str) -> str:
        assert self.columns.answer is not None
        return self.template.answer.format_map({**values, self.columns.answer: option})


class Score(NamedTuple):
    """One way to score: the fields of its lm-eval task, and the defaults of what is generated."""

    metric: str  # the pinned key
    fields: Mapping[str, Any]
    new_tokens: int = 0
    one_line: bool = False  # a newline ends the answer


def contains(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score 1 where a right answer stands somewhere in the output, in words."""
    output = f" {_words(results[0])} "
    return {"contains": float(any(f" {_words(gold)} " in output for gold in doc["golds"]))}


def final_number(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score 1 where the last number of the output equals that of a right answer."""
    found = last_number(results[0])
    golds = [last_number(gold) for gold in doc["golds"]]
    return {"final_number": float(found is not None and found in golds)}


def rouge_l(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score the longest common subsequence of words, stemmed, as an F-measure (ROUGE-L)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return {"rougeL": scorer.score_multi(doc["golds"], results[0])["rougeL"].fmeasure}


def last_number(text: str) -> float | None:
    """Return the last number of a text; commas between its digits are left out."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _mean(metric: str, **how: Any) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True, **how}


def _ours(function: Callable[[Doc, Sequence[str]], dict[str, float]], key: str) -> dict[str, Any]:
    return {"process_results": function, "metric_list": [_mean(key)]}


_NORMALIZED = {"ignore_case": True, "ignore_punctuation": True, "regexes_to_ignore": [ARTICLES]}

SCORES: Mapping[str, Score] = {
    "exact_match": Score(
        "exact_match,normalized",
        {
            "filter_list": [
                {
                    "name": "normalized",
                    "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
                }
            ],
            "metric_list": [_mean("exact_match", **_NORMALIZED)],
        },
        new_tokens=32,
        one_line=True,
    ),
    "contains": Score("contains,none", _ours(contains, "contains"), new_tokens=64, one_line=True),
    "final_number": Score("final_number,none", _ours(final_number, "final_number"), new_tokens=200),
    "rougeL": Score("rougeL,none", _ours(rouge_l, "rougeL"), new_tokens=128),
    "chrf": Score(
        "chrf,none",
        {
            "doc_to_target": lambda doc: doc["golds"][0],
            "metric_list": [{**_mean("chrf"), "aggregation": "chrf"}],
        },
        new_tokens=128,
    ),
    "choice": Score(
        "acc,none",
        {
            "output_type": "multiple_choice",
            "doc_to_choice": "options",
            "doc_to_target": "label",
            "metric_list": [_mean("acc"), _mean("acc_norm")],
        },
    ),
}


def build(
    name: str,
    score: str,
    data: DataSet,
    template: Template,
    columns: Columns,
    *,
    stops: Sequence[str] | None = None,
    new_tokens: int | None = None,
    chance: float = 0.0,
    about: str = "",
) -> Eval:
    """Return the eval of a data set: `score` is one of SCORES.

    Without `stops` a newline ends the answer where one line is scored, and otherwise the text that
    the next prompt would begin with. Raises UserError for `choice` without options.
    """
    how = SCORES[score]
    if score == "choice" and not columns.options:
        raise UserError("score 'choice' needs options: texts, or the column that holds them")
    fields: dict[str, Any] = {"doc_to_text": "prompt", "doc_to_target": "golds", **how.fields}
    lead = template.answer[: len(template.answer) - len(template.answer.lstrip())]
    fields["target_delimiter"] = lead
    if score != "choice":
        fields["generation_kwargs"] = {
            "until": list(stops) if stops is not None else _stops(how, template.prompt),
            "max_gen_toks": new_tokens or how.new_tokens,
            "do_sample": False,
        }
    return Eval(
        id=name,
        version=1,
        config=fields,
        metric=how.metric,
        request="request" if template.request else "",
        other_metrics=("acc_norm,none",) if score == "choice" else (),
        chance=chance,
        data={"test": data},
        prepare=Question(template, columns),
        about=about,
    )


def _stops(how: Score, prompt: str) -> list[str]:
    if how.one_line:
        return ["\n"]
    begin = prompt.partition("{")[0].strip()
    return ["\n" + begin.partition("\n")[0]] if begin else ["\n\n"]
