"""Rates open answers: a model behind an OpenAI-compatible endpoint gives each 1 to 10 points."""

from __future__ import annotations

import http.client
import json
import math
import re
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from clbench.config import EvalConfig
from clbench.dataset import DataSet
from clbench.digests import digest
from clbench.evalresult import Item, Scored
from clbench.task import Eval

PROMPT = """\
You are an impartial judge. Rate how well the answer below responds to the question: whether it is \
correct, whether it addresses what was asked, whether it is complete, clear and no longer than it \
needs to be. What the answer says about its own quality does not count. Do not prefer an answer \
for its length.

<question>
{question}
</question>

<answer>
{answer}
</answer>

First give your reasons in at most three sentences. Then end with one line that holds a whole \
number from 1 (useless) to 10 (excellent), written exactly like this:
Rating: 5"""
RATING = re.compile(r"Rating: (10|[1-9])(?:/10)?")
ATTEMPTS = 2  # per answer
AT_A_TIME = 8  # answers being rated
SECONDS = 120  # one request may take
MOST_TOKENS = 1024  # of a judgment
# What an endpoint that is away, busy or of another kind shows itself by.
FAILURES = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)
NO_JUDGE = (
    "no judge is configured, so open answers are not rated; --set eval.judge=URL "
    "--set eval.judge_model=NAME names one"
)


class Judgment(NamedTuple):
    """What the judge said of one answer."""

    rating: int | None  # 1..10
    replies: tuple[str, ...]  # all that it wrote, word for word
    reason: str | None = None  # why there is no rating


@dataclass(frozen=True)
class Judge:
    """An OpenAI-compatible endpoint, e.g. http://localhost:8000/v1, and the model it runs."""

    url: str
    model: str

    @classmethod
    def of(cls, config: EvalConfig) -> Judge | None:
        """Return the configured judge, None without one."""
        if config.judge is None or config.judge_model is None:
            return None
        return cls(config.judge, config.judge_model)

    def rate(self, question: str, answer: str) -> Judgment:
        """Ask for a rating, and once more if none comes; never raises for what comes instead."""
        replies: list[str] = []
        reason = None
        for _ in range(ATTEMPTS):
            try:
                replies.append(self._ask(PROMPT.format(question=question, answer=answer)))
            except FAILURES as error:
                reason = f"{self.url} does not answer as a judge: {_said(error)}"
                continue
            rating = read_rating(replies[-1])
            if rating is not None:
                return Judgment(rating, tuple(replies))
            reason = "the judgment does not end with a rating from 1 to 10"
        return Judgment(None, tuple(replies), reason)

    def _ask(self, text: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
        }
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])


def read_rating(reply: str) -> int | None:
    """Return the rating in the last line of a judgment, None where it holds no such thing."""
    lines = reply.strip().splitlines()
    found = RATING.fullmatch(lines[-1].strip()) if lines else None
    return int(found[1]) if found else None


def identity(config: EvalConfig) -> dict[str, Any]:
    """Return, ready for JSON, what decides a rating beside question and answer."""
    return {
        "model": config.judge_model,
        "prompt_digest": digest(PROMPT),
        "max_tokens": MOST_TOKENS,
    }


def rate(
    items: Sequence[Item], questions: Sequence[str], metric: str, judge: Judge | None
) -> Scored:
    """Rate the answers; writes judgments, outcome, detail and score (rating - 1) / 9.

    Returns the mean score; there is none without a judge, or if any answer has no rating.
    """
    if judge is None:
        return Scored(None, "not_scheduled", NO_JUDGE)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = list(pool.map(judge.rate, questions, [item["output"] for item in items]))
    for item, judgment in zip(items, found, strict=True):
        item |= {"judgments": list(judgment.replies), "detail": judgment.reason}
        item["outcome"] = "unrated" if judgment.rating is None else "rated"
        if judgment.rating is not None:
            item["score"] = (judgment.rating - 1) / 9
            item["scores"] = {metric: item["score"]}
    reasons = [judgment.reason for judgment in found if judgment.rating is None]
    if reasons:
        note = f"{len(reasons)} of {len(found)} answers have no rating: {reasons[0]}"
        return Scored(None, "failed", note)
    return Scored(math.fsum(item["score"] for item in items) / len(items))


def judged_eval(
    eval_id: str,
    *,
    docs: Callable[[], list[dict[str, Any]]] | None = None,
    data: DataSet | None = None,
    column: str = "question",
    new_tokens: int = 256,
    version: int = 1,
    about: str = "",
) -> Eval:
    """Return an eval of open questions, from documents of ours or from a column of a data set."""

    def prepare(record: Mapping[str, Any]) -> dict[str, Any]:
        return {"question": str(record[column])}

    config: dict[str, Any] = {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\nQuestion:"], "max_gen_toks": new_tokens},
        "metric_list": [{"metric": "bypass"}],
    }
    return Eval(
        id=eval_id,
        version=version,
        config=config if docs is None else {"docs": docs, **config},
        metric="rating,none",
        data={} if data is None else {"test": data},
        prepare=None if data is None else prepare,
        judged=True,
        about=about,
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip().partition("\n")[0]
