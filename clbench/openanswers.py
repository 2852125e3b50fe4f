"""Reads open answers twice more: in a lenient reading, and by how likely the gold ones are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clbench import drift, evalresult
from clbench.chat import Chat
from clbench.decoding import Alternatives, Generation
from clbench.evalplan import EvalPlan, gold_texts
from clbench.evalresult import Item


class Model(Protocol):
    """What is asked of a model: texts, and how likely texts are."""

    chat: Chat | None

    def write(
        self, prompts: Sequence[str], stops: Sequence[str], max_new_tokens: int
    ) -> list[Generation]:
        """Continue prompts."""

    def alternatives(self, prompt: str, continuations: Sequence[str]) -> Alternatives:
        """Tokenize continuations of one prompt."""

    def score(self, items: Sequence[Alternatives]) -> list[list[float]]:
        """Return the log-likelihood (nats, summed) of each continuation of each item."""


def add_drift(model: Model, plan: EvalPlan, items: Sequence[Item]) -> None:
    """Write the fields that tell a changed format from lost knowledge."""
    prompts = dict(zip(plan.ids, plan.prompts, strict=True))
    for item in items:
        item["em"] = item["score"]
    missed = [item["id"] for item in items if item["em"] != 1]
    texts = model.write([prompts[n] for n in missed], (), plan.spec.long_tokens)
    outputs = {n: generation.text for n, generation in zip(missed, texts, strict=True)}
    evalresult.add_lenient(items, plan.aliases, outputs, f"floor|{plan.spec.id}")
    alternatives = _alternatives(model, plan)
    scores = model.score([alternatives[item["id"]] for item in items])
    for item, totals in zip(items, scores, strict=True):
        ids = alternatives[item["id"]].continuations
        means = [total / len(c) for total, c in zip(totals, ids, strict=True)]
        num_aliases = len(gold_texts(plan, item["id"]))
        item["gold_ll"] = max(means[:num_aliases])
        if item["id"] in plan.candidates:
            item["gold_rank"] = drift.gold_rank([means[0], *means[num_aliases:]])


def _alternatives(model: Model, plan: EvalPlan) -> dict[str, Alternatives]:
    """Return each item's aliases and distractors as tokens; they are the same for all rows."""
    before = " " if model.chat is None else ""  # a template ends where the answer begins
    if not plan.alternatives:
        for name, prompt in zip(plan.ids, plan.prompts, strict=True):
            texts = gold_texts(plan, name) + plan.candidates.get(name, [])[1:]
            plan.alternatives[name] = model.alternatives(prompt, [before + text for text in texts])
    return plan.alternatives
